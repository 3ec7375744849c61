# Print the state of an application's two colours, for facts/rollout.py. Comes after colour.sh; health_path may be empty.
# shellcheck shell=sh disable=SC2154

modes() { # colour manager
	stat -c '%a:%U:%G' "$(service_file "$1" "$2")" "$(env_file "$1")" 2>/dev/null | tr '\n' ' '
}

current=$(active)
echo "active=$current"
current_spec=
for colour in blue green; do
	for manager in systemd supervisor; do
		file=$(service_file "$colour" "$manager")
		state=stopped
		# A unit can run on when its file is gone; asking supervisor costs 0.2 s, so only when it has a file.
		if [ "$manager" = systemd ] || [ -f "$file" ]; then state=$(state "$colour" "$manager"); fi
		if [ ! -f "$file" ] && [ "$state" = stopped ]; then continue; fi
		spec=$(spec_of "$colour" "$manager")
		echo "colour=$colour manager=$manager state=$state"
		echo "installed=$(fingerprint "$colour" "$manager")"
		echo "started=$(started_with "$colour")"
		echo "spec=$spec"
		echo "modes=$(modes "$colour" "$manager")"
		if enabled "$colour" "$manager"; then echo "enabled=yes"; fi
		if starts_at_boot "$colour" "$manager"; then echo "starts_at_boot=yes"; fi
		if needs_reload "$colour" "$manager"; then echo "needs_reload=yes"; fi
		if [ "$colour" = "$current" ] && [ "$state" = running ]; then
			current_spec=$spec
			path=${health_path:-$(about "$spec" health_path)}
			if [ -n "$path" ] && said=$(healthy "$colour" "$path"); then echo "health=ok"; else echo "health=${said:-unknown}"; fi
		fi
	done
done
echo "previous=$(previous_of "$current_spec")"
for spec in "$store"/specs/*/; do
	[ -f "$spec/about" ] || continue
	spec=$(basename "$spec")
	echo "stored=$spec $(about "$spec" manager) $(about "$spec" release)"
done
