//! Block device (5.2) over a [`BlockBackend`].
//!
//! - `wire`: the structures and numbers of section 5.2.
//! - `request`: what a chain asks for, judged completely before any effect.
//! - `in_flight`: requests on their way through the back end.
//! - this file: requests on their way from the driver's queues, and back to them.
//!
//! Data goes straight between the disk and the guest's memory; only headers, identity strings and
//! status bytes are touched here. Many requests are in flight at once, named by the slot they
//! have, and are completed in the order in which the disk finishes them, each in the queue it came
//! from. A back end that has no room leaves the chain in the ring, for the next poll; whose queue is
//! served first then goes round.
//!
//! # What is durable
//! Writes of a driver that flushes (FLUSH) may stay in the disk's cache. For one that does not, or
//! has turned the cache off (CONFIG_WCE, `writeback` = 0), each write is followed by a flush before
//! it completes. Discards promise nothing, so nothing of them has to last.

mod in_flight;
mod request;
mod wire;

use crate::backend::block::{BlockBackend, MediumError, SECTOR_SIZE};
use crate::backend::clock::{Clock, Frequency, Ticks};
use crate::virtio::device::{ActiveQueue, Context, DeviceType, Progress};
use crate::virtio::histogram::Histogram;
use crate::virtio::limiter::{Limits, Throttle};
use crate::virtio::queue::ChainBuffer;
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::transport::MAX_QUEUES;
use crate::virtio::{Adjustment, Direction, Features, NextPoll, NotAdjusted, VirtioDevice};
pub use in_flight::IN_FLIGHT;
use in_flight::{Counters, Outcome, Requests};
pub use wire::{
    BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, MQ, RO, SEG_MAX, SIZE_MAX, TOPOLOGY, WRITE_ZEROES,
};

/// Largest size of a request queue.
pub const QUEUE_SIZE: u16 = 1024;

const QUEUE_MAX_SIZES: [u16; MAX_QUEUES] = [QUEUE_SIZE; MAX_QUEUES];

/// A block device.
pub struct Block<'d, 'm> {
    requests: Requests<'d, 'm>,
    chain: ChainBuffer<'m>,
    /// How many queues there are.
    queues: u16,
    /// The queue whose leftovers come first in the next poll.
    turn: u16,
    /// A queue has leftovers that nothing holds up: its batch was over.
    has_more: bool,
}

impl<'d, 'm> Block<'d, 'm> {
    /// A block device for the disk `backend`, which must have nothing in flight.
    pub fn new(backend: &'d mut (dyn BlockBackend<'m> + 'd)) -> Self {
        let info = backend.info();
        let requests = Requests {
            backend,
            info,
            max_segments: u16::MAX,
            read_only: false,
            max_sectors: u64::MAX,
            throttle: Throttle::UNLIMITED,
            slots: [const { None }; IN_FLIGHT as usize],
            free: u64::MAX,
            in_flight: 0,
            written: 0,
            accepted: Features::empty(),
            write_through: false,
            kick: false,
            counters: Counters::default(),
        };
        Self { requests, chain: ChainBuffer::new(), queues: 1, turn: 0, has_more: false }
    }

    /// Gives the device `queues` queues, but at least 1 and no more than [`MAX_QUEUES`]: one for each
    /// vCPU lets drivers do without locks. To be said before a transport is put in front of it.
    pub fn set_queues(&mut self, queues: usize) {
        self.queues = queues.clamp(1, MAX_QUEUES) as u16;
    }

    /// Tells drivers to cut requests into no more than `max` data segments, at least 1. Without
    /// VIRTIO_F_INDIRECT_DESC a chain must fit in the queue, header and status included, and a
    /// driver may count on `seg_max` for that.
    pub fn limit_segments(&mut self, max: u16) {
        self.requests.max_segments = max.max(1);
    }

    /// Makes the disk read-only for the driver, whatever the back end can do.
    pub fn forbid_writes(&mut self) {
        self.requests.read_only = true;
        self.requests.info.read_only = true;
    }

    /// Shows the driver no more than the first `sectors` of the disk, until an operator has it grow.
    pub fn limit_capacity(&mut self, sectors: u64) {
        let requests = &mut self.requests;
        requests.max_sectors = sectors;
        requests.info.sectors = requests.info.sectors.min(sectors);
    }

