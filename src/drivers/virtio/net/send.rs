//! Frames on their way out: slots, chains, and the ring that shows them to the device.

use super::header::{self, HEADER_BYTES};
use super::layout::{HEADER, Layout, MAX_SLOTS, SLOT_BYTES, START, SendGeometry, TABLE};
use crate::backend::clock::Ticks;
use crate::backend::net::Busy;
use crate::backend::switch::{MAX_HEADER, UplinkFrame, UplinkTag};
use crate::drivers::registers::Registers;
use crate::drivers::virtio::mmio::InitError;
use crate::drivers::virtio::queue::{
    DESC_BYTES, DESC_F_INDIRECT, DESC_F_NEXT, RingViolation, SplitQueue, attributes,
    write_descriptor,
};
use crate::memory::{Pa, SharedSlice};

/// A frame's place.
#[derive(Clone, Copy)]
struct Slot {
    tag: UplinkTag,
    /// [`Sender::sent`] when it was added.
    sent: u16,
    /// Not late before.
    deadline: Ticks,
}

/// A device answered what it had not been asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

impl From<RingViolation> for Nonsense {
    fn from(_: RingViolation) -> Self {
        Nonsense
    }
}

/// The ring of frames to be sent. It knows nothing of the device's state.
pub(super) struct Sender<'m> {
    queue: SplitQueue<'m>,
    memory: SharedSlice<'m>,
    geometry: SendGeometry,
    /// Slots without a frame. These masks do not overlap; together they are all slots.
    free: u64,
    /// Slots whose frame the device has not been shown.
    unpublished: u64,
    /// Slots whose frame the device has.
    at_device: u64,
    /// Slots whose frame has ended without the device.
    ended: u64,
    /// No frame at the device is late before.
    next_deadline: Ticks,
    /// Frames that the device has sent, modulo 2^16.
    sent: u16,
    /// From now on it has sent nothing for too long.
    silent: Ticks,
    slots: [Slot; MAX_SLOTS as usize],
}

impl<'m> Sender<'m> {
    /// An empty ring.
    pub(super) fn new(
        layout: &Layout<'m>,
        geometry: SendGeometry,
        event_index: bool,
    ) -> Result<Self, InitError> {
        let queue = SplitQueue::new(layout.send_queue, geometry.ring, event_index, false);
        let sender = Self {
            queue: queue.ok_or(InitError::DmaMemory)?,
            memory: layout.slots,
            geometry,
            free: u64::MAX >> (MAX_SLOTS - geometry.slots),
            unpublished: 0,
            at_device: 0,
            ended: 0,
            next_deadline: Ticks(0),
            sent: 0,
            silent: Ticks(0),
            slots: [Slot { tag: UplinkTag(0), sent: 0, deadline: Ticks(0) }; MAX_SLOTS as usize],
        };
        sender.prepare_slots().ok_or(InitError::DmaMemory)?;
        Ok(sender)
    }

    /// Empties the ring of a device that has been reset. What has a slot keeps it.
    pub(super) fn restart(&mut self) {
        self.queue.restart();
    }

    /// Writes what all frames of an indirect slot have in common.
    fn prepare_slots(&self) -> Option<()> {
        for index in (0..self.geometry.slots).filter(|_| self.geometry.indirect) {
            let (table, _) = self.table(index, &self.slot(index)?)?;
            let indirect = attributes(0, DESC_F_INDIRECT, 0);
            write_descriptor(self.queue.descriptors(), index, table.pa(), indirect)?;
        }
        Some(())
    }

