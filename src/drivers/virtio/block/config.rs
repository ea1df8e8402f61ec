//! What the device says about the disk. Source: virtio 5.2.3 (features), 5.2.4 (configuration).

use crate::backend::block::{BlockInfo, DiscardLimits, SECTOR_SIZE, Topology, WriteZeroesLimits};
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
        /// `topology` says how requests are laid out best.
        const TOPOLOGY = 1 << 10;
        /// `writeback` turns the cache on.
        const CONFIG_WCE = 1 << 11;
        /// Sectors can be given up.
        const DISCARD = 1 << 13;
        /// Sectors can be zeroed without data.
        const WRITE_ZEROES = 1 << 14;
    }
}

/// Offsets of configuration fields in bytes.
mod field {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const ALIGNMENT_OFFSET: usize = 25;
    pub(super) const MIN_IO_SIZE: usize = 26;
    pub(super) const OPT_IO_SIZE: usize = 28;
    pub(super) const WRITEBACK: usize = 32;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// The longest segment without SIZE_MAX; lengths have 32 bits, and this is a whole number of
/// sectors.
const LONGEST_SEGMENT: u32 = 1 << 30;
/// The largest block size believed.
const LARGEST_BLOCK: u32 = 1 << 20;
/// The most sectors zeroed by one request: 64 MiB, which a disk that has to write them writes before
/// the request times out.
const MOST_ZEROES: u32 = 1 << 17;

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
            sectors: capacity(transport)?,
            block_size,
            segment_bytes,
            // A device that does not say takes one for certain.
            segments: optional(BlockFeatures::SEG_MAX, field::SEG_MAX, 1),
        })
    }

    /// Completes what is known of the disk with what `features`, as agreed on, say beyond reads and
    /// writes. A limit that allows nothing is that of a disk that cannot.
    pub(super) fn read_limits<R: Registers>(
        transport: &Transport<R>,
        features: BlockFeatures,
        info: &mut BlockInfo,
    ) {
        // Whole blocks; none if there is no room for a segment.
        let block_sectors = (u64::from(info.block_size) / SECTOR_SIZE) as u32;
        let most = |sectors, segments, cap: u32| {
            let sectors = transport.config32(sectors).min(cap) & !(block_sectors - 1);
            (sectors != 0 && transport.config32(segments) != 0).then_some(sectors)
        };
        if features.contains(BlockFeatures::TOPOLOGY) {
            let topology = Topology {
                physical_block_exponent: transport.config8(field::PHYSICAL_BLOCK_EXP),
                alignment_offset: transport.config8(field::ALIGNMENT_OFFSET),
                min_io_blocks: transport.config16(field::MIN_IO_SIZE),
                opt_io_blocks: transport.config32(field::OPT_IO_SIZE),
            };
            // A hint, and not one that makes blocks larger than can be.
            if topology.physical_block_exponent <= LARGEST_BLOCK.ilog2() as u8 {
                info.topology = topology;
            }
        }
        if features.contains(BlockFeatures::DISCARD) {
            info.discard = most(field::MAX_DISCARD_SECTORS, field::MAX_DISCARD_SEG, u32::MAX).map(
                |max_sectors| DiscardLimits {
                    max_sectors,
                    alignment: transport.config32(field::DISCARD_SECTOR_ALIGNMENT).max(1),
                },
            );
        }
        if features.contains(BlockFeatures::WRITE_ZEROES) {
            info.write_zeroes =
                most(field::MAX_WRITE_ZEROES_SECTORS, field::MAX_WRITE_ZEROES_SEG, MOST_ZEROES)
                    .map(|max_sectors| WriteZeroesLimits {
                        max_sectors,
                        may_unmap: transport.config8(field::WRITE_ZEROES_MAY_UNMAP) != 0,
                    });
        }
    }
}

/// The capacity in sectors, as it is now.
pub(super) fn capacity<R: Registers>(transport: &Transport<R>) -> Result<u64, InitError> {
    transport.config64(field::CAPACITY)
}

/// Turns the cache on, if that can be chosen: flushes say what is to be durable. Not before
/// FEATURES_OK (virtio 5.2.5.1).
pub(super) fn turn_cache_on<R: Registers>(transport: &Transport<R>, features: BlockFeatures) {
    if features.contains(BlockFeatures::FLUSH | BlockFeatures::CONFIG_WCE) {
        transport.set_config8(field::WRITEBACK, 1);
    }
}
