//! The guest's side of the examples: RAM, and the simplest driver of a split virtqueue that works.
//!
//! All it knows of the device is its registers ([`Registers`]), and all they share is RAM, each by
//! its own addresses.
#![allow(dead_code, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa};
use sparkler::virtio::Features;

/// Where the guest has its RAM.
pub(crate) const RAM: u64 = 0x4000_0000;
/// How much of it: rings below 64 KiB, buffers above.
pub(crate) const RAM_SIZE: usize = 0x4_0000;
/// From here on a test or an example puts its buffers.
pub(crate) const BUFFERS: u64 = RAM + 0x1_0000;
/// Entries of the queue.
pub(crate) const QUEUE_SIZE: u16 = 16;

const DESCRIPTORS: u64 = RAM;
const AVAILABLE: u64 = RAM + 0x1000;
const USED: u64 = RAM + 0x2000;

const QUEUE_NOTIFY: u16 = 0x050;
const INTERRUPT_STATUS: u16 = 0x060;
const INTERRUPT_ACK: u16 = 0x064;
const STATUS: u16 = 0x070;

/// A device's registers, as the guest reaches them: aligned words.
pub(crate) trait Registers {
    /// A load.
    fn read(&mut self, offset: u16) -> u32;
    /// A store. Returns when it is done.
    fn write(&mut self, offset: u16, value: u32);
}

/// What a device sees of the guest's RAM. It is somewhere else for the device, here at 32 GiB: a
/// guest's address never works by luck.
pub(crate) fn memory(ram: &HostRam) -> GuestMemory<'_> {
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x8_0000_0000))).is_ok(), "one region");
    memory
}

/// A driver with one queue.
pub(crate) struct Driver<'m> {
    /// RAM, by the guest's addresses.
    pub(crate) memory: GuestMemory<'m>,
    available: u16,
    seen: u16,
}

impl<'m> Driver<'m> {
    /// A driver that has not looked for its device yet.
    pub(crate) fn new(memory: GuestMemory<'m>) -> Self {
        Self { memory, available: 0, seen: 0 }
    }

    /// Copies `bytes` to guest address `address`.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        let slice = self.memory.slice(Ipa::new(address), bytes.len()).expect("RAM");
        slice.write_bytes(0, bytes).expect("the whole slice");
    }

    /// The `len` bytes at guest address `address`.
    pub(crate) fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = self.memory.slice(Ipa::new(address), len).expect("RAM");
        slice.read_bytes(0, &mut bytes).expect("the whole slice");
        bytes
    }

    fn get_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes([self.get(address, 1)[0], self.get(address + 1, 1)[0]])
    }

    /// From reset to FEATURES_OK (3.1.1). Whether the device agrees to `wanted`.
    pub(crate) fn negotiate(&self, device: &mut dyn Registers, wanted: Features) -> bool {
        device.write(STATUS, 0);
        device.write(STATUS, 1);
        device.write(STATUS, 3);
        for page in 0..2 {
            device.write(0x024, page);
            device.write(0x020, wanted.page(page));
        }
        device.write(STATUS, 11);
        device.read(STATUS) == 11
    }

    /// The features that are offered.
    pub(crate) fn offered(&self, device: &mut dyn Registers) -> Features {
        let [low, high] = [0, 1].map(|page| {
            device.write(0x014, page);
            u64::from(device.read(0x010))
        });
        Features::from_bits_retain(high << 32 | low)
    }

    /// Zeroes and sets up queue 0, without QueueReady (4.2.3.2).
    pub(crate) fn configure_queue(&mut self, device: &mut dyn Registers) {
        self.put(RAM, &[0; 0x3000]);
        (self.available, self.seen) = (0, 0);
        device.write(0x030, 0);
        device.write(0x038, QUEUE_SIZE.into());
        for (low, area) in [(0x080, DESCRIPTORS), (0x090, AVAILABLE), (0x0A0, USED)] {
            device.write(low, area as u32);
            device.write(low + 4, (area >> 32) as u32);
        }
    }

    /// From reset to a device at work.
    pub(crate) fn start(&mut self, device: &mut dyn Registers, wanted: Features) {
        assert_eq!(device.read(0x000), u32::from_le_bytes(*b"virt"), "no device here");
        assert!(self.negotiate(device, wanted | Features::VERSION_1), "features refused");
        self.configure_queue(device);
        device.write(0x044, 1);
        device.write(STATUS, 15);
        assert_eq!(device.read(STATUS), 15, "the device refuses to work");
    }

    /// Makes a chain of `buffers` (address, length, writable) available; it begins at descriptor
    /// `head`. At most a queue full at a time.
    pub(crate) fn offer(&mut self, head: u16, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in buffers.iter().enumerate() {
            let index = (head + at as u16) % QUEUE_SIZE;
            let more = at + 1 < buffers.len();
            let flags = u16::from(more) | u16::from(*writable) << 1;
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(((index + 1) % QUEUE_SIZE).to_le_bytes());
            self.put(DESCRIPTORS + u64::from(index) * 16, &descriptor);
        }
        let slot = u64::from(self.available % QUEUE_SIZE);
        self.put(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Tells the device that there is something in the queue.
    pub(crate) fn ring(&self, device: &mut dyn Registers) {
        device.write(QUEUE_NOTIFY, 0);
    }

    /// What the driver's interrupt handler does first: the causes, acknowledged.
    pub(crate) fn acknowledge(&self, device: &mut dyn Registers) -> u32 {
        let causes = device.read(INTERRUPT_STATUS);
        device.write(INTERRUPT_ACK, causes);
        causes
    }

    /// The next chain that the device has used: its head and the bytes written.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        if self.get_u16(USED + 2) == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % QUEUE_SIZE);
        self.seen = self.seen.wrapping_add(1);
        let element = self.get(USED + 4 + 8 * slot, 8);
        let word =
            |at: usize| element[at..at + 4].iter().rev().fold(0, |w, b| w << 8 | u32::from(*b));
        Some((word(0), word(4)))
    }

    /// `used.flags`.
    pub(crate) fn used_flags(&self) -> u16 {
        self.get_u16(USED)
    }

    /// Writes `used_event`.
    pub(crate) fn set_used_event(&self, index: u16) {
        self.put(AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE), &index.to_le_bytes());
    }
}
