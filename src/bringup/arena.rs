//! A place for what lives as long as the image does. Nothing is ever given back.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Bytes for all that is placed: the VM, its devices, their drivers.
const SIZE: usize = 160 * 1024;

#[repr(align(64))]
struct Arena(UnsafeCell<[MaybeUninit<u8>; SIZE]>);

// SAFETY: bytes are handed out at most once, by the atomic `USED`.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([MaybeUninit::uninit(); SIZE]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Moves `value` to where it can stay. `None` if there is no room left.
pub(crate) fn place<T>(value: T) -> Option<&'static mut T> {
    let base = ARENA.0.get().cast::<u8>();
    let taken = |used: usize| {
        let start = used.next_multiple_of(align_of::<T>());
        let end = start.checked_add(size_of::<T>())?;
        (end <= SIZE && align_of::<T>() <= 64).then_some((start, end))
    };
    let used = USED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| taken(used).map(|(_, end)| end))
        .ok()?;
    let (start, _) = taken(used)?;
    // SAFETY: start < SIZE: the pointer stays in the arena.
    let place = unsafe { base.add(start) }.cast::<MaybeUninit<T>>();
    // SAFETY: start..end lies in the arena, is aligned for T since the arena is to 64 bytes, and was
    // taken from `USED` by this call alone; as MaybeUninit it needs no value yet.
    let place = unsafe { &mut *place };
    Some(place.write(value))
}
