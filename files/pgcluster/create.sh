# Make a cluster as the package makes its first one, and start it.
# shellcheck shell=sh disable=SC2154  # set in front of this script: version, cluster
set -eu

main() {
	pg_createcluster "$version" "$cluster" >&2
	systemctl enable --now "postgresql@$version-$cluster.service"
}
