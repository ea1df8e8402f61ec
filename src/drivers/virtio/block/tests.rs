use proptest::prelude::*;

use super::*;
use crate::backend::block::{DiscardLimits, ID_SIZE, SECTOR_SIZE, Topology, WriteZeroesLimits};
use crate::drivers::testing::{CountedDelay, FakeRam, dump, fill};
use crate::drivers::virtio::fake::{
    F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_EVENT_IDX, F_FLUSH, F_INDIRECT, F_RO, F_SEG_MAX,
    F_SIZE_MAX, F_TOPOLOGY, F_VERSION_1, F_WRITE_ZEROES, FakeDisk, IDENTITY, SECTORS, USUAL,
    contents,
};

type Disk<'m, 'd> = VirtioBlk<'m, &'d FakeDisk<'m>>;

const TIMEOUT: Ticks = Ticks(1000);
const NOW: Ticks = Ticks(5);

fn ram() -> FakeRam {
    FakeRam::new(layout::DMA_BYTES + 64 * 4096)
}

fn open<'m, 'd>(ram: &'m FakeRam, device: &'d FakeDisk<'m>) -> Result<Disk<'m, 'd>, InitError> {
    let dma = ram.allocate(layout::DMA_BYTES);
    VirtioBlk::new(device, dma, TIMEOUT, &mut CountedDelay::default())
}

fn request<'a, 'm>(
    tag: u16,
    op: BlockOp,
    sector: u64,
    segments: &'a [SharedSlice<'m>],
) -> BlockRequest<'a, 'm> {
    BlockRequest { tag: Tag(tag), op, sector, segments }
}

/// Submits a one-sector read without starting it.
fn read<'m>(disk: &mut Disk<'m, '_>, tag: u16, buffer: SharedSlice<'m>) {
    let segments = [buffer.subslice(0, 512).unwrap()];
    disk.submit(request(tag, BlockOp::Read, u64::from(tag) % SECTORS, &segments), NOW).unwrap();
}

const OK: BlockStatus = BlockStatus::Ok;
const IO_ERROR: BlockStatus = BlockStatus::IoError;

#[test]
fn a_disk_is_described_by_its_configuration() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let disk = open(&ram, &device).unwrap();
    let info = BlockInfo {
        flush: true,
        max_segments: 254,
        max_segment_bytes: 1 << 30,
        depth: 64,
        id: *IDENTITY,
        ..BlockInfo::new(SECTORS)
    };
    assert_eq!(disk.info(), info);
    assert_eq!(disk.in_flight(), 0);
    assert_eq!((device.get().num, device.get().status), (256, 15));
}

#[test]
fn fields_without_their_feature_are_not_believed() {
    let ram = ram();
    let device = FakeDisk::new(&ram, F_VERSION_1);
    device.set().config = [0xdead; 15];
    device.set().config[..2].copy_from_slice(&[64, 1]);
    let info = open(&ram, &device).unwrap().info();
    assert_eq!((info.topology, info.discard, info.write_zeroes), (Topology::FLAT, None, None));
    assert_eq!((info.sectors, info.block_size), (1 << 32 | 64, 512));
    assert_eq!((info.max_segments, info.flush, info.read_only), (1, false, false));
}

#[test]
fn an_impossible_block_size_is_refused() {
    for block_size in [0, 256, 513, 4095, 1 << 31] {
        let ram = ram();
        let device = FakeDisk::new(&ram, F_VERSION_1 | F_BLK_SIZE);
        device.set().config[5] = block_size;
        assert_eq!(open(&ram, &device).err(), Some(InitError::BadConfiguration), "{block_size}");
        assert_eq!(device.get().status & 0x80, 0x80, "given up");
    }
}

#[test]
fn memory_too_small_or_crooked_is_refused_before_the_device_is_touched() {
    let ram = FakeRam::new(layout::DMA_BYTES * 2);
    let device = FakeDisk::new(&ram, USUAL);
    let memory = ram.allocate(layout::DMA_BYTES * 2);
    for (offset, bytes) in [(0, layout::DMA_BYTES - 1), (64, layout::DMA_BYTES)] {
        let dma = memory.subslice(offset, bytes).unwrap();
        let error = VirtioBlk::new(&device, dma, TIMEOUT, &mut CountedDelay::default()).err();
        assert_eq!(error, Some(InitError::DmaMemory));
    }
    assert_eq!(device.get().register_reads, 0);
}

#[test]
#[cfg_attr(miri, ignore = "100,000 looks")]
fn a_device_that_does_not_answer_its_first_request_is_reset_and_refused_in_time() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    device.set().dead = true;
    let mut delay = CountedDelay::default();
    let dma = ram.allocate(layout::DMA_BYTES);
    let error = VirtioBlk::new(&device, dma, TIMEOUT, &mut delay).err();
    assert_eq!(error, Some(InitError::NoAnswer));
    assert_eq!(delay.0, 1_000_000_000);
    assert_eq!((device.get().resets, device.get().status & 4), (2, 0));
}

