//! Measures, from EL1, what exits and virtio queues cost; `qemu/bench` builds and loads it.
//!
//! Without arguments: instructions per operation (`exits`). With `queue`: batches of reads from the
//! disk over a split ring (`queue`); `packed`, `batched` and `more` say what else. With `ipi`: an
//! interrupt from a vCPU to another; with `share`: how much of its core it gets (`smp`). It is the builtin
//! guest's machinery around other work.
//!
//! Prints `bench NAME VALUE` lines; the last is `bench: N passed, M failed`.
#![no_std]
#![no_main]
// An EL1 program is register accesses and exception frames, and a panic of it is a verdict.
#![allow(unsafe_code)]
#![allow(clippy::indexing_slicing)]
// Memory shared with a device is reached by its fields' addresses, several under one reason.
#![allow(clippy::multiple_unsafe_ops_per_block)]
// The modules shared with the builtin guest have what only that one uses.
#![allow(dead_code)]

#[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
compile_error!("this guest is built for aarch64-unknown-none-softfloat only");

#[path = "../builtin/board.rs"]
mod board;
#[path = "../builtin/console.rs"]
mod console;
#[path = "../builtin/exception.rs"]
mod exception;
mod exits;
#[path = "../builtin/gic.rs"]
mod gic;
// For crates that are built to allocate because the builtin guest's driver does.
#[path = "../builtin/heap.rs"]
mod heap;
#[path = "../builtin/mmio.rs"]
mod mmio;
#[path = "../builtin/psci.rs"]
mod psci;
mod queue;
#[path = "../builtin/racy.rs"]
mod racy;
#[path = "../builtin/report.rs"]
mod report;
#[path = "../builtin/ring.rs"]
mod ring;
mod smp;
#[path = "../builtin/timer.rs"]
mod timer;

use board::Board;
use console::line;
use core::arch::global_asm;

global_asm!(include_str!("../builtin/entry.s"));

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
    if board.has_argument("queue") {
        queue::run(&board);
    } else if board.has_argument("ipi") {
        smp::interrupts(&board);
    } else if board.has_argument("share") {
        smp::share(&board);
    } else {
        exits::run(&board);
    }
    report::finish()
}

/// Says where it came from as addresses in the image.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    line!("\nbench: panic; returning to these offsets in the image:");
    exception::backtrace();
    report::abandon()
}
