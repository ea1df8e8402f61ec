//! A descriptor chain, validated whole before a device sees any of it.

use super::QueueError;
use crate::memory::{GuestMemory, Ipa, SharedSlice};
use crate::virtio::buffer::{Reader, Writer};

/// The most buffers one chain may have. A direct chain of a queue of up to this size always fits;
/// of larger queues and of indirect tables, longer chains are refused.
pub const MAX_SEGMENTS: usize = 256;

/// The most bytes one chain may describe (2.7.5.2): 4 GiB.
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// What a device keeps of a chain it works on, and gives back to complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    id: u16,
    /// Descriptors of the ring the chain takes up; the packed ring skips as many (2.8.6).
    descriptors: u16,
    /// The chain has a writable part.
    writable: bool,
}

impl Head {
    /// A chain of `descriptors` descriptors of the ring, at least 1.
    #[inline(always)]
    pub(super) fn new(id: u16, descriptors: u16, writable: bool) -> Self {
        Self { id, descriptors, writable }
    }

    /// The driver's name for the chain: the index of its first descriptor (split), or the buffer ID
    /// (packed). Nothing keeps a driver from having two chains of one name in flight.
    #[inline]
    pub const fn id(self) -> u16 {
        self.id
    }

    #[inline(always)]
    pub(super) const fn descriptors(self) -> u16 {
        self.descriptors
    }

    #[inline(always)]
    pub(super) const fn is_writable(self) -> bool {
        self.writable
    }
}

/// Bytes in a descriptor, of either ring.
pub(super) const DESCRIPTOR: usize = 16;

/// A descriptor of either ring, read once: the address, and the other fields in one word.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) rest: u64,
}

impl Descriptor {
    /// Reads the descriptor at `index`. The table is exactly as long as its descriptors, so its
    /// bounds are the index's.
    #[inline(always)]
    pub(super) fn read(table: &SharedSlice<'_>, index: u16) -> Result<Self, QueueError> {
        match table.load_u64_pair(usize::from(index) * DESCRIPTOR) {
            Some((address, rest)) => Ok(Self { address, rest }),
            None => Self::read_unaligned(table, index),
        }
    }

    /// An indirect table need not be aligned.
    #[cold]
    fn read_unaligned(table: &SharedSlice<'_>, index: u16) -> Result<Self, QueueError> {
        let mut words = [[0; 8]; 2];
        table
            .read_bytes(usize::from(index) * DESCRIPTOR, words.as_flattened_mut())
            .ok_or(QueueError::DescriptorIndex)?;
        let [address, rest] = words.map(u64::from_le_bytes);
        Ok(Self { address, rest })
    }

    /// The length of the buffer.
    #[inline(always)]
    pub(super) fn len(self) -> u32 {
        self.rest as u32
    }
}

/// A validated chain: readable buffers before writable ones, all of them guest RAM.
pub struct Chain<'a, 'm> {
    /// The driver's name for it, given back on completion.
    pub head: Head,
    /// What the device reads.
    pub readable: Reader<'a, 'm>,
    /// What the device writes.
    pub writable: Writer<'a, 'm>,
}

/// Room for one chain's segments. A device owns one; popping a chain fills it.
pub struct ChainBuffer<'m> {
    segments: [SharedSlice<'m>; MAX_SEGMENTS],
}

/// How far a chain goes: readable segments first, then writable ones.
///
/// Kept out of [`ChainBuffer`] so that it can live in registers.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    segments: usize,
    bytes: u64,
    /// The readable segments and their bytes, once a writable one has been seen.
    readable: (usize, u64),
    writable: bool,
}

impl Extent {
    /// No segments.
    pub(super) const EMPTY: Extent =
        Extent { segments: 0, bytes: 0, readable: (0, 0), writable: false };

    /// Whether a writable segment has been seen.
    #[inline(always)]
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// From here on segments are writable.
    #[inline(always)]
    pub(super) fn begin_writable(&mut self) {
        self.readable = (self.segments, self.bytes);
        self.writable = true;
    }

    /// The last descriptor has been added.
    #[inline(always)]
    pub(super) fn finish(&mut self) -> Result<(), QueueError> {
        if self.bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::ChainTooLong);
        }
        if !self.writable {
            self.readable = (self.segments, self.bytes);
        }
        Ok(())
    }
}

impl<'m> ChainBuffer<'m> {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { segments: [SharedSlice::empty(); MAX_SEGMENTS] }
    }

    /// Adds the `len` bytes at `address`. A buffer of no bytes is nothing.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        extent: &mut Extent,
        memory: &GuestMemory<'m>,
        address: u64,
        len: u32,
    ) -> Result<(), QueueError> {
        if len == 0 {
            return Ok(());
        }
        let slot = self.segments.get_mut(extent.segments).ok_or(QueueError::ChainTooLong)?;
        match memory.slice_of_first(Ipa::new(address), len as usize) {
            Some(segment) => *slot = segment,
            None => add_elsewhere(slot, memory, address, len)?,
        }
        extent.segments += 1;
        // No overflow: there are at most MAX_SEGMENTS lengths of 32 bits.
        extent.bytes += u64::from(len);
        Ok(())
    }

    /// The chain that was added: as far as `extent`, of `descriptors` descriptors of the ring.
    #[inline(always)]
    pub(super) fn chain(&mut self, extent: Extent, id: u16, descriptors: u16) -> Chain<'_, 'm> {
        let Extent { segments, bytes, readable: (readable, readable_bytes), writable } = extent;
        let segments = self.segments.get_mut(..segments).unwrap_or_default();
        let (readable, rest) = segments.split_at_mut_checked(readable).unwrap_or_default();
        Chain {
            head: Head::new(id, descriptors, writable),
            readable: Reader::new(readable, readable_bytes as usize),
            writable: Writer::new(rest, (bytes - readable_bytes) as usize),
        }
    }
}

/// As [`ChainBuffer::add`] into `slot`, for what is not in the first region: out of the way, so that
/// the usual case stays in registers.
#[cold]
fn add_elsewhere<'m>(
    slot: &mut SharedSlice<'m>,
    memory: &GuestMemory<'m>,
    address: u64,
    len: u32,
) -> Result<(), QueueError> {
    *slot = memory.slice_of_any(Ipa::new(address), len as usize).map_err(QueueError::Buffer)?;
    Ok(())
}

impl Default for ChainBuffer<'_> {
    fn default() -> Self {
        Self::new()
    }
}
