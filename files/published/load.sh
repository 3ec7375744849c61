# Have the rules for published ports in the kernel now and after every boot, and see that they are.
# shellcheck shell=sh
# shellcheck disable=SC2154  # unit, rules, absent are set in front of this script
main() {
    if [ -n "$absent" ]; then
        systemctl disable --quiet "$unit" 2> /dev/null
        rm -f -- "$rules" "/etc/systemd/system/$unit"
        rmdir -- "${rules%/*}" 2> /dev/null
        systemctl daemon-reload
        # One that is not loaded any more is forgotten when it is not active: as itself it refuses to be stopped.
        nft delete table inet hostwright_published 2> /dev/null
        return 0
    fi
    systemctl daemon-reload && systemctl unmask --quiet "$unit" && systemctl enable --quiet "$unit" || return 1
    if systemctl is-active --quiet "$unit"; then
        systemctl reload "$unit" || return 1
    else
        systemctl reset-failed "$unit" 2> /dev/null
        systemctl start "$unit" || return 1
    fi
    live=$(nft -s list table inet hostwright_published) || return 1
    if [ "$live" != "$(unshare -n sh -c "nft -f '$rules' && nft -s list table inet hostwright_published")" ]; then
        echo "published.ports: the kernel's rules are not those of $rules:" >&2
        printf '%s\n' "$live" >&2
        return 1
    fi
}