#[test]
fn a_device_without_identity_has_a_zero_one() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    device.set().status_byte = Some(S_UNSUPP);
    assert_eq!(open(&ram, &device).unwrap().info().id, [0; ID_SIZE]);
}

#[test]
fn data_goes_to_the_disk_and_comes_back_where_it_belongs() {
    for features in [USUAL, USUAL & !F_INDIRECT, USUAL & !F_EVENT_IDX, F_VERSION_1 | F_SEG_MAX] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        // Two pieces that are no neighbours and not of whole sectors.
        let (a, b) = (ram.allocate(4096), ram.allocate(4096));
        let pieces = [a.subslice(100, 700).unwrap(), b.subslice(1, 324).unwrap()];
        disk.submit(request(1, BlockOp::Read, 9, &pieces), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
        assert_eq!([dump(pieces[0]), dump(pieces[1])].concat(), contents(9, 2));
        assert_eq!(a.load_u8(99), Some(0));
        assert_eq!(a.load_u8(800), Some(0));

        fill(pieces[0], &[0xaa; 700]);
        fill(pieces[1], &[0xbb; 324]);
        disk.submit(request(2, BlockOp::Write, 3, &pieces), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(2), OK)));
        let written = device.get().disk[3 * 512..5 * 512].to_vec();
        assert_eq!(written, [vec![0xaa; 700], vec![0xbb; 324]].concat());
        assert_eq!(disk.poll(NOW), None);
        assert_eq!(disk.in_flight(), 0);
    }
}

#[test]
fn nothing_happens_before_the_kick_and_a_batch_takes_one_doorbell() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    let buffer = ram.allocate(512);
    let before = device.get().notifies;
    for tag in 0..10 {
        read(&mut disk, tag, buffer);
    }
    assert_eq!((disk.poll(NOW), device.get().notifies), (None, before));
    assert_eq!(device.available().load_u16(2), Some(1), "only the identity request so far");
    disk.kick();
    assert_eq!(device.get().notifies, before + 1);
    for tag in 0..10 {
        assert_eq!(disk.poll(NOW), Some((Tag(tag), OK)));
    }
    assert_eq!(disk.poll(NOW), None);
    disk.kick();
    assert_eq!(device.get().notifies, before + 1, "nothing new, no doorbell");
}

#[test]
fn a_request_costs_no_register_access_but_the_doorbell() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    let reads = device.get().register_reads;
    read(&mut disk, 1, ram.allocate(512));
    disk.kick();
    assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
    assert_eq!(device.get().register_reads, reads);
}

#[test]
fn a_device_that_looks_by_itself_is_not_rung() {
    for features in [USUAL, USUAL & !F_EVENT_IDX] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        device.set().needs_no_doorbell = true;
        device.collect();
        let notifies = device.get().notifies;
        read(&mut disk, 1, ram.allocate(512));
        disk.kick();
        assert_eq!(device.get().notifies, notifies);
        device.collect();
        device.complete_all();
        assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
    }
}

#[test]
fn neighbours_in_physical_memory_share_a_descriptor() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    let memory = ram.allocate(3 * 4096);
    let page = |n: usize| memory.subslice(n * 4096, 4096).unwrap();
    let empty = memory.subslice(0, 0).unwrap();
    for (segments, descriptors) in [
        (vec![page(0), page(1), page(2)], 1),
        (vec![page(0), page(2)], 2),
        (vec![page(2), page(1), page(0)], 3),
        (vec![page(0), page(0)], 2),
        (vec![empty, page(1), empty, page(2), empty], 1),
    ] {
        disk.submit(request(7, BlockOp::Read, 0, &segments), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(7), OK)));
        assert_eq!(device.get().log.last(), Some(&(0, 0, descriptors)));
    }
}

#[test]
fn segments_longer_than_size_max_are_divided() {
    for (longest, descriptors) in [(1000, 5), (1024, 4), (4096, 1), (u32::MAX, 1)] {
        let ram = ram();
        let device = FakeDisk::new(&ram, USUAL | F_SIZE_MAX);
        device.set().config[2] = longest;
        let mut disk = open(&ram, &device).unwrap();
        let memory = ram.allocate(4096);
        disk.submit(request(1, BlockOp::Read, 4, &[memory]), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
        assert_eq!(device.get().log.last(), Some(&(0, 4, descriptors)));
        assert_eq!(dump(memory), contents(4, 8));
    }
}

#[test]
fn segments_of_no_bytes_are_an_impossible_bound() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL | F_SIZE_MAX);
    device.set().config[2] = 0;
    assert_eq!(open(&ram, &device).err(), Some(InitError::BadConfiguration));
}

