# Make, resize, switch on or remove the swap file.
# shellcheck shell=sh
# shellcheck disable=SC2154  # path, size_mb, fstab, line, rebuild, active, container are set in front of this script

write_fstab() { # LINE: in place of any line of this path
    cp -p "$fstab" "$fstab.hostwright" || return 1
    { awk -v path="$path" '$1 != path' "$fstab"; [ -z "$1" ] || printf '%s\n' "$1"; } > "$fstab.hostwright" \
        && mv "$fstab.hostwright" "$fstab"
}

allocate() {
    # 0600 from the first byte: what is swapped out is anybody's memory. Written in full, never sparse: the kernel
    # refuses a swap file with holes, and fallocate leaves some on XFS and btrfs.
    rm -f "$path.new"
    (umask 077 && : > "$path.new") || return 1
    chattr +C "$path.new" 2> /dev/null # btrfs: no copy on write; elsewhere there is no such thing
    if dd if=/dev/zero of="$path.new" bs=1M count="$size_mb" status=none && mkswap "$path.new" > /dev/null; then
        return
    fi
    rm -f "$path.new"
    return 1
}

main() {
    if [ "$size_mb" = 0 ]; then
        write_fstab '' || return 1
        [ -z "$active" ] || swapoff "$path" || return 1
        rm -f "$path"
        systemctl daemon-reload
        return
    fi
    if [ -n "$rebuild" ]; then
        allocate || return 1
        # Fails, and leaves everything as it was, when memory cannot take back what is swapped out.
        if [ -n "$active" ] && ! swapoff "$path"; then
            rm -f "$path.new"
            return 1
        fi
        active=
        mv "$path.new" "$path" || return 1
    fi
    chown root:root "$path" && chmod 0600 "$path" && write_fstab "$line" || return 1
    systemctl daemon-reload
    [ -n "$active" ] || [ -n "$container" ] || swapon "$path"
}
