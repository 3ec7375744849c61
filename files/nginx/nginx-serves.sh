#!/bin/sh
# nginx-serves FILE [SERVER_NAME]: succeed when nginx runs on FILE as it stands, and answers a TLS handshake for the name.
# `systemctl reload nginx` succeeds even when the master then refuses the new configuration (a port in use, a limit) and
# carries on with the old one. What tells is that workers were started after the file was put in place.
set -eu

newest_worker() { # seconds since the epoch, with fraction
	for stat in /proc/[0-9]*/stat; do
		{ read -r line <"$stat"; } 2>/dev/null || continue
		case $line in *'(nginx)'*) ;; *) continue ;; esac
		case $(tr '\0' ' ' <"${stat%stat}cmdline" 2>/dev/null) in
		*'worker process is shutting down'*) ;;
		*'worker process'*) printf '%s\n' "${line##*) }" ;;
		esac
	done | awk -v ticks="$(getconf CLK_TCK)" -v uptime="$(cut -d' ' -f1 /proc/uptime)" -v now="$(date +%s.%N)" '
		{ start = now - uptime + $20 / ticks; if (start > newest) newest = start }
		END { if (newest) printf "%.2f\n", newest; else exit 1 }'
}

started=$(newest_worker) || { echo "nginx has no worker process" >&2; exit 1; }
# A tick of 10 ms and the coarse file clock: equal within a twentieth of a second counts as after.
placed=$(stat -c %.2Z -- "$1")
if ! awk -v started="$started" -v placed="$placed" 'BEGIN { exit !(started + 0.05 >= placed) }'; then
	echo "nginx still runs on what was before $1; its last words:" >&2
	tail -n 3 /var/log/nginx/error.log >&2
	exit 1
fi
[ -n "${2:-}" ] || exit 0
exec openssl s_client -connect 127.0.0.1:443 -servername "$2" -verify_quiet </dev/null >/dev/null