#[test]
fn the_bound_of_the_device_on_segments_is_kept() {
    for (bound, most) in [(0, 1), (1, 1), (5, 5)] {
        let ram = ram();
        let device = FakeDisk::new(&ram, USUAL);
        device.set().config[3] = bound;
        let mut disk = open(&ram, &device).unwrap();
        assert_eq!(disk.info().max_segments, most);
        let memory = ram.allocate(16 * 1024);
        let segments: Vec<_> =
            (0..=usize::from(most)).map(|n| memory.subslice(n * 1024, 512).unwrap()).collect();
        let error = disk.submit(request(1, BlockOp::Read, 0, &segments), NOW);
        assert_eq!(error, Err(SubmitError::Unsupported));
        disk.submit(request(2, BlockOp::Read, 0, &segments[1..]), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(2), OK)));
    }
}

#[test]
fn too_many_segments_are_refused_without_effect_and_the_most_are_taken() {
    for (features, most) in [(USUAL, 254), (USUAL & !F_INDIRECT, 30)] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        assert_eq!(disk.info().max_segments, most);
        let memory = ram.allocate(1024 * 256);
        // Every other sector, so that none are neighbours.
        let segments: Vec<_> =
            (0..=usize::from(most)).map(|n| memory.subslice(n * 1024, 512).unwrap()).collect();
        let error = disk.submit(request(1, BlockOp::Read, 0, &segments), NOW);
        assert_eq!(error, Err(SubmitError::Unsupported));
        assert_eq!(disk.in_flight(), 0);
        disk.submit(request(2, BlockOp::Read, 0, &segments[1..]), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(2), OK)));
        assert_eq!(device.get().log.last(), Some(&(0, 0, usize::from(most))));
    }
}

#[test]
fn all_slots_are_used_and_one_more_is_busy() {
    for (features, depth) in [(USUAL, 64), (USUAL & !F_INDIRECT, 8)] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        device.set().prompt = false;
        assert_eq!(disk.info().depth, depth);
        let buffer = ram.allocate(512);
        for tag in 0..depth {
            read(&mut disk, tag, buffer);
        }
        let segments = [buffer];
        let extra = request(99, BlockOp::Read, 0, &segments);
        assert_eq!(disk.submit(extra, NOW), Err(SubmitError::Busy));
        assert_eq!(disk.submit(request(9, BlockOp::Flush, 0, &[]), NOW), Err(SubmitError::Busy));
        disk.kick();
        assert_eq!(disk.submit(extra, NOW), Err(SubmitError::Busy));
        assert_eq!(disk.in_flight(), usize::from(depth));
        device.complete(3);
        assert_eq!(disk.submit(extra, NOW), Err(SubmitError::Busy), "not polled yet");
        assert_eq!(disk.poll(NOW), Some((Tag(3), OK)));
        assert_eq!(disk.submit(extra, NOW), Ok(()));
    }
}

#[test]
fn completions_come_in_the_order_of_the_device() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    device.set().prompt = false;
    for tag in 0..4 {
        read(&mut disk, tag, ram.allocate(512));
    }
    disk.kick();
    for (n, tag) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        assert_eq!(disk.poll(NOW), None);
        device.complete(n);
        assert_eq!(disk.poll(NOW), Some((Tag(tag), OK)));
    }
}

#[test]
fn a_flush_reaches_a_device_that_has_a_cache() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    device.set().prompt = false;
    disk.submit(request(4, BlockOp::Flush, 0, &[]), NOW).unwrap();
    disk.kick();
    assert_eq!(disk.poll(NOW), None, "not before the device has done it");
    assert_eq!(device.get().log.last(), Some(&(4, 0, 0)));
    device.complete_all();
    assert_eq!(disk.poll(NOW), Some((Tag(4), OK)));
}

#[test]
fn a_flush_of_a_device_that_writes_through_ends_at_once() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL & !F_FLUSH);
    let mut disk = open(&ram, &device).unwrap();
    let requests = device.get().log.len();
    disk.submit(request(4, BlockOp::Flush, 0, &[]), NOW).unwrap();
    disk.kick();
    assert_eq!(disk.in_flight(), 1);
    assert_eq!(disk.poll(NOW), Some((Tag(4), OK)));
    assert_eq!((disk.poll(NOW), disk.in_flight()), (None, 0));
    assert_eq!(device.get().log.len(), requests);
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL | F_RO);
    let mut disk = open(&ram, &device).unwrap();
    assert!(disk.info().read_only);
    let segments = [ram.allocate(512)];
    let error = disk.submit(request(1, BlockOp::Write, 0, &segments), NOW);
    assert_eq!(error, Err(SubmitError::Unsupported));
    disk.submit(request(1, BlockOp::Read, 0, &segments), NOW).unwrap();
}

