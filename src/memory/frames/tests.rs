use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::memory::testing::{ram, vast_ram};

fn is_zero(slice: SharedSlice<'_>) -> bool {
    (0..slice.len()).step_by(8).all(|offset| slice.load_u64(offset) == Some(0))
}

fn soil(slice: SharedSlice<'_>) {
    for offset in (0..slice.len()).step_by(8) {
        slice.store_u64(offset, u64::MAX).unwrap();
    }
}

fn pool(pa: u64, frames: usize) -> FramePool<'static> {
    let mut pool = FramePool::new();
    pool.add(ram(pa, frames * FRAME)).unwrap();
    pool
}

#[test]
fn a_frame_is_zeroed_even_when_it_was_used_before() {
    let mut pool = pool(0x8000_0000, 4);
    let first = pool.alloc().unwrap();
    assert!(is_zero(first));
    soil(first);
    pool.free(first.pa(), 1).unwrap();
    let again = pool.alloc().unwrap();
    assert_eq!(again.pa(), first.pa());
    assert!(is_zero(again));
}

#[test]
fn the_zeroing_given_is_the_one_used() {
    fn stamp(memory: SharedSlice<'_>) {
        memory.store_u64(0, 0x1234).unwrap();
    }
    let mut pool = FramePool::with_zero(stamp);
    pool.add(ram(0, 8 * FRAME)).unwrap();
    assert_eq!(pool.alloc().unwrap().load_u64(0), Some(0x1234));
}

#[test]
fn every_frame_but_the_bitmap_can_be_had_once() {
    let mut pool = pool(0x4000_0000, 16);
    let mut seen = Vec::new();
    while let Ok(frame) = pool.alloc() {
        seen.push(frame.pa().raw());
    }
    assert_eq!(seen, (0..15).map(|n| 0x4000_0000 + n * PAGE_SIZE).collect::<Vec<_>>());
    assert_eq!(pool.free_frames(), 0);
    assert!(matches!(pool.alloc(), Err(FrameError::OutOfFrames)));
}

