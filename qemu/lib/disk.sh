# shellcheck shell=bash
# Disk images for guests.

# A sparse ext4 image. Nothing is left for the guest's kernel to initialise in the background.
make_ext4() { # make_ext4 FILE SIZE
    local new="$1.$$"
    mkdir -p -- "${1%/*}"
    truncate -s "$2" -- "$new"
    mkfs.ext4 -q -F -L sparkler -E lazy_itable_init=0,lazy_journal_init=0 -- "$new"
    publish "$new" "$1"
}

make_blank() { # make_blank FILE SIZE
    mkdir -p -- "${1%/*}"
    rm -f -- "$1"
    truncate -s "$2" -- "$1"
}
