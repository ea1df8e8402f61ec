//! A network device, its driver, and a port between them and itself that checks what it is asked.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sparkler::backend::clock::Ticks;
use sparkler::backend::loopback::{Completion, Loopback};
use sparkler::backend::net::{
    Busy, Checksum, Filter, Frame, MAX_FRAME, MIN_FRAME, MacAddress, NetBackend, NetInfo, Offloads,
    Received, Reception, Segmentation, SendTag, Sent,
};
use sparkler::memory::SharedSlice;
use sparkler::virtio::devices::net::Net;
use sparkler::virtio::queue::Areas;
use sparkler::virtio::{MmioTransport, NextPoll};

use crate::guest::{BUFFERS, Bus, Guest, RAM, is_ram, memories};
use crate::input::Input;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Entries of every queue.
const SIZE: u16 = 16;
/// Room for buffers, and the part of each chain.
const ROOM: u64 = 0x6000 / SIZE as u64;
const MTU: u16 = 1500;
const MAX_ACTIONS: usize = 200;

const MQ: u64 = 1 << 22;
const CTRL_VQ: u64 = 1 << 17;
const MRG_RXBUF: u64 = 1 << 15;
/// All offloads, both ways.
const OFFLOADS: u64 = 0b11 | 7 << 7 | 7 << 11 | 7 << 54;

/// What the port has seen.
#[derive(Default)]
struct Seen {
    sent: AtomicUsize,
    told: AtomicUsize,
    open: AtomicBool,
}

/// A loopback that holds the device to the contract.
struct Port {
    inner: Loopback<'static>,
    seen: Arc<Seen>,
    in_flight: [bool; 65536],
    posted: [usize; 4],
}

