# Take an application's colours away, whatever they are doing. Its releases, state and logs stay. Comes after colour.sh.
# shellcheck shell=sh disable=SC2154
set -eu

main() {
	for _colour in blue green; do
		rm -f "$(service_file "$_colour" supervisor)"
		systemctl --quiet disable "$app-$_colour.service" 2>/dev/null || :
		systemctl stop "$app-$_colour.service" 2>/dev/null || :
		rm -rf "$(service_file "$_colour" systemd)" "$(service_file "$_colour" systemd).d" "$(env_file "$_colour")"
		rm -f "/run/hostwright/$app-$_colour.started"
	done
	if command -v supervisorctl >/dev/null; then
		supervisorctl update "$app-blue" "$app-green" >/dev/null 2>&1 || :
	fi
	systemctl daemon-reload
	systemctl reset-failed "$app-blue.service" "$app-green.service" 2>/dev/null || :
	rm -f "$link" "/etc/systemd/system/$app.service"
	rm -rf "$store"
	rmdir "/etc/$app" 2>/dev/null || :
}
