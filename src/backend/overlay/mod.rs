//! Copy on write: a disk that is only read, and in RAM what a guest has written over it.
//!
//! - `store`: where in RAM which sector is.
//! - this file: requests, and which part of each the store answers and which the disk below.
//!
//! What is only below goes by DMA straight to the guest. A read of which parts are in RAM goes below
//! once, from the first sector that is not in RAM to the last, and what is in RAM is put over it when
//! that has come. Writes need nothing from below, because the store knows for each sector whether it
//! has it.

mod store;

use core::sync::atomic::{AtomicBool, Ordering};

use super::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, DiscardLimits, SECTOR_SIZE,
    SubmitError, Tag, WriteZeroesLimits,
};
use super::clock::Ticks;
use crate::memory::SharedSlice;
pub use store::{CLUSTER, TooSmall, least};
use store::{Run, Store};

/// Memory segments of a request.
pub const MAX_SEGMENTS: usize = 32;
/// Bytes of a segment. The core that submits copies them, and a guest is not to keep it for long.
pub const MAX_SEGMENT_BYTES: u32 = 0x1_0000;
/// Sectors that are discarded or zeroed by one request at most: 16 MiB.
const MAX_RANGE: u32 = 0x8000;
/// Requests that are finished and not polled yet, at most.
const DEPTH: usize = 64;
/// Reads at work that are put together of both.
const JOBS: usize = 8;

/// Asks an overlay, from whatever core, to forget what was written, so that the disk is again that
/// below.
#[derive(Debug, Default)]
pub struct Revert(AtomicBool);

impl Revert {
    /// Nothing is asked for.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Has the overlay forget what was written, before it takes its next request. To be called while it
    /// has none in flight.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Acquire)
    }
}

/// A read of which the disk below has its part.
struct Job<'m> {
    tag: Tag,
    sector: u64,
    segments: heapless::Vec<SharedSlice<'m>, MAX_SEGMENTS>,
}

/// Room for the reads of an overlay that are at work and put together of both. A place of its own,
/// because it is large.
#[derive(Default)]
pub struct Jobs<'m>([Option<Job<'m>>; JOBS]);

impl Jobs<'_> {
    /// Nothing is at work.
    pub const fn new() -> Self {
        Self([const { None }; JOBS])
    }
}

/// A disk over another, which is never written.
pub struct Overlay<'d, 'm> {
    base: &'d mut (dyn BlockBackend<'m> + 'd),
    info: BlockInfo,
    store: Store<'m>,
    revert: &'d Revert,
    jobs: &'d mut Jobs<'m>,
    finished: heapless::Deque<(Tag, BlockStatus), DEPTH>,
    /// It was said that there is no room.
    warned: bool,
}

impl<'d, 'm> Overlay<'d, 'm> {
    /// A disk that is as `base` until it is written. What is written, and what tells where it is, is in
    /// `memory`, whose contents do not matter; [`least`] says how much it takes.
    ///
    /// # Errors
    /// [`TooSmall`] if there is no room for any sector.
    pub fn new(
        base: &'d mut (dyn BlockBackend<'m> + 'd),
        memory: SharedSlice<'m>,
        revert: &'d Revert,
        jobs: &'d mut Jobs<'m>,
    ) -> Result<Self, TooSmall> {
        let below = base.info();
        let store = Store::new(memory, below.sectors)?;
        let info = BlockInfo {
            read_only: false,
            flush: true,
            max_segments: below.max_segments.min(MAX_SEGMENTS as u16),
            max_segment_bytes: below.max_segment_bytes.min(MAX_SEGMENT_BYTES),
            depth: below.depth.min(DEPTH as u16),
            discard: Some(DiscardLimits {
                max_sectors: MAX_RANGE,
                alignment: CLUSTER / SECTOR_SIZE as u32,
            }),
            write_zeroes: Some(WriteZeroesLimits { max_sectors: MAX_RANGE, may_unmap: true }),
            ..below
        };
        let finished = heapless::Deque::new();
        Ok(Self { base, info, store, revert, jobs, finished, warned: false })
    }

    /// Answers a request that needs nothing from below.
    fn end(&mut self, tag: Tag, status: BlockStatus) -> Result<(), SubmitError> {
        self.finished.push_back((tag, status)).map_err(|_| SubmitError::Busy)
    }

    fn read(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        let BlockRequest { tag, sector, segments, .. } = request;
        let end = sector + request.sectors();
        let Some((first, last)) = self.store.missing(sector, end) else {
            self.fill(sector, segments);
            return self.end(tag, BlockStatus::Ok);
        };
        if !self.store.has_any(sector, end) {
            return self.base.submit(request, now);
        }
        let Some(place) = self.jobs.0.iter_mut().find(|job| job.is_none()) else {
            return Err(SubmitError::Busy);
        };
        let skip = (first - sector) * SECTOR_SIZE;
        let len = (last + 1 - first) * SECTOR_SIZE;
        let mut below = heapless::Vec::<_, MAX_SEGMENTS>::new();
        for part in Cursor::new(segments).after(skip as usize).up_to(len as usize) {
            below.push(part).map_err(|_| SubmitError::Unsupported)?;
        }
        let all = heapless::Vec::from_slice(segments).map_err(|_| SubmitError::Unsupported)?;
        let request = BlockRequest { sector: first, segments: &below, ..request };
        self.base.submit(request, now)?;
        *place = Some(Job { tag, sector, segments: all });
        Ok(())
    }

