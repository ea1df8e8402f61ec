//! The board's firmware: PSCI by SMC. There is firmware at EL3 wherever EL2 was entered from it.

use smccc::{Smc, psci};

/// Turns the board off. Returns only if the firmware refuses.
pub fn power_off() {
    let _ = psci::system_off::<Smc>();
}

/// Resets the board. Returns only if the firmware refuses.
pub fn reset() {
    let _ = psci::system_reset::<Smc>();
}

/// Nothing is left to do, and the firmware refused to turn the board off.
pub fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
