use proptest::prelude::*;

use super::fake::{
    F_CSUM, F_EVENT_IDX, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_INDIRECT, F_MAC, F_MRG_RXBUF,
    F_MTU, F_SPEED_DUPLEX, F_STATUS, F_VERSION_1, FakeNic, MAC, RX, TX, USUAL,
};
use super::*;
use crate::backend::net::{
    Checksum, FrameInfo, Gso, MAX_FRAME, MacAddress, Offloads, Segmentation,
};
use crate::drivers::testing::{CountedDelay, FakeRam, dump, fill};

type Card<'m, 'd> = VirtioNet<'m, &'d FakeNic<'m>>;

const TIMEOUT: Ticks = Ticks(1000);
const NOW: Ticks = Ticks(5);
const LATE: Ticks = Ticks(NOW.0 + TIMEOUT.0);

/// Nobody takes configuration interrupts.
static STILL: AtomicBool = AtomicBool::new(false);

fn ram() -> FakeRam {
    FakeRam::new(layout::DMA_BYTES + 64 * 4096)
}

fn open<'m, 'd>(ram: &'m FakeRam, device: &'d FakeNic<'m>) -> Result<Card<'m, 'd>, InitError> {
    open_with(ram, device, &STILL)
}

fn open_with<'m, 'd>(
    ram: &'m FakeRam,
    device: &'d FakeNic<'m>,
    reconfigured: &'m AtomicBool,
) -> Result<Card<'m, 'd>, InitError> {
    let dma = ram.allocate(layout::DMA_BYTES);
    VirtioNet::new(device, dma, TIMEOUT, reconfigured, &mut CountedDelay::default())
}

/// Bytes that tell themselves from each other.
fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251 + seed * 31) as u8).collect()
}

fn memory<'m>(ram: &'m FakeRam, contents: &[u8]) -> SharedSlice<'m> {
    let memory = ram.allocate(contents.len());
    fill(memory, contents);
    memory
}

/// Submits a frame without starting it.
fn submit<'m>(card: &mut Card<'m, '_>, tag: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
    let frame = UplinkFrame { info: FrameInfo::PLAIN, header: &[], segments };
    card.submit(UplinkTag(tag), frame, NOW)
}

/// What has been received, given back.
fn received(card: &mut Card<'_, '_>) -> Option<(FrameInfo, Vec<u8>)> {
    let frame = card.poll_received(NOW)?;
    let info = frame.info;
    let bytes = frame.segments.iter().flat_map(|segment| dump(*segment)).collect::<Vec<_>>();
    assert_eq!(bytes.len(), frame.len);
    card.release_received();
    card.kick();
    Some((info, bytes))
}

const NO_HEADER: [u8; 12] = [0; 12];

#[test]
fn a_card_is_described_by_its_configuration() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL | F_MTU | F_SPEED_DUPLEX);
    device.set().config[10..16].copy_from_slice(&[0x28, 0x23, 0xe8, 3, 0, 0]);
    let card = open(&ram, &device).unwrap();
    let info = UplinkInfo {
        mac: MacAddress(MAC),
        mtu: 9000,
        link_up: true,
        speed: Some(1000),
        takes: Offloads::empty(),
        gives: Offloads::empty(),
        max_segments: 63,
    };
    assert_eq!(card.info(), info);
    assert_eq!(card.room(), Room { frames: 64, segments: 64 * 63 });
    assert_eq!(device.get().status, 15);
    assert_eq!((device.buffers(), device.ring(TX)), (128, 256));
}

#[test]
fn fields_without_their_feature_are_not_believed() {
    let ram = ram();
    let device = FakeNic::new(&ram, F_VERSION_1);
    device.set().config = [0xff; 24];
    device.set().config[6] = 0;
    let info = open(&ram, &device).unwrap().info();
    assert!(!info.mac.is_group() && info.link_up);
    assert_eq!((info.mtu, info.speed), (1500, None));
}

