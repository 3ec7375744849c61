# Build one release beside the others: source, virtual environment, marker; then drop what is too old.
# shellcheck shell=sh disable=SC2154  # set in front of this script:
#   root id          /opt/APP and the release's directory name below $root/releases
#   kind             git | archive
#   url              of the repository or the archive
#   version commit   tag or full commit id; the commit a tag is expected to name, or empty
#   sha256           of the archive
#   requirements     file in the source, or empty for none
#   python           distribution | uv:3.12
#   uv_version       of uv on PyPI
#   keep             how many releases stay besides those in use
#   rebuild          yes: build it even though it stands there complete
set -eu
umask 022

say() { printf '%s\n' "$*" >&2; }
die() {
	say "release $id: $*"
	exit 1
}

# The commit that a tag names here is written down when it is first built, because a tag can be moved upstream.
fetch_git() {
	export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND='ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new'
	export GIT_DIR="$root/repository.git"
	[ -d "$GIT_DIR/objects" ] || git init --quiet --bare "$GIT_DIR"
	git config core.hooksPath /dev/null
	case $version in
	*[!0-9a-f]*) wanted="refs/tags/$version" ;;
	*) [ ${#version} -eq 40 ] && wanted=$version || wanted="refs/tags/$version" ;;
	esac
	# Cheap first; servers without shallow fetches (plain-file HTTP) or without fetches of bare commits get the rest.
	if ! limited fetch --quiet --depth 1 --no-tags --force -- "$url" "$wanted:refs/release/$id" 2>/dev/null; then
		limited fetch --quiet --no-tags --force -- "$url" '+refs/heads/*:refs/remote/heads/*' '+refs/tags/*:refs/remote/tags/*' ||
			die "cannot fetch $url"
		if [ "$wanted" = "$version" ]; then found=$version; else found="refs/remote/tags/$version"; fi
		git update-ref "refs/release/$id" "$found" 2>/dev/null || die "$url has no tag or commit $version"
	fi
	got=$(git rev-parse --verify --quiet "refs/release/$id^{commit}") || die "$url: $version is not a commit"
	[ "$wanted" != "$version" ] || [ "$got" = "$version" ] || die "asked for commit $version, got $got"
	[ -z "$commit" ] || [ "$got" = "$commit" ] || die "$version of $url is commit $got, not $commit as declared"
	known=$(awk -v url="$url" -v version="$version" '$1 == url && $2 == version { print $3 }' "$root/versions" 2>/dev/null || :)
	if [ -n "$known" ] && [ "$known" != "$got" ]; then
		die "tag $version of $url was commit $known when this host first built it and now names $got." \
			"Release under a new tag, or give the commit itself as the version."
	fi
	mkdir "$new/src"
	GIT_INDEX_FILE="$new/.index" git --work-tree="$new/src" checkout --quiet --force "$got" -- . || die "cannot check out $got"
	rm -f "$new/.index"
	# An empty directory is all that would stand where a submodule belongs.
	[ ! -e "$new/src/.gitmodules" ] || die "the repository has submodules, which are not supported"
	[ -n "$known" ] || printf '%s %s %s\n' "$url" "$version" "$got" >>"$root/versions"
	unset GIT_DIR
}

# A server that stops sending ends the fetch after a minute, whatever the transport; a stuck ssh after ten.
limited() {
	timeout -k 10 600 git -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=60 "$@"
}

fetch_archive() {
	got=$sha256
	curl --fail --silent --show-error --location --proto '=https,http,file' --proto-redir '=https,http' \
		--connect-timeout 20 --speed-limit 1000 --speed-time 60 --output "$new/archive" -- "$url" || die "cannot fetch $url"
	found=$(sha256sum <"$new/archive" | cut -d' ' -f1)
	[ "$found" = "$sha256" ] || die "$url has SHA-256 $found, not $sha256 as declared"
	mkdir "$new/unpacked"
	# Both refuse members above the target; tar makes links only after all files, so that none is written through one.
	case $url in
	*.zip) python3 -m zipfile -e "$new/archive" "$new/unpacked" || die "cannot unpack $url" ;;
	*) tar -xf "$new/archive" -C "$new/unpacked" --no-same-owner --no-same-permissions || die "cannot unpack $url" ;;
	esac
	rm "$new/archive"
	[ -z "$(find "$new/unpacked" ! -type f ! -type d ! -type l -print -quit)" ] || die "$url holds a device, pipe or socket"
	# Forges put everything below one directory of their own.
	set -- "$new/unpacked"/* "$new/unpacked"/.[!.]*
	if [ $# -eq 2 ] && [ -d "$1" ] && [ ! -h "$1" ]; then
		mv "$1" "$new/src" && rmdir "$new/unpacked"
	else
		mv "$new/unpacked" "$new/src"
	fi
}

# The interpreter is the distribution's, or one that uv finds or downloads: a build that does not depend on what the
# distribution has. uv is pinned, and nothing but a finder of interpreters: environments and packages are pip's either way,
# so that the host's pip configuration (mirrors, certificates) counts in both.
find_interpreter() {
	interpreter=$(command -v python3) || die "there is no python3"
	case $python in
	uv:*)
		uv="$root/uv-$uv_version/bin/uv"
		export UV_PYTHON_INSTALL_DIR="$root/python" UV_NO_PROGRESS=1 UV_SYSTEM_CERTS=1
		if [ ! -e "$root/uv-$uv_version/.complete" ]; then
			rm -rf "$root/uv-$uv_version"
			python3 -m venv "$root/uv-$uv_version" || die "python3 -m venv failed (is python3-venv installed?)"
			"$root/uv-$uv_version/bin/pip" install --quiet "uv==$uv_version" || die "cannot install uv $uv_version"
			: >"$root/uv-$uv_version/.complete"
		fi
		interpreter=$("$uv" python find "${python#uv:}" 2>/dev/null) || {
			"$uv" python install --quiet "${python#uv:}" || die "uv $uv_version cannot install Python ${python#uv:}"
			interpreter=$("$uv" python find "${python#uv:}") || die "uv $uv_version cannot find Python ${python#uv:}"
		}
		;;
	esac
}

# An untouched release that was built from the very same locked packages: its environment is copied, so that a release of
# nothing but code needs no package index, and a tenth of the time.
copy_venv() {
	file="$new/src/$requirements"
	# Without hashes, or with other files read by it, equal text does not mean equal packages.
	if [ -z "$requirements" ] || ! grep -qs -- '--hash=' "$file" || grep -q '^-' "$file"; then return 1; fi
	for marker in "$root"/releases/*/.complete; do
		old=${marker%/.complete}
		if [ "$old" != "$final" ] && cmp -s "$old/src/$requirements" "$file" &&
			grep -qxF "requirements=$requirements" "$marker" &&
			grep -qxF "interpreter=$(readlink -f "$interpreter")" "$marker" &&
			[ -z "$(find "$old/src" "$old/venv" -name __pycache__ -prune -o -cnewer "$marker" -print -quit)" ]; then
			cp -a "$old/venv" "$new/venv"
			move_venv "$old" "$new"
			return 0
		fi
	done
	return 1
}

