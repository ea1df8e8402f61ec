# shellcheck shell=bash
# What the whole-system tests in qemu/tests/ are written with. A test is a function named test_BEHAVIOUR; it runs in a
# shell of its own under `set -e`, with an empty folder $dir, and passes if it ends with status 0.

# Built once for all tests, unless the caller has one.
system_image=${SPARKLER_IMAGE:-$target/$triple/release/sparkler.img}

# The board's interrupt controller, for whatever a test boots.
system_gic=3

system_tests() { declare -F | sed -n 's/^declare -f test_//p'; }

# Tests, and files of them, for which the interrupt controller does not matter: they run on a GICv3 alone.
once=()

# runs_once [NAME...]: so do these tests, or all those in the file that says so.
runs_once() {
    if (($#)); then once+=("$@"); else once+=("${BASH_SOURCE[1]}"); fi
}

# is_for_every_gic NAME
is_for_every_gic() {
    local file
    file=$(shopt -s extdebug && declare -F "test_$1" | cut -d ' ' -f 3-)
    [[ " ${once[*]} " != *" $1 "* && " ${once[*]} " != *" $file "* ]]
}

system_test() {
    local name=$1
    if ((system_gic != 3)); then name+=" on a GICv$system_gic"; fi
    dir=$target/test/$1.$system_gic
    rm -rf -- "$dir"
    mkdir -p -- "$dir"
    single_test "$name" "test_$1"
    # Failures leave their files.
    if ((!failed)); then rm -rf -- "$dir"; fi
}

# qemu/run on the image built once for all tests, and on the board they are for.
run_guest() {
    local more
    read -ra more <<<"${SPARKLER_RUN_ARGS-}"
    SPARKLER_IMAGE=$system_image "$root/qemu/run" --gic "$system_gic" "${more[@]}" "$@"
}

# The test's own ext4 disk.
ext4_disk() {
    [[ -e $dir/disk.ext4 ]] || make_ext4 "$dir/disk.ext4" 256M
    printf '%s' "$dir/disk.ext4"
}

# expect_status N COMMAND...: COMMAND, its output shown, must end with N.
expect_status() {
    local wanted=$1 status=0
    shift
    "$@" || status=$?
    if ((status != wanted)); then
        echo "expected status $wanted, got $status from: $*"
        return 1
    fi
}

# expect_text FILE TEXT: a line of FILE must contain TEXT.
expect_text() {
    grep -Fq -- "$2" "$1" && return
    echo "expected \"$2\" in:"
    cat -- "$1"
    return 1
}

# expect_equal WHAT WANTED GOT
expect_equal() {
    [[ $2 == "$3" ]] && return
    echo "$1: expected \"$2\", got \"$3\""
    return 1
}

# The file system in $1 was unmounted and has no error; -f looks even if it says it is clean.
expect_clean() {
    dumpe2fs -h -- "$1" 2>/dev/null | grep -E '^Filesystem (state|features)'
    if dumpe2fs -h -- "$1" 2>/dev/null | grep -q needs_recovery; then
        echo "the journal was not emptied"
        return 1
    fi
    e2fsck -fn -- "$1"
}

# disk_file IMAGE PATH FILE: copy a file out of an ext4 image.
disk_file() { debugfs -R "dump $2 $3" -- "$1" 2>&1; }
