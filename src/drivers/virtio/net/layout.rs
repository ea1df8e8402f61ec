//! How frames share the rings and the memory for DMA.
//!
//! A frame that is to be sent has a *slot*: its header, as much of the frame as the switch has
//! written itself, and a chain of descriptors whose first one is that of these two. As in the block
//! driver a slot's chain is a table of its own or a run of the ring's descriptors, and what the device
//! names in the used ring is a slot.
//!
//! A buffer to receive in has the descriptor of its number, written once: one that is given to the
//! device again costs an entry of the available ring.

use crate::drivers::virtio::mmio::InitError;
use crate::drivers::virtio::net::header::HEADER_BYTES;
use crate::drivers::virtio::queue::{DESC_BYTES, MAX_RING_SIZE, SplitQueue};
use crate::memory::{PAGE_SIZE, SharedSlice};

/// Frames being sent at most: one bit each in a `u64`.
pub(super) const MAX_SLOTS: u16 = 64;
/// Descriptors in a chain at most.
const MAX_CHAIN: u16 = 64;
/// Slots into which a ring without INDIRECT_DESC is divided, if it is long enough.
const DIRECT_SLOTS: u16 = 16;

/// Where in a slot's memory the header is. It ends where the frame begins, and that is aligned as
/// what the switch writes there likes to be.
pub(super) const HEADER: usize = 4;
/// Where in a slot's memory the beginning of the frame is.
pub(super) const START: usize = HEADER + HEADER_BYTES;
/// Where in a slot's memory its table is.
pub(super) const TABLE: usize = 256;
/// Bytes of a slot's memory.
pub(super) const SLOT_BYTES: usize = TABLE + MAX_CHAIN as usize * DESC_BYTES;

/// Buffers to receive in at most: one bit each in a `u128`.
pub(super) const MAX_BUFFERS: u16 = 128;
/// Bytes of a buffer at least: what the specification wants of one, the header included (5.1.6.3.1),
/// and more.
const BUFFER_BYTES: usize = 2048;
/// Bytes of all buffers.
const BUFFERS_BYTES: usize = MAX_BUFFERS as usize * BUFFER_BYTES;
/// What a frame has besides its MTU: the Ethernet header, and a VLAN tag.
const ETHERNET: usize = 14 + 4;

const RECEIVE_QUEUE: usize = 0;
const SEND_QUEUE: usize = SplitQueue::bytes(MAX_BUFFERS).next_multiple_of(64);
const SLOTS: usize = SEND_QUEUE + SplitQueue::bytes(MAX_RING_SIZE).next_multiple_of(64);
const BUFFERS: usize =
    (SLOTS + MAX_SLOTS as usize * SLOT_BYTES).next_multiple_of(PAGE_SIZE as usize);
const END: usize = BUFFERS + BUFFERS_BYTES;

/// Bytes of memory a network driver shares with its device, in whole pages.
pub(super) const DMA_BYTES: usize = END.next_multiple_of(PAGE_SIZE as usize);

/// How the ring of frames to be sent is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendGeometry {
    /// Entries in the ring.
    pub(super) ring: u16,
    /// Chains are indirect.
    pub(super) indirect: bool,
    /// Frames that can be in flight, 1 to [`MAX_SLOTS`].
    pub(super) slots: u16,
    /// Slot `n` has head `n << stride`.
    pub(super) stride: u32,
    /// Descriptors in a chain, at least 2: the first is the header's.
    pub(super) chain: u16,
}

impl SendGeometry {
    /// Divides a ring of at most `max` entries.
    pub(super) fn new(max: u32, indirect: bool) -> Result<Self, InitError> {
        let ring = ring(max, MAX_RING_SIZE)?;
        let (slots, stride, chain) = if indirect {
            // virtio 2.7.5.3.1: a chain is no longer than the ring even if it is not in it.
            (ring.min(MAX_SLOTS), 0, ring)
        } else {
            let chain = (ring / DIRECT_SLOTS).max(4);
            (ring / chain, chain.trailing_zeros(), chain)
        };
        if chain < 2 || slots == 0 {
            return Err(InitError::QueueTooSmall);
        }
        Ok(Self { ring, indirect, slots, stride, chain: chain.min(MAX_CHAIN) })
    }
}

/// How the memory for received frames is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceiveGeometry {
    /// Entries in the ring, and buffers.
    pub(super) ring: u16,
    /// Bytes of a buffer.
    pub(super) bytes: usize,
    /// A frame may go on in further buffers.
    pub(super) mergeable: bool,
}

impl ReceiveGeometry {
    /// Divides it for a ring of at most `max` entries, and frames of at most `mtu` bytes after
    /// the Ethernet header.
    pub(super) fn new(max: u32, mtu: u16, mergeable: bool) -> Result<Self, InitError> {
        let bytes = if mergeable {
            BUFFER_BYTES
        } else {
            (HEADER_BYTES + ETHERNET + usize::from(mtu)).next_multiple_of(BUFFER_BYTES)
        };
        let fit = (BUFFERS_BYTES / bytes) as u16;
        Ok(Self { ring: ring(max, fit)?, bytes, mergeable })
    }
}

