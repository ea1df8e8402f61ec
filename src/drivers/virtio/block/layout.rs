//! How requests share the ring and the memory for DMA.
//!
//! Every request in flight has a *slot*: an envelope (header and status byte) and a chain of
//! descriptors at fixed places. In a chain the first descriptor is the header's, the second the
//! status byte's, and the data follow; they are linked in the order the device needs. With INDIRECT_DESC a slot's chain is a table of its own and takes one entry of
//! the ring, the entry numbered like the slot. Without, the ring's descriptors are shared out
//! among few slots in equal runs. Either way a slot is all there is to allocate, and what the
//! device names in the used ring is a slot.

use crate::backend::block::ID_SIZE;
use crate::drivers::virtio::mmio::InitError;
use crate::drivers::virtio::queue::{DESC_BYTES, MAX_RING_SIZE, SplitQueue};
use crate::memory::{PAGE_SIZE, SharedSlice};

/// Slots at most: one bit each in a `u64`.
pub(super) const MAX_SLOTS: u16 = 64;
/// Data segments in a request at most.
const MAX_SEGMENTS: u16 = 254;
/// Descriptors in a chain that are not data: header and status.
const OVERHEAD: u16 = 2;
/// Descriptors in an indirect table.
const TABLE_DESCRIPTORS: usize = (MAX_SEGMENTS + OVERHEAD) as usize;
/// Slots into which a ring without INDIRECT_DESC is divided, if it is long enough.
const DIRECT_SLOTS: u16 = 8;

/// Bytes of a request's header.
pub(super) const HEADER_BYTES: u32 = 16;
/// Offset of the status byte in a slot's memory; the header is at 0.
pub(super) const STATUS: usize = 16;
/// Offset of the indirect table in a slot's memory.
pub(super) const TABLE: usize = 32;
/// Offset of the range of a discard or of write zeroes in a slot's memory: in the table, behind the
/// three descriptors that such a request has.
pub(super) const RANGE: usize = TABLE + 3 * DESC_BYTES;
/// Bytes of a range.
pub(super) const RANGE_BYTES: usize = 16;
/// Bytes of a slot's memory.
pub(super) const SLOT_BYTES: usize = TABLE + TABLE_DESCRIPTORS * DESC_BYTES;

const IDENTITY: usize = SplitQueue::bytes(MAX_RING_SIZE).next_multiple_of(64);
const SLOTS: usize = IDENTITY + ID_SIZE.next_multiple_of(64);
const END: usize = SLOTS + MAX_SLOTS as usize * SLOT_BYTES;

/// Bytes of memory a block driver shares with its device, in whole pages.
pub(super) const DMA_BYTES: usize = END.next_multiple_of(PAGE_SIZE as usize);

/// How the ring is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Entries in the ring.
    pub(super) ring: u16,
    /// Chains are indirect.
    pub(super) indirect: bool,
    /// Requests that can be in flight, 1 to [`MAX_SLOTS`].
    pub(super) slots: u16,
    /// Slot `n` has head `n << stride`.
    pub(super) stride: u32,
    /// Data descriptors in a chain, 1 to 254.
    pub(super) segments: u16,
}

impl Geometry {
    /// Divides a ring of at most `max` entries; `segments` is the device's bound.
    pub(super) fn new(max: u32, indirect: bool, segments: u32) -> Result<Self, InitError> {
        let max = max.min(u32::from(MAX_RING_SIZE));
        let ring = 1u16 << max.checked_ilog2().ok_or(InitError::NoQueue)?;
        let (slots, stride, chain) = if indirect {
            // virtio 2.7.5.3.1: a chain is no longer than the ring even if it is not in it.
            (ring.min(MAX_SLOTS), 0, ring)
        } else {
            let chain = (ring / DIRECT_SLOTS).max(4);
            (ring / chain, chain.trailing_zeros(), chain)
        };
        if chain <= OVERHEAD || slots == 0 {
            return Err(InitError::QueueTooSmall);
        }
        let room = (chain - OVERHEAD).min(MAX_SEGMENTS);
        Ok(Self { ring, indirect, slots, stride, segments: segments.clamp(1, room.into()) as u16 })
    }
}

