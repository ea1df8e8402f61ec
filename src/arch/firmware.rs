//! The board's firmware: PSCI by SMC, where the board has it, for EL2's own end. A guest's calls never
//! come here.

use core::sync::atomic::{AtomicBool, Ordering};

use smccc::{Smc, psci};

/// Whether SMC may be executed: without EL3 it is undefined.
static PRESENT: AtomicBool = AtomicBool::new(true);

/// Says that the board has no PSCI that SMC reaches: then nothing can be turned off or reset.
pub fn set_absent() {
    PRESENT.store(false, Ordering::Relaxed);
}

/// Turns the board off (PSCI SYSTEM_OFF). Returns only if there is no firmware, or it
/// refuses.
pub fn power_off() {
    if PRESENT.load(Ordering::Relaxed) {
        let _ = psci::system_off::<Smc>();
    }
}

/// Resets the board (PSCI SYSTEM_RESET). Returns only if there is no firmware, or it
/// refuses.
pub fn reset() {
    if PRESENT.load(Ordering::Relaxed) {
        let _ = psci::system_reset::<Smc>();
    }
}

/// Waits for ever: nothing is left to do, and the board cannot be turned off.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