    /// Holds the device to `limits` in a direction.
    pub fn limit_rate(&mut self, to: Direction, limits: Limits, clock: &impl Clock) {
        self.requests.throttle.set(to, limits, clock.frequency(), clock.now());
    }

    /// Starts what is available in queue `index`, until it is empty or the back end full.
    fn serve(&mut self, index: u16, queue: &mut ActiveQueue<'_, 'm>, now: Ticks) {
        while let Some(chain) = queue.pop_inline(&mut self.chain) {
            let head = chain.head;
            match self.requests.start(index, chain, now) {
                Outcome::Submitted => (),
                Outcome::Answered(used) => queue.complete(head, used),
                Outcome::Busy => {
                    queue.put_back(head);
                    return;
                }
                Outcome::Broken(error) => {
                    queue.fail(error);
                    return;
                }
            }
        }
        self.has_more |= queue.has_leftover();
    }

    /// Serves every queue that has leftovers.
    fn serve_leftovers(&mut self, context: &mut Context<'_, 'm>, now: Ticks) {
        let mut index = self.turn;
        for _ in 0..self.queues {
            if let Some(mut queue) = context.queue(index)
                && queue.has_leftover()
            {
                self.serve(index, &mut queue, now);
            }
            index = self.next(index);
        }
        self.turn = self.next(self.turn);
    }

    /// The queue after queue `index`.
    fn next(&self, index: u16) -> u16 {
        if index + 1 < self.queues { index + 1 } else { 0 }
    }

    /// Configuration space.
    fn config(&self) -> [u8; wire::CONFIG_SIZE] {
        let requests = &self.requests;
        let writeback = !(requests.write_through && requests.accepted.contains(CONFIG_WCE));
        wire::config(&requests.info, requests.max_segments, self.queues, writeback)
    }
}

