//! Tests of the network device, from the registers to a port that does as the test says.

mod commands;
mod life;
mod throttle;

use std::collections::VecDeque;
use std::sync::RwLockWriteGuard;

use super::*;
use crate::backend::net::{
    Busy, Checksum, Filter, Frame, FrameInfo, Gso, MacAddress, Offloads, Received, Reception,
    Segmentation, SendTag, Sent,
};
use crate::memory::{GuestMemory, HostRam, SharedSlice};
use crate::sync::testing::Shared;
use crate::virtio::queue::Areas;
use crate::virtio::testing::{Driver, NOW, RAM, Registers, guest_memory};
use crate::virtio::{MmioTransport, Width};

const V1: Features = Features::VERSION_1;
const CONTROL: Features = V1.union(CTRL_VQ);

/// A port that can do everything, with one pair.
pub(super) const INFO: NetInfo = NetInfo {
    mac: MacAddress([2, 0, 0, 0, 0, 1]),
    mtu: 1500,
    link_up: true,
    speed: None,
    takes: Offloads::all(),
    gives: Offloads::all(),
    pairs: 1,
};

/// RAM that has room for large frames.
const MEMORY: usize = 0x8_0000;
/// Where the rings are, and where frames and buffers.
const RING: u64 = 0x1000;
const FRAMES: u64 = RAM + 0x2_0000;
const BUFFERS: u64 = RAM + 0x6_0000;
/// Entries of every ring.
const SIZE: u16 = 32;

/// A frame that the port got.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    pair: u16,
    tag: u16,
    info: FrameInfo,
    bytes: Vec<u8>,
}

/// A port that does as the test says, and keeps what it is told.
struct Manual {
    info: NetInfo,
    receptions: Vec<Reception>,
    filters: Vec<Filter>,
    taken: Vec<Taken>,
    answer: Result<Sent, Busy>,
    gone: VecDeque<SendTag>,
    /// Buffers posted and not given back, by pair.
    posted: [Vec<usize>; MAX_PAIRS],
    room: usize,
    received: [VecDeque<Received>; MAX_PAIRS],
    kicks: usize,
    /// Answers that it is not closed yet.
    closing: usize,
    closed: usize,
    changed: bool,
    /// An operator can take its link up and down.
    has_link: bool,
    /// When it has something to do by itself, and when it was called to.
    due: Option<Ticks>,
    ticks: Vec<u64>,
}

#[derive(Clone)]
struct Port(Shared<Manual>);

impl Port {
    fn new() -> Self {
        Self(Shared::new(Manual {
            info: INFO,
            receptions: vec![],
            filters: vec![],
            taken: vec![],
            answer: Ok(Sent::Done),
            gone: VecDeque::new(),
            posted: Default::default(),
            room: usize::MAX,
            received: Default::default(),
            kicks: 0,
            closing: 0,
            closed: 0,
            changed: false,
            has_link: true,
            due: None,
            ticks: vec![],
        }))
    }

    fn get(&self) -> RwLockWriteGuard<'_, Manual> {
        self.0.borrow_mut()
    }

    fn fill(&self, pair: usize, written: u32, continues: bool) {
        let mut port = self.get();
        port.posted[pair].remove(0);
        port.received[pair].push_back(Received { written, continues });
    }

    fn change(&self, change: impl FnOnce(&mut NetInfo)) {
        let mut port = self.get();
        change(&mut port.info);
        port.changed = true;
    }

    fn posted(&self, pair: usize) -> Vec<usize> {
        self.get().posted[pair].clone()
    }

    fn filter(&self) -> Filter {
        self.get().filters.last().cloned().unwrap()
    }

    fn reception(&self) -> Reception {
        *self.get().receptions.last().unwrap()
    }
}

impl<'m> NetBackend<'m> for Port {
    fn info(&self) -> NetInfo {
        self.get().info
    }

    fn open(&mut self, reception: Reception) {
        self.get().receptions.push(reception);
    }

