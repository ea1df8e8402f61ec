# shellcheck shell=bash
# The EL2 image: from source to ELF to the raw arm64 Image that QEMU and boot loaders enter at EL2. And the guests that
# check and measure it.

# elf_to_image ELF IMAGE
elf_to_image() {
    local sysroot objcopy
    sysroot=$(rust_sysroot)
    for objcopy in "$sysroot"/lib/rustlib/*/bin/llvm-objcopy; do
        if [[ -x $objcopy ]]; then
            LD_LIBRARY_PATH=$sysroot/lib "$objcopy" -O binary -- "$1" "$2.$$"
            publish "$2.$$" "$2"
            return
        fi
    done
    echo "llvm-objcopy is not in $sysroot: the llvm-tools component is missing"
    return 1
}

# build_image IMAGE [FEATURE]: with one of cargo's features, in a folder of its own, or with none.
build_image() {
    local folder=$target${2:+/$2}
    # From the checkout, so that its toolchain pin and cargo configuration hold wherever the caller is.
    cd -- "$root"
    cargo build --locked --release --target "$triple" --target-dir "$folder" --bin sparkler ${2:+--features "$2"}
    elf_to_image "$folder/$triple/release/sparkler" "$1"
}

# What build_guest makes.
builtin_guest=$target/$triple/guest/$triple/release/builtin
bench_guest=$target/$triple/guest/$triple/release/bench

# What build_linux_bench makes: a program for Linux.
linux_bench=$target/$triple/guest/$triple/release/linux-bench

build_linux_bench() {
    cd -- "$root"
    cargo build --locked --release --bin linux-bench --features guest --target "$triple" --target-dir "$target/$triple/guest"
}

# build_guest builtin|bench: an arm64 Image of guests/NAME. The linker's arguments are in build.rs.
build_guest() {
    cd -- "$root"
    RUSTFLAGS=-Crelocation-model=pic cargo build --locked --release --bin "$1" --features guest --target "$triple" \
        --target-dir "$target/$triple/guest"
}

# The builtin guest, for whoever has not set up a compiler so far.
need_builtin_guest() {
    setup_tools build
    setup_toolchain
    step "build the builtin guest" "the compiler's messages are above" build_guest builtin
}
