# Install Redis's sentinel without the one that its package starts, which lets anybody reconfigure it.
# shellcheck shell=sh  # comes after dpkg/install.sh, with packages set
set -eu

main() {
	trap 'systemctl --quiet unmask --runtime redis-sentinel.service' EXIT
	systemctl --quiet mask --runtime redis-sentinel.service
	install_packages || { update && install_packages; }
	systemctl --quiet disable redis-sentinel.service
}
