//! A virtio-MMIO block device and its queue with nothing in between: what a well-behaved driver
//! would never write can be written, and every field is where the specification has it
//! (virtio 1.2: 2.7 split virtqueues, 4.2.2 registers, 5.2 block device).

use crate::mmio::{read32, write32};
use crate::racy::Racy;
use crate::report::{Failed, Verdict, expect};
use crate::timer;
use core::sync::atomic::{Ordering, fence};

const DEVICE_FEATURES: usize = 0x10;
const DEVICE_FEATURES_SEL: usize = 0x14;
const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SEL: usize = 0x24;
const QUEUE_SEL: usize = 0x30;
const QUEUE_NUM: usize = 0x38;
const QUEUE_READY: usize = 0x44;
/// QueueNotify.
pub(crate) const QUEUE_NOTIFY: usize = 0x50;
/// InterruptStatus.
pub(crate) const INTERRUPT_STATUS: usize = 0x60;
/// Status.
pub(crate) const STATUS: usize = 0x70;
const QUEUE_DESC: usize = 0x80;
const QUEUE_DRIVER: usize = 0x90;
const QUEUE_DEVICE: usize = 0xa0;
/// The first byte of the configuration space: the capacity, for a block device.
pub(crate) const CONFIG: usize = 0x100;

/// Status: ACKNOWLEDGE and DRIVER.
const DRIVER: u32 = 3;
/// Status: FEATURES_OK.
pub(crate) const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
/// Status: DEVICE_NEEDS_RESET.
pub(crate) const NEEDS_RESET: u32 = 64;

/// VIRTIO_F_VERSION_1.
pub(crate) const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_INDIRECT_DESC.
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_BLK_F_FLUSH.
pub(crate) const BLK_FLUSH: u64 = 1 << 9;

/// VIRTQ_DESC_F_NEXT.
pub(crate) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes.
pub(crate) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(crate) const INDIRECT: u16 = 4;

/// Entries of our queue.
pub(crate) const SIZE: u16 = 16;
/// Milliseconds in which a device answers, if it ever does.
const PATIENCE: u64 = 2000;

/// virtq_desc.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next, if [`NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// `length` bytes at `place`.
    pub(crate) fn of<T: ?Sized>(place: *const T, length: u32, flags: u16, next: u16) -> Self {
        Self { address: place.cast::<u8>() as u64, length, flags, next }
    }
}

/// virtio_blk_req up to its data.
#[repr(C)]
pub(crate) struct Header {
    /// VIRTIO_BLK_T_*.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// First sector.
    pub sector: u64,
}

/// VIRTIO_BLK_T_IN.
pub(crate) const IN: u32 = 0;
/// VIRTIO_BLK_T_OUT.
pub(crate) const OUT: u32 = 1;
/// VIRTIO_BLK_T_FLUSH.
pub(crate) const FLUSH: u32 = 4;

/// A status byte that no device writes.
pub(crate) const UNANSWERED: u8 = 0xee;

/// Everything the device may touch, in one place.
#[repr(C, align(4096))]
pub(crate) struct Memory {
    /// Descriptor table.
    pub table: [Descriptor; SIZE as usize],
    avail_flags: u16,
    avail_index: u16,
    avail_ring: [u16; SIZE as usize],
    used_event: u16,
    _align: [u16; 5],
    used_flags: u16,
    used_index: u16,
    used_ring: [[u32; 2]; SIZE as usize],
    avail_event: u16,
    /// Indirect table.
    pub indirect: [Descriptor; 4],
    /// Request header.
    pub header: Header,
    /// Request status.
    pub status: u8,
    /// Request data.
    pub data: [u8; 8192],
}

const NO_DESCRIPTOR: Descriptor = Descriptor { address: 0, length: 0, flags: 0, next: 0 };

