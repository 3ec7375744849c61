# Name and time zone. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
printf 'file\t%s\n' "$(cat /etc/hostname 2> /dev/null)"
printf 'live\t%s\n' "$(hostname 2> /dev/null)"
grep -E '^127\.0\.1\.1[[:space:]]' /etc/hosts 2> /dev/null | while read -r _ names; do printf 'hosts\t%s\n' "$names"; done
printf 'localtime\t%s\n' "$(readlink /etc/localtime 2> /dev/null)"
[ ! -e /etc/timezone ] || printf 'timezone\t%s\n' "$(cat /etc/timezone)"
true