#[test]
fn impossible_configurations_are_refused() {
    for (at, value) in [(0, 1), (10, 67)] {
        let ram = ram();
        let device = FakeNic::new(&ram, USUAL | F_MTU);
        device.set().config[10..12].copy_from_slice(&[0xdc, 5]);
        device.set().config[at] = value;
        device.set().config[at + 1] = 0;
        assert_eq!(open(&ram, &device).err(), Some(InitError::BadConfiguration), "{at}");
        assert_eq!(device.get().status & 0x80, 0x80, "given up");
    }
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL | F_SPEED_DUPLEX);
    device.set().config[12..16].fill(0xff);
    assert_eq!(open(&ram, &device).unwrap().info().speed, None, "it does not know");
}

#[test]
fn memory_too_small_or_crooked_is_refused_before_the_device_is_touched() {
    let ram = FakeRam::new(layout::DMA_BYTES * 2);
    let device = FakeNic::new(&ram, USUAL);
    let memory = ram.allocate(layout::DMA_BYTES * 2);
    for (offset, bytes) in [(0, layout::DMA_BYTES - 1), (64, layout::DMA_BYTES)] {
        let dma = memory.subslice(offset, bytes).unwrap();
        let mut delay = CountedDelay::default();
        let error = VirtioNet::new(&device, dma, TIMEOUT, &STILL, &mut delay).err();
        assert_eq!(error, Some(InitError::DmaMemory));
    }
    assert_eq!(device.get().register_reads, 0);
}

#[test]
fn a_device_that_does_not_reset_or_agree_is_refused() {
    let ram = FakeRam::new(3 * layout::DMA_BYTES);
    let device = FakeNic::new(&ram, USUAL);
    device.set().refuses_features = true;
    assert_eq!(open(&ram, &device).err(), Some(InitError::FeaturesRefused));
    device.set().offered = USUAL & !F_VERSION_1;
    assert_eq!(open(&ram, &device).err(), Some(InitError::NoVersion1));
    device.set().slow_reset = u32::MAX;
    assert_eq!(open(&ram, &device).err(), Some(InitError::ResetTimeout));
}

#[test]
fn only_what_builds_on_what_is_offered_is_asked_for() {
    let asked = |offered| {
        let ram = ram();
        let device = FakeNic::new(&ram, offered | F_VERSION_1);
        let _ = open(&ram, &device).unwrap();
        let features = device.get().driver_features;
        features & !F_VERSION_1
    };
    let long = F_GUEST_CSUM | F_GUEST_TSO4;
    assert_eq!(asked(long), F_GUEST_CSUM, "buffers would be few");
    assert_eq!(asked(long | F_MRG_RXBUF), long | F_MRG_RXBUF);
    assert_eq!(asked(F_GUEST_TSO4 | F_MRG_RXBUF), F_MRG_RXBUF);
    assert_eq!(asked(F_HOST_TSO4), 0);
    assert_eq!(asked(F_HOST_TSO4 | F_CSUM), F_HOST_TSO4 | F_CSUM);
    assert_eq!(asked(1 << 9 | 1 << 13 | F_CSUM | F_GUEST_CSUM), F_CSUM | F_GUEST_CSUM, "ECN");
    assert_eq!(asked(1 << 17 | 1 << 22 | 1 << 24 | 1 << 50), 0, "there is no queue for control");
}

#[test]
fn a_frame_is_sent_from_where_it_is_behind_what_the_switch_has_written() {
    for features in [USUAL, USUAL & !F_INDIRECT, USUAL & !F_EVENT_IDX, F_VERSION_1] {
        let ram = ram();
        let device = FakeNic::new(&ram, features);
        let mut card = open(&ram, &device).unwrap();
        let (a, b) = (memory(&ram, &bytes(900, 1)), memory(&ram, &bytes(77, 2)));
        let segments = [a.subslice(3, 700).unwrap(), b.subslice(1, 70).unwrap()];
        let start = bytes(58, 3);
        let frame = UplinkFrame { info: FrameInfo::PLAIN, header: &start, segments: &segments };
        card.submit(UplinkTag(7), frame, NOW).unwrap();
        assert_eq!((card.poll_sent(NOW), device.get().wire.len()), (None, 0), "before the kick");
        card.kick();
        let expected = [start, dump(segments[0]), dump(segments[1])].concat();
        assert_eq!(device.get().wire[0].bytes, expected);
        assert_eq!(device.get().wire[0].header, NO_HEADER);
        let data = [(segments[0].pa().raw(), 700), (segments[1].pa().raw(), 70)];
        assert_eq!(device.get().wire[0].pieces[1..], data);
        assert_eq!(card.poll_sent(NOW), Some(UplinkTag(7)));
        assert_eq!(card.poll_sent(NOW), None);
    }
}

