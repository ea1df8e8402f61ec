//! Rate limits: how many bytes and how many requests a second a device may do in one direction.
//!
//! A limiter never waits. It says whether a request may start now, and if not, when: the device
//! leaves the request in its ring, and asks to be polled then
//! ([`NextPoll::At`](super::NextPoll::At)).
//!
//! Two buckets of credit, for bytes and for requests. A request starts if there is one in each, and what
//! it costs is then taken, even if that is more than there is: the next one waits for the debt to be
//! paid. So the rate holds over any size of requests, also beyond the burst. And who has waited earns
//! for the whole time, although a timer that was late would have let the bucket overflow: so it
//! holds for any size of the burst as well.

use super::Direction;
use crate::backend::clock::{Frequency, Ticks};

/// One limit, in bytes or requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many a second; not 0.
    pub per_second: u32,
    /// So many at once, after a while without any; at least 1.
    pub burst: u32,
}

impl Rate {
    /// So many a second; at once `burst`, or a tenth of a second's. `None` if either is 0.
    pub fn new(per_second: u32, burst: Option<u32>) -> Option<Self> {
        let burst = burst.unwrap_or(per_second.div_ceil(10));
        (per_second != 0 && burst != 0).then_some(Self { per_second, burst })
    }
}

/// What a device may do in one direction. `None`: as much as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// In bytes of data.
    pub bytes: Option<Rate>,
    /// In requests, or frames.
    pub requests: Option<Rate>,
}

/// Credit, in units times ticks a second: a tick earns `per_second` of it, a unit costs `hertz`.
/// Nothing is lost by rounding.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    hertz: u32,
    /// Negative: a debt. Less than 2^63 either way, for a unit count is less than 2^32, and so is
    /// the frequency.
    credit: i64,
    /// Up to when credit was earned.
    earned: Ticks,
    /// A request waits for this bucket.
    is_waited_for: bool,
}

impl Bucket {
    /// A full one.
    fn new(rate: Rate, frequency: Frequency, now: Ticks) -> Self {
        let hertz = frequency.hertz();
        let mut bucket = Self { rate, hertz, credit: 0, earned: now, is_waited_for: false };
        bucket.credit = bucket.capacity();
        bucket
    }

    fn cost(&self, units: u32) -> i64 {
        // Below 2^63 only if halved: two factors of 32 bits. Rates this high are no limit.
        i64::try_from(u64::from(units) * u64::from(self.hertz)).unwrap_or(i64::MAX)
    }

    fn capacity(&self) -> i64 {
        self.cost(self.rate.burst.max(1))
    }

    fn earn(&mut self, now: Ticks) {
        let elapsed = now.0.saturating_sub(self.earned.0);
        self.earned = self.earned.max(now);
        let earned = elapsed.saturating_mul(u64::from(self.rate.per_second.max(1)));
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        // What was earned while somebody waited is not lost, but for what is beyond one second's: then
        // nobody has looked for very long.
        let most = match self.is_waited_for {
            true => self.capacity().max(self.cost(self.rate.per_second)),
            false => self.capacity(),
        };
        self.credit = self.credit.saturating_add(earned).min(most.max(self.credit));
    }

    /// When there will be credit, if there is none.
    fn wait(&self) -> Option<Ticks> {
        let missing = u64::try_from(self.cost(1).saturating_sub(self.credit)).ok()?;
        if missing == 0 {
            return None;
        }
        let span = missing.div_ceil(u64::from(self.rate.per_second.max(1)));
        Some(self.earned.after(Ticks(span)))
    }
}

/// Holds a device to its [`Limits`] in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
}

impl Limiter {
    /// One without limits.
    pub const UNLIMITED: Self = Self { bytes: None, requests: None };

