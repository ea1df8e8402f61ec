//! Tests of the block device, from the registers to a disk that does as the test says.

mod batch;
mod media;
mod modes;
mod queues;
mod ranges;
mod throttle;

use std::sync::RwLockWriteGuard;

use super::*;
use crate::backend::block::{
    BlockInfo, BlockOp, BlockRequest, BlockStatus, DiscardLimits, ID_SIZE, SubmitError, Tag,
    Topology, WriteZeroesLimits,
};
use crate::backend::ram::{CompletionOrder, RamDisk};
use crate::memory::{HostRam, Pa};
use crate::sync::testing::Shared;
use crate::virtio::queue::QueueError;
use crate::virtio::testing::{BUFFERS, Driver, NOW, RAM, RAM_SIZE, Registers, guest_memory};
use crate::virtio::{MmioTransport, Width, WriteOutcome};

const V1: Features = Features::VERSION_1;
const WITH_FLUSH: Features = V1.union(FLUSH);

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x20;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;

/// A disk that keeps what it is given until the test finishes it.
struct Manual {
    info: BlockInfo,
    submitted: Vec<(Tag, BlockOp, u64, Vec<usize>)>,
    finished: Vec<(Tag, BlockStatus)>,
    held: usize,
    room: usize,
    refuse: Option<SubmitError>,
    kicks: usize,
}

#[derive(Clone)]
struct Disk(Shared<Manual>);

impl Disk {
    fn new() -> Self {
        let info = BlockInfo {
            flush: true,
            max_segments: 32,
            depth: 8,
            id: *b"sparkler test disk\0\0",
            ..BlockInfo::new(64)
        };
        Self(Shared::new(Manual {
            info,
            submitted: vec![],
            finished: vec![],
            held: 0,
            room: usize::MAX,
            refuse: None,
            kicks: 0,
        }))
    }

    fn get(&self) -> RwLockWriteGuard<'_, Manual> {
        self.0.borrow_mut()
    }

    fn finish(&self, tag: u16, status: BlockStatus) {
        self.get().finished.push((Tag(tag), status));
    }
}

impl<'m> BlockBackend<'m> for Disk {
    fn info(&self) -> BlockInfo {
        self.get().info
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, _now: Ticks) -> Result<(), SubmitError> {
        let mut disk = self.get();
        if let Some(refusal) = disk.refuse {
            return Err(refusal);
        }
        if disk.held >= disk.room {
            return Err(SubmitError::Busy);
        }
        disk.held += 1;
        let lengths = request.segments.iter().map(|segment| segment.len()).collect();
        disk.submitted.push((request.tag, request.op, request.sector, lengths));
        Ok(())
    }

    fn kick(&mut self) {
        self.get().kicks += 1;
    }

    fn poll(&mut self, _now: Ticks) -> Option<(Tag, BlockStatus)> {
        let mut disk = self.get();
        let finished = disk.finished.pop()?;
        disk.held -= 1;
        Some(finished)
    }

    fn in_flight(&self) -> usize {
        self.get().held
    }
}

/// A guest with 16 descriptors before a block device over `$disk`, live with `$features`.
macro_rules! guest {
    ($disk:ident, $features:expr, $driver:ident, $transport:ident) => {
        let ram = HostRam::new(RAM_SIZE);
        #[allow(unused_mut)]
        let mut $driver = Driver::new(guest_memory(&ram), 16);
        let mut backend = $disk.clone();
        let mut device = Block::new(&mut backend);
        #[allow(unused_mut)]
        let mut $transport = MmioTransport::new(&mut device, guest_memory(&ram));
        $transport.bring_up($features, &$driver);
    };
}

use guest;

fn header(driver: &Driver<'_>, at: u64, request: u32, sector: u64) {
    driver.put(at, &request.to_le_bytes());
    driver.put(at + 4, &[0xEE; 4]);
    driver.put(at + 8, &sector.to_le_bytes());
}

