//! A disk that does nothing: to measure everything around it.

use super::block::{
    BlockBackend, BlockInfo, BlockRequest, BlockStatus, DiscardLimits, SubmitError, Tag,
    WriteZeroesLimits,
};
use super::clock::Ticks;

/// Requests a null disk keeps until it is polled.
pub const DEPTH: usize = 64;

/// Sectors that are discarded or zeroed by one request at most.
const MAX_RANGE: u32 = 1 << 21;

/// A disk of any size that moves no data: writes vanish, and reads leave the guest's memory as it
/// was, which tells the guest nothing it did not know.
pub struct NullDisk {
    sectors: u64,
    finished: heapless::Deque<Tag, DEPTH>,
    kicked: usize,
}

impl NullDisk {
    /// A disk of `sectors` sectors of [`SECTOR_SIZE`](super::block::SECTOR_SIZE) bytes.
    pub const fn new(sectors: u64) -> Self {
        Self { sectors, finished: heapless::Deque::new(), kicked: 0 }
    }
}

impl<'m> BlockBackend<'m> for NullDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            flush: true,
            max_segments: u16::MAX,
            depth: DEPTH as u16,
            discard: Some(DiscardLimits { max_sectors: MAX_RANGE, alignment: 1 }),
            write_zeroes: Some(WriteZeroesLimits { max_sectors: MAX_RANGE, may_unmap: true }),
            ..BlockInfo::new(self.sectors)
        }
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, _now: Ticks) -> Result<(), SubmitError> {
        self.finished.push_back(request.tag).map_err(|_| SubmitError::Busy)
    }

    fn kick(&mut self) {
        self.kicked = self.finished.len();
    }

    fn poll(&mut self, _now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.kicked = self.kicked.checked_sub(1)?;
        self.finished.pop_front().map(|tag| (tag, BlockStatus::Ok))
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::block::BlockOp;

    #[test]
    fn every_request_completes_once_after_the_kick() {
        let mut disk = NullDisk::new(8);
        let request =
            |tag| BlockRequest { tag: Tag(tag), op: BlockOp::Read, sector: 0, segments: &[] };
        for tag in 0..DEPTH as u16 {
            disk.submit(request(tag), Ticks(0)).unwrap();
        }
        assert_eq!(disk.submit(request(99), Ticks(0)), Err(SubmitError::Busy));
        assert_eq!(BlockBackend::poll(&mut disk, Ticks(0)), None);
        BlockBackend::kick(&mut disk);
        for tag in 0..DEPTH as u16 {
            let expected = Some((Tag(tag), BlockStatus::Ok));
            assert_eq!(BlockBackend::poll(&mut disk, Ticks(0)), expected);
        }
        assert_eq!(BlockBackend::poll(&mut disk, Ticks(0)), None);
    }
}
