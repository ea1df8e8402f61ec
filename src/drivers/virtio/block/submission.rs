//! Requests on their way to the device: slots, headers and chains.

use super::chain::Chain;
use super::layout::{RANGE, RANGE_BYTES, SLOT_BYTES, STATUS, TABLE};
use super::{S_NONE, Slot, VirtioBlk};
use crate::backend::block::{BlockOp, BlockRequest, SubmitError, Tag};
use crate::backend::clock::Ticks;
use crate::drivers::registers::Registers;
use crate::drivers::virtio::queue::{DESC_BYTES, DESC_F_INDIRECT, attributes, write_descriptor};
use crate::memory::SharedSlice;

/// Request types (virtio 5.2.6).
pub(super) const T_IN: u32 = 0;
pub(super) const T_OUT: u32 = 1;
pub(super) const T_FLUSH: u32 = 4;
pub(super) const T_GET_ID: u32 = 8;
pub(super) const T_DISCARD: u32 = 11;
pub(super) const T_WRITE_ZEROES: u32 = 13;

/// Flag of a range to be zeroed: its space may be given up (virtio 5.2.6).
const RANGE_UNMAP: u32 = 1;

impl<'m, R: Registers + Send> VirtioBlk<'m, R> {
    /// Takes slot and ring entry for a request of type `kind`, whose data descriptors have flag
    /// `direction` (0 or [`DESC_F_WRITE`]).
    #[inline(always)]
    pub(super) fn start(
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
    pub(super) fn start_rarely(
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
    pub(super) fn submit_without_data(
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
    pub(super) fn submit_range(
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
    pub(super) fn write_chain(
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
    pub(super) fn chain(
        &self,
        index: u16,
        memory: &SharedSlice<'m>,
        direction: u16,
    ) -> Option<Chain<'m>> {
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
    pub(super) fn prepare_slots(&self) -> Option<()> {
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

    /// Takes a request that needs no device.
    fn end_at_once(&mut self, tag: Tag) -> Result<(), SubmitError> {
        let index = self.free.trailing_zeros();
        let slot = self.slots.get_mut(index as usize).ok_or(SubmitError::Busy)?;
        slot.tag = tag;
        self.free &= !(1 << index);
        self.ended_ok |= 1 << index;
        Ok(())
    }
}
