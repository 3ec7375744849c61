# Reload or restart a unit, watch it through its first seconds, probe it, and remember what it runs on.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   unit            unit name, or empty
#   action          reload | restart | start | stop | "" (nothing)
#   settle_seconds  how long the unit must stay up after a start, restart or reload
#   probe           shell command that must succeed within probe_seconds, or empty
#   stamp_key stamp_hash   what to remember in /var/lib/hostwright/applied once the unit runs on it; key may be empty

say() { printf '%s\n' "$*" >&2; }

unit_property() { systemctl show -p "$1" --value -- "$unit"; }

unit_journal() {
	say "last journal lines of $unit:"
	journalctl -u "$unit" -n 20 --no-pager -o cat 2>/dev/null | sed 's/^/    /' >&2
}

# A unit that is up must still be the same process after settle_seconds: a crash loop looks up at any one moment.
unit_settles() {
	_invocation=$(unit_property InvocationID)
	_end=$(($(date +%s) + settle_seconds))
	while :; do
		case $(unit_property ActiveState) in
		active | reloading) ;;
		activating) [ "$(unit_property SubState)" != auto-restart ] || return 1 ;;
		*) return 1 ;;
		esac
		[ "$(unit_property InvocationID)" = "$_invocation" ] || return 1
		[ "$(date +%s)" -lt "$_end" ] || break
		sleep 0.2
	done
	[ "$(unit_property ActiveState)" = active ]
}

probe_succeeds() {
	[ -n "$probe" ] || return 0
	_end=$(($(date +%s) + probe_seconds))
	while ! _said=$(timeout -k 2 "$probe_seconds" sh -c "$probe" 2>&1); do
		if [ "$(date +%s)" -ge "$_end" ]; then
			say "probe failed for ${probe_seconds}s: $probe"
			printf '%s\n' "$_said" | tail -n 5 | sed 's/^/    /' >&2
			return 1
		fi
		sleep 0.3
	done
}

# Does the action and judges the outcome; says why when it fails.
act() {
	[ -n "$action" ] || return 0
	# A unit that ran into its start limit refuses to start until the count is cleared; so would the one put back.
	[ "$action" = stop ] || systemctl reset-failed -- "$unit" 2>/dev/null || :
	if ! systemctl "$action" -- "$unit"; then
		say "systemctl $action $unit failed"
		unit_journal
		return 1
	fi
	[ "$action" != stop ] || return 0
	if ! unit_settles; then
		say "$unit did not stay up for ${settle_seconds}s after $action"
		unit_journal
		return 1
	fi
	probe_succeeds || {
		unit_journal
		return 1
	}
}

# Remember which content the unit runs on, so that a later run knows whether it is owed an action.
stamp() {
	[ -n "$stamp_key" ] || return 0
	_invocation=-
	if [ -n "$unit" ]; then
		[ "$(unit_property ActiveState)" = active ] || return 0
		_invocation=$(unit_property InvocationID)
	fi
	mkdir -p /var/lib/hostwright/applied
	chmod 0700 /var/lib/hostwright
	printf '%s %s\n' "$stamp_hash" "$_invocation" >"/var/lib/hostwright/applied/.$stamp_key.new"
	mv -f "/var/lib/hostwright/applied/.$stamp_key.new" "/var/lib/hostwright/applied/$stamp_key"
}
