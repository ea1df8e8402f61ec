//! A descriptor chain, validated whole before a device sees any of it.

use super::QueueError;
use crate::memory::{GuestMemory, Ipa, SharedSlice};
use crate::virtio::buffer::{Reader, Writer};

/// The most buffers one chain may have. A direct chain of a queue of up to this size always fits;
/// of larger queues and of indirect tables, longer chains are refused.
pub const MAX_SEGMENTS: usize = 256;

/// The most bytes one chain may describe (2.7.5.2): 4 GiB.
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// Names a chain to the driver: the index of its first descriptor (split), or the buffer ID
/// (packed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub u16);

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
    extent: Extent,
}

/// How far a chain goes: readable segments first, then writable ones.
///
/// Kept out of [`ChainBuffer`] while a chain is walked, so that it can live in registers.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    segments: usize,
    bytes: u64,
    /// The readable segments and their bytes, once a writable one has been seen.
    readable: Option<(usize, u64)>,
}

impl Extent {
    /// No segments.
    pub(super) const EMPTY: Extent = Extent { segments: 0, bytes: 0, readable: None };

    /// Whether a writable segment has been seen.
    #[inline(always)]
    pub(super) fn is_writable(&self) -> bool {
        self.readable.is_some()
    }

    /// From here on segments are writable.
    #[inline(always)]
    pub(super) fn begin_writable(&mut self) {
        self.readable = Some((self.segments, self.bytes));
    }
}

impl<'m> ChainBuffer<'m> {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { segments: [SharedSlice::empty(); MAX_SEGMENTS], extent: Extent::EMPTY }
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
        let segment = memory.slice(Ipa::new(address), len as usize).map_err(QueueError::Buffer)?;
        *self.segments.get_mut(extent.segments).ok_or(QueueError::ChainTooLong)? = segment;
        extent.segments += 1;
        // No overflow: there are at most MAX_SEGMENTS lengths of 32 bits.
        extent.bytes += u64::from(len);
        Ok(())
    }

    /// The last descriptor has been added.
    #[inline(always)]
    pub(super) fn finish(&mut self, extent: Extent) -> Result<(), QueueError> {
        if extent.bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::ChainTooLong);
        }
        self.extent = extent;
        Ok(())
    }

    /// The chain that was added last.
    #[inline(always)]
    pub(super) fn chain(&mut self, head: Head) -> Chain<'_, 'm> {
        let Extent { segments, bytes, readable } = self.extent;
        let (readable, readable_bytes) = readable.unwrap_or((segments, bytes));
        let segments = self.segments.get_mut(..segments).unwrap_or_default();
        let (readable, writable) = segments.split_at_mut_checked(readable).unwrap_or_default();
        Chain {
            head,
            readable: Reader::new(readable, readable_bytes as usize),
            writable: Writer::new(writable, (bytes - readable_bytes) as usize),
        }
    }
}

impl Default for ChainBuffer<'_> {
    fn default() -> Self {
        Self::new()
    }
}
