# Put managed files of nginx back as they were last provisioned. It reads no configuration and reloads nothing: what
# runs is left alone, and the operations that follow can validate the tree again.
# shellcheck shell=sh disable=SC2154  # set in front of this script:  kept  the directory of the copies
set -eu

main() {
	find "$kept" -type f ! -name '.*' | while read -r copy; do
		path=/etc/nginx/${copy#"$kept"/}
		if cmp -s -- "$copy" "$path"; then continue; fi
		staged=$(dirname -- "$path")/.$(basename -- "$path").dpkg-new
		mkdir -p -- "$(dirname -- "$path")"
		cp -- "$copy" "$staged"
		mv -fT -- "$staged" "$path"
		printf '%s: put back\n' "$path"
	done
}
