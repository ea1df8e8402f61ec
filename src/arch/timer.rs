//! The system counter, and EL2's own timer for polls and time-outs (CNTHP_*_EL2, PPI 26). The guest
//! has the virtual and the EL1 physical timer to itself.

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};

use super::barrier;
use super::registers::CNTHP_CVAL_EL2;
use crate::backend::clock::{Clock, Frequency, Ticks};

/// The system counter, CNTPCT_EL0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter;

/// What CNTFRQ_EL0 should have said, where firmware left it zero: QEMU's.
const FALLBACK_HERTZ: u32 = 62_500_000;

impl Clock for Counter {
    #[inline(always)]
    fn now(&self) -> Ticks {
        // CNTPCT_EL0 may be read early; where that matters the caller has an ISB of its own.
        Ticks(CNTPCT_EL0.get())
    }

    fn frequency(&self) -> Frequency {
        let fallback = const { Frequency::new(FALLBACK_HERTZ) };
        match (Frequency::new(CNTFRQ_EL0.get() as u32), fallback) {
            (Some(frequency), _) | (None, Some(frequency)) => frequency,
            (None, None) => Frequency::new(1).unwrap_or_else(|| super::firmware::park()),
        }
    }
}

impl embedded_hal::delay::DelayNs for Counter {
    fn delay_ns(&mut self, ns: u32) {
        let span = self.frequency().ticks(core::time::Duration::from_nanos(u64::from(ns)));
        let end = self.now().after(span);
        while self.now() < end {
            barrier::relax();
        }
    }
}

/// Interrupt of EL2's timer: the hypervisor physical timer's PPI (Arm BSA).
pub const TIMER_INTID: u32 = 26;

/// Raises the timer interrupt at `deadline` (CNTHP_CTL_EL2.ENABLE, IMASK clear).
pub fn wake_at(deadline: Ticks) {
    CNTHP_CVAL_EL2::set(deadline.0);
    CNTHP_CTL_EL2.set(1);
    barrier::isb();
}

/// No timer interrupt.
pub fn never_wake() {
    CNTHP_CTL_EL2.set(0);
    barrier::isb();
}
