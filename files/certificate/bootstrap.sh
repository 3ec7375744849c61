# Make the stable path hold a pair that nginx can start with.
# shellcheck shell=sh disable=SC2154  # set in front of this script, besides those of link.sh:
#   existing  directory of a good pair to point at; empty makes a self-signed one
#   domains   its names, separated by spaces
set -euf

main() {
	if [ -n "$existing" ]; then
		link_to "$existing"
	else
		# shellcheck disable=SC2086  # one argument per domain
		make_self_signed $domains
	fi
}
