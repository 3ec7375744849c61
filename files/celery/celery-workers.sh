#!/bin/sh
# Instances of a Celery worker on this host: celery-workers COMMAND APP, units APP@1.service to APP@N.service
#   look       print what they are: lines "worker NUMBER STATE ENABLED RIGHT", and "previous yes"
#   apply      bring them to their files: one first, and when it answers the others; those that are too many go
#   rollback   put the files of before in place, and apply them
#   check      restart those that do not answer three times in a row although others or the broker do
# What an instance was started with, it writes down itself (ExecStartPre), so that it is known whatever happened since.
set -eu
umask 077

app=$2
etc=/etc/$app
file=/etc/systemd/system/$app@.service
store=/var/lib/hostwright/celery/$app
run=/run/hostwright

say() { printf '%s\n' "$*" >&2; }
setting() { sed -n "s/^$1=//p" "$etc/workers.conf"; }
# shellcheck disable=SC2046  # a list of paths without blanks
digest() { cat "$file" "$etc/env" "$etc/$1.env" $(setting env_files) "$file".d/*.conf 2>/dev/null | sha256sum | cut -c1-64; }
started() { cut -c1-64 "$run/$app@$1.started" 2>/dev/null || :; }
state() { systemctl show -p ActiveState --value "$app@$1.service"; }
enabled() { [ -h "/etc/systemd/system/multi-user.target.wants/$app@$1.service" ]; }
right() { [ "$(state "$1")" = active ] && [ "$(started "$1")" = "$(digest "$1")" ] && enabled "$1"; }
node() { printf '%s%s@%s' "$(setting node)" "$1" "$(hostname)"; }

# Numbers of all instances that are there in any way.
numbers() {
	{
		systemctl list-units --all --plain --no-legend --no-pager "$app@*.service" | awk '{ print $1 }'
		for link in "/etc/systemd/system/multi-user.target.wants/$app@"*.service; do [ ! -h "$link" ] || echo "${link##*/}"; done
		[ ! -f "$etc/workers.conf" ] || seq -f "$app@%.0f.service" "$(setting count)"
	} | sed -n "s/^$app@\([0-9]*\)\.service$/\1/p" | sort -nu
}

look() {
	for number in $(numbers); do
		enabled "$number" && is=yes || is=no
		[ "$(started "$number")" = "$(digest "$number")" ] && fits=yes || fits=no
		printf 'worker\t%s\t%s\t%s\t%s\n' "$number" "$(state "$number")" "$is" "$fits"
	done
	[ ! -d "$store/previous" ] || printf 'previous\tyes\n'
}

# Celery itself asks, in the environment that systemd reads for the workers, and as their user. Prints who answered;
# 0: somebody did, 69: nobody did, else: the broker cannot be asked.
ask() { # seconds nodes
	more=$(for one in $(setting env_files); do printf ' -p EnvironmentFile=%s' "$one"; done)
	# shellcheck disable=SC2086  # a list of words
	systemd-run --quiet --wait --pipe --collect --uid="$(setting user)" -p "EnvironmentFile=$etc/env" $more \
		-p "WorkingDirectory=$(setting directory)" -p PrivateTmp=yes -p NoNewPrivileges=yes -E PYTHONDONTWRITEBYTECODE=1 \
		"$(setting python)" -m celery --app "$(setting celery_app)" inspect ping --timeout "$1" --destination "$2" --json 2>&1
}

answers() { # number
	end=$(($(date +%s) + $(setting start_seconds)))
	until said=$(ask 3 "$(node "$1")") && case $said in *pong*) true ;; *) false ;; esac; do
		if [ "$(date +%s)" -ge "$end" ] || ! is_up "$1"; then
			say "$app@$1 does not answer: $(printf '%s' "$said" | tail -n 3 | tr '\n' ' ')"
			last_words "$1"
			return 1
		fi
	done
}

# A crash loop looks up at any one moment.
is_up() { [ "$(state "$1")" = active ] && [ "$(systemctl show -p NRestarts --value "$app@$1.service")" -le 2 ]; }

last_words() {
	journalctl --sync 2>/dev/null || :
	say "last lines of $app@$1:"
	journalctl -u "$app@$1.service" -n 15 --no-pager -o cat 2>/dev/null | sed -E 's|(://[^:@/]*:)[^@/]*@|\1***@|g; s/^/    /' >&2
}

