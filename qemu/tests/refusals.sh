# shellcheck shell=bash
# What EL2 refuses: it must name the problem on the console, and start no guest.

runs_once

# expect_refusal TEXT OPTIONS...: qemu/run with OPTIONS must show TEXT and neither Linux nor the builtin guest.
expect_refusal() {
    local text=$1
    shift
    run_guest --timeout 20 --disk none "$@" >"$dir/out" 2>&1 || true
    cat -- "$dir/out"
    expect_text "$dir/out" "$text"
    if grep -Eq 'Linux version|[0-9]+ passed' "$dir/out"; then
        echo "a guest was started"
        return 1
    fi
}

# What qemu/run passes for Linux, as variables and as a device tree that can be patched: QEMU checks the modules it describes
# itself, but believes a finished tree.
describe_modules() {
    local command
    command=$(run_guest --disk none --dry-run)
    # Commas may be quoted for the shell.
    [[ $command =~ addr=(0x[0-9a-f]+).?,kernel=.*addr=(0x[0-9a-f]+).?,initrd= ]]
    kernel_at=${BASH_REMATCH[1]} ramdisk_at=${BASH_REMATCH[2]}
    kernel_size=$(file_size "$target/guest/vmlinuz")
    ramdisk_size=$(file_size "$target/guest/ramdisk.img")
    run_guest --disk none -- -machine "dumpdtb=$dir/dtb"
    # QEMU leaves a megabyte of room at the end, and would add as much again: cut it off. Words 3 and 8 of the header are
    # the offset and size of the last block, the strings; word 1 is the size of the whole.
    local words total
    read -ra words <<<"$(od -An -v -tu4 --endian=big -w40 -N40 "$dir/dtb")"
    total=$((words[3] + words[8]))
    truncate -s "$total" "$dir/dtb"
    patch "$dir/dtb" 4 "$(printf '%08x' "$total")"
}

# patch FILE OFFSET HEX: overwrite bytes.
patch() { printf '%b' "$(escaped "$3")" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
escaped() { sed 's/../\\x&/g' <<<"$1"; }

# patch_module ADDRESS SIZE NEW_ADDRESS NEW_SIZE: change the "reg" of the module that has ADDRESS and SIZE.
patch_module() {
    local offset
    offset=$(grep -obUaP -- "$(escaped "$(printf '%016x%016x' "$1" "$2")")" "$dir/dtb" | cut -d : -f 1)
    patch "$dir/dtb" "$offset" "$(printf '%016x%016x' "$3" "$4")"
}

# The options that boot the patched tree, the files where it says (or said).
patched_modules() {
    patched=(--guest none -- -dtb "$dir/dtb"
        -device "loader,file=$(qemu_value "$target/guest/vmlinuz"),addr=$kernel_at,force-raw=on"
        -device "loader,file=$(qemu_value "$target/guest/ramdisk.img"),addr=$ramdisk_at,force-raw=on")
}

test_el2_refuses_to_run_at_el1() {
    expect_refusal 'not at EL2' --guest builtin --timeout 5 -- -machine virtualization=off
}

test_el2_refuses_a_board_without_a_guest_and_says_how_to_give_one() {
    expect_refusal '/chosen: there is no guest: give one as a multiboot,kernel module' --guest none
    expect_text "$dir/out" 'turning the board off'
}

test_el2_refuses_an_x0_that_is_no_device_tree() {
    # Entered by reset instead of QEMU's boot code: x0 is 0.
    timeout -k 5 20 qemu-system-aarch64 -machine virt,virtualization=on,gic-version=3 -cpu cortex-a72 -m 512 \
        -display none -nic none -no-reboot -monitor none -serial stdio \
        -device "loader,file=$(qemu_value "$system_image"),addr=0x40200000,force-raw=on" \
        -device loader,addr=0x40200000,cpu-num=0 | tee "$dir/out" || true
    expect_text "$dir/out" 'no FDT at'
}

test_el2_refuses_interrupts_that_are_secure() {
    # Entered at EL3 with a GIC that no firmware has set up: its interrupts are all the Secure state's. x0 is the tree
    # that QEMU puts at the start of RAM: movz x0, #0x4000, lsl #16; movz x1, #0x4020, lsl #16; br x1.
    timeout -k 5 20 qemu-system-aarch64 -machine virt,virtualization=on,secure=on,gic-version=3 -cpu max -m 512 \
        -display none -nic none -no-reboot -monitor none -serial stdio \
        -device "loader,file=$(qemu_value "$system_image"),addr=0x40200000,force-raw=on" \
        -device loader,addr=0x4fff0000,data=0xd2a80401d2a80000,data-len=8 \
        -device loader,addr=0x4fff0008,data=0xd61f0020,data-len=4 \
        -device loader,addr=0x4fff0000,cpu-num=0 | tee "$dir/out" || true
    expect_text "$dir/out" 'kept for the Secure state'
}

test_el2_refuses_a_truncated_kernel() {
    head -c 1000000 "$target/guest/vmlinuz" >"$dir/short"
    expect_refusal 'the kernel module is truncated' --guest "$dir/short"
}

test_el2_refuses_modules_larger_than_the_guests_ram() {
    truncate -s 600M "$dir/ramdisk"
    expect_refusal 'need' --initrd "$dir/ramdisk"
    expect_text "$dir/out" 'of RAM, the VM has'
}

test_el2_refuses_a_module_that_reaches_beyond_ram() {
    describe_modules
    patch_module "$ramdisk_at" "$ramdisk_size" "$ramdisk_at" $((0x7fffffff))
    patched_modules
    expect_refusal "is not in the board's memory" "${patched[@]}"
}

test_el2_refuses_a_module_on_a_device() {
    describe_modules
    patch_module "$ramdisk_at" "$ramdisk_size" $((0x09000000)) 4096
    patched_modules
    expect_refusal "is not in the board's memory" "${patched[@]}"
}

test_el2_refuses_modules_that_overlap() {
    describe_modules
    patch_module "$ramdisk_at" "$ramdisk_size" $((kernel_at + 0x200000)) "$ramdisk_size"
    patched_modules
    expect_refusal 'module overlaps' "${patched[@]}"
}

test_el2_refuses_a_module_on_top_of_its_own_image() {
    describe_modules
    patch_module "$ramdisk_at" "$ramdisk_size" $((0x40200000)) "$ramdisk_size"
    patched_modules
    expect_refusal 'overlaps sparkler' "${patched[@]}"
}

test_entered_at_el3_it_drops_to_el2() {
    # Entered by reset, at EL3 and without firmware: x0 is 0, and nobody can turn the board off.
    timeout 5 qemu-system-aarch64 -machine virt,virtualization=on,secure=on,gic-version=3 -cpu cortex-a72 -m 256 \
        -nographic -nic none -device "loader,file=$(qemu_value "$system_image"),addr=0x40200000,force-raw=on" \
        -device loader,addr=0x40200000,cpu-num=0 </dev/null >"$dir/out" 2>&1 || true
    cat -- "$dir/out"
    expect_text "$dir/out" 'no FDT at 0x0'
    # Calling firmware that is not there would be a fault.
    ! grep -q 'EL2 fault' "$dir/out"
}
