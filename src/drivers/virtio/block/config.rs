//! What the device says about the disk. Source: virtio 5.2.3 (features), 5.2.4 (configuration).

use crate::backend::block::SECTOR_SIZE;
use crate::drivers::registers::Registers;
use crate::drivers::virtio::mmio::{InitError, Transport};

bitflags::bitflags! {
    /// Features of a block device.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct BlockFeatures: u64 {
        /// `size_max` bounds a segment's length.
        const SIZE_MAX = 1 << 1;
        /// `seg_max` bounds a request's segments.
        const SEG_MAX = 1 << 2;
        /// The disk cannot be written.
        const RO = 1 << 5;
        /// `blk_size` is the block size.
        const BLK_SIZE = 1 << 6;
        /// There is a cache, and a request that empties it.
        const FLUSH = 1 << 9;
    }
}

/// Offsets of configuration fields in bytes.
mod field {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
}

/// The longest segment without SIZE_MAX; lengths have 32 bits, and this is a whole number of
/// sectors.
const LONGEST_SEGMENT: u32 = 1 << 30;
/// The largest block size believed.
const LARGEST_BLOCK: u32 = 1 << 20;

/// The disk, as far as the configuration space describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskConfig {
    /// Capacity in sectors.
    pub(super) sectors: u64,
    /// Bytes in a block.
    pub(super) block_size: u32,
    /// Most bytes in a segment; at least 1.
    pub(super) segment_bytes: u32,
    /// Most segments in a request, as the device says.
    pub(super) segments: u32,
}

impl DiskConfig {
    /// Reads the fields that `features`, as agreed on, make valid.
    pub(super) fn read<R: Registers>(
        transport: &Transport<R>,
        features: BlockFeatures,
    ) -> Result<Self, InitError> {
        let optional = |feature, at, otherwise| {
            if features.contains(feature) { transport.config32(at) } else { otherwise }
        };
        let block_size = optional(BlockFeatures::BLK_SIZE, field::BLK_SIZE, SECTOR_SIZE as u32);
        if !block_size.is_power_of_two()
            || u64::from(block_size) < SECTOR_SIZE
            || block_size > LARGEST_BLOCK
        {
            return Err(InitError::BadConfiguration);
        }
        let segment_bytes = optional(BlockFeatures::SIZE_MAX, field::SIZE_MAX, LONGEST_SEGMENT);
        if segment_bytes == 0 {
            return Err(InitError::BadConfiguration);
        }
        Ok(Self {
            sectors: transport.config64(field::CAPACITY)?,
            block_size,
            segment_bytes,
            // A device that does not say takes one for certain.
            segments: optional(BlockFeatures::SEG_MAX, field::SEG_MAX, 1),
        })
    }
}
