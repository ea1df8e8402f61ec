# shellcheck shell=bash
# Sockets between Linux guests that need no network, by the virtio socket device.

# socket_vms NAME=PROPERTIES...: $dir/vms.dts with these VMs, each a Linux with a socket device whose properties these are.
socket_vms() {
    local vm core=0
    {
        printf '/dts-v1/;\n/ { chosen {\n'
        for vm in "$@"; do
            printf '%s { compatible = "sparkler,vm"; cpus = <1>; memory = <0x40000>; sparkler,cores = <%d>;\n' "${vm%%=*}" "$core"
            printf 'kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "linux"; };\n'
            printf 'ramdisk { compatible = "multiboot,ramdisk", "multiboot,module"; sparkler,file = "linux-ramdisk"; };\n'
            printf 'sockets { compatible = "sparkler,virtio-vsock"; %s };\n};\n' "${vm#*=}"
            core=$((core + 1))
        done
        printf '}; };\n'
    } >"$dir/vms.dts"
}

# What guests have in common: try COMMAND until it works, as the other may not be there yet.
socket_words='bench=/job/linux-bench
try() { for n in $(seq 60); do if "$@" 2>/dev/null >/run/try; then cat /run/try; return; fi; sleep 1; done; cat /run/try; return 1; }
set -e
test -e /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio0
'

test_streams_and_messages_between_guests_arrive_whole() {
    build_linux_bench
    socket_vms 'alice=guest-cid = <3>; peers = <4>;' 'bob=guest-cid = <4>; peers = <3>;'
    run_guest --vms "$dir/vms.dts" --timeout 400 --file "$linux_bench" -c "$socket_words"'
        case $VM_NAME in
        alice)
            $bench vsock-take 70
            $bench vsock-take-messages 71
            # Both at once, each way; what they say is not to meet in a line.
            $bench vsock-take 72 >/run/taken &
            try $bench vsock-send 4 73 32
            wait
            cat /run/taken
            sleep 5
            ;;
        bob)
            try $bench vsock-send 3 70 64
            try $bench vsock-send-messages 3 71 32
            $bench vsock-take 73 >/run/taken &
            try $bench vsock-send 3 72 32
            wait
            cat /run/taken
            ;;
        esac' | tee "$dir/out"
    local size sums
    for size in $((64 << 20)) $((32 << 20)); do
        grep -q "| vsock: $size bytes, " "$dir/out"
    done
    expect_equal 'sums' 8 "$(grep -c '| vsock: .* sum ' "$dir/out")"
    # What each said is what the other said.
    sums=$(grep -Eo '[0-9]+ bytes, .* sum .*' "$dir/out" | tr -d '\r' | sort | uniq -c | awk '{ print $1 % 2 }' | sort -u)
    expect_equal 'each sum twice, or four times' 0 "$sums"
}

test_who_is_no_peer_is_not_reached_and_who_is_turned_off_is_missed_at_once() {
    build_linux_bench
    socket_vms 'alice=guest-cid = <3>; peers = <4 5>;' 'bob=guest-cid = <4>; peers = <3>;' 'carol=guest-cid = <5>;'
    run_guest --vms "$dir/vms.dts" --timeout 300 --file "$linux_bench" -c "$socket_words"'
        case $VM_NAME in
        alice)
            # ECONNRESET: carol has alice not for a peer; nobody listens; nobody has this CID; the monitor is not for all.
            $bench vsock-wait 5 70 && exit 1
            $bench vsock-wait 9 70 && exit 1
            $bench vsock-wait 2 1024 && exit 1
            try $bench vsock-wait 4 70
            ;;
        bob)
            $bench vsock-echo 70 &
            sleep 20
            poweroff -f
            ;;
        carol)
            $bench vsock-echo 70 &
            sleep 30
            ;;
        esac' | tee "$dir/out" || true
    expect_equal 'refused' 3 "$(grep -c 'alice| linux-bench: vsock-wait: error 104' "$dir/out")"
    # Bob's echo never ends it.
    expect_text "$dir/out" 'alice| vsock: ended with'
}

test_a_guest_that_is_the_operator_gives_commands_by_a_socket() {
    build_linux_bench
    socket_vms 'alice=guest-cid = <3>; operator;' 'bob=guest-cid = <4>;'
    run_guest --vms "$dir/vms.dts" --timeout 200 --file "$linux_bench" -c "$socket_words"'
        case $VM_NAME in
        alice)
            $bench monitor vms
            # As often as one likes, and two at once.
            for n in $(seq 50); do $bench monitor memory >/run/memory; done
            cat /run/memory
            $bench monitor stats >/run/stats & $bench monitor devices; wait; cat /run/stats
            $bench monitor nonsense
            $bench monitor vm bob stop
            until $bench monitor vms | grep -q "^bob *off"; do sleep 1; done
            echo "bob is off"
            ;;
        bob)
            $bench monitor vms && exit 1
            echo "bob may not"
            sleep 1000
            ;;
        esac' | tee "$dir/out" || true
    grep -Eq '^alice\| alice +running +1 +1 +262144 ' "$dir/out"
    grep -Eq '^alice\| guests +524288' "$dir/out"
    grep -Eq '^alice\| alice +0 socket +live ' "$dir/out"
    grep -Eq '^alice\| bob vcpu0: call=' "$dir/out"
    expect_text "$dir/out" 'alice| error: no command "nonsense"'
    expect_text "$dir/out" 'bob| bob may not'
    expect_text "$dir/out" 'alice| bob is off'
}