impl NetBackend<'static> for Port {
    fn info(&self) -> NetInfo {
        self.inner.info()
    }

    fn open(&mut self, reception: Reception) {
        let pairs = self.info().pairs;
        assert!((1..=pairs).contains(&reception.pairs));
        let accepts = reception.accepts;
        assert!(accepts.is_empty() || accepts.contains(Offloads::CSUM), "{accepts:?}");
        self.seen.open.store(true, Ordering::Relaxed);
        self.seen.told.fetch_add(1, Ordering::Relaxed);
        self.inner.open(reception);
    }

    fn set_filter(&mut self, filter: &Filter) {
        assert!(!filter.mac.is_group());
        self.seen.told.fetch_add(1, Ordering::Relaxed);
        self.inner.set_filter(filter);
    }

    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'static>,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        assert!(self.seen.open.load(Ordering::Relaxed) && pair < self.info().pairs);
        assert!((MIN_FRAME..=MAX_FRAME).contains(&frame.len));
        assert_eq!(frame.segments.iter().map(SharedSlice::len).sum::<usize>(), frame.len);
        for segment in frame.segments {
            assert!(!segment.is_empty() && is_ram(segment.pa(), segment.len()));
        }
        match frame.info.checksum {
            Checksum::Partial { start, offset } => {
                let start = usize::from(start);
                assert!(start >= MIN_FRAME && start + usize::from(offset) + 2 <= frame.len);
            }
            Checksum::Unknown => assert!(frame.info.gso.is_none()),
            Checksum::Valid => panic!("a driver cannot know"),
        }
        match frame.info.gso {
            Some(gso) => {
                assert!(gso.size != 0);
                assert!(!gso.ecn || gso.kind != Segmentation::Udp);
            }
            None => assert!(frame.len <= usize::from(MTU) + MIN_FRAME + 4),
        }
        let flying = &mut self.in_flight[usize::from(tag.0)];
        assert!(!*flying, "a tag in use");
        let sent = self.inner.send(pair, tag, frame, now)?;
        *flying = sent == Sent::InFlight;
        self.seen.sent.fetch_add(1, Ordering::Relaxed);
        Ok(sent)
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll_sent(&mut self, now: Ticks) -> Option<SendTag> {
        let tag = self.inner.poll_sent(now)?;
        self.in_flight[usize::from(tag.0)] = false;
        Some(tag)
    }

    fn post(&mut self, pair: u16, segments: &[SharedSlice<'static>]) -> Result<(), Busy> {
        let len: usize = segments.iter().map(SharedSlice::len).sum();
        assert!(len >= 12 && self.seen.open.load(Ordering::Relaxed));
        for segment in segments {
            assert!(!segment.is_empty() && is_ram(segment.pa(), segment.len()));
        }
        self.inner.post(pair, segments)?;
        self.posted[usize::from(pair)] += 1;
        Ok(())
    }

    fn poll_received(&mut self, pair: u16) -> Option<Received> {
        let received = self.inner.poll_received(pair)?;
        self.posted[usize::from(pair)] -= 1;
        Some(received)
    }

    fn withdraw(&mut self, pair: u16) {
        self.posted[usize::from(pair)] = 0;
        self.inner.withdraw(pair);
    }

    fn close(&mut self, now: Ticks) -> bool {
        self.seen.open.store(false, Ordering::Relaxed);
        self.in_flight.fill(false);
        self.posted = [0; 4];
        self.inner.close(now)
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn take_change(&mut self) -> bool {
        self.inner.take_change()
    }
}

/// A queue as its driver knows it.
struct Queue {
    index: u16,
    areas: Areas,
    available: u16,
    seen: u16,
    /// By the room it is in: bytes that can be written.
    pending: [Option<u32>; SIZE as usize],
}

impl Queue {
    fn new(index: u16) -> Self {
        let at = RAM + u64::from(index) * 0x300;
        let areas = Areas { descriptor: at, driver: at + 0x100, device: at + 0x200 };
        Self { index, areas, available: 0, seen: 0, pending: [None; SIZE as usize] }
    }

    fn enable(&mut self, bus: &mut Bus<'_, '_, '_>, guest: &Guest) {
        *self = Self::new(self.index);
        guest.put(self.areas.descriptor, &[0; 0x300]);
        bus.set(0x30, self.index.into());
        bus.set(0x38, SIZE.into());
        let areas = [self.areas.descriptor, self.areas.driver, self.areas.device];
        for (low, address) in [0x80, 0x90, 0xA0].into_iter().zip(areas) {
            bus.set(low, address as u32);
            bus.set(low + 4, (address >> 32) as u32);
        }
        bus.set(0x44, 1);
    }

    /// Offers a chain of `buffers`, that begins at the descriptor `head`, all of which are free.
    fn offer(&mut self, guest: &Guest, head: u16, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in buffers.iter().enumerate() {
            let index = head + at as u16;
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if *writable { WRITE } else { 0 };
            let at = self.areas.descriptor + 16 * u64::from(index);
            guest.descriptor(at, (*address, *len, flags, index + 1));
        }
        let room = buffers.iter().filter(|buffer| buffer.2).map(|buffer| buffer.1).sum();
        self.pending[usize::from(head)] = Some(room);
        let slot = u64::from(self.available % SIZE);
        guest.put_u16(self.areas.driver + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        guest.put_u16(self.areas.driver + 2, self.available);
    }

    /// The next answer: head and bytes written.
    fn used(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        if guest.get_u16(self.areas.device + 2) == self.seen {
            return None;
        }
        let at = self.areas.device + 4 + 8 * u64::from(self.seen % SIZE);
        let [head, len] = [0, 4].map(|offset| u32::from_le_bytes(guest.get(at + offset)));
        self.seen = self.seen.wrapping_add(1);
        let room = self.pending[head as usize].take().expect("answered twice, or never asked");
        assert!(len <= room, "{len} bytes written of {room}");
        Some((head as u16, len))
    }

    /// A head for `count` descriptors, of which a chain of four parts has its own.
    fn vacant(&self) -> Option<u16> {
        (0..SIZE).step_by(4).find(|head| self.pending[usize::from(*head)].is_none())
    }
}

/// Where the buffers of the chain at `head` of a queue are.
fn room(queue: &Queue, head: u16) -> u64 {
    let half = if queue.index & 1 == 0 { 0 } else { SIZE / 2 };
    BUFFERS + u64::from(half + head / 4 * 2) * ROOM
}

/// Length of [`room`].
const CHAIN: u32 = 2 * ROOM as u32;

/// Cuts `len` bytes from `at` on into at most three buffers.
fn cut(input: &mut Input<'_>, at: u64, len: u32, writable: bool) -> Vec<(u64, u32, bool)> {
    let mut buffers = vec![];
    let mut done = 0;
    while done < len {
        let left = len - done;
        let part = if buffers.len() == 2 { left } else { 1 + u32::from(input.u8()) % left };
        buffers.push((at + u64::from(done), part, writable));
        done += part;
    }
    buffers
}

fn port(input: &mut Input<'_>, pairs: u16) -> (Port, Arc<Seen>) {
    let completion = match input.below(3) {
        0 => Completion::AtOnce,
        1 => Completion::Later,
        _ => Completion::LaterReversed,
    };
    let inner = Loopback::new(MacAddress([2, 0, 0, 0, 0, 1]), MTU)
        .with_pairs(pairs)
        .with_completion(completion);
    let seen = Arc::new(Seen::default());
    let port = Port { inner, seen: seen.clone(), in_flight: [false; 65536], posted: [0; 4] };
    (port, seen)
}

/// Offloads that lack what they need are left out.
fn complete(mut features: u64) -> u64 {
    if features & 2 == 0 {
        features &= !(7 << 7 | 3 << 54);
    }
    if features & 1 == 0 {
        features &= !(7 << 11 | 1 << 56);
    }
    if features & 3 << 7 == 0 {
        features &= !(1 << 9);
    }
    if features & 3 << 11 == 0 {
        features &= !(1 << 13);
    }
    features
}

/// From reset to DRIVER_OK with `features` and those queues.
fn start(bus: &mut Bus<'_, '_, '_>, guest: &Guest, features: u64, queues: &mut [Queue]) {
    let agreed = bus.negotiate(complete(features) | 1 << 32);
    for queue in queues {
        queue.enable(bus, guest);
    }
    bus.set(0x70, 15);
    assert_eq!(bus.get(0x70), 15, "{agreed:#x}: {:?}", bus.transport.fault());
}

/// Polls until nothing is in flight.
fn settle(bus: &mut Bus<'_, '_, '_>) {
    for _ in 0..1000 {
        bus.poll();
        if bus.transport.next_poll() != NextPoll::Soon {
            return;
        }
    }
    panic!("the device never comes to rest");
}

/// A frame that is sent comes back, after whatever was before.
fn prove(bus: &mut Bus<'_, '_, '_>, guest: &Guest) {
    let mut queues = [0, 1].map(Queue::new);
    start(bus, guest, MRG_RXBUF, &mut queues);
    let [receive, transmit] = &mut queues;
    for round in 0..20_u8 {
        guest.put(BUFFERS, &[0; 12]);
        guest.put(BUFFERS + 12, &[round; 60]);
        receive.offer(guest, 0, &[(BUFFERS + 0x1000, 1526, true)]);
        bus.set(0x50, 0);
        transmit.offer(guest, 0, &[(BUFFERS, 72, false)]);
        bus.set(0x50, 1);
        settle(bus);
        assert_eq!(transmit.used(guest), Some((0, 0)));
        assert_eq!(receive.used(guest), Some((0, 72)));
        assert_eq!(guest.get_vec(BUFFERS + 0x1000 + 12, 60), [round; 60]);
    }
}

/// Frames with any header, of any length, cut in every way, to buffers of any length from a header
/// on: each chain is answered once, the port gets nothing that it must not, and what comes back is
/// whole.
pub fn net_frames(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, _) = memories();
    let (mut port, seen) = port(input, 1);
    let mut net = Net::new(&mut port);
    let mut transport = MmioTransport::new(&mut net, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let features = Cell::new(input.u64());
    let mergeable = || features.get() & MRG_RXBUF != 0;
    let begin = |bus: &mut Bus<'_, '_, '_>, queues: &mut [Queue]| {
        start(bus, &guest, features.get() & (OFFLOADS | MRG_RXBUF | 1 << 29 | 1 << 40), queues);
    };
    let mut queues = [0, 1].map(Queue::new);
    begin(&mut bus, &mut queues);
    let answered = Rc::new(Cell::new(0_usize));
    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        let [receive, transmit] = &mut queues;
        match input.below(16) {
            0..=6 => {
                let Some(head) = transmit.vacant() else { continue };
                let at = room(transmit, head);
                let mut header = [0; 12];
                if input.flag() {
                    // One that may be good: a checksum, and perhaps segments.
                    let kind = [0, 1, 4, 5, 0x81, 0x80][input.below(6)];
                    header = [1, kind, 54, 0, input.u8(), input.u8(), 34, 0, input.u8(), 0, 0, 0];
                } else {
                    let bytes = input.bytes(12);
                    header[..bytes.len()].copy_from_slice(bytes);
                }
                let len = match input.below(4) {
                    0 => u32::from(input.u8()),
                    1 => 12 + 14 + u32::from(input.u8()),
                    _ => 1 + u32::from(input.u16()) % CHAIN,
                };
                guest.put(at, &header);
                let len = len.clamp(1, CHAIN);
                let mut buffers = cut(input, at, len, false);
                if input.below(16) == 0 {
                    buffers.push((at, 12, true));
                }
                transmit.offer(&guest, head, &buffers);
            }
            7 | 8 => {
                let Some(head) = receive.vacant() else { continue };
                let at = room(receive, head);
                let len =
                    if input.flag() { 1526 } else { 12 + u32::from(input.u16()) % (CHAIN - 12) };
                let buffers = cut(input, at, len, true);
                receive.offer(&guest, head, &buffers);
                if input.flag() {
                    bus.set(0x50, 0);
                }
            }
            9..=11 => bus.set(0x50, 1),
            12 => bus.set(0x50, 0),
            13 => bus.poll(),
            14 if features.get() & 1 << 40 != 0 => {
                let queue = &mut queues[input.below(2)];
                bus.set(0x30, queue.index.into());
                bus.set(0xC0, 1);
                for _ in 0..100 {
                    bus.poll();
                }
                bus.set(0x30, queue.index.into());
                assert_eq!((bus.get(0xC0), bus.get(0x44)), (0, 0));
                queue.enable(&mut bus, &guest);
            }
            14 => (),
            _ => {
                if input.flag() {
                    features.set(input.u64());
                }
                begin(&mut bus, &mut queues);
            }
        }
        collect(&mut queues, &guest, mergeable(), &answered);
    }
    bus.set(0x50, 1);
    settle(&mut bus);
    collect(&mut queues, &guest, mergeable(), &answered);
    assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
    let [_, transmit] = &queues;
    assert!(transmit.pending.iter().all(Option::is_none), "a frame without an answer");
    assert!(seen.sent.load(Ordering::Relaxed) <= MAX_ACTIONS);
    prove(&mut bus, &guest);
}

