# shellcheck shell=bash
# The entropy device: Linux takes its random bytes from the board's source.

# What Linux says of its source, and 4 MiB of it: four seeds are not enough for them.
entropy_job='cat /sys/class/misc/hw_random/rng_current
    dd if=/dev/hwrng of=/run/random bs=64k count=64 iflag=fullblock
    for half in 0 1; do dd if=/run/random bs=2M count=1 skip=$half 2>/dev/null | sha256sum; done | sort -u | wc -l
    gzip -c /run/random | wc -c'

# expect_entropy FILE: the job had a virtio source, halves that differ, and nothing that gzip could make smaller.
expect_entropy() {
    grep -Eq '^virtio_rng' "$1"
    expect_text "$1" '64+0 records out'
    grep -Fxq 2 "$1"
    grep -Eq '^419[4-9][0-9]{3}$' "$1"
}

test_linux_takes_entropy_from_a_virtio_device_of_the_board() {
    run_guest -c "$entropy_job" 2>&1 | tee "$dir/out"
    expect_entropy "$dir/out"
    if [[ ${SPARKLER_RUN_ARGS-} != *--bare* ]]; then expect_text "$dir/out" 'entropy is from a virtio device'; fi
}

test_linux_takes_entropy_from_the_boards_cores() {
    run_guest --cpu max -c "$entropy_job" 2>&1 | tee "$dir/out"
    expect_entropy "$dir/out"
    expect_text "$dir/out" 'entropy is from its cores'
}

# QEMU's source is kept to a few bytes an hour: what is not there yet is waited for, and the guest goes on.
test_a_source_that_stops_is_an_error_for_the_operator_and_no_bytes_for_the_guest() {
    run_guest -c '
        dd if=/dev/hwrng of=/run/random bs=64 count=1 2>/dev/null &
        sleep 14
        echo "$(stat -c %s /run/random) bytes"
        echo "the guest lives"' \
        -- -global virtio-rng-device.max-bytes=8 -global virtio-rng-device.period=3600000 2>&1 | tee "$dir/out"
    expect_text "$dir/out" '0 bytes'
    expect_text "$dir/out" 'the guest lives'
    expect_text "$dir/out" "the board's source of entropy has failed"
}
