# Write our file of kernel parameters, and set what is live to it.
# shellcheck shell=sh
# shellcheck disable=SC2154  # file, content, live (lines of "path value") are set in front of this script

main() {
    if [ -n "$content" ]; then
        printf '%s\n' "$content" > "$file.hostwright" && chmod 0644 "$file.hostwright" && chown root:root "$file.hostwright" \
            && mv "$file.hostwright" "$file" || return 1
    else
        rm -f "$file"
    fi
    [ -n "$live" ] || return 0
    printf '%s\n' "$live" | while read -r path value; do
        printf '%s\n' "$value" > "/proc/sys/$path" || { echo "kernel.parameters: $path: cannot be set to $value" >&2; exit 1; }
    done
}
