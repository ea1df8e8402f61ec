//! A disk in memory.

use super::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, DiscardLimits, ID_SIZE,
    SECTOR_SIZE, SubmitError, Tag, WriteZeroesLimits,
};
use super::clock::Ticks;
use crate::memory::SharedSlice;

/// Requests a RAM disk keeps until it is polled.
pub const DEPTH: usize = 64;

/// Sectors that are discarded or zeroed by one request at most, and that a memory segment has: 1 MiB.
/// The core that submits does the work, and a guest is not to keep it for long.
const MAX_RANGE: u32 = 2048;

/// In which order a RAM disk reports what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionOrder {
    /// First in, first out.
    #[default]
    InOrder,
    /// Last in, first out: a disk that finishes requests in another order than they came, to try
    /// users on.
    Reversed,
}

/// A disk whose contents are `disk`, in sectors; a last part of a sector is not used.
///
/// The data moves in [`BlockBackend::submit`], the completion comes with the poll after the kick.
pub struct RamDisk<'m> {
    disk: SharedSlice<'m>,
    info: BlockInfo,
    order: CompletionOrder,
    finished: heapless::Deque<(Tag, BlockStatus), DEPTH>,
    /// How many of the finished requests have been kicked.
    kicked: usize,
}

impl<'m> RamDisk<'m> {
    /// A writable disk with blocks of [`SECTOR_SIZE`] bytes.
    pub fn new(disk: SharedSlice<'m>, id: [u8; ID_SIZE]) -> Self {
        let info = BlockInfo {
            flush: true,
            max_segments: u16::MAX,
            max_segment_bytes: MAX_RANGE * SECTOR_SIZE as u32,
            depth: DEPTH as u16,
            discard: Some(DiscardLimits { max_sectors: MAX_RANGE, alignment: 1 }),
            write_zeroes: Some(WriteZeroesLimits { max_sectors: MAX_RANGE, may_unmap: false }),
            id,
            ..BlockInfo::new(disk.len() as u64 / SECTOR_SIZE)
        };
        let order = CompletionOrder::default();
        Self { disk, info, order, finished: heapless::Deque::new(), kicked: 0 }
    }

    /// The same disk, but it refuses writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    /// The same disk, with completions in `order`.
    #[must_use]
    pub fn with_order(mut self, order: CompletionOrder) -> Self {
        self.order = order;
        self
    }

    /// Does what a request asks for.
    fn carry_out(&self, request: &BlockRequest<'_, 'm>) -> Option<()> {
        let mut at = usize::try_from(request.sector.checked_mul(SECTOR_SIZE)?).ok()?;
        match request.op {
            BlockOp::Flush => return Some(()),
            // Zeros, not what was there: nobody's old contents come back.
            BlockOp::Discard { sectors } | BlockOp::WriteZeroes { sectors, .. } => {
                return self.disk.fill(at, sectors as usize * SECTOR_SIZE as usize, 0);
            }
            BlockOp::Read | BlockOp::Write => (),
        }
        for segment in request.segments {
            let part = self.disk.subslice(at, segment.len())?;
            match request.op {
                BlockOp::Read => segment.copy_from(&part)?,
                _ => part.copy_from(segment)?,
            }
            at += segment.len();
        }
        Some(())
    }
}