/// Takes all answers: buffers come back by frames.
fn collect(queues: &mut [Queue; 2], guest: &Guest, mergeable: bool, answered: &Cell<usize>) {
    let [receive, transmit] = queues;
    while let Some((_, written)) = transmit.used(guest) {
        assert_eq!(written, 0);
        answered.set(answered.get() + 1);
    }
    loop {
        // The first descriptor says where the header is, if it is not cut.
        let place = receive.areas.device + 4 + 8 * u64::from(receive.seen % SIZE);
        let head = u64::from(u32::from_le_bytes(guest.get(place)));
        let at = room(receive, head as u16 & (SIZE - 1));
        let Some((_, written)) = receive.used(guest) else { break };
        assert!(written >= 12 + MIN_FRAME as u32 || mergeable, "{written}");
        let count = guest.get_u16(at + 10);
        assert!(count >= 1 && (mergeable || count == 1), "{count} buffers");
        for _ in 1..count {
            assert!(receive.used(guest).is_some(), "a frame is not whole");
        }
        answered.set(answered.get() + 1);
    }
}

/// Commands of any bytes, cut in every way, on a device with as many pairs as the input says, among
/// resets: each is answered once, and one that is refused reaches nobody.
pub fn net_control(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, _) = memories();
    let pairs = 1 + input.below(3) as u16;
    let (mut port, seen) = port(input, pairs);
    let mut net = Net::new(&mut port);
    let mut transport = MmioTransport::new(&mut net, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let mut features = complete(input.u64()) | CTRL_VQ;
    let index = |features: u64| if features & MQ != 0 && pairs > 1 { 2 * pairs } else { 2 };
    let mut queues = [Queue::new(index(features))];
    let offered = !(3 << 33 | 1 << 35 | 1 << 36 | 1 << 38);
    start(&mut bus, &guest, features & offered, &mut queues);
    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        if input.below(32) == 0 {
            features = complete(input.u64()) | CTRL_VQ;
            queues = [Queue::new(index(features))];
            start(&mut bus, &guest, features & offered, &mut queues);
        }
        let [queue] = &mut queues;
        let mut command = vec![input.u8(), input.u8()];
        if input.flag() {
            command = vec![command[0] % 7, command[1] % 7];
        }
        let len = input.below(48);
        command.extend(input.bytes(len));
        if input.below(16) == 0 {
            // Far more than was asked for.
            command.resize(command.len() + usize::from(input.u16()) % 0x4000, input.u8());
        }
        guest.put(BUFFERS, &command);
        let answer = BUFFERS + 0x5000;
        guest.put(answer, &[0xFF; 4]);
        let mut buffers = cut(input, BUFFERS, command.len() as u32, false);
        buffers.push((answer, 1 + u32::from(input.u8() & 3), true));
        let told = seen.told.load(Ordering::Relaxed);
        let config: Vec<u8> = config(&bus);
        queue.offer(&guest, 0, &buffers);
        bus.set(0x50, queue.index.into());
        assert_eq!(queue.used(&guest), Some((0, 1)));
        let [ack, rest @ ..] = guest.get::<4>(answer);
        assert_eq!(rest, [0xFF; 3]);
        match ack {
            0 => assert!(command[0] < 6),
            1 => {
                assert_eq!(seen.told.load(Ordering::Relaxed), told, "refused, and had an effect");
                assert_eq!(self::config(&bus), config);
            }
            _ => panic!("an answer of {ack}"),
        }
        let [group, ..] = config_mac(&bus);
        assert_eq!(group & 1, 0, "the address of a group");
    }
    assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
    prove(&mut bus, &guest);
}

fn config(bus: &Bus<'_, '_, '_>) -> Vec<u8> {
    (0x100..0x120).step_by(4).flat_map(|at| bus.get(at).to_le_bytes()).collect()
}

fn config_mac(bus: &Bus<'_, '_, '_>) -> [u8; 4] {
    bus.get(0x100).to_le_bytes()
}
