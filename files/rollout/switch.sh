# Bring one spec into service on the colour that does not serve, and let the other one finish. Comes after colour.sh.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   do_switch do_start do_repair do_retire   yes or empty: what operations/rollout.py decided
#   spec             id of the spec; service, environment and about are its three files, empty to use the stored ones
#   probe            shell command that asks through nginx and must succeed within probe_seconds, or empty
#   start_seconds    to the first healthy answer;   settle_seconds  healthy without a break after it
#   drain_seconds    how long the old colour may take to finish what it is doing
#   keep             how many specs that once served stay stored, besides those installed
set -eu
umask 022

say() { printf '%s\n' "$*" >&2 || :; }
now() { date +%s; }

store_spec() {
	[ -n "$service" ] || {
		[ -f "$store/specs/$spec/service" ] || { say "spec $spec is not stored on this host" && exit 1; }
		return 0
	}
	mkdir -p "$store/specs"
	chmod 0700 /var/lib/hostwright "$store"
	rm -rf "$store/.new"
	mkdir -m 0700 "$store/.new"
	(
		umask 077
		printf '%s' "$about" >"$store/.new/about"
		printf '%s' "$service" >"$store/.new/service"
		printf '%s' "$environment" >"$store/.new/env"
	)
	rm -rf "$store/specs/$spec"
	mv "$store/.new" "$store/specs/$spec"
}

install_spec() { # colour
	_service=$(service_file "$1" "$manager")
	_env=$(env_file "$1")
	mkdir -p "/etc/$app" "${_service%/*}"
	chmod 0755 "/etc/$app"
	(umask 077 && sed "s/@COLOUR@/$1/g" "$store/specs/$spec/env" >"$_env.new")
	sed "s/@COLOUR@/$1/g" "$store/specs/$spec/service" >"$_service.new"
	chown root:root "$_env.new" "$_service.new"
	chmod 0600 "$_env.new"
	chmod 0644 "$_service.new"
	mv -f "$_env.new" "$_env"
	mv -f "$_service.new" "$_service"
	rm -rf "$_service.d"
	case $manager in
	systemd) systemctl daemon-reload ;;
	supervisor) supervisorctl reread >/dev/null || : ;;
	esac
}

start() { # colour
	log_start=$(now)
	log_size=$(stat -c %s "/var/log/supervisor/$app-$1.log" 2>/dev/null || echo 0)
	case $manager in
	systemd)
		systemctl reset-failed "$app-$1.service" 2>/dev/null || :
		systemctl start "$app-$1.service" || return 1
		;;
	supervisor)
		supervisorctl update "$app-$1" >/dev/null
		supervisorctl start "$app-$1" >/dev/null || :
		;;
	esac
}

main_pid() { # colour
	case $manager in
	systemd) systemctl show -p MainPID --value "$app-$1.service" ;;
	supervisor) supervisorctl pid "$app-$1" ;;
	esac
}

# A crash loop looks up at any one moment, so a start that has been repeated counts as a death.
died() { # colour
	case $(state "$1" "$manager") in
	failed | stopped) return 0 ;;
	running) return 1 ;;
	esac
	[ "$manager" = systemd ] && [ "$(systemctl show -p SubState --value "$app-$1.service")" = auto-restart ]
}

# Healthy within start_seconds, and then healthy in one and the same process for settle_seconds.
gate() { # colour
	_end=$(($(now) + start_seconds))
	until _said=$(healthy "$1" "$health_path"); do
		if died "$1"; then
			say "$app-$1 ended before it answered on $health_path"
			return 1
		fi
		if [ "$(now)" -ge "$_end" ]; then
			say "$app-$1 did not answer well on $health_path within ${start_seconds}s: $_said"
			return 1
		fi
		sleep 0.2
	done
	_pid=$(main_pid "$1")
	_end=$(($(now) + settle_seconds))
	while [ "$(now)" -lt "$_end" ]; do
		sleep 0.3
		if [ "$(main_pid "$1")" != "$_pid" ] || died "$1"; then
			say "$app-$1 was healthy, and died within ${settle_seconds}s"
			return 1
		fi
		if ! _said=$(healthy "$1" "$health_path"); then
			say "$app-$1 was healthy, and ceased to be within ${settle_seconds}s: $_said"
			return 1
		fi
	done
}

last_words() { # colour
	say "last lines of $app-$1:"
	case $manager in
	systemd)
		# What a process said as it died may still be on its way. -n is not used: with --since it gives the first lines.
		journalctl --sync 2>/dev/null || :
		journalctl -u "$app-$1.service" --since "@$log_start" --no-pager -o cat 2>/dev/null | tail -n 30
		;;
	supervisor) tail -c "+$((log_size + 1))" "/var/log/supervisor/$app-$1.log" 2>/dev/null | tail -n 30 ;;
	esac | mask "$(env_file "$1")" | sed 's/^/    /' >&2 || :
}

