//! The virtual counter and timer (Arm ARM D12), and the clock that bounds every wait.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// INTID of the EL1 virtual timer's private interrupt.
pub(crate) const INTID: u32 = 27;

/// CNTV_CTL_EL0.ENABLE.
const ENABLE: u64 = 1 << 0;
/// CNTV_CTL_EL0.IMASK.
const IMASK: u64 = 1 << 1;

static WATCHDOG: AtomicBool = AtomicBool::new(false);

/// Ticks of the counter a second.
pub(crate) fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: a register read.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack)) };
    hertz
}

/// CNTVCT_EL0, read after everything before it has happened.
#[inline]
pub(crate) fn now() -> u64 {
    let ticks: u64;
    // SAFETY: a register read.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack)) };
    ticks
}

/// Ticks in `milliseconds`.
pub(crate) fn ticks(milliseconds: u64) -> u64 {
    frequency() / 1000 * milliseconds
}

/// The interrupt is asserted from counter value `at` on, until [`stop`] or a later [`fire_at`].
#[inline]
pub(crate) fn fire_at(at: u64) {
    // SAFETY: programs our own timer.
    unsafe {
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb", in(reg) at, in(reg) ENABLE,
            options(nostack));
    }
}

/// The timer's output is masked; its condition stays.
pub(crate) fn stop() {
    // SAFETY: programs our own timer.
    unsafe { asm!("msr cntv_ctl_el0, {}", "isb", in(reg) ENABLE | IMASK, options(nostack)) };
}

/// Runs `work`; if it takes longer than `milliseconds` the run ends as failed. Interrupts must be on.
pub(crate) fn bounded<T>(milliseconds: u64, work: impl FnOnce() -> T) -> T {
    arm_watchdog(milliseconds);
    let value = work();
    disarm_watchdog();
    value
}

#[inline(never)]
fn arm_watchdog(milliseconds: u64) {
    WATCHDOG.store(true, Ordering::Relaxed);
    fire_at(now() + ticks(milliseconds));
}

#[inline(never)]
fn disarm_watchdog() {
    stop();
    WATCHDOG.store(false, Ordering::Relaxed);
}

/// Whether a timer interrupt now means that [`bounded`] work took too long.
pub(crate) fn watchdog_armed() -> bool {
    WATCHDOG.load(Ordering::Relaxed)
}

/// Waits until `done` says so; false if `milliseconds` passed first.
pub(crate) fn wait(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    poll(milliseconds, &mut done)
}

// One copy of the loop: the size of the guest counts.
#[inline(never)]
fn poll(milliseconds: u64, done: &mut dyn FnMut() -> bool) -> bool {
    let deadline = now() + ticks(milliseconds);
    while !done() {
        if now() > deadline {
            return false;
        }
        // SAFETY: a hint; the emulator may run something else meanwhile.
        unsafe { asm!("yield", options(nomem, nostack)) };
    }
    true
}
