# shellcheck shell=bash
# Linux as a guest: it boots, and says what it should.

test_linux_boots_and_runs_commands() {
    run_guest -c 'uname -srm; cat /proc/interrupts; dd if=/dev/vda of=/dev/null bs=1M count=16' >"$dir/out"
    cat "$dir/out"
    grep -Eq '^Linux 6\.1\.0-[0-9]+-arm64 aarch64$' "$dir/out"
    expect_text "$dir/out" '16+0 records in'
    expect_text "$dir/out" virtio0
    expect_text "$dir/out" arch_timer
}

test_the_commands_status_is_passed_on() {
    expect_status 0 run_guest -c true
    expect_status 7 run_guest -c 'exit 7'
}

test_output_is_exactly_what_the_commands_wrote() {
    expect_equal "last lines" $'one\ntwo' "$(run_guest -c 'echo one; printf two' | tail -n 2)"
}

test_a_guest_that_hangs_is_ended_with_124() {
    expect_status 124 run_guest --timeout 15 -c 'sleep 1000'
}

test_a_guest_that_dies_early_gives_125() {
    expect_status 125 run_guest -c 'poweroff -f; sleep 1000'
}

runs_once a_guest_file_of_garbage_is_ended_with_124
test_a_guest_file_of_garbage_is_ended_with_124() {
    head -c 100000 /dev/urandom >"$dir/garbage"
    expect_status 124 run_guest --guest "$dir/garbage" --timeout 5
}

test_time_passes_and_the_clock_is_set() {
    # A second of the guest's is one of the host's, within what an emulator on a busy machine does.
    run_guest -c 'date +%s; a=$(date +%s); sleep 3; b=$(date +%s); echo slept $((b - a))' >"$dir/out"
    cat "$dir/out"
    grep -Eq '^slept [34]$' "$dir/out"
    local guest host
    guest=$(grep -E '^[0-9]+$' "$dir/out" | tail -n 1)
    host=$(date +%s)
    ((guest > host - 120 && guest < host + 120))
}

test_linux_uses_all_the_memory_it_is_given() {
    # 600 of 1024 MiB touched, in whatever order Linux takes them.
    run_guest -c 'mkdir /run/m; mount -t tmpfs -o size=90% m /run/m; dd if=/dev/zero of=/run/m/f bs=1M count=600; sha256sum /run/m/f' |
        tee "$dir/out"
    expect_text "$dir/out" "$(head -c 629145600 /dev/zero | sha256sum | cut -d ' ' -f 1)"
}

# Wait until TEXT is in FILE, for at most 90 seconds.
wait_for_text() { # wait_for_text FILE TEXT
    local i
    for ((i = 0; i < 900; i++)); do
        if grep -Fq -- "$2" "$1"; then return; fi
        sleep 0.1
    done
    echo "\"$2\" never came:"
    cat -- "$1"
    return 1
}

test_a_shell_on_the_console_takes_input() {
    mkfifo "$dir/in"
    : >"$dir/out"
    script -qec "SPARKLER_IMAGE=$(printf %q "$system_image") $(printf %q "$root/qemu/run") --gic $system_gic ${SPARKLER_RUN_ARGS-} --timeout 110 --disk none" \
        /dev/null <"$dir/in" >"$dir/out" 2>&1 &
    local session=$!
    at_exit+=("kill $session 2>/dev/null || true")
    exec 3>"$dir/in"
    wait_for_text "$dir/out" 'sparkler:/#'
    printf 'echo answer $((6 * 7)); sleep 1000\r' >&3
    wait_for_text "$dir/out" 'answer 42'
    # Ctrl-C, then the shell must answer again.
    sleep 1
    printf '\003' >&3
    printf 'echo again $((7 * 7)); exit\r' >&3
    wait_for_text "$dir/out" 'again 49'
    wait "$session"
}
