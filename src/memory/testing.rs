//! RAM for the host tests of this folder.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use std::cell::RefCell;

use super::{Pa, SharedSlice};

/// Called with a slice, and offset and length in it.
type AfterLoad = Box<dyn FnMut(&SharedSlice<'_>, usize, usize)>;

thread_local! {
    static AFTER_LOAD: RefCell<Option<AfterLoad>> = const { RefCell::new(None) };
}

/// Does `work`, and calls `after_load` after each load from shared memory by this thread: the
/// agent on the other side, at the worst of moments. Its own loads are not counted.
pub(crate) fn with_other_side<T>(
    after_load: impl FnMut(&SharedSlice<'_>, usize, usize) + 'static,
    work: impl FnOnce() -> T,
) -> T {
    AFTER_LOAD.set(Some(Box::new(after_load)));
    let result = work();
    AFTER_LOAD.set(None);
    result
}

/// The `len` bytes at `offset` have just been loaded.
pub(super) fn loaded(slice: &SharedSlice<'_>, offset: usize, len: usize) {
    AFTER_LOAD.with(|after_load| {
        // Taken already: a load by the other side itself.
        if let Ok(mut after_load) = after_load.try_borrow_mut()
            && let Some(after_load) = after_load.as_mut()
        {
            after_load(slice, offset, len);
        }
    });
}

/// `len` bytes of host memory that claim to be at `pa`, filled with a pattern that is no
/// zero byte, so that missing zeroing shows. Leaked: the tests are short.
pub(crate) fn ram(pa: u64, len: usize) -> SharedSlice<'static> {
    shared(pa, len, vec![0xa5a5_a5a5_a5a5_a5a5; len.div_ceil(8)])
}

/// The same, but zero, so that the host need not have the memory that is not touched.
pub(crate) fn vast_ram(pa: u64, len: usize) -> SharedSlice<'static> {
    shared(pa, len, vec![0; len.div_ceil(8)])
}

fn shared(pa: u64, len: usize, words: Vec<u64>) -> SharedSlice<'static> {
    let words: &'static mut [u64] = words.leak();
    let base = NonNull::from(words).cast::<u8>();
    // SAFETY: the words are leaked, aligned, and referenced by nobody else.
    unsafe { SharedSlice::new(base, Pa::new(pa), len) }
}
