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

# patterned_disk FILE: 64 MiB without a zero byte in them.
patterned_disk() { head -c 64M /dev/zero | tr '\0' '\245' >"$1"; }

# expect_zeroed FILE FIRST LAST: in MiB; what lies between is zero, and nothing else of the pattern has changed.
expect_zeroed() {
    patterned_disk "$dir/expected"
    dd if=/dev/zero of="$dir/expected" bs=1M seek="$2" count=$(($3 - $2)) conv=notrunc status=none
    cmp "$1" "$dir/expected"
}

# raw_disk FILE DEVICE DRIVE: QEMU's arguments for a disk, with more properties for its device and its drive.
raw_disk() {
    disk_args=(-global virtio-mmio.force-legacy=false -device "virtio-blk-device,drive=disk0$2"
        -drive "if=none,id=disk0,format=raw,file=$(qemu_value "$1")$3")
}

test_what_linux_discards_is_given_up_outside() {
    local disk_args before after
    patterned_disk "$dir/disk.raw"
    before=$(stat -c %b "$dir/disk.raw")
    raw_disk "$dir/disk.raw" '' ,discard=unmap
    run_guest --disk none -c '
        echo "discards $(cat /sys/block/vda/queue/discard_max_hw_bytes) at a time"
        blkdiscard -o $((16 << 20)) -l $((32 << 20)) /dev/vda || exit 1
        blockdev --flushbufs /dev/vda' -- "${disk_args[@]}" | tee "$dir/out"
    expect_text "$dir/out" 'discards 2147483136 at a time'
    expect_zeroed "$dir/disk.raw" 16 48
    after=$(stat -c %b "$dir/disk.raw")
    ((after * 512 <= before * 512 - (30 << 20))) || { echo "$before blocks were allocated, and $after still are" && return 1; }
}

# The other way round the host makes them: make_ext4, expect_clean.
test_a_file_system_that_linux_makes_is_in_order_outside() {
    local disk_args
    patterned_disk "$dir/disk.raw"
    raw_disk "$dir/disk.raw" '' ,discard=unmap
    run_guest --net none --disk none -c '
        set -e
        blkdiscard /dev/vda
        mke2fs /dev/vda >/dev/null
        mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=24 2>/dev/null
        for n in $(seq 100); do echo $n >/mnt/$n; done
        sha256sum </mnt/file
        umount /mnt' -- "${disk_args[@]}" | tee "$dir/out"
    e2fsck -fn -- "$dir/disk.raw"
    disk_file "$dir/disk.raw" file "$dir/file"
    expect_text "$dir/out" "$(sha256sum <"$dir/file")"
    disk_file "$dir/disk.raw" 100 "$dir/100"
    expect_equal 'the last file' 100 "$(<"$dir/100")"
}

test_what_linux_zeroes_is_zero_outside() {
    local disk_args
    build_linux_bench
    patterned_disk "$dir/disk.raw"
    raw_disk "$dir/disk.raw" '' ''
    run_guest --disk none --file "$linux_bench" -c '
        echo "zeroes $(cat /sys/block/vda/queue/write_zeroes_max_bytes) at a time"
        /job/linux-bench zero /dev/vda $((8 << 20)) $((8 << 20)) || exit 1
        /job/linux-bench punch /dev/vda $((16 << 20)) $((8 << 20)) || exit 1' -- "${disk_args[@]}" | tee "$dir/out"
    expect_text "$dir/out" 'zeroes 67108864 at a time'
    expect_zeroed "$dir/disk.raw" 8 24
}

test_linux_sees_how_the_disk_is_laid_out() {
    local disk_args
    make_blank "$dir/disk.raw" 64M
    raw_disk "$dir/disk.raw" ,physical_block_size=4096,min_io_size=8192,opt_io_size=65536 ''
    run_guest --disk none -c 'cd /sys/block/vda/queue
        echo "layout $(cat logical_block_size physical_block_size minimum_io_size optimal_io_size | tr "\n" " ")"' \
        -- "${disk_args[@]}" | tee "$dir/out"
    expect_text "$dir/out" 'layout 512 4096 8192 65536'
}

test_linux_turns_the_disks_cache_off_and_on() {
    run_guest --disk "$(ext4_disk)" -c '
        cd /sys/block/vda
        for mode in "write through" "write back" "write through"; do
            echo "$mode" >cache_type || exit 1
            echo "it is $(cat cache_type), $(cat queue/write_cache)"
            dd if=/dev/urandom of=/mnt/file bs=4k count=256 oflag=direct 2>/dev/null || exit 1
        done
        sha256sum /mnt/file' | tee "$dir/out"
    expect_text "$dir/out" 'it is write through, write through'
    expect_text "$dir/out" 'it is write back, write back'
    expect_clean "$(ext4_disk)"
    disk_file "$(ext4_disk)" file "$dir/file"
    expect_text "$dir/out" "$(sha256sum "$dir/file" | cut -d ' ' -f 1)"
}

# disk_with_queues CPUS OPTIONS QUEUES: Linux uses as many queues as that, from every CPU, and finds what it wrote.
disk_with_queues() {
    run_guest --cpus "$1" --timeout 300 --disk "$(ext4_disk)" --el2-append "sparkler.virtio=$2" -c '
        echo "there are $(ls /sys/block/vda/mq | wc -l) queues"
        for cpu in $(seq 0 $(($(nproc) - 1))); do
            taskset $((1 << cpu)) dd if=/dev/urandom of=/mnt/$cpu bs=16k count=64 oflag=direct 2>/dev/null &
        done
        wait
        sync
        echo 3 >/proc/sys/vm/drop_caches
        cd /mnt && sha256sum [0-9]' | tee "$dir/out"
    expect_text "$dir/out" "there are $3 queues"
    expect_clean "$(ext4_disk)"
    local cpu
    for cpu in $(seq 0 $(($1 - 1))); do
        disk_file "$(ext4_disk)" "$cpu" "$dir/$cpu"
        expect_equal "size" 1048576 "$(stat -c %s "$dir/$cpu")"
        expect_text "$dir/out" "$(sha256sum "$dir/$cpu" | cut -d ' ' -f 1)"
    done
}

test_every_cpu_of_linux_has_a_queue_of_the_disk() { disk_with_queues 4 split 4; }
test_packed_rings_of_several_queues() { disk_with_queues 3 packed 3; }
test_a_disk_has_as_many_queues_as_it_is_told() { disk_with_queues 3 queues=2 2; }
