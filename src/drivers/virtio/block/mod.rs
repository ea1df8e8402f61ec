//! virtio-blk, driven by polling: many requests in flight, guest memory given to the device as it
//! is (zero-copy), completed in any order. Source: virtio 5.2.

mod chain;
mod config;
mod layout;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod restart_tests;
#[cfg(test)]
mod tests;

use embedded_hal::delay::DelayNs;

use self::chain::Chain;
use self::config::{BlockFeatures, DiskConfig};
use self::layout::{Geometry, Layout, MAX_SLOTS, RANGE, RANGE_BYTES, SLOT_BYTES, STATUS, TABLE};
use super::mmio::{InitError, InterruptCauses, RingFeatures, Transport};
use super::queue::{
    DESC_BYTES, DESC_F_INDIRECT, DESC_F_WRITE, SplitQueue, attributes, write_descriptor,
};
use crate::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SubmitError, Tag,
};
use crate::backend::clock::Ticks;
use crate::drivers::registers::Registers;
use crate::memory::SharedSlice;

/// The one queue there is without VIRTIO_BLK_F_MQ.
const QUEUE: u16 = 0;

/// Request types (virtio 5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range to be zeroed: its space may be given up (virtio 5.2.6).
const RANGE_UNMAP: u32 = 1;

/// Status bytes (virtio 5.2.6).
const S_OK: u8 = 0;
const S_UNSUPP: u8 = 2;
/// What we put there: a device that ends a request without writing a status has not done it.
const S_NONE: u8 = 0xff;

/// Time between two looks for the answer to the first request.
const ANSWER_STEP_US: u32 = 10;
/// Looks for the answer to the first request: 1 s in all.
const ANSWER_STEPS: u32 = 100_000;

/// Times that a request is given to the device again which has been reset for another's sake, or for
/// its own lies.
const MAX_RESTARTS: u8 = 2;

/// Whether requests can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They can.
    Working,
    /// The device is being reset; given up at `deadline`. Requests in slots of `doomed` do not outlive
    /// it.
    Resetting { deadline: Ticks, doomed: u64 },
    /// Given up.
    Failed,
}

/// A request's place.
#[derive(Clone, Copy)]
struct Slot {
    tag: Tag,
    /// Times that it was given to the device again.
    restarts: u8,
    deadline: Ticks,
}

/// A virtio block device.
///
/// # When the device misbehaves
/// A request not answered in time, or an answer to what was never asked, gets the device reset.
/// Only when the reset is complete, and so nothing can touch the requests' memory any more, do those
/// that took too long end with [`BlockStatus::IoError`]. The device is then brought up and given the
/// others again, with their time anew; one that has seen this [twice](MAX_RESTARTS) before ends too.
///
/// A device that does not complete its reset within another time-out, or cannot be brought up, has
/// failed for good, and all its requests with it. In the first of these cases they end since somebody
/// waits for them, but [`dma_stopped`](Self::dma_stopped) turns false: their memory must not get
/// another owner.
///
/// # Why requests can be given again
/// Each does the same if it is done twice, wholly or in part, as long as nobody has been told that it has
/// ended: until then its memory is as it was, and no other request was ordered after it (virtio 5.2.6
/// orders requests by their ends alone). What has ended, well or badly, is never given
/// again, and nothing of it is left at a device that has been reset: so a write that comes after
/// it stays. A flush covers the writes that had ended before it came, whosesoever they were. The device had done them, and
/// keeps them: a reset forgets queues and features, not what is in the disk's cache. Done later, a flush
/// covers them still. One that had ended covers nothing that is done again.
///
/// # Flush
/// A device without VIRTIO_BLK_F_FLUSH writes through (virtio 5.2.6.2): there
/// [`BlockOp::Flush`] ends at once with [`BlockStatus::Ok`], at the next poll.
pub struct VirtioBlk<'m, R: Registers> {
    queue: SplitQueue<'m>,
    layout: Layout<'m>,
    /// Slots without a request. These masks do not overlap; together they are all slots.
    free: u64,
    /// Slots whose request the device has not been shown.
    unpublished: u64,
    /// Slots whose request the device has.
    at_device: u64,
    /// Slots whose request has ended without the device, and how.
    ended_ok: u64,
    ended_badly: u64,
    /// No request at the device has an earlier deadline.
    next_deadline: Ticks,
    timeout: Ticks,
    state: State,
    geometry: Geometry,
    segment_bytes: u64,
    slots: [Slot; MAX_SLOTS as usize],
    transport: Transport<R>,
    info: BlockInfo,
    features: u64,
    interrupts: bool,
    /// Given up without a completed reset.
    abandoned: bool,
    resets: u32,
}