/// Offers a request with one data buffer and kicks; the status byte is 0xFF before.
fn request(
    driver: &mut Driver<'_>,
    transport: &mut MmioTransport<'_, '_>,
    (request, sector): (u32, u64),
    data: &[(u64, u32, bool)],
) {
    header(driver, HEADER, request, sector);
    driver.put(STATUS, &[0xFF]);
    let mut buffers = vec![(HEADER, 16, false)];
    buffers.extend_from_slice(data);
    buffers.push((STATUS, 1, true));
    driver.chain(0, &buffers);
    driver.offer(0);
    transport.set(0x50, 0);
}

fn status(driver: &Driver<'_>) -> u8 {
    let [status] = driver.get(STATUS);
    status
}

/// One request that must be answered without the disk: its status and used length.
fn refused(
    disk: &Disk,
    features: Features,
    what: (u32, u64),
    data: &[(u64, u32, bool)],
) -> (u8, u32) {
    guest!(disk, features, driver, transport);
    request(&mut driver, &mut transport, what, data);
    assert!(disk.get().submitted.is_empty());
    assert!(transport.take_interrupt());
    let (head, used) = driver.used().unwrap();
    assert_eq!((head, driver.used()), (0, None));
    (status(&driver), used)
}

#[test]
fn a_disk_is_described_as_it_is() {
    let disk = Disk::new();
    disk.get().info.sectors = 0x1_2345_6789;
    disk.get().info.block_size = 4096;
    disk.get().info.max_segment_bytes = 0x9_0000;
    disk.get().info.topology = Topology {
        physical_block_exponent: 3,
        alignment_offset: 2,
        min_io_blocks: 0x1234,
        opt_io_blocks: 0x5678_9ABC,
    };
    guest!(disk, V1, driver, transport);
    assert_eq!(transport.get(0x08), 2);
    // SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE; INDIRECT_DESC, EVENT_IDX.
    let common = (1 << 1) | (1 << 2) | (1 << 6) | (1 << 10) | (1 << 28) | (1 << 29);
    assert_eq!(transport.get(0x10), common | (1 << 9) | (1 << 11));
    assert_eq!(transport.get(0x34), 1024);
    assert_eq!(transport.read(0x100, Width::Double), 0x1_2345_6789);
    assert_eq!(transport.get(0x108), 0x9_0000);
    assert_eq!(transport.get(0x10C), 32);
    assert_eq!(transport.read(0x110, Width::Double), 4096 << 32);
    assert_eq!(transport.read(0x118, Width::Double), 0x5678_9ABC_1234_0203);
    // `writeback`, and nothing else: one queue, no discard, no write zeroes.
    assert_eq!(transport.read(0x120, Width::Double), 1);
    for at in (0x128..0x140).step_by(4) {
        assert_eq!(transport.get(at), 0, "{at:#x}");
    }

    let mut info = disk.get().info;
    info.discard = Some(DiscardLimits { max_sectors: 0x1111_1111, alignment: 8 });
    info.write_zeroes = Some(WriteZeroesLimits { max_sectors: 0x2222_2222, may_unmap: true });
    disk.get().info = info;
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x10), common | (1 << 9) | (1 << 11) | (1 << 13) | (1 << 14));
    let limits = [0x124, 0x128, 0x12C, 0x130, 0x134, 0x138].map(|at| transport.get(at));
    assert_eq!(limits, [0x1111_1111, 1, 8, 0x2222_2222, 1, 1]);

    // A read-only disk is not asked to change, whatever it could do.
    info.read_only = true;
    info.flush = false;
    info.max_segments = 1000;
    disk.get().info = info;
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x10), common | (1 << 5));
    assert_eq!(transport.get(0x10C), 254);
    for at in (0x120..0x140).step_by(4) {
        assert_eq!(transport.get(at), 0, "{at:#x}");
    }
}

#[test]
fn segments_can_be_limited_for_good_but_not_to_none() {
    let ram = HostRam::new(RAM_SIZE);
    let mut disk = Disk::new();
    for (limit, seg_max) in [(14, 14), (1, 1), (0, 1), (1000, 32)] {
        let mut device = Block::new(&mut disk);
        device.limit_segments(limit);
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        assert_eq!(transport.get(0x10C), seg_max);
        transport.set(0x70, 0);
        assert_eq!(transport.get(0x10C), seg_max);
    }
}