    fn set_filter(&mut self, filter: &Filter) {
        self.get().filters.push(filter.clone());
    }

    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        _now: Ticks,
    ) -> Result<Sent, Busy> {
        let mut port = self.get();
        let answer = port.answer?;
        let mut bytes = vec![];
        for segment in frame.segments {
            assert!(!segment.is_empty());
            bytes.extend((0..segment.len()).map(|at| segment.load_u8(at).unwrap()));
        }
        assert_eq!(bytes.len(), frame.len);
        port.taken.push(Taken { pair, tag: tag.0, info: frame.info, bytes });
        Ok(answer)
    }

    fn kick(&mut self) {
        self.get().kicks += 1;
    }

    fn poll_sent(&mut self, _now: Ticks) -> Option<SendTag> {
        self.get().gone.pop_front()
    }

    fn post(&mut self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        let mut port = self.get();
        let room = port.room;
        let posted = &mut port.posted[usize::from(pair)];
        if posted.len() >= room {
            return Err(Busy);
        }
        posted.push(segments.iter().map(SharedSlice::len).sum());
        Ok(())
    }

    fn poll_received(&mut self, pair: u16) -> Option<Received> {
        self.get().received[usize::from(pair)].pop_front()
    }

    fn withdraw(&mut self, pair: u16) {
        let mut port = self.get();
        port.posted[usize::from(pair)].clear();
        port.received[usize::from(pair)].clear();
    }

    fn close(&mut self, _now: Ticks) -> bool {
        let mut port = self.get();
        if port.closing != 0 {
            port.closing -= 1;
            return false;
        }
        port.posted = Default::default();
        port.received = Default::default();
        port.gone.clear();
        port.closed += 1;
        true
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn take_change(&mut self) -> bool {
        core::mem::take(&mut self.get().changed)
    }

    fn tick(&mut self, now: Ticks) -> Option<Ticks> {
        let mut port = self.get();
        port.ticks.push(now.0);
        port.due
    }

    fn set_link(&mut self, up: bool) -> bool {
        let has_link = self.get().has_link;
        if has_link {
            self.change(|info| info.link_up = up);
        }
        has_link
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        visit("closed", self.get().closed as u64);
    }
}

/// The rings of all queues, and a driver for each.
struct Guest<'m>(Vec<Driver<'m>>);

impl<'m> Guest<'m> {
    fn new(memory: &GuestMemory<'m>) -> Self {
        let zeros = vec![0; 9 * RING as usize];
        crate::virtio::testing::put(memory, RAM, &zeros);
        let driver = |index: u64| {
            let at = RAM + index * RING;
            let areas = Areas { descriptor: at, driver: at + 0x400, device: at + 0x800 };
            Driver { memory: memory.clone(), areas, size: SIZE, available: 0, seen: 0 }
        };
        Self((0..9).map(driver).collect())
    }

    /// Negotiates, and enables the first `queues` queues.
    fn bring_up(&self, transport: &mut MmioTransport<'_, '_>, features: Features, queues: usize) {
        assert!(transport.negotiate(features));
        for index in 0..queues {
            self.enable(transport, index);
        }
        transport.set(0x70, 15);
        assert_eq!(transport.get(0x70), 15);
    }

    fn enable(&self, transport: &mut MmioTransport<'_, '_>, index: usize) {
        transport.configure_queue(index as u32, SIZE.into(), &self.0[index].areas);
        transport.set(0x44, 1);
    }

    /// Makes a chain available that begins at the descriptor that its place in the ring has.
    fn offer(&mut self, index: usize, buffers: &[(u64, u32, bool)]) -> u32 {
        let driver = &mut self.0[index];
        let head = driver.available.wrapping_mul(buffers.len() as u16) % SIZE;
        driver.chain(head, buffers);
        driver.offer(head);
        head.into()
    }

