# shellcheck shell=bash
# Counting and reporting for qemu/test and .ci/run.

passed=0 failed=0

# Add up every "test result: ... N passed; M failed" line of a log; set counted_failures to this log's share.
count_results() {
    local counts
    counts=$(tr -d '\r' <"$1" | sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 \2/p' |
        awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
    passed=$((passed + ${counts% *}))
    counted_failures=${counts#* }
    failed=$((failed + counted_failures))
}

# cargo_tests NAME COMMAND...: show its output and count its tests. What ends without saying which test failed (a
# compile error, a binary that hangs) counts as one failure.
cargo_tests() {
    local name=$1 log=$scratch/cargo.log status=0
    shift
    (cd -- "$root" && "$@") 2>&1 </dev/null | tee -- "$log" || status=$?
    count_results "$log"
    if ((status && !counted_failures)); then
        printf 'test %s ... FAILED (status %d)\n' "$name" "$status"
        failed=$((failed + 1))
    fi
}

# single_test NAME COMMAND...: one test; its output is shown only if it fails. Like `step`, not for use in conditions.
single_test() {
    local name=$1 log=$scratch/test.log status begin=$SECONDS
    shift
    set +e
    (
        set -e
        # What stops QEMU and removes files must run in this shell, for this test only.
        at_exit=()
        trap run_at_exit EXIT
        "$@"
    ) >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if ((status == 0)); then
        printf 'test %s ... ok (%d s)\n' "$name" $((SECONDS - begin))
        passed=$((passed + 1))
    else
        printf 'test %s ... FAILED (status %d)\n' "$name" "$status"
        sed 's/\r//g; s/^/    | /' "$log" | tail -n 60
        failed=$((failed + 1))
    fi
}

# The last line, and the status of the script.
report() {
    printf '%d passed, %d failed\n' "$passed" "$failed"
    if ((failed || !passed)); then exit 1; fi
    exit 0
}