/// The longest ring of at most `max` entries, as the device says, and `most`.
fn ring(max: u32, most: u16) -> Result<u16, InitError> {
    let max = max.min(u32::from(most));
    Ok(1 << max.checked_ilog2().ok_or(InitError::NoQueue)?)
}

/// The memory for DMA, divided.
pub(super) struct Layout<'m> {
    /// The memory of the ring of buffers to receive in.
    pub(super) receive_queue: SharedSlice<'m>,
    /// The memory of the ring of frames to be sent.
    pub(super) send_queue: SharedSlice<'m>,
    /// The slots, [`SLOT_BYTES`] each.
    pub(super) slots: SharedSlice<'m>,
    /// The buffers.
    pub(super) buffers: SharedSlice<'m>,
}

impl<'m> Layout<'m> {
    /// Divides `memory`; `None` if it is shorter than [`DMA_BYTES`] or not page-aligned.
    pub(super) fn new(memory: SharedSlice<'m>) -> Option<Self> {
        if memory.len() < DMA_BYTES || !memory.pa().is_aligned(PAGE_SIZE) {
            return None;
        }
        Some(Self {
            receive_queue: memory.subslice(RECEIVE_QUEUE, SEND_QUEUE - RECEIVE_QUEUE)?,
            send_queue: memory.subslice(SEND_QUEUE, SLOTS - SEND_QUEUE)?,
            slots: memory.subslice(SLOTS, BUFFERS - SLOTS)?,
            buffers: memory.subslice(BUFFERS, BUFFERS_BYTES)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::switch::MAX_HEADER;

    #[test]
    fn an_indirect_ring_has_a_slot_an_entry_up_to_64() {
        let geometry = SendGeometry::new(1024, true).unwrap();
        let usual = SendGeometry { ring: 256, indirect: true, slots: 64, stride: 0, chain: 64 };
        assert_eq!(geometry, usual);
        let geometry = SendGeometry::new(16, true).unwrap();
        assert_eq!((geometry.slots, geometry.chain), (16, 16));
    }

    #[test]
    fn a_direct_ring_is_shared_out_and_never_overcommitted() {
        for max in 1..600 {
            let Ok(geometry) = SendGeometry::new(max, false) else {
                assert!(max < 4, "{max}");
                continue;
            };
            assert!(u32::from(geometry.ring) <= max);
            assert!(geometry.chain <= 1 << geometry.stride && geometry.chain >= 2);
            assert!(geometry.slots << geometry.stride <= geometry.ring);
            assert!((1..=MAX_SLOTS).contains(&geometry.slots));
        }
    }

    #[test]
    fn rings_too_short_for_a_frame_are_refused() {
        assert_eq!(SendGeometry::new(0, true), Err(InitError::NoQueue));
        assert_eq!(SendGeometry::new(1, true), Err(InitError::QueueTooSmall));
        assert_eq!(SendGeometry::new(3, false), Err(InitError::QueueTooSmall));
        assert_eq!(ReceiveGeometry::new(0, 1500, true), Err(InitError::NoQueue));
    }

    #[test]
    fn a_buffer_holds_a_whole_frame_unless_it_may_go_on_in_another() {
        for (mtu, bytes, ring) in
            [(1500, 2048, 128), (2018, 2048, 128), (2019, 4096, 64), (9000, 10_240, 16)]
        {
            let geometry = ReceiveGeometry { ring, bytes, mergeable: false };
            assert_eq!(ReceiveGeometry::new(1024, mtu, false), Ok(geometry), "{mtu}");
        }
        let largest = ReceiveGeometry::new(1024, u16::MAX, false).unwrap();
        assert!(largest.ring >= 2 && usize::from(largest.ring) * largest.bytes <= BUFFERS_BYTES);
        let mergeable = ReceiveGeometry { ring: 128, bytes: 2048, mergeable: true };
        assert_eq!(ReceiveGeometry::new(1024, 9000, true), Ok(mergeable));
    }

    #[test]
    fn the_parts_of_the_memory_do_not_overlap() {
        const { assert!(SplitQueue::bytes(MAX_BUFFERS) <= SEND_QUEUE) };
        const { assert!(SEND_QUEUE + SplitQueue::bytes(MAX_RING_SIZE) <= SLOTS) };
        const { assert!(START + MAX_HEADER <= TABLE) };
        // Descriptors are aligned to 16 bytes (virtio 2.7), and the header is read by words.
        const { assert!((SLOTS + TABLE).is_multiple_of(16) && SLOT_BYTES.is_multiple_of(16)) };
        const { assert!(DMA_BYTES >= END && DMA_BYTES.is_multiple_of(4096)) };
    }
}
