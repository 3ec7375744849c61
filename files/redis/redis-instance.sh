#!/bin/sh
# What there is to be done about one instance of Redis on this host: redis-instance COMMAND NAME
#   check   start a Redis of its own on the instance's configuration, without its data, and see that it answers
#   apply   have the running instance take its rules and live settings; nothing when it does not run
#   ping    see that it answers, and that it has read all of its data
#   look    print what it runs on: lines "live KEY VALUE", and "acl same" or "acl differs"
# The password of the user "default" stands in a file that only root reads, and travels in the environment.
set -eu
umask 077

name=$2
socket=/run/redis-$name/redis.sock
unit=redis-server@$name.service
secrets=/etc/hostwright/redis
live=/etc/redis/redis-$name.live.conf
replication=/etc/redis/redis-$name.replication.conf
seen=/var/lib/hostwright/redis-$name.acl

say() { printf '%s\n' "$*" >&2; }
ask() { REDISCLI_AUTH=$(cat "$password") timeout 20 redis-cli -s "$socket" --no-auth-warning "$@" 2>&1; }

# The password that the instance takes: ours, or while that changes the one before.
log_in() {
	for password in "$secrets/$name.password" "$secrets/.$name.password.dpkg-old"; do
		[ -f "$password" ] || continue
		case $(ask ping || :) in PONG | LOADING*) return 0 ;; esac
	done
	return 1
}

await_data() {
	tries=0
	while :; do
		# an unreachable socket too: it is made late in the start
		case $(ask ping || :) in
		PONG) return 0 ;;
		LOADING*) ;;
		*) tries=$((tries + 1)) ;;
		esac
		[ $tries -lt 100 ] || return 1
		sleep 0.1
	done
}

# Redis says the words of a user in another order after every start.
rules() {
	ask acl list | while read -r user; do
		printf '%s\n' "$user" | tr ' ' '\n' | sort | tr '\n' ' '
		echo
	done | sort | sha256sum | cut -c1-64
}

check() {
	place=$(mktemp -d /tmp/redis-check.XXXXXX)
	trap 'rm -rf "$place"' EXIT
	chown redis:redis "$place"
	conf=/etc/redis/redis-$name.conf
	# before the first start there are only the parts
	[ -f "$conf" ] || conf=$live
	# the one that is tried is nobody's replica
	grep -v '^include /run/redis-.*/role.conf$' "$conf" >"$place/conf"
	chown redis:redis "$place/conf"
	# not runuser: told to end, it waits for two seconds
	setpriv --reuid=redis --regid=redis --init-groups redis-server "$place/conf" --aclfile "/etc/redis/redis-$name.acl" --bind 127.0.0.1 --port 0 --tls-port 0 \
		--unixsocket "$place/s" --dir "$place" --appendonly no --save '' --daemonize no --supervised no --pidfile '' \
		--logfile '' >"$place/said" 2>&1 &
	server=$!
	tries=0
	until case $(redis-cli -s "$place/s" ping 2>&1) in PONG* | *NOAUTH*) true ;; *) false ;; esac; do
		tries=$((tries + 1))
		if [ $tries -ge 50 ] || ! kill -0 $server 2>/dev/null; then
			kill $server 2>/dev/null || :
			sed '/oO0OoO0Oo\|Redis version\|Configuration loaded\|memory overcommit/d' "$place/said" >&2
			return 1
		fi
		sleep 0.1
	done
	kill $server
	wait $server || :
}

set_one() { # key value
	answer=$(ask config set "$1" "$2")
	[ "$answer" = OK ] || { say "$unit refuses $1 $2: $answer" && return 1; }
}

# A value that may stand in no argument.
set_secret() { # key
	answer=$(sed -n "s/^$1 //p" "$replication" | tr -d '\n' | ask -x config set "$1")
	[ "$answer" = OK ] || { say "$unit refuses $1: $answer" && return 1; }
}

apply() {
	if [ "$(systemctl is-active "$unit")" != active ]; then
		# it will start on these rules; what was seen of it is of others
		rm -f "$seen"
		return 0
	fi
	if ! log_in; then
		say "$unit takes none of our passwords: started anew, to read its rules"
		systemctl restart "$unit"
		password=$secrets/$name.password
	fi
	await_data || { say "$unit does not answer" && return 1; }
	answer=$(ask acl load)
	[ "$answer" = OK ] || { say "$unit refuses its rules: $answer" && return 1; }
	password=$secrets/$name.password
	while read -r key value; do
		case $key in '' | '#'*) continue ;; esac
		[ "$value" != '""' ] || value=
		set_one "$key" "$value" || return 1
	done <"$live"
	[ ! -f "$replication" ] || set_secret masterauth
	# until it has written all of its memory to the log, a restart would begin with an empty one
	while ask info persistence | grep -qE '^aof_rewrite_(in_progress|scheduled):1'; do sleep 0.2; done
	remember
}

remember() {
	rules >"$seen.new"
	mv -f "$seen.new" "$seen"
}

ping() {
	password=$secrets/$name.password
	await_data || { say "$unit does not answer: $(ask ping || :)" && return 1; }
	[ -f "$seen" ] || remember
}

look() {
	[ -S "$socket" ] && log_in || return 0
	while read -r key _; do
		case $key in '' | '#'*) continue ;; esac
		printf 'live\t%s\t%s\n' "$key" "$(ask config get "$key" | sed -n 2p)"
	done <"$live"
	if [ "$(rules)" = "$(cat "$seen" 2>/dev/null)" ] && [ "$password" = "$secrets/$name.password" ]; then
		printf 'acl\tsame\n'
	else
		printf 'acl\tdiffers\n'
	fi
}

"$1"