/// The memory for DMA, divided.
pub(super) struct Layout<'m> {
    /// The ring's memory.
    pub(super) queue: SharedSlice<'m>,
    /// Where the device writes its identity.
    pub(super) identity: SharedSlice<'m>,
    slots: SharedSlice<'m>,
}

impl<'m> Layout<'m> {
    /// Divides `memory`; `None` if it is shorter than [`DMA_BYTES`] or not page-aligned.
    pub(super) fn new(memory: SharedSlice<'m>) -> Option<Self> {
        if memory.len() < DMA_BYTES || !memory.pa().is_aligned(PAGE_SIZE) {
            return None;
        }
        Some(Self {
            queue: memory.subslice(0, IDENTITY)?,
            identity: memory.subslice(IDENTITY, ID_SIZE)?,
            slots: memory.subslice(SLOTS, END - SLOTS)?,
        })
    }

    /// The memory of slot `slot`: header, status byte, indirect table.
    #[inline(always)]
    pub(super) fn slot(&self, slot: u16) -> Option<SharedSlice<'m>> {
        self.slots.subslice(usize::from(slot) * SLOT_BYTES, SLOT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indirect_ring_has_a_slot_an_entry_up_to_64() {
        let geometry = Geometry::new(1024, true, 254).unwrap();
        assert_eq!(
            geometry,
            Geometry { ring: 256, indirect: true, slots: 64, stride: 0, segments: 254 }
        );
        let geometry = Geometry::new(16, true, 254).unwrap();
        assert_eq!((geometry.slots, geometry.segments), (16, 14));
    }

    #[test]
    fn a_direct_ring_is_shared_out_and_never_overcommitted() {
        for max in 1..600 {
            let Ok(geometry) = Geometry::new(max, false, 300) else {
                assert!(max < 4, "{max}");
                continue;
            };
            assert!(u32::from(geometry.ring) <= max);
            assert!(geometry.segments + OVERHEAD <= 1 << geometry.stride);
            assert!(geometry.slots << geometry.stride <= geometry.ring);
            assert!(geometry.slots >= 1);
        }
        let geometry = Geometry::new(256, false, 300).unwrap();
        assert_eq!((geometry.slots, geometry.segments), (8, 30));
    }

    #[test]
    fn a_ring_that_is_no_power_of_two_is_used_in_part() {
        assert_eq!(Geometry::new(255, true, 300).unwrap().ring, 128);
    }

    #[test]
    fn a_ring_too_short_for_header_data_and_status_is_refused() {
        assert_eq!(Geometry::new(0, true, 1), Err(InitError::NoQueue));
        assert_eq!(Geometry::new(2, true, 1), Err(InitError::QueueTooSmall));
        assert_eq!(Geometry::new(3, false, 1), Err(InitError::QueueTooSmall));
    }

    #[test]
    fn a_device_for_single_segments_is_believed() {
        assert_eq!(Geometry::new(256, true, 1).unwrap().segments, 1);
    }

    #[test]
    fn the_parts_of_the_memory_do_not_overlap() {
        const { assert!(SplitQueue::bytes(MAX_RING_SIZE) <= IDENTITY) };
        const { assert!(IDENTITY + ID_SIZE <= SLOTS && HEADER_BYTES as usize <= STATUS) };
        const { assert!(RANGE >= TABLE + (OVERHEAD as usize + 1) * DESC_BYTES) };
        const { assert!(RANGE + RANGE_BYTES <= SLOT_BYTES) };
        // Descriptors are aligned to 16 bytes (virtio 2.7).
        const { assert!((SLOTS + TABLE).is_multiple_of(16) && SLOT_BYTES.is_multiple_of(16)) };
        const { assert!(DMA_BYTES >= END && DMA_BYTES.is_multiple_of(4096)) };
    }
}
