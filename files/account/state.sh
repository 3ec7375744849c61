# The accounts of people and what they may. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
# shellcheck disable=SC2154  # names (one a line), group, sudoers are set in front of this script
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

members=$(getent group "$group" | cut -d : -f 4 | tr ',' '\n')
printf '%s\n' "$members" | grep . | while read -r name; do printf 'member\t%s\n' "$name"; done
getent group "$group" > /dev/null && printf 'group\tyes\n'
printf '%s\n%s\n' "$names" "$members" | sort -u | grep . | while read -r name; do
    entry=$(getent passwd "$name") || continue
    home=$(printf '%s' "$entry" | cut -d : -f 6)
    shell=$(printf '%s' "$entry" | cut -d : -f 7)
    shadow=$(getent shadow "$name")
    case $(printf '%s' "$shadow" | cut -d : -f 2) in
        '!'* | '*') password=no ;;
        *) password=yes ;;
    esac
    expires=$(printf '%s' "$shadow" | cut -d : -f 8)
    keys=$home/.ssh/authorized_keys
    printf 'account\t%s %s %s %s %s %s\n' "$name" "$shell" "$password" "${expires:-never}" \
        "$(stat -c '%U:%a' "$keys" 2> /dev/null || echo -)" "$(sha256sum "$keys" 2> /dev/null | cut -d ' ' -f 1)"
done
printf 'sudoers\t%s %s\n' "$(stat -c '%U:%a' "$sudoers" 2> /dev/null || echo -)" \
    "$(sha256sum "$sudoers" 2> /dev/null | cut -d ' ' -f 1)"
true
