//! How long requests took: counts by powers of two.

/// Buckets of a histogram. The last has all that took longer.
pub const BUCKETS: usize = 32;

/// Counts of spans: bucket n has those of less than 2^n ticks and at least half of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram([u32; BUCKETS]);

impl Histogram {
    /// Nothing counted.
    pub const EMPTY: Self = Self([0; BUCKETS]);

    /// Counts a span. A count stays at its greatest value.
    #[inline]
    pub fn record(&mut self, ticks: u64) {
        let bucket = (u64::BITS - ticks.leading_zeros()) as usize;
        if let Some(count) = self.0.get_mut(bucket.min(BUCKETS - 1)) {
            *count = count.saturating_add(1);
        }
    }

    /// The buckets that have something: their limit in ticks (`None`: there is none), and their count.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u32)> + '_ {
        let limit = |bucket: usize| (bucket < BUCKETS - 1).then(|| 1u64 << bucket);
        let counts = self.0.iter().enumerate();
        counts.filter(|(_, count)| **count != 0).map(move |(bucket, count)| (limit(bucket), *count))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::EMPTY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_is_counted_below_its_limit_and_not_below_half_of_it() {
        for (ticks, limit) in [
            (0, Some(1)),
            (1, Some(2)),
            (2, Some(4)),
            (3, Some(4)),
            (4, Some(8)),
            (1023, Some(1024)),
            (1024, Some(2048)),
            ((1 << 30) - 1, Some(1 << 30)),
            (1 << 30, None),
            (u64::MAX, None),
        ] {
            let mut histogram = Histogram::EMPTY;
            histogram.record(ticks);
            histogram.record(ticks);
            assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(limit, 2)], "{ticks}");
        }
    }

    #[test]
    fn buckets_come_in_order() {
        let mut histogram = Histogram::EMPTY;
        for ticks in [1000, 3, 70, 1000, u64::MAX, 3] {
            histogram.record(ticks);
        }
        let expected = [(Some(4), 2), (Some(128), 1), (Some(1024), 2), (None, 1)];
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), expected);
    }
}
