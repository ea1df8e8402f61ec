//! Tests of the socket device, from the registers of one guest to the buffers of another.

mod host;
mod life;
mod traffic;

use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::backend::clock::{Clock, Frequency};
use crate::backend::vsock::{Desk, Fabric, NotAttached, PATIENCE, PortCell, PortConfig, flags};
use crate::backend::wake::{Wake, Waker};
use crate::memory::testing::ram;
use crate::memory::{GuestMemory, Ipa};
use crate::virtio::queue::Areas;
use crate::virtio::testing::{Driver, NOW, RAM, Registers, get, put};
use crate::virtio::{MmioTransport, Width, WriteOutcome};

const V1: Features = Features::VERSION_1;
const ALL: Features = V1.union(STREAM).union(SEQPACKET).union(NO_IMPLIED_STREAM);

/// Entries of the rings, but for events.
const SIZE: u16 = 32;
/// Where packets to be sent are, a slot for each, and buffers.
const OUT: u64 = RAM + 0x1_0000;
const OUT_SLOT: u64 = 0x8000;
const IN: u64 = RAM + 0x9_0000;
const IN_SLOT: u64 = 0x1000;

const HERTZ: Frequency = Frequency::new(1000).unwrap();

/// The cores that were woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(&self, core: u8) {
        self.0.fetch_or(1 << core, Ordering::Relaxed);
    }
}

impl Woken {
    fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Ticks {
        NOW
    }
    fn frequency(&self) -> Frequency {
        HERTZ
    }
}

type Transport = MmioTransport<'static, 'static>;

/// A guest that has a driver, and its device. What it is made of is leaked: the tests are short.
struct Guest {
    transport: Transport,
    memory: GuestMemory<'static>,
    rings: [Driver<'static>; 3],
    cid: u32,
}

/// A fabric, and who was woken.
struct Board {
    fabric: &'static Fabric<'static>,
    woken: &'static Woken,
    /// Of the guests to come.
    desk: Option<&'static Desk>,
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

impl Board {
    fn new() -> Self {
        Self { fabric: leak(Fabric::new(HERTZ)), woken: leak(Woken::default()), desk: None }
    }

    /// The device of a guest on core `cid`.
    fn device(&self, cid: u32, peers: &[u32]) -> Result<Vsock<'static, 'static>, NotAttached> {
        let peers = peers.iter().copied().collect();
        let waker = Waker::new(self.woken, cid as u8 & 31);
        let cell = leak(PortCell::new(PortConfig { cid, peers, desk: self.desk, waker }));
        self.fabric.attach(cell).map(Vsock::new)
    }

    /// A guest with buffers that is live.
    fn guest(&self, cid: u32, peers: &[u32]) -> Guest {
        let mut guest = self.idle(cid, peers);
        guest.bring_up(ALL);
        guest.post(16, 0x1000);
        guest
    }

    fn idle(&self, cid: u32, peers: &[u32]) -> Guest {
        let mut memory = GuestMemory::new();
        memory.add(Ipa::new(RAM), ram(0x9_8000_0000 + u64::from(cid) * 0x100_0000, 0xC_0000)).ok();
        let device = self.device(cid, peers).unwrap();
        let transport = MmioTransport::new(leak(device), memory.clone());
        let ring = |index: u64| {
            let at = RAM + index * 0x1000;
            put(&memory, at, &[0; 0x1000]);
            let areas = Areas { descriptor: at, driver: at + 0x400, device: at + 0x800 };
            let size = if index == 2 { EVENTS } else { SIZE };
            Driver { memory: memory.clone(), areas, size, available: 0, seen: 0 }
        };
        let rings = [ring(0), ring(1), ring(2)];
        Guest { transport, memory, rings, cid }
    }
}

impl Guest {
    fn bring_up(&mut self, features: Features) {
        assert!(self.transport.negotiate(features));
        for (index, ring) in self.rings.iter_mut().enumerate() {
            (ring.available, ring.seen) = (0, 0);
            put(&self.memory, ring.areas.driver, &[0; 0xC00 - 4]);
            self.transport.configure_queue(index as u32, ring.size.into(), &ring.areas);
            self.transport.set(0x44, 1);
        }
        self.transport.set(0x70, 15);
        assert_eq!(self.transport.get(0x70), 15);
    }

