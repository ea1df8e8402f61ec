# shellcheck shell=bash
# Several guests on one console, and the monitor that is in charge of them.

# A builtin guest that runs for as long as it is told, without a download; $1: more properties.
builtin_vm='compatible = "sparkler,vm"; cpus = <1>; memory = <0x10000>;
    kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "builtin"; };'

test_lines_of_several_linux_guests_are_told_apart_and_the_worst_status_is_the_runs() {
    expect_status 3 run_guest --vms two-linux -c 'echo "I am $VM_NAME"; test $VM_NAME = alice || exit 3' | tee "$dir/out"
    for name in alice bob; do
        expect_equal "line of $name" 1 "$(grep -Fxc "$name| I am $name" "$dir/out")"
    done
    # Nothing but guests' lines and the hypervisor's.
    ! grep -Ev '^(alice\| |bob\| |\[sparkler\] )' "$dir/out"
    expect_status 0 run_guest --vms two-linux -c true
}

test_a_guest_may_give_commands_to_the_monitor_only_if_it_is_an_operator() {
    vms_fragment "boss { sparkler,cores = <0>; sparkler,operator; $builtin_vm };
        other { sparkler,cores = <1>; $builtin_vm };"
    run_guest --vms "$dir/vms.dts" | tee "$dir/out"
    grep -Eq '^boss\| monitor: an operator is told of the VMs +\.\.\. ok$' "$dir/out"
    grep -Eq '^other\| monitor: who is no operator is denied +\.\.\. ok$' "$dir/out"
}

# Start qemu/run with these arguments on a terminal: what is said to it goes to file descriptor 3, what it says is in $dir/out.
begin_session() {
    mkfifo "$dir/in"
    : >"$dir/out"
    local command
    command=$(printf '%q ' env "SPARKLER_IMAGE=$system_image" "$root/qemu/run" --gic "$system_gic" --timeout 110 "$@")
    script -qec "$command" /dev/null <"$dir/in" >"$dir/out" 2>&1 &
    session=$!
    at_exit+=("kill $session 2>/dev/null || true")
    exec 3>"$dir/in"
}

# say TEXT WANTED: types TEXT, and waits until a later line has WANTED.
say() {
    local from i
    from=$(stat -c %s "$dir/out")
    printf "$1" >&3
    for ((i = 0; i < 300; i++)); do
        if tail -c +$((from + 1)) "$dir/out" | tr -d '\r' | grep -E -- "$2" >/dev/null; then return; fi
        sleep 0.1
    done
    tail -c +$((from + 1)) "$dir/out"
    echo "\"$2\" never came after \"$1\""
    return 1
}

test_the_monitor_answers_at_the_console_and_resets_one_guest_while_the_other_goes_on() {
    local before i
    begin_session --vms two-linux --el2-append sparkler.console=plain
    wait_for_text "$dir/out" 'alice| alice:/#'
    wait_for_text "$dir/out" 'bob| bob:/#'
    # Alice counts; bob is asked something, raw.
    say '\0351' 'console: alice'
    say 'i=0; while sleep 0.2; do i=$((i+1)); echo count=$i; done &\r' 'count=1'
    say '\0352' 'console: bob'
    say 'echo bob-$((6*7))\r' '^bob-42'
    say '\035?' 'm    monitor'
    say '\035m' 'sparkler> $'
    say 'help\r' '^quit  '
    say 'vms\r' '^alice +running +1 +1 +262144 +0 0$'
    say 'vms\r' '^bob +running +1 +1 +262144 +0 1$'
    say 'devices\r' '^bob +0 block +live '
    say 'stats bob\r' '^bob vcpu0: call=[0-9]+ .* total=[0-9]+$'
    say 'stats\r' '^alice block0: request=[0-9]+ error=0 '
    say 'cores\r' '^ +1 0x00000001 online +1 +[0-9]+ bob\.0$'
    say 'memory\r' '^guests +524288$'
    say 'log\r' '^\[sparkler\] bob: start at tick'
    say 'bogus\r' '^error: no command "bogus"'
    say 'vm carol reset\r' '^error: no VM "carol"$'
    say 'vm bob resume\r' '^error: bob: it is running$'
    # Figures move on.
    before=$(tail -n 1 <(tr -d '\r' <"$dir/out" | grep -o 'alice vcpu0: .* total=[0-9]*'))
    say 'stats alice\r' '^alice vcpu0: '
    [[ $(tail -n 1 <(tr -d '\r' <"$dir/out" | grep -o 'alice vcpu0: .* total=[0-9]*')) != "$before" ]]
    say 'vm bob pause\r' 'sparkler> $'
    say 'vms\r' '^bob +paused '
    say 'vm bob resume\r' 'sparkler> $'
    say 'vms\r' '^bob +running '
    say 'vm bob reset\r' 'bob: start at tick'
    say 'vms\r' '^bob +running +1 +1 +262144 +1 1$'
    say 'attach bob\r' 'Run /init'
    # What he said before the reset is shown again, too: a prompt is new if it comes after that.
    for ((i = 0; i < 300; i++)); do
        if tac "$dir/out" | sed '/Run .init/q' | grep -F 'bob:/#' >/dev/null; then break; fi
        sleep 0.1
    done
    # The shell asks where the cursor is, and drops what is typed before it has given up on an answer: how long that
    # takes depends on what else the machine does.
    for ((i = 0; i < 10; i++)); do
        sleep 2
        printf 'echo again-$((7*7))\r' >&3
        if tac "$dir/out" | sed '/Run .init/q' | tr -d '\r' | grep -E '^again-49' >/dev/null; then break; fi
    done
    say 'echo again-$((8*8))\r' '^again-64'
    # Alice has counted on, without a gap: all she said in the view of all is in order.
    say '\0351' 'count=[0-9]+'
    say 'kill %%1; echo done-$((i+1))\r' 'done-1'
    say 'vm; cat /proc/uptime\r' '^[0-9]+\.[0-9]+ '
    (($(tr -d '\r' <"$dir/out" | grep -Eo '^[0-9]+\.[0-9]+ ' | tail -n 1 | cut -d . -f 1) >= 5))
    say '\035m' 'sparkler> $'
    say 'vm bob stop\r' 'bob: off at tick'
    say 'vms\r' '^bob +off '
    printf 'vm alice stop\r' >&3
    wait "$session"
}