    /// Puts header and frame into a chain of two buffers of queue `index`.
    fn send(
        &mut self,
        transport: &mut MmioTransport<'_, '_>,
        index: usize,
        header: [u8; 12],
        frame: &[u8],
    ) -> u32 {
        self.0[index].put(FRAMES, &header);
        self.0[index].put(FRAMES + 0x100, frame);
        let mut buffers = vec![(FRAMES, 12, false)];
        if !frame.is_empty() {
            buffers.push((FRAMES + 0x100, frame.len() as u32, false));
        }
        let head = self.offer(index, &buffers);
        transport.set(0x50, index as u32);
        head
    }

    /// Posts a buffer of `len` bytes to receive queue `index`.
    fn post(&mut self, transport: &mut MmioTransport<'_, '_>, index: usize, len: u32) -> u32 {
        let head = self.offer(index, &[(BUFFERS, len, true)]);
        transport.set(0x50, index as u32);
        head
    }

    /// Gives a command on control queue `index`: the answer.
    fn command(
        &mut self,
        transport: &mut MmioTransport<'_, '_>,
        index: usize,
        command: &[u8],
    ) -> u8 {
        self.0[index].put(FRAMES, command);
        self.0[index].put(BUFFERS, &[0xFF; 2]);
        let buffers = [(FRAMES, command.len() as u32, false), (BUFFERS, 1, true)];
        let head = self.offer(index, &buffers);
        transport.set(0x50, index as u32);
        assert_eq!(self.0[index].used(), Some((head, 1)));
        let [ack, beyond] = self.0[index].get(BUFFERS);
        assert_eq!(beyond, 0xFF);
        ack
    }

    fn used(&mut self, index: usize) -> Option<(u32, u32)> {
        self.0[index].used()
    }
}

/// A guest before a network device at `$port`, live with `$features` and `$queues` queues.
macro_rules! guest {
    ($port:ident, $features:expr, $queues:expr, $guest:ident, $transport:ident) => {
        let ram = HostRam::new(MEMORY);
        let memory = guest_memory(&ram);
        #[allow(unused_mut)]
        let mut $guest = Guest::new(&memory);
        let mut backend = $port.clone();
        let mut device = Net::new(&mut backend);
        #[allow(unused_mut)]
        let mut $transport = MmioTransport::new(&mut device, memory);
        $guest.bring_up(&mut $transport, $features, $queues);
    };
}
use guest;

fn statistic(transport: &MmioTransport<'_, '_>, wanted: &str) -> u64 {
    let mut found = None;
    transport.statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap()
}

/// All of configuration space that can be other than zero, and what follows.
fn config(transport: &MmioTransport<'_, '_>) -> Vec<u8> {
    (0x100..0x114).map(|at| transport.read(at, Width::Byte) as u8).collect()
}

const PLAIN: [u8; 12] = [0; 12];
/// TCP over IPv4, 1448 bytes a piece, header length 54.
const TSO: [u8; 12] = [1, 1, 54, 0, 0xA8, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn a_port_is_described_as_it_is() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    assert_eq!(transport.get(0x08), 1);
    let common = (1 << 28) | (1 << 29);
    let offloads = 0x3B83 | 4;
    let rest = (1 << 3) | (1 << 5) | (1 << 15) | (0x3F << 16) | (1 << 23);
    assert_eq!(transport.get(0x10), common | offloads | rest);
    assert_eq!(transport.common_offer() >> 50, 0b10_0000_0111_0000);
    let mut expected = vec![2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0xDC, 5, 255, 255, 255, 255, 255];
    expected.resize(20, 0);
    assert_eq!(config(&transport), expected);
    for queue in 0..4 {
        transport.set(0x30, queue);
        assert_eq!(transport.get(0x34), if queue < 3 { 256 } else { 0 });
    }

    {
        let info = &mut port.get().info;
        info.pairs = 3;
        info.mtu = 67;
        info.speed = Some(10_000);
        info.link_up = false;
        info.takes = Offloads::TSO4 | Offloads::USO;
        info.gives = Offloads::CSUM;
    }
    transport.set(0x70, 0);
    let offloads = (1 << 1) | 4;
    let rest = (1 << 5) | (1 << 15) | (0x7F << 16) | (1 << 23);
    assert_eq!(transport.get(0x10), common | offloads | rest);
    assert_eq!(transport.common_offer() >> 50, 0b10_0000_0000_0000);
    let mut expected = vec![2, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0x10, 0x27, 0, 0, 1];
    expected.resize(20, 0);
    assert_eq!(config(&transport), expected);
    let mut info = port.get().info;
    info.speed = Some(1 << 31);
    assert_eq!(wire::config(&info, info.mac, false)[12..], [255; 5]);
}

