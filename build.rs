//! Links the EL2 image at its own addresses and builds the guest that is linked into it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, process};

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
        build_guest();
    }
}

/// Passes the linker script of the EL2 image and of the bare-metal tests.
fn link_image() {
    println!("cargo:rerun-if-changed=linker.ld");
    let script = root().join("linker.ld");
    println!("cargo:rustc-link-arg=-T{}", script.display());
    println!("cargo:rustc-link-arg=-zmax-page-size=4096");
}

/// Passes what the EL1 programs are linked with: this is the nested build of [`build_guest`], or a
/// developer's `cargo build --features guest`.
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

/// Builds `guests/builtin` as a flat arm64 Image and leaves its path in `SPARKLER_BUILTIN`.
fn build_guest() {
    for input in ["guests/builtin", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let target_dir = guest_target_dir(&out);
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root())
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--bin", "builtin", "--features", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        // Cargo hands its own settings down to build scripts; the guest has others.
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", guest_flags().join("\u{1f}"))
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z");
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the built-in guest was not built ({status})")),
        Err(error) => fail(&format!("cargo did not start: {error}")),
    }
    // A copy of our own, because builds with other profiles share the guest's directory.
    let image = out.join("builtin.img");
    let built = target_dir.join(TARGET).join("release").join("builtin");
    if let Err(error) = fs::copy(&built, &image) {
        fail(&format!("{}: {error}", built.display()));
    }
    println!("cargo:rustc-env=SPARKLER_BUILTIN={}", image.display());
}

/// Position-independent; and the paths that panics name are the same wherever it is built.
fn guest_flags() -> Vec<String> {
    let mut flags = vec!["-Crelocation-model=pic".to_owned()];
    if let Some(cargo_home) = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
    {
        flags.push(format!("--remap-path-prefix={}=cargo", cargo_home.display()));
    }
    flags
}

/// One directory beside the profiles, so that a debug build, a release build and the tests share
/// one guest. It must not be the outer build's own: cargo holds that one's lock while we run.
fn guest_target_dir(out: &Path) -> PathBuf {
    // OUT_DIR is <target dir>/<triple>/<profile>/build/<package>/out.
    match out.ancestors().nth(4) {
        Some(triple) => triple.join("guest"),
        None => out.join("guest"),
    }
}

fn root() -> PathBuf {
    PathBuf::from(variable("CARGO_MANIFEST_DIR"))
}

fn variable(name: &str) -> OsString {
    match env::var_os(name) {
        Some(value) => value,
        None => fail(&format!("{name} is not set; is this not cargo?")),
    }
}

fn fail(reason: &str) -> ! {
    println!("cargo:error={reason}");
    process::exit(1)
}
