# shellcheck shell=bash
# Writer for "newc" cpio archives, the format of Linux ramdisks. Owners are root, times are zero and the
# order is the caller's, so equal input gives equal bytes, and device nodes need no privilege.

cpio_inode=0

cpio_pad() { # zero bytes up to the next multiple of 4 after $1 bytes
    local zeros=('' '\0' '\0\0' '\0\0\0')
    # shellcheck disable=SC2059  # the escapes are the point
    printf "${zeros[$(((4 - $1 % 4) % 4))]}"
}

cpio_header() { # cpio_header MODE NAME SIZE [RDEV_MAJOR RDEV_MINOR]
    cpio_inode=$((cpio_inode + 1))
    # magic, inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), length of the name, checksum
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$cpio_inode" "$1" 0 0 1 0 "$3" 0 0 "${4-0}" "${5-0}" $((${#2} + 1)) 0
    printf '%s\0' "$2"
    cpio_pad $((110 + ${#2} + 1))
}

cpio_dir() { cpio_header 0040755 "$1" 0; }
cpio_char_device() { cpio_header 0020600 "$1" 0 "$2" "$3"; } # NAME MAJOR MINOR

cpio_symlink() { # cpio_symlink NAME DESTINATION
    cpio_header 0120777 "$1" ${#2}
    printf '%s' "$2"
    cpio_pad ${#2}
}

cpio_file() { # cpio_file MODE NAME FILE
    local size
    size=$(stat -L -c %s -- "$3")
    cpio_header $((0100000 | $1)) "$2" "$size"
    cat -- "$3"
    cpio_pad "$size"
}

# The trailer; archives are concatenated, and the next must begin at a multiple of 4, as this one ends.
cpio_end() { cpio_header 0 'TRAILER!!!' 0; }
