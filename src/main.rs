//! The EL2 image: discovers the board, builds the VM, runs it. On a host, a launcher for `qemu/run`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bringup;
#[cfg(not(target_os = "none"))]
mod launcher;

#[cfg(target_os = "none")]
sparkler::entry!(bringup::run);

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    launcher::main()
}

/// EL2's own bug: says where, and resets the board.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    sparkler::arch::fault::on_panic(info)
}
