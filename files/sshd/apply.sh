# Write sshd's drop-in, make sure that it counts, and have sshd read it without ending a session.
# shellcheck shell=sh
# shellcheck disable=SC2154  # content, ports, wanted are set in front of this script
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
directory=/etc/ssh/sshd_config.d
socket_file=/etc/systemd/system/ssh.socket.d/hostwright.conf

put() { # FILE TEXT
    mkdir -p "$(dirname "$1")" && printf '%s\n' "$2" > "$1.hostwright" && chmod 0644 "$1.hostwright" \
        && chown root:root "$1.hostwright" && mv "$1.hostwright" "$1"
}

include_first() {
    line="Include $directory/*.conf"
    # Once only: what is included twice, such as Port, is read twice.
    [ "$(grep -m 1 -E '^[[:space:]]*[^#[:space:]]' /etc/ssh/sshd_config)" = "$line" ] \
        || put /etc/ssh/sshd_config "$line
$(grep -vxF "$line" /etc/ssh/sshd_config)"
}

ports_of_socket() {
    systemctl show --property=Listen --value ssh.socket | sed -n 's/^.*:\([0-9]*\) (Stream)$/\1/p' | sort -un | tr '\n' ' '
}

is_what_counts() {
    effective=$(sshd -T) || return 1
    while IFS= read -r line; do
        if ! printf '%s\n' "$effective" | grep -qxF "$line"; then
            echo "sshd.server: '$line' does not take effect; is it in a Match block or set before the Include?" >&2
            return 1
        fi
    done <<WANTED
$wanted
WANTED
    [ -z "$1" ] || return 0
    found=$(printf '%s\n' "$effective" | sed -n 's/^port //p' | sort -un | tr '\n' ' ')
    [ "$found" = "$ports " ] || {
        echo "sshd.server: sshd would listen on ${found}and not on $ports: another file has a Port line too" >&2
        return 1
    }
}

change() {
    socket=
    systemctl is-active --quiet ssh.socket && socket=yes
    put "$directory/00-hostwright.conf" "$content" && include_first || return 1
    install -d -m 0755 /run/sshd
    sshd -t && is_what_counts "$socket" || return 1
    if [ -z "$socket" ]; then
        systemctl reload-or-restart ssh.service
        return
    fi
    # systemd holds the port: it must be told itself, and sshd, which only ends its listener here (KillMode=process),
    # is started again by the next connection.
    if [ "$(ports_of_socket)" != "$ports " ]; then
        # shellcheck disable=SC2086  # one line a port
        put "$socket_file" "$(printf '[Socket]\nListenStream=\n'; printf 'ListenStream=%s\n' $ports)" || return 1
        systemctl daemon-reload
        systemctl stop ssh.service
        systemctl restart ssh.socket
    else
        systemctl stop ssh.service
    fi
}