#[test]
fn neighbours_in_physical_memory_share_a_descriptor() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let all = memory(&ram, &bytes(4096, 1));
    let pieces = [(0, 100), (100, 900), (1000, 1), (1002, 50)]
        .map(|(offset, len)| all.subslice(offset, len).unwrap());
    submit(&mut card, 1, &pieces).unwrap();
    card.kick();
    let base = all.pa().raw();
    assert_eq!(device.get().wire[0].pieces[1..], [(base, 1001), (base + 1002, 50)]);
}

#[test]
fn what_the_device_is_to_do_is_in_the_header() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL | F_CSUM | F_HOST_TSO4);
    let mut card = open(&ram, &device).unwrap();
    assert_eq!(card.info().takes, Offloads::CSUM | Offloads::TSO4);
    let segments = [memory(&ram, &bytes(4000, 1))];
    let gso = Gso { kind: Segmentation::TcpV4, size: 1460, header_len: 54, ecn: false };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    let info = FrameInfo { checksum, gso: Some(gso) };
    let frame = UplinkFrame { info, header: &[], segments: &segments };
    card.submit(UplinkTag(1), frame, NOW).unwrap();
    card.kick();
    assert_eq!(device.get().wire[0].header, [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
}

#[test]
fn as_many_frames_as_there_is_room_for_are_taken_and_no_more() {
    for (features, frames) in [(USUAL, 64), (USUAL & !F_INDIRECT, 16)] {
        let ram = ram();
        let device = FakeNic::new(&ram, features);
        device.set().prompt = false;
        let mut card = open(&ram, &device).unwrap();
        let segments = [memory(&ram, &bytes(60, 1))];
        assert_eq!(card.room().frames, frames);
        for tag in 0..frames {
            submit(&mut card, tag as u16, &segments).unwrap();
        }
        assert_eq!(card.room(), Room { frames: 0, segments: 0 });
        assert_eq!(submit(&mut card, 99, &segments), Err(Busy));
        card.kick();
        assert_eq!(device.get().notifies[TX], 1, "one doorbell for all");
        device.complete(3);
        assert_eq!(card.poll_sent(NOW), Some(UplinkTag(3)), "in any order");
        submit(&mut card, 99, &segments).unwrap();
    }
}

#[test]
fn a_frame_of_too_many_segments_or_too_long_a_header_is_not_taken() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    device.set().num_max = 8;
    let mut card = open(&ram, &device).unwrap();
    let all = memory(&ram, &bytes(4096, 1));
    let pieces: Vec<_> = (0..8).map(|n| all.subslice(n * 100, 50).unwrap()).collect();
    assert_eq!(card.info().max_segments, 7);
    assert_eq!(submit(&mut card, 1, &pieces), Err(Busy));
    let frame = UplinkFrame { info: FrameInfo::PLAIN, header: &[0; 193], segments: &[] };
    assert_eq!(card.submit(UplinkTag(1), frame, NOW), Err(Busy));
    submit(&mut card, 1, &pieces[..7]).unwrap();
    card.kick();
    assert_eq!(device.get().wire[0].bytes.len(), 350);
    assert_eq!(card.room().frames, 7);
}

