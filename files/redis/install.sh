# Install Redis without the instance that its package starts, open to everybody on the host.
# shellcheck shell=sh  # comes after dpkg/install.sh, with packages set
set -eu

main() {
	trap 'systemctl --quiet unmask --runtime redis-server.service' EXIT
	systemctl --quiet mask --runtime redis-server.service
	install_packages || { update && install_packages; }
	systemctl --quiet disable redis-server.service
}
