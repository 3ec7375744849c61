# Save what stands, promise to put it back after a time, then change: for changes that could cut the way in.
#
# The promise is a timer with its own unit file, enabled, and not a transient `systemd-run` unit: that one would not
# survive a reboot in the middle, and the host would come up with the unproven change and nothing to take it back.
# shellcheck shell=sh
# shellcheck disable=SC2154  # deadman, seconds, saved, restore are set in front of this script

deadman_dir=/var/lib/hostwright/deadman/$deadman
deadman_unit=hostwright-$deadman-rollback

deadman_save() {
    # A copy that is there belongs to a run that was killed before its change was proven: it is the last state that is
    # known to let us in, so it stays.
    [ ! -e "$deadman_dir/saved.tar" ] || return 0
    install -d -m 0700 /var/lib/hostwright /var/lib/hostwright/deadman "$deadman_dir" || return 1
    : > "$deadman_dir/present"
    : > "$deadman_dir/absent"
    for path in $saved; do
        if [ -e "$path" ]; then
            printf '%s\n' "${path#/}" >> "$deadman_dir/present"
        else
            printf '%s\n' "$path" >> "$deadman_dir/absent"
        fi
    done
    cat > "$deadman_dir/rollback" <<ROLLBACK || return 1
#!/bin/sh
# Puts the last proven state back. Run by $deadman_unit.timer, or at once when the change itself fails.
cd $deadman_dir || exit 1
tar -C / -xpf saved.tar || exit 1
while read -r path; do rm -f "\$path"; done < absent
$restore
echo "$deadman: the change was not proven, the state before it is back"
systemctl stop $deadman_unit.timer
rm -f /etc/systemd/system/timers.target.wants/$deadman_unit.timer
rm -f /etc/systemd/system/$deadman_unit.timer /etc/systemd/system/$deadman_unit.service
rm -rf $deadman_dir
systemctl daemon-reload
ROLLBACK
    tar -C / -cpf "$deadman_dir/saved.part" -T "$deadman_dir/present" || return 1
    mv "$deadman_dir/saved.part" "$deadman_dir/saved.tar"
}

deadman_arm() {
    # A rollback that is running right now decides what "before" is: let it finish.
    systemctl stop "$deadman_unit.timer" 2> /dev/null
    while [ "$(systemctl is-active "$deadman_unit.service")" = activating ]; do sleep 0.2; done
    deadman_save || return 1
    cat > "/etc/systemd/system/$deadman_unit.service" <<UNIT || return 1
[Unit]
Description=Take back an unproven change ($deadman)

[Service]
Type=oneshot
ExecStart=/bin/sh $deadman_dir/rollback
UNIT
    cat > "/etc/systemd/system/$deadman_unit.timer" <<UNIT || return 1
[Unit]
Description=Take back an unproven change ($deadman) unless it is proven in time

[Timer]
OnActiveSec=$seconds
AccuracySec=100ms

[Install]
WantedBy=timers.target
UNIT
    systemctl daemon-reload && systemctl enable --quiet --now "$deadman_unit.timer"
}

deadman_wait() {
    # What a killed run had started goes on without it, and two changes of one thing at a time spoil each other: the
    # one fails half-way, and its rollback takes back what the other has made and proven.
    install -d -m 0700 /run/hostwright || return 1
    exec 9> "/run/hostwright/deadman-$deadman.lock" || return 1
    flock --wait 120 9
}

main() {
    if ! deadman_wait; then
        echo "$deadman: an earlier change is still at work, nothing was changed" >&2
        return 1
    fi
    if ! deadman_arm; then
        echo "$deadman: could not arm the rollback, nothing was changed" >&2
        return 1
    fi
    if ! change; then
        echo "$deadman: the change failed, the state before it is put back" >&2
        sh "$deadman_dir/rollback" >&2
        return 1
    fi
}
