//! Memory on a host: what a guest's RAM is in tests, and in a program that uses this crate's
//! devices outside EL2.
//!
//! This is one of the listed seams for `unsafe`; it is not part of the EL2 image.
#![allow(unsafe_code)]

extern crate alloc;

use core::ptr::NonNull;

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use super::{PAGE_SIZE, Pa, SharedSlice};

/// Page-aligned, zeroed memory on the host's heap, with addresses of the user's choice.
pub struct HostRam {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned, and only handed out as `SharedSlice`s, which any thread may use.
unsafe impl Send for HostRam {}
// SAFETY: as for Send.
unsafe impl Sync for HostRam {}

impl HostRam {
    /// Allocates `len` bytes, rounded up to whole pages.
    ///
    /// # Panics
    /// If `len` is zero or more than half the address space. Aborts if there is no memory.
    pub fn new(len: usize) -> Self {
        let page = PAGE_SIZE as usize;
        assert!(len > 0 && len <= isize::MAX as usize - page, "a length no allocation can have");
        // SAFETY: the alignment is a power of two, and the assertion bounds the rounded size.
        let layout = unsafe { Layout::from_size_align_unchecked(len.next_multiple_of(page), page) };
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout }
    }

    /// Size in bytes: a multiple of the page size.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: there is at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// All of it, as a device sees it that finds its first byte at `pa`.
    pub fn slice(&self, pa: Pa) -> SharedSlice<'_> {
        // SAFETY: the allocation lives as long as `self`, is readable and writable, and no
        // reference to its bytes is ever made.
        unsafe { SharedSlice::new(self.base, pa, self.layout.size()) }
    }

    /// Where the first byte is, for a test that plays the guest with raw accesses.
    pub fn pointer(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for HostRam {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
