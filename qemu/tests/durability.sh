# shellcheck shell=bash
# What a guest has flushed outlives its own reset and the board's power.

# The guest's words: begin_fill SEED MIB FROM starts to fill that part of the disk and returns when a fifth of it is written;
# cut resets the guest there and then, with what is in flight.
durable_words='bench=/job/linux-bench
written() { awk "{ print int(\$7 / 2048) }" /sys/block/vda/stat; }
begin_fill() {
    before=$(written)
    $bench fill /dev/vda $1 $2 $3 &
    while [ $(($(written) - before)) -lt $(($2 / 5)) ]; do usleep 20000; done
}
cut() { echo "cut after $(($(written) - before)) MiB"; echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 1000; }
stage() { dd if=/dev/vda bs=1M skip=$(($1 - 1)) count=1 iflag=direct 2>/dev/null | head -c 1; }
set_stage() { echo $2 | dd of=/dev/vda bs=512 seek=$((($1 - 1) * 2048)) count=1 conv=sync,fsync 2>/dev/null; }
'

# fill_and_cut MIB: commands that fill half of a disk of so many MiB and check it; that flush the third quarter, and have the
# guest reset while the last is written; then check whatever was flushed. The last MiB says how far they have come.
fill_and_cut() {
    local half=$(($1 / 2)) quarter=$(($1 / 4))
    printf '%s' "$durable_words"
    printf 'if [ "$(stage %d)" != 2 ]; then
        $bench fill /dev/vda 11 %d || exit 1
        $bench check /dev/vda 11 %d || exit 1
        $bench fill /dev/vda 12 %d %d || exit 1
        set_stage %d 2
        begin_fill 13 %d %d
        cut
    fi
    $bench check /dev/vda 11 %d && $bench check /dev/vda 12 %d %d || exit 1
    if $bench check /dev/vda 13 %d %d >/dev/null; then echo "it was all written before the reset"; exit 1; fi
    echo "all that was flushed is there"' "$1" "$half" "$half" "$quarter" "$half" "$1" $((quarter - 1)) $((half + quarter)) \
        "$half" "$quarter" "$half" $((quarter - 1)) $((half + quarter))
}

# whole_disk_is_filled OPTIONS: with these options for what devices offer.
whole_disk_is_filled() {
    local disk_args
    build_linux_bench
    make_blank "$dir/disk.raw" 64M
    raw_disk "$dir/disk.raw" '' ,cache=writeback
    run_guest --net none --cpus 2 --timeout 400 --disk none --file "$linux_bench" --el2-append "sparkler.virtio=$1" \
        -c "$(fill_and_cut 64)" -- "${disk_args[@]}" | tee "$dir/out"
    expect_text "$dir/out" 'cut after '
    expect_text "$dir/out" 'all that was flushed is there'
}

# What a disk keeps is no matter of the interrupt controller; one of these on both boards will do.
runs_once a_disk_filled_at_random_by_a_packed_ring_keeps_what_was_flushed_across_a_reset \
    two_guests_fill_their_partitions_at_once_and_each_keeps_what_it_flushed \
    files_that_linux_has_synced_outlive_a_power_cut \
    files_that_linux_has_not_flushed_are_lost_in_a_power_cut \
    a_disk_that_stops_in_the_midst_of_a_workload_and_goes_on_has_all_of_it \
    a_shared_disk_that_stops_answering_fails_what_waited_too_long_and_nothing_else

test_a_disk_filled_at_random_keeps_what_was_flushed_across_a_reset() { whole_disk_is_filled split; }
test_a_disk_filled_at_random_by_a_packed_ring_keeps_what_was_flushed_across_a_reset() { whole_disk_is_filled packed; }

