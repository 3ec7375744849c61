# Bring ufw's rules, defaults and state to what is declared.
# shellcheck shell=sh
# shellcheck disable=SC2154  # rules4, rules6, live4, live6, ipv6, ssh_port, only_rules are set in front of this script
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

write_rules() { # FILE TEXT: everything between ufw's own markers; what is around them stays ufw's
    cp -p "$1" "$1.hostwright" || return 1
    printf '%s\n' "$2" > "$1.hostwright.rules"
    awk -v rules="$1.hostwright.rules" '
        /^### END RULES ###$/ { inside = 0 }
        !inside { print }
        /^### RULES ###$/ { inside = 1; print ""; while ((getline line < rules) > 0) print line; print "" }
    ' "$1" > "$1.hostwright" && rm -f "$1.hostwright.rules" && mv "$1.hostwright" "$1"
}

set_default() { # KEY VALUE
    if grep -q "^$1=" /etc/default/ufw; then
        sed -i "s|^$1=.*|$1=$2|" /etc/default/ufw
    else
        echo "$1=$2" >> /etc/default/ufw
    fi
}

unload() { # iptables|ip6tables
    # ufw hooks its chains into INPUT only when it makes them: with chains that stand unhooked it would say "reloaded" and
    # drop everything. So they go first; chains of others (Docker, k3s, fail2ban) stay.
    "$1" -S | sed -nE 's/^-A (INPUT|OUTPUT|FORWARD) -j (ufw6?-[a-z-]+)$/-D \1 -j \2/p' | while read -r rule; do
        # shellcheck disable=SC2086
        "$1" $rule
    done
    chains=$("$1" -S | sed -nE 's/^-N (ufw6?-[a-z-]+)$/\1/p')
    for chain in $chains; do "$1" -F "$chain"; done
    for chain in $chains; do "$1" -X "$chain"; done
}

is_hooked() { # iptables|ip6tables CHAIN
    "$1" -S INPUT | grep -qxF -e '-P INPUT DROP' && "$1" -S INPUT | grep -qxF -e "-A INPUT -j $2"
}

live_rules() { "$1" -S "$2" | grep '^-A'; }

change() {
    command -v ufw > /dev/null || { echo "exposure.firewall: ufw is not installed" >&2; return 1; }
    set_default IPV6 yes
    set_default DEFAULT_INPUT_POLICY '"DROP"'
    set_default DEFAULT_OUTPUT_POLICY '"ACCEPT"'
    for file in /etc/ufw/user.rules /etc/ufw/user6.rules; do
        # Fresh from the package, the file lacks the markers. Any rule makes ufw write them; SSH is allowed anyway.
        grep -q '^### END RULES ###$' "$file" || ufw allow "$ssh_port/tcp" > /dev/null || return 1
    done
    write_rules /etc/ufw/user.rules "$rules4" && write_rules /etc/ufw/user6.rules "$rules6" || return 1
    systemctl enable --quiet ufw.service || return 1
    if [ -n "$only_rules" ]; then
        # In one kernel transaction, so that there is no instant without rules (ufw reload has one).
        iptables-restore -n < /etc/ufw/user.rules || return 1
        [ -z "$ipv6" ] || ip6tables-restore -n < /etc/ufw/user6.rules || return 1
    else
        unload iptables
        [ -z "$ipv6" ] || unload ip6tables
        ufw --force enable > /dev/null && ufw reload > /dev/null || return 1
        if ! is_hooked iptables ufw-before-input || { [ -n "$ipv6" ] && ! is_hooked ip6tables ufw6-before-input; }; then
            echo "exposure.firewall: ufw is enabled, and yet the kernel does not ask its rules" >&2
            return 1
        fi
    fi
    if [ "$(live_rules iptables ufw-user-input)" != "$live4" ]; then
        echo "exposure.firewall: the kernel's IPv4 rules are not the declared ones:" >&2
        live_rules iptables ufw-user-input >&2
        return 1
    fi
    if [ -n "$ipv6" ] && [ "$(live_rules ip6tables ufw6-user-input)" != "$live6" ]; then
        echo "exposure.firewall: the kernel's IPv6 rules are not the declared ones:" >&2
        live_rules ip6tables ufw6-user-input >&2
        return 1
    fi
}