#[test]
fn a_read_goes_to_the_disk_without_a_copy_and_completes_when_it_does() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    let data = [(DATA, 512, true), (DATA + 0x1000, 1024, true)];
    request(&mut driver, &mut transport, (IN, 5), &data);
    assert_eq!(disk.get().submitted, [(Tag(0), BlockOp::Read, 5, vec![512, 1024])]);
    assert_eq!(disk.get().kicks, 1);
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert!(!transport.take_interrupt());
    assert!(transport.has_work_in_flight());
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((0, 1537)));
    assert_eq!(status(&driver), 0);
    assert!(transport.take_interrupt());
    assert!(!transport.has_work_in_flight());
}

#[test]
fn a_write_reports_its_status_byte_only() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (OUT, 63), &[(DATA, 512, false)]);
    assert_eq!(disk.get().submitted, [(Tag(0), BlockOp::Write, 63, vec![512])]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));
}

#[test]
fn errors_of_the_disk_reach_the_driver() {
    for (result, code) in [(BlockStatus::IoError, 1), (BlockStatus::Unsupported, 2)] {
        let disk = Disk::new();
        guest!(disk, WITH_FLUSH, driver, transport);
        request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
        disk.finish(0, result);
        transport.poll(NOW);
        // Nothing is known to be written before the status byte.
        assert_eq!((driver.used(), status(&driver)), (Some((0, 0)), code));
    }
    for (refusal, code) in [(SubmitError::Failed, 1), (SubmitError::Unsupported, 2)] {
        let disk = Disk::new();
        disk.get().refuse = Some(refusal);
        assert_eq!(refused(&disk, V1, (OUT, 0), &[(DATA, 512, false)]), (code, 1));
    }
}

#[test]
fn requests_past_the_capacity_never_reach_the_disk() {
    let disk = Disk::new();
    for sector in [64, 63, 65, 1 << 30, u64::MAX / 512, u64::MAX - 1, u64::MAX] {
        let read = refused(&disk, WITH_FLUSH, (IN, sector), &[(DATA, 1024, true)]);
        assert_eq!(read, (1, 0), "{sector}");
        let write = refused(&disk, WITH_FLUSH, (OUT, sector), &[(DATA, 1024, false)]);
        assert_eq!(write, (1, 1), "{sector}");
    }
}

#[test]
fn data_that_is_not_whole_blocks_is_refused() {
    let disk = Disk::new();
    for len in [1, 511, 513, 1000] {
        assert_eq!(refused(&disk, V1, (IN, 0), &[(DATA, len, true)]), (1, 0));
        assert_eq!(refused(&disk, V1, (OUT, 0), &[(DATA, len, false)]), (1, 1));
    }
    disk.get().info.block_size = 4096;
    for (sector, len) in [(1, 4096), (0, 512), (8, 4608), (4, 4096)] {
        assert_eq!(refused(&disk, V1, (OUT, sector), &[(DATA, len, false)]), (1, 1));
    }
}

#[test]
fn a_write_to_a_read_only_disk_is_refused_whatever_was_negotiated() {
    let disk = Disk::new();
    disk.get().info.read_only = true;
    for features in [V1, V1 | RO] {
        assert_eq!(refused(&disk, features, (OUT, 0), &[(DATA, 512, false)]), (1, 1));
    }
}

#[test]
fn a_writable_disk_can_be_made_read_only_for_good() {
    let ram = HostRam::new(RAM_SIZE);
    let mut disk = Disk::new();
    let mut device = Block::new(&mut disk);
    device.forbid_writes();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    for _ in 0..2 {
        assert_ne!(transport.get(0x10) & 1 << 5, 0);
        transport.set(0x70, 0);
    }
}

#[test]
fn unknown_requests_are_unsupported() {
    let disk = Disk::new();
    for kind in [2, 3, 5, 7, 9, 10, 11, 13, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(refused(&disk, V1, (kind, 0), &[]), (2, 1), "{kind}");
    }
}

