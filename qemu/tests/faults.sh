# shellcheck shell=bash
# EL2's own faults: a dump of the registers that says what happened, and a reset of the board. Never silence, never a
# second attempt.

runs_once

# expect_end KIND TEXT...: the EL2 program tests/el2_fault.rs, told to fault in this way, must show each TEXT and reset the
# board; once, for QEMU then ends.
expect_end() {
    local text kind=$1 status=0
    shift
    (cd -- "$root" && cargo test --locked --release --target "$triple" --target-dir "$target" --test el2_fault -- "$kind") \
        </dev/null >"$dir/out" 2>&1 || status=$?
    sed -i 's/\r//g' -- "$dir/out"
    cat -- "$dir/out"
    # The runner's: the board was reset before there was a verdict.
    expect_equal "status" 125 "$status"
    for text in "$@"; do expect_text "$dir/out" "$text"; done
}

# As expect_end, with a dump of the registers.
expect_fault() {
    expect_end "$@" 'resetting the board'
    expect_equal "faults" 1 "$(grep -c 'EL2 fault' "$dir/out")"
}

# fault_register NAME: the value of a register in the dump.
fault_register() { grep -oE "\b$1 +0x[0-9a-f]{16}" "$dir/out" | grep -oE '0x[0-9a-f]{16}'; }

# expect_syndrome CLASS STATUS: ESR_EL2.EC, and DFSC or IFSC.
expect_syndrome() {
    local esr
    esr=$(fault_register ESR_EL2)
    expect_equal "exception class" "$1" "$(printf '%#x' $((esr >> 26)))"
    expect_equal "fault status" "$2" "$(printf '%#x' $((esr & 0x3f)))"
}

test_a_store_to_el2s_text_is_fatal() {
    expect_fault text 'synchronous exception, vector 4'
    expect_syndrome 0x25 0xf
}

test_an_overflow_of_el2s_stack_is_fatal() {
    expect_fault stack 'synchronous exception, vector 4'
    # The guard page below the stack: nothing is mapped there.
    expect_syndrome 0x25 0x7
    local sp far
    sp=$(fault_register SP) far=$(fault_register FAR_EL2)
    ((far >= sp && far < sp + 4096))
}

test_a_call_into_nowhere_is_fatal() {
    expect_fault call 'synchronous exception, vector 4'
    expect_syndrome 0x21 0x4
    expect_equal "program counter" "$(fault_register FAR_EL2)" "$(fault_register ELR_EL2)"
}

test_an_interrupt_at_el2_is_fatal() { expect_fault interrupt 'IRQ, vector 5'; }

test_the_dump_has_all_registers() {
    expect_fault registers
    local n
    for ((n = 0; n < 31; n++)); do
        expect_equal "x$n" "$(printf '0x0000beef%08x' $((0x1000 + n)))" "$(fault_register "x$n")"
    done
}

test_a_panic_of_el2_is_reported_and_fatal() { expect_end panic '[sparkler] EL2 panicked at tests/el2_fault.rs' 'for a test'; }

test_a_fault_of_another_core_resets_the_board_too() {
    expect_fault another_core 'synchronous exception, vector 4, core 1'
    # It has run off its own stack.
    expect_syndrome 0x25 0x7
}

test_cores_that_fault_together_each_have_their_dump() {
    local core n
    expect_end three_cores
    expect_equal "faults" 3 "$(grep -c 'EL2 fault' "$dir/out")"
    for core in 1 2 3; do
        # Its own dump, whole: the lines that follow, with its registers.
        grep -A 11 "vector 4, core $core\$" "$dir/out" >"$dir/dump"
        for ((n = 0; n < 31; n++)); do
            expect_text "$dir/dump" "$(printf 'x%-2d 0x0000beef%04x%04x' "$n" "$core" "$n")"
        done
    done
}
