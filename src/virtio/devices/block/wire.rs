//! Structures and numbers of section 5.2.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::backend::block::{BlockInfo, ID_SIZE};
use crate::virtio::Features;
use crate::virtio::queue::chain::MAX_SEGMENTS;

/// VIRTIO_BLK_F_SIZE_MAX: `size_max` is valid.
pub const SIZE_MAX: Features = Features::from_bits_retain(1 << 1);
/// VIRTIO_BLK_F_SEG_MAX: `seg_max` is valid.
pub const SEG_MAX: Features = Features::from_bits_retain(1 << 2);
/// VIRTIO_BLK_F_RO: the disk is read-only.
pub const RO: Features = Features::from_bits_retain(1 << 5);
/// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is valid.
pub const BLK_SIZE: Features = Features::from_bits_retain(1 << 6);
/// VIRTIO_BLK_F_FLUSH: the disk has a cache that can be flushed.
pub const FLUSH: Features = Features::from_bits_retain(1 << 9);
/// VIRTIO_BLK_F_TOPOLOGY: `topology` is valid.
pub const TOPOLOGY: Features = Features::from_bits_retain(1 << 10);
/// VIRTIO_BLK_F_CONFIG_WCE: the driver turns the cache on and off by `writeback`.
pub const CONFIG_WCE: Features = Features::from_bits_retain(1 << 11);
/// VIRTIO_BLK_F_MQ: there are `num_queues` queues.
pub const MQ: Features = Features::from_bits_retain(1 << 12);
/// VIRTIO_BLK_F_DISCARD: sectors that are not needed any more can be given up.
pub const DISCARD: Features = Features::from_bits_retain(1 << 13);
/// VIRTIO_BLK_F_WRITE_ZEROES: sectors can be zeroed without data.
pub const WRITE_ZEROES: Features = Features::from_bits_retain(1 << 14);

/// `seg_max` leaves room in a chain for a header and a status, each a segment of its own.
const MAX_DATA_SEGMENTS: u16 = MAX_SEGMENTS as u16 - 2;

/// The header of every request.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request_type: U32,
    pub(super) reserved: U32,
    pub(super) sector: U64,
}

/// Request types.
pub(super) mod request_type {
    pub(in super::super) const IN: u32 = 0;
    pub(in super::super) const OUT: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 4;
    pub(in super::super) const GET_ID: u32 = 8;
    pub(in super::super) const DISCARD: u32 = 11;
    pub(in super::super) const WRITE_ZEROES: u32 = 13;
}

/// A segment of a discard or of write zeroes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Range {
    pub(super) sector: U64,
    pub(super) sectors: U32,
    pub(super) flags: U32,
}

/// Flag of a [`Range`] to be zeroed: its space may be given up.
pub(super) const UNMAP: u32 = 1;

/// Ranges a request has at most: one. A request for the back end is one range, so more would have
/// to be completed together, and a disk of QEMU's takes one itself.
const MAX_RANGES: u32 = 1;

/// Length of the data of a GET_ID request.
pub(super) const IDENTITY: usize = ID_SIZE;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Length of the part of configuration space that is not zero.
pub(super) const CONFIG_SIZE: usize = size_of::<Config>();

/// Offset of `writeback`, the one field that a driver writes.
pub(super) const WRITEBACK: usize = core::mem::offset_of!(Config, writeback);

/// The features of this type a disk like `info` has behind `queues` queues.
pub(super) fn features(info: &BlockInfo, queues: u16) -> Features {
    let mut features = SIZE_MAX | SEG_MAX | BLK_SIZE | TOPOLOGY;
    features.set(RO, info.read_only);
    features.set(FLUSH | CONFIG_WCE, info.flush);
    features.set(MQ, queues > 1);
    features.set(DISCARD, info.discard.is_some() && !info.read_only);
    features.set(WRITE_ZEROES, info.write_zeroes.is_some() && !info.read_only);
    features
}

/// The beginning of `struct virtio_blk_config`. What no feature is offered for is 0.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    /// Cylinders, heads, sectors: not offered.
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// Configuration space for a disk like `info`, with requests of at most `max_segments` in `queues`
/// queues; `writeback` says whether writes may stay in its cache.
pub(super) fn config(
    info: &BlockInfo,
    max_segments: u16,
    queues: u16,
    writeback: bool,
) -> [u8; CONFIG_SIZE] {
    let offered = features(info, queues);
    let discard = info.discard.filter(|_| offered.contains(DISCARD));
    let zeroes = info.write_zeroes.filter(|_| offered.contains(WRITE_ZEROES));
    zerocopy::transmute!(Config {
        capacity: U64::new(info.sectors),
        size_max: U32::new(info.max_segment_bytes),
        seg_max: U32::new(info.max_segments.min(max_segments).min(MAX_DATA_SEGMENTS).into()),
        geometry: [0; 4],
        blk_size: U32::new(info.block_size),
        physical_block_exp: info.topology.physical_block_exponent,
        alignment_offset: info.topology.alignment_offset,
        min_io_size: U16::new(info.topology.min_io_blocks),
        opt_io_size: U32::new(info.topology.opt_io_blocks),
        writeback: (info.flush && writeback).into(),
        unused0: 0,
        num_queues: U16::new(if queues > 1 { queues } else { 0 }),
        max_discard_sectors: U32::new(discard.map_or(0, |it| it.max_sectors)),
        max_discard_seg: U32::new(discard.map_or(0, |_| MAX_RANGES)),
        discard_sector_alignment: U32::new(discard.map_or(0, |it| it.alignment)),
        max_write_zeroes_sectors: U32::new(zeroes.map_or(0, |it| it.max_sectors)),
        max_write_zeroes_seg: U32::new(zeroes.map_or(0, |_| MAX_RANGES)),
        write_zeroes_may_unmap: zeroes.is_some_and(|it| it.may_unmap).into(),
        unused1: [0; 3],
    })
}
