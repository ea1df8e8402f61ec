//! Time: ticks of the board's counter, never confused with nanoseconds.

use core::time::Duration;

/// A point in time or a span, in ticks of the system counter (CNTPCT_EL0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticks(pub u64);

impl Ticks {
    /// This point in time plus `span`; saturates, so a far deadline is never.
    pub const fn after(self, span: Ticks) -> Ticks {
        Ticks(self.0.saturating_add(span.0))
    }
}

/// Frequency of the system counter in Hz (CNTFRQ_EL0); never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frequency(core::num::NonZeroU32);

impl Frequency {
    /// A frequency in Hz, `None` for zero.
    pub const fn new(hertz: u32) -> Option<Self> {
        match core::num::NonZeroU32::new(hertz) {
            Some(hertz) => Some(Self(hertz)),
            None => None,
        }
    }

    /// The frequency in Hz.
    pub const fn hertz(self) -> u32 {
        self.0.get()
    }

    /// `span` in ticks, rounded up, saturating.
    pub const fn ticks(self, span: Duration) -> Ticks {
        let hertz = self.0.get() as u64;
        // Less than 2^30 times less than 2^32.
        let rest = (span.subsec_nanos() as u64 * hertz).div_ceil(1_000_000_000);
        Ticks(span.as_secs().saturating_mul(hertz).saturating_add(rest))
    }

    /// `span` in microseconds, rounded down, saturating.
    pub fn microseconds(self, span: Ticks) -> u64 {
        let hertz = u64::from(self.0.get());
        let whole = span.0.checked_div(hertz).unwrap_or(0).saturating_mul(1_000_000);
        let rest = span.0.checked_rem(hertz).unwrap_or(0) * 1_000_000;
        whole.saturating_add(rest.checked_div(hertz).unwrap_or(0))
    }
}

/// A monotonic clock.
pub trait Clock {
    /// The present time.
    fn now(&self) -> Ticks;
    /// How fast it runs.
    fn frequency(&self) -> Frequency;
}