# A program that refuses its configuration likes to print it. Taken out is every value of a variable that sounds secret,
# and every long one besides: too much masked does no harm.
mask() { # env file
	awk '
		NR == FNR {
			if (!match($0, /^[A-Za-z0-9_]+=/)) next
			least = substr($0, 1, RLENGTH) ~ /KEY|SECRET|TOKEN|PASS|CREDENTIAL|DSN|URL/ ? 8 : 16
			count = split(substr($0, RLENGTH + 1), parts, /["'"'"' ,\[\]\\]+/)
			for (i = 1; i <= count; i++) if (length(parts[i]) >= least && parts[i] !~ /^(sqlite|\/)/) secret[parts[i]]
			next
		}
		{
			for (text in secret) while ((at = index($0, text)) > 0)
				$0 = substr($0, 1, at - 1) "*MASKED*" substr($0, at + length(text))
			print
		}
	' "$1" -
}

enable_colour() { # colour
	# --force: the plain name is to mean this colour from now on. The other one stays enabled until it is retired, so
	# that a reboot at any moment starts whichever colour the link names.
	if [ "$manager" = systemd ] && ! enabled "$1" systemd; then
		systemctl --quiet enable --force "$app-$1.service"
	fi
}

point_at() { # colour, or nothing
	rm -f "$link.new"
	if [ -n "$1" ]; then
		ln -s "$(socket "$1")" "$link.new"
		mv -fT "$link.new" "$link"
	else
		rm -f "$link"
	fi
	sync -f "/etc/$app"
}

answers_through_nginx() {
	[ -n "$probe" ] || return 0
	_end=$(($(now) + probe_seconds))
	until _said=$(timeout 10 sh -c "$probe" 2>&1); do
		if [ "$(now)" -ge "$_end" ]; then
			say "no good answer through nginx: $probe: $_said"
			return 1
		fi
		sleep 0.3
	done
}

# Ends a colour that no request goes to.
halt() { # colour manager
	if [ "$2" = systemd ]; then
		timeout 15 systemctl stop "$app-$1.service" 2>/dev/null || systemctl kill -s KILL "$app-$1.service" 2>/dev/null || :
	else
		timeout 15 supervisorctl stop "$app-$1" >/dev/null 2>&1 || supervisorctl signal KILL "$app-$1" >/dev/null 2>&1 || :
	fi
}

# Takes a colour away, with all that its spec left.
discard() { # colour manager
	halt "$1" "$2"
	if [ "$2" = systemd ]; then
		systemctl --quiet disable "$app-$1.service" 2>/dev/null || :
		rm -rf "$(service_file "$1" systemd)" "$(service_file "$1" systemd).d"
		systemctl daemon-reload
		systemctl reset-failed "$app-$1.service" 2>/dev/null || :
	else
		rm -f "$(service_file "$1" supervisor)"
		supervisorctl update "$app-$1" >/dev/null 2>&1 || :
	fi
	rm -f "$(env_file "$1")"
}

# Sends a colour home: it takes no new work, finishes what it has, and is not there after a reboot.
retire() { # colour manager
	_name=$app-$1
	_file=$(service_file "$1" "$2")
	if [ "$2" = systemd ]; then
		systemctl --quiet disable "$_name.service" 2>/dev/null || :
		_stop="systemctl stop $_name.service"
		_forget="rm -rf $_file $_file.d && systemctl daemon-reload; systemctl reset-failed $_name.service || :"
	else
		_stop="supervisorctl stop $_name || :"
		_forget="rm -f $_file; supervisorctl update $_name"
	fi
	if [ "$2" = systemd ] && [ "$manager" = systemd ]; then
		# The file stays: a unit without one would lose its time to finish.
		systemctl stop --no-block "$_name.service"
	else
		# The files belong to one supervisor at a time: this one's go once it has finished, in the background.
		systemctl stop "$_name-retire.service" 2>/dev/null || :
		systemd-run --quiet --collect --unit "$_name-retire" sh -c "$_stop; $_forget"
	fi
	_end=$(($(now) + 5))
	until [ "$(state "$1" "$2")" != running ] || [ "$(now)" -ge "$_end" ]; do sleep 0.1; done
}

# Everything that is not the active colour under its declared supervisor.
retire_others() {
	_active=$(active)
	for _colour in blue green; do
		for _manager in systemd supervisor; do
			if [ "$_colour.$_manager" = "$_active.$manager" ]; then continue; fi
			case $(state "$_colour" "$_manager") in
			stopping) ;;
			running | starting) retire "$_colour" "$_manager" ;;
			*)
				# Nothing runs: what is left to take away is the start at boot, and all of it if it is the other supervisor's.
				if starts_at_boot "$_colour" "$_manager" || { [ "$_manager" != "$manager" ] && [ -f "$(service_file "$_colour" "$_manager")" ]; }; then
					retire "$_colour" "$_manager"
				fi
				;;
			esac
		done
	done
}