#[test]
fn status_bytes_are_told_apart_and_none_is_an_error() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    for (byte, status) in
        [(1, IO_ERROR), (2, BlockStatus::Unsupported), (3, IO_ERROR), (0xff, IO_ERROR), (0, OK)]
    {
        device.set().status_byte = Some(byte);
        read(&mut disk, 1, ram.at(FakeRam::PA + layout::DMA_BYTES as u64, 512));
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(1), status)), "{byte}");
    }
    // Finished, without a status byte ever written, in a slot whose last request was fine.
    device.set().status_byte = None;
    device.set().prompt = false;
    read(&mut disk, 1, ram.at(FakeRam::PA + layout::DMA_BYTES as u64, 512));
    disk.kick();
    let head = device.get().requests[0].head;
    device.push_used(u32::from(head), 0);
    assert_eq!(disk.poll(NOW), Some((Tag(1), IO_ERROR)));
}

#[test]
fn requests_are_served_past_the_wrap_of_the_ring_indices() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    device.set().num_max = 4;
    let mut disk = open(&ram, &device).unwrap();
    let buffer = ram.allocate(512);
    let rounds = if cfg!(miri) { 20 } else { 30_000 };
    for round in 0..rounds {
        for tag in 0..3 {
            read(&mut disk, tag, buffer);
        }
        disk.kick();
        for tag in 0..3 {
            assert_eq!(disk.poll(NOW), Some((Tag(tag), OK)), "round {round}");
        }
        assert_eq!(disk.poll(NOW), None);
    }
    assert_eq!(disk.resets(), 0);
}

#[test]
fn interrupts_are_off_until_asked_for_and_then_one_comes_for_the_next_completion() {
    for features in [USUAL, USUAL & !F_EVENT_IDX] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        let buffer = ram.allocate(512);
        read(&mut disk, 0, buffer);
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(0), OK)));
        assert_eq!(device.get().interrupts, 0);

        disk.set_interrupts(true);
        for round in 1..4 {
            read(&mut disk, 0, buffer);
            disk.kick();
            assert_eq!(device.get().interrupts, round);
            assert_eq!(disk.acknowledge_interrupt(), InterruptCauses::USED_BUFFER);
            assert_eq!(disk.poll(NOW), Some((Tag(0), OK)));
            // Nothing in flight: polling again is not needed to be interrupted next time.
        }
        disk.set_interrupts(false);
        read(&mut disk, 0, buffer);
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(0), OK)));
        assert_eq!(device.get().interrupts, 3);
    }
}

#[test]
fn a_batch_of_completions_interrupts_once() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    disk.set_interrupts(true);
    for tag in 0..8 {
        read(&mut disk, tag, ram.allocate(512));
    }
    disk.kick();
    assert_eq!(device.get().interrupts, 1);
    while disk.poll(NOW).is_some() {}
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn a_request_not_answered_in_time_fails_alone_after_a_reset_and_the_disk_goes_on() {
    for features in [USUAL, USUAL & !F_INDIRECT & !F_EVENT_IDX] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        let buffer = ram.allocate(512);
        device.set().prompt = false;
        read(&mut disk, 1, buffer);
        disk.kick();
        disk.submit(request(2, BlockOp::Flush, 0, &[]), Ticks(500)).unwrap();
        disk.kick();
        // Answered in time; the others are not.
        read(&mut disk, 3, buffer);
        disk.kick();
        device.complete(2);
        assert_eq!(disk.poll(Ticks(600)), Some((Tag(3), OK)));
        assert_eq!(disk.poll(Ticks(1004)), None);
        assert_eq!(device.get().resets, 1);

        assert_eq!(disk.poll(Ticks(1005)), Some((Tag(1), IO_ERROR)));
        assert_eq!(device.get().resets, 2);
        // Nothing of it can be written any more; the other was given again, with its time anew.
        assert_eq!(device.get().requests.iter().map(|it| it.kind).collect::<Vec<_>>(), [4]);
        assert_eq!(disk.poll(Ticks(2004)), None);
        device.complete(0);
        assert_eq!(disk.poll(Ticks(2004)), Some((Tag(2), OK)));
        assert_eq!(disk.poll(Ticks(2004)), None);
        assert_eq!((disk.in_flight(), disk.resets(), disk.has_failed()), (0, 1, false));

        device.set().prompt = true;
        read(&mut disk, 4, buffer);
        disk.kick();
        assert_eq!(disk.poll(Ticks(1006)), Some((Tag(4), OK)));
        assert_eq!(dump(buffer), contents(4, 1));
    }
}

#[test]
fn an_answer_found_late_is_still_an_answer() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    read(&mut disk, 1, ram.allocate(512));
    disk.kick();
    assert_eq!(disk.poll(Ticks(1 << 40)), Some((Tag(1), OK)));
}

#[test]
fn a_later_request_does_not_lend_its_time_to_an_earlier_one() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    device.set().prompt = false;
    let segments = [ram.allocate(512)];
    for (tag, now) in [(0, 0), (1, 100), (2, 900)] {
        disk.submit(request(tag, BlockOp::Read, 0, &segments), Ticks(now)).unwrap();
        disk.kick();
    }
    device.complete(0);
    assert_eq!(disk.poll(Ticks(950)), Some((Tag(0), OK)));
    assert_eq!(disk.poll(Ticks(1050)), None);
    assert_eq!(disk.poll(Ticks(1099)), None);
    assert_eq!(disk.poll(Ticks(1100)), Some((Tag(1), IO_ERROR)));
}