#[test]
fn a_request_of_no_data_is_over_at_once() {
    let disk = Disk::new();
    assert_eq!(refused(&disk, V1, (IN, 64), &[]), (0, 1));
    assert_eq!(refused(&disk, V1, (OUT, 0), &[]), (0, 1));
    assert_eq!(refused(&disk, V1, (IN, 65), &[]), (1, 1));
}

#[test]
fn identity_fills_20_bytes_wherever_they_are() {
    let disk = Disk::new();
    for cut in [1, 7, 19] {
        guest!(disk, V1, driver, transport);
        let data = [(DATA, cut, true), (DATA + 0x100, 20 - cut, true)];
        request(&mut driver, &mut transport, (GET_ID, 0), &data);
        assert_eq!((driver.used(), status(&driver)), (Some((0, 21)), 0));
        let first: [u8; 20] = driver.get(DATA);
        let second: [u8; 20] = driver.get(DATA + 0x100);
        let cut = cut as usize;
        assert_eq!(first[..cut], disk.get().info.id[..cut]);
        assert_eq!(second[..20 - cut], disk.get().info.id[cut..]);
        assert_eq!(second[20 - cut..], [0; 20][20 - cut..]);
    }
    assert_eq!(refused(&disk, V1, (GET_ID, 0), &[(DATA, 19, true)]), (1, 0));
    // A longer buffer is not filled up to the status byte: the gap ends the used length.
    assert_eq!(refused(&disk, V1, (GET_ID, 0), &[(DATA, 32, true)]), (0, 20));
}

#[test]
fn a_flush_goes_to_the_disk_if_it_has_a_cache() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (FLUSH_REQUEST, 0), &[]);
    assert_eq!(disk.get().submitted, [(Tag(0), BlockOp::Flush, 0, vec![])]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));

    let disk = Disk::new();
    disk.get().info.flush = false;
    assert_eq!(refused(&disk, V1, (FLUSH_REQUEST, 0), &[]), (0, 1));
}

#[test]
fn headers_and_status_may_be_cut_anywhere() {
    for cut in 1..16_u32 {
        let disk = Disk::new();
        guest!(disk, WITH_FLUSH, driver, transport);
        header(&driver, HEADER, OUT, 9);
        let tail: [u8; 16] = driver.get(HEADER + u64::from(cut));
        // The second part of the header shares its buffer with the data.
        driver.put(DATA, &tail);
        driver.chain(
            4,
            &[
                (HEADER, cut, false),
                (DATA, 16 - cut + 100, false),
                (DATA + 0x1000, 412, false),
                (STATUS - 3, 4, true),
            ],
        );
        driver.offer(4);
        transport.set(0x50, 0);
        assert_eq!(disk.get().submitted, [(Tag(0), BlockOp::Write, 9, vec![100, 412])]);
        disk.finish(0, BlockStatus::Ok);
        transport.poll(NOW);
        // Three writable bytes before the status were not written.
        assert_eq!((driver.used(), status(&driver)), (Some((4, 0)), 0));
    }
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    header(&driver, HEADER, IN, 0);
    // Data and status in one buffer.
    driver.chain(0, &[(HEADER, 16, false), (DATA, 513, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    assert_eq!(disk.get().submitted, [(Tag(0), BlockOp::Read, 0, vec![512])]);
}

#[test]
fn a_header_that_is_cut_short_is_an_error_and_no_status_byte_breaks_the_device() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    driver.put(STATUS, &[0xFF]);
    driver.chain(0, &[(HEADER, 15, false), (STATUS, 1, true)]);
    driver.offer(0);
    driver.chain(2, &[(STATUS, 1, true)]);
    driver.offer(2);
    transport.set(0x50, 0);
    assert_eq!([driver.used(), driver.used()], [Some((0, 1)), Some((2, 1))]);
    assert_eq!(status(&driver), 1);

    driver.chain(0, &[(HEADER, 16, false)]);
    driver.offer(0);
    transport.set(0x50, 0);
    assert_eq!(transport.get(0x70), 79);
    assert_eq!(transport.fault(), Some(QueueError::NoRoomForStatus));
    assert_eq!(driver.used(), None);
    assert!(disk.get().submitted.is_empty());
}

#[test]
fn a_head_offered_again_while_in_flight_is_one_more_request() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    assert_eq!(disk.get().submitted.len(), 2);
    for tag in [1, 0] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    let twice = [Some((0, 513)), Some((0, 513)), None];
    assert_eq!([(); 3].map(|()| driver.used()), twice);
}

/// Offers `count` reads of one sector each with heads 0, 3, 6 and so on, and kicks once.
fn offer_reads(driver: &mut Driver<'_>, transport: &mut MmioTransport<'_, '_>, count: u16) {
    for request in 0..count {
        let at = BUFFERS + u64::from(request) * 0x800;
        header(driver, at, IN, request.into());
        driver.put(at + 0x20, &[0xFF]);
        let buffers = [(at, 16, false), (at + 0x200, 512, true), (at + 0x20, 1, true)];
        driver.chain(request * 3, &buffers);
        driver.offer(request * 3);
    }
    transport.set(0x50, 0);
}

#[test]
fn requests_complete_in_the_disks_order_with_one_kick_and_one_interrupt() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    offer_reads(&mut driver, &mut transport, 5);
    assert_eq!(disk.get().submitted.len(), 5);
    assert_eq!(disk.get().kicks, 1);
    // The disk pops from the end. Tags are given in order; heads are three times the tags.
    for tag in [1, 4, 0, 2, 3] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    let heads = [9, 6, 0, 12, 3].map(|head| Some((head, 513)));
    assert_eq!([(); 5].map(|()| driver.used()), heads);
    assert!(transport.take_interrupt());
    assert!(!transport.take_interrupt());
    assert_eq!(transport.get(0x60), 1);
}

