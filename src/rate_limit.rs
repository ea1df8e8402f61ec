//! A bound on how often something may happen: on log lines that a guest can cause, above all.

use crate::backend::clock::Ticks;

/// A token bucket: so many at once, and then one for each interval.
#[derive(Clone, Debug)]
pub struct RateLimit {
    burst: u32,
    interval: Ticks,
    tokens: u32,
    /// Up to when intervals have been turned into tokens.
    counted: Ticks,
    refused: u32,
}

impl RateLimit {
    /// Admits `burst` at once, and one more for each `interval`; both are at least 1.
    pub const fn new(burst: u32, interval: Ticks) -> Self {
        let burst = if burst == 0 { 1 } else { burst };
        let interval = if interval.0 == 0 { Ticks(1) } else { interval };
        Self { burst, interval, tokens: burst, counted: Ticks(0), refused: 0 }
    }

    /// Whether it may happen at `now`: if so, how many have been refused since the last that was
    /// admitted (the count saturates). A `now` earlier than the last one is taken as that.
    pub fn admit(&mut self, now: Ticks) -> Option<u32> {
        self.refill(now);
        let Some(left) = self.tokens.checked_sub(1) else {
            self.refused = self.refused.saturating_add(1);
            return None;
        };
        self.tokens = left;
        Some(core::mem::take(&mut self.refused))
    }

    fn refill(&mut self, now: Ticks) {
        let elapsed = now.0.saturating_sub(self.counted.0);
        let earned = elapsed.checked_div(self.interval.0).unwrap_or(0);
        let missing = self.burst - self.tokens;
        if earned >= u64::from(missing) {
            // A full bucket earns nothing: its next interval begins when something is taken.
            self.tokens = self.burst;
            self.counted = self.counted.max(now);
        } else {
            self.tokens += earned as u32;
            self.counted = self.counted.after(Ticks(earned * self.interval.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: u64 = 100;

    fn limit(burst: u32) -> RateLimit {
        RateLimit::new(burst, Ticks(INTERVAL))
    }

    #[test]
    fn a_burst_is_admitted_and_the_rest_counted() {
        let mut limit = limit(3);
        let admitted = [0; 5].map(|at| limit.admit(Ticks(at)));
        assert_eq!(admitted, [Some(0), Some(0), Some(0), None, None]);
        assert_eq!(limit.admit(Ticks(INTERVAL)), Some(2));
        assert_eq!(limit.admit(Ticks(INTERVAL)), None);
        assert_eq!(limit.admit(Ticks(3 * INTERVAL)), Some(1));
        assert_eq!(limit.admit(Ticks(3 * INTERVAL)), Some(0));
        assert_eq!(limit.admit(Ticks(3 * INTERVAL)), None);
    }

    #[test]
    fn part_of_an_interval_is_not_lost() {
        let mut limit = limit(1);
        assert_eq!(limit.admit(Ticks(1000)), Some(0));
        for at in [1030, 1060, 1099] {
            assert_eq!(limit.admit(Ticks(at)), None);
        }
        assert_eq!(limit.admit(Ticks(1100)), Some(3));
        assert_eq!(limit.admit(Ticks(1199)), None);
    }

    #[test]
    fn a_long_silence_earns_no_more_than_a_burst() {
        let mut limit = limit(2);
        let late = [u64::MAX - 1; 4].map(|at| limit.admit(Ticks(at)).is_some());
        assert_eq!(late, [true, true, false, false]);
    }

    #[test]
    fn a_clock_that_goes_back_or_an_interval_of_zero_is_no_panic() {
        let mut limit = RateLimit::new(0, Ticks(0));
        assert_eq!(limit.admit(Ticks(50)), Some(0));
        assert_eq!(limit.admit(Ticks(10)), None);
        assert_eq!(limit.admit(Ticks(51)), Some(1));
    }

    proptest! {
        #[test]
        fn no_window_admits_more_than_a_burst_and_its_intervals(
            burst in 1u32..6, gaps in prop::collection::vec(0u64..300, 1..60),
        ) {
            let mut limit = limit(burst);
            let (mut now, mut refused, mut times) = (0, 0, Vec::new());
            for gap in gaps {
                now += gap;
                match limit.admit(Ticks(now)) {
                    Some(count) => {
                        prop_assert_eq!(count, refused);
                        refused = 0;
                        times.push(now);
                    }
                    None => refused += 1,
                }
            }
            for (first, start) in times.iter().enumerate() {
                for (last, end) in times.iter().enumerate().skip(first) {
                    let allowed = u64::from(burst) + (end - start) / INTERVAL + 1;
                    prop_assert!((last - first + 1) as u64 <= allowed);
                }
            }
        }

        #[test]
        fn what_comes_no_faster_than_the_interval_is_always_admitted(
            burst in 1u32..6, gaps in prop::collection::vec(INTERVAL..1000, 1..40),
        ) {
            let mut limit = limit(burst);
            let mut now = 0;
            for gap in gaps {
                now += gap;
                prop_assert_eq!(limit.admit(Ticks(now)), Some(0));
            }
        }
    }
}
