//! Exceptions taken to EL1: expected ones are noted and stepped over, others end the run.

use crate::console::{Hex, line};
use crate::gic;
use crate::report;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

/// Registers as `entry.s` saves them.
#[repr(C)]
pub(crate) struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    _padding: u64,
}

/// An exception that [`guarded`] caught.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
}

impl Fault {
    /// A data abort without a change of exception level whose cause is external, not on a
    /// translation table walk (Arm ARM D24.2.40: EC 0x25, DFSC 0x10).
    pub(crate) fn is_external_abort(self) -> bool {
        self.esr >> 26 == 0x25 && self.esr & 0x3f == 0x10
    }
}

static GUARDED: AtomicBool = AtomicBool::new(false);
static CAUGHT: AtomicBool = AtomicBool::new(false);
static ESR: AtomicU64 = AtomicU64::new(0);
static FAR: AtomicU64 = AtomicU64::new(0);

/// Runs `access`; an exception in it is reported instead, and the instruction skipped.
pub(crate) fn guarded<T>(access: impl FnOnce() -> T) -> Result<T, Fault> {
    CAUGHT.store(false, Ordering::Relaxed);
    GUARDED.store(true, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let value = access();
    compiler_fence(Ordering::SeqCst);
    GUARDED.store(false, Ordering::Relaxed);
    if CAUGHT.load(Ordering::Relaxed) {
        Err(Fault { esr: ESR.load(Ordering::Relaxed), far: FAR.load(Ordering::Relaxed) })
    } else {
        Ok(value)
    }
}

/// Synchronous exception from EL1, called by the vectors.
#[unsafe(no_mangle)]
extern "C" fn exception_synchronous(frame: &mut Frame) {
    if !GUARDED.load(Ordering::Relaxed) {
        exception_unexpected(frame, 4);
    }
    let (esr, far) = syndrome();
    ESR.store(esr, Ordering::Relaxed);
    FAR.store(far, Ordering::Relaxed);
    CAUGHT.store(true, Ordering::Relaxed);
    // An SMC or an undefined instruction too: ELR is the instruction that faulted.
    frame.elr = frame.elr.wrapping_add(4);
}

/// Interrupt, called by the vectors.
#[unsafe(no_mangle)]
extern "C" fn exception_interrupt() {
    gic::interrupt::<gic::SystemRegisters>();
}

/// The same with a GICv2.
#[unsafe(no_mangle)]
extern "C" fn exception_interrupt_v2() {
    gic::interrupt::<gic::MemoryMapped>();
}

/// Anything else: says what happened and ends the run as failed.
#[unsafe(no_mangle)]
extern "C" fn exception_unexpected(frame: &Frame, vector: u64) -> ! {
    let (esr, far) = syndrome();
    line!("\nunexpected exception, vector ", vector, ", ESR ", Hex(esr), ", FAR ", Hex(far));
    line!("ELR ", Hex(frame.elr), ", SPSR ", Hex(frame.spsr), ", x30 ", Hex(frame.x[30]));
    report::abandon()
}

/// Prints the return addresses of the calls in progress, as offsets in the image.
pub(crate) fn backtrace() {
    let (image, stack_end): (u64, u64);
    let mut frame: u64;
    // SAFETY: reads where we are.
    unsafe {
        asm!("adrp {}, image_header", "adrp {}, image_end", "mov {}, x29",
            out(reg) image, out(reg) stack_end, out(reg) frame, options(nomem, nostack));
    }
    for _ in 0..10 {
        // entry.s starts the chain with 0; the stack is the last thing in the image.
        if frame < image || frame >= stack_end || !frame.is_multiple_of(16) {
            break;
        }
        // SAFETY: in our stack, where a frame record is (AAPCS64 6.4.6).
        let [caller, address] = unsafe { (frame as *const [u64; 2]).read() };
        if address < image {
            break;
        }
        line!("  ", Hex(address - image));
        frame = caller;
    }
}

fn syndrome() -> (u64, u64) {
    let (esr, far);
    // SAFETY: reads of the syndrome registers.
    unsafe {
        asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) esr, out(reg) far, options(nomem, nostack));
    }
    (esr, far)
}
