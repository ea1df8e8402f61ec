# shellcheck shell=bash
# Disks: what Linux writes is on the host's image, whatever way the guest ends.

test_a_file_written_by_linux_is_on_the_hosts_image() {
    run_guest --disk "$(ext4_disk)" -c 'mount | grep /mnt; echo "kept by the disk" >/mnt/file'
    expect_clean "$(ext4_disk)"
    disk_file "$(ext4_disk)" file "$dir/file"
    expect_equal "contents" "kept by the disk" "$(<"$dir/file")"
}

test_64_mib_written_by_linux_have_the_same_checksum_outside() {
    run_guest --disk "$(ext4_disk)" -c '
        dd if=/dev/urandom of=/mnt/big bs=1M count=64 && sync
        echo 3 >/proc/sys/vm/drop_caches
        sha256sum /mnt/big' | tee "$dir/out"
    expect_clean "$(ext4_disk)"
    disk_file "$(ext4_disk)" big "$dir/big"
    expect_equal "size" 67108864 "$(stat -c %s "$dir/big")"
    expect_text "$dir/out" "$(sha256sum "$dir/big" | cut -d ' ' -f 1)"
}

test_a_file_written_by_the_host_is_read_by_linux() {
    head -c 5000000 /dev/urandom >"$dir/file"
    debugfs -w -R "write $dir/file file" -- "$(ext4_disk)"
    run_guest --disk "$(ext4_disk)" -c 'sha256sum /mnt/file' | tee "$dir/out"
    expect_text "$dir/out" "$(sha256sum "$dir/file" | cut -d ' ' -f 1)"
}

test_the_disks_own_interrupt_wakes_an_idle_guest() {
    # One read at a time: between them the guest is idle, and nothing else comes as often as they end.
    run_guest --disk "$(ext4_disk)" -c 'dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct' 2>&1 | tee "$dir/out"
    local doorbells
    doorbells=$(sed -n 's/.* doorbell=\([0-9]*\) .*/\1/p' "$dir/out")
    ((doorbells >= 500)) || { echo "the disk woke the guest only ${doorbells:-0} times" && return 1; }
}

test_two_reboots_in_a_row_keep_the_disk() {
    # The disk counts the boots: two end in a reset, the third powers off.
    run_guest --disk "$(ext4_disk)" -c '
        boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
        echo $boots >/mnt/boots
        echo "this is boot $boots"
        sync
        if [ $boots -lt 3 ]; then reboot -f; sleep 1000; fi' | tee "$dir/out"
    for boot in 1 2 3; do expect_text "$dir/out" "this is boot $boot"; done
    expect_clean "$(ext4_disk)"
    disk_file "$(ext4_disk)" boots "$dir/boots"
    expect_equal "boots" 3 "$(<"$dir/boots")"
}

test_without_a_disk_linux_boots() {
    run_guest --disk none -c 'if [ -e /dev/vda ]; then echo "there is a disk"; exit 1; fi; echo "no disk here"' | tee "$dir/out"
    expect_text "$dir/out" 'no disk here'
    if [[ ${SPARKLER_RUN_ARGS-} != *--bare* ]]; then expect_text "$dir/out" 'no disk: the guest runs without'; fi
}

test_a_read_only_disk_refuses_writes() {
    local before
    before=$(sha256sum <"$(ext4_disk)")
    run_guest --disk "$(ext4_disk):ro" -c '
        cat /sys/block/vda/ro
        if echo text >/mnt/file; then echo "the file system took it"; exit 1; fi
        umount /mnt
        if dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync; then echo "the disk took it"; exit 1; fi
        blockdev --flushbufs /dev/vda
        sha256sum /dev/vda' | tee "$dir/out"
    expect_equal "read-only" 1 "$(grep -x '[01]' "$dir/out")"
    # Readable to the last byte, and unchanged.
    expect_text "$dir/out" "${before%% *}"
    expect_equal "image" "$before" "$(sha256sum <"$(ext4_disk)")"
}

test_reads_and_writes_past_the_end_fail() {
    run_guest --disk "$(ext4_disk)" -c '
        umount /mnt
        size=$(blockdev --getsize64 /dev/vda)
        echo "size $size"
        if dd if=/dev/zero of=/dev/vda bs=4096 count=1 seek=$((size / 4096)) conv=fsync; then exit 1; fi
        dd if=/dev/vda of=/dev/null bs=4096 skip=$((size / 4096 - 1))' | tee "$dir/out"
    expect_text "$dir/out" 'size 268435456'
    expect_equal "size outside" 268435456 "$(stat -c %s "$(ext4_disk)")"
    expect_clean "$(ext4_disk)"
}

test_a_disk_that_stops_answering_fails_the_request_and_the_guest_lives() {
    # QEMU's throttle serves a burst of 4 MiB, and after that a byte a second: for the guest's purposes, never.
    make_blank "$dir/disk.raw" 64M
    run_guest --disk none -c '
        dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct && echo "served at first"
        if dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct; then exit 1; fi
        echo "the guest lives"' \
        -- -global virtio-mmio.force-legacy=false -device virtio-blk-device,drive=disk0 -drive \
        "if=none,id=disk0,format=raw,file=$(qemu_value "$dir/disk.raw"),throttling.bps-total=1,throttling.bps-total-max=4194304" |
        tee "$dir/out"
    expect_text "$dir/out" 'served at first'
    expect_text "$dir/out" 'I/O error, dev vda'
    expect_text "$dir/out" 'the guest lives'
}
