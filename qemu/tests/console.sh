# shellcheck shell=bash
# virtio consoles: Linux's own console on one, and pipes between guests.

# console_vm NAME CORE PORTS: a Linux with the script's ramdisk and a console with these ports.
console_vm() {
    printf '%s { compatible = "sparkler,vm"; cpus = <1>; memory = <0x30000>; sparkler,cores = <%d>;
        kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "linux"; };
        ramdisk { compatible = "multiboot,ramdisk", "multiboot,module"; sparkler,file = "linux-ramdisk"; };
        console { compatible = "sparkler,virtio-console"; ports = %s; }; };\n' "$1" "$2" "$3"
}

test_a_virtio_console_is_the_console_of_linux() {
    vms_fragment "$(console_vm alice 0 '"terminal", "log"')"
    begin_session --vms "$dir/vms.dts" --append console=hvc0 --el2-append sparkler.console=plain
    # The shell is on the last console that is active.
    wait_for_text "$dir/out" 'alice:/#'
    say 'cat /sys/class/tty/console/active; tty\r' '^/dev/hvc0'
    say 'echo answer-$((6*7)); stty size\r' '^24 80'
    say 'cat /sys/class/virtio-ports/*/name; echo "to the log" >/dev/vport0p1; echo logged-$((6*7))\r' '^logged-42'
    tr -d '\r' <"$dir/out" | grep -Fx '[sparkler] alice: to the log'
    say '\035m' 'sparkler> $'
    say 'devices\r' '^alice +0 console +live '
    say 'device alice 0 size 132 43\r' 'sparkler> $'
    say '\0351' 'console: alice|alice:/#'
    say 'stty size\r' '^43 132'
    printf 'exit\r' >&3
    wait "$session"
}

test_two_guests_talk_through_a_pipe_between_their_consoles() {
    vms_fragment "$(console_vm alice 0 '"terminal", "pipe:link"') $(console_vm bob 1 '"terminal", "pipe:link"')"
    run_guest --vms "$dir/vms.dts" -c '
        port=$(grep -lx link /sys/class/virtio-ports/*/name); port=/dev/$(basename "${port%/name}")
        seq 1 20000 >/run/numbers
        size=$(stat -c %s /run/numbers)
        # One open for all: what comes while a port is closed is gone. Without anybody at the other end a read is empty.
        exec 3<>$port
        if [ "$VM_NAME" = alice ]; then
            cat /run/numbers >&3
            until read -r answer <&3; do sleep 0.1; done
            echo "bob says $answer"
        else
            : >/run/heard
            while heard=$(stat -c %s /run/heard); [ $heard -lt $size ]; do
                head -c $((size - heard)) <&3 >>/run/heard
                sleep 0.1
            done
            cmp /run/heard /run/numbers && echo "bob has heard all of it"
            echo thanks >&3
            sleep 3
        fi' 2>&1 | tee "$dir/out"
    expect_text "$dir/out" 'bob| bob has heard all of it'
    expect_text "$dir/out" 'alice| bob says thanks'
}
