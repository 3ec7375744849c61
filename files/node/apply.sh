# Set name and time zone; an empty one stays as it is.
# shellcheck shell=sh
# shellcheck disable=SC2154  # hostname, names, timezone are set in front of this script

main() {
    if [ -n "$hostname" ]; then
        printf '%s\n' "$hostname" > /etc/hostname && hostname "$hostname" || return 1
        # Where Debian's installer puts it: a name that resolves without any network, as sudo and mail programs ask for.
        { grep -vE '^127\.0\.1\.1[[:space:]]' /etc/hosts; printf '127.0.1.1 %s\n' "$names"; } > /etc/hosts.hostwright \
            && chmod 0644 /etc/hosts.hostwright && mv /etc/hosts.hostwright /etc/hosts || return 1
    fi
    [ -n "$timezone" ] || return 0
    if [ ! -e "/usr/share/zoneinfo/$timezone" ]; then
        echo "node.identity: no such time zone on the host: $timezone (is tzdata installed?)" >&2
        return 1
    fi
    ln -sfn "/usr/share/zoneinfo/$timezone" /etc/localtime || return 1
    # Debian 12 and Ubuntu keep a second copy of it; Debian 13 does not.
    [ ! -e /etc/timezone ] || printf '%s\n' "$timezone" > /etc/timezone
    # These read the zone once, when they start.
    systemctl try-restart cron.service rsyslog.service 2> /dev/null
    return 0
}