    /// Puts what the store has of the sectors from `sector` on into `segments`.
    fn fill(&self, mut sector: u64, segments: &[SharedSlice<'m>]) {
        let mut cursor = Cursor::new(segments);
        while !cursor.is_empty() {
            let (run, sectors) = self.store.run(sector);
            sector += sectors;
            let mut bytes = (sectors * SECTOR_SIZE) as usize;
            if matches!(run, Run::Below) {
                cursor = cursor.after(bytes);
                continue;
            }
            let mut offset = 0;
            while let Some(part) = cursor.next_of(bytes) {
                // In bounds: the lengths are equal, and the run is as long as its sectors.
                let _ = match run {
                    Run::Stored(data) => {
                        data.subslice(offset, part.len()).and_then(|data| part.copy_from(&data))
                    }
                    _ => part.fill(0, part.len(), 0),
                };
                offset += part.len();
                bytes -= part.len();
            }
        }
    }

    fn write(&mut self, request: BlockRequest<'_, 'm>) -> Result<(), SubmitError> {
        let BlockRequest { tag, mut sector, segments, .. } = request;
        let end = sector + request.sectors();
        if !self.store.has_room_for(sector, end) {
            if !core::mem::replace(&mut self.warned, true) {
                log::warn!(
                    "an overlay of {} KiB is full: what would need more is not written",
                    self.store.capacity() / 1024
                );
            }
            return self.end(tag, BlockStatus::IoError);
        }
        let mut cursor = Cursor::new(segments);
        while sector < end {
            let Some((data, sectors)) = self.store.place(sector, end) else {
                return self.end(tag, BlockStatus::IoError);
            };
            let mut offset = 0;
            while let Some(part) = cursor.next_of(data.len() - offset) {
                // In bounds, as above.
                let _ = data.subslice(offset, part.len()).and_then(|data| data.copy_from(&part));
                offset += part.len();
            }
            sector += sectors;
        }
        self.end(tag, BlockStatus::Ok)
    }
}

impl<'m> BlockBackend<'m> for Overlay<'_, 'm> {
    fn info(&self) -> BlockInfo {
        self.info
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        if self.finished.is_full() {
            return Err(SubmitError::Busy);
        }
        if self.revert.take() {
            self.store.clear();
            self.warned = false;
        }
        let end = request.sector.checked_add(request.sectors());
        if request.op != BlockOp::Flush && end.is_none_or(|end| end > self.info.sectors) {
            return Err(SubmitError::Unsupported);
        }
        let most = u64::from(MAX_SEGMENT_BYTES) * MAX_SEGMENTS as u64 / SECTOR_SIZE;
        match request.op {
            BlockOp::Read | BlockOp::Write if request.sectors() > most => {
                Err(SubmitError::Unsupported)
            }
            BlockOp::Read => self.read(request, now),
            BlockOp::Write => self.write(request),
            // Nothing of it outlives the board's power.
            BlockOp::Flush => self.end(request.tag, BlockStatus::Ok),
            BlockOp::Discard { sectors } | BlockOp::WriteZeroes { sectors, .. }
                if sectors > MAX_RANGE =>
            {
                Err(SubmitError::Unsupported)
            }
            BlockOp::Discard { .. } | BlockOp::WriteZeroes { .. } => {
                self.store.zero(request.sector, request.sector + request.sectors());
                self.end(request.tag, BlockStatus::Ok)
            }
        }
    }

    fn kick(&mut self) {
        self.base.kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        if let Some(finished) = self.finished.pop_front() {
            return Some(finished);
        }
        let (tag, status) = self.base.poll(now)?;
        let job = self.jobs.0.iter_mut().find(|job| job.as_ref().is_some_and(|job| job.tag == tag));
        if let Some(job) = job.and_then(Option::take)
            && status == BlockStatus::Ok
        {
            self.fill(job.sector, &job.segments);
        }
        Some((tag, status))
    }

    fn in_flight(&self) -> usize {
        self.base.in_flight() + self.finished.len()
    }

    fn dma_stopped(&self) -> bool {
        self.base.dma_stopped()
    }
}

/// What is left of a list of segments.
#[derive(Clone, Copy)]
struct Cursor<'a, 'm> {
    segments: &'a [SharedSlice<'m>],
    /// Bytes of the first that are gone.
    offset: usize,
    /// Bytes that are left, if fewer than the segments have.
    left: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    fn new(segments: &'a [SharedSlice<'m>]) -> Self {
        Self { segments, offset: 0, left: usize::MAX }
    }

    /// Without segments that have no bytes left.
    fn is_empty(&self) -> bool {
        self.segments.is_empty() || self.left == 0
    }

    /// The same, without its first `bytes`.
    fn after(mut self, mut bytes: usize) -> Self {
        while let Some(part) = self.next_of(bytes) {
            bytes -= part.len();
        }
        self
    }

    /// The first `bytes` of it.
    fn up_to(mut self, bytes: usize) -> Self {
        self.left = self.left.min(bytes);
        self
    }

    /// The next piece that is in one segment, of at most `most` bytes; `None` if there is none or
    /// `most` is 0.
    fn next_of(&mut self, most: usize) -> Option<SharedSlice<'m>> {
        let most = most.min(self.left);
        while let Some((first, rest)) = self.segments.split_first() {
            let len = first.len() - self.offset;
            if len > most {
                let part = first.subslice(self.offset, most).filter(|part| !part.is_empty())?;
                self.offset += most;
                self.left -= most;
                return Some(part);
            }
            let part = first.subslice(self.offset, len)?;
            (self.segments, self.offset) = (rest, 0);
            if len != 0 {
                self.left -= len;
                return Some(part);
            }
        }
        None
    }
}

impl<'m> Iterator for Cursor<'_, 'm> {
    type Item = SharedSlice<'m>;

    fn next(&mut self) -> Option<SharedSlice<'m>> {
        self.next_of(usize::MAX)
    }
}

#[cfg(test)]
mod tests;