# Scripts name their interpreter by the path they were installed at.
move_venv() { # from to
	grep -rlIF -- "$1/" "$new/venv/bin" "$new/venv/pyvenv.cfg" | xargs -r sed -i "s|$1/|$2/|g"
}

make_venv() {
	"$interpreter" -m venv "$new/venv" || die "$interpreter -m venv failed (is python3-venv installed?)"
	install_requirements
}

install_requirements() {
	[ -n "$requirements" ] || return 0
	file="$new/src/$requirements"
	[ -f "$file" ] || die "the source has no $requirements"
	set --
	if grep -q -- '--hash=' "$file"; then set -- --require-hashes; fi
	# stdout is progress; what went wrong is on stderr.
	"$new/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-compile --root-user-action=ignore \
		"$@" --requirement "$file" >/dev/null || die "pip could not install $requirements"
	"$new/venv/bin/python" -m pip check >/dev/null || die "the packages of $requirements contradict each other"
}

# The service may read and run all of it and change none of it.
seal() {
	# On all cores, which pip does not; a file that cannot be compiled is one that cannot be imported either.
	"$new/venv/bin/python" -m compileall -q -j 0 "$new/src" "$new/venv/lib" >/dev/null || :
	move_venv "$new" "$final"
	chown -R -h root:root "$new"
	chmod -R u=rwX,go=rX,ug-s "$new"
	printf 'source=%s\nversion=%s\ncommit=%s\nrequirements=%s\ninterpreter=%s\n' \
		"$url" "$version" "$got" "$requirements" "$(readlink -f "$new/venv/bin/python")" >"$new/.complete"
}

# The pattern comes over stdin: in argv, grep would find itself among the running processes.
# shellcheck disable=SC2062 # the first file is no pattern
in_use() {
	printf '%s/' "$1" | grep -qsF --file=- /etc/systemd/system/*.service /etc/supervisor/conf.d/*.conf \
		/var/lib/hostwright/rollout/*/specs/*/service /proc/[0-9]*/cmdline
}

prune() {
	count=0
	# Newest first: by the marker, since a directory's own time changes when something below it does.
	find "$root/releases" -mindepth 2 -maxdepth 2 -name .complete -printf '%T@ %h\n' | sort -rn | while read -r _ old; do
		count=$((count + 1))
		if [ "$count" -gt "$keep" ] && [ "$old" != "$final" ] && ! in_use "$old"; then
			say "dropping old release ${old##*/}"
			rm -rf "$old"
		fi
	done
}

main() {
	# A run whose controller died goes on here to its end; the next one waits for it, and finds its work done.
	trap '' HUP PIPE
	final="$root/releases/$id"
	new="$root/releases/.building-$id"
	mkdir -p "$root/releases" /run/hostwright
	exec 9>"/run/hostwright/release$(printf '%s' "$root" | tr / -).lock"
	flock -w 900 9 || die "another build of $root has been running for 15 minutes"
	rm -rf "$root"/releases/.building-* "$root"/releases/.old-*
	if [ -e "$final/.complete" ] && [ -z "$rebuild" ]; then
		say "built by another run meanwhile"
		return 0
	fi
	mkdir "$new"
	trap 'rm -rf "$new"' EXIT
	"fetch_$kind"
	find_interpreter
	copy_venv || make_venv
	seal
	[ ! -e "$final" ] || mv "$final" "$root/releases/.old-$id"
	mv "$new" "$final"
	rm -rf "$root/releases/.old-$id"
	prune
}