#[test]
fn a_frame_that_has_come_is_given_as_it_is_and_its_buffer_goes_back() {
    for features in [USUAL, USUAL & !F_EVENT_IDX, F_VERSION_1] {
        let ram = ram();
        let device = FakeNic::new(&ram, features);
        let mut card = open(&ram, &device).unwrap();
        assert!(card.poll_received(NOW).is_none());
        for n in 0..300 {
            let frame = bytes(14 + n * 5, n);
            device.receive(NO_HEADER, &frame);
            assert_eq!(received(&mut card), Some((FrameInfo::PLAIN, frame)));
            assert_eq!(device.buffers(), 128);
        }
        assert!(card.poll_received(NOW).is_none());
    }
}

#[test]
fn a_frame_is_given_again_until_it_is_given_back() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    device.receive(NO_HEADER, &bytes(60, 1));
    device.receive(NO_HEADER, &bytes(61, 2));
    let place = card.poll_received(NOW).unwrap().segments[0].pa();
    assert_eq!(card.poll_received(NOW).unwrap().segments[0].pa(), place);
    card.release_received();
    assert_eq!(card.poll_received(NOW).unwrap().len, 61);
    card.release_received();
    card.release_received();
    card.kick();
    assert_eq!(device.buffers(), 128);
}

#[test]
fn a_frame_may_take_several_buffers() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL | F_MTU | F_GUEST_CSUM | F_GUEST_TSO4);
    device.set().config[10..12].copy_from_slice(&[0x28, 0x23]);
    let mut card = open(&ram, &device).unwrap();
    let jumbo = bytes(9014, 1);
    device.receive(NO_HEADER, &jumbo);
    assert_eq!(received(&mut card).unwrap().1, jumbo);
    // The longest there can be.
    let long = bytes(MAX_FRAME, 2);
    device.receive([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], &long);
    let gso = Gso { kind: Segmentation::TcpV4, size: 1460, header_len: 54, ecn: false };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    assert_eq!(received(&mut card), Some((FrameInfo { checksum, gso: Some(gso) }, long)));
    assert_eq!(device.buffers(), 128);
}

#[test]
fn buffers_are_as_long_as_the_mtu_wants_if_a_frame_must_fit_into_one() {
    let ram = ram();
    let device = FakeNic::new(&ram, (USUAL | F_MTU) & !F_MRG_RXBUF);
    device.set().config[10..12].copy_from_slice(&[0x28, 0x23]);
    let mut card = open(&ram, &device).unwrap();
    assert_eq!(device.buffers(), 16);
    let jumbo = bytes(9018, 1);
    device.receive(NO_HEADER, &jumbo);
    assert_eq!(received(&mut card).unwrap().1, jumbo);
}

#[test]
fn frames_that_make_no_sense_are_counted_and_gone() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL | F_GUEST_CSUM);
    let mut card = open(&ram, &device).unwrap();
    device.receive(NO_HEADER, &bytes(13, 1));
    device.receive(NO_HEADER, &[]);
    device.receive([1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], &bytes(60, 1));
    device.receive([1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0], &bytes(60, 1));
    device.receive(NO_HEADER, &bytes(60, 2));
    assert_eq!(received(&mut card), Some((FrameInfo::PLAIN, bytes(60, 2))));
    let mut bad = 0;
    card.statistics(&mut |name, value| {
        if name == "bad" {
            bad = value;
        }
    });
    assert_eq!((bad, card.resets(), device.buffers()), (4, 0, 128));
}

#[test]
fn a_flood_of_bad_frames_does_not_keep_a_core() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    for _ in 0..100 {
        device.receive(NO_HEADER, &[1]);
    }
    device.receive(NO_HEADER, &bytes(60, 1));
    let looks = (0..100).take_while(|_| card.poll_received(NOW).is_none()).count();
    assert_eq!(looks, 100 / BAD_AT_ONCE);
}