impl<'m> BlockBackend<'m> for RamDisk<'m> {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, _now: Ticks) -> Result<(), SubmitError> {
        if self.finished.is_full() {
            return Err(SubmitError::Busy);
        }
        let refused = request.op.modifies() && self.info.read_only;
        let status = if !refused && self.carry_out(&request).is_some() {
            BlockStatus::Ok
        } else {
            BlockStatus::IoError
        };
        self.finished.push_back((request.tag, status)).map_err(|_| SubmitError::Busy)
    }

    fn kick(&mut self) {
        self.kicked = self.finished.len();
    }

    fn poll(&mut self, _now: Ticks) -> Option<(Tag, BlockStatus)> {
        self.kicked = self.kicked.checked_sub(1)?;
        match self.order {
            CompletionOrder::InOrder => self.finished.pop_front(),
            CompletionOrder::Reversed => self.finished.pop_back(),
        }
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HostRam, Pa};

    const NOW: Ticks = Ticks(0);

    fn request<'a, 'm>(
        tag: u16,
        op: BlockOp,
        sector: u64,
        segments: &'a [SharedSlice<'m>],
    ) -> BlockRequest<'a, 'm> {
        BlockRequest { tag: Tag(tag), op, sector, segments }
    }

    #[test]
    fn a_write_is_read_back_through_other_segments() {
        let (disk, ram) = (HostRam::new(8192), HostRam::new(4096));
        let memory = ram.slice(Pa::new(0));
        let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [7; ID_SIZE]);
        assert_eq!(backend.info().sectors, 16);

        memory.fill(0, 512, 0xAA).unwrap();
        memory.fill(512, 512, 0xBB).unwrap();
        let part = |at, len| memory.subslice(at, len).unwrap();
        let segments = [part(0, 300), part(300, 724)];
        backend.submit(request(1, BlockOp::Write, 3, &segments), NOW).unwrap();
        backend.kick();
        assert_eq!(backend.poll(NOW), Some((Tag(1), BlockStatus::Ok)));

        let segments = [part(2048, 512)];
        backend.submit(request(2, BlockOp::Read, 4, &segments), NOW).unwrap();
        backend.kick();
        assert_eq!(backend.poll(NOW), Some((Tag(2), BlockStatus::Ok)));
        assert_eq!(memory.load_u8(2048), Some(0xBB));
        assert_eq!(disk.slice(Pa::new(0)).load_u8(3 * 512), Some(0xAA));
        assert_eq!(disk.slice(Pa::new(0)).load_u8(5 * 512), Some(0));
    }

    #[test]
    fn what_is_discarded_or_zeroed_reads_as_zeros_and_its_neighbours_stay() {
        for op in [
            BlockOp::Discard { sectors: 2 },
            BlockOp::WriteZeroes { sectors: 2, unmap: false },
            BlockOp::WriteZeroes { sectors: 2, unmap: true },
        ] {
            let ram = HostRam::new(4096);
            let disk = ram.slice(Pa::new(0));
            disk.fill(0, 4096, 0xAA).unwrap();
            let mut backend = RamDisk::new(disk, [0; ID_SIZE]);
            let mut end = |request| {
                backend.submit(request, NOW).unwrap();
                backend.kick();
                backend.poll(NOW).unwrap().1
            };
            assert_eq!(end(request(1, op, 3, &[])), BlockStatus::Ok);
            for byte in 0..4096 {
                let zeroed = (3 * 512..5 * 512).contains(&byte);
                assert_eq!(disk.load_u8(byte), Some(if zeroed { 0 } else { 0xAA }));
            }
            assert_eq!(end(request(1, op, 7, &[])), BlockStatus::IoError);
            assert_eq!(disk.load_u8(4095), Some(0xAA));
            let mut backend = RamDisk::new(disk, [0; ID_SIZE]).read_only();
            backend.submit(request(1, op, 0, &[]), NOW).unwrap();
            backend.kick();
            assert_eq!(backend.poll(NOW), Some((Tag(1), BlockStatus::IoError)));
            assert_eq!(disk.load_u8(0), Some(0xAA));
        }
    }

    #[test]
    fn past_the_end_and_read_only_are_errors_without_effect() {
        let (disk, ram) = (HostRam::new(4096), HostRam::new(4096));
        let segments = [ram.slice(Pa::new(0)).subslice(0, 1024).unwrap()];
        segments[0].fill(0, 1024, 0xAA).unwrap();
        let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [0; ID_SIZE]);
        for sector in [7, 8, u64::MAX / 512, u64::MAX] {
            backend.submit(request(1, BlockOp::Write, sector, &segments), NOW).unwrap();
            backend.kick();
            assert_eq!(backend.poll(NOW), Some((Tag(1), BlockStatus::IoError)));
        }
        let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [0; ID_SIZE]).read_only();
        backend.submit(request(1, BlockOp::Write, 0, &segments), NOW).unwrap();
        backend.kick();
        assert_eq!(backend.poll(NOW), Some((Tag(1), BlockStatus::IoError)));
        assert_eq!(disk.slice(Pa::new(0)).load_u8(0), Some(0));
    }

    #[test]
    fn nothing_completes_before_the_kick_and_order_is_as_asked() {
        let disk = HostRam::new(4096);
        for (order, tags) in
            [(CompletionOrder::InOrder, [0, 1, 2]), (CompletionOrder::Reversed, [2, 1, 0])]
        {
            let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [0; ID_SIZE]).with_order(order);
            for tag in 0..3 {
                backend.submit(request(tag, BlockOp::Flush, 0, &[]), NOW).unwrap();
            }
            assert_eq!(backend.poll(NOW), None);
            assert_eq!(backend.in_flight(), 3);
            backend.kick();
            assert_eq!(tags.map(|_| backend.poll(NOW).unwrap().0.0), tags);
            assert_eq!(backend.poll(NOW), None);
        }
    }

    #[test]
    fn a_full_disk_is_busy_until_polled() {
        let disk = HostRam::new(4096);
        let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [0; ID_SIZE]);
        for tag in 0..DEPTH as u16 {
            backend.submit(request(tag, BlockOp::Flush, 0, &[]), NOW).unwrap();
        }
        let one_more = || request(99, BlockOp::Flush, 0, &[]);
        assert_eq!(backend.submit(one_more(), NOW), Err(SubmitError::Busy));
        backend.kick();
        backend.poll(NOW).unwrap();
        assert_eq!(backend.submit(one_more(), NOW), Ok(()));
    }
}
