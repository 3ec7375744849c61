# Bring one unit to its declared state.
# shellcheck shell=sh disable=SC2154  # set in front of this script, besides those of unit/act.sh:
#   unmask daemon_reload   yes or empty;   enablement   enable | disable | mask | ""
set -eu
umask 022

main() {
	[ -z "$unmask" ] || systemctl --quiet unmask -- "$unit"
	[ -z "$daemon_reload" ] || systemctl daemon-reload
	[ "$action" != stop ] || act || exit 1
	[ -z "$enablement" ] || systemctl --quiet "$enablement" -- "$unit"
	[ "$action" != stop ] || return 0
	act || exit 1
	stamp
}