#[test]
fn a_slow_reset_keeps_requests_until_it_is_complete() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    disk.set_interrupts(true);
    device.set().dead = true;
    read(&mut disk, 1, ram.allocate(512));
    disk.kick();
    // Submitted but not kicked when it happens: it cannot be left behind.
    read(&mut disk, 2, ram.allocate(512));
    device.set().slow_reset = 3;
    for now in 1005..1008 {
        assert_eq!(disk.poll(Ticks(now)), None);
        let segments = [ram.at(FakeRam::PA + layout::DMA_BYTES as u64, 512)];
        let busy = disk.submit(request(3, BlockOp::Read, 0, &segments), Ticks(now));
        assert_eq!(busy, Err(SubmitError::Busy));
        disk.kick();
        assert_eq!(disk.in_flight(), 2);
    }
    assert_eq!(disk.poll(Ticks(1008)), Some((Tag(1), IO_ERROR)));
    assert_eq!(disk.poll(Ticks(1008)), Some((Tag(2), IO_ERROR)));
    device.set().dead = false;
    read(&mut disk, 4, ram.allocate(512));
    disk.kick();
    assert_eq!(disk.poll(Ticks(1009)), Some((Tag(4), OK)));
    assert_eq!(device.get().interrupts, 1, "interrupts are still on");
}

#[test]
fn a_device_that_does_not_reset_fails_for_good_and_its_dma_is_not_trusted() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    device.set().dead = true;
    device.set().slow_reset = u32::MAX;
    read(&mut disk, 1, ram.allocate(512));
    disk.kick();
    assert_eq!(disk.poll(Ticks(1005)), None);
    assert_eq!(disk.poll(Ticks(2004)), None);
    assert_eq!(disk.poll(Ticks(2005)), Some((Tag(1), IO_ERROR)));
    assert_eq!(disk.poll(Ticks(2006)), None);
    assert!(disk.has_failed() && !disk.dma_stopped());
    let segments = [ram.allocate(512)];
    let error = disk.submit(request(1, BlockOp::Read, 0, &segments), Ticks(2007));
    assert_eq!(error, Err(SubmitError::Failed));
    assert_eq!(disk.in_flight(), 0);
    device.set().slow_reset = 0;
    assert!(disk.dma_stopped(), "at last");
}

#[test]
fn a_device_that_comes_back_different_fails_for_good_with_its_dma_stopped() {
    let changes: [fn(&FakeDisk<'_>); 4] = [
        |device| device.set().offered &= !F_INDIRECT,
        |device| device.set().num_max = 128,
        |device| device.set().num_max = 0,
        |device| device.set().refuses_features = true,
    ];
    for change in changes {
        let ram = ram();
        let device = FakeDisk::new(&ram, USUAL);
        let mut disk = open(&ram, &device).unwrap();
        device.set().dead = true;
        read(&mut disk, 1, ram.allocate(512));
        disk.kick();
        change(&device);
        assert_eq!(disk.poll(Ticks(1005)), Some((Tag(1), IO_ERROR)));
        assert!(disk.has_failed() && disk.dma_stopped());
        assert_eq!(device.get().status & 0x84, 0x80);
    }
}

/// What a device may put into the used ring with requests 0 and 1 at it, and 2 not published.
#[test]
fn answers_to_what_was_not_asked_get_the_device_reset() {
    let lies: [fn(&FakeDisk<'_>); 7] = [
        |device| device.push_used(7, 0),
        |device| device.push_used(2, 0),
        |device| device.push_used(64, 0),
        |device| device.push_used(1 << 16, 0),
        |device| device.push_used(u32::MAX, 0),
        |device| device.set_used_index(0x8000),
        |device| device.set_used_index(0),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let ram = ram();
        let device = FakeDisk::new(&ram, USUAL);
        let mut disk = open(&ram, &device).unwrap();
        device.set().prompt = false;
        read(&mut disk, 10, ram.allocate(512));
        read(&mut disk, 11, ram.allocate(512));
        disk.kick();
        read(&mut disk, 12, ram.allocate(512));
        lie(&device);
        assert_eq!(disk.poll(NOW), None, "lie {n}");
        assert_eq!((device.get().resets, device.get().requests.len()), (2, 3));
        device.complete_all();
        for tag in 10..13 {
            assert_eq!(disk.poll(NOW), Some((Tag(tag), OK)), "lie {n}");
        }
        device.set().prompt = true;
        let buffer = ram.allocate(512);
        read(&mut disk, 13, buffer);
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(13), OK)), "lie {n}");
        assert_eq!(dump(buffer), contents(13, 1));
    }
}

