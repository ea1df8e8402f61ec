//! A disk in memory.

use super::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, ID_SIZE, SECTOR_SIZE, SubmitError,
    Tag,
};
use super::clock::Ticks;
use crate::memory::SharedSlice;

/// Requests a RAM disk keeps until it is polled.
pub const DEPTH: usize = 64;

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
            sectors: disk.len() as u64 / SECTOR_SIZE,
            block_size: SECTOR_SIZE as u32,
            read_only: false,
            flush: true,
            max_segments: u16::MAX,
            depth: DEPTH as u16,
            id,
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

    /// Moves the data of a request.
    fn transfer(&self, request: &BlockRequest<'_, 'm>) -> Option<()> {
        let mut at = usize::try_from(request.sector.checked_mul(SECTOR_SIZE)?).ok()?;
        for segment in request.segments {
            let part = self.disk.subslice(at, segment.len())?;
            match request.op {
                BlockOp::Read => segment.copy_from(&part)?,
                BlockOp::Write => part.copy_from(segment)?,
                BlockOp::Flush => (),
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
        let refused = request.op == BlockOp::Write && self.info.read_only;
        let status = if !refused && self.transfer(&request).is_some() {
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
