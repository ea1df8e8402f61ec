# shellcheck shell=bash
# The ramdisk: busybox, qemu/guest/init and the kernel's modules; and the small archive with a job for it.

ramdisk=$guest_dir/ramdisk.img
guest_init=$root/qemu/guest/init

ramdisk_is_current() {
    local source
    for source in "$guest_init" "$guest_dir/release" "$root"/qemu/lib/{ramdisk,cpio}.sh; do
        [[ $ramdisk -nt $source ]] || return 1
    done
}

make_ramdisk() {
    local release path
    release=$(<"$guest_dir/release")
    {
        for path in bin dev etc job lib lib/modules "lib/modules/$release" mnt proc root run sbin sys tmp usr usr/bin usr/sbin; do
            cpio_dir "$path"
        done
        # The kernel opens this before init can mount anything.
        cpio_char_device dev/console 5 1
        cpio_file 0755 bin/busybox "$guest_dir/busybox"
        cpio_symlink bin/sh busybox
        # The kernel asks for modules by this path.
        cpio_symlink sbin/modprobe ../bin/busybox
        cpio_file 0755 init "$guest_init"
        while read -r path; do
            if [[ -d $guest_dir/modules/$path ]]; then
                cpio_dir "lib/modules/$release/$path"
            else
                cpio_file 0644 "lib/modules/$release/$path" "$guest_dir/modules/$path"
            fi
        done < <(cd -- "$guest_dir/modules" && find . -mindepth 1 -printf '%P\n' | sort)
        cpio_end
    } >"$ramdisk.$$"
    publish "$ramdisk.$$" "$ramdisk"
}

# with_job RAMDISK COMMANDS NONCE [FILE...]: write RAMDISK and a second archive, with the commands its init shall run, and
# files for them in /job.
with_job() {
    local file ramdisk=$1
    printf '%s\n' "$2" >"$scratch/commands"
    printf '%s\n' "$3" >"$scratch/nonce"
    shift 3
    cat -- "$ramdisk"
    # A ramdisk from elsewhere may end anywhere.
    cpio_pad "$(stat -L -c %s -- "$ramdisk")"
    cpio_dir job
    cpio_file 0644 job/commands "$scratch/commands"
    cpio_file 0600 job/nonce "$scratch/nonce"
    for file in "$@"; do cpio_file 0755 "job/${file##*/}" "$file"; done
    cpio_end
}
