# Downloads one release of the runner, checks its sum, and unpacks it beside the others.
# shellcheck shell=sh disable=SC2154  # its variables are set in front of it
main() {
    set -eu
    target="$releases/$id"
    if [ -d "$target" ]; then exit 0; fi
    mkdir -p "$releases"
    rm -rf "$releases"/.incoming.*
    incoming=$(mktemp -d "$releases/.incoming.XXXXXX")
    trap 'rm -rf "$incoming"' EXIT
    if ! curl --fail --silent --show-error --location --retry 3 --max-time 900 --output "$incoming/archive" "$url"; then
        echo "ci_runner: $url cannot be downloaded" >&2
        exit 1
    fi
    seen=$(sha256sum "$incoming/archive" | cut -d' ' -f1)
    if [ "$seen" != "$sha256" ]; then
        echo "ci_runner: $url has the SHA-256 $seen, wanted $sha256; nothing was installed" >&2
        exit 1
    fi
    mkdir "$incoming/tree"
    tar --extract --gzip --no-same-owner --file "$incoming/archive" --directory "$incoming/tree"
    for program in config.sh run.sh; do
        if [ ! -x "$incoming/tree/$program" ]; then
            echo "ci_runner: the archive of $url has no $program" >&2
            exit 1
        fi
    done
    chown -R root:root "$incoming/tree"
    chmod 0755 "$incoming/tree"
    mv -T "$incoming/tree" "$target"
    # those before: a runner copies what it starts from, so none is in use
    for other in "$releases"/*; do
        if [ "$other" != "$target" ]; then rm -rf "$other"; fi
    done
}
