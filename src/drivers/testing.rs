//! What driver tests need in place of a board: RAM with physical addresses, and a delay that
//! only counts. Test-only.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;

use embedded_hal::delay::DelayNs;

use crate::memory::{PAGE_SIZE, Pa, SharedSlice};

/// Zeroed RAM at a physical address of its own, so that an address in the wrong space is noticed.
pub(crate) struct FakeRam {
    base: NonNull<u8>,
    layout: Layout,
    next: Cell<usize>,
}

impl FakeRam {
    /// Where the RAM is on the bus; above 4 GiB, so that halves of addresses cannot be lost.
    pub(crate) const PA: u64 = 0x12_8000_0000;

    pub(crate) fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, PAGE_SIZE as usize).unwrap();
        assert!(layout.size() > 0);
        // SAFETY: the size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        Self { base, layout, next: Cell::new(0) }
    }

    fn all(&self) -> SharedSlice<'_> {
        // SAFETY: the allocation lives as long as self and has been initialised; it is reached
        // through SharedSlices only.
        unsafe { SharedSlice::new(self.base, Pa::new(Self::PA), self.layout.size()) }
    }

    /// The next `bytes`, page-aligned.
    pub(crate) fn allocate(&self, bytes: usize) -> SharedSlice<'_> {
        let offset = self.next.get();
        self.next.set((offset + bytes).next_multiple_of(PAGE_SIZE as usize));
        self.all().subslice(offset, bytes).expect("fake RAM is used up")
    }

    /// What a device finds at `pa`.
    pub(crate) fn at(&self, pa: u64, bytes: usize) -> SharedSlice<'_> {
        let offset = pa.checked_sub(Self::PA).expect("DMA below RAM");
        self.all().subslice(offset as usize, bytes).expect("DMA above RAM")
    }
}

impl Drop for FakeRam {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; every SharedSlice borrows self.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Copies `bytes` into shared memory.
pub(crate) fn fill(memory: SharedSlice<'_>, bytes: &[u8]) {
    for (offset, byte) in bytes.iter().enumerate() {
        memory.store_u8(offset, *byte).unwrap();
    }
}

/// Copies shared memory out.
pub(crate) fn dump(memory: SharedSlice<'_>) -> Vec<u8> {
    (0..memory.len()).map(|offset| memory.load_u8(offset).unwrap()).collect()
}

/// A delay that does not wait and counts the nanoseconds it should have waited.
#[derive(Default)]
pub(crate) struct CountedDelay(pub(crate) u64);

impl DelayNs for CountedDelay {
    fn delay_ns(&mut self, ns: u32) {
        self.0 += u64::from(ns);
    }
}
