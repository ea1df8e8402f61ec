//! Several queues.

use super::*;
use crate::memory::{GuestMemory, Ipa};
use crate::virtio::queue::Areas;

const WITH_MQ: Features = WITH_FLUSH.union(MQ).union(Features::RING_RESET);
const QUEUES: u16 = 4;

/// The driver's side of queue `index`, whose areas, and whose requests, are its own.
fn queue<'m>(memory: &GuestMemory<'m>, index: u16) -> Driver<'m> {
    let base = RAM + 0x3000 * u64::from(index);
    let areas = Areas { descriptor: base, driver: base + 0x1000, device: base + 0x2000 };
    let memory = memory.clone();
    memory.slice(Ipa::new(base), 0x3000).unwrap().fill(0, 0x3000, 0).unwrap();
    Driver { memory, areas, size: 16, available: 0, seen: 0 }
}

/// A device with `queues` queues of 16, and the first `used` of them live.
macro_rules! queues {
    ($disk:ident, $count:expr, $used:expr, $sides:ident, $transport:ident) => {
        let ram = HostRam::new(RAM_SIZE);
        let mut backend = $disk.clone();
        let mut device = Block::new(&mut backend);
        device.set_queues($count);
        let mut $transport = MmioTransport::new(&mut device, guest_memory(&ram));
        assert!($transport.negotiate(WITH_MQ));
        #[allow(unused_mut)]
        let mut $sides: Vec<_> = (0..$used).map(|at| queue(&guest_memory(&ram), at)).collect();
        for (index, side) in $sides.iter().enumerate() {
            $transport.configure_queue(index as u32, 16, &side.areas);
            $transport.set(0x44, 1);
        }
        $transport.set(0x70, 15);
        assert_eq!($transport.get(0x70), 15);
    };
}

/// Offers a read of `sector` in a queue: one buffer for data and status, at chain `head`.
fn offer_read(side: &mut Driver<'_>, head: u16, sector: u64) {
    let at = side.areas.descriptor + 0x400 + 0x20 * u64::from(head);
    header(side, at, IN, sector);
    side.chain(head, &[(at, 16, false), (BUFFERS + 0x8000, 513, true)]);
    side.offer(head);
}

#[test]
fn queues_are_there_as_said_and_no_more_than_can_be() {
    let ram = HostRam::new(RAM_SIZE);
    let mut disk = Disk::new();
    for (wanted, queues) in [(0, 1), (1, 1), (2, 2), (9, 9), (10, 9), (usize::MAX, 9)] {
        let mut device = Block::new(&mut disk);
        device.set_queues(wanted);
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        for index in 0..10 {
            transport.set(0x30, index);
            let size = if index < queues { QUEUE_SIZE.into() } else { 0 };
            assert_eq!(transport.get(0x34), size, "{index} of {queues}");
        }
        // One queue needs no feature, and then there is no such field.
        let mq = transport.get(0x10) & (1 << 12) != 0;
        let field = transport.read(0x122, Width::Half);
        assert_eq!((mq, field), (queues > 1, if queues > 1 { queues.into() } else { 0 }));
    }
}

#[test]
fn every_request_is_answered_in_the_queue_it_came_from() {
    let disk = Disk::new();
    queues!(disk, QUEUES.into(), QUEUES, sides, transport);
    for (index, side) in sides.iter_mut().enumerate() {
        for n in 0..2 {
            offer_read(side, 2 * n, 10 * index as u64 + u64::from(n));
        }
        transport.set(0x50, index as u32);
    }
    let sectors: Vec<_> = disk.get().submitted.iter().map(|it| it.2).collect();
    assert_eq!(sectors, [0, 1, 10, 11, 20, 21, 30, 31]);
    // Two of queue 2, one of queue 0: each alone.
    for (tag, index, head) in [(5, 2, 2), (4, 2, 0), (0, 0, 0)] {
        disk.finish(tag, BlockStatus::Ok);
        transport.poll(NOW);
        for (other, side) in sides.iter_mut().enumerate() {
            let expected = (other == index).then_some((head, 513));
            assert_eq!(side.used(), expected, "queue {other}");
        }
        assert!(transport.take_interrupt());
    }
    // The rest in one poll, mixed: one interrupt.
    for tag in [6, 1, 7, 2, 3] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert!(transport.take_interrupt());
    assert!(!transport.take_interrupt());
    let used: Vec<_> = sides.iter().map(Driver::used_idx).collect();
    assert_eq!(used, [2, 2, 2, 2]);
    assert!(!transport.has_work_in_flight());
}

