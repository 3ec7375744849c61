# What a host has become, as lines that read the same whoever made it so.
# shellcheck shell=sh disable=SC2154,SC2086  # set in front of this script, lists of words:
#   paths     files and directories; with recurse=yes everything below them too
#   packages  Debian packages; empty for all
#   units     systemd units
#   users     accounts
#   domain    name under which the gateway must answer
set -u
export LC_ALL=C

[ "$recurse" = yes ] && depth= || depth='-maxdepth 0'
find $paths $depth -xdev ! -type s -printf 'entry %p %y %m %u:%g %l\n' 2>/dev/null | sort
find $paths $depth -xdev -type f -exec sha256sum {} + 2>/dev/null | awk '{ print "content " $2 " " $1 }' | sort
dpkg-query -W -f 'package ${Package} ${db:Status-Status}\n' $packages 2>/dev/null | sort
for unit in $units; do
	printf 'unit %s %s %s\n' "$unit" "$(systemctl is-active "$unit" 2>/dev/null)" "$(systemctl is-enabled "$unit" 2>/dev/null)"
done
for user in $users; do
	printf 'user %s %s %s\n' "$user" "$(getent passwd "$user" | cut -d: -f6,7)" "$(id -nG "$user" 2>/dev/null)"
done
command -v ufw >/dev/null && ufw status verbose | sed 's/^/firewall /'
ss -Hltn | awk '{ print "listens " $4 }' | sort
printf 'clock %s\n' "$(readlink /etc/localtime)"
/usr/sbin/sshd -T 2>/dev/null | sort | sed 's/^/sshd /'
printf 'health %s\n' "$(curl --silent --insecure --output /dev/null --write-out '%{http_code}' \
	--resolve "$domain:443:127.0.0.1" "https://$domain/health")"
