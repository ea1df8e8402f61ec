//! The builtin guest: it judges, from EL1, the machine it is given.
//!
//! It is an arm64 Image, loaded as any guest's kernel, and shares nothing with the hypervisor but
//! the repository: the disk is driven by the independent `virtio-drivers` crate, the rest by a few
//! register accesses of its own. Everything it uses is found in the device tree in x0, so it also
//! runs on QEMU's `virt` board without a hypervisor, which is how its own verdicts are checked.
//!
//! The last line is always `builtin: N passed, M failed`; then it powers off through PSCI.
//! `long` in the boot arguments adds the slow checks.
#![no_std]
#![no_main]
// An EL1 program is register accesses and exception frames, and a panic of it is a verdict.
#![allow(unsafe_code)]
#![allow(clippy::indexing_slicing)]
// Memory shared with a device is reached by its fields' addresses, several under one reason.
#![allow(clippy::multiple_unsafe_ops_per_block)]

#[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
compile_error!("the builtin guest is built for aarch64-unknown-none-softfloat only");

extern crate alloc;

mod block;
mod board;
mod console;
mod dma;
mod exception;
mod gic;
mod heap;
mod hostile;
mod interrupts;
mod machine;
mod mmio;
mod psci;
mod racy;
mod report;
mod ring;
mod timer;

use board::{Board, Range};
use console::{Hex, line};
use core::arch::global_asm;

global_asm!(include_str!("entry.s"));

/// Called by `entry.s` with the MMU on, relocated, `.bss` cleared and interrupts masked.
///
/// # Safety
///
/// `fdt` is the address the boot protocol passed in x0.
#[unsafe(no_mangle)]
unsafe extern "C" fn guest_main(fdt: usize) -> ! {
    // SAFETY: forwarded from our caller.
    let Some(board) = (unsafe { Board::from_fdt(fdt) }) else {
        // Without a device tree no console is known: all there is to do is to stop.
        psci::system_off();
    };
    console::set_uart(board.uart);
    let below = if board.is_sparkler { "under sparkler" } else { "not under sparkler" };
    let Range { base, size } = board.memory;
    line!("\nbuiltin: guest at EL1 ", below, ", ", size >> 20, " MiB at ", Hex(base as u64));
    machine::run(&board);
    psci::run(&board);
    interrupts::run(&board);
    block::run(&board);
    hostile::run(&board);
    report::finish()
}

/// Says where it came from as addresses in the image: reading the message or the place out of
/// `PanicInfo` would link every message of every crate, a third of this guest.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    line!("\nbuiltin: panic; returning to these offsets in the image:");
    exception::backtrace();
    report::abandon()
}