/// What is read of DeviceFeatures.
trait Offer {
    fn common_offer(&mut self) -> u64;
}

impl Offer for MmioTransport<'_, '_> {
    fn common_offer(&mut self) -> u64 {
        self.set(0x14, 1);
        let high = self.get(0x10);
        self.set(0x14, 0);
        u64::from(high) << 32 | u64::from(self.get(0x10))
    }
}

#[test]
fn features_that_lack_what_they_need_are_refused() {
    let port = Port::new();
    let ram = HostRam::new(MEMORY);
    let mut backend = port.clone();
    let mut device = Net::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    let lacking = [
        GUEST_TSO4,
        GUEST_TSO6,
        GUEST_USO4,
        GUEST_USO6,
        GUEST_CSUM | GUEST_ECN,
        GUEST_CSUM | GUEST_USO4 | GUEST_ECN,
        HOST_TSO4,
        HOST_TSO6,
        HOST_USO,
        CSUM | HOST_ECN,
        GUEST_CSUM | HOST_TSO4,
        CTRL_RX,
        CTRL_VLAN,
        GUEST_ANNOUNCE,
        CTRL_MAC_ADDR,
    ];
    for set in lacking {
        assert!(!transport.negotiate(V1 | set), "{set:?}");
    }
    let complete = [
        Features::empty(),
        GUEST_CSUM | GUEST_TSO6 | GUEST_ECN,
        CSUM | HOST_TSO4 | HOST_ECN,
        CSUM | HOST_USO,
        CTRL_VQ | CTRL_RX | CTRL_VLAN,
        CTRL_RX_EXTRA | CTRL_GUEST_OFFLOADS,
    ];
    for set in complete {
        assert!(transport.negotiate(V1 | set), "{set:?}");
    }
    assert!(!transport.negotiate(V1 | CTRL_VQ | MQ), "not offered");
}

#[test]
fn features_that_are_not_real_are_not_offered() {
    // Legacy GSO, UFO both ways, HASH_TUNNEL, both of NOTF_COAL, HASH_REPORT, GUEST_HDRLEN, RSS,
    // RSC_EXT, STANDBY.
    let absent = [6, 10, 14, 51, 52, 53, 57, 59, 60, 61, 62];
    for info in [INFO, NetInfo { pairs: 4, ..INFO }, NetInfo { mtu: 0, ..INFO }] {
        let offered = wire::features(&info).bits();
        assert!(absent.iter().all(|bit| offered >> bit & 1 == 0), "{offered:#x}");
    }
}

#[test]
fn frames_go_to_the_port_as_they_are_and_are_done_with() {
    let port = Port::new();
    let features = V1 | wire::features(&port.get().info);
    guest!(port, features, 3, guest, transport);
    let small: Vec<u8> = (0..60).collect();
    let head = guest.send(&mut transport, 1, PLAIN, &small);
    assert_eq!(guest.used(1), Some((head, 0)));
    assert!(transport.take_interrupt());
    let large = vec![7; 0x1_0000];
    guest.send(&mut transport, 1, TSO, &large);
    let gso = Gso { kind: Segmentation::TcpV4, size: 1448, header_len: 54, ecn: false };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    let taken = [
        Taken { pair: 0, tag: 0, info: FrameInfo::PLAIN, bytes: small },
        Taken { pair: 0, tag: 0, info: FrameInfo { checksum, gso: Some(gso) }, bytes: large },
    ];
    assert_eq!(port.get().taken, taken);
    assert_eq!((port.get().kicks, transport.next_poll()), (2, NextPoll::OnEvent));
    assert_eq!(statistic(&transport, "tx_frames"), 2);
    assert_eq!(statistic(&transport, "tx_bytes"), 60 + 0x1_0000);
}

