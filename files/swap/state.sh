# The swap file, its line in fstab, and whether it is in use. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
# shellcheck disable=SC2154  # path, fstab are set in front of this script
[ ! -f "$path" ] || printf 'file\t%s\n' "$(stat -c '%s %U:%a' "$path")"
[ "$(tail -c +4087 "$path" 2> /dev/null | head -c 10)" != SWAPSPACE2 ] || printf 'signed\tyes\n'
awk -v path="$path" '$1 == path { printf "fstab\t%s %s %s %s %s %s\n", $1, $2, $3, $4, $5, $6 }' "$fstab" 2> /dev/null
awk -v path="$path" '$1 == path { print "active\tyes" }' /proc/swaps 2> /dev/null
systemd-detect-virt --quiet --container 2> /dev/null && printf 'container\tyes\n'
true
