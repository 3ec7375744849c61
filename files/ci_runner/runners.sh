# Brings the runners of a host to the wanted number: removes, creates, starts, restarts those that have no job.
# shellcheck shell=sh disable=SC2154  # its variables are set in front of it
main() {
    set -eu
    failed=
    for number in $remove; do
        echo "remove runner $number"
        /usr/local/lib/hostwright/ci-runner remove "$number" || failed="$failed $number"
    done
    for number in $create; do
        echo "create runner $number"
        if ! getent passwd "ci-runner-$number" > /dev/null; then
            useradd --system --user-group --no-create-home --home-dir "/var/lib/ci-runner/$number/home" --shell /usr/sbin/nologin "ci-runner-$number"
        fi
    done
    if [ "$create$restart$start" != "" ]; then systemctl daemon-reload; fi
    for number in $create $start; do
        systemctl reset-failed "ci-runner@$number.service" 2> /dev/null || :
        systemctl enable --quiet "ci-runner@$number.service"
        systemctl start "ci-runner@$number.service" || failed="$failed $number"
    done
    for number in $restart; do
        echo "restart runner $number"
        systemctl restart "ci-runner@$number.service" || failed="$failed $number"
    done
    for number in $create $start $restart; do
        # up, or between two jobs
        waited=0
        until systemctl is-active --quiet "ci-runner@$number.service"; do
            waited=$((waited + 1))
            if [ "$waited" -ge "$seconds" ]; then
                failed="$failed $number"
                break
            fi
            sleep 1
        done
        # a long-lived one whose token ran out goes on as it was
        if [ "$mark" ] && systemctl is-active --quiet "ci-runner@$number.service" && [ "$(cat "/run/ci-runner/$number.mark")" != "$mark" ]; then
            failed="$failed $number"
        fi
    done
    for number in $failed; do
        echo "ci_runner: runner $number:" >&2
        journalctl --unit "ci-runner@$number.service" --lines 8 --no-pager --output cat >&2
    done
    [ -z "$failed" ]
}
