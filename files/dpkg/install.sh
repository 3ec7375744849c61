# Install packages; fetch the lists first when they are old or do not know a package.
# shellcheck shell=sh
# shellcheck disable=SC2154,SC2086  # packages, list_hours are set in front of this script; packages is a list of words
export DEBIAN_FRONTEND=noninteractive

update() {
    # DPkg::Lock::Timeout does not cover the lock of the lists: the daily timer of the distribution may hold it.
    log=$(mktemp)
    tries=0
    until apt-get update -q > "$log" 2>&1; do
        tries=$((tries + 1))
        if [ $tries -ge 24 ] || ! grep -q 'Could not get lock' "$log"; then
            cat "$log" >&2
            rm -f "$log"
            return 1
        fi
        sleep 5
    done
    rm -f "$log"
}

finish_interrupted() { # apt refuses to go on from what a power cut left half installed
    tries=0
    # dpkg has no option to wait for its lock, which the apt of a run that was killed may hold for a while.
    until log=$(dpkg --configure -a 2>&1); do
        tries=$((tries + 1))
        case $log in *lock*) [ $tries -ge 60 ] || { sleep 2 && continue; } ;; esac
        printf '%s\n' "$log" >&2
        return 1
    done
}

install_packages() {
    finish_interrupted || return 1
    apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $packages
}

main() {
    if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -mmin "-$((list_hours * 60))" 2> /dev/null)" ]; then
        update || return 1
        install_packages
    else
        install_packages || { update && install_packages; }
    fi
}
