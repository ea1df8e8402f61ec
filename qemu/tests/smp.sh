# shellcheck shell=bash
# Several vCPUs, several guests: Linux on all of the board's cores, and guests that must not disturb each other.

# On a board with four cores; the emulator is slow where it has fewer of its own.
run_smp() { run_guest --cpus 4 --timeout 300 --disk "$(ext4_disk)" "$@"; }

# Interrupts of the disk follow their affinity, and those of every CPU's timer come.
test_linux_uses_four_cpus() {
    run_smp -c '
        echo "there are $(nproc)"
        for round in 1 2 3 4 5; do
            for cpu in 1 2 3; do echo 0 >/sys/devices/system/cpu/cpu$cpu/online || exit 1; done
            left=$(nproc)
            for cpu in 3 1 2; do echo 1 >/sys/devices/system/cpu/cpu$cpu/online || exit 1; done
            echo "round $round: $left left, then $(nproc)"
        done
        irq=$(awk "/virtio0/ { print \$1 + 0 }" /proc/interrupts)
        count() { awk "/virtio0/ { print \$($1 + 2) }" /proc/interrupts; }
        for cpu in 2 3 1 0; do
            echo $((1 << cpu)) >/proc/irq/$irq/smp_affinity || exit 1
            before=$(count $cpu)
            dd if=/dev/vda of=/dev/null bs=4k count=100 skip=$((cpu * 100)) iflag=direct 2>/dev/null || exit 1
            taskset $((1 << cpu)) usleep 20000
            if [ $(($(count $cpu) - before)) -ge 10 ]; then echo "the disk interrupts CPU $cpu"; fi
        done' | tee "$dir/out"
    local number
    expect_text "$dir/out" 'there are 4'
    for number in 1 2 3 4 5; do expect_text "$dir/out" "round $number: 1 left, then 4"; done
    for number in 0 1 2 3; do expect_text "$dir/out" "the disk interrupts CPU $number"; done
}

# The disk counts the boots: the first ends by a reboot, the second by a panic.
test_all_cpus_come_back_after_a_reboot_and_a_panic() {
    run_smp --append panic=1 -c '
        boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
        echo $boots >/mnt/boots
        sync
        echo "boot $boots has $(nproc) CPUs"
        case $boots in
        1) reboot -f ;;
        2) echo c >/proc/sysrq-trigger ;;
        *) exit ;;
        esac
        sleep 1000' | tee "$dir/out"
    for boot in 1 2 3; do expect_text "$dir/out" "boot $boot has 4 CPUs"; done
    expect_text "$dir/out" 'Kernel panic'
}

test_a_watchdog_that_nobody_feeds_resets_linux() {
    # The driver says why the machine was reset last.
    run_guest --disk none --timeout 300 --cpus 2 -c '
        modprobe sbsa_gwdt timeout=4
        if dmesg | grep "reset by WDT"; then exit 5; fi
        watchdog -T 4 -t 1 /dev/watchdog
        sleep 6
        echo "fed, it is patient"
        killall -STOP watchdog
        sleep 1000' >"$dir/out" || status=$?
    cat "$dir/out"
    expect_equal status 5 "${status-0}"
    expect_text "$dir/out" 'fed, it is patient'
    expect_text "$dir/out" 'its watchdog has expired'
}

# smp_vm NAME CPUS CORES DISK [MORE]: a node of a Linux VM with the disk of that number, $dir/NAME.ext4.
smp_vm() {
    [[ -e $dir/$1.ext4 ]] || make_ext4 "$dir/$1.ext4" 64M
    printf '%s { compatible = "sparkler,vm"; cpus = <%s>; memory = <0x30000>; sparkler,cores = <%s>; %s\n' "$1" "$2" "$3" "${5-}"
    printf 'kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "linux"; };\n'
    printf 'ramdisk { compatible = "multiboot,ramdisk", "multiboot,module"; sparkler,file = "linux-ramdisk"; };\n'
    printf 'disk { compatible = "sparkler,virtio-block"; backend = "physical"; disk = <%s>; sparkler,file = "%s.ext4"; }; };\n' "$4" "$1"
}

# tiny_vm NAME CPUS CORES MORE WORD...: a node of a VM with a program of these instructions.
tiny_vm() {
    local word
    for word in "${@:5}"; do
        # shellcheck disable=SC2059 # the escapes are the format
        printf "\\x${word:6:2}\\x${word:4:2}\\x${word:2:2}\\x${word:0:2}"
    done >"$dir/$1.bin"
    printf '%s { compatible = "sparkler,vm"; cpus = <%s>; memory = <0x1000>; sparkler,cores = <%s>; %s\n' "${@:1:4}"
    printf 'kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "%s.bin"; }; };\n' "$1"
}

# msr daifset, #15; b .
readonly SPIN=(d5034fdf 14000000)
# A while: movz x0, #0x400, lsl #16; subs x0, x0, #1; b.ne .-4
readonly DELAY=(d2a08000 f1000400 54ffffe1)
# CPU_OFF: movz w0, #2; movk w0, #0x8400, lsl #16; hvc #0
readonly CPU_OFF=(52800040 72b08000 d4000002)
# SYSTEM_OFF and SYSTEM_RESET, as above with 8 and 9.
readonly SYSTEM_OFF=(52800100 72b08000 d4000002)
readonly SYSTEM_RESET=(52800120 72b08000 d4000002)
# CPU_ON of CPUs 1 to 3: adr x20, .+68 (what follows DELAY and SYSTEM_RESET); mov x21, #1; movz w0, #3;
# movk w0, #0xc400, lsl #16; mov x1, x21; mov x2, x20; mov x3, x21; hvc #0; add x21, x21, #1; cmp x21, #4; b.ne .-32
readonly CPUS_ON=(10000234 d2800035 52800060 72b88000 aa1503e1 aa1403e2 aa1503e3 d4000002 910006b5 f10012bf 54ffff01)