#[test]
fn a_completion_given_twice_counts_once() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    device.set().prompt = false;
    read(&mut disk, 1, ram.allocate(512));
    read(&mut disk, 2, ram.allocate(512));
    disk.kick();
    let head = device.get().requests[0].head;
    device.complete(0);
    device.push_used(u32::from(head), 0);
    assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
    assert_eq!(disk.poll(NOW), None);
    assert_eq!((disk.in_flight(), disk.resets()), (1, 1));
    device.complete(0);
    assert_eq!(disk.poll(NOW), Some((Tag(2), OK)));
    assert_eq!(disk.poll(NOW), None);
}

#[test]
fn an_id_between_two_heads_of_a_direct_ring_is_refused() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL & !F_INDIRECT);
    let mut disk = open(&ram, &device).unwrap();
    device.set().prompt = false;
    read(&mut disk, 1, ram.allocate(512));
    disk.kick();
    device.push_used(1, 0);
    assert_eq!(disk.poll(NOW), None);
    assert_eq!(disk.resets(), 1);
    device.complete(0);
    assert_eq!(disk.poll(NOW), Some((Tag(1), OK)));
}

/// Both requests for ranges, on either kind of ring.
const RANGES: u64 = USUAL | F_DISCARD | F_WRITE_ZEROES;

#[test]
fn limits_of_discards_and_zeroes_are_read_and_judged() {
    let ram = ram();
    let device = FakeDisk::new(&ram, RANGES | F_TOPOLOGY);
    let info = open(&ram, &device).unwrap().info();
    let topology = Topology {
        physical_block_exponent: 3,
        alignment_offset: 2,
        min_io_blocks: 4,
        opt_io_blocks: 64,
    };
    assert_eq!(info.topology, topology);
    assert_eq!(info.discard, Some(DiscardLimits { max_sectors: 96, alignment: 8 }));
    assert_eq!(info.write_zeroes, Some(WriteZeroesLimits { max_sectors: 48, may_unmap: true }));

    // Whole blocks, no more than end in time, and nothing where there is nothing to be had.
    for (at, value, discards, zeroes) in [
        (5, 8192, Some(96), Some(48)),
        (5, 32768, Some(64), None),
        (9, 0, None, Some(48)),
        (10, 0, None, Some(48)),
        (12, u32::MAX, Some(96), Some(1 << 17)),
        (13, 0, Some(96), None),
    ] {
        let ram = self::ram();
        let device = FakeDisk::new(&ram, RANGES);
        device.set().config[at] = value;
        let info = open(&ram, &device).unwrap().info();
        let most =
            (info.discard.map(|it| it.max_sectors), info.write_zeroes.map(|it| it.max_sectors));
        assert_eq!(most, (discards, zeroes), "{at} {value}");
    }
    let ram = self::ram();
    let device = FakeDisk::new(&ram, RANGES | F_TOPOLOGY);
    device.set().config[6] = 0xff;
    device.set().config[11] = 0;
    device.set().config[14] = 0;
    let info = open(&ram, &device).unwrap().info();
    assert_eq!(info.topology, Topology::FLAT);
    assert_eq!(info.discard.map(|it| it.alignment), Some(1));
    assert_eq!(info.write_zeroes.map(|it| it.may_unmap), Some(false));
}

#[test]
fn ranges_reach_the_device_whatever_the_ring() {
    for features in [RANGES, RANGES & !F_INDIRECT, RANGES & !F_EVENT_IDX] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        for (op, kind, sent) in [
            (BlockOp::Discard { sectors: 3 }, 11, (20, 3, 0)),
            (BlockOp::WriteZeroes { sectors: 4, unmap: false }, 13, (20, 4, 0)),
            (BlockOp::WriteZeroes { sectors: 5, unmap: true }, 13, (20, 5, 1)),
        ] {
            disk.submit(request(5, op, 20, &[]), NOW).unwrap();
            disk.kick();
            assert_eq!(disk.poll(NOW), Some((Tag(5), OK)));
            assert_eq!(device.get().log.last(), Some(&(kind, 0, 1)));
            assert_eq!(device.get().ranges.last(), Some(&sent));
        }
        // And a read of as many segments as can be uses the same memory for its descriptors.
        let memory = ram.allocate(16 * 1024);
        let segments: Vec<_> = (0..16).map(|n| memory.subslice(n * 1024, 512).unwrap()).collect();
        disk.submit(request(6, BlockOp::Read, 18, &segments), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(6), OK)));
        for (sector, segment) in (18..).zip(&segments) {
            let zeroed = (20..25).contains(&sector);
            let expected = if zeroed { vec![0; 512] } else { contents(sector, 1) };
            assert_eq!(dump(*segment), expected, "{sector}");
        }
    }
}

