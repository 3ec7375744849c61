# Install a server without the instance that its package starts on every address before it has our configuration.
# shellcheck shell=sh disable=SC2154  # comes after dpkg/install.sh, with packages and units set
set -eu

main() {
	# shellcheck disable=SC2064,SC2086  # a list of words
	trap "systemctl --quiet unmask --runtime $units" EXIT
	# shellcheck disable=SC2086
	systemctl --quiet mask --runtime $units
	install_packages || { update && install_packages; }
}
