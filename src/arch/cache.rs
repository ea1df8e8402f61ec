//! Cache maintenance, and zeroing by cache block.

use core::arch::asm;

use super::{barrier, layout, registers};
use crate::memory::{Pa, SharedSlice};

/// Smallest data cache line in bytes: CTR_EL0.DminLine, the log2 of words.
fn line() -> usize {
    4 << (registers::CTR_EL0::get() >> 16 & 0xf)
}

/// DC ZVA's block in bytes, if it may be used: DCZID_EL0.BS, the log2 of words, unless DCZID_EL0.DZP.
fn zero_block() -> Option<usize> {
    let dczid = registers::DCZID_EL0::get();
    (dczid & 0x10 == 0).then_some(4 << (dczid & 0xf))
}

/// What [`scrub`] zeroes and then cleans in one go, while it is still in the cache. A multiple of
/// [`UNROLL`] of the largest blocks and lines there can be (2 KiB).
const CHUNK: usize = 16 * 1024;
/// Blocks or lines a turn of the loops below.
const UNROLL: usize = 8;

/// Carries out `$operation` on every address from `$start` to `$end`, `$step` apart: UNROLL a turn,
/// since all of a guest's RAM goes through here. There must be a multiple of UNROLL of them, and one
/// at least.
macro_rules! each_of {
    ($operation:literal, $start:expr, $end:expr, $step:expr) => {
        asm!(
            "2:",
            ".rept {unroll}",
            concat!($operation, ", {at}"),
            "add {at}, {at}, {step}",
            ".endr",
            "cmp {at}, {end}",
            "b.lo 2b",
            unroll = const UNROLL,
            at = inout(reg) $start => _,
            end = in(reg) $end,
            step = in(reg) $step,
            options(nostack)
        )
    };
}
/// Zeroes guest RAM that is about to be given away, and takes it out of the data caches: a guest
/// that starts with its caches off must neither see old bytes nor lose its own to a late write-back.
/// The memory is zero at the point of coherency when this returns.
pub fn scrub(memory: SharedSlice<'_>) {
    let start = layout::linear(memory.pa());
    let end = start + memory.len();
    let whole = start.is_multiple_of(CHUNK) && end.is_multiple_of(CHUNK);
    let Some(block) = zero_block().filter(|_| whole) else {
        let _ = memory.fill(0, memory.len(), 0);
        clean_invalidate(memory);
        return;
    };
    let line = line();
    for chunk in (start..end).step_by(CHUNK) {
        // SAFETY: the chunk lies in a SharedSlice of RAM in the linear map, and is a multiple of
        // UNROLL blocks; atomics are the only other access to it.
        unsafe { each_of!("dc zva", chunk, chunk + CHUNK, block) };
        // SAFETY: cleaning and invalidating loses no data; the addresses are mapped.
        unsafe { each_of!("dc civac", chunk, chunk + CHUNK, line) };
    }
    barrier::complete();
}

fn clean_lines(start: usize, end: usize, line: usize) {
    let mut at = start & !(line - 1);
    while at < end {
        // SAFETY: cleaning and invalidating loses no data; the address is mapped.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
}

/// Writes EL2's `start..start + len` back to the point of coherency, for a core whose caches are
/// off, and drops it from the data caches.
///
/// # Safety
/// The addresses are mapped.
pub(super) unsafe fn write_back(start: usize, len: usize) {
    clean_lines(start, start + len, line());
    barrier::complete();
}

/// Writes `memory` back to the point of coherency and drops it from the data caches.
pub fn clean_invalidate(memory: SharedSlice<'_>) {
    let start = layout::linear(memory.pa());
    clean_lines(start, start + memory.len(), line());
    barrier::complete();
}

/// Instructions written as data, and cleaned from the data caches ([`clean_invalidate`]), are what
/// every core of the inner shareable domain fetches from now on.
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