impl<'m, R: Registers + Send> VirtioBlk<'m, R> {
    /// Bytes of memory to share with the device.
    pub const DMA_BYTES: usize = layout::DMA_BYTES;

    /// Brings up the block device behind `registers`, which [`probe`](super::probe) has found
    /// there. Waits for it, for about a second at most. `dma` is memory of
    /// [`Self::DMA_BYTES`], page-aligned, for the device and this driver alone, for good;
    /// `timeout` is the time a request may take. The device does not interrupt.
    ///
    /// # Errors
    /// [`InitError`]. After [`InitError::ResetTimeout`] the device may still write where an
    /// earlier driver told it to.
    pub fn new(
        registers: R,
        dma: SharedSlice<'m>,
        timeout: Ticks,
        delay: &mut impl DelayNs,
    ) -> Result<Self, InitError> {
        let layout = Layout::new(dma).ok_or(InitError::DmaMemory)?;
        let transport = Transport::new(registers);
        transport.reset(delay)?;
        let fail = |error| {
            transport.fail();
            error
        };
        let wanted = BlockFeatures::all().bits() | RingFeatures::all().bits();
        let features = transport.negotiate(wanted).map_err(fail)?;
        let block_features = BlockFeatures::from_bits_truncate(features);
        let config = DiskConfig::read(&transport, block_features).map_err(fail)?;
        let max = transport.queue_num_max(QUEUE).map_err(fail)?;
        let indirect = features & RingFeatures::INDIRECT_DESC.bits() != 0;
        let geometry = Geometry::new(max, indirect, config.segments).map_err(fail)?;
        let event_index = features & RingFeatures::EVENT_IDX.bits() != 0;
        let queue = SplitQueue::new(layout.queue, geometry.ring, event_index, false)
            .ok_or(InitError::DmaMemory)
            .map_err(fail)?;
        let mut info = BlockInfo {
            block_size: config.block_size,
            read_only: block_features.contains(BlockFeatures::RO),
            flush: block_features.contains(BlockFeatures::FLUSH),
            max_segments: geometry.segments,
            max_segment_bytes: config.segment_bytes,
            depth: geometry.slots,
            ..BlockInfo::new(config.sectors)
        };
        DiskConfig::read_limits(&transport, block_features, &mut info);
        config::turn_cache_on(&transport, block_features);
        let mut disk = Self {
            queue,
            layout,
            free: u64::MAX >> (MAX_SLOTS - geometry.slots),
            unpublished: 0,
            at_device: 0,
            ended_ok: 0,
            ended_badly: 0,
            next_deadline: Ticks(0),
            timeout,
            state: State::Working,
            geometry,
            segment_bytes: u64::from(config.segment_bytes),
            slots: [Slot { tag: Tag(0), restarts: 0, deadline: Ticks(0) }; MAX_SLOTS as usize],
            transport,
            info,
            features,
            interrupts: false,
            abandoned: false,
            resets: 0,
        };
        disk.transport.set_queue(QUEUE, geometry.ring, &disk.queue.addresses());
        disk.transport.start();
        disk.prepare_slots().ok_or(InitError::DmaMemory)?;
        disk.transport.start();
        if let Err(error) = disk.identify(delay) {
            // Nothing of it may stay at the device: the memory goes back to the caller.
            disk.transport.reset(delay)?;
            disk.transport.fail();
            return Err(error);
        }
        Ok(disk)
    }