static MEMORY: Racy<Memory> = Racy::new(Memory {
    table: [NO_DESCRIPTOR; SIZE as usize],
    avail_flags: 0,
    avail_index: 0,
    avail_ring: [0; SIZE as usize],
    used_event: 0,
    _align: [0; 5],
    used_flags: 0,
    used_index: 0,
    used_ring: [[0; 2]; SIZE as usize],
    avail_event: 0,
    indirect: [NO_DESCRIPTOR; 4],
    header: Header { kind: 0, reserved: 0, sector: 0 },
    status: 0,
    data: [0; 8192],
});

/// A device and the one queue we give it.
pub(crate) struct Ring {
    /// Its registers.
    pub base: usize,
    avail: u16,
    used: u16,
}

impl Ring {
    /// A device not yet initialised.
    pub(crate) fn new(base: usize) -> Self {
        Self { base, avail: 0, used: 0 }
    }

    /// The memory shared with the device.
    pub(crate) fn memory(&self) -> *mut Memory {
        MEMORY.get()
    }

    /// DeviceFeatures, both words.
    pub(crate) fn offered(&self) -> u64 {
        write32(self.base + DEVICE_FEATURES_SEL, 1);
        let high = read32(self.base + DEVICE_FEATURES);
        write32(self.base + DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(read32(self.base + DEVICE_FEATURES))
    }

    /// Reset and initialisation up to FEATURES_OK; the Status read back.
    pub(crate) fn negotiate(&mut self, features: u64) -> Result<u32, Failed> {
        write32(self.base + STATUS, 0);
        let reset = timer::wait(PATIENCE, || read32(self.base + STATUS) == 0);
        expect(reset, "does not reset, Status", read32(self.base + STATUS))?;
        write32(self.base + STATUS, DRIVER);
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            write32(self.base + DRIVER_FEATURES_SEL, select);
            write32(self.base + DRIVER_FEATURES, word);
        }
        write32(self.base + STATUS, DRIVER | FEATURES_OK);
        Ok(read32(self.base + STATUS))
    }

