# What the firewall is, in its files and in the kernel, and by which doors SSH comes in. Reads only.
# One record a line: key, tab, value. Never fails: pyinfra gives a host up when a fact does.
# shellcheck shell=sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

record() { while IFS= read -r value; do printf '%s\t%s\n' "$1" "$value"; done; }

rules_of() { sed -n '/^### RULES ###$/,/^### END RULES ###$/p' "$1" 2> /dev/null | grep -v -e '^### RULES' -e '^### END' -e '^$'; }

ssh_connection() {
    # sudo drops SSH_CONNECTION; the shell that sshd started still has it.
    pid=$$
    while [ "${pid:-0}" -gt 1 ]; do
        found=$(tr '\0' '\n' < "/proc/$pid/environ" 2> /dev/null | sed -n 's/^SSH_CONNECTION=//p')
        [ -z "$found" ] || { echo "$found"; return; }
        pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status" 2> /dev/null)
    done
}

ssh_addresses() {
    if systemctl is-active --quiet ssh.socket 2> /dev/null; then
        # Socket activation: systemd holds the port and sshd_config's Port means nothing.
        systemctl show --property=Listen --value ssh.socket | sed -n 's/ (Stream)$//p'
    else
        sshd -T 2> /dev/null | sed -n 's/^listenaddress //p'
    fi
    # What sshd really has open, whatever its files say by now. Only the listening process: a session's forwarded
    # ports (ssh -R) belong to its children.
    pid=$(systemctl show --property=MainPID --value ssh.service 2> /dev/null)
    [ "${pid:-0}" -eq 0 ] || ss -Hltnp 2> /dev/null | grep "pid=$pid," | awk '{ print $4 }'
}

command -v ufw > /dev/null 2>&1 && echo yes | record installed
sed -n 's/^ENABLED=//p' /etc/ufw/ufw.conf 2> /dev/null | record enabled
systemctl is-enabled ufw.service 2> /dev/null | record at_boot
[ ! -e /proc/net/if_inet6 ] || echo yes | record ipv6
[ ! -e /var/lib/hostwright/deadman/exposure ] || echo yes | record unproven
grep -E '^[A-Z0-9_]+=' /etc/default/ufw 2> /dev/null | record default
grep -q '^### END RULES ###$' /etc/ufw/user.rules 2> /dev/null && echo 4 | record readable
grep -q '^### END RULES ###$' /etc/ufw/user6.rules 2> /dev/null && echo 6 | record readable
rules_of /etc/ufw/user.rules | record rules4
rules_of /etc/ufw/user6.rules | record rules6
{ iptables -S INPUT; iptables -S ufw-user-input; } 2> /dev/null | record live4
{ ip6tables -S INPUT; ip6tables -S ufw6-user-input; } 2> /dev/null | record live6
ssh_addresses | record ssh
ssh_connection | record connection
true
