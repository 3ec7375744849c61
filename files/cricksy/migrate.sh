#!/bin/sh
# Migrate cricksy's database with one release, alone on this host: migrate.sh USER RELEASE DIRECTORY
# A release that has migrated it before may find it ahead, after a rollback: then there is nothing to do. One that is new
# here and does not know what the database is at is at fault.
set -eu
umask 077

user=$1 release=$2 directory=$3
known=/var/lib/hostwright/cricksy-migrated

mkdir -p /run/hostwright
exec 9>/run/hostwright/cricksy-migrate.lock
flock 9
status=0
said=$(systemd-run --quiet --wait --pipe --collect --uid="$user" -p EnvironmentFile=/etc/cricksy/migrate.env \
	-p EnvironmentFile=-/etc/cricksy/s3.env -p WorkingDirectory="$directory" -p NoNewPrivileges=yes -p ProtectSystem=strict -p ProtectHome=yes -p PrivateTmp=yes \
	"$release/venv/bin/python" -B -m alembic upgrade head 2>&1 9>&-) || status=$?
[ -z "$said" ] || printf '%s\n' "$said" >&2
case $status:$said in
0:*)
	grep -qxF "$release" "$known" 2>/dev/null || echo "$release" >>"$known"
	;;
*"Can't locate revision identified by"*)
	grep -qxF "$release" "$known" 2>/dev/null || exit "$status"
	echo "a newer release has migrated the database: it stays as it is" >&2
	;;
*) exit "$status" ;;
esac
