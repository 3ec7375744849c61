#!/bin/sh
# Whether cricksy is well, as this host sees it: cricksy-health [--textfile DIRECTORY]; exit status 1 when it is not.
# With --textfile the figures go to node_exporter instead of the screen.
set -u

ask() {
	systemd-run --quiet --wait --pipe --collect --uid=cricksy -p EnvironmentFile=/etc/cricksy/health.env \
		-p EnvironmentFile=-/etc/cricksy/s3.env -p PrivateTmp=yes \
		-p NoNewPrivileges=yes -p ProtectSystem=strict -p ProtectHome=yes -p RuntimeMaxSec=120 -E PYTHONDONTWRITEBYTECODE=1 \
		"$(cat /etc/cricksy/health.python)" /usr/local/lib/hostwright/cricksy-health.py /etc/cricksy/health.json "$@"
}

if [ "${1:-}" != --textfile ]; then
	ask
	exit
fi
[ -d "$2" ] || exit 0
status=0
found=$(ask --prometheus) || status=$?
[ -n "$found" ] || exit 1
umask 022
printf '%s\n' "$found" >"$2/.cricksy.prom.new" && mv -f "$2/.cricksy.prom.new" "$2/cricksy.prom"
exit $status
