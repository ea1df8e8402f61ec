//! The driver against our own device model, which somebody else wrote: what a guest with this
//! driver would see; and both on top of a second driver, the way a guest's request really goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::backend::block::SECTOR_SIZE;
use crate::backend::ram::{CompletionOrder, RamDisk};
use crate::drivers::testing::{CountedDelay, FakeRam, dump, fill};
use crate::drivers::virtio::fake::{FakeDisk, IDENTITY, SECTORS, USUAL, contents};
use crate::drivers::virtio::{DeviceKind, probe};
use crate::memory::{GuestMemory, Ipa};
use crate::virtio::devices::block::Block;
use crate::virtio::{Features, MmioTransport, Width, WriteOutcome};

/// Where the guest believes its RAM to be.
const IPA: u64 = 0x4000_0000;
/// Where its RAM begins in the board's; the memory before is for the driver below.
const GUEST: usize = layout::DMA_BYTES;
/// Where the guest's buffers begin in its RAM; the memory before is for the driver in it.
const DATA: usize = layout::DMA_BYTES;
/// Bytes of the guest's RAM.
const GUEST_BYTES: usize = DATA + 64 * SECTOR_SIZE as usize;
const TIMEOUT: Ticks = Ticks(1000);

fn board() -> FakeRam {
    FakeRam::new(GUEST + GUEST_BYTES)
}

/// The guest's RAM, with the guest's addresses in place of the board's.
fn guest(ram: &FakeRam) -> SharedSlice<'_> {
    ram.view_at(IPA - GUEST as u64).subslice(GUEST, GUEST_BYTES).unwrap()
}

/// `count` sectors of the guest's buffers, as the guest sees them.
fn sectors(ram: &FakeRam, at: u64, count: u64) -> SharedSlice<'_> {
    let offset = DATA + (at * SECTOR_SIZE) as usize;
    guest(ram).subslice(offset, (count * SECTOR_SIZE) as usize).unwrap()
}

/// A device model's registers, as the guest's stores and loads reach them.
struct Model<'d, 'm> {
    transport: Mutex<MmioTransport<'d, 'm>>,
    /// The present time in ticks.
    now: AtomicU64,
}

impl<'d, 'm> Model<'d, 'm> {
    fn new(device: &'d mut Block<'_, 'm>, ram: &'m FakeRam, common: Features) -> Self {
        let mut memory = GuestMemory::new();
        assert!(memory.add(Ipa::new(IPA), ram.all().subslice(GUEST, GUEST_BYTES).unwrap()).is_ok());
        let transport = MmioTransport::new(device, memory).with_common_features(common);
        Self { transport: Mutex::new(transport), now: AtomicU64::new(0) }
    }

    fn transport(&self) -> MutexGuard<'_, MmioTransport<'d, 'm>> {
        self.transport.try_lock().unwrap()
    }

    fn now(&self) -> Ticks {
        Ticks(self.now.load(Ordering::Relaxed))
    }

    fn set_now(&self, now: Ticks) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    /// What the hypervisor does at a poll point.
    fn poll(&self) {
        self.transport().poll(self.now());
    }

    fn take_interrupt(&self) -> bool {
        self.transport().take_interrupt()
    }
}

impl Registers for Model<'_, '_> {
    fn read32(&self, offset: usize) -> u32 {
        self.transport().read(offset as u16, Width::Word) as u32
    }

    fn read8(&self, offset: usize) -> u8 {
        self.transport().read(offset as u16, Width::Byte) as u8
    }

    fn read16(&self, offset: usize) -> u16 {
        self.transport().read(offset as u16, Width::Half) as u16
    }

    fn write8(&self, offset: usize, value: u8) {
        let outcome = self.transport().write(offset as u16, Width::Byte, value.into(), self.now());
        assert_eq!(outcome, WriteOutcome::Done);
    }

    fn write32(&self, offset: usize, value: u32) {
        let (offset, value) = (offset as u16, u64::from(value));
        for _ in 0..10 {
            let mut transport = self.transport();
            if transport.write(offset, Width::Word, value, self.now()) == WriteOutcome::Done {
                return;
            }
            // A store answered with Retry is executed again, after time has gone by.
            self.set_now(self.now().after(TIMEOUT));
            transport.poll(self.now());
        }
        panic!("a store is never done");
    }
}

/// The driver in the guest: all addresses are the guest's.
fn open<'m, 'r, 'd>(
    ram: &'m FakeRam,
    model: &'r Model<'d, 'm>,
) -> VirtioBlk<'m, &'r Model<'d, 'm>> {
    assert_eq!(probe(model), Ok(DeviceKind::Block));
    let dma = guest(ram).subslice(0, layout::DMA_BYTES).unwrap();
    // The identity request is completed at its doorbell or at a poll point.
    struct Polling<'r, 'd, 'm>(&'r Model<'d, 'm>);
    impl DelayNs for Polling<'_, '_, '_> {
        fn delay_ns(&mut self, _: u32) {
            self.0.poll();
        }
    }
    VirtioBlk::new(model, dma, TIMEOUT, &mut Polling(model)).unwrap()
}

