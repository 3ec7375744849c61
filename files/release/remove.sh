# Remove all releases of one application, unless one of them is still in use.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   root   /opt/APP
set -eu

main() {
	# The pattern comes over stdin: in argv, grep would find itself among the running processes.
	# shellcheck disable=SC2062 # the first file is no pattern
	users=$(printf '%s/releases/' "$root" |
		grep -lsF --file=- /etc/systemd/system/*.service /etc/supervisor/conf.d/*.conf /proc/[0-9]*/cmdline || :)
	if [ -n "$users" ]; then
		printf 'releases of %s are in use by: %s\n' "$root" "$(printf '%s' "$users" | tr '\n' ' ')" >&2
		exit 1
	fi
	rm -rf "$root/releases" "$root/repository.git" "$root/versions" "$root/python" "$root"/uv-*
	rmdir "$root" 2>/dev/null || :
}
