//! What a chain asks for (5.2.6), judged completely before any effect.

use super::wire::{Header, IDENTITY, Status, request_type};
use crate::backend::block::{BlockInfo, SECTOR_SIZE};
use crate::virtio::buffer::Reader;

/// A request that may be carried out as it is, or its refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Disk to the writable rest of the chain.
    Read { sector: u64 },
    /// The readable rest of the chain to disk.
    Write { sector: u64 },
    /// Make completed writes durable.
    Flush,
    /// Write the identity string.
    Identify,
    /// Nothing is to be done; this is the answer.
    Refused(Status),
}

impl Request {
    /// Takes the header off `readable`, and judges the request against the disk. `room` is the
    /// length of the writable part without the status byte.
    ///
    /// A request of no data at all, and a flush of a disk without a cache, are over at once.
    #[inline]
    pub(super) fn parse(readable: &mut Reader<'_, '_>, room: usize, info: &BlockInfo) -> Self {
        let Some(header) = readable.read_object::<Header>() else {
            return Request::Refused(Status::IoError);
        };
        let sector = header.sector.get();
        let data = readable.remaining();
        match header.request_type.get() {
            request_type::IN if !in_range(sector, room, info) => Request::Refused(Status::IoError),
            request_type::IN if room == 0 => Request::Refused(Status::Ok),
            request_type::IN => Request::Read { sector },
            request_type::OUT if info.read_only || !in_range(sector, data, info) => {
                Request::Refused(Status::IoError)
            }
            request_type::OUT if data == 0 => Request::Refused(Status::Ok),
            request_type::OUT => Request::Write { sector },
            request_type::FLUSH if info.flush => Request::Flush,
            request_type::FLUSH => Request::Refused(Status::Ok),
            request_type::GET_ID if room < IDENTITY => Request::Refused(Status::IoError),
            request_type::GET_ID => Request::Identify,
            _ => Request::Refused(Status::Unsupported),
        }
    }
}

/// Whether `len` bytes from `sector` on are whole blocks of the disk.
#[inline]
fn in_range(sector: u64, len: usize, info: &BlockInfo) -> bool {
    let len = len as u64;
    // A power of two of at least a sector.
    let block_sectors = u64::from(info.block_size) / SECTOR_SIZE;
    let sectors = len / SECTOR_SIZE;
    let end = sector.checked_add(sectors);
    len & (SECTOR_SIZE - 1) == 0
        && (sector | sectors) & block_sectors.saturating_sub(1) == 0
        && end.is_some_and(|end| end <= info.sectors)
}

/// The used length if the first `filled` of `room` bytes were written, and the status byte that
/// follows them: only bytes without a gap from the beginning count (2.7.8.2).
#[inline]
pub(super) fn used_length(filled: usize, room: usize) -> u32 {
    let written = if filled == room { filled.saturating_add(1) } else { filled };
    u32::try_from(written).unwrap_or(u32::MAX)
}
