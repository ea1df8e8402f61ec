//! The allocator `virtio-drivers` takes its indirect tables from: a few tables, all one size.

use crate::racy::Racy;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicU32, Ordering};

/// Bytes in a cell: an indirect table of four descriptors.
const CELL: usize = 64;
/// One for each descriptor of the crate's 16-entry queue, twice.
const CELLS: usize = 32;

struct Cells;

static MEMORY: Racy<[[u8; CELL]; CELLS]> = Racy::new([[0; CELL]; CELLS]);
static TAKEN: AtomicU32 = AtomicU32::new(0);

#[global_allocator]
static ALLOCATOR: Cells = Cells;

// SAFETY: a cell is given out once until it is returned; one core and no handler allocates.
unsafe impl GlobalAlloc for Cells {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.load(Ordering::Relaxed);
        let free = taken.trailing_ones() as usize;
        if layout.size() > CELL || layout.align() > CELL || free >= CELLS {
            return core::ptr::null_mut();
        }
        TAKEN.store(taken | 1 << free, Ordering::Relaxed);
        MEMORY.get().cast::<u8>().wrapping_add(free * CELL)
    }

    unsafe fn dealloc(&self, cell: *mut u8, _: Layout) {
        let index = (cell as usize - MEMORY.get() as usize) / CELL;
        TAKEN.store(TAKEN.load(Ordering::Relaxed) & !(1 << index), Ordering::Relaxed);
    }
}