/// Whether `work` gets the card reset, and it receives and sends afterwards.
fn resets(work: impl FnOnce(&FakeNic<'_>, &mut Card<'_, '_>)) -> bool {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    device.set().lied = true;
    work(&device, &mut card);
    while card.poll_received(NOW).is_some() {
        card.release_received();
    }
    while card.poll_sent(NOW).is_some() {}
    let resets = card.resets() != 0;
    assert_eq!(u32::from(resets) + 1, device.get().resets);
    assert_eq!(card.take_change(), resets);
    assert!(card.info().link_up);
    card.kick();
    assert_eq!(device.buffers(), 128);
    device.receive(NO_HEADER, &bytes(60, 1));
    assert_eq!(received(&mut card), Some((FrameInfo::PLAIN, bytes(60, 1))));
    submit(&mut card, 7, &[memory(&ram, &bytes(60, 1))]).unwrap();
    card.kick();
    assert_eq!(card.poll_sent(NOW), Some(UplinkTag(7)));
    resets
}

#[test]
fn a_device_that_lies_about_what_it_has_received_is_reset() {
    // The truth.
    assert!(!resets(|device, _| device.receive(NO_HEADER, &bytes(60, 1))));
    // A buffer that it does not have.
    for id in [128, 200, 0xffff, u32::MAX] {
        assert!(resets(|device, _| device.push_used(RX, id, 72)), "{id}");
    }
    // One twice.
    assert!(resets(|device, _| {
        let (head, _) = device.buffer();
        device.push_used(RX, head.into(), 72);
        device.push_used(RX, head.into(), 72);
    }));
    // More than the buffer holds, and less than a header.
    for len in [2049, u32::MAX, 0, 11] {
        assert!(resets(|device, _| {
            let (head, buffer) = device.buffer();
            buffer.store_u16(10, 1);
            device.push_used(RX, head.into(), len);
        }));
    }
    // In no buffer, in more than there are, in more than the longest frame takes.
    for pieces in [0, 2, 0xffff] {
        assert!(resets(|device, _| {
            let (head, buffer) = device.buffer();
            buffer.store_u16(10, pieces);
            device.push_used(RX, head.into(), 72);
        }));
    }
    assert!(resets(|device, _| {
        for _ in 0..100 {
            let (head, buffer) = device.buffer();
            buffer.store_u16(10, 100);
            device.push_used(RX, head.into(), 2048);
        }
    }));
    // An index from nowhere.
    assert!(resets(|device, _| device.set_used_index(RX, 129)));
}

#[test]
fn a_device_that_lies_about_what_it_has_sent_is_reset() {
    for id in [0, 63, 64, 255, 256, u32::MAX] {
        assert!(!resets(|device, _| device.push_used(TX, id, 0)), "nobody asks");
    }
    for id in [1, 63, 64, 255, 256, u32::MAX] {
        let ram = ram();
        let frame = memory(&ram, &bytes(60, 1));
        let device = FakeNic::new(&ram, USUAL);
        device.set().prompt = false;
        let mut card = open(&ram, &device).unwrap();
        submit(&mut card, 3, &[frame]).unwrap();
        card.kick();
        device.push_used(TX, id, 0);
        assert_eq!(card.poll_sent(NOW), Some(UplinkTag(3)), "{id}");
        assert_eq!((card.resets(), device.get().resets), (1, 2));
    }
}

#[test]
fn a_frame_that_is_not_sent_in_time_ends_when_the_device_has_been_reset_and_others_go_on() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let frame = [memory(&ram, &bytes(60, 1))];
    device.set().dead = true;
    submit(&mut card, 1, &frame).unwrap();
    card.kick();
    submit(&mut card, 2, &frame).unwrap();
    assert_eq!(card.poll_sent(Ticks(LATE.0 - 1)), None);
    device.set().slow_reset = 2;
    // What the device was never shown is over at once, the other when it lets go.
    assert_eq!(card.poll_sent(LATE), Some(UplinkTag(2)));
    assert!(card.take_change() && !card.info().link_up);
    assert_eq!(card.poll_sent(LATE), None);
    assert!(!card.take_change());
    assert_eq!(card.poll_sent(LATE), Some(UplinkTag(1)));
    assert!(card.take_change() && card.info().link_up);
    assert_eq!((card.resets(), device.get().resets), (1, 2));

    device.set().dead = false;
    submit(&mut card, 3, &frame).unwrap();
    card.kick();
    assert_eq!(card.poll_sent(LATE), Some(UplinkTag(3)));
    assert_eq!(device.get().wire.len(), 1);
}