    /// Reset and initialisation with `features`, the queue of [`SIZE`] entries in our memory.
    pub(crate) fn start(&mut self, features: u64) -> Verdict {
        let status = self.negotiate(features)?;
        expect(status == DRIVER | FEATURES_OK, "FEATURES_OK refused, Status", status)?;
        let memory = self.memory();
        // SAFETY: the device was reset: it does not look.
        unsafe {
            (*memory).avail_index = 0;
            (*memory).used_index = 0;
        }
        (self.avail, self.used) = (0, 0);
        // SAFETY: addresses only.
        let (table, avail, used) = unsafe {
            (
                &raw const (*memory).table,
                &raw const (*memory).avail_flags,
                &raw const (*memory).used_flags,
            )
        };
        let ready = self.place_queue(SIZE, table as u64, avail as u64, used as u64);
        expect(ready == 1, "QueueReady", ready)?;
        write32(self.base + STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
        let status = read32(self.base + STATUS);
        expect(status == DRIVER | FEATURES_OK | DRIVER_OK, "Status", status)
    }

    /// Queue 0 with `size` entries at these addresses, made ready; QueueReady read back.
    pub(crate) fn place_queue(&mut self, size: u16, table: u64, avail: u64, used: u64) -> u32 {
        write32(self.base + QUEUE_SEL, 0);
        write32(self.base + QUEUE_NUM, size.into());
        for (register, address) in
            [(QUEUE_DESC, table), (QUEUE_DRIVER, avail), (QUEUE_DEVICE, used)]
        {
            write32(self.base + register, address as u32);
            write32(self.base + register + 4, (address >> 32) as u32);
        }
        write32(self.base + QUEUE_READY, 1);
        read32(self.base + QUEUE_READY)
    }

    /// Sets DRIVER_OK after a [`Ring::place_queue`] of the caller's own.
    pub(crate) fn driver_ok(&self) {
        write32(self.base + STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Writes descriptor `index`.
    pub(crate) fn put(&mut self, index: usize, descriptor: Descriptor) {
        // SAFETY: our memory; descriptors not made available are not the device's.
        unsafe { (&raw mut (*self.memory()).table[index]).write_volatile(descriptor) };
    }

    /// The usual chain: header, `length` bytes of data if any, status. Its head is 0.
    pub(crate) fn put_request(&mut self, kind: u32, sector: u64, length: u32) {
        let memory = self.memory();
        self.fill_header(kind, sector);
        let direction = if kind == OUT { 0 } else { WRITE };
        // SAFETY: addresses only.
        let (header, data, status) = unsafe {
            (&raw const (*memory).header, &raw const (*memory).data, &raw const (*memory).status)
        };
        let after_header = if length == 0 { 2 } else { 1 };
        self.put(0, Descriptor::of(header, 16, NEXT, after_header));
        self.put(1, Descriptor::of(data, length, direction | NEXT, 2));
        self.put(2, Descriptor::of(status, 1, WRITE, 0));
    }

    /// Header and status of the next request.
    pub(crate) fn fill_header(&mut self, kind: u32, sector: u64) {
        let memory = self.memory();
        // SAFETY: our memory, and no request in flight has it.
        unsafe { (&raw mut (*memory).header).write_volatile(Header { kind, reserved: 0, sector }) };
        // SAFETY: as above.
        unsafe { (&raw mut (*memory).status).write_volatile(UNANSWERED) };
    }

    /// Makes the chain at `head` available, and `extra` entries more than were written.
    pub(crate) fn publish(&mut self, head: u16, extra: u16) {
        let memory = self.memory();
        let slot = (self.avail % SIZE) as usize;
        self.avail = self.avail.wrapping_add(1).wrapping_add(extra);
        // SAFETY: our side of the ring.
        unsafe { (&raw mut (*memory).avail_ring[slot]).write_volatile(head) };
        fence(Ordering::SeqCst);
        // SAFETY: our side of the ring.
        unsafe { (&raw mut (*memory).avail_index).write_volatile(self.avail) };
        fence(Ordering::SeqCst);
    }

    /// Writes QueueNotify.
    #[inline]
    pub(crate) fn notify(&self) {
        write32(self.base + QUEUE_NOTIFY, 0);
    }

    /// The next used element, if there is one: head and length written.
    #[inline]
    pub(crate) fn next_used(&mut self) -> Option<(u32, u32)> {
        let memory = self.memory();
        // SAFETY: the device's side of the ring, read as such.
        let index = unsafe { (&raw const (*memory).used_index).read_volatile() };
        if index == self.used {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = (self.used % SIZE) as usize;
        self.used = self.used.wrapping_add(1);
        // SAFETY: as above.
        let [head, length] = unsafe { (&raw const (*memory).used_ring[slot]).read_volatile() };
        Some((head, length))
    }

    /// Notifies and waits; the used element of the chain at head 0.
    pub(crate) fn run(&mut self) -> Result<u32, Failed> {
        self.publish(0, 0);
        self.notify();
        let mut used = None;
        timer::wait(PATIENCE, || {
            used = self.next_used();
            used.is_some()
        });
        match used {
            Some((0, length)) => Ok(length),
            Some((head, _)) => Err(Failed::seeing("used ring names head", head.into())),
            None => Err(Failed::seeing("no answer, Status", read32(self.base + STATUS).into())),
        }
    }

    /// The status byte of the last request.
    pub(crate) fn answer(&self) -> u8 {
        // SAFETY: the device wrote it before the used index moved.
        unsafe { (&raw const (*self.memory()).status).read_volatile() }
    }

    /// Whether DEVICE_NEEDS_RESET comes up.
    pub(crate) fn needs_reset(&self) -> Verdict {
        timer::wait(PATIENCE, || read32(self.base + STATUS) & NEEDS_RESET != 0);
        let status = read32(self.base + STATUS);
        expect(status & NEEDS_RESET != 0, "no DEVICE_NEEDS_RESET, Status", status)
    }
}
