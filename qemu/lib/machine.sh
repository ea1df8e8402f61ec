# shellcheck shell=bash
# The QEMU command line: the board, and where on it the guest's files go.

readonly MIB=$((1 << 20)) RAM_BASE=$((0x40000000))

# A comma inside a value of a QEMU option is written twice.
qemu_value() { printf '%s' "${1//,/,,}"; }

file_size() { stat -L -c %s -- "$1"; }

# place_modules MEMORY_MIB KERNEL [RAMDISK]: set kernel_address and ramdisk_address, at the top of RAM, each
# at a multiple of 2 MiB, so that what lies between QEMU's device tree and them stays one free range.
place_modules() {
    local ram=$(($1 * MIB)) top floor
    # QEMU puts its device tree (1 MiB of padding included) after the EL2 image: half-way, at 128 MiB at most.
    floor=$((RAM_BASE + (ram / 2 < 128 * MIB ? ram / 2 : 128 * MIB) + 2 * MIB))
    top=$((RAM_BASE + ram))
    ramdisk_address=''
    if [[ -n ${3-} ]]; then
        ramdisk_address=$(((top - $(file_size "$3")) / (2 * MIB) * (2 * MIB)))
        top=$ramdisk_address
    fi
    kernel_address=$(((top - $(file_size "$2")) / (2 * MIB) * (2 * MIB)))
    if ((kernel_address < floor)); then
        # What lies above the device tree must hold the files: half of the RAM, or all but 128 MiB of it.
        local need=$(((RAM_BASE + ram - kernel_address) / MIB + 2))
        usage_error "--memory $1 is too small for the guest's files: $((need <= 128 ? 2 * need : need + 128)) is the least"
    fi
}

# qemu_command: fill the array qemu_cmd from the settings of qemu/run.
# cpu cpus memory gic icount bare terminal image kernel initrd bootargs el2_append disk_kind disk_file disk_format net extra_args
qemu_command() {
    # Without the hypervisor the guest enters at EL1, as it does on top of it: the fair comparison.
    local virtualization=on
    if ((bare)); then virtualization=off; fi
    qemu_cmd=(
        qemu-system-aarch64
        -machine "virt,virtualization=$virtualization,gic-version=$gic,dtb-randomness=off"
        -cpu "$cpu" -smp "$cpus" -m "$memory" -nographic -nic none
    )
    if ((icount)); then
        qemu_cmd+=(-icount 'shift=0,sleep=off' -rtc 'base=2026-01-01T00:00:00,clock=vm')
    fi
    disk_arguments
    net_arguments
    # A source of entropy, but not where a run is to be like any other.
    if ((!icount)); then qemu_cmd+=(-global virtio-mmio.force-legacy=false -device virtio-rng-device); fi
    if ((bare)); then
        qemu_cmd+=(-kernel "$kernel" -append "$bootargs")
        if [[ -n $initrd ]]; then qemu_cmd+=(-initrd "$initrd"); fi
    else
        # A reset of the board is EL2's own fault, never a guest's: end there.
        qemu_cmd+=(-no-reboot -kernel "$image")
        if [[ -n $kernel ]]; then module_arguments; fi
        if [[ -n $el2_append ]]; then qemu_cmd+=(-append "$el2_append"); fi
    fi
    if ((terminal)); then qemu_cmd+=(-serial mon:stdio); else qemu_cmd+=(-serial stdio -monitor none); fi
    qemu_cmd+=("${extra_args[@]}")
}

disk_arguments() {
    local drive=(-drive "if=none,id=disk0,format=$disk_format,cache=writeback,file=$(qemu_value "$disk_file")")
    case $disk_kind in
    none) return ;;
    null) drive=(-blockdev 'driver=null-co,node-name=disk0,size=1073741824,read-zeroes=on') ;;
    readonly) drive[1]+=,readonly=on ;;
    esac
    qemu_cmd+=(-global virtio-mmio.force-legacy=false "${drive[@]}" -device virtio-blk-device,drive=disk0)
}

net_arguments() {
    if [[ $net == none ]]; then return; fi
    qemu_cmd+=(-global virtio-mmio.force-legacy=false -netdev "${net/#user/user,id=net0}" -device virtio-net-device,netdev=net0)
}

module_arguments() {
    local kernel_address ramdisk_address
    place_modules "$memory" "$kernel" "$initrd"
    qemu_cmd+=(-device "$(printf 'guest-loader,addr=%#x,kernel=%s,bootargs=%s' \
        "$kernel_address" "$(qemu_value "$kernel")" "$(qemu_value "$bootargs")")")
    if [[ -n $initrd ]]; then
        qemu_cmd+=(-device "$(printf 'guest-loader,addr=%#x,initrd=%s' "$ramdisk_address" "$(qemu_value "$initrd")")")
    fi
}
