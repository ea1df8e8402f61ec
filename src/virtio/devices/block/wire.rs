//! Structures and numbers of section 5.2.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::backend::block::{BlockInfo, ID_SIZE};
use crate::virtio::Features;
use crate::virtio::queue::chain::MAX_SEGMENTS;

/// VIRTIO_BLK_F_SEG_MAX: `seg_max` is valid.
pub const SEG_MAX: Features = Features::from_bits_retain(1 << 2);
/// VIRTIO_BLK_F_RO: the disk is read-only.
pub const RO: Features = Features::from_bits_retain(1 << 5);
/// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is valid.
pub const BLK_SIZE: Features = Features::from_bits_retain(1 << 6);
/// VIRTIO_BLK_F_FLUSH: the disk has a cache that can be flushed.
pub const FLUSH: Features = Features::from_bits_retain(1 << 9);

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
}

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
pub(super) const CONFIG_SIZE: usize = 24;

/// The features of this type a disk like `info` has.
pub(super) fn features(info: &BlockInfo) -> Features {
    let mut features = SEG_MAX | BLK_SIZE;
    features.set(RO, info.read_only);
    features.set(FLUSH, info.flush);
    features
}

/// The beginning of `struct virtio_blk_config`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    /// Not offered.
    size_max: U32,
    seg_max: U32,
    /// Cylinders, heads, sectors: not offered.
    geometry: [u8; 4],
    blk_size: U32,
}

/// Configuration space for a disk like `info`, with requests of at most `max_segments`.
pub(super) fn config(info: &BlockInfo, max_segments: u16) -> [u8; CONFIG_SIZE] {
    zerocopy::transmute!(Config {
        capacity: U64::new(info.sectors),
        size_max: U32::new(0),
        seg_max: U32::new(info.max_segments.min(max_segments).min(MAX_DATA_SEGMENTS).into()),
        geometry: [0; 4],
        blk_size: U32::new(info.block_size),
    })
}
