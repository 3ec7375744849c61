# Start a backup job's unit, wait for its end, and show what it said.
# shellcheck shell=sh disable=SC2154  # set in front of this script: unit
set -eu

main() {
	if [ "$(systemctl show -p LoadState --value -- "$unit")" != loaded ]; then
		echo "$unit does not exist: the source is not declared on this host" >&2
		exit 1
	fi
	status=0
	systemctl start -- "$unit" 2>/dev/null || status=1
	invocation=$(systemctl show -p InvocationID --value -- "$unit")
	journalctl --sync
	journalctl "_SYSTEMD_INVOCATION_ID=$invocation" -o cat --no-pager
	if [ "$status" != 0 ]; then
		echo "$unit failed ($(systemctl show -p Result --value -- "$unit")); its journal is above" >&2
	fi
	exit "$status"
}
