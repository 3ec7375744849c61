#!/bin/bash
# What the official postgres image does: an empty PGDATA becomes a cluster with POSTGRES_USER, POSTGRES_PASSWORD and
# POSTGRES_DB; then the server runs, as the user postgres.
set -euo pipefail

# value NAME DEFAULT: what $NAME says, or the file that $NAME_FILE names
value() {
    local file="${1}_FILE"
    if [ -n "${!file-}" ]; then cat -- "${!file}"; else echo "${!1-$2}"; fi
}

if [ "${1-}" != postgres ] && [ "${1:0:1}" != - ]; then exec "$@"; fi
if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    find "$PGDATA" ! -user postgres -exec chown postgres:postgres {} +
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

mkdir -p "$PGDATA"
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=$(value POSTGRES_USER postgres)
    password=$(value POSTGRES_PASSWORD "")
    database=$(value POSTGRES_DB "$user")
    if [ -z "$password" ] && [ "${POSTGRES_HOST_AUTH_METHOD-}" != trust ]; then
        echo "Error: Database is uninitialized and superuser password is not specified." >&2
        exit 1
    fi
    # shellcheck disable=SC2086 # several arguments, as in the official image
    initdb --username="$user" --pwfile=<(printf '%s\n' "$password") ${POSTGRES_INITDB_ARGS-}
    printf '\nhost all all all %s\n' "${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -w -o "-c listen_addresses=''" start
    run=(psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$user")
    if [ "$database" != postgres ]; then
        "${run[@]}" -d postgres -v db="$database" <<< 'CREATE DATABASE :"db";'
    fi
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh) "$file" ;;
            *.sql) "${run[@]}" -d "$database" -f "$file" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
fi
exec "$@"
