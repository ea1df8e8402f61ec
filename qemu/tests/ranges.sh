# shellcheck shell=bash
# Guests that share a disk: partitions of it, and overlays over it.

# range_vm NAME CORE DISK: a node of a Linux VM with these properties of its disk.
range_vm() {
    printf '%s { sparkler,cores = <%s>; %s\n' "$1" "$2" "${linux_vm/0x40000/0x30000}"
    printf 'disk { compatible = "sparkler,virtio-block"; disk = <0>; sparkler,file = "disk.img"; %s }; };\n' "$3"
}

# Two partitions of 128 MiB of $dir/disk.img, one for alice and one for bob.
two_partitions() {
    make_partitioned "$dir/disk.img" 128 alice bob
    vms_fragment "$(range_vm alice 0 'backend = "physical"; partition = "alice";')
        $(range_vm bob 1 'backend = "physical"; partition = <2>;')"
}

# take_partition NUMBER NAME: copies it to $dir/NAME.ext4; it must be in order.
take_partition() {
    partition "$dir/disk.img" 128 "$1" "$dir/$2.ext4"
    expect_clean "$dir/$2.ext4"
}

test_two_guests_write_two_partitions_of_one_disk() {
    local name number=0
    two_partitions
    run_guest --vms "$dir/vms.dts" --timeout 300 -c '
        dd if=/dev/urandom of=/mnt/big bs=1M count=48 && sync
        echo 3 >/proc/sys/vm/drop_caches
        echo "$(sha256sum </mnt/big) by $VM_NAME"' | tee "$dir/out"
    for name in alice bob; do
        take_partition $((++number)) "$name"
        disk_file "$dir/$name.ext4" big "$dir/$name.big"
        expect_text "$dir/out" "$(sha256sum <"$dir/$name.big") by $name"
    done
    # The partition table is as it was.
    sfdisk -q --verify -- "$dir/disk.img"
    expect_equal 'partitions' 2 "$(sfdisk -d -- "$dir/disk.img" | grep -c 'name="\(alice\|bob\)"')"
}

test_a_guest_that_is_reset_in_the_midst_of_writes_leaves_the_other_partition_alone() {
    two_partitions
    run_guest --vms "$dir/vms.dts" --timeout 300 -c '
        if [ $VM_NAME = bob ]; then
            boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
            echo $boots >/mnt/boots
            sync
            if [ $boots -lt 4 ]; then
                dd if=/dev/zero of=/mnt/junk bs=64k count=1000 oflag=direct &
                sleep 1
                reboot -f
                sleep 1000
            fi
            rm /mnt/junk
            echo "bob has booted $boots times"
        else
            for round in 1 2 3 4 5 6; do
                dd if=/dev/urandom of=/mnt/file bs=64k count=200 oflag=direct 2>/dev/null || exit 1
                sum=$(sha256sum </mnt/file)
                echo 3 >/proc/sys/vm/drop_caches
                [ "$(sha256sum </mnt/file)" = "$sum" ] || exit 1
                sleep 2
            done
            echo "$sum is the last sum"
        fi' | tee "$dir/out"
    expect_text "$dir/out" 'bob has booted 4 times'
    take_partition 1 alice
    disk_file "$dir/alice.ext4" file "$dir/file"
    expect_text "$dir/out" "$(sha256sum <"$dir/file") is the last sum"
    take_partition 2 bob
}

test_a_partition_that_is_not_there_or_another_s_is_refused_and_the_others_run() {
    make_partitioned "$dir/disk.img" 64 alice bob
    # Its checksum is wrong: the copy at the end has to do.
    printf '\1' | dd of="$dir/disk.img" bs=1 seek=600 conv=notrunc status=none
    vms_fragment "$(range_vm alice 0 'backend = "physical"; partition = "alice";')
        $(range_vm carol 1 'backend = "physical"; partition = "carol";')
        $(range_vm thief 1 'backend = "physical"; range = <131072 4096>;')
        $(range_vm whole 1 'backend = "physical";')"
    expect_status 125 run_guest --vms "$dir/vms.dts" --timeout 200 -c 'mount | grep /mnt && echo "$VM_NAME runs"' |& tee "$dir/out"
    expect_text "$dir/out" 'alice runs'
    expect_text "$dir/out" 'disk 0: the partition table is its copy at the end: the checksum of its header is wrong'
    expect_text "$dir/out" '/chosen/carol/disk: disk 0: there is no such partition'
    expect_text "$dir/out" '/chosen/thief/disk: sectors of disk 0 that it wants are those of /chosen/alice/disk'
    expect_text "$dir/out" '/chosen/whole: disk 0 is that of /chosen/alice/disk'
}

test_four_guests_boot_from_one_image_and_each_has_its_own_changes() {
    local name vms='' core=0 before
    make_ext4 "$dir/disk.img" 64M
    head -c 5000000 /dev/urandom >"$dir/file"
    debugfs -w -R "write $dir/file file" -- "$dir/disk.img"
    before=$(sha256sum <"$dir/disk.img")
    for name in north south east west; do
        vms+=$(range_vm "$name" $((core++ % 2)) 'backend = "overlay"; memory = <0x4000>;')
    done
    vms_fragment "$vms"
    run_guest --vms "$dir/vms.dts" --timeout 300 -c '
        echo "$(sha256sum </mnt/file) as it was"
        dd if=/dev/urandom of=/mnt/own bs=64k count=60 2>/dev/null || exit 1
        dd if=/dev/urandom of=/mnt/file bs=1k seek=1000 count=1 conv=notrunc 2>/dev/null || exit 1
        sum=$(cat /mnt/own /mnt/file | sha256sum)
        umount /mnt && mount /dev/vda /mnt
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(cat /mnt/own /mnt/file | sha256sum)" = "$sum" ] && echo "$VM_NAME has its own"' | tee "$dir/out"
    expect_equal 'guests that read the image' 4 "$(grep -Fc "$(sha256sum <"$dir/file") as it was" "$dir/out")"
    for name in north south east west; do expect_text "$dir/out" "$name has its own"; done
    expect_equal 'the image' "$before" "$(sha256sum <"$dir/disk.img")"
}

test_a_full_overlay_is_an_error_of_the_disk_and_a_reset_keeps_or_drops_it() {
    make_ext4 "$dir/disk.img" 64M
    vms_fragment "$(range_vm alice 0 'backend = "overlay"; memory = <0x2000>; };
        second { compatible = "sparkler,virtio-block"; disk = <0>; backend = "overlay"; memory = <0x1000>; on-reset = "drop";')"
    run_guest --vms "$dir/vms.dts" --timeout 200 -c '
        mkdir /second && mount /dev/vdb /second
        if [ -e /mnt/kept ]; then
            [ ! -e /second/dropped ] && echo "one is kept, one is dropped"
            exit
        fi
        touch /mnt/kept /second/dropped && sync
        if dd if=/dev/zero of=/dev/vdb bs=64k seek=256 count=128 oflag=direct; then echo "there was room?"; fi
        dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct && echo "the other is well"
        reboot -f
        sleep 1000' |& tee "$dir/out"
    expect_text "$dir/out" 'I/O error'
    expect_text "$dir/out" 'is full: what would need more is not written'
    expect_text "$dir/out" 'the other is well'
    expect_text "$dir/out" 'one is kept, one is dropped'
}