#[test]
fn an_area_with_a_bitmap_of_several_frames_is_used_to_its_last_frame() {
    fn leave(_: SharedSlice<'_>) {}
    let frames = 3 * 32768 + 1;
    let mut pool = FramePool::with_zero(leave);
    pool.add(vast_ram(0x4000_0000, frames * FRAME)).unwrap();
    assert_eq!(pool.total_frames(), frames - 4);
    let run = pool.alloc_run(frames - 5, 1 << 30).unwrap();
    assert_eq!(pool.alloc().unwrap().pa().raw(), run.pa().raw() + run.len() as u64);
    assert_eq!(pool.free_frames(), 0);
    pool.free(run.pa(), run.len() / FRAME).unwrap();
    assert_eq!(pool.largest_run(1 << 21), frames - 5);
}

#[test]
fn an_area_is_trimmed_to_whole_frames() {
    let mut pool = FramePool::new();
    pool.add(ram(0x4000_0800, 4 * FRAME)).unwrap();
    assert_eq!(pool.total_frames(), 2);
    assert_eq!(pool.alloc().unwrap().pa(), Pa::new(0x4000_1000));
}

#[test]
fn areas_too_small_overlapping_or_too_many_are_refused() {
    let mut pool = FramePool::new();
    assert_eq!(pool.add(ram(0, FRAME)), Err(FrameError::TooSmall));
    assert_eq!(pool.add(ram(0x10, FRAME)), Err(FrameError::TooSmall));
    pool.add(ram(0x10_0000, 4 * FRAME)).unwrap();
    // The last frame holds the bitmap, which an overlap would destroy.
    assert_eq!(pool.add(ram(0x10_3000, 4 * FRAME)), Err(FrameError::Overlaps));
    for n in 2..=MAX_AREAS as u64 {
        pool.add(ram(n * 0x10_0000, 4 * FRAME)).unwrap();
    }
    assert_eq!(pool.add(ram(0x1000_0000, 4 * FRAME)), Err(FrameError::TooManyAreas));
}

#[test]
fn frames_come_from_the_next_area_when_one_is_used_up() {
    let mut pool = pool(0x10_0000, 2);
    pool.add(ram(0x80_0000, 3 * FRAME)).unwrap();
    let all: Vec<_> = core::iter::from_fn(|| pool.alloc().ok()).map(|f| f.pa().raw()).collect();
    assert_eq!(all, [0x10_0000, 0x80_0000, 0x80_1000]);
}

#[test]
fn a_run_is_aligned_by_address_not_by_index() {
    let mut pool = pool(0x4000_3000, 64);
    assert_eq!(pool.alloc_run(2, 0x2000).unwrap().pa(), Pa::new(0x4000_4000));
    assert_eq!(pool.alloc_run(16, 0x10000).unwrap().pa(), Pa::new(0x4001_0000));
    assert_eq!(pool.alloc().unwrap().pa(), Pa::new(0x4000_3000));
}

#[test]
fn freeing_what_is_not_allocated_is_refused_without_effect() {
    let mut pool = pool(0x4000_0000, 16);
    let run = pool.alloc_run(4, PAGE_SIZE).unwrap();
    let free = pool.free_frames();
    for (pa, frames) in [
        (run.pa().raw(), 5),
        (run.pa().raw(), 0),
        (run.pa().raw(), usize::MAX),
        (run.pa().raw() + 8, 1),
        (0x4000_0000 + 15 * PAGE_SIZE, 1),
        (0, 1),
        (u64::MAX, 1),
    ] {
        assert_eq!(pool.free(Pa::new(pa), frames), Err(FrameError::NotAllocated));
    }
    assert_eq!(pool.free_frames(), free);
    pool.free(run.pa(), 4).unwrap();
    assert_eq!(pool.free(run.pa(), 4), Err(FrameError::NotAllocated));
}

#[test]
fn impossible_requests_are_refused() {
    let mut pool = pool(0x4000_0000, 16);
    for (frames, align) in [(0, PAGE_SIZE), (1, 0), (1, 2048), (1, 0x3000)] {
        assert!(matches!(pool.alloc_run(frames, align), Err(FrameError::BadRequest)));
    }
    for (frames, align) in [(usize::MAX, PAGE_SIZE), (1, 1 << 63), (16, PAGE_SIZE)] {
        assert!(matches!(pool.alloc_run(frames, align), Err(FrameError::OutOfFrames)));
    }
}

#[test]
fn memory_is_found_by_address_but_never_the_bitmap() {
    let pool = pool(0x4000_0000, 16);
    let found = pool.slice_at(Pa::new(0x4000_2008), 16).unwrap();
    assert_eq!((found.pa(), found.len()), (Pa::new(0x4000_2008), 16));
    assert!(pool.slice_at(Pa::new(0x4000_0000 + 15 * PAGE_SIZE), 8).is_none());
    assert!(pool.slice_at(Pa::new(0x4000_0000 + 15 * PAGE_SIZE - 8), 16).is_none());
    assert!(pool.slice_at(Pa::new(0x3fff_fff8), 16).is_none());
    assert!(pool.slice_at(Pa::new(0x4000_0000), usize::MAX).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

    /// Against a plain list of the frames in use, over areas of more than one bitmap word.
    #[test]
    fn runs_never_overlap_and_are_the_lowest(
        base in 0u64..8,
        steps in prop::collection::vec((any::<bool>(), 1usize..70, 0u32..7, any::<usize>()), 1..60),
    ) {
        let base = 0x4000_0000 + base * PAGE_SIZE;
        let mut pool = pool(base, 200);
        let mut used: BTreeMap<u64, usize> = BTreeMap::new();
        let in_use = |used: &BTreeMap<u64, usize>, pa: u64| {
            used.iter().any(|(at, frames)| pa >= *at && pa < at + *frames as u64 * PAGE_SIZE)
        };
        for (allocate, frames, shift, pick) in steps {
            if allocate {
                let align = PAGE_SIZE << shift;
                let expected = (0..199u64).map(|n| base + n * PAGE_SIZE).find(|at| {
                    at % align == 0
                        && (at - base) / PAGE_SIZE + frames as u64 <= 199
                        && (0..frames as u64).all(|n| !in_use(&used, at + n * PAGE_SIZE))
                });
                match pool.alloc_run(frames, align) {
                    Ok(run) => {
                        prop_assert_eq!(Some(run.pa().raw()), expected);
                        prop_assert_eq!(run.len(), frames * FRAME);
                        prop_assert!(is_zero(run));
                        soil(run);
                        used.insert(run.pa().raw(), frames);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, FrameError::OutOfFrames);
                        prop_assert_eq!(None, expected);
                    }
                }
            } else if !used.is_empty() {
                let (pa, frames) = used.iter().nth(pick % used.len()).map(|(a, f)| (*a, *f)).unwrap();
                used.remove(&pa);
                pool.free(Pa::new(pa), frames).unwrap();
            }
            let left = 199 - used.values().sum::<usize>();
            prop_assert_eq!(pool.free_frames(), left);
            let mut longest = 0;
            let mut run = 0;
            for n in 0..199 {
                run = if in_use(&used, base + n * PAGE_SIZE) { 0 } else { run + 1 };
                longest = longest.max(run);
            }
            prop_assert_eq!(pool.largest_run(PAGE_SIZE), longest);
        }
    }
}
