//! RAM for the host tests of this folder.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use super::{Pa, SharedSlice};

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
