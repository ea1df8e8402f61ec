//! The frame pool: 4 KiB frames and aligned runs of them, for stage-2 tables and for guests' RAM.
//!
//! One bit a frame says whether it is in use. Each area keeps its bitmap in its own last frames, so
//! the pool needs no memory but what it is given. Every frame is zeroed before it is handed out.

use core::fmt;

use super::ram::{PaRange, align_up};
use super::{PAGE_SIZE, Pa, SharedSlice};

/// Separate areas of RAM a pool can manage.
pub const MAX_AREAS: usize = 8;

const FRAME: usize = PAGE_SIZE as usize;

/// Why the pool refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// No free run of that size and alignment.
    OutOfFrames,
    /// No frames asked for, or an alignment that is not a power of two of at least one frame.
    BadRequest,
    /// The frames to be freed are not frames of the pool, or not all in use.
    NotAllocated,
    /// The area is too small to hold a frame and the bit for it.
    TooSmall,
    /// The area overlaps one the pool has.
    Overlaps,
    /// The pool has [`MAX_AREAS`] areas.
    TooManyAreas,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfFrames => "out of memory frames",
            Self::BadRequest => "a request for frames with an impossible size or alignment",
            Self::NotAllocated => "frames freed that were not allocated",
            Self::TooSmall => "memory area too small for a frame pool",
            Self::Overlaps => "memory area added twice",
            Self::TooManyAreas => "too many separate memory areas",
        })
    }
}

/// Frames of RAM, free and in use.
pub struct FramePool<'m> {
    areas: heapless::Vec<Area<'m>, MAX_AREAS>,
    zero: fn(SharedSlice<'_>),
}

impl<'m> FramePool<'m> {
    /// An empty pool that zeroes frames with word stores.
    pub const fn new() -> Self {
        Self::with_zero(zero_words)
    }

    /// An empty pool that zeroes frames by `zero`: the place for a faster instruction.
    ///
    /// `zero` gets whole frames and must leave every byte of them zero for all observers.
    pub const fn with_zero(zero: fn(SharedSlice<'_>)) -> Self {
        Self { areas: heapless::Vec::new(), zero }
    }

    /// Adds the whole frames of `ram` to the pool, which from now on alone decides who uses them.
    ///
    /// One frame in 32768 (at least one) is spent on the bitmap.
    ///
    /// # Errors
    /// If there are too few frames or too many areas, or the pool has some of them already.
    pub fn add(&mut self, ram: SharedSlice<'m>) -> Result<(), FrameError> {
        let range = PaRange { base: ram.pa(), len: ram.len() as u64 };
        let whole = range.aligned_inside(PAGE_SIZE).ok_or(FrameError::TooSmall)?;
        if self.areas.iter().any(|area| area.whole.overlaps(whole)) {
            return Err(FrameError::Overlaps);
        }
        let skip = (whole.base.raw() - range.base.raw()) as usize;
        let ram = ram.subslice(skip, whole.len as usize).ok_or(FrameError::TooSmall)?;
        let area = Area::new(whole, ram).ok_or(FrameError::TooSmall)?;
        self.areas.push(area).map_err(|_| FrameError::TooManyAreas)
    }

    /// One zeroed frame.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrames`].
    pub fn alloc(&mut self) -> Result<SharedSlice<'m>, FrameError> {
        self.alloc_run(1, PAGE_SIZE)
    }

    /// `frames` zeroed frames in a row, the first at a multiple of `align` bytes (a power of two):
    /// the lowest such run.
    ///
    /// # Errors
    /// [`FrameError::OutOfFrames`], [`FrameError::BadRequest`].
    pub fn alloc_run(&mut self, frames: usize, align: u64) -> Result<SharedSlice<'m>, FrameError> {
        if frames == 0 || !align.is_power_of_two() || align < PAGE_SIZE {
            return Err(FrameError::BadRequest);
        }
        for area in &mut self.areas {
            let Some(start) = area.find(frames, align) else {
                continue;
            };
            let Some(run) = area.slice(start, frames) else {
                continue;
            };
            area.take(start, frames);
            (self.zero)(run);
            return Ok(run);
        }
        Err(FrameError::OutOfFrames)
    }

    /// Takes back the `frames` frames at `pa`, part or all of one or more runs. Nobody - no core,
    /// no device, no cached translation - may use them any more.
    ///
    /// # Errors
    /// [`FrameError::NotAllocated`] if any of them is not in use; then none is freed.
    pub fn free(&mut self, pa: Pa, frames: usize) -> Result<(), FrameError> {
        for area in &mut self.areas {
            let Some(start) = area.index_of(pa) else {
                continue;
            };
            return area.give_back(start, frames).ok_or(FrameError::NotAllocated);
        }
        Err(FrameError::NotAllocated)
    }

    /// The memory at `pa`, if all of it is frames of one area (in use or not).
    #[inline]
    pub fn slice_at(&self, pa: Pa, len: usize) -> Option<SharedSlice<'m>> {
        self.areas.iter().find_map(|area| {
            let offset = pa.raw().checked_sub(area.ram.pa().raw())?;
            area.ram.subslice(usize::try_from(offset).ok()?, len)
        })
    }

    /// Frames not in use.
    pub fn free_frames(&self) -> usize {
        self.areas.iter().map(|area| area.free).sum()
    }

    /// Frames in all.
    pub fn total_frames(&self) -> usize {
        self.areas.iter().map(Area::frames).sum()
    }

    /// The longest free run that starts at a multiple of `align` bytes (a power of two), in frames.
    /// A pass over all bitmaps: for start-up.
    pub fn largest_run(&self, align: u64) -> usize {
        self.areas.iter().map(|area| area.largest(align)).max().unwrap_or(0)
    }
}

