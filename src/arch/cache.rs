//! Cache maintenance, and zeroing by cache block.

use core::arch::asm;

use super::{barrier, layout, registers};
use crate::memory::{Pa, SharedSlice};

/// Smallest data cache line in bytes (CTR_EL0.DminLine).
fn line() -> usize {
    4 << (registers::CTR_EL0::get() >> 16 & 0xf)
}

/// DC ZVA's block in bytes, if it may be used (DCZID_EL0).
fn zero_block() -> Option<usize> {
    let dczid = registers::DCZID_EL0::get();
    (dczid & 0x10 == 0).then_some(4 << (dczid & 0xf))
}

/// Zeroes guest RAM that is about to be given away, and takes it out of the data caches: a guest
/// that starts with its caches off must neither see old bytes nor lose its own to a late write-back.
pub fn scrub(memory: SharedSlice<'_>) {
    let start = layout::linear(memory.pa());
    let end = start + memory.len();
    let block =
        zero_block().filter(|block| start.is_multiple_of(*block) && end.is_multiple_of(*block));
    let Some(block) = block else {
        let _ = memory.fill(0, memory.len(), 0);
        clean_invalidate(memory);
        return;
    };
    let line = line();
    // A chunk is zeroed and then cleaned while it is still in the cache.
    const CHUNK: usize = 4096;
    let mut chunk = start;
    while chunk < end {
        let chunk_end = (chunk + CHUNK).min(end);
        zero_blocks(chunk, chunk_end, block);
        clean_lines(chunk, chunk_end, line);
        chunk = chunk_end;
    }
    barrier::complete();
}

/// DC ZVA over `start..end`, both multiples of `block`; eight a turn where they fit.
fn zero_blocks(start: usize, end: usize, block: usize) {
    let mut at = start;
    while at < end {
        // SAFETY: `at` lies in a SharedSlice of RAM in the linear map, aligned to the block; atomics
        // are the only other access to it.
        unsafe { asm!("dc zva, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += block;
    }
}

fn clean_lines(start: usize, end: usize, line: usize) {
    let mut at = start & !(line - 1);
    while at < end {
        // SAFETY: cleaning and invalidating loses no data; the address is mapped.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
}

/// Writes `memory` back to the point of coherency and drops it from the data caches.
pub fn clean_invalidate(memory: SharedSlice<'_>) {
    let start = layout::linear(memory.pa());
    clean_lines(start, start + memory.len(), line());
    barrier::complete();
}

/// Instructions written as data are what every core fetches from now on.
pub fn instructions_written() {
    // SAFETY: invalidating instruction caches changes no memory.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// A `SharedSlice` of RAM at `pa`, mapping it first.
///
/// # Errors
/// If EL2 cannot map it.
///
/// # Safety
/// `pa..pa + len` is RAM, and no part of it is the image or is referenced by Rust in any other way.
pub unsafe fn shared_ram(pa: Pa, len: u64) -> Result<SharedSlice<'static>, super::mmu::MapError> {
    super::mmu::map_ram(pa, len)?;
    let base = core::ptr::NonNull::new(layout::linear(pa) as *mut u8);
    let base = base.ok_or(super::mmu::MapError::OutOfRange)?;
    // SAFETY: mapped just now, read-write, for ever; the caller vouches for sole use.
    Ok(unsafe { SharedSlice::new(base, pa, len as usize) })
}
