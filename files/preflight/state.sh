# What cannot change in a run, as KEY=VALUE lines; a line is missing where the host cannot say. Reads only.
# shellcheck shell=sh
say() { printf '%s=%s\n' "$1" "$2"; }

# What an earlier run's command is still changing would be read half-changed (see operations/script.py).
if [ -e /run/hostwright/busy.lock ] && ! flock -x -w 900 /run/hostwright/busy.lock true; then
	say busy yes
fi

# the clock first: the distance is measured when the answer arrives
say clock "$(date +%s)"
say uid "$(id -u)"
say architecture "$(uname -m)"
if [ -r /etc/os-release ]; then
	# shellcheck source=/dev/null
	(. /etc/os-release && say distribution "${ID:-}" && say release "${VERSION_ID:-}")
fi
case $(stat -f -c %T /sys/fs/cgroup 2>/dev/null) in
cgroup2fs) say cgroup 2 ;;
tmpfs) say cgroup 1 ;;
esac
say cores "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
say memory_kb "$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)"
for path in / /var; do
	df -P -k "$path" 2>/dev/null | awk -v path="$path" 'NR == 2 { print "disk=" path " " $4 " " $1 " " $6 }'
done
if [ -d /run/systemd/system ]; then
	say systemd "$(systemctl is-system-running 2>/dev/null)"
fi
say python "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"

# listening ports: protocol, address:port, and for each process that holds one its name and systemd unit
if command -v ss >/dev/null 2>&1; then
	say ports known
	ss -H -l -t -u -n -p 2>/dev/null | while read -r proto _ _ _ address _ processes; do
		holders=
		for pid in $(printf '%s' "$processes" | tr ',' '\n' | sed -n 's/^pid=//p' | sort -u); do
			name=$(cat "/proc/$pid/comm" 2>/dev/null | tr -d ' |')
			unit=$(grep -o '[^/]*\.service' "/proc/$pid/cgroup" 2>/dev/null | tail -n 1)
			holders="$holders $name|$unit"
		done
		printf 'port=%s %s%s\n' "$proto" "$address" "$holders"
	done
fi
exit 0