test_two_guests_fill_their_partitions_at_once_and_each_keeps_what_it_flushed() {
    local name
    build_linux_bench
    make_partitioned "$dir/disk.img" 32 alice bob
    # Guests that find a file system mount it.
    for name in 1 33; do dd if=/dev/zero of="$dir/disk.img" bs=1M seek=$name count=1 conv=notrunc status=none; done
    vms_fragment "$(range_vm alice 0 'backend = "physical"; partition = "alice";')
        $(range_vm bob 1 'backend = "physical"; partition = "bob";')"
    run_guest --vms "$dir/vms.dts" --timeout 400 --file "$linux_bench" -c "$(fill_and_cut 32)" | tee "$dir/out"
    for name in alice bob; do
        expect_text "$dir/out" "$name| cut after "
        expect_text "$dir/out" "$name| all that was flushed is there"
    done
    sfdisk -q --verify -- "$dir/disk.img"
}

# bytes NUMBER SIZE: big-endian, as text for printf %b.
bytes() {
    local digits i
    digits=$(printf "%0$((2 * $2))x" "$1")
    for ((i = 0; i < ${#digits}; i += 2)); do printf '\\x%s' "${digits:i:2}"; done
}

# make_qcow2 FILE BACKING MIB: an empty qcow2 over a raw image, in clusters of 4 KiB (version 2 of the format: header, L1
# table, refcount table, refcount blocks for 8 MiB each, L2 tables for 2 MiB each). QEMU holds the tables of what it has
# written in its own memory until a flush, as all tables are there from the beginning: to kill it loses what was not
# flushed, as to cut the power of a disk with a cache does.
make_qcow2() {
    local name=${2##*/} tables=$((($3 + 1) / 2)) blocks=$(($3 / 8 + 1)) i
    {
        printf '%b' "QFI\\xfb$(bytes 2 4)$(bytes 512 8)$(bytes ${#name} 4)$(bytes 12 4)$(bytes $(($3 * MIB)) 8)$(bytes 0 4)"
        printf '%b' "$(bytes "$tables" 4)$(bytes 4096 8)$(bytes 8192 8)$(bytes 1 4)$(bytes 0 4)$(bytes 0 8)"
        # The format of what is below; the end of such extensions.
        printf '%b' "$(bytes $((0xe2792aca)) 4)$(bytes 3 4)raw$(bytes 0 5)$(bytes 0 4)"
    } >"$1"
    printf '%s' "$name" | dd of="$1" bs=512 seek=1 conv=notrunc status=none
    truncate -s 4096 -- "$1"
    # Bit 63: nobody else has the table.
    for ((i = 0; i < tables; i++)); do printf '%b' "$(bytes $((1 << 63 | (3 + blocks + i) * 4096)) 8)"; done >>"$1"
    truncate -s 8192 -- "$1"
    for ((i = 0; i < blocks; i++)); do printf '%b' "$(bytes $(((3 + i) * 4096)) 8)"; done >>"$1"
    truncate -s 12288 -- "$1"
    for ((i = 0; i < 3 + blocks + tables; i++)); do printf '\0\1'; done >>"$1"
    truncate -s $(((3 + blocks + tables) * 4096)) -- "$1"
}

# commit_qcow2 FILE: what it holds is written to the image below it.
commit_qcow2() {
    printf 'commit all\nquit\n' |
        qemu-system-aarch64 -M none -nodefaults -display none -drive "if=none,format=qcow2,file=$(qemu_value "$1")" -monitor stdio
    rm -- "$1"
}

# Commands of a guest that has been through ROUND power cuts: all that was reported before is whole; then it writes and
# reports, until the power goes.
durable_files() { # durable_files ROUND
    printf 'cd /mnt && { [ ! -s /job/kept ] || sha256sum -s -c /job/kept; } || { echo "what was kept is lost"; sha256sum -c /job/kept | grep -v OK; exit 1; }
        echo "whole so far: $(wc -l </job/kept)"
        (while :; do dd if=/dev/urandom of=churn bs=64k count=32 conv=notrunc 2>/dev/null; done) &
        n=0
        while :; do
            file=%d.$((n++))
            dd if=/dev/urandom of=$file bs=3001 count=$((RANDOM %% 40 + 1)) conv=fsync 2>/dev/null || exit 1
            echo "kept $(sha256sum $file) whole"
        done' "$1"
}

# cut_power ROUND [COMMAND]: runs durable_files, after COMMAND, and kills QEMU at some point of it; $dir/kept grows by what
# was reported.
cut_power() {
    local round=$1 run i
    rm -f -- "$dir/pid"
    run_guest --net none --disk "$dir/disk.qcow2" --file "$dir/kept" -c "${2-} $(durable_files "$round")" \
        -- -pidfile "$dir/pid" >"$dir/out.$round" 2>&1 &
    run=$!
    # Not before there is something to lose; qemu/run gives up first.
    for ((i = 0; i < 3000; i++)); do
        if grep -qs '^kept .* whole$' "$dir/out.$round" || ! kill -0 "$run" 2>/dev/null; then break; fi
        sleep 0.1
    done
    sleep "$((RANDOM % 3)).$((RANDOM % 10))"
    if [[ -e $dir/pid ]]; then kill -9 "$(<"$dir/pid")"; fi
    wait "$run" || true
    expect_text "$dir/out.$round" "whole so far: $(wc -l <"$dir/kept")"
    # A line that is not whole was cut off.
    echo >>"$dir/out.$round"
    sed -n 's/^kept \([0-9a-f]\{64\}  [0-9.]*\) whole$/\1/p' "$dir/out.$round" >"$dir/reported"
    [[ -s $dir/reported ]] || { cat -- "$dir/out.$round" && return 1; }
    cat -- "$dir/reported" >>"$dir/kept"
    echo "round $round: $(wc -l <"$dir/reported") files were reported"
}

# take_files: the disk as the power cut has left it, its journal replayed, in $dir/replayed.ext4, and its files in $dir/files.
take_files() {
    commit_qcow2 "$dir/disk.qcow2" >"$dir/commit"
    cp --sparse=always -- "$dir/disk.ext4" "$dir/replayed.ext4"
    e2fsck -fy -E journal_only -- "$dir/replayed.ext4" >/dev/null || true
    rm -rf -- "$dir/files" && mkdir -- "$dir/files"
    debugfs -R "rdump / $dir/files" -- "$dir/replayed.ext4" >/dev/null 2>&1
}

# power_cuts COUNT: so many power cuts of one disk. After each the file system is in order once its journal is replayed, and
# every file ever reported is whole, both on the host and for the next boot of the guest.
power_cuts() {
    local count=$1 round image=$dir/disk.ext4
    make_ext4 "$image" 256M
    : >"$dir/kept"
    for ((round = 1; round <= count; round++)); do
        make_qcow2 "$dir/disk.qcow2" "$image" 256
        cut_power "$round"
        take_files
        e2fsck -fn -- "$dir/replayed.ext4"
        (cd -- "$dir/files" && sha256sum --quiet -c "$dir/kept")
    done
    run_guest --net none --disk "$image" --file "$dir/kept" -c 'cd /mnt && sha256sum -s -c /job/kept && echo "all are whole"' |
        tee "$dir/out"
    expect_text "$dir/out" 'all are whole'
    expect_clean "$image"
    echo "$count power cuts, $(wc -l <"$dir/kept") files"
}

# More of them, of a run that may take longer: SPARKLER_POWER_CUTS.
test_files_that_linux_has_synced_outlive_a_power_cut() { power_cuts "${SPARKLER_POWER_CUTS:-4}"; }

# Would it be seen if they did not? Of a Linux that is told that the disk has no cache, and sends no flush, no file is there.
test_files_that_linux_has_not_flushed_are_lost_in_a_power_cut() {
    local file
    make_ext4 "$dir/disk.ext4" 256M
    : >"$dir/kept"
    make_qcow2 "$dir/disk.qcow2" "$dir/disk.ext4" 256
    cut_power 1 'echo "write through" >/sys/block/vda/queue/write_cache || exit 1;'
    take_files
    while read -r _ file; do
        if [[ -e $dir/files/$file ]]; then echo "$file is there" && return 1; fi
    done <"$dir/kept"
}

# The guest writes file after file past its cache, again and again what does not succeed, while the disk stops and goes on.
test_a_disk_that_stops_in_the_midst_of_a_workload_and_goes_on_has_all_of_it() {
    local run
    make_blank "$dir/disk.raw" 64M
    raw_disk "$dir/disk.raw" '' ,cache=writeback
    mkfifo "$dir/monitor.in" "$dir/monitor.out"
    run_guest --net none --disk none --timeout 300 -c '
        dd if=/dev/urandom of=/data bs=1M count=32 2>/dev/null
        piece() {
            until dd if=$1 of=$2 bs=64k skip=$n seek=$n count=1 conv=notrunc,fsync $3 2>/dev/null; do
                failed=$((failed + 1))
                echo "failed: piece $n"
                sleep 1
            done
        }
        failed=0 n=0
        echo "the workload begins"
        while [ $n -lt 512 ]; do
            piece /data /dev/vda oflag=direct
            # Of ten pieces one is read again at once.
            if [ $((n % 10)) = 0 ]; then piece /dev/vda /back iflag=direct; fi
            n=$((n + 1))
            if [ $n = 100 ]; then echo "100 pieces"; fi
        done
        echo 3 >/proc/sys/vm/drop_caches
        [ "$(head -c 33554432 /dev/vda | sha256sum)" = "$(sha256sum </data)" ] || exit 1
        echo "$failed failures; $(sha256sum </data)"' \
        -- "${disk_args[@]}" -chardev "pipe,id=monitor,path=$(qemu_value "$dir/monitor")" -mon chardev=monitor >"$dir/out" 2>&1 &
    run=$!
    cat "$dir/monitor.out" >"$dir/monitor.log" &
    exec 4>"$dir/monitor.in"
    wait_for_text "$dir/out" '100 pieces'
    echo 'block_set_io_throttle disk0 1 0 0 0 0 0' >&4
    wait_for_text "$dir/out" 'failed: piece'
    echo 'block_set_io_throttle disk0 0 0 0 0 0 0' >&4
    wait "$run" || { cat -- "$dir/out" && return 1; }
    cat -- "$dir/out"
    expect_text "$dir/out" 'resetting the device'
    grep -Eq "^[1-9][0-9]* failures; $(head -c 33554432 "$dir/disk.raw" | sha256sum)" "$dir/out"
}

test_a_shared_disk_that_stops_answering_fails_what_waited_too_long_and_nothing_else() {
    local run
    two_partitions
    mkfifo "$dir/monitor.in" "$dir/monitor.out"
    # Alice writes until it fails, and then until it works again. The disk stops under her; what bob writes 5 s later has not
    # waited too long when it is reset for her sake.
    run_guest --vms "$dir/vms.dts" --timeout 300 -c '
        umount /mnt
        put() { dd if=/dev/urandom of=/dev/vda bs=64k count=16 seek=256 oflag=direct 2>/dev/null; }
        if [ $VM_NAME = alice ]; then
            echo "alice writes"
            while put; do :; done
            echo "alice lives without her disk"
            until put; do sleep 1; done
            echo "alice has her disk again"
        else
            put && echo "bob pauses"
            sleep 5
            put && echo "bob has noticed nothing"
        fi' \
        -- -chardev "pipe,id=monitor,path=$(qemu_value "$dir/monitor")" -mon chardev=monitor >"$dir/out" 2>&1 &
    run=$!
    cat "$dir/monitor.out" >"$dir/monitor.log" &
    exec 4>"$dir/monitor.in"
    wait_for_text "$dir/out" 'alice writes'
    wait_for_text "$dir/out" 'bob pauses'
    # A byte a second: for the guests' purposes, never.
    echo 'block_set_io_throttle disk0 1 0 0 0 0 0' >&4
    wait_for_text "$dir/out" 'alice lives without her disk'
    echo 'block_set_io_throttle disk0 0 0 0 0 0 0' >&4
    wait "$run" || { cat -- "$dir/out" && return 1; }
    expect_text "$dir/out" 'alice| alice has her disk again'
    expect_text "$dir/out" 'bob| bob has noticed nothing'
    expect_equal 'guests with an error' 0 "$(grep -c 'bob.*I/O error' "$dir/out")"
}
