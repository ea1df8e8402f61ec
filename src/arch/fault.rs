//! EL2's own faults: a dump of the registers, then a reset. Never silence.
//!
//! The exception is a probe: an access that is expected to fault, and says how. `boot/probe.S` has
//! the accesses; the vector comes back to their end with ESR_EL2.
//!
//! Each core has its own exception stack and its own probes. Cores that fail at the same time report
//! one after the other, and the last one resets the board, after it has waited a while for others
//! with the same trouble.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;

use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, Readable, SPSR_EL2, Writeable};

use super::smp::{MAX_CORES, this_core};
use super::{barrier, console, firmware, registers, timer};
use crate::backend::clock::Clock;

/// x0 to x30 and SP_EL2, as the vector left them on the exception stack.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Dump {
    x: [u64; 31],
    /// The stack pointer at the fault.
    pub(super) sp: u64,
}

const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];

/// The core that reports, counted from 1; 0 while nobody does.
static REPORTER: AtomicUsize = AtomicUsize::new(0);
/// Cores that have failed, until a while after their report.
static FAILED: AtomicUsize = AtomicUsize::new(0);
/// How long a core waits for another one's report; at 115,200 baud it takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the board waits, after a report, for cores that fail of the same cause a little later.
const GRACE: Duration = Duration::from_millis(500);

/// The cores on which a probe is under way.
static PROBING: [AtomicBool; MAX_CORES] = [const { AtomicBool::new(false) }; MAX_CORES];

core::arch::global_asm!(include_str!("../../boot/probe.S"));

unsafe extern "C" {
    fn probe_read(address: usize) -> u64;
    fn probe_write(address: usize) -> u64;
    fn probe_call(address: usize) -> u64;
    fn probe_fixup();
}

/// What a probe does at its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Loads a word.
    Read,
    /// Stores a zero word.
    Write,
    /// Calls a function.
    Call,
}

/// Tries an access at EL2 that may fault.
///
/// # Errors
/// The ESR_EL2 of the fault.
///
/// # Safety
/// Before this core runs a guest, because a fault loses TPIDR_EL2. If it does not fault: the
/// access must be harmless, and the function called one that follows the C calling convention.
pub unsafe fn probe(kind: Probe, address: usize) -> Result<(), u64> {
    let probing = PROBING.get(this_core());
    if let Some(probing) = probing {
        probing.store(true, Ordering::Relaxed);
    }
    let access = match kind {
        Probe::Read => probe_read,
        Probe::Write => probe_write,
        Probe::Call => probe_call,
    };
    // SAFETY: as the caller vouches; a fault comes back through `probe_fixup`.
    let esr = unsafe { access(address) };
    if let Some(probing) = probing {
        probing.store(false, Ordering::Relaxed);
    }
    if esr == 0 { Ok(()) } else { Err(esr) }
}

/// Where the vectors of EL2's own exceptions end. Returns only from a probe's fault.
pub(super) extern "C" fn on_fatal(dump: &mut Dump, kind: u64) -> &mut Dump {
    if PROBING.get(this_core()).is_some_and(|probing| probing.swap(false, Ordering::Relaxed)) {
        let [x0, ..] = &mut dump.x;
        *x0 = ESR_EL2.get();
        let fixup: unsafe extern "C" fn() = probe_fixup;
        ELR_EL2.set(fixup as usize as u64);
        return dump;
    }
    let mut out = begin_report();
    let name = KINDS.get(kind as usize & 3).unwrap_or(&"exception");
    let _ = writeln!(out, "[sparkler] EL2 fault: {name}, vector {kind}, core {}", this_core());
    let _ = writeln!(
        out,
        "  ESR_EL2 {:#018x}  ELR_EL2 {:#018x}  SPSR_EL2 {:#018x}",
        ESR_EL2.get(),
        ELR_EL2.get(),
        SPSR_EL2.get()
    );
    let _ = writeln!(
        out,
        "  FAR_EL2 {:#018x}  HPFAR   {:#018x}  SP       {:#018x}",
        FAR_EL2.get(),
        registers::HPFAR_EL2::get(),
        dump.sp
    );
    write_registers(&mut out, &|n| dump.x.get(n).copied().unwrap_or(0));
    let _ = writeln!(out, "\n[sparkler] resetting the board");
    end_report(out)
}

/// Waits until no other core reports, and takes the console, whoever has it. A fault of the report
/// itself resets the board at once.
fn begin_report() -> console::Seized {
    let this = this_core() + 1;
    if REPORTER.load(Ordering::Relaxed) == this {
        reset()
    }
    FAILED.fetch_add(1, Ordering::Relaxed);
    let clock = timer::Counter;
    let end = clock.now().after(clock.frequency().ticks(PATIENCE));
    while REPORTER.compare_exchange(0, this, Ordering::Acquire, Ordering::Relaxed).is_err() {
        if clock.now() > end {
            REPORTER.store(this, Ordering::Relaxed);
            break;
        }
        barrier::relax();
    }
    console::open_default();
    console::seize()
}

/// Lets the next core report; the last one resets the board, if nobody else fails within the grace.
fn end_report(out: console::Seized) -> ! {
    drop(out);
    REPORTER.store(0, Ordering::Release);
    let clock = timer::Counter;
    let end = clock.now().after(clock.frequency().ticks(GRACE));
    while clock.now() < end {
        barrier::relax();
    }
    if FAILED.fetch_sub(1, Ordering::Relaxed) > 1 { firmware::park() } else { reset() }
}

fn reset() -> ! {
    firmware::reset();
    firmware::park()
}

/// Writes x0 to x30, four a line, the last line without its end.
#[inline(never)]
pub(super) fn write_registers(out: &mut dyn Write, x: &dyn Fn(usize) -> u64) {
    for n in 0..31 {
        let end = if n % 4 == 3 { "\n" } else { "" };
        let _ = write!(out, "  x{n:<2} {:#018x}{end}", x(n));
    }
}

/// Where EL2's own panics end: reported even if this core holds the console, then a reset.
pub fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut out = begin_report();
    let _ = writeln!(out, "[sparkler] EL2 {info}");
    end_report(out)
}
