# Kernel parameters: our file, and what is live. Reads only; one record a line: key, tab, value. Never fails.
# shellcheck shell=sh
# shellcheck disable=SC2154  # file, paths (below /proc/sys, one a line) are set in front of this script
printf 'file\t%s %s\n' "$(stat -c '%U:%a' "$file" 2> /dev/null || echo -)" "$(sha256sum "$file" 2> /dev/null | cut -d ' ' -f 1)"
printf '%s\n' "$paths" | while IFS= read -r path; do
    # Not there: a module that is not loaded. Not writable: the kernel is not this host's own (a container).
    [ -r "/proc/sys/$path" ] && [ -w "/proc/sys/$path" ] && printf 'live\t%s %s\n' "$path" "$(tr -s '[:space:]' ' ' < "/proc/sys/$path")"
done
true
