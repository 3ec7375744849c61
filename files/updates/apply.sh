# Configure unattended-upgrades, checked by apt itself, and have apt's timers run.
# shellcheck shell=sh
# shellcheck disable=SC2154  # file, content are set in front of this script
main() {
    # A name with a "~" is one that apt does not read from its directory.
    printf '%s\n' "$content" > "$file.hostwright~" && chmod 0644 "$file.hostwright~" && chown root:root "$file.hostwright~" || return 1
    if ! apt-config --config-file "$file.hostwright~" dump > /dev/null; then
        rm -f "$file.hostwright~"
        return 1
    fi
    mv "$file.hostwright~" "$file" || return 1
    systemctl unmask --quiet apt-daily.timer apt-daily-upgrade.timer 2> /dev/null
    systemctl enable --quiet --now apt-daily.timer apt-daily-upgrade.timer
}