#[test]
fn a_slow_device_is_left_alone_as_long_as_it_sends_and_reset_when_it_stops() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let frame = [memory(&ram, &bytes(60, 1))];
    device.set().prompt = false;
    for tag in 0..20 {
        submit(&mut card, tag, &frame).unwrap();
    }
    card.kick();
    // One in 900: the last has waited for 17 times its time.
    for tag in 0..19 {
        let now = Ticks(NOW.0 + u64::from(tag) * 900);
        assert_eq!(card.poll_sent(now), None);
        device.complete(0);
        assert_eq!(card.poll_sent(now), Some(UplinkTag(tag)));
    }
    let stopped = NOW.0 + 18 * 900;
    assert_eq!(card.poll_sent(Ticks(stopped + 999)), None);
    assert_eq!((card.resets(), card.room().frames), (0, 63));
    assert_eq!(card.poll_sent(Ticks(stopped + 1000)), Some(UplinkTag(19)));
    assert_eq!(card.resets(), 1);
}

#[test]
fn a_device_that_forgets_a_frame_and_sends_others_is_reset() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let frame = [memory(&ram, &bytes(60, 1))];
    device.set().prompt = false;
    submit(&mut card, 100, &frame).unwrap();
    for tag in 0..63 {
        submit(&mut card, tag, &frame).unwrap();
        card.kick();
        device.complete(1);
        assert_eq!(card.poll_sent(Ticks(LATE.0 - 1)), Some(UplinkTag(tag)));
    }
    // All of them could have been before it.
    assert_eq!(card.poll_sent(LATE), None);
    assert_eq!(card.resets(), 0);
    submit(&mut card, 63, &frame).unwrap();
    card.kick();
    device.complete(1);
    let now = Ticks(LATE.0 + TIMEOUT.0 - 2);
    assert_eq!(card.poll_sent(now), Some(UplinkTag(63)));
    // Not looked for more often than that.
    assert_eq!(card.poll_sent(now), None);
    assert_eq!(card.poll_sent(Ticks(now.0 + 1)), Some(UplinkTag(100)));
    assert_eq!(card.resets(), 1);
}

#[test]
fn a_device_that_says_it_needs_a_reset_has_one() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let reconfigured = AtomicBool::new(false);
    let mut card = open_with(&ram, &device, &reconfigured).unwrap();
    device.set().prompt = false;
    submit(&mut card, 1, &[memory(&ram, &bytes(60, 1))]).unwrap();
    card.kick();
    device.set().status |= 0x40;
    assert!(!card.take_change());
    reconfigured.store(true, Ordering::Relaxed);
    assert!(card.take_change() && !card.info().link_up);
    assert_eq!(card.poll_sent(NOW), Some(UplinkTag(1)));
    assert!(card.take_change() && card.info().link_up);
    assert_eq!((card.resets(), device.get().status), (1, 15));
    device.receive(NO_HEADER, &bytes(60, 2));
    assert_eq!(received(&mut card), Some((FrameInfo::PLAIN, bytes(60, 2))));
}

#[test]
fn what_is_submitted_during_a_reset_is_lost_and_nothing_is_rung() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let frame = [memory(&ram, &bytes(60, 1))];
    device.set().dead = true;
    device.set().slow_reset = 1000;
    submit(&mut card, 1, &frame).unwrap();
    card.kick();
    assert_eq!(card.poll_sent(LATE), None);
    let notifies = device.get().notifies;
    for tag in 10..200 {
        submit(&mut card, tag, &frame).unwrap();
        card.kick();
        assert_eq!(card.poll_sent(LATE), Some(UplinkTag(tag)));
        assert!(card.poll_received(LATE).is_none());
    }
    assert_eq!(device.get().notifies, notifies);
    assert_eq!(card.room().frames, 63, "that of the device is still its");
    // However long it takes.
    assert!((0..1000).any(|_| card.poll_sent(Ticks(1 << 60)) == Some(UplinkTag(1))));
    assert!(card.info().link_up);
}

