//! The block device against a driver that knows nothing of us: the `virtio-drivers` crate.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

mod host_support;

use host_support::{GuestHal, Machine};
use sparkler::backend::ram::{CompletionOrder, RamDisk};
use sparkler::memory::{HostRam, Pa};
use sparkler::virtio::Features;
use sparkler::virtio::devices::block::Block;
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

const DISK_SECTORS: usize = 256;
const EVENT_IDX: Features = Features::EVENT_IDX;
const INDIRECT: Features = Features::INDIRECT_DESC;

type Driver = VirtIOBlk<GuestHal, Machine>;

/// A machine with a disk.
fn with_disk(disk: RamDisk<'static>, common: Features) -> Machine {
    Machine::new(Block::new(Box::leak(Box::new(disk))), common)
}

fn ram_disk() -> RamDisk<'static> {
    let memory = Box::leak(Box::new(HostRam::new(DISK_SECTORS * SECTOR_SIZE)));
    RamDisk::new(memory.slice(Pa::new(0)), *b"sparkler ram disk\0\0\0")
}

/// A sector that tells which write it comes from.
fn pattern(stamp: u32) -> [u8; SECTOR_SIZE] {
    core::array::from_fn(|at| (stamp.wrapping_mul(0x9E37_79B1) >> (at % 4 * 8)) as u8 ^ at as u8)
}

/// A small generator, so that runs are the same.
fn random(state: &mut u32) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state as usize
}

/// Random blocking reads and writes against a copy of the disk in plain memory.
fn traffic(driver: &mut Driver, requests: usize) {
    let mut model = vec![0_u8; DISK_SECTORS * SECTOR_SIZE];
    driver.read_blocks(0, &mut model).unwrap();
    let mut state = 0x1234_5678;
    let mut buffer = vec![0; 4 * SECTOR_SIZE];
    for request in 0..requests {
        let count = random(&mut state) % 4 + 1;
        let sector = random(&mut state) % (DISK_SECTORS - count + 1);
        let range = sector * SECTOR_SIZE..(sector + count) * SECTOR_SIZE;
        let buffer = &mut buffer[..count * SECTOR_SIZE];
        if random(&mut state).is_multiple_of(2) {
            for (at, part) in buffer.chunks_mut(SECTOR_SIZE).enumerate() {
                part.copy_from_slice(&pattern((request * 4 + at) as u32));
            }
            driver.write_blocks(sector, buffer).unwrap();
            model[range].copy_from_slice(buffer);
        } else {
            driver.read_blocks(sector, buffer).unwrap();
            assert!(*buffer == model[range], "request {request} read something else");
        }
    }
    let mut all = vec![0; model.len()];
    driver.read_blocks(0, &mut all).unwrap();
    assert!(all == model, "the disk is not what was written");
}

const COMBINATIONS: [Features; 4] =
    [Features::empty(), EVENT_IDX, INDIRECT, EVENT_IDX.union(INDIRECT)];

#[test]
fn the_driver_finds_the_disk_as_it_is() {
    let mut driver = Driver::new(with_disk(ram_disk(), Features::COMMON)).unwrap();
    assert_eq!(driver.capacity(), DISK_SECTORS as u64);
    assert!(!driver.readonly());
    let mut id = [0; 20];
    assert_eq!(driver.device_id(&mut id), Ok(17));
    assert_eq!(&id, b"sparkler ram disk\0\0\0");
    assert_eq!(driver.flush(), Ok(()));
}

#[test]
fn what_is_written_is_read_with_every_combination_of_ring_features() {
    for features in COMBINATIONS {
        let mut driver = Driver::new(with_disk(ram_disk(), features)).unwrap();
        traffic(&mut driver, 500);
    }
}

#[test]
fn the_ring_works_past_the_wrap_of_its_index() {
    for features in COMBINATIONS {
        let machine = with_disk(ram_disk(), features);
        let mut driver = Driver::new(machine.clone()).unwrap();
        traffic(&mut driver, 70_000);
        assert!(machine.0.kicks.get() > 0x1_0000);
        assert_eq!(machine.get(0x70), 15);
    }
}

#[test]
fn a_queue_of_four_works_past_the_wrap_of_its_index() {
    for features in COMBINATIONS {
        let mut machine = with_disk(ram_disk(), features);
        let accepted = Features::VERSION_1 | features;
        machine.set_status(DeviceStatus::empty());
        machine.set_status(DeviceStatus::from_bits_retain(3));
        machine.write_driver_features(accepted.bits());
        machine.set_status(DeviceStatus::from_bits_retain(11));
        let mut queue = VirtQueue::<GuestHal, 4>::new(
            &mut machine,
            0,
            features.contains(INDIRECT),
            features.contains(EVENT_IDX),
        )
        .unwrap();
        machine.finish_init();
        for request in 0..66_000_u32 {
            let sector = request % DISK_SECTORS as u32;
            let write = request.is_multiple_of(2);
            let mut header = [0; 16];
            header[0] = u8::from(write);
            header[8..12].copy_from_slice(&(sector & !1).to_le_bytes());
            let mut data = pattern(request & !1);
            let mut status = [0xFF];
            // The header is cut in two where there is room for a fourth descriptor.
            let (first, second) = header.split_at(5);
            let used = if write {
                let inputs = [first, second, &data];
                queue.add_notify_wait_pop(&inputs, &mut [&mut status], &mut machine)
            } else {
                data.fill(0);
                let mut outputs = [&mut data[..], &mut status];
                queue.add_notify_wait_pop(&[first, second], &mut outputs, &mut machine)
            };
            assert_eq!(used, Ok(if write { 1 } else { 513 }));
            assert_eq!(status, [0]);
            assert!(data == pattern(request & !1), "request {request} read something else");
        }
        machine.queue_unset(0);
        assert_eq!(machine.get(0x70), 15);
        machine.set_status(DeviceStatus::empty());
    }
}