#[test]
fn headers_and_frames_may_be_cut_anywhere() {
    let port = Port::new();
    for cut in [1, 5, 11, 12, 13, 20, 71] {
        guest!(port, V1, 2, guest, transport);
        guest.0[1].put(FRAMES, &[0; 12]);
        guest.0[1].put(FRAMES + 12, &[9; 60]);
        let buffers = [(FRAMES, cut, false), (FRAMES + u64::from(cut), 72 - cut, false)];
        guest.offer(1, &buffers);
        transport.set(0x50, 1);
        assert_eq!(port.get().taken.pop().unwrap().bytes, [9; 60]);
        assert_eq!(guest.used(1), Some((0, 0)));
    }
}

#[test]
fn a_frame_that_cannot_be_sent_is_lost_and_counted_and_all_goes_on() {
    let port = Port::new();
    guest!(port, V1 | CSUM | HOST_TSO4, 2, guest, transport);
    let bad: [([u8; 12], usize); 8] = [
        (PLAIN, 0),
        (PLAIN, 13),
        (PLAIN, 1519),
        (PLAIN, 0x1_0000),
        ([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0], 60),
        ([1, 4, 0, 0, 1, 1, 34, 0, 16, 0, 0, 0], 60),
        ([1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 60),
        ([1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], 60),
    ];
    for (header, len) in bad {
        let head = guest.send(&mut transport, 1, header, &vec![0; len]);
        assert_eq!(guest.used(1), Some((head, 0)), "{header:?} {len}");
    }
    // Not even a header; nothing to read at all; something to write.
    for buffers in [[(FRAMES, 11, false)], [(FRAMES, 64, true)]] {
        let head = guest.offer(1, &buffers);
        transport.set(0x50, 1);
        assert_eq!(guest.used(1), Some((head, 0)));
    }
    assert!(port.get().taken.is_empty());
    assert_eq!(port.get().kicks, 0);
    assert_eq!(statistic(&transport, "tx_bad_length"), 4);
    assert_eq!(statistic(&transport, "tx_bad_header"), 6);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!((port.get().taken.len(), transport.get(0x70)), (1, 15));
}

#[test]
fn frames_that_hardware_reads_complete_when_it_has_and_in_its_order() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    port.get().answer = Ok(Sent::InFlight);
    let heads: Vec<u32> = (0..3).map(|_| guest.send(&mut transport, 1, PLAIN, &[0; 60])).collect();
    let tags: Vec<u16> = port.get().taken.iter().map(|taken| taken.tag).collect();
    assert_eq!((tags, guest.used(1)), (vec![0, 1, 2], None));
    assert_eq!(transport.next_poll(), NextPoll::Soon);
    port.get().gone.extend([SendTag(2), SendTag(0), SendTag(9), SendTag(2)]);
    transport.poll(NOW);
    assert_eq!([guest.used(1), guest.used(1)], [Some((heads[2], 0)), Some((heads[0], 0))]);
    // A tag that is not in flight means nothing.
    transport.poll(NOW);
    assert_eq!(guest.used(1), None);
    port.get().gone.push_back(SendTag(1));
    transport.poll(NOW);
    assert_eq!(guest.used(1), Some((heads[1], 0)));
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
    // The lowest tag that is free is the next.
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!(port.get().taken[3].tag, 0);
}

#[test]
fn a_port_without_room_leaves_frames_in_the_ring() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    port.get().answer = Err(Busy);
    let heads: Vec<u32> = (0..2).map(|_| guest.send(&mut transport, 1, PLAIN, &[0; 60])).collect();
    transport.poll(NOW);
    assert_eq!((guest.used(1), port.get().kicks), (None, 0));
    assert_eq!(transport.next_poll(), NextPoll::Soon);
    assert_eq!(statistic(&transport, "tx_frames"), 0);
    port.get().answer = Ok(Sent::Done);
    transport.poll(NOW);
    assert_eq!([guest.used(1), guest.used(1)], [Some((heads[0], 0)), Some((heads[1], 0))]);
    assert_eq!((transport.next_poll(), port.get().kicks), (NextPoll::OnEvent, 1));
}

