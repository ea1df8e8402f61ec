//! Memory for `virtio-drivers`: pages out of an arena; addresses are physical already.

use crate::racy::Racy;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Queues are the only users: two or three pages each.
const PAGES: usize = 8;

static ARENA: Racy<[[u8; PAGE_SIZE]; PAGES]> = Racy::new([[0; PAGE_SIZE]; PAGES]);
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The crate's view of this machine: no IOMMU, coherent, virtual = physical.
pub(crate) struct Flat;

// SAFETY: pages come zeroed from a static arena and are not given out again while any is in use.
unsafe impl Hal for Flat {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = NEXT.load(Ordering::Relaxed);
        if first + pages > PAGES {
            return (0, NonNull::dangling());
        }
        NEXT.store(first + pages, Ordering::Relaxed);
        LIVE.store(LIVE.load(Ordering::Relaxed) + pages, Ordering::Relaxed);
        let start = ARENA.get().cast::<u8>().wrapping_add(first * PAGE_SIZE);
        // SAFETY: inside the arena, and nobody else's.
        unsafe { start.write_bytes(0, pages * PAGE_SIZE) };
        match NonNull::new(start) {
            Some(page) => (start as PhysAddr, page),
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        let live = LIVE.load(Ordering::Relaxed) - pages;
        LIVE.store(live, Ordering::Relaxed);
        if live == 0 {
            NEXT.store(0, Ordering::Relaxed);
        }
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
