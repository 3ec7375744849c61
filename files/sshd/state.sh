# What sshd is configured to be and where it listens. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
directory=/etc/ssh/sshd_config.d

record() { while IFS= read -r value; do printf '%s\t%s\n' "$1" "$value"; done; }

command -v sshd > /dev/null 2>&1 && echo yes | record installed
stat -c '%a %U %G' "$directory/00-hostwright.conf" 2> /dev/null | record mode
sha256sum "$directory/00-hostwright.conf" 2> /dev/null | cut -d ' ' -f 1 | record sha256
grep -m 1 -E '^[[:space:]]*[^#[:space:]]' /etc/ssh/sshd_config 2> /dev/null | record first
sshd -T 2> /dev/null | record effective
[ ! -e /var/lib/hostwright/deadman/sshd ] || echo yes | record unproven
if systemctl is-active --quiet ssh.socket 2> /dev/null; then
    systemctl show --property=Listen --value ssh.socket | sed -n 's/^.*:\([0-9]*\) (Stream)$/\1/p' | record socket
fi
# A reload passes through the state "reloading", so this is when sshd last read its files.
since=$(systemctl show --timestamp=us+utc --property=StateChangeTimestamp --value ssh.service 2> /dev/null)
if systemctl is-active --quiet ssh.service 2> /dev/null && [ -n "$since" ]; then
    find /etc/ssh/sshd_config "$directory" -type f -newerct "${since#* }" 2> /dev/null | record unread
fi
true
