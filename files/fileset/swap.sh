# Put a set of files in place as one change: stage beside, validate, keep the old, rename, act, probe, or put back.
# shellcheck shell=sh disable=SC2154,SC2034  # set in front of this script, besides those of unit/act.sh:
#   manifest   lines "kind|path|mode|owner|group|target"; kind: file, directory, symlink, absent
#   payload    base64 of a gzipped tar that holds the staged files (names as in staged())
#   validate   shell command, or empty;  within  the directory it looks at
#   apply      shell command to run once the files stand, or empty
#   daemon_reload  yes when unit files are among them
set -eu
umask 077

staged() { printf '%s/.%s.dpkg-new' "$(dirname -- "$1")" "$(basename -- "$1")"; }
kept() { printf '%s/.%s.dpkg-old' "$(dirname -- "$1")" "$(basename -- "$1")"; }

each() { # each FUNCTION: call it for every line of the manifest
	while IFS='|' read -r kind path mode owner group target; do
		[ -z "$kind" ] || "$1"
	done <<MANIFEST
$manifest
MANIFEST
}

check() {
	[ -z "$owner" ] || id -u -- "$owner" >/dev/null 2>&1 || { say "$path: no user $owner on this host" && exit 1; }
	[ -z "$group" ] || getent group -- "$group" >/dev/null || { say "$path: no group $group on this host" && exit 1; }
	if [ "$kind" = directory ]; then
		[ ! -e "$path" ] || [ -d "$path" ] || { say "$path: is not a directory" && exit 1; }
	elif [ -d "$path" ] && [ ! -L "$path" ]; then
		say "$path: is a directory, wanted: $kind" && exit 1
	fi
}

stage() {
	case $kind in
	directory)
		(umask 022 && mkdir -p -- "$path")
		chown -- "$owner:$group" "$path"
		chmod -- "$mode" "$path"
		;;
	file | symlink) (umask 022 && mkdir -p -- "$(dirname -- "$path")") ;;
	esac
	[ "$kind" != symlink ] || ln -sfT -- "$target" "$(staged "$path")"
}

unstage() { case $kind in file | symlink) rm -f -- "$(staged "$path")" ;; esac; }

flush() { [ "$kind" != file ] || sync -- "$(staged "$path")"; }

keep() { # an older kept copy is what served before a change that was cut short: it stays
	case $kind in directory) return 0 ;; esac
	_kept=$(kept "$path")
	[ -e "$_kept" ] || [ -L "$_kept" ] || { [ ! -e "$path" ] && [ ! -L "$path" ]; } || cp -a -- "$path" "$_kept"
}

swap() {
	case $kind in
	file | symlink) mv -fT -- "$(staged "$path")" "$path" ;;
	absent) rm -f -- "$path" ;;
	esac
}

restore() {
	case $kind in directory) return 0 ;; esac
	_kept=$(kept "$path")
	if [ -e "$_kept" ] || [ -L "$_kept" ]; then mv -fT -- "$_kept" "$path"; else rm -f -- "$path"; fi
}

forget() { case $kind in file | symlink | absent) rm -f -- "$(kept "$path")" ;; esac; }

# The validator sees the candidates at their real paths: a copy of the directory, swapped and mounted over the
# original in a mount namespace of its own. All of it vanishes with the process, also when that is killed.
candidate_is_valid() {
	mkdir -p /run/hostwright
	chmod 0700 /run/hostwright
	manifest=$manifest within=$within validate=$validate unshare --mount --propagation private sh -s <<'PROGRAM'
set -eu
mount -t tmpfs -o mode=0700 hostwright /run/hostwright
mkdir -p -- "$within"
cp -a -- "$within" /run/hostwright/candidate
mount --bind /run/hostwright/candidate "$within"
while IFS='|' read -r kind path _; do
	case $path in "$within"/*) ;; *) continue ;; esac
	new=$(dirname -- "$path")/.$(basename -- "$path").dpkg-new
	case $kind in
	file | symlink) mv -fT -- "$new" "$path" ;;
	absent) rm -f -- "$path" ;;
	esac
done <<MANIFEST
$manifest
MANIFEST
exec sh -c "$validate" </dev/null
PROGRAM
}

reload_unit_files() { [ -z "$daemon_reload" ] || systemctl daemon-reload; }

main() {
	each check
	trap 'each unstage' EXIT
	each stage
	[ -z "$payload" ] || printf '%s' "$payload" | base64 -d | tar -xzp -m --same-owner -C /
	if [ -n "$validate" ] && [ -n "$manifest" ] && ! said=$(candidate_is_valid 2>&1); then
		say "the new files do not pass \"$validate\"; nothing was changed:"
		printf '%s\n' "$said" | sed 's/^/    /' >&2
		exit 1
	fi
	each flush
	each keep
	each swap
	reload_unit_files
	# A unit that is stopped stays stopped: starting it is for whoever declares it running. One that failed is tried again.
	if [ -n "$action" ]; then
		case $(unit_property ActiveState) in
		active | reloading) ;;
		activating | failed) action=restart ;;
		*) action='' ;;
		esac
	fi
	if { [ -z "$apply" ] || sh -c "$apply" >&2; } && act; then
		stamp
		each forget
		return 0
	fi
	if [ -n "$manifest" ]; then
		say "putting the old files back"
		each restore
		reload_unit_files
		[ -z "$apply" ] || sh -c "$apply" >&2 || say "the old files do not apply either"
		probe=''
		act || say "$unit is not well on the old files either"
	fi
	exit 1
}
