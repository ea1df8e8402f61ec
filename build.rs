//! Links the EL2 image, and the programs that run as guests, at their own addresses.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process;

/// The only bare-metal target: EL2 and the EL1 programs never touch FP or SIMD registers.
const TARGET: &str = "aarch64-unknown-none-softfloat";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if variable("TARGET") != TARGET {
        return;
    }
    if env::var_os("CARGO_FEATURE_GUEST").is_some() {
        link_guests();
    } else {
        link_image();
    }
}

/// Passes the linker script of the EL2 image and of the bare-metal tests.
fn link_image() {
    println!("cargo:rerun-if-changed=linker.ld");
    let script = root().join("linker.ld");
    println!("cargo:rustc-link-arg=-T{}", script.display());
    println!("cargo:rustc-link-arg=-zmax-page-size=4096");
}

/// Passes what the EL1 programs are linked with. `build_guest` in qemu/lib/image.sh compiles them, as
/// position-independent code.
fn link_guests() {
    println!("cargo:rerun-if-changed=guests/builtin/linker.ld");
    let script = root().join("guests/builtin/linker.ld");
    for argument in [
        &format!("-T{}", script.display()),
        // The file cargo leaves is the Image itself, with no tool needed to convert it.
        "--oformat=binary",
        // It runs wherever it was put: the entry code applies the relocations.
        "-pie",
        "--no-dynamic-linker",
        "--pack-dyn-relocs=relr",
        "-zmax-page-size=4096",
    ] {
        for guest in ["builtin", "bench"] {
            println!("cargo:rustc-link-arg-bin={guest}={argument}");
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(variable("CARGO_MANIFEST_DIR"))
}

fn variable(name: &str) -> OsString {
    match env::var_os(name) {
        Some(value) => value,
        None => {
            println!("cargo:error={name} is not set; is this not cargo?");
            process::exit(1)
        }
    }
}