#[test]
fn as_many_frames_are_in_flight_as_there_are_tags() {
    let port = Port::new();
    port.get().answer = Ok(Sent::InFlight);
    port.get().info.pairs = 4;
    let features = V1 | CTRL_VQ | MQ;
    guest!(port, features, 9, guest, transport);
    for at in 0..72 {
        let index = 1 + 2 * (at % 4);
        guest.offer(index, &[(FRAMES, 72, false)]);
        transport.set(0x50, index as u32);
    }
    let mut tags: Vec<u16> = port.get().taken.iter().map(|taken| taken.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..64).collect::<Vec<u16>>());
    port.get().gone.extend((0..64).map(SendTag));
    transport.poll(NOW);
    assert_eq!(port.get().taken.len(), 72);
    port.get().gone.extend((0..8).map(SendTag));
    transport.poll(NOW);
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
    let done: usize =
        (1..9).step_by(2).map(|index| core::iter::from_fn(|| guest.used(index)).count()).sum();
    assert_eq!(done, 72);
}

#[test]
fn buffers_are_posted_and_come_back_with_frames_in_order() {
    let port = Port::new();
    guest!(port, V1 | MRG_RXBUF, 2, guest, transport);
    let heads: Vec<u32> = (0..4).map(|at| guest.post(&mut transport, 0, 100 + at)).collect();
    assert_eq!(port.posted(0), [100, 101, 102, 103]);
    assert_eq!((guest.used(0), transport.next_poll()), (None, NextPoll::OnEvent));
    port.fill(0, 72, false);
    port.fill(0, 101, true);
    port.fill(0, 31, false);
    transport.poll(NOW);
    assert!(transport.take_interrupt() && !transport.take_interrupt());
    let expected = [(heads[0], 72), (heads[1], 101), (heads[2], 31)].map(Some);
    assert_eq!([guest.used(0), guest.used(0), guest.used(0)], expected);
    assert_eq!((guest.used(0), port.posted(0)), (None, vec![103]));
    assert_eq!(statistic(&transport, "rx_frames"), 2);
    assert_eq!(statistic(&transport, "rx_buffers"), 3);
    assert_eq!(statistic(&transport, "rx_bytes"), 72 + 132 - 2 * 12);
}

#[test]
fn what_has_come_is_there_after_a_frame_was_sent() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    guest.post(&mut transport, 0, 1526);
    port.fill(0, 72, false);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!(guest.used(0), Some((0, 72)));
}

#[test]
fn buffers_that_the_port_has_no_room_for_wait_without_being_asked_for() {
    let port = Port::new();
    port.get().room = 2;
    guest!(port, V1, 2, guest, transport);
    for _ in 0..5 {
        guest.post(&mut transport, 0, 100);
    }
    assert_eq!((port.posted(0).len(), transport.next_poll()), (2, NextPoll::OnEvent));
    transport.poll(NOW);
    assert_eq!((port.posted(0).len(), transport.next_poll()), (2, NextPoll::OnEvent));
    for _ in 0..5 {
        port.fill(0, 72, false);
        transport.poll(NOW);
        assert!(guest.used(0).is_some());
    }
    assert_eq!((guest.used(0), port.posted(0)), (None, vec![]));
    guest.post(&mut transport, 0, 100);
    assert_eq!(port.posted(0), [100]);
}

#[test]
fn a_buffer_without_room_for_a_header_needs_a_reset() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    guest.post(&mut transport, 0, 12);
    assert_eq!((port.posted(0), transport.get(0x70)), (vec![12], 15));
    guest.post(&mut transport, 0, 11);
    assert_eq!(transport.get(0x70), 15 | 64);
    assert_eq!(transport.fault(), Some(QueueError::NoRoomForStatus));
    assert_eq!((port.posted(0), port.get().closed), (vec![], 2), "once to reset at first");
}