/// A request on its way through the driver's non-blocking calls.
struct Read {
    token: u16,
    sector: usize,
    request: Box<BlkReq>,
    response: Box<BlkResp>,
    buffer: Box<[u8; SECTOR_SIZE]>,
}

fn start_read(driver: &mut Driver, sector: usize) -> Result<Read, Error> {
    let mut read = Read {
        token: 0,
        sector,
        request: Box::default(),
        response: Box::default(),
        buffer: Box::new([0; SECTOR_SIZE]),
    };
    let (request, response) = (&mut *read.request, &mut *read.response);
    // SAFETY: the boxes stay where they are, untouched, until the read completes.
    read.token = unsafe { driver.read_blocks_nb(sector, request, &mut read.buffer[..], response) }?;
    Ok(read)
}

#[test]
fn many_requests_in_flight_complete_out_of_order_with_one_interrupt() {
    for features in [INDIRECT, INDIRECT | EVENT_IDX] {
        let disk = ram_disk().with_order(CompletionOrder::Reversed);
        let machine = with_disk(disk, features);
        let mut driver = Driver::new(machine.clone()).unwrap();
        for sector in 0..DISK_SECTORS {
            driver.write_blocks(sector, &pattern(sector as u32)).unwrap();
        }
        driver.ack_interrupt();
        machine.0.eager.set(false);
        for round in 0..50 {
            let mut reads: Vec<Read> = (0..16)
                .map(|at| start_read(&mut driver, (round * 16 + at * 7) % DISK_SECTORS).unwrap())
                .collect();
            assert!(matches!(start_read(&mut driver, 0), Err(Error::QueueFull)));
            assert_eq!(driver.peek_used(), None);
            machine.0.interrupts.set(0);
            machine.poll();
            // With EVENT_IDX it is for the driver to say where it waits; this one never does.
            if !features.contains(EVENT_IDX) {
                assert_eq!(machine.0.interrupts.get(), 1);
            }
            let mut order = vec![];
            while let Some(token) = driver.peek_used() {
                let at = reads.iter().position(|read| read.token == token).unwrap();
                let mut read = reads.remove(at);
                order.push(read.sector);
                let (buffer, response) = (&mut read.buffer[..], &mut *read.response);
                // SAFETY: the buffers are those the read was started with.
                unsafe {
                    driver.complete_read_blocks(token, &read.request, buffer, response).unwrap();
                }
                assert_eq!(read.response.status(), RespStatus::OK);
                assert!(*read.buffer == pattern(read.sector as u32));
            }
            assert!(reads.is_empty());
            let expected: Vec<_> =
                (0..16).rev().map(|at| (round * 16 + at * 7) % DISK_SECTORS).collect();
            assert_eq!(order, expected);
        }
    }
}

#[test]
fn a_driver_that_leaves_with_requests_in_flight_does_not_disturb_the_next() {
    let machine = with_disk(ram_disk(), Features::COMMON);
    for _ in 0..3 {
        let mut driver = Driver::new(machine.clone()).unwrap();
        traffic(&mut driver, 20);
        machine.0.eager.set(false);
        let reads: Vec<Read> = (0..5).map(|at| start_read(&mut driver, at).unwrap()).collect();
        assert!(machine.is_busy());
        // Stops the queue, and so waits for what is in flight.
        drop(driver);
        assert!(!machine.is_busy());
        machine.set(0x70, 0);
        assert!(reads.iter().all(|read| *read.buffer == [0; SECTOR_SIZE]));
        machine.0.eager.set(true);
    }
}

#[test]
fn a_read_only_disk_and_the_end_of_the_disk_are_respected() {
    let machine = with_disk(ram_disk().read_only(), Features::COMMON);
    let mut driver = Driver::new(machine.clone()).unwrap();
    assert!(driver.readonly());
    assert_eq!(driver.write_blocks(0, &pattern(1)), Err(Error::IoError));
    let mut sector = pattern(1);
    driver.read_blocks(0, &mut sector).unwrap();
    assert_eq!(sector, [0; SECTOR_SIZE]);

    let mut driver = Driver::new(with_disk(ram_disk(), Features::COMMON)).unwrap();
    for sector in [DISK_SECTORS, DISK_SECTORS + 1, 1 << 30, usize::MAX] {
        assert_eq!(driver.write_blocks(sector, &pattern(1)), Err(Error::IoError));
        assert_eq!(driver.read_blocks(sector, &mut pattern(1)), Err(Error::IoError));
    }
    let mut two = [0; 2 * SECTOR_SIZE];
    assert_eq!(driver.read_blocks(DISK_SECTORS - 1, &mut two), Err(Error::IoError));
    assert_eq!(driver.write_blocks(DISK_SECTORS - 1, &pattern(2)), Ok(()));
}