#[test]
fn a_device_that_cannot_is_not_asked() {
    let discard = BlockOp::Discard { sectors: 1 };
    let zeroes = BlockOp::WriteZeroes { sectors: 1, unmap: false };
    for (features, ops) in [
        (USUAL, &[discard, zeroes][..]),
        (USUAL | F_DISCARD, &[zeroes]),
        (USUAL | F_WRITE_ZEROES, &[discard]),
        (RANGES | F_RO, &[discard, zeroes]),
    ] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        for op in ops {
            let answer = disk.submit(request(1, *op, 0, &[]), NOW);
            assert_eq!(answer, Err(SubmitError::Unsupported));
        }
        assert_eq!(disk.in_flight(), 0);
    }
}

#[test]
fn an_error_of_a_range_is_its_own_and_a_silent_device_is_reset_and_goes_on() {
    let ram = ram();
    let device = FakeDisk::new(&ram, RANGES);
    let mut disk = open(&ram, &device).unwrap();
    let op = BlockOp::WriteZeroes { sectors: 4, unmap: true };
    for (byte, expected) in [(1, IO_ERROR), (2, BlockStatus::Unsupported), (77, IO_ERROR)] {
        device.set().status_byte = Some(byte);
        disk.submit(request(1, op, 0, &[]), NOW).unwrap();
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(1), expected)));
        device.set().status_byte = None;
        read(&mut disk, 2, ram.allocate(512));
        disk.kick();
        assert_eq!(disk.poll(NOW), Some((Tag(2), OK)));
    }
    assert_eq!(disk.resets(), 0);

    device.set().dead = true;
    disk.submit(request(1, op, 0, &[]), NOW).unwrap();
    disk.submit(request(2, BlockOp::Discard { sectors: 8 }, 8, &[]), NOW).unwrap();
    disk.kick();
    assert_eq!(disk.poll(NOW), None);
    let late = NOW.after(TIMEOUT);
    let mut ended = [disk.poll(late), disk.poll(late)];
    ended.sort_by_key(|end| end.map(|(tag, _)| tag.0));
    assert_eq!(ended, [Some((Tag(1), IO_ERROR)), Some((Tag(2), IO_ERROR))]);
    assert_eq!((disk.resets(), disk.in_flight()), (1, 0));
    device.set().dead = false;
    disk.submit(request(3, op, 40, &[]), late).unwrap();
    disk.kick();
    assert_eq!(disk.poll(late), Some((Tag(3), OK)));
    assert_eq!(device.get().ranges, [(40, 4, 1)]);
}

#[test]
fn all_slots_may_be_ranges_and_one_more_is_busy() {
    for (features, depth) in [(RANGES, 64), (RANGES & !F_INDIRECT, 8)] {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        device.set().prompt = false;
        let zeroes = |tag: u16| request(tag, BlockOp::Discard { sectors: 1 }, tag.into(), &[]);
        for tag in 0..depth {
            disk.submit(zeroes(tag), NOW).unwrap();
        }
        assert_eq!(disk.submit(zeroes(depth), NOW), Err(SubmitError::Busy));
        disk.kick();
        device.complete_all();
        for tag in 0..depth {
            assert_eq!(disk.poll(NOW), Some((Tag(tag), OK)));
        }
        let expected: Vec<_> = (0..u64::from(depth)).map(|sector| (sector, 1, 0)).collect();
        assert_eq!(device.get().ranges, expected);
    }
}

#[test]
fn the_cache_is_turned_on_where_it_can_be_chosen_also_after_a_reset() {
    for (features, writeback) in
        [(USUAL | F_CONFIG_WCE, 1), (USUAL, 0), ((USUAL | F_CONFIG_WCE) & !F_FLUSH, 0)]
    {
        let ram = ram();
        let device = FakeDisk::new(&ram, features);
        let mut disk = open(&ram, &device).unwrap();
        assert_eq!(device.get().config[8], 0x0004_0000 | writeback);
        device.set().config[8] = 0x0004_0000;
        device.set().dead = true;
        read(&mut disk, 1, ram.allocate(512));
        disk.kick();
        assert_eq!(disk.poll(NOW.after(TIMEOUT)), Some((Tag(1), IO_ERROR)));
        assert_eq!(device.get().config[8], 0x0004_0000 | writeback);
    }
}

#[test]
fn a_capacity_that_changes_is_found_when_it_is_looked_for() {
    let ram = ram();
    let device = FakeDisk::new(&ram, USUAL);
    let mut disk = open(&ram, &device).unwrap();
    assert!(!disk.update_capacity());
    device.set().config[1] = 1;
    assert_eq!(disk.info().sectors, SECTORS);
    assert!(disk.update_capacity());
    assert_eq!(disk.info().sectors, 1 << 32 | SECTORS);
    assert!(!disk.update_capacity());
    // One that cannot be read is the one that was.
    device.set().restless_config = true;
    device.set().config[1] = 2;
    assert!(!disk.update_capacity());
    assert_eq!(disk.info().sectors, 1 << 32 | SECTORS);
    // As a block device asks for it.
    device.set().restless_config = false;
    disk.refresh();
    assert_eq!(disk.info().sectors, 2 << 32 | SECTORS);
}

