//! The board's firmware: PSCI by SMC, where the board has it.

use core::sync::atomic::{AtomicBool, Ordering};

use smccc::{Smc, psci};

/// Whether SMC may be executed: without EL3 it is undefined.
static PRESENT: AtomicBool = AtomicBool::new(true);

/// Says that the board has no PSCI that SMC reaches: then nothing can be turned off or reset.
pub fn set_absent() {
    PRESENT.store(false, Ordering::Relaxed);
}

/// Turns the board off. Returns only if the firmware refuses.
pub fn power_off() {
    if PRESENT.load(Ordering::Relaxed) {
        let _ = psci::system_off::<Smc>();
    }
}

/// Resets the board. Returns only if the firmware refuses.
pub fn reset() {
    if PRESENT.load(Ordering::Relaxed) {
        let _ = psci::system_reset::<Smc>();
    }
}

/// Nothing is left to do, and the firmware refused to turn the board off.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