    /// Other limits from `now` on: with a full bucket each.
    pub fn set(&mut self, limits: Limits, frequency: Frequency, now: Ticks) {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, frequency, now));
        *self = Self { bytes: bucket(limits.bytes), requests: bucket(limits.requests) };
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        let rate = |bucket: &Option<Bucket>| bucket.map(|bucket| bucket.rate);
        Limits { bytes: rate(&self.bytes), requests: rate(&self.requests) }
    }

    /// Whether a request may start at `now`.
    ///
    /// # Errors
    /// When to ask again.
    #[inline(always)]
    pub fn admit(&mut self, now: Ticks) -> Result<(), Ticks> {
        if self.bytes.is_none() && self.requests.is_none() {
            return Ok(());
        }
        self.admit_limited(now)
    }

    #[inline(never)]
    fn admit_limited(&mut self, now: Ticks) -> Result<(), Ticks> {
        let mut until = None;
        for bucket in [&mut self.bytes, &mut self.requests].into_iter().flatten() {
            bucket.earn(now);
            let wait = bucket.wait();
            bucket.is_waited_for |= wait.is_some();
            until = until.max(wait);
        }
        until.map_or(Ok(()), Err)
    }

    /// A request of so many bytes of data starts, or was served without having been admitted.
    #[inline(always)]
    pub fn charge(&mut self, bytes: u32) {
        if let Some(bucket) = &mut self.requests {
            bucket.credit = bucket.credit.saturating_sub(bucket.cost(1));
            bucket.is_waited_for = false;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.credit = bucket.credit.saturating_sub(bucket.cost(bytes));
            bucket.is_waited_for = false;
        }
    }

    /// Nobody waits any more: the device was reset. Credit and debt stay.
    pub fn reset(&mut self) {
        for bucket in [&mut self.bytes, &mut self.requests].into_iter().flatten() {
            bucket.is_waited_for = false;
        }
    }
}

/// The limiters of a device, and until when it has left requests in its rings because of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    /// To the guest, and from it.
    limiters: [Limiter; 2],
    parked: Option<Ticks>,
}

impl Throttle {
    /// Without limits.
    pub const UNLIMITED: Self = Self { limiters: [Limiter::UNLIMITED; 2], parked: None };

    fn limiter(&mut self, direction: Direction) -> &mut Limiter {
        let [inwards, outwards] = &mut self.limiters;
        match direction {
            Direction::In => inwards,
            Direction::Out => outwards,
        }
    }

    /// Whether a request in this direction may start now. If not, it is to be left in its ring until
    /// [`Self::parked`].
    #[inline(always)]
    pub fn admit(&mut self, direction: Direction, now: Ticks) -> bool {
        match self.limiter(direction).admit(now) {
            Ok(()) => true,
            Err(until) => {
                self.parked = Some(self.parked.map_or(until, |parked| parked.min(until)));
                false
            }
        }
    }

    /// A request of so many bytes starts.
    #[inline(always)]
    pub fn charge(&mut self, direction: Direction, bytes: u32) {
        self.limiter(direction).charge(bytes);
    }

    /// When the first of those that are left in rings may start; `None` if none is.
    #[inline]
    pub fn parked(&self) -> Option<Ticks> {
        self.parked
    }

    /// All that is left in rings is tried again.
    #[inline]
    pub fn unpark(&mut self) {
        self.parked = None;
    }

    /// The device is reset: nobody waits any more. Limits, credit and debt stay.
    pub fn reset(&mut self) {
        *self = Self { parked: None, ..*self };
        for limiter in &mut self.limiters {
            limiter.reset();
        }
    }

    /// Sets the limits of a direction.
    pub fn set(&mut self, to: Direction, limits: Limits, frequency: Frequency, now: Ticks) {
        self.limiter(to).set(limits, frequency, now);
    }

    /// The limits of a direction.
    pub fn limits(&self, direction: Direction) -> Limits {
        let [inwards, outwards] = &self.limiters;
        match direction {
            Direction::In => inwards.limits(),
            Direction::Out => outwards.limits(),
        }
    }
}

#[cfg(test)]
mod tests;
