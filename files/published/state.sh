# Which rules for published ports stand in the files and in the kernel. Reads only; one record a line: key, tab, value.
# shellcheck shell=sh
# shellcheck disable=SC2154  # unit, rules, service are set in front of this script
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

sum_of() { printf '%s %s' "$(stat -c %U:%G:%a -- "$1" 2> /dev/null)" "$(sha256sum -- "$1" 2> /dev/null | cut -d ' ' -f 1)"; }

command -v nft > /dev/null 2>&1 && printf 'nft\tyes\n'
printf 'rules\t%s\n' "$(sum_of "$rules")"
printf 'service\t%s\n' "$(sum_of "$service")"
for file in "${rules%/*}"/.*.dpkg-* "${service%/*}/.${service##*/}".dpkg-*; do
    [ ! -e "$file" ] || printf 'leftover\t%s\n' "$file"
done
systemctl show -p LoadState,ActiveState,UnitFileState,NeedDaemonReload -- "$unit" 2> /dev/null | sed 's/^/unit\t/'
[ ! -L "/etc/systemd/system/docker.service.requires/$unit" ] || printf 'required\tyes\n'
live=$(nft -s list table inet hostwright_published 2> /dev/null) && printf 'live\tyes\n'
# The same version of nft prints in a network of its own what the file would load: no other comparison is safe.
if [ -n "$live" ] && fresh=$(unshare -n sh -c "nft -f '$rules' && nft -s list table inet hostwright_published" 2> /dev/null); then
    [ "$live" != "$fresh" ] || printf 'same\tyes\n'
fi
{ ip -o route show default; ip -o -6 route show default; } 2> /dev/null | sed -n 's/.* dev \([^ ]*\).*/uplink\t\1/p'
true
