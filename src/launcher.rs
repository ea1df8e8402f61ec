//! On a host, `cargo run` hands its arguments to `qemu/run`.
use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Becomes `qemu/run` of this checkout, with the same arguments; returns only if that cannot be started.
pub(crate) fn main() -> ExitCode {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu/run");
    let error = Command::new(&script).args(env::args_os().skip(1)).exec();
    eprintln!("sparkler: {}: {error}", script.display());
    ExitCode::FAILURE
}
