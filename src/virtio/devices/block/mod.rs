//! Block device (5.2) over a [`BlockBackend`].
//!
//! - `wire`: the structures and numbers of section 5.2.
//! - `request`: what a chain asks for, judged completely before any effect.
//! - this file: requests on their way through the back end, and back to the driver.
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

mod request;
mod wire;

use crate::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SECTOR_SIZE, SubmitError, Tag,
};
use crate::backend::clock::{Clock, Frequency, Ticks};
use crate::memory::SharedSlice;
use crate::virtio::buffer::Reader;
use crate::virtio::device::{ActiveQueue, Context, DeviceType, Progress};
use crate::virtio::histogram::Histogram;
use crate::virtio::limiter::{Limits, Throttle};
use crate::virtio::queue::{Chain, ChainBuffer, Head, QueueError};
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::transport::MAX_QUEUES;
use crate::virtio::{Adjustment, Direction, Features, NextPoll, NotAdjusted, VirtioDevice};
use request::{Request, parse_range, used_length};
use wire::Status;
pub use wire::{
    BLK_SIZE, CONFIG_WCE, DISCARD, FLUSH, MQ, RO, SEG_MAX, SIZE_MAX, TOPOLOGY, WRITE_ZEROES,
};

/// Largest size of a request queue.
pub const QUEUE_SIZE: u16 = 1024;

/// Requests that can be in flight: as many as the drivers of disks have at work. More wait in the
/// ring.
pub const IN_FLIGHT: u16 = u64::BITS as u16;

const QUEUE_MAX_SIZES: [u16; MAX_QUEUES] = [QUEUE_SIZE; MAX_QUEUES];

/// How far a request has come that the back end knows of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is with the back end, and is over when that is done.
    Last,
    /// A write is with the back end, and is to be made durable when it is done.
    Write,
    /// A write is done, and waits for the back end to have room for its flush.
    Written,
}

/// A request in flight.
#[derive(Clone, Copy)]
struct InFlight<'m> {
    phase: Phase,
    /// The queue it came from.
    queue: u8,
    /// What the chain is completed with.
    head: Head,
    /// Where the status byte goes.
    status: SharedSlice<'m>,
    /// Used lengths for success and for failure.
    used: (u32, u32),
    /// When the back end got it.
    since: Ticks,
}

/// What [`VirtioDevice::statistics`] tells.
#[derive(Default)]
struct Counters {
    requests: u64,
    errors: u64,
    bytes_read: u64,
    bytes_written: u64,
    latency: u64,
    latency_max: u64,
    latencies: Histogram,
}

/// What became of a chain.
enum Outcome {
    /// The back end has it.
    Submitted,
    /// It is answered: give it back with this used length.
    Answered(u32),
    /// The back end has no room, or a limit is reached; nothing was done.
    Busy,
    /// There is no way to answer it.
    Broken(QueueError),
}

