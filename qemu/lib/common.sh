# shellcheck shell=bash
# Paths, messages and steps shared by the scripts in qemu/.

export LC_ALL=C
# Administration tools (mkfs.ext4, debugfs) are not on every user's PATH.
PATH=$PATH:/usr/sbin:/sbin

root=$(cd -- "${BASH_SOURCE[0]%/*}/../.." && pwd -P)
# Honour the caller's target directory; cargo takes a relative one from the caller's directory too.
target=$(realpath -m -- "${CARGO_TARGET_DIR:-$root/target}")
triple=aarch64-unknown-none-softfloat
# The guests' disks, unless the user names another: of one's own for who runs beside others.
disks=$(realpath -m -- "${SPARKLER_DISKS:-$target/disk}")
# Exit statuses of ours, apart from the guest's: the same numbers as timeout(1) uses.
readonly EXIT_TIMEOUT=124 EXIT_FAILED=125
export root target triple EXIT_TIMEOUT EXIT_FAILED

mkdir -p -- "$target"
scratch=$(mktemp -d "$target/run.XXXXXX")
# Commands to run, last first, when the script ends.
at_exit=('rm -rf -- "$scratch"')
run_at_exit() {
    local i
    for ((i = ${#at_exit[@]} - 1; i >= 0; i--)); do eval "${at_exit[i]}"; done
}
trap run_at_exit EXIT
trap 'exit 143' TERM HUP
trap 'exit 130' INT

note() { printf '%s\n' "$*" >&2; }

die() {
    note "${0##*/}: $*"
    exit "$EXIT_FAILED"
}

# Wrong usage is 2, as for most commands.
usage_error() {
    note "${0##*/}: $*"
    note "${0##*/} --help shows the options"
    exit 2
}

# SPARKLER_QEMU is another QEMU than that of PATH: qemu-system-aarch64, or the folder it is in. Where it has modules of its
# own beside it, as in a package that was unpacked and not installed, it takes those.
use_qemu() {
    local folder modules
    SPARKLER_QEMU=$(realpath -- "$1")
    folder=$SPARKLER_QEMU
    [[ -d $folder ]] || folder=${folder%/*}
    [[ -x $folder/qemu-system-aarch64 ]] || usage_error "SPARKLER_QEMU: there is no qemu-system-aarch64: $1"
    export SPARKLER_QEMU PATH=$folder:$PATH
    for modules in "$folder"/../lib/*/qemu; do
        if [[ -d $modules ]]; then export QEMU_MODULE_DIR=$modules; fi
    done
}
if [[ -n ${SPARKLER_QEMU-} ]]; then use_qemu "$SPARKLER_QEMU"; fi

now_ms() { printf '%s' $((${EPOCHREALTIME/./} / 1000)); }

# step NAME HINT COMMAND...: run COMMAND, show one line with the time it took. If it fails, show its
# output and HINT, and end the script.
step() {
    try_step "$@"
    if ((step_status)); then
        note "What to do: $2"
        exit "$EXIT_FAILED"
    fi
}

# The same, but leave the outcome in step_status for the caller. Never call either in a condition:
# bash would then ignore `set -e` inside COMMAND.
step_status=0
try_step() {
    local name=$1 log="$scratch/step.log" begin elapsed
    shift 2
    begin=$(now_ms)
    if [[ -t 2 ]]; then printf '          %s ...' "$name" >&2; fi
    set +e
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null
    step_status=$?
    set -e
    elapsed=$(($(now_ms) - begin))
    if [[ -t 2 ]]; then printf '\r' >&2; fi
    printf '%5d.%d s   %s' $((elapsed / 1000)) $((elapsed % 1000 / 100)) "$name" >&2
    if ((step_status == 0)); then
        printf '    \n' >&2
    else
        printf ': FAILED (status %d)\n' "$step_status" >&2
        sed 's/^/    | /' "$log" >&2
    fi
}

# Quote words for a shell, on one line.
shell_quote() {
    local word
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]]; then printf '%s ' "$word"; else printf '%q ' "$word"; fi
    done | sed 's/ $//'
    printf '\n'
}

# Publish the file or folder $1 as $2 in one move, so that a script stopped half way leaves nothing broken.
publish() {
    rm -rf -- "$2"
    mv -- "$1" "$2"
}
