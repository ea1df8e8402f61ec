//! What driver tests need in place of a board: RAM with physical addresses, and a delay that
//! only counts. Test-only.

use std::sync::atomic::{AtomicUsize, Ordering};

use embedded_hal::delay::DelayNs;

use crate::memory::{HostRam, PAGE_SIZE, Pa, SharedSlice};

/// Zeroed RAM at a physical address of its own, so that an address in the wrong space is noticed.
pub(crate) struct FakeRam {
    ram: HostRam,
    next: AtomicUsize,
}

impl FakeRam {
    /// Where the RAM is on the bus; above 4 GiB, so that halves of addresses cannot be lost.
    pub(crate) const PA: u64 = 0x12_8000_0000;

    pub(crate) fn new(bytes: usize) -> Self {
        Self { ram: HostRam::new(bytes), next: AtomicUsize::new(0) }
    }

    /// All of it.
    pub(crate) fn all(&self) -> SharedSlice<'_> {
        self.ram.slice(Pa::new(Self::PA))
    }

    /// All of it, as somebody sees it who believes it to be at `address`.
    pub(crate) fn view_at(&self, address: u64) -> SharedSlice<'_> {
        self.ram.slice(Pa::new(address))
    }

    /// The next `bytes`, page-aligned.
    pub(crate) fn allocate(&self, bytes: usize) -> SharedSlice<'_> {
        let pages = bytes.next_multiple_of(PAGE_SIZE as usize);
        let offset = self.next.fetch_add(pages, Ordering::Relaxed);
        self.all().subslice(offset, bytes).expect("fake RAM is used up")
    }

    /// What a device finds at `pa`.
    pub(crate) fn at(&self, pa: u64, bytes: usize) -> SharedSlice<'_> {
        let offset = pa.checked_sub(Self::PA).expect("DMA below RAM");
        self.all().subslice(offset as usize, bytes).expect("DMA above RAM")
    }
}

/// Copies `bytes` into shared memory.
pub(crate) fn fill(memory: SharedSlice<'_>, bytes: &[u8]) {
    memory.write_bytes(0, bytes).unwrap();
}

/// Copies shared memory out.
pub(crate) fn dump(memory: SharedSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read_bytes(0, &mut bytes).unwrap();
    bytes
}

/// A delay that does not wait and counts the nanoseconds it should have waited.
#[derive(Default)]
pub(crate) struct CountedDelay(pub(crate) u64);

impl DelayNs for CountedDelay {
    fn delay_ns(&mut self, ns: u32) {
        self.0 += u64::from(ns);
    }
}
