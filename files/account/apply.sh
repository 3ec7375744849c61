# Make, change and close the accounts of people.
# shellcheck shell=sh
# shellcheck disable=SC2154  # accounts, keys, dropped, removed, group, sudoers, rules are set in front of this script
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

write_keys() { # NAME TEXT: as that person, who owns the directory and could have put a link into it
    printf '%s\n' "$2" | runuser -u "$1" -- sh -c '
        cd || exit 1
        umask 077
        mkdir -p .ssh && cat > .ssh/authorized_keys.hostwright && mv .ssh/authorized_keys.hostwright .ssh/authorized_keys'
}

open_account() { # NAME
    if ! getent passwd "$1" > /dev/null; then
        # "*" and not "!": no password will do, yet the account is not locked.
        useradd --create-home --shell /bin/bash --password '*' "$1" || return 1
        # Someone who comes back: the files that were kept have the number that the account had then.
        chown -R --no-dereference "$1:" "$(getent passwd "$1" | cut -d : -f 6)" || return 1
    fi
    usermod --append --groups "$group" --shell /bin/bash --expiredate '' "$1" || return 1
    case $(getent shadow "$1" | cut -d : -f 2) in
        '*') ;;
        *) usermod --password '*' "$1" || return 1 ;;
    esac
    write_keys "$1" "# Written by Hostwright
$(printf '%s\n' "$keys" | sed -n "s/^$1 //p")"
}

main() {
    getent group "$group" > /dev/null || groupadd --system "$group" || return 1
    for name in $accounts; do
        open_account "$name" || return 1
    done
    # Rights go before the accounts that have them, and come after them.
    if [ -n "$rules" ]; then
        printf '%s\n' "$rules" > "$sudoers.hostwright~" && chmod 0440 "$sudoers.hostwright~" || return 1
        if ! visudo -c -q -f "$sudoers.hostwright~"; then
            rm -f "$sudoers.hostwright~"
            return 1
        fi
        mv "$sudoers.hostwright~" "$sudoers" || return 1
    else
        rm -f "$sudoers"
    fi
    for name in $dropped; do
        write_keys "$name" "# Closed by Hostwright"
        usermod --expiredate 1 --password '!' "$name" || return 1
        gpasswd --delete "$name" "$group" > /dev/null || return 1
    done
    for name in $removed; do
        getent passwd "$name" > /dev/null || continue
        usermod --expiredate 1 --password '!' "$name"
        pkill -KILL -u "$name"
        userdel "$name" || return 1
    done
}
