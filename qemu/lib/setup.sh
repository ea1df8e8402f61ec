# shellcheck shell=bash
# Bring a fresh Debian to the point where the image can be built and run. What is there is left alone.

# Name every Debian package whose command is missing. Of the words, "build" is there if something is to be compiled,
# "trees" if device trees are to be changed, "partitions" if a disk is to be partitioned.
missing_packages() {
    have() { command -v "$1" >/dev/null; }
    have qemu-system-aarch64 || echo qemu-system-arm
    { have mkfs.ext4 && have debugfs && have e2fsck; } || echo e2fsprogs
    have flock || echo util-linux
    # The linker of build scripts and procedural macros, which run on the host.
    if [[ " $* " == *' build '* ]]; then have cc || printf '%s\n' gcc libc6-dev; fi
    if [[ " $* " == *' partitions '* ]]; then have sfdisk || echo fdisk; fi
    if [[ " $* " == *' trees '* ]]; then { have dtc && have fdtget; } || echo device-tree-compiler; fi
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        echo "this needs root, and there is no sudo"
        return 1
    fi
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@")
    # The package lists of a fresh system are empty or old: fetch them only if the first attempt fails.
    as_root "${install[@]}" || { as_root apt-get update && as_root "${install[@]}"; }
}

# setup_tools [build] [trees] [partitions]; sets qemu_version, such as 7.2.
setup_tools() {
    local packages version
    mapfile -t packages < <(missing_packages "$@")
    if ((${#packages[@]})); then
        # sudo asks for its password on the terminal, so ask before the step hides it.
        if ((EUID)) && [[ -t 0 ]] && command -v sudo >/dev/null; then sudo -v; fi
        step "install ${packages[*]}" "as root, run: apt-get update && apt-get install ${packages[*]}" \
            install_packages "${packages[@]}"
    fi
    version=$(qemu-system-aarch64 --version | sed -n '1s/.*version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    qemu_version=${version/ /.}
    ((${version% *} * 100 + ${version#* } >= 702)) ||
        die "QEMU $qemu_version is too old: 7.2 or newer is needed. Remove it, and this script installs Debian's"
}

# A list (or one string) of rust-toolchain.toml, as words.
pinned() { sed -n "s/^$1 *= *//p" "$root/rust-toolchain.toml" | tr -d '[]",'; }

# Without rustup's automatic installation, which would run unseen here.
rust_sysroot() { (cd -- "$root" && RUSTUP_AUTO_INSTALL=0 rustc --print sysroot 2>/dev/null); }

# Everything the pin asks for, found as files: asking rustup would take as long as a build.
toolchain_is_complete() {
    local sysroot host tool
    sysroot=$(rust_sysroot) || return 1
    for tool in cargo rustc cargo-clippy cargo-fmt; do [[ -x $sysroot/bin/$tool ]] || return 1; done
    [[ -d $sysroot/lib/rustlib/$triple/lib ]] || return 1
    for host in "$sysroot"/lib/rustlib/*/bin/llvm-objcopy; do [[ -x $host ]] && return 0; done
    return 1
}

install_toolchain() {
    local channel components targets options=()
    channel=$(pinned channel)
    read -ra components <<<"$(pinned components)"
    read -ra targets <<<"$(pinned targets)"
    # Only what is missing, so that builds that use the toolchain meanwhile are not disturbed.
    if rust_sysroot; then
        rustup component add --toolchain "$channel" "${components[@]}"
        rustup target add --toolchain "$channel" "${targets[@]}"
        return
    fi
    for item in "${components[@]}"; do options+=(--component "$item"); done
    for item in "${targets[@]}"; do options+=(--target "$item"); done
    rustup toolchain install "$channel" --profile minimal --no-self-update "${options[@]}"
}

setup_toolchain() {
    # rustup's installer puts cargo here, and says so only to new login shells.
    command -v rustup >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if toolchain_is_complete; then return; fi
    command -v rustup >/dev/null || die "rustup is missing: install it as https://rustup.rs says"
    step "install Rust $(pinned channel) and its $triple target" \
        "check the network, then run in this checkout: rustup toolchain install $(pinned channel)" install_toolchain
}