#[test]
fn a_device_that_comes_back_different_has_failed_and_loses_what_is_submitted() {
    for change in 0..3 {
        let ram = ram();
        let device = FakeNic::new(&ram, USUAL);
        let mut card = open(&ram, &device).unwrap();
        let frame = [memory(&ram, &bytes(60, 1))];
        device.set().dead = true;
        submit(&mut card, 1, &frame).unwrap();
        card.kick();
        match change {
            0 => device.set().offered = USUAL & !F_MRG_RXBUF,
            1 => device.set().num_max = 64,
            _ => device.set().config[0] = 1,
        }
        assert_eq!(card.poll_sent(LATE), Some(UplinkTag(1)));
        assert!(card.has_failed() && !card.info().link_up && card.take_change());
        assert_eq!(device.get().status & 0x80, 0x80);
        submit(&mut card, 2, &frame).unwrap();
        card.kick();
        assert_eq!(card.poll_sent(LATE), Some(UplinkTag(2)));
        assert!(card.poll_received(LATE).is_none());
        assert!(device.get().wire.is_empty());
    }
}

#[test]
fn a_change_of_the_link_is_told_once() {
    let (ram, bell) = (ram(), AtomicBool::new(false));
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open_with(&ram, &device, &bell).unwrap();
    assert!(!card.take_change());
    device.set().config[6] = 0;
    let reads = device.get().register_reads;
    assert!(!card.take_change(), "nobody has interrupted");
    assert_eq!(device.get().register_reads, reads);
    bell.store(true, Ordering::Relaxed);
    assert!(card.take_change() && !card.info().link_up);
    assert!(!card.take_change());
    bell.store(true, Ordering::Relaxed);
    assert!(!card.take_change(), "it has not changed");
    device.set().config[6] = 3;
    bell.store(true, Ordering::Relaxed);
    assert!(card.take_change() && card.info().link_up);
}

#[test]
fn the_device_interrupts_once_for_what_comes_after_all_was_found() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    device.receive(NO_HEADER, &bytes(60, 1));
    assert_eq!(device.get().interrupts, 0, "it was not asked to");
    assert!(received(&mut card).is_some());
    card.set_interrupts(true);
    assert!(received(&mut card).is_none());
    for n in 0..5 {
        device.receive(NO_HEADER, &bytes(60, n));
    }
    assert_eq!(device.get().interrupts, 1);
    while received(&mut card).is_some() {}
    device.receive(NO_HEADER, &bytes(60, 1));
    assert_eq!(device.get().interrupts, 2);
    submit(&mut card, 1, &[memory(&ram, &bytes(60, 1))]).unwrap();
    card.kick();
    assert_eq!(device.get().interrupts, 3, "a frame was sent");
}

#[test]
fn a_frame_costs_no_register_access_but_the_doorbell() {
    let ram = ram();
    let device = FakeNic::new(&ram, USUAL);
    let mut card = open(&ram, &device).unwrap();
    let (reads, notifies) = (device.get().register_reads, device.get().notifies);
    submit(&mut card, 1, &[memory(&ram, &bytes(60, 1))]).unwrap();
    card.kick();
    assert_eq!(card.poll_sent(NOW), Some(UplinkTag(1)));
    device.receive(NO_HEADER, &bytes(60, 1));
    assert!(received(&mut card).is_some());
    assert!(!card.take_change());
    assert_eq!(device.get().register_reads, reads);
    assert_eq!(device.get().notifies[TX], notifies[TX] + 1);
}

/// What happens to a card.
#[derive(Clone, Debug)]
enum Event {
    Submit { pieces: Vec<(usize, usize)> },
    Kick,
    Send(usize),
    Receive { len: usize },
    Lie { queue: usize, id: u32, len: u32 },
    Die(bool),
    Late,
}