/// Something done to a disk.
#[derive(Clone, Debug)]
enum Step {
    Submit {
        op: u8,
        sector: u64,
        sectors: u64,
    },
    Kick,
    /// The device finishes the request of this number, modulo how many it has.
    Complete(usize),
    Poll,
    Wait(u64),
    /// The device falls silent, or wakes.
    Dead(bool),
    /// The device writes this into the used ring, modulo twice the ring.
    Lie(u32),
    Jump(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0u8..5, 0..SECTORS - 8, 1u64..8)
            .prop_map(|(op, sector, sectors)| Step::Submit { op, sector, sectors }),
        6 => Just(Step::Kick),
        10 => any::<usize>().prop_map(Step::Complete),
        12 => Just(Step::Poll),
        2 => (0u64..400).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Dead),
        1 => any::<u32>().prop_map(Step::Lie),
        1 => any::<u16>().prop_map(Step::Jump),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]

    /// Whatever the device does, every request taken ends exactly once, an Ok read has the data
    /// of the disk, and everything has ended once enough time has passed.
    #[test]
    fn every_request_ends_exactly_once(
        steps in prop::collection::vec(step(), 1..300),
        indirect: bool,
        event_index: bool,
        ring in prop::sample::select(vec![4u32, 16, 256]),
    ) {
        let ram = ram();
        let mut offered = RANGES;
        if !indirect { offered &= !F_INDIRECT; }
        if !event_index { offered &= !F_EVENT_IDX; }
        let device = FakeDisk::new(&ram, offered);
        device.set().num_max = ring;
        let mut disk = open(&ram, &device).unwrap();
        device.set().prompt = false;
        let memory = ram.allocate(64 * 4096);
        let mut waiting: Vec<Option<(BlockOp, u64, u64)>> = vec![None; 64];
        let mut now = Ticks(0);
        let mut lied = false;
        let steps = steps.into_iter().chain([Step::Kick, Step::Wait(2 * TIMEOUT.0)])
            .chain((0..66).map(|_| Step::Poll));
        for step in steps {
            match step {
                Step::Submit { op, sector, sectors } => {
                    let Some(tag) = waiting.iter().position(Option::is_none) else { continue };
                    let buffer =
                        memory.subslice(tag * 4096, (sectors * SECTOR_SIZE) as usize).unwrap();
                    let (op, segments) = match op {
                        0 => (BlockOp::Read, vec![buffer]),
                        1 => (BlockOp::Write, vec![buffer]),
                        // Where nobody reads.
                        3 => (BlockOp::Discard { sectors: 1 }, vec![]),
                        4 => (BlockOp::WriteZeroes { sectors: 1, unmap: true }, vec![]),
                        _ => (BlockOp::Flush, vec![]),
                    };
                    if op == BlockOp::Write {
                        // Writes do not change the disk, so that reads can be checked.
                        fill(buffer, &contents(sector, sectors));
                    }
                    let sector = if op.modifies() && op != BlockOp::Write {
                        SECTORS - 1
                    } else {
                        sector
                    };
                    let busy = disk.in_flight() == usize::from(disk.info().depth);
                    match disk.submit(request(tag as u16, op, sector, &segments), now) {
                        Ok(()) => {
                            prop_assert!(!busy);
                            waiting[tag] = Some((op, sector, sectors));
                        }
                        Err(error) => {
                            prop_assert!(busy);
                            prop_assert_eq!(error, SubmitError::Busy);
                        }
                    }
                }
                Step::Kick => disk.kick(),
                Step::Complete(n) => {
                    let requests = device.get().requests.len();
                    if requests > 0 {
                        device.complete(n % requests);
                    }
                }
                Step::Poll => {
                    if let Some((Tag(tag), status)) = disk.poll(now) {
                        let ended = waiting[usize::from(tag)].take();
                        prop_assert!(ended.is_some(), "ended twice: {}", tag);
                        let (op, sector, sectors) = ended.unwrap();
                        if op == BlockOp::Read && status == OK && !lied {
                            let buffer = memory
                                .subslice(usize::from(tag) * 4096, (sectors * 512) as usize)
                                .unwrap();
                            prop_assert_eq!(dump(buffer), contents(sector, sectors));
                        }
                    }
                }
                Step::Wait(span) => now = now.after(Ticks(span)),
                Step::Dead(dead) => device.set().dead = dead,
                Step::Lie(id) => {
                    lied = true;
                    device.set().lied = true;
                    device.push_used(id % (2 * ring), 0);
                }
                Step::Jump(index) => {
                    lied = true;
                    device.set().lied = true;
                    device.set_used_index(index);
                }
            }
            prop_assert_eq!(disk.in_flight(), waiting.iter().flatten().count());
        }
        prop_assert_eq!(disk.in_flight(), 0);
        prop_assert!(!disk.has_failed());
    }
}