    fn notify(&mut self, queue: u16, now: u64) {
        let outcome = self.transport.write(0x50, Width::Word, queue.into(), Ticks(now));
        assert_eq!(outcome, WriteOutcome::Done);
    }

    /// Posts buffers of `len` bytes.
    fn post(&mut self, count: u16, len: u32) {
        self.post_at(count, len, 0);
    }

    fn post_at(&mut self, count: u16, len: u32, now: u64) {
        for _ in 0..count {
            let ring = &mut self.rings[0];
            let head = ring.available % SIZE;
            ring.chain(head, &[(IN + u64::from(head) * IN_SLOT, len, true)]);
            ring.offer(head);
        }
        self.notify(0, now);
    }

    /// Makes a packet available, in two buffers if it has a payload.
    fn put(&mut self, header: Header, payload: &[u8]) {
        let ring = &mut self.rings[1];
        let slot = ring.available % (SIZE / 2);
        let at = OUT + u64::from(slot) * OUT_SLOT;
        put(&self.memory, at, header.as_bytes());
        put(&self.memory, at + 0x100, payload);
        let mut buffers = vec![(at, HEADER as u32, false)];
        if !payload.is_empty() {
            buffers.push((at + 0x100, payload.len() as u32, false));
        }
        ring.chain(2 * slot, &buffers);
        ring.offer(2 * slot);
    }

    fn send_at(&mut self, header: Header, payload: &[u8], now: u64) {
        self.put(header, payload);
        self.notify(1, now);
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_at(header, payload, 0);
    }

    /// Packets that are done with.
    fn sent(&mut self) -> usize {
        core::iter::from_fn(|| self.rings[1].used()).inspect(|(_, len)| assert_eq!(*len, 0)).count()
    }

    /// What has come.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.transport.poll(NOW);
        self.seen()
    }

    /// What has come as far as the driver was told.
    fn seen(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = vec![];
        while let Some((head, len)) = self.rings[0].used() {
            let at = IN + u64::from(head) * IN_SLOT;
            let header = Header::read_from_bytes(&get::<HEADER>(&self.memory, at)).unwrap();
            assert_eq!(len, HEADER as u32 + header.len.get());
            let mut payload = vec![0; header.len.get() as usize];
            let bytes = self.memory.slice(Ipa::new(at + HEADER as u64), payload.len()).unwrap();
            bytes.read_bytes(0, &mut payload).unwrap();
            packets.push((header, payload));
        }
        packets
    }

    fn operations(&mut self) -> Vec<u16> {
        self.received().iter().map(|(header, _)| header.op.get()).collect()
    }

    /// Connects port 1000 of this guest to port 80 of `other`.
    fn connect(&mut self, other: &mut Guest) {
        self.send(packet(self.cid, other.cid, op::REQUEST, 0), &[]);
        assert_eq!(other.operations(), [op::REQUEST]);
        other.send(reverse(packet(self.cid, other.cid, op::RESPONSE, 0)), &[]);
        assert_eq!(self.operations(), [op::RESPONSE]);
    }

    /// Offers a buffer for events.
    fn post_event(&mut self, len: u32) {
        let ring = &mut self.rings[2];
        let head = ring.available % EVENTS;
        ring.chain(head, &[(IN - 16, len, true)]);
        ring.offer(head);
        self.notify(2, 0);
    }

