# Install PgBouncer without its start, which would take anybody's connections, and with an account of its own.
# shellcheck shell=sh  # comes after dpkg/install.sh, with packages set
set -eu

main() {
	trap 'systemctl --quiet unmask --runtime pgbouncer.service' EXIT
	systemctl --quiet mask --runtime pgbouncer.service
	# The package runs it as postgres, who may do anything to a server on the same host.
	getent passwd pgbouncer >/dev/null ||
		useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pgbouncer
	install_packages || { update && install_packages; }
}
