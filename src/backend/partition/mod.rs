//! A range of sectors of a disk, as a disk of its own.

pub mod gpt;

use super::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SECTOR_SIZE, SubmitError, Tag,
};
use super::clock::Ticks;

/// A range of sectors: not empty, and its end has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    first: u64,
    count: u64,
}

impl Sectors {
    /// `count` sectors from `first` on. `None` if there are none, or more than can be numbered in
    /// bytes.
    pub const fn new(first: u64, count: u64) -> Option<Self> {
        match first.checked_add(count) {
            Some(end) if count != 0 && end <= u64::MAX / SECTOR_SIZE => Some(Self { first, count }),
            _ => None,
        }
    }

    /// The first.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// How many; not 0.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The first behind it.
    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// Whether they have a sector in common.
    pub const fn overlaps(self, other: Sectors) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Whether both ends are at multiples of `sectors`, a power of two.
    pub const fn is_aligned(self, sectors: u64) -> bool {
        (self.first | self.count) & sectors.wrapping_sub(1) == 0
    }
}

/// Why a range cannot be a disk of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// It ends behind the disk's end.
    BeyondDisk {
        /// Sectors that the disk has.
        sectors: u64,
    },
    /// It begins or ends in the midst of a logical block.
    Unaligned {
        /// Bytes in a block.
        block_size: u32,
    },
}

impl core::fmt::Display for RangeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BeyondDisk { sectors } => {
                write!(f, "the range ends behind the disk's end: it has {sectors} sectors")
            }
            Self::Unaligned { block_size } => {
                write!(f, "the range is not in whole blocks of {block_size} bytes")
            }
        }
    }
}

/// A range of sectors of the disk `D`, as a disk of its own. What is asked for outside of it never
/// reaches the disk.
pub struct Partition<D> {
    disk: D,
    sectors: Sectors,
    read_only: bool,
}

impl<D> Partition<D> {
    /// The range `sectors` of `disk`.
    ///
    /// # Errors
    /// [`RangeError`] if the disk has no such range.
    pub fn new<'m>(disk: D, sectors: Sectors) -> Result<Self, RangeError>
    where
        D: BlockBackend<'m>,
    {
        check(&disk.info(), sectors)?;
        Ok(Self { disk, sectors, read_only: false })
    }

    /// The same range, but it refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// Whether a disk has such a range.
///
/// # Errors
/// [`RangeError`] if not.
pub fn check(disk: &BlockInfo, sectors: Sectors) -> Result<(), RangeError> {
    if sectors.end() > disk.sectors {
        return Err(RangeError::BeyondDisk { sectors: disk.sectors });
    }
    if !sectors.is_aligned(u64::from(disk.block_size) / SECTOR_SIZE) {
        return Err(RangeError::Unaligned { block_size: disk.block_size });
    }
    Ok(())
}

impl<'m, D: BlockBackend<'m>> BlockBackend<'m> for Partition<D> {
    fn info(&self) -> BlockInfo {
        let mut info = self.disk.info();
        info.sectors = self.sectors.count;
        info.read_only |= self.read_only;
        let per_block = (u64::from(info.block_size) / SECTOR_SIZE).max(1);
        let topology = &mut info.topology;
        // The first logical block of the range that begins a physical one.
        let physical = 1u64 << topology.physical_block_exponent.min(7);
        let begin = self.sectors.first / per_block;
        let offset = u64::from(topology.alignment_offset).wrapping_sub(begin) & (physical - 1);
        topology.alignment_offset = offset as u8;
        info
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        if request.op == BlockOp::Flush {
            return self.disk.submit(request, now);
        }
        // Judged before, by the capacity: what is not in the range is somebody's mistake.
        let end = request.sector.checked_add(request.sectors());
        if self.read_only && request.op.modifies() || end.is_none_or(|end| end > self.sectors.count)
        {
            return Err(SubmitError::Unsupported);
        }
        let sector = self.sectors.first + request.sector;
        self.disk.submit(BlockRequest { sector, ..request }, now)
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.disk.poll(now)
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }

    fn dma_stopped(&self) -> bool {
        self.disk.dma_stopped()
    }
}

#[cfg(test)]
mod tests;
