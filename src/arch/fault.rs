//! EL2's own faults: a dump of the registers, then a reset. Never silence.
//!
//! The exception is a probe: an access that is expected to fault, and says how. `boot/probe.S` has
//! the accesses; the vector comes back to their end with ESR_EL2.

use core::fmt::Write;

use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, Readable, SPSR_EL2, Writeable};

use super::{console, firmware, registers};

/// x0 to x30 and SP_EL2, as the vector left them on the exception stack.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Dump {
    x: [u64; 31],
    /// The stack pointer at the fault.
    pub(super) sp: u64,
}

const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];

/// Set once a fault is being reported: a second one says no more.
static REPORTING: AtomicBool = AtomicBool::new(false);
/// Set while a probe is under way.
static PROBING: AtomicBool = AtomicBool::new(false);

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
/// Before any guest runs, because a fault loses TPIDR_EL2; on one core. If it does not fault: the
/// access must be harmless, and the function called one that follows the C calling convention.
pub unsafe fn probe(kind: Probe, address: usize) -> Result<(), u64> {
    PROBING.store(true, Ordering::Relaxed);
    let access = match kind {
        Probe::Read => probe_read,
        Probe::Write => probe_write,
        Probe::Call => probe_call,
    };
    // SAFETY: as the caller vouches; a fault comes back through `probe_fixup`.
    let esr = unsafe { access(address) };
    PROBING.store(false, Ordering::Relaxed);
    if esr == 0 { Ok(()) } else { Err(esr) }
}

/// Where the vectors of EL2's own exceptions end. Returns only from a probe's fault.
pub(super) extern "C" fn on_fatal(dump: &mut Dump, kind: u64) -> &mut Dump {
    if PROBING.swap(false, Ordering::Relaxed) {
        let [x0, ..] = &mut dump.x;
        *x0 = ESR_EL2.get();
        let fixup: unsafe extern "C" fn() = probe_fixup;
        ELR_EL2.set(fixup as usize as u64);
        return dump;
    }
    if REPORTING.swap(true, Ordering::Relaxed) {
        firmware::reset();
        firmware::park()
    }
    console::open_default();
    let mut out = console::Unlocked;
    let name = KINDS.get(kind as usize & 3).unwrap_or(&"exception");
    let _ = writeln!(out, "[sparkler] EL2 fault: {name}, vector {kind}");
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
    let _ = writeln!(out, "[sparkler] resetting the board");
    firmware::reset();
    firmware::park()
}

/// Writes x0 to x30, four a line.
#[inline(never)]
pub(super) fn write_registers(out: &mut dyn Write, x: &dyn Fn(usize) -> u64) {
    for n in 0..31 {
        let end = if n % 4 == 3 || n == 30 { "\n" } else { "" };
        let _ = write!(out, "  x{n:<2} {:#018x}{end}", x(n));
    }
}

/// Where EL2's own panics end: reported even if this core holds the console, then a reset.
pub fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if !REPORTING.swap(true, Ordering::Relaxed) {
        console::open_default();
        let _ = writeln!(console::Unlocked, "[sparkler] EL2 {info}");
    }
    firmware::reset();
    firmware::park()
}