    fn counter(&self, wanted: &str) -> u64 {
        let mut found = None;
        self.transport.statistics(&mut |name, value| {
            if name == wanted {
                found = Some(value);
            }
        });
        found.unwrap()
    }
}

/// A packet from port 1000 of `from` to port 80 of `to`, of a stream.
fn packet(from: u32, to: u32, op: u16, len: u32) -> Header {
    Header {
        src_cid: u64::from(from).into(),
        dst_cid: u64::from(to).into(),
        src_port: 1000.into(),
        dst_port: 80.into(),
        len: len.into(),
        kind: 1.into(),
        op: op.into(),
        flags: 0.into(),
        buf_alloc: 0x4_0000.into(),
        fwd_cnt: 0xFFFF_FFF0.into(),
    }
}

/// The same, the other way.
fn reverse(header: Header) -> Header {
    Header {
        src_cid: header.dst_cid,
        dst_cid: header.src_cid,
        src_port: header.dst_port,
        dst_port: header.src_port,
        ..header
    }
}

/// What a packet that is refused is answered with.
fn reset_of(header: Header) -> Header {
    let reset = Header { op: op::RST.into(), len: 0.into(), flags: 0.into(), ..reverse(header) };
    Header { buf_alloc: 0.into(), fwd_cnt: 0.into(), ..reset }
}

#[test]
fn configuration_space_is_the_guests_cid_without_an_upper_half() {
    let board = Board::new();
    let guest = board.guest(0xFFFF_FFFE, &[]);
    let config: Vec<u32> = (0..3).map(|at| guest.transport.get(0x100 + 4 * at)).collect();
    assert_eq!(config, [0xFFFF_FFFE, 0, 0]);
    assert_eq!(guest.transport.device_type(), DeviceType::SOCKET);
}

#[test]
fn reserved_cids_and_those_of_others_are_nobodys() {
    let board = Board::new();
    for cid in [0, 1, 2, u32::MAX] {
        assert!(board.device(cid, &[]).is_err(), "{cid}");
    }
    assert!(board.device(3, &[]).is_ok());
    assert!(board.device(3, &[]).is_err());
    for cid in 4..11 {
        assert!(board.device(cid, &[]).is_ok());
    }
    assert!(board.device(11, &[]).is_err(), "there is no room for more");
}

#[test]
fn a_packet_arrives_as_it_was_sent() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    for op in op::REQUEST..=op::CREDIT_REQUEST {
        let payload: &[u8] = if op == op::RW { b"hello" } else { &[] };
        let header = Header { flags: 3.into(), ..packet(3, 4, op, payload.len() as u32) };
        board.woken.take();
        a.send(header, payload);
        assert_eq!(a.sent(), 1);
        assert_eq!(board.woken.take(), 1 << 4);
        assert_eq!(b.received(), [(header, payload.to_vec())], "{op}");
    }
    assert_eq!(a.received(), []);
    assert_eq!([a.counter("tx_packets"), a.counter("tx_bytes")], [7, 5]);
    assert_eq!([b.counter("rx_packets"), b.counter("rx_bytes")], [7, 5]);
}

#[test]
fn how_buffers_are_cut_means_nothing() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.idle(4, &[3]));
    b.bring_up(ALL);
    let header = packet(3, 4, op::RW, 100);
    let payload: Vec<u8> = (0..100).collect();
    // One buffer of 3 + 41 + 1 + 200 bytes.
    b.rings[0]
        .chain(0, &[(IN, 3, true), (IN + 3, 41, true), (IN + 44, 1, true), (IN + 45, 200, true)]);
    b.rings[0].offer(0);
    b.notify(0, 0);
    put(&a.memory, OUT, header.as_bytes());
    put(&a.memory, OUT + 44, &payload);
    let ring = &mut a.rings[1];
    ring.chain(0, &[(OUT, 20, false), (OUT + 20, 30, false), (OUT + 50, 94, false)]);
    ring.offer(0);
    a.notify(1, 0);
    assert_eq!(b.received(), [(header, payload)]);
}

