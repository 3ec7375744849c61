# Have a cluster carry out statements. Neither they nor what they hold reach its log.
# shellcheck shell=sh disable=SC2154  # set in front of this script: port, sql
set -eu

main() {
	cd /
	{
		printf '%s\n' 'SET log_statement = none; SET log_min_duration_statement = -1; SET log_min_error_statement = panic;'
		printf '%s\n' "$sql"
	} | runuser -u postgres -- psql -Xq -v ON_ERROR_STOP=1 -h /run/postgresql -p "$port" -d postgres >&2
}