fn event() -> impl Strategy<Value = Event> {
    let piece = (0usize..2000, 14usize..300);
    let lie = (0usize..2, prop_oneof![0u32..140, any::<u32>()], any::<u32>());
    prop_oneof![
        4 => prop::collection::vec(piece, 1..5).prop_map(|pieces| Event::Submit { pieces }),
        3 => Just(Event::Kick),
        3 => (0usize..8).prop_map(Event::Send),
        4 => (14usize..4000).prop_map(|len| Event::Receive { len }),
        1 => lie.prop_map(|(queue, id, len)| Event::Lie { queue, id, len }),
        1 => any::<bool>().prop_map(Event::Die),
        1 => Just(Event::Late),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

    /// Whatever the device does, each frame that was taken ends once; what was sent is as it was
    /// submitted, and what is received in between lies is whole.
    #[test]
    fn any_device_is_survived_and_every_frame_ends_once(
        features in prop::sample::select(vec![USUAL, USUAL & !F_INDIRECT, F_VERSION_1 | F_STATUS]),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let ram = ram();
        let device = FakeNic::new(&ram, features | F_MAC);
        device.set().prompt = false;
        let mut card = open(&ram, &device).unwrap();
        let all = memory(&ram, &bytes(4096, 1));
        let mut open_tags = std::collections::BTreeMap::new();
        let mut tag = 0u16;
        let mut now = NOW;
        for event in events {
            match event {
                Event::Submit { pieces } => {
                    let segments: Vec<_> =
                        pieces.iter().map(|(at, len)| all.subslice(*at, *len).unwrap()).collect();
                    let frame =
                        UplinkFrame { info: FrameInfo::PLAIN, header: &[], segments: &segments };
                    let room = card.room().frames > 0 && pieces.len() <= card.info().max_segments.into();
                    let taken = card.submit(UplinkTag(tag), frame, now).is_ok();
                    prop_assert!(taken || !room);
                    if taken {
                        open_tags.insert(tag, segments.iter().flat_map(|s| dump(*s)).collect::<Vec<u8>>());
                        tag = tag.wrapping_add(1);
                    }
                }
                Event::Kick => card.kick(),
                Event::Send(n) => {
                    if device.get().outgoing.len() > n {
                        let sent = device.get().outgoing[n].bytes.clone();
                        prop_assert!(device.get().lied || open_tags.values().any(|bytes| *bytes == sent));
                        device.complete(n);
                    }
                }
                Event::Receive { len } => {
                    let fits = features & F_MRG_RXBUF != 0 || len <= 1518;
                    let working = device.get().status == 15 && !device.get().lied;
                    if fits && working && device.buffers() > 3 {
                        device.receive(NO_HEADER, &bytes(len, 3));
                    }
                }
                Event::Lie { queue, id, len } => {
                    if device.get().status == 15 {
                        device.set().lied = true;
                        device.push_used(queue, id, len);
                    }
                }
                Event::Die(dead) => device.set().dead = dead,
                Event::Late => now = now.after(TIMEOUT),
            }
            while let Some(frame) = card.poll_received(now) {
                if !device.get().lied {
                    let got: Vec<u8> = frame.segments.iter().flat_map(|s| dump(*s)).collect();
                    prop_assert_eq!(&got, &bytes(got.len(), 3));
                }
                card.release_received();
            }
            while let Some(UplinkTag(tag)) = card.poll_sent(now) {
                prop_assert!(open_tags.remove(&tag).is_some(), "{} has not been taken", tag);
            }
            let _ = card.take_change();
        }
        // In the end all of them end.
        card.kick();
        // What it says of one is a sign of life, and gives the others a time-out more.
        for _ in 0..3 {
            now = now.after(TIMEOUT);
            while let Some(UplinkTag(tag)) = card.poll_sent(now) {
                prop_assert!(open_tags.remove(&tag).is_some(), "{} has not been taken", tag);
            }
        }
        prop_assert_eq!(open_tags.len(), 0);
        prop_assert!(card.info().link_up);
    }
}