restart() { # numbers
	units=
	for number in "$@"; do units="$units $app@$number.service"; done
	# shellcheck disable=SC2086  # a list of words
	{ systemctl reset-failed $units 2>/dev/null || :; } && systemctl --quiet enable $units && systemctl restart $units
}

apply() {
	mkdir -p "$run"
	exec 9>"$run/celery-$app.lock"
	flock 9
	# without files there are to be none: what a first release that failed leaves
	count=0 due=
	[ ! -f "$etc/workers.conf" ] || count=$(setting count)
	for number in $(numbers); do
		if [ "$number" -gt "$count" ]; then
			systemctl --quiet disable "$app@$number.service" 2>/dev/null || :
			# it finishes what it has, and takes nothing new
			systemctl stop --no-block "$app@$number.service" 2>/dev/null || :
			rm -f "$etc/$number.env"
		elif ! right "$number"; then
			due="$due $number"
		fi
	done
	# shellcheck disable=SC2086  # a list of words
	set -- $due
	[ "$count" -gt 0 ] || return 0
	[ $# -gt 0 ] || { remember && return 0; }
	# the others go on meanwhile: whatever this one turns out to be, tasks are done
	restart "$1" || { last_words "$1" && return 1; }
	answers "$1" || return 1
	shift
	if [ $# -gt 0 ]; then
		restart "$@" || return 1
		for number in "$@"; do answers "$number" || return 1; done
	fi
	remember
}

same() { cmp -s "$file" "$store/$1/unit" && cmp -s "$etc/env" "$store/$1/env" && cmp -s "$etc/workers.conf" "$store/$1/conf"; }

# What they run on now, and what they ran on before: a changed number is no change of that.
remember() {
	mkdir -p "$store"
	chmod 0700 "$store"
	! same current || return 0
	rm -rf "$store/.new"
	mkdir "$store/.new"
	cp "$file" "$store/.new/unit"
	cp "$etc/env" "$store/.new/env"
	cp "$etc/workers.conf" "$store/.new/conf"
	if [ -d "$store/current" ] && ! { cmp -s "$file" "$store/current/unit" && cmp -s "$etc/env" "$store/current/env"; }; then
		rm -rf "$store/previous"
		mv "$store/current" "$store/previous"
	fi
	rm -rf "$store/current"
	mv "$store/.new" "$store/current"
}

put() { # stored
	cp "$store/$1/unit" "$file.new" && chmod 0644 "$file.new" && mv -f "$file.new" "$file"
	cp "$store/$1/env" "$etc/env.new" && mv -f "$etc/env.new" "$etc/env"
	# how many there are is not what is gone back on
	count=$(setting count)
	sed "s/^count=.*/count=$count/" "$store/$1/conf" >"$etc/workers.conf.new" && mv -f "$etc/workers.conf.new" "$etc/workers.conf"
	systemctl daemon-reload
}

rollback() {
	[ -d "$store/previous" ] || { say "$app has no earlier release on this host to go back to" && return 1; }
	rm -rf "$store/.back"
	cp -a "$store/previous" "$store/.back"
	put .back
	if ! apply; then
		say "putting back what ran"
		put current
		apply || say "$app is not well on that either"
		return 1
	fi
}

check() {
	mkdir -p "$run"
	exec 9>"$run/celery-$app.lock"
	# a rollout is at work
	flock -n 9 || return 0
	nodes=''
	for number in $(seq "$(setting count)"); do
		# one that is stopped or starts anew is systemd's to bring back
		if [ "$(state "$number")" = active ] && enabled "$number"; then nodes="$nodes${nodes:+,}$(node "$number")"; fi
	done
	[ -n "$nodes" ] || return 0
	status=0
	said=$(ask 10 "$nodes") || status=$?
	case $status in 0 | 69) ;; *) say "the broker cannot be asked: nothing is done" && return 1 ;; esac
	for number in $(seq "$(setting count)"); do
		mark=$run/$app@$number.silent
		case ",$nodes," in *",$(node "$number"),"*) ;; *) rm -f "$mark" && continue ;; esac
		case $said in *"\"$(node "$number")\""*pong*) rm -f "$mark" && continue ;; esac
		times=$(($(cat "$mark" 2>/dev/null || echo 0) + 1))
		echo $times >"$mark"
		say "$app@$number does not answer, $times times in a row"
		if [ $times -ge 3 ]; then
			# it would not hear a request to end; its tasks are delivered again, and Restart= brings it back
			systemctl kill -s KILL "$app@$number.service"
			rm -f "$mark"
			say "$app@$number is hung: killed, to be started anew"
		fi
	done
}

"$1"
