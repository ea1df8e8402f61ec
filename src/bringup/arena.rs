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

/// Makes a value where it can stay. `None` if there is no room left, and then `make` is not called.
///
/// Inlined, as `make` should be, so that what is large is made in its place: the stack has no room
/// for copies.
#[inline(always)]
pub(crate) fn place<T>(make: impl FnOnce() -> T) -> Option<&'static mut T> {
    Some(room::<T>()?.write(make()))
}

/// Takes room for a `T`.
fn room<T>() -> Option<&'static mut MaybeUninit<T>> {
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
    Some(unsafe { &mut *place })
}