#[test]
fn a_completion_of_what_is_not_in_flight_is_nothing() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    disk.get().held += 4;
    for tag in [0, 0, 1, 64, 0xFFFF] {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert_eq!([driver.used(), driver.used()], [Some((0, 513)), None]);
    // The slot is free once: two more requests have different ones.
    offer_reads(&mut driver, &mut transport, 2);
    let tags: Vec<_> = disk.get().submitted.iter().map(|it| it.0).collect();
    assert_eq!(tags, [Tag(0), Tag(0), Tag(1)]);
}

#[test]
fn what_is_more_than_can_be_in_flight_waits_in_the_ring() {
    let disk = Disk::new();
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 128);
    let mut backend = disk.clone();
    let mut device = Block::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.bring_up(WITH_FLUSH | Features::INDIRECT_DESC, &driver);
    header(&driver, HEADER, IN, 0);
    let table = BUFFERS + 0x100;
    driver.descriptor_at(table, 0, (HEADER, 16, 1, 1));
    driver.descriptor_at(table, 1, (DATA, 512, 3, 2));
    driver.descriptor_at(table, 2, (STATUS, 1, 2, 0));
    for head in 0..100 {
        driver.descriptor(head, (table, 48, 4, 0));
        driver.offer(head);
    }
    transport.set(0x50, 0);
    assert_eq!(disk.get().submitted.len(), usize::from(IN_FLIGHT));
    for tag in 0..40 {
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert_eq!(disk.get().submitted.len(), 100);
    for tag in 0..IN_FLIGHT {
        disk.finish(tag, BlockStatus::Ok);
    }
    disk.get().held = usize::from(IN_FLIGHT);
    transport.poll(NOW);
    let heads: std::collections::HashSet<_> =
        core::iter::from_fn(|| driver.used()).map(|it| it.0).collect();
    assert_eq!(heads.len(), 100);
}