impl<'m> VirtioDevice<'m> for Block<'_, 'm> {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_MAX_SIZES.get(..usize::from(self.queues)).unwrap_or_default()
    }

    fn offered_features(&self) -> Features {
        wire::features(&self.requests.info, self.queues)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = self.config();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset + at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8], _context: &mut Context<'_, 'm>) {
        let requests = &mut self.requests;
        // 4.2.2.2: a field of a byte is written as a byte.
        if offset == wire::WRITEBACK && requests.accepted.contains(CONFIG_WCE) {
            match data {
                [0] => requests.write_through = true,
                [1] => requests.write_through = false,
                _ => (),
            }
        }
    }

    fn negotiated(&mut self, accepted: Features) {
        self.requests.accepted = accepted;
        self.requests.write_through = self.requests.info.flush && !accepted.contains(FLUSH);
    }

    fn backend_changed(&mut self, context: &mut Context<'_, 'm>) {
        let requests = &mut self.requests;
        requests.backend.refresh();
        let sectors = requests.backend.info().sectors.min(requests.max_sectors);
        if sectors != requests.info.sectors {
            requests.info.sectors = sectors;
            context.config_changed();
        }
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let now = context.now();
        let Some(mut queue) = context.queue(index) else {
            return;
        };
        self.serve(index, &mut queue, now);
        self.requests.kick();
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let now = context.now();
        let mut resumed = self.requests.throttle.parked().is_some();
        loop {
            // As many as can be in flight: a disk that answers at once cannot hold us here.
            let mut budget = IN_FLIGHT;
            let mut ended = self.requests.next_end(&mut budget, now);
            while let Some((index, ..)) = ended {
                let Some(mut queue) = context.queue(index) else {
                    // One that is being reset is not there: what came out of it is forgotten.
                    ended = self.requests.next_end(&mut budget, now);
                    continue;
                };
                while let Some((from, head, used)) = ended
                    && from == index
                {
                    queue.complete(head, used);
                    ended = self.requests.next_end(&mut budget, now);
                }
            }
            if self.requests.written != 0 {
                self.requests.retry_flushes(context, now);
            }
            self.requests.throttle.unpark();
            self.has_more = false;
            self.serve_leftovers(context, now);
            self.requests.kick();
            // What a limit has held up may just have begun, and the guest be idle, so that nobody
            // polls before long: a disk that answers at once is asked at once.
            if !core::mem::take(&mut resumed) {
                return;
            }
        }
    }

    fn next_poll(&self) -> NextPoll {
        match (self.requests.in_flight, self.requests.throttle.parked()) {
            (0, None) => NextPoll::Idle,
            (0, Some(time)) if !self.has_more => NextPoll::At(time),
            _ => NextPoll::Soon,
        }
    }

    fn adjust(
        &mut self,
        change: Adjustment,
        frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        match change {
            Adjustment::Limit(direction, limits) => {
                self.requests.throttle.set(direction, limits, frequency, context.now());
                // What waited for the old limit goes by the new one.
                self.poll(context);
            }
            Adjustment::Capacity(sectors) => {
                let unit = u64::from(self.requests.info.block_size) / SECTOR_SIZE;
                let there = self.requests.backend.info().sectors;
                // A guest may be using what it has been told of: a disk grows, and does not shrink.
                if sectors > there
                    || sectors < self.requests.info.sectors
                    || sectors % unit.max(1) != 0
                {
                    return Err(NotAdjusted::OutOfRange);
                }
                self.requests.max_sectors = sectors;
                self.backend_changed(context);
            }
            Adjustment::Medium(medium) => {
                self.requests.backend.change_medium(medium).map_err(|error| match error {
                    MediumError::Missing => NotAdjusted::Unsupported,
                    MediumError::Occupied => NotAdjusted::Occupied,
                })?;
                self.requests.max_sectors = u64::MAX;
                self.backend_changed(context);
            }
            _ => return Err(NotAdjusted::Unsupported),
        }
        Ok(())
    }

    fn latencies(&self) -> Option<&Histogram> {
        Some(&self.requests.counters.latencies)
    }

    fn limits(&self, direction: Direction) -> Limits {
        self.requests.throttle.limits(direction)
    }

    fn in_flight(&self) -> usize {
        usize::from(self.requests.in_flight)
    }

    /// Bytes are those of requests the disk took; latencies, in ticks, those of requests it ended.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.requests.counters;
        visit("requests", counters.requests);
        visit("errors", counters.errors);
        visit("bytes_read", counters.bytes_read);
        visit("bytes_written", counters.bytes_written);
        visit("latency", counters.latency);
        visit("latency_max", counters.latency_max);
    }

    fn dma_stopped(&self) -> bool {
        self.requests.backend.dma_stopped()
    }

    fn reset(&mut self, now: Ticks) -> Progress {
        let requests = &mut self.requests;
        // What was submitted may still wait for the doorbell, and would never come back.
        requests.kick();
        for _ in requests.written..requests.in_flight {
            let Some((tag, _)) = requests.backend.poll(now) else {
                break;
            };
            requests.drop_answered(tag);
        }
        if requests.in_flight > requests.written {
            return Progress::Pending;
        }
        if requests.written != 0 {
            requests.slots = [const { None }; IN_FLIGHT as usize];
            requests.free = u64::MAX;
        }
        requests.in_flight = 0;
        requests.written = 0;
        requests.accepted = Features::empty();
        requests.write_through = false;
        requests.throttle.reset();
        requests.info = requests.backend.info();
        requests.info.read_only |= requests.read_only;
        requests.info.sectors = requests.info.sectors.min(requests.max_sectors);
        Progress::Done
    }

    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        state.write_bytes(&self.config())
    }

    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        self.negotiated(accepted);
        let mut config = state.read_object::<[u8; wire::CONFIG_SIZE]>()?;
        let mut own = self.config();
        if let (Some(saved), Some(own)) =
            (config.get_mut(wire::WRITEBACK), own.get_mut(wire::WRITEBACK))
            && accepted.contains(CONFIG_WCE)
            && *saved <= 1
        {
            self.requests.write_through = *saved == 0;
            *own = *saved;
        }
        // The driver has read what the disk is like: it must be like that here.
        if config == own {
            Ok(())
        } else {
            self.negotiated(Features::empty());
            self.requests.write_through = false;
            Err(StateError::Invalid)
        }
    }

    fn reset_queue(&mut self, index: u16, now: Ticks) -> Progress {
        self.requests.forget(index, now)
    }
}

#[cfg(test)]
mod tests;
