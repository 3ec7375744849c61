# The timers of apt and our configuration of it. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
# shellcheck disable=SC2154  # file is set in front of this script
printf 'file\t%s %s\n' "$(stat -c '%U:%a' "$file" 2> /dev/null || echo -)" "$(sha256sum "$file" 2> /dev/null | cut -d ' ' -f 1)"
for unit in apt-daily.timer apt-daily-upgrade.timer; do
    [ "$(systemctl is-enabled $unit 2> /dev/null)" = enabled ] && systemctl is-active --quiet $unit && printf 'timer\t%s\n' $unit
done
true
