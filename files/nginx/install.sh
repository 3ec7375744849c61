# Install nginx without starting it: the package's own default site would stand open on port 80 until ours replaces it.
# shellcheck shell=sh  # comes after dpkg/install.sh, with packages set
set -eu

main() {
	trap 'systemctl --quiet unmask --runtime nginx.service' EXIT
	systemctl --quiet mask --runtime nginx.service
	install_packages || { update && install_packages; }
}
