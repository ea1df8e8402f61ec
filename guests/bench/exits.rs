//! The micro-benchmarks: instructions per operation, guest and hypervisor together.
//!
//! Every figure is (CNTVCT ticks * nanoseconds a tick) / N. Under QEMU's `-icount shift=0` one
//! nanosecond of virtual time is one instruction, at whichever exception level; the calibration
//! refuses to print figures otherwise. Loops are unrolled eight times, so a figure holds the
//! operation's own instructions and a quarter of one for the loop; nothing is subtracted.

use crate::board::{Board, Gic, Slot};
use crate::console::line;
use crate::gic;
use crate::mmio::read32;
use crate::psci::UNKNOWN_CALL;
use crate::report::{Failed, Verdict, check, expect};
use crate::ring::{CONFIG, IN, Ring, VERSION_1};
use crate::timer;
use core::arch::asm;

/// Operations measured, a multiple of the unrolling.
const COUNT: u64 = 8_000;
/// Interrupts and requests measured.
const FEWER: u64 = 2_000;
/// ICC_EOIR1_EL1 and GICC_EOIR ignore it, so that no interrupt need be taken first.
const SPURIOUS: usize = 1023;
/// InterruptACK.
const INTERRUPT_ACK: usize = 0x64;

/// Defines a function that executes an operation [`COUNT`] times and returns the ticks it took. The
/// operation has its argument in x20 and may change x0-x17.
macro_rules! timed {
    ($name:ident, $operation:literal) => {
        fn $name(argument: usize) -> u64 {
            let from = timer::now();
            // SAFETY: the operations neither touch memory nor change what the rest relies on.
            unsafe {
                asm!(
                    "2:",
                    $operation, $operation, $operation, $operation,
                    $operation, $operation, $operation, $operation,
                    "subs x21, x21, #8",
                    "b.ne 2b",
                    in("x20") argument, inout("x21") COUNT => _, clobber_abi("C"), options(nostack)
                );
            }
            timer::now() - from
        }
    };
}

timed!(nothing, "nop");
timed!(call, "mov w0, w20\nhvc #0");
timed!(load, "ldr w0, [x20]");
timed!(store_zero, "str wzr, [x20]");
timed!(end_of_interrupt, "msr icc_eoir1_el1, x20\nisb");
timed!(end_of_interrupt_v2, "mov w0, #1023\nstr w0, [x20]");

/// Prints `bench NAME VALUE` for each.
pub(crate) fn run(board: &Board) {
    if !check("bench: virtual time counts instructions", calibrate) {
        line!("bench: figures need qemu/run --icount");
        return;
    }
    report("hypercall", call(UNKNOWN_CALL as usize), COUNT);
    if let Some(slot) = board.disk().or(board.slots.first().copied()) {
        report("virtio_read", load(slot.registers.base), COUNT);
        report("virtio_write", store_zero(slot.registers.base + INTERRUPT_ACK), COUNT);
    }
    report("gicd_read", load(board.gicd + gic::GICD_CTLR), COUNT);
    let end = match board.gic {
        Gic::V2 { interface } => end_of_interrupt_v2(interface + gic::GICC_EOIR),
        Gic::V3 { .. } => end_of_interrupt(SPURIOUS),
    };
    report("eoi", end, COUNT);
    gic::start(board);
    report("sgi_self", sgi_to_self(), FEWER);
    report("timer_10ms", timer_overhead(), FEWER);
    let mut ticks = None;
    check("bench: 4 KiB reads from the ring", || read_4k(board).map(|total| ticks = total));
    if let Some(ticks) = ticks {
        report("ring_read_4k", ticks, FEWER);
    }
}

/// A loop whose length in instructions is known: 8 and 2 a turn.
pub(crate) fn calibrate() -> Verdict {
    let ticks = nothing(0);
    let wanted = (COUNT + COUNT / 4) / per_tick();
    // Two instructions that read the counter, their barriers, and the rounding to whole ticks.
    expect(ticks.abs_diff(wanted) <= 2, "ticks", ticks)
}

/// Nanoseconds, and so instructions, a tick: 16 at QEMU's 62.5 MHz.
fn per_tick() -> u64 {
    (1_000_000_000 / timer::frequency()).max(1)
}

/// Capacity of a disk in sectors of 512 bytes.
pub(crate) fn capacity(disk: Slot) -> u64 {
    let at = disk.registers.base + CONFIG;
    u64::from(read32(at)) | u64::from(read32(at + 4)) << 32
}

/// Prints `bench NAME VALUE`: instructions for each of `count` operations that took `ticks`.
pub(crate) fn report(name: &str, ticks: u64, count: u64) {
    show(name, (ticks * per_tick() + count / 2) / count);
}

/// Prints `bench NAME VALUE`.
pub(crate) fn show(name: &str, value: u64) {
    line!("bench ", name, " ", value);
}

/// From the write of ICC_SGI1R_EL1 or GICD_SGIR until the handler has returned.
fn sgi_to_self() -> u64 {
    let from = timer::now();
    for n in 0..FEWER {
        if n % 16 == 0 {
            gic::forget();
        }
        let before = gic::taken();
        gic::send_to_self(1);
        while gic::taken() == before {}
    }
    timer::now() - from
}

/// Ticks beyond the 10 ms asked for, until the handler has returned.
fn timer_overhead() -> u64 {
    let mut over = 0;
    for _ in 0..FEWER {
        gic::forget();
        let at = timer::now() + timer::ticks(10);
        timer::fire_at(at);
        gic::sleep_until(|| gic::taken() != 0);
        over += timer::now() - at;
    }
    over
}

/// One request at a time, from the first disk if there is one, ended by its interrupt; the ticks.
fn read_4k(board: &Board) -> Result<Option<u64>, Failed> {
    let Some(slot) = board.disk() else {
        return Ok(None);
    };
    let mut ring = Ring::new(slot.registers.base);
    gic::serve_device(board, slot.registers.base, slot.intid);
    ring.start(VERSION_1)?;
    let sectors = capacity(slot) / 8 * 8;
    expect(sectors != 0, "sectors", sectors)?;
    // Knuth's MMIX constants; the same places every time.
    let mut random = 1u64;
    let mut ticks = 0;
    for turn in 0..FEWER + 64 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ring.put_request(IN, (random >> 16) % (sectors / 8) * 8, 4096);
        gic::forget();
        // With a bound, because a disk that completes outside virtual time may never do so here.
        let taken = timer::bounded(10_000, || {
            let from = timer::now();
            ring.publish(0, 0);
            ring.notify();
            gic::sleep_until(|| ring.next_used().is_some());
            timer::now() - from
        });
        // The first are warm-up.
        if turn >= 64 {
            ticks += taken;
        }
        expect(ring.answer() == 0, "status", ring.answer())?;
    }
    Ok(Some(ticks))
}
