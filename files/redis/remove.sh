# Take an instance of Redis away; its data stays.
# shellcheck shell=sh disable=SC2154  # set in front of this script: instance
set -eu

main() {
	systemctl --quiet disable --now "redis-server@$instance.service" 2>/dev/null || :
	rm -rf "/etc/systemd/system/redis-server@$instance.service.d"
	rm -f "/etc/redis/redis-$instance.conf" "/etc/redis/redis-$instance.live.conf" "/etc/redis/redis-$instance.acl" \
		"/etc/redis/redis-$instance.crt" "/etc/redis/redis-$instance.key" \
		"/etc/redis/redis-$instance.ca.crt" "/etc/redis/redis-$instance.replication.conf" "/etc/hostwright/redis/$instance.group.json" \
		"/etc/hostwright/redis/$instance.password" "/var/lib/hostwright/redis-$instance.acl"
	systemctl daemon-reload
	systemctl reset-failed "redis-server@$instance.service" 2>/dev/null || :
}
