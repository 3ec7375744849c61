# systemd-timesyncd and its configuration. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
# shellcheck disable=SC2154  # file is set in front of this script
unit=systemd-timesyncd.service
printf 'file\t%s %s\n' "$(stat -c '%U:%a' "$file" 2> /dev/null || echo -)" "$(sha256sum "$file" 2> /dev/null | cut -d ' ' -f 1)"
printf 'load\t%s\n' "$(systemctl show --property=LoadState --value $unit 2> /dev/null)"
printf 'enabled\t%s\n' "$(systemctl is-enabled $unit 2> /dev/null)"
printf 'active\t%s\n' "$(systemctl is-active $unit 2> /dev/null)"
systemd-detect-virt --quiet --container 2> /dev/null && printf 'container\tyes\n'
since=$(systemctl show --timestamp=us+utc --property=ActiveEnterTimestamp --value $unit 2> /dev/null)
[ -z "$since" ] || find "$file" -newerct "${since#* }" 2> /dev/null | while read -r path; do printf 'unread\t%s\n' "$path"; done
true
