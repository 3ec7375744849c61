# Bring a server's datastore (sqlite) back from a backup. Its keys on disk may be of another cluster, as on a fresh host: k3s does not start
# on a datastore that is older than them, and writes them anew from it when they are not there.
# shellcheck shell=sh disable=SC2154  # set in front of this script: program  of the backups;  at, repository  which copy
set -eu

main() {
	server=/var/lib/rancher/k3s/server
	systemctl stop k3s.service
	if ! "$program" restore k3s --at "$at" --repository "$repository"; then
		systemctl start k3s.service
		echo "nothing was restored; k3s runs again on what it had" >&2
		exit 1
	fi
	now=$(date +%s)
	for name in tls cred; do
		if [ -e "$server/$name" ]; then mv "$server/$name" "$server/$name-old-$now"; fi
	done
	if ! systemctl start k3s.service; then
		echo "restored, but k3s does not start: journalctl -u k3s.service" >&2
		exit 1
	fi
}