#[test]
fn more_than_a_buffer_holds_is_cut_and_the_last_piece_ends_the_message() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    let payload: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
    for (kind, middle) in [(1, 3), (2, 0)] {
        let header = Header {
            kind: kind.into(),
            flags: flags::BOUNDARIES.into(),
            ..packet(3, 4, op::RW, 10_000)
        };
        a.send(header, &payload);
        assert_eq!(a.sent(), 1);
        let pieces = b.received();
        let lengths: Vec<u32> = pieces.iter().map(|(header, _)| header.len.get()).collect();
        assert_eq!(lengths, [4052, 4052, 1896]);
        let flags: Vec<u32> = pieces.iter().map(|(header, _)| header.flags.get()).collect();
        assert_eq!(flags, [middle, middle, 3]);
        assert_eq!(pieces.concat_payload(), payload);
    }
}

trait Concat {
    fn concat_payload(&self) -> Vec<u8>;
}

impl Concat for Vec<(Header, Vec<u8>)> {
    fn concat_payload(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, payload)| payload.clone()).collect()
    }
}

#[test]
fn bytes_behind_len_are_not_sent() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    a.send(packet(3, 4, op::RW, 3), b"hello");
    assert_eq!(b.received(), [(packet(3, 4, op::RW, 3), b"hel".to_vec())]);
    a.send(packet(3, 4, op::CREDIT_UPDATE, 0), b"hello");
    assert_eq!(b.received(), [(packet(3, 4, op::CREDIT_UPDATE, 0), vec![])]);
}

#[test]
fn a_packet_with_a_false_source_or_no_header_is_dropped() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    for source in [0, 1, 2, 4, 5, u64::MAX, 3 | 1 << 32] {
        let header = Header { src_cid: source.into(), ..packet(3, 4, op::REQUEST, 0) };
        a.send(header, &[]);
    }
    let ring = &mut a.rings[1];
    ring.chain(20, &[(OUT, HEADER as u32 - 1, false)]);
    ring.offer(20);
    a.notify(1, 0);
    assert_eq!(a.sent(), 8);
    assert_eq!([a.counter("dropped: source CID"), a.counter("dropped: malformed")], [7, 1]);
    assert_eq!((a.received(), b.received()), (vec![], vec![]));
}

#[test]
fn what_is_not_understood_or_not_for_anybody_is_reset() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4, 6, 7]), board.guest(4, &[3, 5]));
    let mut c = board.guest(5, &[3, 4]);
    let _idle = board.idle(6, &[3]);
    let good = packet(3, 4, op::REQUEST, 0);
    let bad = [
        // Unknown types and operations.
        Header { kind: 0.into(), ..good },
        Header { kind: 3.into(), ..good },
        Header { op: 0.into(), ..good },
        Header { op: 8.into(), ..good },
        Header { op: 0xFFFF.into(), ..good },
        // More than there is, or something where nothing can be.
        packet(3, 4, op::RW, 6),
        packet(3, 4, op::RW, u32::MAX),
        packet(3, 4, op::REQUEST, 5),
        // Itself, those it may not talk with or that have it not for a peer, and nobody.
        packet(3, 3, op::REQUEST, 0),
        packet(3, 5, op::REQUEST, 0),
        packet(3, 7, op::REQUEST, 0),
        packet(3, 2, op::REQUEST, 0),
        packet(3, 1, op::REQUEST, 0),
        packet(3, 0, op::REQUEST, 0),
        packet(3, u32::MAX, op::REQUEST, 0),
        Header { dst_cid: (4 | 1 << 32).into(), ..good },
        // One without a driver.
        packet(3, 6, op::REQUEST, 0),
        packet(3, 6, op::RW, 5),
    ];
    for (count, header) in bad.into_iter().enumerate() {
        a.send(header, b"hello");
        assert_eq!(a.received(), [(reset_of(header), vec![])], "{header:?}");
        assert_eq!(a.counter("refused"), 2 * count as u64 + 1);
        // A reset is not answered.
        a.send(Header { op: op::RST.into(), dst_cid: 99.into(), ..header }, &[]);
        assert_eq!(a.received(), [], "{header:?}");
        a.post(1, 0x1000);
    }
    c.send(packet(5, 3, op::REQUEST, 0), &[]);
    assert_eq!(c.operations(), [op::RST], "the other has it not for a peer");
    assert_eq!((b.received(), c.received()), (vec![], vec![]));
}

