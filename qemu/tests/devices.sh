# shellcheck shell=bash
# Devices that are changed while Linux uses them: by the monitor, and by the board.

runs_once

# changed_vm DEVICES: Alice, with these nodes of devices, on a terminal, her shell ready; more arguments are for qemu/run.
changed_vm() {
    local i
    vms_fragment "alice { $linux_vm $1 };"
    shift
    begin_session --vms "$dir/vms.dts" --el2-append sparkler.console=plain "$@"
    wait_for_text "$dir/out" 'alice:/#'
    # The shell asks where the cursor is, and drops what is typed before it has given up on an answer.
    for ((i = 0; i < 20; i++)); do
        printf 'echo ready-$((6*7))\r' >&3
        sleep 2
        if tr -d '\r' <"$dir/out" | grep -E '^ready-42' >/dev/null; then break; fi
    done
    say 'echo again-$((7*7))\r' '^again-49'
}

# in_monitor COMMAND WANTED: a command, whose answer must have a line WANTED, and back to Alice.
in_monitor() {
    say '\035m' 'sparkler> $'
    say "$1\r" "$2"
    say '\0351' 'console: alice'
}

# sees FILE VALUE: waits until Linux has that in a file of its /sys. What was said before is shown again, too.
looks=0
sees() {
    looks=$((looks + 1))
    say "until [ \$(cat $1) = $2 ]; do sleep 0.1; done; echo \"$2 is\" seen-$looks\r" "^$2 is seen-$looks"
}

end_session() {
    say '\035m' 'sparkler> $'
    printf 'vm alice stop\r' >&3
    wait "$session"
}

# What the script of the next test has Linux do: reads of 64 KiB, and how many hundredths of a second, of its own time, they took.
readonly TIMED_READS='t() { read a b </proc/uptime; echo ${a%.*}${a#*.}; }
    r() { a=$(t); dd if=/dev/vda of=/dev/null bs=64k count=$1 iflag=direct 2>/run/dd; b=$(t); echo "$1 took $((b-a)) cs"; }'

# reads N LEAST MOST: N reads take so many hundredths of a second.
reads() {
    local time
    say "r $1\r" "^$1 took [0-9]+ cs"
    time=$(tr -d '\r' <"$dir/out" | sed -En "s/^$1 took ([0-9]+) cs.*/\1/p" | tail -n 1)
    if ((time < $2 || time > $3)); then
        echo "$1 reads took $time cs, not $2 to $3"
        return 1
    fi
}

# In instructions, so that it does not matter what else the machine does. The first two reads do not wait: one is the
# burst, one is owed for.
test_a_disk_s_limit_of_its_node_holds_and_the_monitor_s_takes_its_place() {
    local line
    changed_vm 'disk { compatible = "sparkler,virtio-block"; backend = "null"; limit-in-bytes = <1048576 65536>; };' --icount
    while IFS= read -r line; do printf '%s\r' "$line" >&3; done <<<"$TIMED_READS"
    reads 98 594 640
    in_monitor 'stats alice' '^alice block0: .* in_limit=1048576/65536,- '
    in_monitor 'device alice 0 limit in 4194304/65536 -' 'sparkler> $'
    reads 194 297 330
    in_monitor 'device alice 0 limit in - 20/1' 'sparkler> $'
    reads 62 297 330
    in_monitor 'device alice 0 limit in - -' 'sparkler> $'
    reads 400 0 150
    end_session
}

test_a_link_and_a_capacity_that_the_monitor_changes_are_seen_by_linux() {
    changed_vm 'disk { compatible = "sparkler,virtio-block"; backend = "null"; size = <8192>; capacity = <2048>; };
        net { compatible = "sparkler,virtio-net"; backend = "switch"; };' --net none
    sees /sys/class/net/eth0/carrier 1
    in_monitor 'device alice 1 link down' 'sparkler> $'
    sees /sys/class/net/eth0/carrier 0
    in_monitor 'device alice 1 link up' 'sparkler> $'
    sees /sys/class/net/eth0/carrier 1
    sees /sys/block/vda/size 2048
    in_monitor 'device alice 0 capacity 1024' '^error: alice: out of range'
    in_monitor 'device alice 0 capacity 16385' '^error: alice: out of range'
    in_monitor 'device alice 0 capacity 16384' 'sparkler> $'
    sees /sys/block/vda/size 16384
    say 'dd if=/dev/vda of=/dev/null bs=512 skip=16383\r' '^1\+0 records in'
    in_monitor 'device alice 0 eject' '^error: alice: it has no such thing'
    end_session
}

test_a_disk_that_the_board_makes_larger_grows_and_a_part_of_it_does_not() {
    local port=$((20000 + RANDOM % 20000))
    make_blank "$dir/one.img" 8M
    make_blank "$dir/two.img" 8M
    changed_vm 'whole { compatible = "sparkler,virtio-block"; backend = "physical"; disk = <0>; sparkler,file = "one.img"; };
        part { compatible = "sparkler,virtio-block"; backend = "physical"; disk = <1>; range = <0 2048>; sparkler,file = "two.img"; };' \
        -- -monitor "tcp:127.0.0.1:$port,server,nowait"
    exec 4<>"/dev/tcp/127.0.0.1/$port"
    sees /sys/block/vda/size 16384
    sees /sys/block/vdb/size 2048
    printf 'block_resize disk1 12M\nblock_resize disk0 12M\n' >&4
    sees /sys/block/vda/size 24576
    say 'echo "here" | dd of=/dev/vda bs=512 seek=24575 conv=sync; sync; echo wrote-$((6*7))\r' '^wrote-42'
    sees /sys/block/vdb/size 2048
    end_session
    expect_equal 'the last sector' here "$(tail -c 512 "$dir/one.img" | tr -d '\0')"
}

test_a_medium_is_ejected_and_another_inserted_while_linux_runs() {
    make_blank "$dir/disk.img" 8M
    printf first | dd of="$dir/disk.img" bs=512 seek=0 conv=notrunc status=none
    printf other | dd of="$dir/disk.img" bs=512 seek=4096 conv=notrunc status=none
    changed_vm 'drive { compatible = "sparkler,virtio-block"; removable; backend = "physical"; disk = <0>; range = <0 4096>;
            sparkler,file = "disk.img"; };
        other { compatible = "sparkler,medium"; backend = "physical"; disk = <0>; range = <4096 8192>; };'
    sees /sys/block/vda/size 4096
    say 'echo "it is $(head -c 5 /dev/vda)"\r' '^it is first'
    in_monitor 'device alice 0 insert 1' '^error: alice: eject first'
    in_monitor 'device alice 0 eject' 'sparkler> $'
    sees /sys/block/vda/size 0
    in_monitor 'device alice 0 insert 2' '^error: alice: it has no such thing'
    in_monitor 'device alice 0 insert 1' 'sparkler> $'
    sees /sys/block/vda/size 8192
    say 'blockdev --flushbufs /dev/vda; echo "it is $(head -c 5 /dev/vda)"\r' '^it is other'
    say 'printf mine | dd of=/dev/vda bs=512 seek=8191 conv=sync; sync; echo wrote-$((6*7))\r' '^wrote-42'
    end_session
    expect_equal 'the other medium' mine "$(dd if="$dir/disk.img" bs=512 skip=12287 count=1 status=none | tr -d '\0')"
    expect_equal 'the first' first "$(dd if="$dir/disk.img" bs=512 count=1 status=none | tr -d '\0')"
}