run_smp_vms() { run_guest --vms "$dir/vms.dts" --timeout 300 "$@"; }

# run_smp_vms_until COUNT TEXT COMMANDS: where a VM never ends, until COUNT lines of the console have TEXT, for at most
# five minutes.
run_smp_vms_until() {
    local i
    : >"$dir/out"
    # shellcheck disable=SC2086 # several words
    SPARKLER_IMAGE=$system_image "$root/qemu/run" --gic "$system_gic" ${SPARKLER_RUN_ARGS-} --vms "$dir/vms.dts" --timeout 300 -c "$3" >"$dir/out" 2>&1 &
    local session=$!
    at_exit+=("kill $session 2>/dev/null || true")
    for ((i = 0; i < 3000; i++)); do
        if (($(grep -Fc -- "$2" "$dir/out") >= $1)) || ! kill -0 "$session" 2>/dev/null; then break; fi
        sleep 0.1
    done
    kill "$session" 2>/dev/null || true
    wait "$session" || true
    cat "$dir/out"
    (($(grep -Fc -- "$2" "$dir/out") >= $1))
}

test_four_vcpus_take_turns_on_one_core_and_on_two() {
    local cores
    for cores in 0 '0 1'; do
        vms_fragment "$(smp_vm four 4 "$cores" 0)"
        run_smp_vms -c '
            for cpu in 0 1 2 3; do
                taskset $((1 << cpu)) sh -c "i=0; while [ \$i -lt 3000 ]; do i=\$((i + 1)); done; echo \$i" >/run/$cpu &
            done
            wait
            cat /run/[0-3]
            for cpu in 1 2 3; do echo 0 >/sys/devices/system/cpu/cpu$cpu/online || exit 1; done
            for cpu in 1 2 3; do echo 1 >/sys/devices/system/cpu/cpu$cpu/online || exit 1; done
            echo "there are $(nproc)"' | tee "$dir/out"
        expect_equal 'CPUs that did their work' 4 "$(grep -c '| 3000$' "$dir/out")"
        expect_text "$dir/out" 'there are 4'
    done
}

test_a_guest_that_masks_interrupts_and_spins_does_not_stop_its_neighbour() {
    vms_fragment "$(smp_vm worker 1 0 0) $(tiny_vm spinner 1 0 '' "${SPIN[@]}")"
    run_smp_vms_until 1 'has worked' '
        before=$(cut -d " " -f 1 /proc/uptime)
        i=0
        while [ $i -lt 20000 ]; do i=$((i + 1)); done
        dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct || exit 1
        echo "$VM_NAME has worked from $before to $(cut -d " " -f 1 /proc/uptime)"'
}

test_two_guests_read_their_disks_right_while_others_crash_and_reset_without_end() {
    local name
    vms_fragment "$(smp_vm alice 1 0 0) $(smp_vm bob 1 1 1)
        $(tiny_vm crasher 1 0 'sparkler,on-crash = "restart";' "${DELAY[@]}" "${CPU_OFF[@]}")
        $(tiny_vm resetter 4 '1 0 2' '' "${CPUS_ON[@]}" "${DELAY[@]}" "${SYSTEM_RESET[@]}" "${SPIN[@]}")"
    for name in alice bob; do
        head -c 8000000 /dev/urandom >"$dir/$name.file"
        debugfs -w -R "write $dir/$name.file file" -- "$dir/$name.ext4"
    done
    run_smp_vms_until 6 'is the sum' '
        for round in 1 2 3; do
            echo 3 >/proc/sys/vm/drop_caches
            echo "$(sha256sum </mnt/file) is the sum"
        done'
    for name in alice bob; do
        expect_equal "sums of $name" 3 "$(grep -Fc "$(sha256sum <"$dir/$name.file" | cut -d ' ' -f 1)" "$dir/out")"
    done
    (($(grep -c 'crasher: is started again' "$dir/out") >= 2))
    (($(grep -c 'resetter: start' "$dir/out") >= 5))
}

test_a_guest_that_has_panicked_stays_and_its_neighbour_goes_on() {
    vms_fragment "$(smp_vm alice 1 0 0) $(smp_vm bob 2 '1 0' 1)"
    run_smp_vms_until 1 'has worked' '
        if [ $VM_NAME = bob ]; then echo c >/proc/sysrq-trigger; fi
        sleep 5
        dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct && echo "$VM_NAME has worked"'
    expect_text "$dir/out" 'Kernel panic'
}

test_a_linux_that_panics_again_and_again_is_restarted_alone() {
    vms_fragment "$(smp_vm alice 1 0 0) $(smp_vm bob 2 '0 1' 1)"
    run_smp_vms --append panic=1 -c '
        if [ $VM_NAME = bob ]; then
            boots=$(($(cat /mnt/boots 2>/dev/null || echo 0) + 1))
            echo $boots >/mnt/boots
            sync
            if [ $boots -lt 3 ]; then echo c >/proc/sysrq-trigger; fi
            echo "this is boot $boots"
        else
            for i in $(seq 10); do sleep 1; dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null || exit 1; done
            echo "alice has worked"
        fi' | tee "$dir/out"
    expect_text "$dir/out" 'this is boot 3'
    expect_text "$dir/out" 'alice has worked'
}
