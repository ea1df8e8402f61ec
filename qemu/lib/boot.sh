# shellcheck shell=bash
# Start QEMU and wait for it: with the terminal, or with the console filtered. Both return the status to exit with.

# wait_for_qemu SECONDS COMMAND...: run it with the caller's stdin and stdout. In the background even on a terminal (where it
# stays in the foreground group), so that a signal to this script ends QEMU at once. 0 seconds: no time-out.
wait_for_qemu() {
    local status=0 seconds=$1
    shift
    timeout --foreground -k 5 "$seconds" "$@" <&0 &
    qemu_pid=$!
    at_exit+=('kill "$qemu_pid" 2>/dev/null || true')
    wait "$qemu_pid" || status=$?
    unset 'at_exit[-1]'
    # QEMU did not even end when it was asked to, and was killed.
    if ((status == 137)); then status=$EXIT_TIMEOUT; fi
    if ((status == EXIT_TIMEOUT)); then
        note "the guest was still running after $seconds s"
    elif ((status)); then
        note "QEMU ended with status $status (if the disk is in use by another run: --disk FILE, or --disk none)"
        status=$EXIT_FAILED
    fi
    return "$status"
}

# boot_terminal SECONDS COMMAND...: the console is the terminal; Ctrl-A X ends QEMU.
boot_terminal() {
    if [[ -t 0 ]]; then
        saved_terminal=$(stty -g)
        at_exit+=('stty "$saved_terminal"')
    fi
    wait_for_qemu "$@"
}

# console_filter NONCE FILE: carriage returns go; so does the line in which the guest's init reports a status, which is
# left in FILE. What follows it (the kernel powers off) goes to stderr.
console_filter() {
    sed -u -e 's/\r*$//' \
        -e ':running' -e "/@@$1 [0-9]*@@/ b ended" -e n -e 's/\r*$//' -e 'b running' \
        -e ':ended' -e h -e "s/.*@@$1 \([0-9]*\)@@.*/\1/w $2" -e g -e "s/@@$1 .*//" -e '/./p' \
        -e ':after' -e '$d' -e N -e 's/.*\n//' -e 's/\r*$//' -e '/Power down$/! w /dev/stderr' -e 'b after'
}

# plain_filter FILE: only carriage returns go; a copy is left in FILE.
plain_filter() { sed -u 's/\r*$//' | tee -- "$1"; }

# boot_console SECONDS FILTER COMMAND...: no terminal; the console goes through FILTER (a command line) to stdout.
boot_console() {
    local status=0 seconds=$1 filter=$2 filter_pid
    shift 2
    mkfifo -- "$scratch/console"
    eval "$filter" <"$scratch/console" &
    filter_pid=$!
    wait_for_qemu "$seconds" "$@" >"$scratch/console" </dev/null || status=$?
    wait "$filter_pid" || true
    return "$status"
}