fn request<'a, 'm>(
    tag: u16,
    op: BlockOp,
    sector: u64,
    segments: &'a [SharedSlice<'m>],
) -> BlockRequest<'a, 'm> {
    BlockRequest { tag: Tag(tag), op, sector, segments }
}

const ALL: Features = Features::COMMON;

#[test]
fn driver_and_model_agree_on_the_disk() {
    let ram = board();
    let storage = FakeRam::new(SECTORS as usize * 512);
    let mut backend = RamDisk::new(storage.all(), *IDENTITY).read_only();
    let mut block = Block::new(&mut backend);
    let model = Model::new(&mut block, &ram, ALL);
    let info = open(&ram, &model).info();
    assert_eq!((info.sectors, info.block_size, info.id), (SECTORS, 512, *IDENTITY));
    assert_eq!((info.read_only, info.flush, info.depth), (true, true, 64));
    assert!(info.max_segments > 100);
}

#[test]
fn every_mix_of_features_moves_the_right_data_past_the_index_wrap() {
    for dropped in [
        Features::empty(),
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::INDIRECT_DESC | Features::EVENT_IDX,
    ] {
        let ram = board();
        let storage = FakeRam::new(SECTORS as usize * 512);
        fill(storage.all(), &contents(0, SECTORS));
        let mut backend =
            RamDisk::new(storage.all(), *IDENTITY).with_order(CompletionOrder::Reversed);
        let mut block = Block::new(&mut backend);
        let model = Model::new(&mut block, &ram, ALL.difference(dropped));
        let mut disk = open(&ram, &model);
        let batch = disk.info().depth.min(30);
        let rounds = if cfg!(miri) { 2 } else { 66_000 / u32::from(batch) };
        for round in 0..rounds {
            for tag in 0..batch {
                let sector = (u64::from(tag) * 5 + u64::from(round)) % (SECTORS - 1);
                let buffer = [sectors(&ram, 2 * u64::from(tag), 2)];
                let op = match tag % 7 {
                    6 => BlockOp::Flush,
                    5 => BlockOp::Write,
                    _ => BlockOp::Read,
                };
                if op == BlockOp::Write {
                    fill(buffer[0], &contents(sector, 2));
                }
                disk.submit(request(tag, op, sector, &buffer), Ticks(0)).unwrap();
            }
            disk.kick();
            let mut missing = (1u64 << batch) - 1;
            while missing != 0 {
                model.poll();
                while let Some((Tag(tag), status)) = disk.poll(Ticks(0)) {
                    assert_eq!(status, BlockStatus::Ok);
                    assert_ne!(missing & (1 << tag), 0, "{tag} ended twice");
                    missing &= !(1 << tag);
                    // Looking at all the data in every round would take too long.
                    if tag % 7 < 5 && (round % 101 == 0 || round + 3 > rounds) {
                        let sector = (u64::from(tag) * 5 + u64::from(round)) % (SECTORS - 1);
                        let buffer = sectors(&ram, 2 * u64::from(tag), 2);
                        assert_eq!(dump(buffer), contents(sector, 2), "round {round}");
                    }
                }
            }
        }
        assert_eq!((disk.resets(), disk.in_flight()), (0, 0));
        assert_eq!(dump(storage.all()), contents(0, SECTORS));
        assert_eq!(model.transport().fault(), None);
    }
}

#[test]
fn the_model_interrupts_as_the_driver_asks() {
    for dropped in [Features::empty(), Features::EVENT_IDX] {
        let ram = board();
        let storage = FakeRam::new(SECTORS as usize * 512);
        let mut backend = RamDisk::new(storage.all(), *IDENTITY);
        let mut block = Block::new(&mut backend);
        let model = Model::new(&mut block, &ram, ALL.difference(dropped));
        let mut disk = open(&ram, &model);
        for on in [false, true, true, true, false, false] {
            disk.set_interrupts(on);
            assert_eq!(disk.poll(Ticks(0)), None);
            let segments = [sectors(&ram, 0, 1)];
            disk.submit(request(1, BlockOp::Read, 0, &segments), Ticks(0)).unwrap();
            disk.kick();
            model.poll();
            assert_eq!(model.take_interrupt(), on);
            if on {
                assert_eq!(disk.acknowledge_interrupt(), InterruptCauses::USED_BUFFER);
            }
            assert_eq!(disk.poll(Ticks(0)), Some((Tag(1), BlockStatus::Ok)));
        }
    }
}

#[test]
fn requests_beyond_the_disk_fail_alone() {
    let ram = board();
    let storage = FakeRam::new(SECTORS as usize * 512);
    let mut backend = RamDisk::new(storage.all(), *IDENTITY);
    let mut block = Block::new(&mut backend);
    let model = Model::new(&mut block, &ram, ALL);
    let mut disk = open(&ram, &model);
    let segments = [sectors(&ram, 0, 2)];
    disk.submit(request(1, BlockOp::Write, SECTORS - 1, &segments), Ticks(0)).unwrap();
    disk.submit(request(2, BlockOp::Write, SECTORS - 2, &segments), Ticks(0)).unwrap();
    disk.kick();
    model.poll();
    let mut ends = [disk.poll(Ticks(0)).unwrap(), disk.poll(Ticks(0)).unwrap()];
    ends.sort_by_key(|(Tag(tag), _)| *tag);
    assert_eq!(ends, [(Tag(1), BlockStatus::IoError), (Tag(2), BlockStatus::Ok)]);
}

