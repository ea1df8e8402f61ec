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

# A sparse disk with a GUID partition table: for each label a partition of that many MiB with an ext4 file system.
make_partitioned() { # make_partitioned FILE MIB LABEL...
    local new="$1.$$" size=$2 file=$1 label at=1 part
    shift 2
    mkdir -p -- "${file%/*}"
    rm -f -- "$new"
    truncate -s "$((size * $# + 2))M" -- "$new"
    {
        printf 'label: gpt\n'
        for label; do printf 'size=%dMiB, name="%s"\n' "$size" "$label"; done
    } | sfdisk -q -- "$new"
    for label; do
        part=$new.$label
        make_ext4 "$part" "${size}M"
        dd if="$part" of="$new" bs=1M seek="$at" conv=notrunc,sparse status=none
        rm -f -- "$part"
        at=$((at + size))
    done
    publish "$new" "$file"
}

# partition FILE MIB NUMBER OUT: copies a partition out of what make_partitioned has made.
partition() { dd if="$1" of="$4" bs=1M skip="$((1 + ($3 - 1) * $2))" count="$2" conv=sparse status=none; }
