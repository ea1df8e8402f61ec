//! The board's firmware: PSCI by SMC, where the board has it, for EL2's own cores and its end. A
//! guest's calls never come here.

use core::sync::atomic::{AtomicBool, Ordering};

use smccc::{Smc, psci};

use crate::memory::Pa;

/// Whether SMC may be executed: without EL3 it is undefined.
static PRESENT: AtomicBool = AtomicBool::new(true);

/// Says that the board has no PSCI that SMC reaches: then nothing can be turned off or reset.
pub fn set_absent() {
    PRESENT.store(false, Ordering::Relaxed);
}

/// Whether there is firmware that answers an SMC.
pub(super) fn is_present() -> bool {
    PRESENT.load(Ordering::Relaxed)
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

/// Turns a core on (PSCI CPU_ON), to enter at `entry`. `None` if there is no firmware.
pub(super) fn cpu_on(mpidr: u64, entry: Pa) -> Option<Result<(), psci::Error>> {
    PRESENT.load(Ordering::Relaxed).then(|| psci::cpu_on::<Smc>(mpidr, entry.raw(), 0))
}

/// Waits for ever: nothing is left to do, and the board cannot be turned off.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
