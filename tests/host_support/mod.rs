//! What the `virtio-drivers` crate asks of a guest: memory, and registers to reach a device by.
//!
//! The crate's own MMIO transport wants a real register window; here its `Transport` trait makes
//! the same accesses on our transport. Its `Hal` allocates from the guest's RAM, whose guest
//! addresses differ from where the host has it, and bounces every buffer through it.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::Rc;

use sparkler::backend::clock::Ticks;
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa};
use sparkler::virtio::{Features, MmioTransport, NextPoll, VirtioDevice, Width, WriteOutcome};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const RAM_BASE: u64 = 0x4000_0000;
const RAM_SIZE: usize = 1 << 20;
const NOW: Ticks = Ticks(0);

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

pub(crate) struct GuestHal;

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
pub(crate) struct Machine(pub(crate) Rc<Shared>);

pub(crate) struct Shared {
    pub(crate) transport: RefCell<MmioTransport<'static, 'static>>,
    /// Poll inside the notification: the driver's blocking calls watch memory only.
    pub(crate) eager: Cell<bool>,
    pub(crate) interrupts: Cell<usize>,
    pub(crate) kicks: Cell<usize>,
}

impl Machine {
    pub(crate) fn new(device: impl VirtioDevice<'static> + 'static, common: Features) -> Self {
        let device = Box::leak(Box::new(device));
        let transport = MmioTransport::new(device, guest_memory()).with_common_features(common);
        Self(Rc::new(Shared {
            transport: RefCell::new(transport),
            eager: Cell::new(true),
            interrupts: Cell::new(0),
            kicks: Cell::new(0),
        }))
    }

    /// Polls once; an interrupt is counted.
    pub(crate) fn poll(&self) {
        let mut transport = self.0.transport.borrow_mut();
        transport.poll(NOW);
        if transport.take_interrupt() {
            self.0.interrupts.set(self.0.interrupts.get() + 1);
        }
    }

    fn read(&self, offset: u16, width: Width) -> u64 {
        self.0.transport.borrow().read(offset, width)
    }

    /// Whether it wants to be polled before anything comes for it.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.transport.borrow().next_poll() == NextPoll::Soon
    }

    /// A load of a register.
    pub(crate) fn get(&self, offset: u16) -> u32 {
        self.read(offset, Width::Word) as u32
    }

    /// A store as a vCPU makes it: executed again until it is done.
    pub(crate) fn set(&self, offset: u16, value: u32) {
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
        while self.0.eager.get() && self.is_busy() {
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
        unimplemented!("these drivers write no configuration")
    }
}
