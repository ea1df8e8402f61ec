//! RAM for the host tests of this folder.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use super::{Pa, SharedSlice};

/// `len` bytes of host memory that claim to be at `pa`, filled with a pattern that is no
/// zero byte, so that missing zeroing shows. Leaked: the tests are short.
pub(crate) fn ram(pa: u64, len: usize) -> SharedSlice<'static> {
    let words: &'static mut [u64] = vec![0xa5a5_a5a5_a5a5_a5a5; len.div_ceil(8)].leak();
    let base = NonNull::from(words).cast::<u8>();
    // SAFETY: the words are leaked, aligned, and referenced by nobody else.
    unsafe { SharedSlice::new(base, Pa::new(pa), len) }
}