# An earlier switch may still be draining the colour that is needed now.
await_free() { # colour
	_end=$(($(now) + drain_seconds + 30))
	for _manager in systemd supervisor; do
		while [ "$(state "$1" "$_manager")" = stopping ]; do
			if [ "$(now)" -ge "$_end" ]; then
				say "$app-$1 has not finished its requests within ${drain_seconds}s"
				exit 1
			fi
			sleep 0.5
		done
		case $(state "$1" "$_manager") in running | starting | failed) discard "$1" "$_manager" ;; esac
	done
	# What it would still take away is about to be written.
	systemctl stop "$app-$1-retire.service" 2>/dev/null || :
}

fail_back() { # colour, the colour that served before (may be empty)
	# Down first: a crash loop would go on filling the journal that is read here.
	halt "$1" "$manager"
	last_words "$1"
	discard "$1" "$manager"
	[ "$spec" = "$(spec_of "${2:-none}" "$manager")" ] || grep -qsxF "$spec" "$store/history" || rm -rf "$store/specs/$spec"
	if [ -n "$2" ]; then
		if [ -f "$(service_file "$2" "$manager")" ]; then enable_colour "$2"; fi
		say "$app-$2 serves as before"
	fi
	exit 1
}

switch() {
	_old=$(active)
	_new=$(other "${_old:-green}")
	await_free "$_new"
	install_spec "$_new"
	if ! start "$_new" || ! gate "$_new"; then
		fail_back "$_new" "$_old"
	fi
	enable_colour "$_new"
	point_at "$_new"
	if ! answers_through_nginx; then
		point_at "$_old"
		fail_back "$_new" "$_old"
	fi
	remember
	# nginx may have connected to the old socket a moment ago, and the process not yet have accepted it.
	sleep 1
	retire_others
	prune_specs
}

# The specs in the order in which they served: what a rollback goes by.
remember() {
	[ "$(tail -n 1 "$store/history" 2>/dev/null)" = "$spec" ] || echo "$spec" >>"$store/history"
}

prune_specs() {
	_stay=$(tail -n "$keep" "$store/history")
	for _path in "$store"/specs/*/; do
		_spec=$(basename "$_path")
		printf '%s\n' "$_stay" | grep -qxF "$_spec" || [ "$_spec" = "$spec" ] || rm -rf "$_path"
	done
	tail -n 20 "$store/history" >"$store/history.new" && mv "$store/history.new" "$store/history"
}

# Just installed or just restarted, it is not there yet.
await_supervisor() {
	_end=$(($(now) + 10))
	until _said=$(supervisorctl pid 2>&1); do
		if [ "$(now)" -ge "$_end" ]; then
			say "supervisor does not answer: $_said"
			exit 1
		fi
		sleep 0.2
	done
}

serves_spec() { # colour
	[ "$(state "$1" "$manager")" = running ] && [ "$(started_with "$1")" = "$(would_be "$spec" "$1")" ] &&
		healthy "$1" "$health_path" >/dev/null
}

main() {
	# A run whose controller died goes on here to its end; the next one waits for it and then looks again.
	trap '' HUP PIPE
	mkdir -p /run/hostwright
	exec 9>"/run/hostwright/rollout-$app.lock"
	flock -w $((start_seconds + settle_seconds + drain_seconds + 120)) 9 || {
		say "another rollout of $app does not end"
		exit 1
	}
	store_spec
	manager=$(about "$spec" manager)
	health_path=$(about "$spec" health_path)
	[ -d "$(about "$spec" release)" ] || {
		say "release $(about "$spec" release) is not there"
		exit 1
	}
	[ "$manager" = systemd ] || await_supervisor
	# Decided before the lock was free, on a state that another run may have changed since.
	current=$(active)
	if [ -z "$current" ]; then
		do_switch=yes
	elif serves_spec "$current"; then
		[ -z "$do_switch" ] || do_switch='' do_start='' do_repair=yes do_retire=yes
	elif [ -z "$do_start" ] || [ "$(fingerprint "$current" "$manager")" != "$(would_be "$spec" "$current")" ]; then
		do_switch=yes
	fi
	if [ -n "$do_switch" ]; then
		switch
		return 0
	fi
	if [ -n "$do_repair" ]; then install_spec "$current" && enable_colour "$current"; fi
	if [ -n "$do_start" ]; then
		if ! start "$current" || ! gate "$current" || ! answers_through_nginx; then
			last_words "$current"
			exit 1
		fi
		enable_colour "$current"
	fi
	remember
	[ -z "$do_retire" ] || retire_others
}