impl Default for FramePool<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Zeroes whole words; frames have no others.
fn zero_words(memory: SharedSlice<'_>) {
    // All of it is in range.
    let _ = memory.fill(0, memory.len(), 0);
}

/// One contiguous area: its frames, then the frames with its bitmap.
struct Area<'m> {
    whole: PaRange,
    ram: SharedSlice<'m>,
    bitmap: SharedSlice<'m>,
    /// No frame below this one is free.
    lowest: usize,
    free: usize,
}

impl<'m> Area<'m> {
    /// `ram` is `whole`, which is whole frames. `None` if it cannot hold a frame and its bit.
    fn new(whole: PaRange, ram: SharedSlice<'m>) -> Option<Self> {
        let all = ram.len() / FRAME;
        let bitmap_frames = all.div_ceil(FRAME * 8);
        let frames = all.checked_sub(bitmap_frames).filter(|frames| *frames > 0)?;
        let bitmap = ram.subslice(frames * FRAME, bitmap_frames * FRAME)?;
        zero_words(bitmap);
        let ram = ram.subslice(0, frames * FRAME)?;
        Some(Self { whole, ram, bitmap, lowest: 0, free: frames })
    }

    fn frames(&self) -> usize {
        self.ram.len() / FRAME
    }

    fn slice(&self, start: usize, frames: usize) -> Option<SharedSlice<'m>> {
        self.ram.subslice(start.checked_mul(FRAME)?, frames.checked_mul(FRAME)?)
    }

    /// The frame at `pa`, if it starts there.
    fn index_of(&self, pa: Pa) -> Option<usize> {
        let offset = pa.raw().checked_sub(self.ram.pa().raw())?;
        let index = usize::try_from(offset / PAGE_SIZE).ok()?;
        (pa.is_aligned(PAGE_SIZE) && index < self.frames()).then_some(index)
    }

    /// The first frame from `index` on whose address is a multiple of `align`.
    fn aligned(&self, index: usize, align: u64) -> Option<usize> {
        let base = self.ram.pa().raw();
        let at = align_up(base.checked_add((index as u64).checked_mul(PAGE_SIZE)?)?, align)?;
        usize::try_from((at - base) / PAGE_SIZE).ok()
    }

    /// The first frame in `from..limit` that is in use (or free); `limit` if there is none.
    fn next(&self, from: usize, limit: usize, in_use: bool) -> usize {
        let mut index = from;
        while index < limit {
            // A bit that cannot be read counts as in use: such a frame is never handed out.
            let word = self.bitmap.load_u64(index / 64 * 8).unwrap_or(u64::MAX);
            let wanted = (if in_use { word } else { !word }) >> (index % 64);
            if wanted != 0 {
                return limit.min(index + wanted.trailing_zeros() as usize);
            }
            index = (index / 64 + 1) * 64;
        }
        limit
    }

    /// The lowest free run. Each step starts behind the frame that spoilt the one before, so the
    /// bitmap is read once.
    fn find(&self, frames: usize, align: u64) -> Option<usize> {
        if frames > self.free {
            return None;
        }
        let all = self.frames();
        let mut start = self.aligned(self.next(self.lowest, all, false), align)?;
        loop {
            let end = start.checked_add(frames).filter(|end| *end <= all)?;
            let spoilt = self.next(start, end, true);
            if spoilt == end {
                return Some(start);
            }
            start = self.aligned(self.next(spoilt, all, false), align)?;
        }
    }

    fn largest(&self, align: u64) -> usize {
        let all = self.frames();
        let mut best = 0;
        let mut from = self.lowest;
        while from < all {
            let start = self.next(from, all, false);
            let end = self.next(start, all, true);
            let aligned = self.aligned(start, align).unwrap_or(end);
            best = best.max(end.saturating_sub(aligned));
            from = end;
        }
        best
    }

    /// Marks a run that was found free.
    fn take(&mut self, start: usize, frames: usize) {
        self.mark(start, start + frames, true);
        self.free -= frames;
        if self.lowest == start {
            self.lowest = start + frames;
        }
    }

    fn give_back(&mut self, start: usize, frames: usize) -> Option<()> {
        let end = start.checked_add(frames).filter(|end| *end <= self.frames())?;
        if frames == 0 || self.next(start, end, false) != end {
            return None;
        }
        self.mark(start, end, false);
        self.free += frames;
        self.lowest = self.lowest.min(start);
        Some(())
    }

    fn mark(&mut self, start: usize, end: usize, in_use: bool) {
        let mut index = start;
        while index < end {
            let next = end.min((index / 64 + 1) * 64);
            let bits = (u64::MAX >> (64 - (next - index))) << (index % 64);
            let at = index / 64 * 8;
            let word = self.bitmap.load_u64(at).unwrap_or(u64::MAX);
            // In range: the bitmap has a bit for every frame.
            let _ = self.bitmap.store_u64(at, if in_use { word | bits } else { word & !bits });
            index = next;
        }
    }
}

#[cfg(test)]
mod tests;
