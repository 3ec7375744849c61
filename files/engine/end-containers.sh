#!/bin/sh
# Written by Hostwright; changes made here are overwritten.
# The host goes down: let the engine end its containers one by one, each by its own signal and in its own time. With
# live-restore it would leave them to be ended by systemd, all at once, without network, and with SIGKILL for those that
# do not heed SIGTERM. Nothing of this outlives the boot: what the engine reads is laid over its file.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
file=/etc/docker/daemon.json

[ "$(systemctl is-system-running)" = stopping ] || exit 0
[ "$(docker info --format '{{.LiveRestoreEnabled}}')" = true ] || exit 0
umask 022
sed 's/"live-restore": true/"live-restore": false/' "$file" > /run/hostwright-daemon.json
mount --bind /run/hostwright-daemon.json "$file"
# Not by systemctl reload: systemd takes on no new job for a unit that it is about to stop.
kill -HUP "$(systemctl show --property=MainPID --value docker.service)"
tries=0
until [ "$(docker info --format '{{.LiveRestoreEnabled}}')" = false ]; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || exit 1
    sleep 0.1
done