#[test]
fn a_driver_may_use_fewer_queues_than_there_are_and_not_the_first() {
    let disk = Disk::new();
    queues!(disk, 8, 0, sides, transport);
    assert!(sides.is_empty());
    let ram = HostRam::new(RAM_SIZE);
    let mut side = queue(&guest_memory(&ram), 0);
    let mut backend = disk.clone();
    let mut device = Block::new(&mut backend);
    device.set_queues(8);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    assert!(transport.negotiate(WITH_MQ));
    transport.configure_queue(7, 16, &side.areas);
    transport.set(0x44, 1);
    transport.set(0x70, 15);
    disk.get().room = 1;
    for (n, head) in [0, 2, 4].into_iter().enumerate() {
        offer_read(&mut side, head, n as u64);
    }
    for index in 0..9 {
        transport.set(0x50, index);
    }
    for head in [0, 2, 4] {
        assert!(transport.has_work_in_flight());
        disk.finish(0, BlockStatus::Ok);
        transport.poll(NOW);
        assert_eq!(side.used(), Some((head, 513)));
    }
    assert!(!transport.has_work_in_flight());
}

#[test]
fn queues_take_turns_at_a_disk_that_is_full() {
    let disk = Disk::new();
    disk.get().room = 1;
    queues!(disk, QUEUES.into(), QUEUES, sides, transport);
    for (index, side) in sides.iter_mut().enumerate() {
        for n in 0..4 {
            offer_read(side, 2 * n, index as u64);
        }
        transport.set(0x50, index as u32);
    }
    let mut served = vec![];
    for _ in 0..16 {
        served.push(disk.get().submitted.pop().unwrap().2);
        disk.finish(0, BlockStatus::Ok);
        transport.poll(NOW);
    }
    assert!(!transport.has_work_in_flight());
    // Nobody waits for more than one round of the others.
    for index in 0..QUEUES.into() {
        let at: Vec<_> = (0..16).filter(|at| served[*at] == index).collect();
        assert_eq!(at.len(), 4);
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= 2 * usize::from(QUEUES)));
    }
}

#[test]
fn a_queue_that_is_reset_forgets_its_requests_and_the_others_keep_theirs() {
    let disk = Disk::new();
    queues!(disk, 2, 2, sides, transport);
    for (index, side) in sides.iter_mut().enumerate() {
        offer_read(side, 0, index as u64);
        offer_read(side, 2, index as u64);
        transport.set(0x50, index as u32);
    }
    transport.set(0x30, 1);
    transport.set(0xC0, 1);
    assert_eq!(transport.get(0xC0), 1);
    // An answer of each: that of queue 0 arrives, the reset waits for the other of queue 1.
    for tag in [2, 0] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert_eq!((sides[0].used(), sides[0].used()), (Some((0, 513)), None));
    assert_eq!((sides[1].used_idx(), transport.get(0xC0)), (0, 1));
    disk.finish(3, BlockStatus::Ok);
    transport.poll(NOW);
    transport.poll(NOW);
    assert_eq!((sides[1].used_idx(), transport.get(0xC0)), (0, 0));
    assert!(transport.has_work_in_flight());

    // It comes back, and has the free slots.
    let mut side = queue(&sides[1].memory, 1);
    transport.configure_queue(1, 16, &side.areas);
    transport.set(0x44, 1);
    offer_read(&mut side, 4, 7);
    transport.set(0x50, 1);
    assert_eq!(disk.get().submitted.last().unwrap().2, 7);
    for tag in [0, 1] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert_eq!(side.used(), Some((4, 513)));
    assert_eq!(sides[0].used(), Some((2, 513)));
    assert!(!transport.has_work_in_flight());
}

#[test]
fn a_queue_that_is_reset_forgets_its_writes_that_wait_for_a_flush() {
    let disk = Disk::new();
    queues!(disk, 2, 2, sides, transport);
    assert!(transport.negotiate(WITH_MQ - FLUSH));
    for (index, side) in sides.iter_mut().enumerate() {
        *side = queue(&side.memory, index as u16);
        transport.configure_queue(index as u32, 16, &side.areas);
        transport.set(0x44, 1);
    }
    transport.set(0x70, 15);
    for (index, side) in sides.iter_mut().enumerate() {
        let at = side.areas.descriptor + 0x400;
        header(side, at, OUT, 0);
        side.chain(0, &[(at, 16, false), (BUFFERS + 0x8000, 512, false), (at + 16, 1, true)]);
        side.offer(0);
        transport.set(0x50, index as u32);
    }
    disk.get().refuse = Some(SubmitError::Busy);
    for tag in [0, 1] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    transport.set(0x30, 1);
    transport.set(0xC0, 1);
    assert_eq!(transport.get(0xC0), 0);
    disk.get().refuse = None;
    transport.poll(NOW);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((sides[0].used(), sides[1].used_idx()), (Some((0, 1)), 0));
    assert_eq!(disk.get().submitted.len(), 3);
    assert!(!transport.has_work_in_flight());
}