#[test]
fn a_guest_has_the_types_of_sockets_that_its_driver_has_accepted() {
    let board = Board::new();
    let mut a = board.guest(3, &[4]);
    let mut b = board.idle(4, &[3]);
    for (accepted, taken) in [
        (V1, [true, false]),
        (V1 | STREAM, [true, false]),
        (V1 | SEQPACKET, [true, true]),
        (V1 | SEQPACKET | NO_IMPLIED_STREAM, [false, true]),
        (V1 | STREAM | NO_IMPLIED_STREAM, [true, false]),
        (V1 | NO_IMPLIED_STREAM, [false, false]),
        (ALL, [true, true]),
    ] {
        b.bring_up(accepted);
        b.post(4, 0x1000);
        // What it had with the driver before.
        let ended = a.operations();
        assert!(ended.iter().all(|op| *op == op::RST));
        a.post(ended.len() as u16, 0x1000);
        for (kind, taken) in [1u16, 2].into_iter().zip(taken) {
            let request = Header { kind: kind.into(), ..packet(3, 4, op::REQUEST, 0) };
            a.send(request, &[]);
            assert_eq!(b.received().len(), usize::from(taken), "{accepted:?} {kind}");
            assert_eq!(a.received().len(), usize::from(!taken), "{accepted:?} {kind}");
            // And does not send others.
            b.send(reverse(request), &[]);
            assert_eq!(a.received().len(), usize::from(taken), "{accepted:?} {kind}");
            let answered = b.received();
            assert_eq!(answered.len(), usize::from(!taken), "{accepted:?} {kind}");
            assert!(answered.iter().all(|(answer, _)| *answer == reset_of(reverse(request))));
            a.post(1, 0x1000);
        }
    }
    let page = a.transport.offered(0);
    assert_eq!(page & 0xFF_FFFF, 7);
}

trait Offer {
    fn offered(&mut self, page: u32) -> u32;
}

impl Offer for Transport {
    fn offered(&mut self, page: u32) -> u32 {
        self.set(0x14, page);
        self.get(0x10)
    }
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_queue() {
    let board = Board::new();
    let mut a = board.idle(3, &[4]);
    a.bring_up(ALL);
    a.post(1, HEADER as u32 - 1);
    assert_eq!(a.transport.get(0x70) & 0x40, 0x40);
    let mut b = board.guest(4, &[3]);
    b.lose_all(&mut a);
    a.bring_up(ALL);
    a.post(2, HEADER as u32);
    // There is no room for data, but the connection does not hang.
    b.send(packet(4, 3, op::REQUEST, 0), &[]);
    assert_eq!(a.operations(), [op::REQUEST]);
}

impl Guest {
    /// Has the other reset its device.
    fn lose_all(&mut self, other: &mut Guest) {
        other.transport.set(0x70, 0);
        assert_eq!(other.transport.get(0x70), 0);
        self.transport.poll(NOW);
    }
}

#[test]
fn packets_a_second_are_limited() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    let rate = crate::virtio::limiter::Rate { per_second: 1, burst: 1 };
    let limits = Limits { bytes: None, requests: Some(rate) };
    a.transport.adjust(Adjustment::Limit(Direction::Out, limits), &Stopped).unwrap();
    assert_eq!(
        a.transport.adjust(Adjustment::Link(false), &Stopped),
        Err(NotAdjusted::Unsupported)
    );
    a.put(packet(3, 4, op::RW, 1), b"1");
    a.send(packet(3, 4, op::RW, 1), b"2");
    assert_eq!(b.received().concat_payload(), b"1");
    let NextPoll::At(time) = a.transport.next_poll() else { panic!("no time") };
    a.transport.poll(time);
    assert_eq!(b.received().concat_payload(), b"2");
    assert_eq!(a.transport.next_poll(), NextPoll::OnEvent);
}