/// The requests on their way.
struct Requests<'d, 'm> {
    backend: &'d mut (dyn BlockBackend<'m> + 'd),
    info: BlockInfo,
    /// The most data segments that requests are to have, whatever the disk can do.
    max_segments: u16,
    /// No writes, whatever the disk can do.
    read_only: bool,
    /// No more sectors than these, whatever the disk has.
    max_sectors: u64,
    throttle: Throttle,
    /// By tag.
    slots: [Option<InFlight<'m>>; IN_FLIGHT as usize],
    /// A bit for each slot that is free.
    free: u64,
    in_flight: u16,
    /// How many of them are [`Phase::Written`].
    written: u16,
    /// The agreed features; none before there are.
    accepted: Features,
    /// Writes must be durable before they complete.
    write_through: bool,
    /// Something was submitted since the last kick.
    kick: bool,
    counters: Counters,
}

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
        while let Some(chain) = queue.pop(&mut self.chain) {
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

impl<'m> Requests<'_, 'm> {
    /// Judges one chain, and hands it to the back end or answers it.
    #[inline]
    fn start(&mut self, queue: u16, chain: Chain<'_, 'm>, now: Ticks) -> Outcome {
        let Chain { head, mut readable, mut writable } = chain;
        // The lowest free slot. Not the driver's name for the chain: a packed ring's may be any,
        // and a driver that has two of one name at work hears of that name twice.
        let tag = self.free.trailing_zeros() as u16;
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else {
            return Outcome::Busy;
        };
        let Some(status) = writable.split_last_byte() else {
            return Outcome::Broken(QueueError::NoRoomForStatus);
        };
        let room = writable.remaining();
        let counters = &mut self.counters;
        let mut answer = |result: Status, filled: usize| {
            counters.requests += 1;
            counters.errors += u64::from(result != Status::Ok);
            // In bounds: the slice is the one byte.
            let _ = status.store_u8(0, result as u8);
            Outcome::Answered(used_length(filled, room))
        };
        let mut written = 0;
        // What a limit is for: data, and what takes the place of writing it.
        let mut limited = None;
        let (op, sector, segments) =
            match Request::parse(&mut readable, room, &self.info, self.accepted) {
                Request::Refused(result) => return answer(result, 0),
                Request::Identify => {
                    let filled =
                        writable.write_bytes(&self.info.id).map_or(0, |()| writable.written());
                    let result = if filled == 0 { Status::IoError } else { Status::Ok };
                    return answer(result, filled);
                }
                Request::Flush => (BlockOp::Flush, 0, &[][..]),
                Request::Range { zeroes } => {
                    if !self.throttle.admit(Direction::Out, now) {
                        return Outcome::Busy;
                    }
                    let used = used_length(0, room);
                    let queue = queue as u8;
                    let phase =
                        if zeroes && self.write_through { Phase::Write } else { Phase::Last };
                    let place =
                        InFlight { phase, queue, head, status, used: (used, used), since: now };
                    return self.start_range(readable, zeroes, Tag(tag), place);
                }
                Request::Read { sector } => {
                    limited = Some(Direction::In);
                    (BlockOp::Read, sector, writable.into_segments())
                }
                Request::Write { sector } => {
                    limited = Some(Direction::Out);
                    written = readable.remaining();
                    (BlockOp::Write, sector, readable.into_segments())
                }
            };
        if let Some(direction) = limited
            && !self.throttle.admit(direction, now)
        {
            return Outcome::Busy;
        }
        let request = BlockRequest { tag: Tag(tag), op, sector, segments };
        match self.backend.submit(request, now) {
            Ok(()) => (),
            Err(SubmitError::Busy) => return Outcome::Busy,
            Err(SubmitError::Failed) => return answer(Status::IoError, 0),
            Err(SubmitError::Unsupported) => return answer(Status::Unsupported, 0),
        }
        let durable_later = op == BlockOp::Write && self.write_through;
        let filled = if op == BlockOp::Read { room } else { 0 };
        if let Some(direction) = limited {
            self.throttle.charge(direction, (filled + written) as u32);
        }
        self.counters.bytes_read += filled as u64;
        self.counters.bytes_written += written as u64;
        *slot = Some(InFlight {
            phase: if durable_later { Phase::Write } else { Phase::Last },
            queue: queue as u8,
            head,
            status,
            used: (used_length(filled, room), used_length(0, room)),
            since: now,
        });
        self.free &= self.free - 1;
        self.in_flight += 1;
        self.kick = true;
        Outcome::Submitted
    }

    /// Judges a discard, or write zeroes, and hands it to the back end or answers it; `place` is for
    /// slot `tag`. Apart, so that what is only here costs reads and writes nothing.
    #[cold]
    #[inline(never)]
    fn start_range(
        &mut self,
        readable: Reader<'_, 'm>,
        zeroes: bool,
        tag: Tag,
        place: InFlight<'m>,
    ) -> Outcome {
        let submitted = parse_range(readable, &self.info, zeroes).and_then(|(op, sector)| {
            let request = BlockRequest { tag, op, sector, segments: &[] };
            match self.backend.submit(request, place.since) {
                Ok(()) => Ok(true),
                Err(SubmitError::Busy) => Ok(false),
                Err(SubmitError::Failed) => Err(Status::IoError),
                Err(SubmitError::Unsupported) => Err(Status::Unsupported),
            }
        });
        match (submitted, self.slots.get_mut(usize::from(tag.0))) {
            (Ok(true), Some(slot)) => {
                self.throttle.charge(Direction::Out, 0);
                *slot = Some(place);
                self.free &= !(1 << tag.0);
                self.in_flight += 1;
                self.kick = true;
                Outcome::Submitted
            }
            (Err(result), _) => {
                self.counters.requests += 1;
                self.counters.errors += u64::from(result != Status::Ok);
                // In bounds: the slice is the one byte.
                let _ = place.status.store_u8(0, result as u8);
                Outcome::Answered(place.used.1)
            }
            _ => Outcome::Busy,
        }
    }

    /// Takes one completion from the back end. The chain is over if its queue, its head and its used
    /// length come back.
    #[inline]
    fn finish(&mut self, tag: Tag, result: BlockStatus, now: Ticks) -> Option<(u16, Head, u32)> {
        let slot = self.slots.get_mut(usize::from(tag.0))?;
        let request = slot.as_mut()?;
        if request.phase == Phase::Write && result == BlockStatus::Ok {
            request.phase = Phase::Written;
            self.written += 1;
            return self.make_durable(tag, now);
        }
        let request = slot.take()?;
        self.free |= 1 << tag.0;
        self.in_flight -= 1;
        let (result, used) = match result {
            BlockStatus::Ok => (Status::Ok, request.used.0),
            BlockStatus::IoError => (Status::IoError, request.used.1),
            BlockStatus::Unsupported => (Status::Unsupported, request.used.1),
        };
        let latency = now.0.saturating_sub(request.since.0);
        let counters = &mut self.counters;
        counters.requests += 1;
        counters.errors += u64::from(result != Status::Ok);
        counters.latency = counters.latency.wrapping_add(latency);
        counters.latency_max = counters.latency_max.max(latency);
        counters.latencies.record(latency);
        // In bounds: the slice is the one byte.
        let _ = request.status.store_u8(0, result as u8);
        Some((request.queue.into(), request.head, used))
    }

    /// The next chain that is over, as [`Self::finish`] says, if the back end ends one while `budget`
    /// lasts.
    #[inline(always)]
    fn next_end(&mut self, budget: &mut u16, now: Ticks) -> Option<(u16, Head, u32)> {
        while *budget != 0 {
            *budget -= 1;
            let (tag, result) = self.backend.poll(now)?;
            let end = self.finish(tag, result, now);
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Flushes after a write that must be durable when it completes (5.2.6.2).
    fn make_durable(&mut self, tag: Tag, now: Ticks) -> Option<(u16, Head, u32)> {
        let request = self.slots.get_mut(usize::from(tag.0))?.as_mut()?;
        let flush = BlockRequest { tag, op: BlockOp::Flush, sector: 0, segments: &[] };
        let refused = match self.backend.submit(flush, now) {
            Err(SubmitError::Busy) => return None,
            Ok(()) => None,
            Err(SubmitError::Failed) => Some(BlockStatus::IoError),
            Err(SubmitError::Unsupported) => Some(BlockStatus::Unsupported),
        };
        request.phase = Phase::Last;
        self.written -= 1;
        self.kick = true;
        refused.and_then(|result| self.finish(tag, result, now))
    }

    /// Tries again the flushes there was no room for.
    #[cold]
    fn retry_flushes(&mut self, context: &mut Context<'_, 'm>, now: Ticks) {
        for tag in 0..IN_FLIGHT {
            if self.written == 0 {
                return;
            }
            let slot = self.slots.get(usize::from(tag));
            let waits = slot.is_some_and(|slot| slot.is_some_and(|it| it.phase == Phase::Written));
            if waits
                && let Some((index, head, used)) = self.make_durable(Tag(tag), now)
                && let Some(mut queue) = context.queue(index)
            {
                queue.complete(head, used);
            }
        }
    }

    /// Lets go of what came out of queue `index`. What the back end still has of it is waited for,
    /// in `poll`, which finds no queue for it.
    #[cold]
    fn forget(&mut self, index: u16, now: Ticks) -> Progress {
        // What was submitted may still wait for the doorbell, and would never come back.
        self.kick();
        let mut left = 0;
        for (tag, place) in self.slots.iter_mut().enumerate() {
            let Some(request) = place.filter(|it| u16::from(it.queue) == index) else {
                continue;
            };
            if request.phase == Phase::Written {
                *place = None;
                self.free |= 1 << tag;
                self.in_flight -= 1;
                self.written -= 1;
            } else {
                left += 1;
            }
        }
        // Nobody else's answer can come.
        if left == self.in_flight - self.written {
            for _ in 0..IN_FLIGHT {
                let Some((tag, _)) = self.backend.poll(now) else {
                    break;
                };
                left -= u16::from(self.drop_answered(tag));
            }
        }
        if left == 0 { Progress::Done } else { Progress::Pending }
    }

    /// The back end has let go of a request that is forgotten; whether there was one.
    fn drop_answered(&mut self, tag: Tag) -> bool {
        let found = self.slots.get_mut(usize::from(tag.0)).and_then(Option::take).is_some();
        if found {
            self.free |= 1 << tag.0;
            self.in_flight -= 1;
        }
        found
    }

    /// One doorbell for all that was submitted.
    #[inline]
    fn kick(&mut self) {
        if core::mem::take(&mut self.kick) {
            self.backend.kick();
        }
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
            Adjustment::Link(_) => return Err(NotAdjusted::Unsupported),
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
