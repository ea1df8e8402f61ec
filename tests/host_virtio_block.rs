//! The block device against a driver that knows nothing of us: the `virtio-drivers` crate.
//!
//! The crate's own MMIO transport wants a real register window; here its `Transport` trait makes
//! the same accesses on our transport. Its `Hal` allocates from the guest's RAM, whose guest
//! addresses differ from where the host has it, and bounces every buffer through it.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::Rc;

use sparkler::backend::block::BlockBackend;
use sparkler::backend::clock::Ticks;
use sparkler::backend::ram::{CompletionOrder, RamDisk};
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa};
use sparkler::virtio::devices::block::Block;
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const RAM_BASE: u64 = 0x4000_0000;
const RAM_SIZE: usize = 1 << 20;
const DISK_SECTORS: usize = 256;
const NOW: Ticks = Ticks(0);
const EVENT_IDX: Features = Features::EVENT_IDX;
const INDIRECT: Features = Features::INDIRECT_DESC;

/// The guest's RAM, and a free list of it by size. One to a test thread, as `Hal` has no `self`.
struct Ram {
    memory: &'static HostRam,
    next: Cell<usize>,
    free: RefCell<HashMap<usize, Vec<usize>>>,
}

impl Ram {
    /// `size` rounded up to a power of two, aligned to itself up to a page; by offset.
    fn allocate(&self, size: usize) -> usize {
        let size = size.next_power_of_two().max(64);
        if let Some(offset) = self.free.borrow_mut().entry(size).or_default().pop() {
            return offset;
        }
        let offset = self.next.get().next_multiple_of(size.min(PAGE_SIZE));
        self.next.set(offset + size);
        assert!(offset + size <= RAM_SIZE, "out of guest memory");
        offset
    }

    fn release(&self, offset: usize, size: usize) {
        let size = size.next_power_of_two().max(64);
        self.free.borrow_mut().entry(size).or_default().push(offset);
    }

    fn pointer(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < RAM_SIZE);
        // SAFETY: inside the allocation.
        unsafe { self.memory.pointer().add(offset) }
    }
}

thread_local! {
    static RAM: Ram = Ram {
        memory: Box::leak(Box::new(HostRam::new(RAM_SIZE))),
        next: Cell::new(PAGE_SIZE),
        free: RefCell::default(),
    };
}

fn offset_of(address: PhysAddr) -> usize {
    (address - RAM_BASE) as usize
}

struct GuestHal;

// SAFETY: memory comes from one live allocation, is handed out once until it is given back, is
// page-aligned for whole pages, and zeroed.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        RAM.with(|ram| {
            let offset = ram.allocate(pages * PAGE_SIZE);
            let pointer = ram.pointer(offset);
            // SAFETY: the pages were just allocated, and lie inside RAM.
            unsafe { pointer.write_bytes(0, pages * PAGE_SIZE) };
            (RAM_BASE + offset as u64, pointer)
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        RAM.with(|ram| ram.release(offset_of(paddr), pages * PAGE_SIZE));
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unimplemented!("for PCI only")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        RAM.with(|ram| {
            let offset = ram.allocate(buffer.len());
            // SAFETY: both sides are `buffer.len()` bytes, live, and not the same.
            unsafe { ram.pointer(offset).copy_from(buffer.cast(), buffer.len()) };
            RAM_BASE + offset as u64
        })
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        RAM.with(|ram| {
            let offset = offset_of(paddr);
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: both sides are `buffer.len()` bytes, live, and not the same.
                unsafe { buffer.cast().copy_from(ram.pointer(offset), buffer.len()) };
            }
            ram.release(offset, buffer.len());
        });
    }
}

/// The guest's view of its RAM.
fn guest_memory() -> GuestMemory<'static> {
    let mut memory = GuestMemory::new();
    let slice = RAM.with(|ram| ram.memory).slice(Pa::new(0x8_8000_0000));
    assert!(memory.add(Ipa::new(RAM_BASE), slice).is_ok());
    memory
}

/// The device as the exit path sees it, shared between the driver and the test.
#[derive(Clone)]
struct Machine(Rc<Shared>);

struct Shared {
    transport: RefCell<MmioTransport<'static, 'static>>,
    /// Poll inside the notification: the driver's blocking calls watch memory only.
    eager: Cell<bool>,
    interrupts: Cell<usize>,
    kicks: Cell<usize>,
}

impl Machine {
    fn new(backend: impl BlockBackend<'static> + 'static, common: Features) -> Self {
        let device = Box::leak(Box::new(Block::new(Box::leak(Box::new(backend)))));
        let transport = MmioTransport::new(device, guest_memory()).with_common_features(common);
        Self(Rc::new(Shared {
            transport: RefCell::new(transport),
            eager: Cell::new(true),
            interrupts: Cell::new(0),
            kicks: Cell::new(0),
        }))
    }

    fn poll(&self) {
        let mut transport = self.0.transport.borrow_mut();
        transport.poll(NOW);
        if transport.take_interrupt() {
            self.0.interrupts.set(self.0.interrupts.get() + 1);
        }
    }

