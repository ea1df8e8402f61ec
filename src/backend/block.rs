//! A disk, as a block device model sees it.

use super::clock::Ticks;
use crate::memory::SharedSlice;

/// Bytes in a sector: the unit of capacity and of addresses, whatever the disk's block size.
pub const SECTOR_SIZE: u64 = 512;

/// Bytes in a disk's identity string (virtio-block's GET_ID).
pub const ID_SIZE: usize = 20;

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Capacity in sectors of [`SECTOR_SIZE`] bytes.
    pub sectors: u64,
    /// Logical block size in bytes; a power of two of at least [`SECTOR_SIZE`].
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The disk has a volatile cache that [`BlockOp::Flush`] empties.
    pub flush: bool,
    /// The most memory segments one request may have; at least 1.
    pub max_segments: u16,
    /// Requests that may be in flight at once; at least 1.
    pub depth: u16,
    /// Identity, padded with zeros.
    pub id: [u8; ID_SIZE],
}

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make every completed write durable. Has no segments.
    Flush,
}

/// Names a request in flight; the submitter chooses it, unique among its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u16);

/// A request: validated, in range of the disk, and in whole sectors.
#[derive(Clone, Copy)]
pub struct BlockRequest<'a, 'm> {
    /// The submitter's name for it.
    pub tag: Tag,
    /// What to do.
    pub op: BlockOp,
    /// First sector.
    pub sector: u64,
    /// The memory, in order; together a multiple of [`SECTOR_SIZE`].
    pub segments: &'a [SharedSlice<'m>],
}

/// Why a request was not taken. It then has had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// Too many in flight; again after the next completion.
    Busy,
    /// The disk is gone or has failed for good.
    Failed,
    /// The disk cannot do this operation, or the request has too many segments.
    Unsupported,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStatus {
    /// Done.
    Ok,
    /// The disk reported an error, or did not answer in time.
    IoError,
    /// The disk does not know the operation.
    Unsupported,
}

/// A disk that is polled, by whichever core works on the device in front of it, one at a time.
pub trait BlockBackend<'m>: Send {
    /// What the disk is. Constant while requests are in flight.
    fn info(&self) -> BlockInfo;

    /// Takes a request. It may start at once or at the next [`Self::kick`]; it ends with exactly
    /// one completion from [`Self::poll`], in any order relative to others.
    ///
    /// # Errors
    /// [`SubmitError`]: the request was not taken.
    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError>;

    /// Starts what was submitted: one doorbell for a batch.
    fn kick(&mut self);

    /// One finished request, if there is one. Requests that have outlived the time-out end here
    /// with [`BlockStatus::IoError`], after the disk was kept from touching their memory. Never
    /// waits for the disk.
    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)>;

    /// Requests in flight.
    fn in_flight(&self) -> usize;
}
