# shellcheck shell=bash
# The EL2 image itself, as the linker left it.

runs_once

# panic_callers ELF: every function from which a panic can be reached by calls and branches. The search ends at functions
# that work on device trees, the board's and ours: no guest has a say in those.
panic_callers() {
    local sysroot objdump
    sysroot=$(rust_sysroot)
    objdump=$(compgen -G "$sysroot/lib/rustlib/*/bin/llvm-objdump" | head -n 1)
    LD_LIBRARY_PATH=$sysroot/lib "$objdump" -d --demangle --no-show-raw-insn --no-leading-addr "$1" | awk '
        /^<.*>:$/ { name = substr($0, 2, length($0) - 3) }
        $1 ~ /^(b|bl|b\..*|cbn?z|tbn?z)$/ && match($0, /<[^+]*>$/) {
            callee = substr($0, RSTART + 1, RLENGTH - 2)
            if (callee != name) callers[callee] = callers[callee] SUBSEP name
        }
        END {
            for (callee in callers) if (callee ~ /panicking::panic_fmt$/) { found[callee] = 1; queue[count++] = callee }
            for (i = 0; i < count; i++) {
                print queue[i]
                if (queue[i] ~ /sparkler::fdt::/) continue
                split(callers[queue[i]], list, SUBSEP)
                for (k in list) if (list[k] != "" && !(list[k] in found)) { found[list[k]] = 1; queue[count++] = list[k] }
            }
        }'
}

test_no_exit_can_panic() {
    # The image may be the caller's own; what is looked at here is always this checkout's.
    build_image "$dir/sparkler.img"
    panic_callers "$target/$triple/release/sparkler" | sort >"$dir/callers"
    cat -- "$dir/callers"
    # The search has found something: the panics of the library.
    expect_text "$dir/callers" 'core::panicking::panic_fmt'
    # Left may be the core library, pieces that several functions share, and what runs before a guest does: who calls any
    # of them from an exit would be found too.
    local outlined='^OUTLINED_FUNCTION_[0-9]+$' library='^(_\$LT\$)?core(::|\.\.)|^<core::str|^_\$LT\$\$RF\$T\$u20\$as\$u20\$core\.\.|^heapless::vec::.*::remove'
    local start='^sparkler_main|^at_link_address|^sparkler::(arch::(boot|operator::publish|wake::Cores::connect)|bringup|fdt|vm::(config|options))|^spin::once::.*::try_(begin_init|call_once_slow)'
    if grep -Ev "$outlined|$library|$start" "$dir/callers"; then
        echo "these can panic, and may be reached from an exit"
        return 1
    fi
}