#[test]
fn a_busy_disk_leaves_requests_in_the_ring_for_later() {
    let disk = Disk::new();
    disk.get().room = 2;
    guest!(disk, WITH_FLUSH, driver, transport);
    offer_reads(&mut driver, &mut transport, 5);
    let mut finished = vec![];
    for round in 1..=3 {
        assert!(transport.has_work_in_flight());
        assert_eq!(disk.get().kicks, round);
        let held: Vec<u16> = disk.get().submitted.drain(..).map(|it| it.0.0).collect();
        for tag in held.iter().rev() {
            disk.finish(*tag, BlockStatus::Ok);
        }
        transport.poll(NOW);
        while let Some((head, used)) = driver.used() {
            assert_eq!(used, 513);
            finished.push(head);
        }
    }
    assert_eq!(finished, [0, 3, 6, 9, 12]);
    assert!(!transport.has_work_in_flight());
}

#[test]
fn a_device_that_broke_with_requests_left_in_the_ring_has_no_work() {
    let disk = Disk::new();
    disk.get().room = 0;
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    assert!(transport.has_work_in_flight());
    driver.chain(0, &[(RAM - 1, 16, false)]);
    transport.poll(NOW);
    assert_eq!(transport.get(0x70), 79);
    assert!(!transport.has_work_in_flight());
}

#[test]
fn without_flush_writes_are_durable_before_they_complete() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert_eq!(disk.get().submitted[1], (Tag(0), BlockOp::Flush, 0, vec![]));
    assert_eq!(disk.get().kicks, 2);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));

    // No room for the flush: later. And its failure is the write's.
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    disk.get().refuse = Some(SubmitError::Busy);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    transport.poll(NOW);
    assert!(transport.has_work_in_flight());
    assert_eq!(disk.get().submitted.len(), 3);
    disk.get().refuse = None;
    transport.poll(NOW);
    disk.finish(0, BlockStatus::IoError);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 1));

    // A failed write is not flushed; a refused flush fails the write.
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    disk.finish(0, BlockStatus::IoError);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 1));
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    disk.get().refuse = Some(SubmitError::Failed);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 1));
    assert!(!transport.has_work_in_flight());
}

#[test]
fn a_reset_waits_for_the_disk_and_forgets_its_answers() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    offer_reads(&mut driver, &mut transport, 2);
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
    disk.finish(1, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
    disk.finish(0, BlockStatus::Ok);
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Done);
    assert_eq!(driver.used_idx(), 0);
    let [status] = driver.get(BUFFERS + 0x20);
    assert_eq!(status, 0xFF);

    // With other features, and from the start of the ring.
    let mut driver = Driver::new(driver.memory.clone(), 8);
    transport.bring_up(V1 | Features::EVENT_IDX | Features::INDIRECT_DESC, &driver);
    offer_reads(&mut driver, &mut transport, 2);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((0, 513)));
}

#[test]
fn a_reset_forgets_writes_that_wait_for_their_flush() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    disk.get().refuse = Some(SubmitError::Busy);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert!(transport.has_work_in_flight());
    transport.set(0x70, 0);
    assert!(!transport.has_work_in_flight());
    disk.get().refuse = None;
    let mut driver = Driver::new(driver.memory.clone(), 16);
    transport.bring_up(V1, &driver);
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    assert_eq!(transport.get(0x70), 15);
    assert_eq!(disk.get().submitted.len(), 2);
}

#[test]
fn a_bad_chain_stops_the_device_and_a_reset_after_the_disk_is_done_brings_it_back() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    driver.chain(5, &[(RAM - 16, 16, false), (STATUS, 1, true)]);
    driver.offer(5);
    transport.set(0x50, 0);
    assert_eq!(transport.get(0x70), 79);
    assert_eq!(transport.get(0x60), 2);
    assert!(transport.take_interrupt());
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(transport.get(0x70), 0);
    assert_eq!(status(&driver), 0xFF);
    let mut driver = Driver::new(driver.memory.clone(), 16);
    transport.bring_up(WITH_FLUSH, &driver);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 513)), 0));
}

