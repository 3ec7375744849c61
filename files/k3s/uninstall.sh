# End k3s on this host and DELETE all of its data: pods, volumes of local-path, the datastore with its snapshots.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   programs  the directory of its versions;  node_name  of this host's node: another one's is not meant
set -u

data=/var/lib/rancher/k3s

# What holds a container of ours: the shims, found by where their socket is, and all that they started.
shims() {
	for process in /proc/[0-9]*; do
		[ -r "$process/cmdline" ] || continue
		case $(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) in
		*containerd-shim*/run/k3s/containerd/*) basename -- "$process" ;;
		esac
	done
}

tree() {
	for pid in "$@"; do
		echo "$pid"
		cat "/proc/$pid/task/"*/children 2>/dev/null | tr ' ' '\n' | while read -r child; do
			[ -z "$child" ] || tree "$child"
		done
	done
}

unmount() {
	awk '{ print $2 }' /proc/self/mounts | sort -r | while read -r point; do
		case $point in "$1" | "$1"[-/]*) umount -f "$point" 2>/dev/null || umount -l "$point" ;; esac
	done
}

links() {
	ip -o link show 2>/dev/null | awk -F': ' '/master cni0/ { sub(/@.*/, "", $2); print $2 }' | while read -r link; do
		ip link delete "$link" 2>/dev/null
	done
	for link in cni0 flannel.1 flannel-v6.1 flannel-wg flannel-wg-v6 kube-ipvs0; do
		ip link delete "$link" 2>/dev/null
	done
	ip netns list 2>/dev/null | awk '/^cni-/ { print $1 }' | while read -r space; do ip netns delete "$space"; done
}

# Ours alone: chains of the host's firewall stay.
rules() {
	for family in iptables ip6tables; do
		if command -v "$family-save" >/dev/null && command -v "$family-restore" >/dev/null; then
			"$family-save" | grep -v -e KUBE- -e CNI- -e '[Ff]lannel' -e FLANNEL | "$family-restore"
		fi
	done
}

main() {
	config=/etc/rancher/k3s/config.yaml
	if [ -e "$config" ] && grep -q '^node-name:' "$config" && ! grep -qx "node-name: ['\"]*${node_name}['\"]*" "$config"; then
		echo "node_name: this host's node is $(sed -n 's/^node-name: *//p' "$config"), got $node_name; nothing was changed" >&2
		exit 1
	fi
	for unit in k3s.service k3s-agent.service; do
		systemctl --quiet disable --now "$unit" 2>/dev/null
		systemctl reset-failed "$unit" 2>/dev/null
	done
	# shellcheck disable=SC2046  # pids
	kill -9 $(tree $(shims)) 2>/dev/null
	rules
	for place in /run/k3s /var/lib/kubelet /run/netns/cni "$data"; do unmount "$place"; done
	links
	rm -rf --one-file-system /etc/rancher/k3s /run/k3s /run/flannel /var/lib/kubelet /var/lib/cni "$data" "$programs"
	rm -f /usr/local/bin/k3s /etc/systemd/system/k3s.service /etc/systemd/system/k3s-agent.service
	rm -f /var/lib/hostwright/applied/k3s.service.* /var/lib/hostwright/applied/k3s-agent.service.*
	systemctl daemon-reload
	if [ -e "$data" ] || [ -e /etc/rancher/k3s ]; then
		echo "$data or /etc/rancher/k3s is not gone: something in it is in use (findmnt, fuser -vm tell what)" >&2
		exit 1
	fi
}
