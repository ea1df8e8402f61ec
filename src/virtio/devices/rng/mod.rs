//! The entropy device (5.4): fills the driver's buffers with random bytes.
//!
//! The bytes are a [generator](Generator)'s, which the board's source keeps fresh. If the source has nothing yet,
//! or has failed, requests stay in the ring until it has: the driver waits, and gets no weak bytes. Of a
//! failure the operator is told; the driver has done nothing wrong, so the device needs no reset.
//!
//! Bytes cost instructions, so that a call gives no more than [`MOST_AT_ONCE`]; what is left comes with
//! the next poll. There are no features and there is no configuration space.

#[cfg(test)]
mod tests;

use core::time::Duration;

use crate::backend::clock::{Frequency, Ticks};
use crate::backend::entropy::{BLOCK, Generator, NoEntropy, SharedSource};
use crate::virtio::buffer::Writer;
use crate::virtio::limiter::{Limits, Throttle};
use crate::virtio::queue::{Chain, ChainBuffer, QueueError};
use crate::virtio::{
    Adjustment, Context, DeviceType, Direction, NextPoll, NotAdjusted, Progress, VirtioDevice,
};

/// Bytes that one call gives.
pub const MOST_AT_ONCE: usize = 16 * 1024;

/// Index of requestq (5.4.2).
const REQUEST_QUEUE: u16 = 0;
/// And its entries.
const QUEUE_MAX_SIZES: [u16; 1] = [64];

/// How long a seed does.
const SEED_SPAN: Duration = Duration::from_secs(60);
/// Until a source is asked again that has nothing yet.
const RETRY: Duration = Duration::from_millis(1);
/// Until one is asked again that has failed.
const RETRY_FAILED: Duration = Duration::from_secs(1);

/// Where the bytes come from, and when.
struct Supply<'d> {
    source: &'d SharedSource<'d>,
    generator: Generator,
    frequency: Frequency,
    throttle: Throttle,
    /// Requests wait for the source until then.
    waits: Option<Ticks>,
    /// Times that the source had failed when it was asked.
    errors: u64,
}

impl Supply<'_> {
    /// Whether a request may be answered now: there are good bytes, and the limit allows it.
    fn is_ready(&mut self, now: Ticks) -> bool {
        if !self.throttle.admit(Direction::In, now) {
            return false;
        }
        let span = self.frequency.ticks(SEED_SPAN);
        let Err(reason) = self.generator.ensure(self.source, now, span) else { return true };
        let failed = reason == NoEntropy::Failed;
        self.errors += u64::from(failed);
        let wait = if failed { RETRY_FAILED } else { RETRY };
        self.waits = Some(now.after(self.frequency.ticks(wait)));
        false
    }

    /// Writes `len` bytes; after [`Self::is_ready`].
    fn fill(&mut self, writable: &mut Writer<'_, '_>, len: usize) {
        while let Some(missing) = len.checked_sub(writable.written())
            && missing != 0
            && let Some(bytes) = self.generator.next_block()
            && let Some(bytes) = bytes.get(..missing.min(BLOCK))
            && writable.write_bytes(bytes).is_some()
        {}
    }
}

/// An entropy device.
pub struct Rng<'d, 'm> {
    supply: Supply<'d>,
    chain: ChainBuffer<'m>,
    /// Requests that were answered.
    requests: u64,
    bytes: u64,
}

impl<'d, 'm> Rng<'d, 'm> {
    /// A device with bytes of `source`, where time goes by with `frequency`.
    pub fn new(source: &'d SharedSource<'d>, frequency: Frequency) -> Self {
        let supply = Supply {
            source,
            generator: Generator::default(),
            frequency,
            throttle: Throttle::UNLIMITED,
            waits: None,
            errors: 0,
        };
        Self { supply, chain: ChainBuffer::new(), requests: 0, bytes: 0 }
    }
}

impl<'m> VirtioDevice<'m> for Rng<'_, 'm> {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn queue_notified(&mut self, _index: u16, context: &mut Context<'_, 'm>) {
        self.poll(context);
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let now = context.now();
        let Some(mut queue) = context.queue(REQUEST_QUEUE) else { return };
        let supply = &mut self.supply;
        supply.waits = None;
        supply.throttle.unpark();
        let mut left = MOST_AT_ONCE;
        while let Some(Chain { head, mut writable, .. }) = queue.pop_rarely(&mut self.chain) {
            let len = writable.remaining().min(left);
            if writable.remaining() == 0 {
                // There is no answer without a byte in it (5.4.6.2).
                queue.fail(QueueError::NoRoomForStatus);
                break;
            }
            if len == 0 || !supply.is_ready(now) {
                queue.put_back(head);
                break;
            }
            supply.fill(&mut writable, len);
            queue.complete_rarely(head, len as u32);
            supply.throttle.charge(Direction::In, len as u32);
            left -= len;
            self.requests += 1;
            self.bytes += len as u64;
        }
        supply.generator.forget();
    }

    fn next_poll(&self) -> NextPoll {
        let waits = self.supply.waits.or(self.supply.throttle.parked());
        waits.map_or(NextPoll::Idle, NextPoll::At)
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        self.supply.waits = None;
        self.supply.throttle.reset();
        Progress::Done
    }

    fn adjust(
        &mut self,
        change: Adjustment,
        frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        let Adjustment::Limit(Direction::In, limits) = change else {
            return Err(NotAdjusted::Unsupported);
        };
        self.supply.throttle.set(Direction::In, limits, frequency, context.now());
        // What waited for the old limit goes by the new one.
        self.poll(context);
        Ok(())
    }

    fn limits(&self, direction: Direction) -> Limits {
        self.supply.throttle.limits(direction)
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        visit("requests", self.requests);
        visit("errors", self.supply.errors);
        visit("bytes_read", self.bytes);
    }
}