    pub(super) fn queue(&self) -> &SplitQueue<'m> {
        &self.queue
    }

    /// Whether the device shall interrupt.
    pub(super) fn set_interrupts(&mut self, on: bool) {
        self.queue.set_interrupts(on);
    }

    /// The most segments of a frame besides what the switch writes.
    pub(super) fn max_segments(&self) -> u16 {
        self.geometry.chain - 1
    }

    /// Frames that there is room for.
    pub(super) fn room(&self) -> usize {
        self.free.count_ones() as usize
    }

    /// Whether the device has a frame, or is to be shown one.
    #[inline(always)]
    pub(super) fn is_waiting(&self) -> bool {
        self.at_device | self.unpublished != 0
    }

    /// Takes a frame, to be shown to the device at the next [`Self::publish`].
    #[inline]
    pub(super) fn add(
        &mut self,
        tag: UplinkTag,
        frame: &UplinkFrame<'_, 'm>,
        deadline: Ticks,
    ) -> Result<(), Busy> {
        let index = self.free.trailing_zeros() as u16;
        if self.free == 0 {
            return Err(Busy);
        }
        self.write_chain(index, frame).ok_or(Busy)?;
        let slot = self.slots.get_mut(usize::from(index)).ok_or(Busy)?;
        *slot = Slot { tag, sent: self.sent, deadline };
        if !self.is_waiting() {
            self.next_deadline = deadline;
        }
        self.free &= !(1 << index);
        self.unpublished |= 1 << index;
        self.queue.offer(index << self.geometry.stride);
        Ok(())
    }

    /// Takes a frame that is lost.
    pub(super) fn lose(&mut self, tag: UplinkTag) -> Result<(), Busy> {
        let index = self.free.trailing_zeros();
        self.slots.get_mut(index as usize).ok_or(Busy)?.tag = tag;
        self.free &= !(1 << index);
        self.ended |= 1 << index;
        Ok(())
    }

    /// Fills header and chain of slot `index`. `None` if the frame has too many segments.
    #[inline(always)]
    fn write_chain(&self, index: u16, frame: &UplinkFrame<'_, 'm>) -> Option<()> {
        let slot = self.slot(index)?;
        let [first, second, third] = header::encode(&frame.info);
        slot.store_u32(HEADER, first)?;
        slot.store_u32(HEADER + 4, second)?;
        slot.store_u32(HEADER + 8, third)?;
        if frame.header.len() > MAX_HEADER {
            return None;
        }
        slot.write_bytes(START, frame.header)?;

        let (table, head) = self.table(index, &slot)?;
        let beginning = Pa::new(slot.pa().raw() + HEADER as u64);
        let (mut at, mut place) = (beginning, 0);
        let mut bytes = (HEADER_BYTES + frame.header.len()) as u64;
        for segment in frame.segments {
            // Neighbours in physical memory share a descriptor.
            if segment.pa().raw() != at.raw() + bytes {
                if place + 1 >= self.geometry.chain {
                    return None;
                }
                let rest = attributes(bytes as u32, DESC_F_NEXT, head + place + 1);
                write_descriptor(&table, place, at, rest)?;
                place += 1;
                (at, bytes) = (segment.pa(), 0);
            }
            bytes += segment.len() as u64;
        }
        write_descriptor(&table, place, at, attributes(bytes as u32, 0, 0))?;
        if self.geometry.indirect {
            let bytes = u32::from(place + 1) * DESC_BYTES as u32;
            self.queue.set_attributes(index, attributes(bytes, DESC_F_INDIRECT, 0))?;
        }
        Some(())
    }

    /// The memory of slot `index`.
    #[inline(always)]
    fn slot(&self, index: u16) -> Option<SharedSlice<'m>> {
        self.memory.subslice(usize::from(index) * SLOT_BYTES, SLOT_BYTES)
    }

    /// The descriptors of slot `index`, whose memory is `slot`, and the number of the first one.
    #[inline(always)]
    fn table(&self, index: u16, slot: &SharedSlice<'m>) -> Option<(SharedSlice<'m>, u16)> {
        if self.geometry.indirect {
            return Some((slot.subslice(TABLE, SLOT_BYTES - TABLE)?, 0));
        }
        let head = index << self.geometry.stride;
        let bytes = DESC_BYTES << self.geometry.stride;
        let table = self.queue.descriptors().subslice(usize::from(head) * DESC_BYTES, bytes)?;
        Some((table, head))
    }

    /// Shows the device what was added. Whether it wants to be notified of it.
    #[inline]
    pub(super) fn publish(&mut self, order: &impl Registers) -> bool {
        self.at_device |= self.unpublished;
        self.unpublished = 0;
        self.queue.publish(order)
    }

    /// A frame that has ended without the device.
    #[inline]
    pub(super) fn take_ended(&mut self) -> Option<UplinkTag> {
        if self.ended == 0 {
            return None;
        }
        let index = self.ended.trailing_zeros();
        self.ended &= !(1 << index);
        self.free |= 1 << index;
        self.slots.get(index as usize).map(|slot| slot.tag)
    }

    /// A frame that the device does not need any more. It has sent nothing for too long if there is none
    /// after it until `silent`.
    #[inline]
    pub(super) fn take_sent(
        &mut self,
        order: &impl Registers,
        silent: Ticks,
    ) -> Result<Option<UplinkTag>, Nonsense> {
        if self.at_device == 0 {
            return Ok(None);
        }
        let Some(id) = self.queue.take_used(order)? else { return Ok(None) };
        let index = id >> self.geometry.stride;
        if index >= u32::from(MAX_SLOTS)
            || index << self.geometry.stride != id
            || self.at_device & (1 << index) == 0
        {
            return Err(Nonsense);
        }
        self.at_device &= !(1 << index);
        self.free |= 1 << index;
        self.sent = self.sent.wrapping_add(1);
        self.silent = silent;
        Ok(self.slots.get(index as usize).map(|slot| slot.tag))
    }

    /// Whether a frame has been at the device for too long.
    ///
    /// Its own time says little: behind 63 of 64 KiB, on a slow wire or one that its other end holds up, a
    /// frame of a device that is all right may outlast it. So it is late only if the device has sent nothing at
    /// all for as long, or more since than can have been before it, and has thus forgotten it.
    #[inline]
    pub(super) fn is_late(&mut self, now: Ticks) -> bool {
        self.is_waiting() && now >= self.next_deadline && self.one_is_late(now)
    }

    /// Judges all, and finds when one can be late next.
    #[inline(never)]
    fn one_is_late(&mut self, now: Ticks) -> bool {
        let waiting = self.at_device | self.unpublished;
        self.next_deadline = Ticks(u64::MAX);
        for (index, slot) in self.slots.iter().enumerate() {
            if waiting >> index & 1 == 0 {
                continue;
            }
            let mut next = slot.deadline;
            if now >= next {
                let overtaken = self.sent.wrapping_sub(slot.sent) >= self.geometry.slots;
                if overtaken || now >= self.silent {
                    return true;
                }
                next = self.silent;
            }
            self.next_deadline = self.next_deadline.min(next);
        }
        false
    }

    /// The device is kept from all frames it was given: they have ended.
    pub(super) fn end_all(&mut self) {
        self.ended |= self.at_device;
        self.at_device = 0;
    }

    /// The device is told to forget everything. What it has not been shown has ended.
    pub(super) fn begin_reset(&mut self) {
        self.ended |= self.unpublished;
        self.unpublished = 0;
    }
}
