# shellcheck shell=bash
# The guest linked into the image, which drives the disk through an independent driver.

test_the_builtin_guest_passes() { expect_status 0 run_guest --guest builtin; }

test_the_builtin_guest_passes_on_a_core_with_everything() {
    expect_status 0 run_guest --guest builtin --cpu max
}

test_the_builtin_guest_needs_no_network_and_no_linux() {
    # A target folder with nothing in it; whatever would go to the network is answered by nobody.
    http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 CARGO_TARGET_DIR=$dir/target \
        expect_status 0 run_guest --guest builtin
}
