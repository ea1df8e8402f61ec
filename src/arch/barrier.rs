//! Barriers, each named for what it orders (Arm ARM, "Memory barriers").
//!
//! Devices of the board are taken to be in the outer shareable domain, cores and their table walkers
//! in the inner one.

use core::arch::asm;

/// Table entries written before are seen by the walker of every core after (DSB ISHST, ISB).
#[inline(always)]
pub fn tables_written() {
    // SAFETY: a barrier touches no memory and no register.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) }
}

/// Memory writes before are seen by any observer, devices included, before a later register write
/// (DMB OSHST).
#[inline(always)]
pub fn before_doorbell() {
    // SAFETY: as above.
    unsafe { asm!("dmb oshst", options(nostack, preserves_flags)) }
}

/// A register read before is complete before later memory reads (DMB OSHLD).
#[inline(always)]
pub fn after_register_read() {
    // SAFETY: as above.
    unsafe { asm!("dmb oshld", options(nostack, preserves_flags)) }
}

/// Memory accesses before are seen by any observer, devices included, before those after.
#[inline(always)]
pub fn with_devices() {
    // SAFETY: as above.
    unsafe { asm!("dmb osh", options(nostack, preserves_flags)) }
}

/// Memory writes before are seen by the core that takes the interrupt sent after (DSB ISHST).
#[inline(always)]
pub fn before_sgi() {
    // SAFETY: as above.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) }
}

/// System-register writes before are in effect after (ISB).
#[inline(always)]
pub fn isb() {
    // SAFETY: as above.
    unsafe { asm!("isb", options(nostack, preserves_flags)) }
}

/// All maintenance and accesses before are complete (DSB SY, ISB).
#[inline(always)]
pub fn complete() {
    // SAFETY: as above.
    unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) }
}

/// Cores that wait for an event go on (SEV), and find what was written before (DSB SY).
#[inline(always)]
pub fn wake_waiting_cores() {
    // SAFETY: as above.
    unsafe { asm!("dsb sy", "sev", options(nostack, preserves_flags)) }
}

/// Waits until an interrupt is pending for this core, taken or masked (WFI).
#[inline(always)]
pub fn wait_for_interrupt() {
    // What was written before must be out before nobody looks any more. SAFETY: a barrier and a hint.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}

/// Waits until another core sends an event, or anything else ends it (WFE).
#[inline(always)]
pub fn wait_for_event() {
    // SAFETY: a hint.
    unsafe { asm!("wfe", options(nomem, nostack, preserves_flags)) }
}

/// Lets another hardware thread, or under QEMU another core, go first: for loops that wait.
#[inline(always)]
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) }
}