# Bob computes, and would say after two or three seconds that a CPU is stuck. His time has stood still with him.
test_linux_does_not_notice_that_it_was_paused() {
    begin_session --vms two-linux --el2-append sparkler.console=plain
    wait_for_text "$dir/out" 'bob| bob:/#'
    say '\0352' 'console: bob'
    say 'echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout && echo stall-$((6*7))\r' '^stall-42'
    # Not every kernel has a detector of soft lockups.
    say 'echo 1 >/proc/sys/kernel/watchdog_thresh; while :; do :; done & echo busy-$((6*7))\r' '^busy-42'
    say 'dmesg -c >/run/before; echo "up $(cut -d . -f 1 /proc/uptime) then"\r' '^up [0-9]+ then'
    say '\035m' 'sparkler> $'
    say 'vm bob pause\r' 'sparkler> $'
    say 'vms\r' '^bob +paused '
    sleep 15
    say 'vm bob resume\r' 'sparkler> $'
    say '\0352' 'console: bob'
    say 'echo "up $(cut -d . -f 1 /proc/uptime) now"\r' '^up [0-9]+ now'
    # Whoever is late says so by now.
    sleep 4
    say 'echo "said: $(dmesg | wc -l) lines"; dmesg; echo all-$((6*7))\r' '^all-42'
    tr -d '\r' <"$dir/out" | grep -E '^said: 0 lines'
    local then now
    then=$(tr -d '\r' <"$dir/out" | sed -En 's/^up ([0-9]+) then.*/\1/p' | tail -n 1)
    now=$(tr -d '\r' <"$dir/out" | sed -En 's/^up ([0-9]+) now.*/\1/p' | tail -n 1)
    echo "up for $then s before the pause, for $now s after it"
    ((now >= then && now - then < 12))
    say '\035m' 'sparkler> $'
    say 'vm bob stop\r' 'bob: off at tick'
    printf 'vm alice stop\r' >&3
    wait "$session"
}

test_a_guest_that_spins_with_interrupts_masked_does_not_keep_the_monitor_away() {
    local spinner neighbour
    spinner=$(tiny_vm spinner 1 0 '' "${SPIN[@]}")
    # The core of the first is the console's.
    for neighbour in '' "$(tiny_vm neighbour 1 0 '' "${SPIN[@]}")"; do
        vms_fragment "$spinner $neighbour"
        rm -f "$dir/in"
        begin_session --vms "$dir/vms.dts" --el2-append sparkler.console=plain
        wait_for_text "$dir/out" 'spinner: start at tick'
        say '\035m' 'sparkler> $'
        say 'vms\r' '^spinner +running '
        say 'vm spinner reset\r' 'spinner: start at tick'
        say 'vms\r' '^spinner +running +1 +1 +4096 +1 0'
        if [[ -n $neighbour ]]; then say 'vm neighbour stop\r' 'neighbour: off at tick'; fi
        printf 'vm spinner stop\r' >&3
        wait "$session"
    done
}

test_linux_marks_its_boot_and_the_monitor_tells_when() {
    begin_session --vms two-linux --el2-append sparkler.console=plain
    wait_for_text "$dir/out" 'alice| alice:/#'
    say '\0351' 'console: alice'
    say 'ls /proc/device-tree | grep boot; devmem 0x090d0000 8 123; echo up-for-$(($(devmem 0x090d0000) / 1000000))s\r' '^up-for-[0-9]+s'
    say '\035m' 'sparkler> $'
    say 'stats alice\r' '^alice boot: start=[0-9]+,[0-9]+us first_mmio=[0-9]+,[0-9]+us driver_ok0=[0-9]+,[0-9]+us driver_ok1=.* mark123=[0-9]+,[0-9]+us lost_mark=0$'
    tr -d '\r' <"$dir/out" | grep -Fx 'boot-timer@90d0000'
    printf 'vm bob stop\r' >&3
    printf 'vm alice stop\r' >&3
    wait "$session"
}
