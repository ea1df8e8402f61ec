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
    /// The most bytes one memory segment may have; at least [`SECTOR_SIZE`].
    pub max_segment_bytes: u32,
    /// Requests that may be in flight at once; at least 1.
    pub depth: u16,
    /// How requests are laid out best.
    pub topology: Topology,
    /// The disk knows [`BlockOp::Discard`].
    pub discard: Option<DiscardLimits>,
    /// The disk knows [`BlockOp::WriteZeroes`].
    pub write_zeroes: Option<WriteZeroesLimits>,
    /// Identity, padded with zeros.
    pub id: [u8; ID_SIZE],
}

impl BlockInfo {
    /// The plainest disk of `sectors` sectors: writable, in blocks of a sector, nothing to flush,
    /// one segment and one request at a time, nameless.
    pub const fn new(sectors: u64) -> Self {
        Self {
            sectors,
            block_size: SECTOR_SIZE as u32,
            read_only: false,
            flush: false,
            max_segments: 1,
            max_segment_bytes: 1 << 30,
            depth: 1,
            topology: Topology::FLAT,
            discard: None,
            write_zeroes: None,
            id: [0; ID_SIZE],
        }
    }
}

/// How requests are laid out best, in the terms of virtio 5.2.4. It binds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exponent: u8,
    /// The first logical block that begins a physical one.
    pub alignment_offset: u8,
    /// Smallest request without a penalty, in logical blocks; 0: not known.
    pub min_io_blocks: u16,
    /// Best size of a large request, in logical blocks; 0: not known.
    pub opt_io_blocks: u32,
}

impl Topology {
    /// Logical blocks are physical ones, and nothing else is known.
    pub const FLAT: Self = Self {
        physical_block_exponent: 0,
        alignment_offset: 0,
        min_io_blocks: 0,
        opt_io_blocks: 0,
    };
}

/// Bounds of [`BlockOp::Discard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Most sectors in a request; at least a logical block.
    pub max_sectors: u32,
    /// Sectors to which the disk discards; others of a request may stay as they are. At least 1.
    pub alignment: u32,
}

/// Bounds of [`BlockOp::WriteZeroes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroesLimits {
    /// Most sectors in a request; at least a logical block.
    pub max_sectors: u32,
    /// The disk may give the space up if it is allowed to.
    pub may_unmap: bool,
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
    /// The contents of `sectors` sectors are not needed any more: what they hold then is not said,
    /// but never another owner's. Has no segments. Asked of disks with [`BlockInfo::discard`] only.
    Discard {
        /// How many; from 1 to [`DiscardLimits::max_sectors`].
        sectors: u32,
    },
    /// Make `sectors` sectors read as zeros. Has no segments. Asked of disks with
    /// [`BlockInfo::write_zeroes`] only.
    WriteZeroes {
        /// How many; from 1 to [`WriteZeroesLimits::max_sectors`].
        sectors: u32,
        /// The space may be given up, as if discarded.
        unmap: bool,
    },
}

impl BlockOp {
    /// Whether it changes what is on the disk, which a read-only one refuses.
    #[inline]
    pub const fn modifies(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }
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

impl BlockRequest<'_, '_> {
    /// How many sectors it is about, from [`Self::sector`] on; 0 for a flush.
    pub fn sectors(&self) -> u64 {
        match self.op {
            BlockOp::Read | BlockOp::Write => {
                let bytes: u64 = self.segments.iter().map(|segment| segment.len() as u64).sum();
                bytes / SECTOR_SIZE
            }
            BlockOp::Flush => 0,
            BlockOp::Discard { sectors } | BlockOp::WriteZeroes { sectors, .. } => sectors.into(),
        }
    }
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

/// Why a medium was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumError {
    /// There is no such medium, or it cannot be changed at all.
    Missing,
    /// Another is inside.
    Occupied,
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
    /// What the disk is. Constant while requests are in flight, but for its capacity, which may grow,
    /// and be another when the medium is.
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

    /// Whether the memory of requests that have ended is out of the disk's reach. False only for one
    /// that has failed and cannot be made to let go: that memory must not be put to another use.
    fn dma_stopped(&self) -> bool {
        true
    }

    /// The hardware says that it is not what it was: what [`Self::info`] tells is to be read anew.
    fn refresh(&mut self) {}

    /// Takes the medium out, or puts the one of this number in. Requests in flight end where they are.
    ///
    /// # Errors
    /// [`MediumError`]: nothing has changed.
    fn change_medium(&mut self, medium: Option<u8>) -> Result<(), MediumError> {
        let _ = medium;
        Err(MediumError::Missing)
    }
}

/// A disk that is somewhere else.
impl<'m, B: BlockBackend<'m> + ?Sized> BlockBackend<'m> for &mut B {
    fn info(&self) -> BlockInfo {
        (**self).info()
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        (**self).submit(request, now)
    }

    fn kick(&mut self) {
        (**self).kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        (**self).poll(now)
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }

    fn dma_stopped(&self) -> bool {
        (**self).dma_stopped()
    }

    fn refresh(&mut self) {
        (**self).refresh();
    }

    fn change_medium(&mut self, medium: Option<u8>) -> Result<(), MediumError> {
        (**self).change_medium(medium)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HostRam, Pa};

    #[test]
    fn a_request_knows_how_many_sectors_it_is_about() {
        let ram = HostRam::new(4096);
        let segments = [ram.slice(Pa::new(0)).subslice(0, 1024).unwrap(); 2];
        let sectors =
            |op, segments| BlockRequest { tag: Tag(0), op, sector: 9, segments }.sectors();
        assert_eq!(sectors(BlockOp::Read, &segments), 4);
        assert_eq!(sectors(BlockOp::Write, &segments[..1]), 2);
        assert_eq!(sectors(BlockOp::Flush, &[]), 0);
        assert_eq!(sectors(BlockOp::Discard { sectors: u32::MAX }, &[]), u32::MAX.into());
        assert_eq!(sectors(BlockOp::WriteZeroes { sectors: 7, unmap: true }, &[]), 7);
    }

    #[test]
    fn only_reads_and_flushes_leave_the_disk_as_it_was() {
        for op in [BlockOp::Read, BlockOp::Flush] {
            assert!(!op.modifies());
        }
        let zeroes = BlockOp::WriteZeroes { sectors: 1, unmap: false };
        for op in [BlockOp::Write, BlockOp::Discard { sectors: 1 }, zeroes] {
            assert!(op.modifies());
        }
    }
}