    fn read(&self, offset: u16, width: Width) -> u64 {
        self.0.transport.borrow().read(offset, width)
    }

    fn get(&self, offset: u16) -> u32 {
        self.read(offset, Width::Word) as u32
    }

    /// A store as a vCPU makes it: executed again until it is done.
    fn set(&self, offset: u16, value: u32) {
        for _ in 0..100 {
            let outcome =
                self.0.transport.borrow_mut().write(offset, Width::Word, value.into(), NOW);
            if outcome == WriteOutcome::Done {
                return;
            }
            self.poll();
        }
        panic!("the store at {offset:#x} never ends");
    }
}

impl Transport for Machine {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.get(0x08)).unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        self.set(0x14, 0);
        let low = self.get(0x10);
        self.set(0x14, 1);
        u64::from(self.get(0x10)) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, features: u64) {
        for page in 0..2 {
            self.set(0x24, page);
            self.set(0x20, (features >> (32 * page)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(0x30, queue.into());
        self.get(0x34)
    }

    fn notify(&mut self, queue: u16) {
        self.0.kicks.set(self.0.kicks.get() + 1);
        self.set(0x50, queue.into());
        while self.0.eager.get() && self.0.transport.borrow().has_work_in_flight() {
            self.poll();
        }
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(0x70))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.set(0x70, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: u64, driver: u64, device: u64) {
        self.set(0x30, queue.into());
        self.set(0x38, size);
        for (low, address) in [(0x80, desc), (0x90, driver), (0xA0, device)] {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.set(0x30, queue.into());
        self.set(0x44, 0);
        assert_eq!(self.get(0x44), 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(0x30, queue.into());
        self.get(0x44) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let causes = self.get(0x60);
        self.set(0x64, causes);
        InterruptStatus::from_bits_retain(causes)
    }

    fn read_config_generation(&self) -> u32 {
        self.get(0xFC)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        for (at, byte) in value.as_mut_bytes().iter_mut().enumerate() {
            *byte = self.read((0x100 + offset + at) as u16, Width::Byte) as u8;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        unimplemented!("the block driver writes no configuration")
    }
}

type Driver = VirtIOBlk<GuestHal, Machine>;

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
    let mut driver = Driver::new(Machine::new(ram_disk(), Features::COMMON)).unwrap();
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
        let mut driver = Driver::new(Machine::new(ram_disk(), features)).unwrap();
        traffic(&mut driver, 500);
    }
}

#[test]
fn the_ring_works_past_the_wrap_of_its_index() {
    for features in COMBINATIONS {
        let machine = Machine::new(ram_disk(), features);
        let mut driver = Driver::new(machine.clone()).unwrap();
        traffic(&mut driver, 70_000);
        assert!(machine.0.kicks.get() > 0x1_0000);
        assert_eq!(machine.get(0x70), 15);
    }
}

#[test]
fn a_queue_of_four_works_past_the_wrap_of_its_index() {
    for features in COMBINATIONS {
        let mut machine = Machine::new(ram_disk(), features);
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
        let machine = Machine::new(disk, features);
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
    let machine = Machine::new(ram_disk(), Features::COMMON);
    for _ in 0..3 {
        let mut driver = Driver::new(machine.clone()).unwrap();
        traffic(&mut driver, 20);
        machine.0.eager.set(false);
        let reads: Vec<Read> = (0..5).map(|at| start_read(&mut driver, at).unwrap()).collect();
        assert!(machine.0.transport.borrow().has_work_in_flight());
        // Stops the queue, and so waits for what is in flight.
        drop(driver);
        assert!(!machine.0.transport.borrow().has_work_in_flight());
        machine.set(0x70, 0);
        assert!(reads.iter().all(|read| *read.buffer == [0; SECTOR_SIZE]));
        machine.0.eager.set(true);
    }
}

#[test]
fn a_read_only_disk_and_the_end_of_the_disk_are_respected() {
    let machine = Machine::new(ram_disk().read_only(), Features::COMMON);
    let mut driver = Driver::new(machine.clone()).unwrap();
    assert!(driver.readonly());
    assert_eq!(driver.write_blocks(0, &pattern(1)), Err(Error::IoError));
    let mut sector = pattern(1);
    driver.read_blocks(0, &mut sector).unwrap();
    assert_eq!(sector, [0; SECTOR_SIZE]);

    let mut driver = Driver::new(Machine::new(ram_disk(), Features::COMMON)).unwrap();
    for sector in [DISK_SECTORS, DISK_SECTORS + 1, 1 << 30, usize::MAX] {
        assert_eq!(driver.write_blocks(sector, &pattern(1)), Err(Error::IoError));
        assert_eq!(driver.read_blocks(sector, &mut pattern(1)), Err(Error::IoError));
    }
    let mut two = [0; 2 * SECTOR_SIZE];
    assert_eq!(driver.read_blocks(DISK_SECTORS - 1, &mut two), Err(Error::IoError));
    assert_eq!(driver.write_blocks(DISK_SECTORS - 1, &pattern(2)), Ok(()));
}