    /// Asks the device for its identity and waits for the answer. A device that has none leaves
    /// it zero.
    fn identify(&mut self, delay: &mut impl DelayNs) -> Result<(), InitError> {
        let buffer = self.layout.identity;
        let never = Ticks(u64::MAX);
        self.start_rarely(Tag(0), T_GET_ID, DESC_F_WRITE, buffer, never)
            .map_err(|_| InitError::NoAnswer)?;
        self.kick();
        for _ in 0..ANSWER_STEPS {
            match self.poll(Ticks(0)) {
                Some((_, BlockStatus::Ok)) => {
                    return buffer.read_bytes(0, &mut self.info.id).ok_or(InitError::DmaMemory);
                }
                Some((_, BlockStatus::Unsupported)) => return Ok(()),
                Some((_, BlockStatus::IoError)) => return Err(InitError::NoAnswer),
                None => delay.delay_us(ANSWER_STEP_US),
            }
        }
        Err(InitError::NoAnswer)
    }

    /// Whether the device shall raise its interrupt when it finishes a request: once, after
    /// [`poll`](BlockBackend::poll) has returned `None`, for the next one finished
    /// (EVENT_IDX; without that feature, for each one). Poll once more after turning it on: what
    /// was finished before does not interrupt.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        self.queue.set_interrupts(on);
    }

    /// Takes the device's interrupt back and says what it was for. Two register accesses. Poll
    /// afterwards.
    #[inline]
    pub fn acknowledge_interrupt(&self) -> InterruptCauses {
        self.transport.acknowledge_interrupt()
    }

    /// Takes a used-buffer interrupt back without asking whether it is one; one register access.
    /// A line that stays up is for [`acknowledge_interrupt`](Self::acknowledge_interrupt).
    #[inline]
    pub fn acknowledge_used_buffer(&self) {
        self.transport.acknowledge_used_buffer();
    }

    /// Looks at the disk's capacity again, as is due when the device says that its configuration has
    /// changed ([`InterruptCauses::CONFIGURATION`]). Whether it is another; the device in front of this
    /// driver is then to be told.
    pub fn update_capacity(&mut self) -> bool {
        match config::capacity(&self.transport) {
            Ok(sectors) if sectors != self.info.sectors => {
                self.info.sectors = sectors;
                true
            }
            _ => false,
        }
    }

    /// Times the device was reset because it misbehaved.
    pub const fn resets(&self) -> u32 {
        self.resets
    }

    /// Whether the device has been given up for good.
    pub fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Whether the memory of requests that have ended is out of the device's reach. False only
    /// after a device failed for good without completing its reset; asks it again.
    pub fn dma_stopped(&self) -> bool {
        !self.abandoned || self.transport.is_reset()
    }

    /// Takes slot and ring entry for a request of type `kind`, whose data descriptors have flag
    /// `direction` (0 or [`DESC_F_WRITE`]).
    #[inline(always)]
    fn start(
        &mut self,
        tag: Tag,
        kind: u32,
        sector: u64,
        direction: u16,
        segments: &[SharedSlice<'m>],
        deadline: Ticks,
    ) -> Result<(), SubmitError> {
        if self.free == 0 {
            return Err(SubmitError::Busy);
        }
        let index = self.free.trailing_zeros() as u16;
        self.write_chain(index, kind, sector, direction, segments)
            .ok_or(SubmitError::Unsupported)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(SubmitError::Busy)?;
        *slot = Slot { tag, restarts: 0, deadline };
        if self.at_device | self.unpublished == 0 {
            self.next_deadline = deadline;
        }
        let bit = 1 << index;
        self.free &= !bit;
        self.unpublished |= bit;
        self.queue.offer(index << self.geometry.stride);
        Ok(())
    }

    /// As [`Self::start`], where it is rare: with one piece of data or none, and no sector.
    #[inline(never)]
    fn start_rarely(
        &mut self,
        tag: Tag,
        kind: u32,
        direction: u16,
        data: SharedSlice<'m>,
        deadline: Ticks,
    ) -> Result<(), SubmitError> {
        self.start(tag, kind, 0, direction, &[data], deadline)
    }

    /// Takes what is neither a read nor a write.
    #[cold]
    #[inline(never)]
    fn submit_without_data(
        &mut self,
        request: &BlockRequest<'_, 'm>,
        deadline: Ticks,
    ) -> Result<(), SubmitError> {
        let (kind, sectors, flags) = match request.op {
            BlockOp::Flush if !self.info.flush => return self.end_at_once(request.tag),
            BlockOp::Flush => {
                return self.start_rarely(request.tag, T_FLUSH, 0, SharedSlice::empty(), deadline);
            }
            _ if self.info.read_only => return Err(SubmitError::Unsupported),
            BlockOp::Discard { sectors } if self.info.discard.is_some() => (T_DISCARD, sectors, 0),
            BlockOp::WriteZeroes { sectors, unmap } if self.info.write_zeroes.is_some() => {
                (T_WRITE_ZEROES, sectors, if unmap { RANGE_UNMAP } else { 0 })
            }
            _ => return Err(SubmitError::Unsupported),
        };
        self.submit_range(request.tag, kind, (request.sector, sectors, flags), deadline)
    }

    /// Takes a discard, or write zeroes, of `sectors` sectors from `sector` on. The range is data,
    /// which lies in the slot's own memory.
    fn submit_range(
        &mut self,
        tag: Tag,
        kind: u32,
        (sector, sectors, flags): (u64, u32, u32),
        deadline: Ticks,
    ) -> Result<(), SubmitError> {
        // The slot that the request will have.
        let index = self.free.trailing_zeros() as u16;
        if index >= self.geometry.slots {
            return Err(SubmitError::Busy);
        }
        let slot = self.layout.slot(index).ok_or(SubmitError::Failed)?;
        let range = slot.subslice(RANGE, RANGE_BYTES).ok_or(SubmitError::Failed)?;
        range.store_u64(0, sector).ok_or(SubmitError::Failed)?;
        let rest = u64::from(flags) << 32 | u64::from(sectors);
        range.store_u64(8, rest).ok_or(SubmitError::Failed)?;
        self.start_rarely(tag, kind, 0, range, deadline)
    }

    /// Fills envelope and chain of slot `index`. `None` if the segments need too many
    /// descriptors.
    #[inline(always)]
    fn write_chain(
        &self,
        index: u16,
        kind: u32,
        sector: u64,
        direction: u16,
        segments: &[SharedSlice<'m>],
    ) -> Option<()> {
        let memory = self.layout.slot(index)?;
        // type and the reserved word (ioprio of old), sector.
        memory.store_u64(0, u64::from(kind))?;
        memory.store_u64(8, sector)?;
        memory.store_u8(STATUS, S_NONE)?;

        let mut chain = self.chain(index, &memory, direction)?;
        let (mut run, mut run_bytes) = (0, 0);
        for segment in segments {
            let address = segment.pa().raw();
            // Neighbours in physical memory share a descriptor.
            if address != run + run_bytes {
                if segment.is_empty() {
                    continue;
                }
                chain.add(run, run_bytes)?;
                (run, run_bytes) = (address, 0);
            }
            run_bytes += segment.len() as u64;
        }
        let bytes = chain.finish(run, run_bytes)?;
        if self.geometry.indirect {
            self.queue.set_attributes(index, attributes(bytes, DESC_F_INDIRECT, 0))?;
        }
        Some(())
    }

    /// The chain of slot `index`, whose memory is `memory`, without data.
    #[inline(always)]
    fn chain(&self, index: u16, memory: &SharedSlice<'m>, direction: u16) -> Option<Chain<'m>> {
        let (table, head) = if self.geometry.indirect {
            (memory.subslice(TABLE, SLOT_BYTES - TABLE)?, 0)
        } else {
            let head = index << self.geometry.stride;
            let bytes = DESC_BYTES << self.geometry.stride;
            let offset = usize::from(head) * DESC_BYTES;
            (self.queue.descriptors().subslice(offset, bytes)?, head)
        };
        Some(Chain::new(table, head, self.geometry.segments, self.segment_bytes, direction))
    }

    /// Writes what all requests of a slot have in common.
    fn prepare_slots(&self) -> Option<()> {
        for index in 0..self.geometry.slots {
            let memory = self.layout.slot(index)?;
            let status = memory.subslice(STATUS, 1)?;
            let chain = self.chain(index, &memory, 0)?;
            chain.write_envelope(memory.pa(), status.pa())?;
            if self.geometry.indirect {
                let table = attributes(0, DESC_F_INDIRECT, 0);
                write_descriptor(self.queue.descriptors(), index, chain.table(), table)?;
            }
        }
        Some(())
    }

    /// The end of the request whose chain the device says is `id`; `None` if there is none such.
    #[inline(always)]
    fn finish(&mut self, id: u32) -> Option<(Tag, BlockStatus)> {
        let index = id >> self.geometry.stride;
        if index >= u32::from(MAX_SLOTS)
            || index << self.geometry.stride != id
            || self.at_device & (1 << index) == 0
        {
            return None;
        }
        self.at_device &= !(1 << index);
        self.free |= 1 << index;
        let status = match self.layout.slot(index as u16)?.load_u8(STATUS)? {
            S_OK => BlockStatus::Ok,
            S_UNSUPP => BlockStatus::Unsupported,
            _ => BlockStatus::IoError,
        };
        Some((self.slots.get(index as usize)?.tag, status))
    }

    /// Takes a request that needs no device.
    fn end_at_once(&mut self, tag: Tag) -> Result<(), SubmitError> {
        let index = self.free.trailing_zeros();
        let slot = self.slots.get_mut(index as usize).ok_or(SubmitError::Busy)?;
        slot.tag = tag;
        self.free &= !(1 << index);
        self.ended_ok |= 1 << index;
        Ok(())
    }

    /// The device answered what it had not been asked.
    #[inline(never)]
    fn distrust(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        log::warn!("virtio-blk: the used ring makes no sense; resetting the device");
        self.recover(now)
    }

    /// A request that ended without the device.
    #[inline(never)]
    fn take_ended(&mut self) -> Option<(Tag, BlockStatus)> {
        let index = (self.ended_ok | self.ended_badly).trailing_zeros();
        let tag = self.slots.get(index as usize)?.tag;
        let bit = 1 << index;
        let status = if self.ended_ok & bit != 0 { BlockStatus::Ok } else { BlockStatus::IoError };
        self.ended_ok &= !bit;
        self.ended_badly &= !bit;
        self.free |= bit;
        Some((tag, status))
    }

    /// Finds the earliest deadline anew, and acts if it has passed.
    #[inline(never)]
    fn check_deadlines(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        let waiting = self.at_device | self.unpublished;
        let mut earliest = Ticks(u64::MAX);
        for (index, slot) in self.slots.iter().enumerate() {
            if waiting >> index & 1 != 0 {
                earliest = earliest.min(slot.deadline);
            }
        }
        self.next_deadline = earliest;
        if now < earliest {
            return None;
        }
        log::warn!("virtio-blk: a request was not answered in time; resetting the device");
        self.recover(now)
    }

    /// Starts the reset of a device that has misbehaved.
    #[inline(never)]
    fn recover(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.resets = self.resets.saturating_add(1);
        self.at_device |= self.unpublished;
        self.unpublished = 0;
        self.queue.retract();
        // Judged now: how long the reset takes is no request's fault.
        let mut doomed = 0;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if now >= slot.deadline || slot.restarts >= MAX_RESTARTS {
                doomed |= 1 << index;
            }
        }
        self.transport.begin_reset();
        let deadline = now.after(self.timeout);
        self.state = State::Resetting { deadline, doomed };
        self.go_on_resetting(now, deadline, doomed)
    }

    /// Looks once whether the reset is complete, and goes on with whatever follows.
    #[inline(never)]
    fn go_on_resetting(
        &mut self,
        now: Ticks,
        deadline: Ticks,
        doomed: u64,
    ) -> Option<(Tag, BlockStatus)> {
        let mut ended = u64::MAX;
        if self.transport.is_reset() {
            self.state = match self.bring_up_again() {
                Ok(()) => {
                    ended = doomed;
                    State::Working
                }
                Err(error) => {
                    log::error!("virtio-blk: the device does not come back: {error}");
                    self.transport.fail();
                    State::Failed
                }
            };
        } else if now >= deadline {
            log::error!("virtio-blk: the device does not reset; given up");
            self.abandoned = true;
            self.state = State::Failed;
        } else {
            return None;
        }
        self.ended_badly |= self.at_device & ended;
        self.at_device &= !ended;
        if self.state == State::Working {
            self.restart(now);
        }
        self.take_ended()
    }

    /// Takes the device, which has been reset, back to where [`Self::new`] had brought it.
    fn bring_up_again(&mut self) -> Result<(), InitError> {
        if self.transport.negotiate(self.features)? != self.features {
            return Err(InitError::FeaturesRefused);
        }
        config::turn_cache_on(&self.transport, BlockFeatures::from_bits_truncate(self.features));
        if self.transport.queue_num_max(QUEUE)? < u32::from(self.geometry.ring) {
            return Err(InitError::QueueTooSmall);
        }
        self.queue.restart();
        self.transport.set_queue(QUEUE, self.geometry.ring, &self.queue.addresses());
        self.transport.start();
        Ok(())
    }

    /// Gives the device again what it had before it was reset. Chains and headers are as they were.
    fn restart(&mut self, now: Ticks) {
        self.next_deadline = now.after(self.timeout);
        for (index, slot) in (0..).zip(&mut self.slots) {
            if self.at_device >> index & 1 != 0 {
                slot.restarts += 1;
                slot.deadline = self.next_deadline;
                // It may have been done already, as far as to its status.
                if let Some(memory) = self.layout.slot(index) {
                    memory.store_u8(STATUS, S_NONE);
                }
                self.queue.offer(index << self.geometry.stride);
            }
        }
        self.kick();
    }
}

impl<'m, R: Registers + Send> BlockBackend<'m> for VirtioBlk<'m, R> {
    fn info(&self) -> BlockInfo {
        self.info
    }

    #[inline]
    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        match self.state {
            State::Working => {}
            State::Resetting { .. } => return Err(SubmitError::Busy),
            State::Failed => return Err(SubmitError::Failed),
        }
        let deadline = now.after(self.timeout);
        let (kind, direction) = match request.op {
            BlockOp::Read => (T_IN, DESC_F_WRITE),
            BlockOp::Write if !self.info.read_only => (T_OUT, 0),
            _ => return self.submit_without_data(&request, deadline),
        };
        self.start(request.tag, kind, request.sector, direction, request.segments, deadline)
    }

    #[inline]
    fn kick(&mut self) {
        self.at_device |= self.unpublished;
        self.unpublished = 0;
        if self.queue.publish(self.transport.registers()) {
            self.transport.notify(QUEUE);
        }
    }

    #[inline]
    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        if self.ended_ok | self.ended_badly != 0 {
            return self.take_ended();
        }
        if self.at_device == 0 {
            return None;
        }
        if let State::Resetting { deadline, doomed } = self.state {
            return self.go_on_resetting(now, deadline, doomed);
        }
        match self.queue.take_used(self.transport.registers()) {
            Ok(None) if now < self.next_deadline => None,
            Ok(None) => self.check_deadlines(now),
            Ok(Some(id)) => match self.finish(id) {
                Some(end) => Some(end),
                None => self.distrust(now),
            },
            Err(_) => self.distrust(now),
        }
    }

    fn in_flight(&self) -> usize {
        usize::from(self.geometry.slots) - self.free.count_ones() as usize
    }

    fn dma_stopped(&self) -> bool {
        Self::dma_stopped(self)
    }
}
