# shellcheck shell=bash
# The guest in guests/builtin, which drives the disk through an independent driver.

test_the_builtin_guest_passes() { expect_status 0 run_guest --guest builtin; }

# Where there is more than one core, a GICv2's interrupts have targets.
test_the_builtin_guest_passes_on_several_cores() { expect_status 0 run_guest --guest builtin --cpus 3; }

test_the_builtin_guest_passes_on_a_core_with_everything() {
    expect_status 0 run_guest --guest builtin --cpu max
}

runs_once the_builtin_guest_needs_no_network_and_no_linux
test_the_builtin_guest_needs_no_network_and_no_linux() {
    # A target folder with nothing in it; whatever would go to the network is answered by nobody.
    http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 CARGO_TARGET_DIR=$dir/target \
        expect_status 0 run_guest --guest builtin
}

# What it measures is for qemu/bench to judge; here it has to work, with one kick a batch.
test_the_benchmark_guest_reads_over_both_rings() {
    local ring
    build_guest bench
    for ring in split packed; do
        expect_status 0 run_guest --guest "$bench_guest" --append "queue batched $ring" --el2-append sparkler.virtio=packed \
            --disk null --icount --timeout 100 >"$dir/$ring"
        cat -- "$dir/$ring"
        tr -d '\r' <"$dir/$ring" >"$dir/console"
        expect_text "$dir/console" 'bench: 2 passed, 0 failed'
        expect_text "$dir/console" 'bench requests 6400'
        expect_text "$dir/console" 'bench kicks 200'
    done
}
