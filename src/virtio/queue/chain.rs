//! A descriptor chain, validated whole before a device sees any of it.

use super::QueueError;
use crate::memory::{Entry, EntryOffset, GuestMemory, Ipa, SharedSlice};
use crate::virtio::buffer::{Reader, Writer};

/// The most buffers one chain may have. A direct chain of a queue of up to this size always fits;
/// of larger queues and of indirect tables, longer chains are refused.
pub const MAX_SEGMENTS: usize = 256;

/// The most bytes one chain may describe (2.7.5.2): 4 GiB.
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// What a device keeps of a chain it works on, and gives back to complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last word of the chain's used descriptor in a packed ring (2.8.3), but for whose it is:
    /// the ID, and above it [`WRITE`] if the chain has a writable part. No bool, whose spare values
    /// would mark what is no head.
    word: u32,
    /// How much of a packed ring the chain takes up; as much is skipped (2.8.6).
    span: EntryOffset,
}

/// VIRTQ_DESC_F_WRITE (2.8), in the last word of a descriptor of the packed ring.
pub(super) const WRITE: u32 = 2 << 16;

impl Head {
    /// A chain of `descriptors` descriptors of the ring, at least 1.
    #[inline(always)]
    pub(super) fn new(id: u16, descriptors: u16, writable: bool) -> Self {
        let flags = if writable { WRITE } else { 0 };
        Self::from_word(u32::from(id) | flags, EntryOffset::of(descriptors.into()))
    }

    /// As [`Self::new`], with ID and WRITE as [`Self::word`] gives them; other bits mean nothing.
    #[inline(always)]
    pub(super) fn from_word(word: u32, span: EntryOffset) -> Self {
        Self { word: word & (WRITE | 0xFFFF), span }
    }

    /// The driver's name for the chain: the index of its first descriptor (split), or the buffer ID
    /// (packed). Nothing keeps a driver from having two chains of one name in flight.
    #[inline]
    pub const fn id(self) -> u16 {
        self.word as u16
    }

    /// How much of a packed ring the chain takes up.
    #[inline(always)]
    pub(super) const fn span(self) -> EntryOffset {
        self.span
    }

    /// The ID, and [`WRITE`] if the chain has a writable part.
    #[inline(always)]
    pub(super) const fn word(self) -> u32 {
        self.word
    }
}

/// Bytes in a descriptor, of either ring.
pub(super) const DESCRIPTOR: usize = 16;

/// A descriptor of either ring, each field read once. The last word has the flags and what else the
/// ring's kind keeps there.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) last: u32,
}

impl From<Entry> for Descriptor {
    #[inline(always)]
    fn from(entry: Entry) -> Self {
        Self { address: entry.first, len: entry.low, last: entry.high }
    }
}

impl Descriptor {
    /// Reads the descriptor at `index` of an indirect table, which is exactly as long as its
    /// descriptors but need not be aligned.
    #[inline(always)]
    pub(super) fn read_indirect(table: &SharedSlice<'_>, index: u16) -> Option<Self> {
        match table.load_entry(usize::from(index) * DESCRIPTOR) {
            Some(entry) => Some(entry.into()),
            None => Self::read_unaligned(table, index),
        }
    }

    #[cold]
    fn read_unaligned(table: &SharedSlice<'_>, index: u16) -> Option<Self> {
        let mut words = [[0; 8]; 2];
        table.read_bytes(usize::from(index) * DESCRIPTOR, words.as_flattened_mut())?;
        let [address, rest] = words.map(u64::from_le_bytes);
        Some(Self { address, len: rest as u32, last: (rest >> 32) as u32 })
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
    /// The readable segments and their bytes, once a writable descriptor has been seen; until then
    /// more than there can be.
    readable: usize,
    readable_bytes: u64,
}

impl Extent {
    /// No segments.
    pub(super) const EMPTY: Extent =
        Extent { segments: 0, bytes: 0, readable: usize::MAX, readable_bytes: u64::MAX };

    /// Whether a writable descriptor has been seen.
    #[inline(always)]
    pub(super) fn is_writable(&self) -> bool {
        self.readable != usize::MAX
    }

    /// From here on segments are writable.
    #[inline(always)]
    pub(super) fn begin_writable(&mut self) {
        self.readable = self.segments;
        self.readable_bytes = self.bytes;
    }
}

impl<'m> ChainBuffer<'m> {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { segments: [SharedSlice::empty(); MAX_SEGMENTS] }
    }

    /// Adds the `len` bytes at `address`. A buffer of no bytes is nothing.
    ///
    /// Of a chain that has too many, the first are overwritten, and [`Self::chain`] refuses it.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        extent: &mut Extent,
        memory: &GuestMemory<'m>,
        address: u64,
        len: u32,
    ) -> Result<(), QueueError> {
        extent.segments = match memory.slice_of_first(Ipa::new(address), len) {
            Some(segment) => self.set(extent.segments, segment),
            None => self.set_unusual(extent.segments, memory, address, len)?,
        };
        // No overflow: there are at most 2^15 descriptors, and lengths have 32 bits.
        extent.bytes += u64::from(len);
        Ok(())
    }

    /// Sets a segment. The index of the next one.
    #[inline(always)]
    fn set(&mut self, index: usize, segment: SharedSlice<'m>) -> usize {
        if let Some(slot) = self.segments.get_mut(index & (MAX_SEGMENTS - 1)) {
            *slot = segment;
        }
        index + 1
    }

    /// As [`Self::set`], the `len` bytes at `address` where they are not in the first region;
    /// nothing if there are none. Out of the way, so that the usual case stays in registers.
    #[cold]
    fn set_unusual(
        &mut self,
        index: usize,
        memory: &GuestMemory<'m>,
        address: u64,
        len: u32,
    ) -> Result<usize, QueueError> {
        if len == 0 {
            return Ok(index);
        }
        let segment = memory.slice(Ipa::new(address), len as usize);
        Ok(self.set(index, segment.map_err(QueueError::Buffer)?))
    }

    /// The chain that was added: as far as `extent`.
    ///
    /// # Errors
    /// If it has too many segments or bytes.
    #[inline(always)]
    pub(super) fn chain(
        &mut self,
        extent: Extent,
        head: Head,
    ) -> Result<Chain<'_, 'm>, QueueError> {
        let count = extent.segments;
        if count > MAX_SEGMENTS || extent.bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::ChainTooLong);
        }
        let readable_count = extent.readable.min(count);
        let readable_bytes = extent.readable_bytes.min(extent.bytes);
        let segments = self.segments.get_mut(..count).unwrap_or_default();
        let (readable, rest) = segments.split_at_mut_checked(readable_count).unwrap_or_default();
        Ok(Chain {
            head,
            readable: Reader::new(readable, readable_bytes as usize),
            writable: Writer::new(rest, (extent.bytes - readable_bytes) as usize),
        })
    }
}

impl Default for ChainBuffer<'_> {
    fn default() -> Self {
        Self::new()
    }
}
