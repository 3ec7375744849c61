# Install nginx without starting it: the package's own default site would stand open on port 80 until ours replaces it.
# shellcheck shell=sh disable=SC2154  # set in front of this script:  packages  names, separated by spaces
set -eu
export DEBIAN_FRONTEND=noninteractive

install() {
	# shellcheck disable=SC2086  # several packages
	apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 \
		-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $packages
}

main() {
	trap 'systemctl --quiet unmask --runtime nginx.service' EXIT
	systemctl --quiet mask --runtime nginx.service
	dpkg --configure -a
	# Package lists that are missing or stale show as a failure; only then are they fetched.
	install || { apt-get update -q && install; }
}
