//! RAM that the tests take for themselves.
//!
//! The runner's board has 512 MiB; QEMU puts the image and its device tree into the lower half.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering};

use sparkler::arch::{cache, layout, mmu};
use sparkler::memory::{FramePool, Pa, SharedSlice};

/// First byte of RAM that neither the image nor the device tree is in.
const FREE: u64 = 0x5000_0000;
/// The byte after the last.
const END: u64 = 0x6000_0000;

static NEXT: AtomicU64 = AtomicU64::new(FREE);

fn take(len: u64, align: u64) -> Pa {
    // All at once, so that EL2 needs no table for pages.
    mmu::map_ram(Pa::new(FREE), END - FREE).expect("EL2 maps RAM");
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    assert!(start + len <= END, "the board's RAM is used up");
    NEXT.store(start + len, Ordering::Relaxed);
    Pa::new(start)
}

/// `len` bytes at a multiple of `align`, which are never given back.
pub fn ram(len: u64, align: u64) -> SharedSlice<'static> {
    // SAFETY: RAM of the runner's board that nobody has, and nobody else gets.
    unsafe { cache::shared_ram(take(len, align), len) }.expect("EL2 maps RAM")
}

/// A pool of `len` bytes.
pub fn pool(len: u64) -> FramePool<'static> {
    let mut pool = FramePool::new();
    pool.add(ram(len, 0x1_0000)).expect("a pool");
    pool
}

/// Moves `value` to where it stays.
pub fn place<T>(value: T) -> &'static mut T {
    let pa = take(size_of::<T>() as u64, (align_of::<T>() as u64).max(4096));
    let place = layout::linear(pa) as *mut MaybeUninit<T>;
    // SAFETY: mapped, aligned, large enough, and taken by this call alone.
    unsafe { &mut *place }.write(value)
}
