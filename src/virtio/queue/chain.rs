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
    segments: heapless::Vec<SharedSlice<'m>, MAX_SEGMENTS>,
    /// How many of the segments are readable; they come first.
    readable: usize,
    /// Bytes of the readable and of the writable segments.
    bytes: [u64; 2],
}

impl<'m> ChainBuffer<'m> {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { segments: heapless::Vec::new(), readable: 0, bytes: [0; 2] }
    }

    /// Forgets the last chain.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.bytes = [0; 2];
    }

    /// Adds the buffer of one descriptor: `len` bytes at `address`. A buffer of no bytes is
    /// nothing.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory<'m>,
        address: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), QueueError> {
        if len == 0 {
            return Ok(());
        }
        let [readable_bytes, writable_bytes] = &mut self.bytes;
        if writable {
            *writable_bytes += u64::from(len);
        } else {
            if *writable_bytes != 0 {
                return Err(QueueError::ReadableAfterWritable);
            }
            *readable_bytes += u64::from(len);
            self.readable += 1;
        }
        let segment = memory.slice(Ipa::new(address), len as usize).map_err(QueueError::Buffer)?;
        self.segments.push(segment).map_err(|_| QueueError::ChainTooLong)
    }

    /// The chain, once every descriptor is added.
    #[inline(always)]
    pub(super) fn chain(&mut self, head: Head) -> Result<Chain<'_, 'm>, QueueError> {
        let [readable_bytes, writable_bytes] = self.bytes;
        // No overflow: there are at most MAX_SEGMENTS lengths of 32 bits.
        if readable_bytes + writable_bytes > MAX_CHAIN_BYTES {
            return Err(QueueError::ChainTooLong);
        }
        let (readable, writable) = self
            .segments
            .split_at_mut_checked(self.readable)
            .ok_or(QueueError::ReadableAfterWritable)?;
        Ok(Chain {
            head,
            readable: Reader::new(readable, readable_bytes as usize),
            writable: Writer::new(writable, writable_bytes as usize),
        })
    }
}

impl Default for ChainBuffer<'_> {
    fn default() -> Self {
        Self::new()
    }
}