#[test]
fn a_completion_nobody_waits_for_is_ignored() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    for tag in [0, 255, 256, u16::MAX] {
        disk.get().held += 1;
        disk.finish(tag, BlockStatus::Ok);
    }
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn data_written_is_read_back_in_any_completion_order() {
    for order in [CompletionOrder::InOrder, CompletionOrder::Reversed] {
        let (ram, disk) = (HostRam::new(RAM_SIZE), HostRam::new(64 * SECTOR_SIZE as usize));
        let mut driver = Driver::new(guest_memory(&ram), 16);
        let mut backend = RamDisk::new(disk.slice(Pa::new(0)), [1; ID_SIZE]).with_order(order);
        let mut device = Block::new(&mut backend);
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        transport.bring_up(V1, &driver);
        for round in 0..40_u8 {
            let sector = u64::from(round);
            driver.put(DATA, &[round | 0x80; 512]);
            request(&mut driver, &mut transport, (OUT, sector), &[(DATA, 512, false)]);
            // Once for the write, once for the flush behind it.
            transport.poll(NOW);
            transport.poll(NOW);
            assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));
            driver.put(DATA, &[0; 512]);
            request(&mut driver, &mut transport, (IN, sector), &[(DATA, 512, true)]);
            transport.poll(NOW);
            assert_eq!((driver.used(), status(&driver)), (Some((0, 513)), 0));
            assert_eq!(driver.get::<512>(DATA), [round | 0x80; 512]);
        }
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 256,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Whatever a chain holds, what reaches the disk is in range, and every chain that can be
        /// answered is.
        #[test]
        #[cfg_attr(miri, ignore = "slow")]
        fn what_reaches_the_disk_is_in_range(
            kind in prop_oneof![Just(IN), Just(OUT), Just(FLUSH_REQUEST), Just(GET_ID), any::<u32>()],
            sector in prop_oneof![0..80_u64, any::<u64>()],
            buffers in proptest::collection::vec((0..1100_u32, any::<bool>()), 0..6),
        ) {
            let disk = Disk::new();
            guest!(disk, WITH_FLUSH, driver, transport);
            header(&driver, HEADER, kind, sector);
            let mut chain = vec![(HEADER, 16, false)];
            let mut sorted = buffers.clone();
            sorted.sort_by_key(|(_, writable)| *writable);
            chain.extend(sorted.iter().map(|(len, writable)| (DATA, *len, *writable)));
            let room: u32 = sorted.iter().filter(|it| it.1).map(|it| it.0).sum();
            driver.chain(0, &chain);
            driver.offer(0);
            transport.set(0x50, 0);
            if let Some((_, op, sector, lengths)) = disk.get().submitted.first() {
                let len: usize = lengths.iter().sum();
                prop_assert!(lengths.iter().all(|len| *len > 0));
                prop_assert!(len.is_multiple_of(512) && (len > 0) == (*op != BlockOp::Flush));
                prop_assert!(*sector <= 64 && *sector as usize + len / 512 <= 64);
            } else if room == 0 {
                prop_assert_eq!(transport.get(0x70), 79);
            } else {
                let (head, used) = driver.used().unwrap();
                prop_assert_eq!(head, 0);
                prop_assert!(used <= room);
            }
        }
    }
}

#[test]
fn requests_bytes_errors_and_latencies_are_counted() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    let soon = |ticks: u64| NOW.after(Ticks(ticks));
    for (what, data, result, ticks) in [
        (IN, (DATA, 1024, true), BlockStatus::Ok, 7),
        (OUT, (DATA, 512, false), BlockStatus::Ok, 30),
        (IN, (DATA, 512, true), BlockStatus::IoError, 5),
    ] {
        request(&mut driver, &mut transport, (what, 0), &[data]);
        disk.finish(0, result);
        transport.poll(soon(ticks));
        assert!(transport.take_interrupt());
    }
    // And one that never gets to the disk.
    request(&mut driver, &mut transport, (99, 0), &[]);
    assert!(transport.take_interrupt());
    assert!(!transport.take_interrupt());

    let info = crate::monitor::DeviceInfo::of(&transport);
    assert_eq!((info.kind_name(), info.state_name()), ("block", "live"));
    assert_eq!((info.requests, info.errors), (4, 2));
    assert_eq!((info.bytes_in, info.bytes_out), (1536, 512));
    assert_eq!((info.latency, info.latency_max), (42, 30));
    assert_eq!((info.kicks, info.interrupts), (4, 4));
}
