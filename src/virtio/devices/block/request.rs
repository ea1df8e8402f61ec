//! What a chain asks for (5.2.6), judged completely before any effect.

use super::wire::{DISCARD, Header, IDENTITY, Range, Status, UNMAP, WRITE_ZEROES, request_type};
use crate::backend::block::{BlockInfo, BlockOp, SECTOR_SIZE};
use crate::virtio::Features;
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
    /// A discard, or write zeroes; what of is for [`parse_range`].
    Range { zeroes: bool },
    /// Write the identity string.
    Identify,
    /// Nothing is to be done; this is the answer.
    Refused(Status),
}

impl Request {
    /// Takes the header off `readable`, and judges the request against the disk. `room` is the
    /// length of the writable part without the status byte, `accepted` the agreed features.
    ///
    /// A request of no data at all, and a flush of a disk without a cache, are over at once.
    #[inline(always)]
    pub(super) fn parse(
        readable: &mut Reader<'_, '_>,
        room: usize,
        info: &BlockInfo,
        accepted: Features,
    ) -> Self {
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
            request_type::DISCARD if accepted.contains(DISCARD) => Request::Range { zeroes: false },
            request_type::WRITE_ZEROES if accepted.contains(WRITE_ZEROES) => {
                Request::Range { zeroes: true }
            }
            _ => Request::Refused(Status::Unsupported),
        }
    }
}

/// Takes the range that a discard, or write zeroes, is about off `readable`, and judges it: what is to
/// be done from which sector on. Otherwise it is answered at once.
///
/// One range a request is all that was offered. Who sends more gets UNSUPP, which is also what is due
/// if one of them has an unknown flag (5.2.6.2), so they need not be looked through.
pub(super) fn parse_range(
    mut readable: Reader<'_, '_>,
    info: &BlockInfo,
    zeroes: bool,
) -> Result<(BlockOp, u64), Status> {
    let range = readable.read_object::<Range>().ok_or(Status::IoError)?;
    let (sector, sectors, flags) = (range.sector.get(), range.sectors.get(), range.flags.get());
    let known = if zeroes { UNMAP } else { 0 };
    if flags & !known != 0 || readable.remaining() != 0 {
        return Err(Status::Unsupported);
    }
    let max = if zeroes {
        info.write_zeroes.map(|it| it.max_sectors)
    } else {
        info.discard.map(|it| it.max_sectors)
    };
    if max.is_none_or(|max| sectors > max) || !is_on_disk(sector, sectors.into(), info) {
        return Err(Status::IoError);
    }
    if sectors == 0 {
        return Err(Status::Ok);
    }
    let op = if zeroes {
        BlockOp::WriteZeroes { sectors, unmap: flags & UNMAP != 0 }
    } else {
        BlockOp::Discard { sectors }
    };
    Ok((op, sector))
}

/// Whether `len` bytes from `sector` on are whole blocks of the disk.
#[inline(always)]
fn in_range(sector: u64, len: usize, info: &BlockInfo) -> bool {
    let len = len as u64;
    len & (SECTOR_SIZE - 1) == 0 && is_on_disk(sector, len / SECTOR_SIZE, info)
}

/// Whether `sectors` sectors from `sector` on are whole blocks of the disk.
#[inline]
fn is_on_disk(sector: u64, sectors: u64, info: &BlockInfo) -> bool {
    // A power of two of at least a sector.
    let block_sectors = u64::from(info.block_size) / SECTOR_SIZE;
    let end = sector.checked_add(sectors);
    (sector | sectors) & block_sectors.saturating_sub(1) == 0
        && end.is_some_and(|end| end <= info.sectors)
}

/// The used length if the first `filled` of `room` bytes were written, and the status byte that
/// follows them: only bytes without a gap from the beginning count (2.7.8.2).
#[inline]
pub(super) fn used_length(filled: usize, room: usize) -> u32 {
    let written = if filled == room { filled.saturating_add(1) } else { filled };
    u32::try_from(written).unwrap_or(u32::MAX)
}
