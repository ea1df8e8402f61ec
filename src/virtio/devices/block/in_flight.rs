//! Requests on their way through the back end.

use super::request::{Request, parse_range, used_length};
use super::wire::Status;
use crate::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SubmitError, Tag,
};
use crate::backend::clock::Ticks;
use crate::memory::SharedSlice;
use crate::virtio::buffer::Reader;
use crate::virtio::device::{Context, Progress};
use crate::virtio::histogram::Histogram;
use crate::virtio::limiter::Throttle;
use crate::virtio::queue::{Chain, Head, QueueError};
use crate::virtio::{Direction, Features};

/// Requests that can be in flight: as many as the drivers of disks have at work. More wait in the
/// ring.
pub const IN_FLIGHT: u16 = u64::BITS as u16;

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
pub(super) struct InFlight<'m> {
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
pub(super) struct Counters {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) latency: u64,
    pub(super) latency_max: u64,
    pub(super) latencies: Histogram,
}

/// What became of a chain.
pub(super) enum Outcome {
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
pub(super) struct Requests<'d, 'm> {
    pub(super) backend: &'d mut (dyn BlockBackend<'m> + 'd),
    pub(super) info: BlockInfo,
    /// The most data segments that requests are to have, whatever the disk can do.
    pub(super) max_segments: u16,
    /// No writes, whatever the disk can do.
    pub(super) read_only: bool,
    /// No more sectors than these, whatever the disk has.
    pub(super) max_sectors: u64,
    pub(super) throttle: Throttle,
    /// By tag.
    pub(super) slots: [Option<InFlight<'m>>; IN_FLIGHT as usize],
    /// A bit for each slot that is free.
    pub(super) free: u64,
    pub(super) in_flight: u16,
    /// How many of them are [`Phase::Written`].
    pub(super) written: u16,
    /// The agreed features; none before there are.
    pub(super) accepted: Features,
    /// Writes must be durable before they complete.
    pub(super) write_through: bool,
    /// Something was submitted since the last kick.
    pub(super) kick: bool,
    pub(super) counters: Counters,
}

impl<'m> Requests<'_, 'm> {
    /// Judges one chain, and hands it to the back end or answers it.
    #[inline]
    pub(super) fn start(&mut self, queue: u16, chain: Chain<'_, 'm>, now: Ticks) -> Outcome {
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
    #[inline(always)]
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
    pub(super) fn next_end(&mut self, budget: &mut u16, now: Ticks) -> Option<(u16, Head, u32)> {
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
    pub(super) fn retry_flushes(&mut self, context: &mut Context<'_, 'm>, now: Ticks) {
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
    pub(super) fn forget(&mut self, index: u16, now: Ticks) -> Progress {
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
    pub(super) fn drop_answered(&mut self, tag: Tag) -> bool {
        let found = self.slots.get_mut(usize::from(tag.0)).and_then(Option::take).is_some();
        if found {
            self.free |= 1 << tag.0;
            self.in_flight -= 1;
        }
        found
    }

    /// One doorbell for all that was submitted.
    #[inline(always)]
    pub(super) fn kick(&mut self) {
        if core::mem::take(&mut self.kick) {
            self.backend.kick();
        }
    }
}
