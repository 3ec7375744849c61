# Drop programs of versions that nobody needs any more: neither the running one, nor the one before it.
# shellcheck shell=sh disable=SC2154  # set in front of this script: programs  their directory;  keep  versions, blank between
set -eu

main() {
	for directory in "$programs"/*/; do
		version=$(basename -- "$directory")
		case " $keep " in *" $version "*) continue ;; esac
		rm -rf -- "$directory"
	done
}
