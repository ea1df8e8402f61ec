//! Batches with EVENT_IDX: what is offered together is one kick, and what ends together one interrupt.

use super::*;
use crate::memory::GuestMemory;
use crate::virtio::testing::packed::{DESC, PackedDriver};
use crate::virtio::testing::put;

const BATCH: u16 = 32;
const SIZE: u16 = 128;
/// The ring wraps in the midst of a batch, and in the midst of a chain.
const BATCHES: u16 = 20;
const WITH_EVENTS: Features = WITH_FLUSH.union(Features::EVENT_IDX);

/// Writes the header and the status byte of request `n`; its buffers.
fn read(memory: &GuestMemory<'_>, n: u16) -> [(u64, u32, bool); 3] {
    let at = BUFFERS + u64::from(n) * 0x400;
    put(memory, at, &[0; 8]);
    put(memory, at + 8, &u64::from(n).to_le_bytes());
    put(memory, at + 0x20, &[0xFF]);
    [(at, 16, false), (at + 0x200, 512, true), (at + 0x20, 1, true)]
}

/// The disk has heard of all requests at once, ends them all, and is polled: one interrupt, which
/// the driver acknowledges, and no other.
fn finish(disk: &Disk, transport: &mut MmioTransport<'_, '_>, kicks: usize) {
    assert_eq!(disk.get().kicks, kicks);
    let submitted = core::mem::take(&mut disk.get().submitted);
    assert_eq!(submitted.len(), usize::from(BATCH));
    assert!(!transport.take_interrupt());
    for (tag, ..) in submitted {
        disk.finish(tag.0, BlockStatus::Ok);
    }
    let mut interrupts = 0;
    for _ in 0..3 {
        transport.poll(NOW);
        interrupts += u32::from(transport.take_interrupt());
    }
    assert_eq!((interrupts, transport.get(0x60)), (1, 1));
    transport.set(0x64, 1);
}

#[test]
fn thirty_two_requests_of_a_split_ring_are_one_kick_and_one_interrupt() {
    let disk = Disk::new();
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), SIZE);
    let mut backend = disk.clone();
    let mut device = Block::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.bring_up(WITH_EVENTS, &driver);
    for batch in 0..BATCHES {
        // The driver is to be interrupted by the next, and the device to be told of the next.
        driver.set_used_event(driver.seen);
        assert_eq!(driver.available_event(), driver.available);
        for n in 0..BATCH {
            driver.chain(n * 3, &read(&driver.memory, n));
            driver.offer(n * 3);
        }
        transport.set(0x50, 0);
        finish(&disk, &mut transport, usize::from(batch) + 1);
        let mut heads: Vec<_> = core::iter::from_fn(|| driver.used()).collect();
        heads.sort_unstable();
        assert!(heads.into_iter().eq((0..BATCH).map(|n| (u32::from(n) * 3, 513))));
    }
}

#[test]
fn thirty_two_requests_of_a_packed_ring_are_one_kick_and_one_interrupt() {
    let disk = Disk::new();
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), SIZE);
    let mut backend = disk.clone();
    let mut device = Block::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    assert!(transport.negotiate(WITH_EVENTS | Features::RING_PACKED));
    transport.configure_queue(0, SIZE.into(), &driver.areas);
    transport.set(0x44, 1);
    transport.set(0x70, 15);
    for batch in 0..BATCHES {
        driver.set_event(DESC, driver.seen);
        if batch != 0 {
            assert_eq!(driver.device_event(), (DESC, driver.next));
        }
        for n in 0..BATCH {
            let buffers = read(&driver.memory, n);
            driver.offer(n, &buffers);
        }
        transport.set(0x50, 0);
        finish(&disk, &mut transport, usize::from(batch) + 1);
        let mut used: Vec<_> = core::iter::from_fn(|| driver.used()).collect();
        used.sort_unstable();
        assert!(used.into_iter().eq((0..BATCH).map(|n| (n, 513, true))));
    }
}
