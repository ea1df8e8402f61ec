//! A place for what lives as long as the image does. Nothing is ever given back.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

use sparkler::arch::layout;
use sparkler::memory::{FramePool, PAGE_SIZE};

/// Bytes for all that is placed: machines, their devices, drivers, seats.
const SIZE: usize = 1536 * 1024;

/// The first byte that is free, and the end.
static FREE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Takes the room from EL2's pool. `None` if the pool has none.
pub(crate) fn open(pool: &mut FramePool<'static>) -> Option<()> {
    let room = pool.alloc_run(SIZE / PAGE_SIZE as usize, PAGE_SIZE).ok()?;
    let start = layout::linear(room.pa());
    END.store(start + room.len(), Ordering::Relaxed);
    FREE.store(start, Ordering::Relaxed);
    Some(())
}

/// Makes a value where it can stay. `None` if there is no room left, and then `make` is not called.
///
/// Inlined, as `make` should be, so that what is large is made in its place: the stack has no room
/// for copies.
#[inline(always)]
pub(crate) fn place<T>(make: impl FnOnce() -> T) -> Option<&'static mut T> {
    Some(room::<T>()?.write(make()))
}

/// Makes `count` values side by side, one after the other. `None` if there is no room left.
#[inline(always)]
pub(crate) fn place_each<T>(count: usize, make: impl Fn() -> T) -> Option<&'static mut [T]> {
    let first = take(size_of::<T>().checked_mul(count)?, align_of::<T>())? as *mut T;
    for index in 0..count {
        let place = first.wrapping_add(index);
        // SAFETY: room for `count` values was taken, by this call alone; see `room`.
        unsafe { place.write(make()) };
    }
    // SAFETY: all of them were just written, and nobody else has them.
    Some(unsafe { core::slice::from_raw_parts_mut(first, count) })
}

/// Takes room for a `T`.
fn room<T>() -> Option<&'static mut MaybeUninit<T>> {
    let start = take(size_of::<T>(), align_of::<T>())?;
    // SAFETY: `take` gave memory of EL2's pool that is mapped for ever and that nobody else was given,
    // aligned for T; as MaybeUninit it needs no value yet.
    Some(unsafe { &mut *(start as *mut MaybeUninit<T>) })
}

/// Takes `size` bytes, aligned to `align`, a power of two; their address.
#[inline(never)]
fn take(size: usize, align: usize) -> Option<usize> {
    let mut free = FREE.load(Ordering::Relaxed);
    loop {
        let start = free.checked_add(align - 1)? & !(align - 1);
        let end = start.checked_add(size)?;
        if start == 0 || end > END.load(Ordering::Relaxed) {
            return None;
        }
        match FREE.compare_exchange_weak(free, end, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Some(start),
            Err(now) => free = now,
        }
    }
}