/// The way of a guest's request on a board: driver, device model, driver, disk. Guest and board
/// number the same memory differently, and the disk refuses DMA outside the board's.
#[test]
fn a_request_goes_through_driver_model_and_driver_to_the_disk_and_back() {
    let ram = board();
    let device = FakeDisk::new(&ram, USUAL);
    let dma = ram.all().subslice(0, layout::DMA_BYTES).unwrap();
    let mut physical = VirtioBlk::new(&device, dma, TIMEOUT, &mut CountedDelay::default()).unwrap();
    let mut block = Block::new(&mut physical);
    let model = Model::new(&mut block, &ram, ALL);
    let mut disk = open(&ram, &model);
    assert_eq!(disk.info().id, *IDENTITY);

    let buffer = [sectors(&ram, 3, 2), sectors(&ram, 9, 1)];
    disk.submit(request(1, BlockOp::Read, 17, &buffer), Ticks(0)).unwrap();
    disk.kick();
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(1), BlockStatus::Ok)));
    assert_eq!([dump(buffer[0]), dump(buffer[1])].concat(), contents(17, 3));

    fill(buffer[1], &[0x5a; 512]);
    disk.submit(request(2, BlockOp::Write, 40, &buffer[1..]), Ticks(0)).unwrap();
    disk.kick();
    disk.submit(request(3, BlockOp::Flush, 0, &[]), Ticks(0)).unwrap();
    disk.kick();
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(2), BlockStatus::Ok)));
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(3), BlockStatus::Ok)));
    assert_eq!(device.get().disk[40 * 512..41 * 512], [0x5a; 512]);
    let last_two = device.get().log.iter().rev().take(2).copied().collect::<Vec<_>>();
    assert_eq!(last_two, [(4, 0, 0), (1, 40, 1)], "the flush reached the disk, after the write");
}

#[test]
fn a_guest_outlives_the_silence_of_the_physical_disk() {
    let ram = board();
    let device = FakeDisk::new(&ram, USUAL);
    let dma = ram.all().subslice(0, layout::DMA_BYTES).unwrap();
    let mut physical = VirtioBlk::new(&device, dma, TIMEOUT, &mut CountedDelay::default()).unwrap();
    let mut block = Block::new(&mut physical);
    let model = Model::new(&mut block, &ram, ALL);
    let mut disk = open(&ram, &model);

    device.set().dead = true;
    let buffer = [sectors(&ram, 0, 1)];
    disk.submit(request(1, BlockOp::Read, 5, &buffer), Ticks(0)).unwrap();
    disk.kick();
    model.set_now(Ticks(999));
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), None);
    model.set_now(Ticks(1000));
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(1), BlockStatus::IoError)));

    device.set().dead = false;
    disk.submit(request(2, BlockOp::Read, 5, &buffer), Ticks(0)).unwrap();
    disk.kick();
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(2), BlockStatus::Ok)));
    assert_eq!(dump(buffer[0]), contents(5, 1));
    assert_eq!(disk.resets(), 0, "to the guest it was one failed request");
}

/// A guest whose driver loses patience first resets the device model while the physical disk
/// still has the request: the reset may only complete when the disk is out of the guest's memory.
#[test]
fn a_guest_that_resets_waits_for_the_physical_disk() {
    let ram = board();
    let device = FakeDisk::new(&ram, USUAL);
    let dma = ram.all().subslice(0, layout::DMA_BYTES).unwrap();
    let mut physical = VirtioBlk::new(&device, dma, TIMEOUT, &mut CountedDelay::default()).unwrap();
    let mut block = Block::new(&mut physical);
    let model = Model::new(&mut block, &ram, ALL);
    let mut disk = open(&ram, &model);

    device.set().prompt = false;
    let buffer = [sectors(&ram, 0, 1)];
    disk.submit(request(1, BlockOp::Read, 5, &buffer), Ticks(0)).unwrap();
    disk.kick();
    assert_eq!(device.get().requests.len(), 1);
    // The guest's own clock; the model's stands still until its store is answered with Retry.
    assert_eq!(disk.poll(TIMEOUT), Some((Tag(1), BlockStatus::IoError)));
    assert!(device.get().requests.is_empty(), "the physical disk was reset before");

    device.set().prompt = true;
    disk.submit(request(2, BlockOp::Read, 5, &buffer), Ticks(0)).unwrap();
    disk.kick();
    model.poll();
    assert_eq!(disk.poll(Ticks(0)), Some((Tag(2), BlockStatus::Ok)));
    assert_eq!(dump(buffer[0]), contents(5, 1));
}
