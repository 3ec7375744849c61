# What the two colours of an application are on this host, under either supervisor.
# shellcheck shell=sh disable=SC2154,SC2034  # set in front of this script:
#   app   name of the application

store=/var/lib/hostwright/rollout/$app
link=/etc/$app/active.sock

other() { if [ "$1" = blue ]; then echo green; else echo blue; fi; }
env_file() { echo "/etc/$app/$1.env"; }
socket() { echo "/run/$app-$1/app.sock"; }

service_file() { # colour manager
	case $2 in
	systemd) echo "/etc/systemd/system/$app-$1.service" ;;
	supervisor) echo "/etc/supervisor/conf.d/$app-$1.conf" ;;
	esac
}

# The colour that nginx sends requests to: it connects to this link anew for every request.
active() {
	case $(readlink "$link" 2>/dev/null || :) in
	"/run/$app-blue/app.sock") echo blue ;;
	"/run/$app-green/app.sock") echo green ;;
	esac
}

# One hash over all that a start reads; a drop-in made by hand counts. The same is written down at every start.
fingerprint() { # colour manager
	_service=$(service_file "$1" "$2")
	[ -f "$_service" ] || return 0
	cat "$_service" "$(env_file "$1")" "$_service".d/*.conf 2>/dev/null | sha256sum | cut -c1-64
}

started_with() { # colour
	cut -c1-64 "/run/hostwright/$app-$1.started" 2>/dev/null || :
}

# running | starting | stopping | failed | stopped
state() { # colour manager
	if [ "$2" = systemd ]; then
		case $(systemctl show -p ActiveState --value "$app-$1.service" 2>/dev/null) in
		active | reloading) echo running ;;
		activating) echo starting ;;
		deactivating) echo stopping ;;
		failed) echo failed ;;
		*) echo stopped ;;
		esac
	else
		case $(supervisorctl status "$app-$1" 2>/dev/null | awk '{ print $2 }') in
		RUNNING) echo running ;;
		STARTING) echo starting ;;
		STOPPING) echo stopping ;;
		BACKOFF | FATAL | EXITED) echo failed ;;
		*) echo stopped ;;
		esac
	fi
}

# Whether it would come up at boot, and under systemd whether the application's plain name means this colour.
enabled() { # colour manager
	case $2 in
	systemd)
		starts_at_boot "$1" systemd &&
			[ "$(readlink "/etc/systemd/system/$app.service")" = "/etc/systemd/system/$app-$1.service" ]
		;;
	supervisor) starts_at_boot "$1" supervisor ;;
	esac
}

starts_at_boot() { # colour manager
	case $2 in
	systemd) [ -h "/etc/systemd/system/multi-user.target.wants/$app-$1.service" ] ;;
	supervisor) [ -f "$(service_file "$1" supervisor)" ] ;;
	esac
}

needs_reload() { # colour manager
	[ "$2" = systemd ] && [ "$(systemctl show -p NeedDaemonReload --value "$app-$1.service" 2>/dev/null)" = yes ]
}

healthy() { # colour path
	curl --fail --silent --show-error --output /dev/null --max-time "${health_seconds:-5}" \
		--unix-socket "$(socket "$1")" "http://localhost$2" 2>&1
}

about() { # spec key
	sed -n "s|^$2=||p" "$store/specs/$1/about" 2>/dev/null || :
}

# The stored spec that a colour holds, by content; empty when its files are none of them.
spec_of() { # colour manager
	_found=$(fingerprint "$1" "$2")
	[ -n "$_found" ] || return 0
	for _spec in "$store"/specs/*/; do
		_spec=$(basename "$_spec")
		if [ "$(about "$_spec" manager)" = "$2" ] && [ "$(would_be "$_spec" "$1")" = "$_found" ]; then
			echo "$_spec"
			return 0
		fi
	done
}

# The fingerprint of a colour that holds this spec and nothing else.
would_be() { # spec colour
	cat "$store/specs/$1/service" "$store/specs/$1/env" 2>/dev/null | sed "s/@COLOUR@/$2/g" | sha256sum | cut -c1-64
}

# The newest spec that once served and is not the given one; both its release and its files must still be there.
previous_of() { # spec
	_previous=
	while read -r _line; do
		if [ "$_line" != "$1" ] && [ -f "$store/specs/$_line/service" ] && [ -d "$(about "$_line" release)" ]; then
			_previous=$_line
		fi
	done 2>/dev/null <"$store/history" || :
	echo "$_previous"
}
