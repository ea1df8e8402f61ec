//! The guest's side, for unit tests: RAM, naive drivers of both rings, and register sequences.
//!
//! It is as simple as can be, and trusts nothing it has in common with the device side.

pub(crate) mod packed;

use crate::backend::clock::Ticks;
use crate::memory::{GuestMemory, HostRam, Ipa, Pa};
use crate::virtio::queue::Areas;
use crate::virtio::{Features, MmioTransport, Width, WriteOutcome};

/// Guest address of the first byte of RAM.
pub(crate) const RAM: u64 = 0x4000_0000;
/// Size of RAM: room for rings of 256 entries, and for buffers.
pub(crate) const RAM_SIZE: usize = 0x1_0000;
/// Guest address from which tests put their buffers.
pub(crate) const BUFFERS: u64 = RAM + 0x4000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// The guest's view of RAM that is somewhere else entirely for the host.
pub(crate) fn guest_memory(ram: &HostRam) -> GuestMemory<'_> {
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x9_8000_0000))).is_ok());
    memory
}

/// Writes guest memory.
pub(crate) fn put(memory: &GuestMemory<'_>, address: u64, bytes: &[u8]) {
    let slice = memory.slice(Ipa::new(address), bytes.len()).unwrap();
    slice.write_bytes(0, bytes).unwrap();
}

/// Reads guest memory.
pub(crate) fn get<const N: usize>(memory: &GuestMemory<'_>, address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    let slice = memory.slice(Ipa::new(address), N).unwrap();
    slice.read_bytes(0, &mut bytes).unwrap();
    bytes
}

/// A split-ring driver, addressing everything by guest address.
pub(crate) struct Driver<'m> {
    pub(crate) memory: GuestMemory<'m>,
    pub(crate) areas: Areas,
    pub(crate) size: u16,
    pub(crate) available: u16,
    pub(crate) seen: u16,
}

impl<'m> Driver<'m> {
    pub(crate) fn new(memory: GuestMemory<'m>, size: u16) -> Self {
        let areas = Areas { descriptor: RAM, driver: RAM + 0x1000, device: RAM + 0x2000 };
        let driver = Self { memory, areas, size, available: 0, seen: 0 };
        driver.memory.slice(Ipa::new(RAM), 0x3000).unwrap().fill(0, 0x3000, 0).unwrap();
        driver
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        put(&self.memory, address, bytes);
    }

    pub(crate) fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        get(&self.memory, address)
    }

    fn get_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address))
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &bytes);
    }

    /// Writes descriptor `index` of the queue.
    pub(crate) fn descriptor(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.descriptor_at(self.areas.descriptor, index, descriptor);
    }

    /// Writes a chain of `buffers` (address, length, writable) at descriptors `first`, `first + 1`
    /// and so on, modulo the size.
    pub(crate) fn chain(&self, first: u16, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in buffers.iter().enumerate() {
            let index = (first + at as u16) % self.size;
            let mut flags = if *writable { WRITE } else { 0 };
            if at + 1 < buffers.len() {
                flags |= NEXT;
            }
            self.descriptor(index, (*address, *len, flags, (index + 1) % self.size));
        }
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.put(self.areas.driver + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    /// Writes `avail.idx`.
    pub(crate) fn set_available(&mut self, idx: u16) {
        self.available = idx;
        self.put(self.areas.driver + 2, &idx.to_le_bytes());
    }

    /// Writes `avail.flags`.
    pub(crate) fn set_flags(&self, flags: u16) {
        self.put(self.areas.driver, &flags.to_le_bytes());
    }

    /// Writes `used_event`.
    pub(crate) fn set_used_event(&self, idx: u16) {
        self.put(self.areas.driver + 4 + 2 * u64::from(self.size), &idx.to_le_bytes());
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.get_u16(self.areas.device + 2)
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.get_u16(self.areas.device)
    }

    /// `avail_event`.
    pub(crate) fn available_event(&self) -> u16 {
        self.get_u16(self.areas.device + 4 + 8 * u64::from(self.size))
    }

    /// The next used element: head and length.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        if self.used_idx() == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.size);
        let bytes: [u8; 8] = self.get(self.areas.device + 4 + 8 * slot);
        self.seen = self.seen.wrapping_add(1);
        let word = u64::from_le_bytes(bytes);
        Some((word as u32, (word >> 32) as u32))
    }
}

pub(crate) const NOW: Ticks = Ticks(0);

/// Register accesses as a driver makes them.
pub(crate) trait Registers {
    fn get(&self, offset: u16) -> u32;
    fn try_set(&mut self, offset: u16, value: u32) -> WriteOutcome;

    fn set(&mut self, offset: u16, value: u32) {
        assert_eq!(self.try_set(offset, value), WriteOutcome::Done);
    }

    /// From reset to FEATURES_OK; whether that was accepted.
    fn negotiate(&mut self, accepted: Features) -> bool {
        self.set(0x70, 0);
        self.set(0x70, 1);
        self.set(0x70, 3);
        for page in 0..2 {
            self.set(0x24, page);
            self.set(0x20, accepted.page(page));
        }
        self.set(0x70, 11);
        self.get(0x70) == 11
    }

    /// Writes the registers of queue `index` except QueueReady.
    fn configure_queue(&mut self, index: u32, size: u32, areas: &Areas) {
        self.set(0x30, index);
        self.set(0x38, size);
        for (low, address) in [(0x80, areas.descriptor), (0x90, areas.driver), (0xA0, areas.device)]
        {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
    }

    /// From reset to DRIVER_OK with one queue.
    fn bring_up(&mut self, accepted: Features, driver: &Driver<'_>) {
        assert!(self.negotiate(accepted));
        self.configure_queue(0, driver.size.into(), &driver.areas);
        self.set(0x44, 1);
        self.set(0x70, 15);
    }
}

impl Registers for MmioTransport<'_, '_> {
    fn get(&self, offset: u16) -> u32 {
        self.read(offset, Width::Word) as u32
    }

    fn try_set(&mut self, offset: u16, value: u32) -> WriteOutcome {
        self.write(offset, Width::Word, value.into(), NOW)
    }
}
