//! The switch: frames of any form with any header, filters, buffers, ports and a card that come and go.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::net::{
    Busy, Checksum, Filter, Frame, FrameInfo, Gso, MacAddress, NetBackend, Offloads, Received,
    Reception, Segmentation, SendTag, Sent,
};
use sparkler::backend::switch::{
    MAX_HEADER, PairQueue, Port, PortCell, PortConfig, Room, Switch, Uplink, UplinkFrame,
    UplinkInfo, UplinkTag,
};
use sparkler::backend::wake::{Wake, Waker};
use sparkler::memory::{HostRam, Pa, SharedSlice};

use crate::input::Input;

/// Steps of one input, at the most.
const MAX_STEPS: usize = 300;
const MAX_PORTS: usize = 4;
/// Memory for buffers and frames of one input: page by page, so that the sanitizer sees what leaves.
const PAGES: usize = 40;
const PAGE: usize = 4096;
const BACKLOG: usize = 8192;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self, _: u8) {}
}

/// What the card has.
#[derive(Default)]
struct CardState {
    on_it: VecDeque<UplinkTag>,
    sent: VecDeque<UplinkTag>,
    received: Option<(FrameInfo, Vec<u8>)>,
    room: usize,
    info: Option<UplinkInfo>,
    changed: bool,
}

struct Card<'m> {
    state: Arc<Mutex<CardState>>,
    memory: SharedSlice<'m>,
    lent: Vec<SharedSlice<'m>>,
}

impl<'m> Uplink<'m> for Card<'m> {
    fn info(&self) -> UplinkInfo {
        self.state.lock().unwrap().info.unwrap()
    }
    fn room(&self) -> Room {
        let state = self.state.lock().unwrap();
        let frames = state.room - state.on_it.len().min(state.room);
        Room { frames, segments: 4 * frames }
    }
    fn submit(&mut self, tag: UplinkTag, frame: UplinkFrame<'_, 'm>, _: Ticks) -> Result<(), Busy> {
        if self.room().frames == 0 {
            return Err(Busy);
        }
        let info = self.info();
        let len = frame.header.len() + frame.segments.iter().map(SharedSlice::len).sum::<usize>();
        judge(&frame.info, info.takes, len);
        assert!(frame.header.len() <= MAX_HEADER && len >= 14);
        assert!(frame.info.gso.is_some() || len <= usize::from(info.mtu) + 18);
        assert!(frame.segments.len() <= info.max_segments.into());
        assert!(frame.segments.iter().all(|segment| !segment.is_empty()));
        self.state.lock().unwrap().on_it.push_back(tag);
        Ok(())
    }
    fn kick(&mut self) {}
    fn poll_sent(&mut self, _: Ticks) -> Option<UplinkTag> {
        self.state.lock().unwrap().sent.pop_front()
    }
    fn poll_received(&mut self, _: Ticks) -> Option<Frame<'_, 'm>> {
        let (info, bytes) = self.state.lock().unwrap().received.take()?;
        assert!(self.lent.is_empty());
        let place = self.memory.subslice(0, bytes.len()).unwrap();
        place.write_bytes(0, &bytes).unwrap();
        self.lent = vec![place];
        Some(Frame { info, segments: &self.lent, len: bytes.len() })
    }
    fn release_received(&mut self) {
        assert!(!self.lent.is_empty());
        self.lent.clear();
    }
    fn take_change(&mut self) -> bool {
        core::mem::take(&mut self.state.lock().unwrap().changed)
    }
}

/// Nothing is left to do that was not accepted, and nothing outside of the frame.
fn judge(info: &FrameInfo, accepts: Offloads, len: usize) {
    if let Checksum::Partial { start, offset } = info.checksum {
        assert!(accepts.contains(Offloads::CSUM));
        assert!(usize::from(start) + usize::from(offset) + 2 <= len);
    }
    if let Some(gso) = info.gso {
        assert!(gso.size != 0);
        assert!(accepts.contains(match gso.kind {
            Segmentation::TcpV4 => Offloads::TSO4,
            Segmentation::TcpV6 => Offloads::TSO6,
            Segmentation::Udp => Offloads::USO,
        }));
        assert!(!gso.ecn || accepts.contains(Offloads::ECN));
    }
}

/// A port with its driver.
struct Driver<'s, 'm> {
    port: Port<'s, 'm>,
    accepts: Offloads,
    mergeable: bool,
    mtu_ever: u16,
    posted: [VecDeque<Posted<'m>>; 2],
    in_flight: Vec<SendTag>,
}

impl<'m> Driver<'_, 'm> {
    fn open(&mut self, accepts: Offloads, mergeable: bool, pairs: u16) {
        (self.accepts, self.mergeable) = (accepts, mergeable);
        self.posted = Default::default();
        self.in_flight.clear();
        self.port.open(Reception { accepts, mergeable, pairs });
    }

    /// Where the buffer is that it has posted first.
    fn oldest(&self) -> Option<usize> {
        self.posted.iter().flatten().map(|posted| posted.from).min()
    }

    /// Takes a frame, which must be whole and as the driver accepts it.
    fn receive(&mut self, pair: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffers = 0u16;
        loop {
            let Some(Received { written, continues }) = self.port.poll_received(pair as u16) else {
                assert!(buffers == 0, "the buffers of a frame are there together");
                return None;
            };
            let posted = self.posted[pair].pop_front().expect("a buffer that was posted");
            let mut buffer = Vec::new();
            for segment in posted.segments {
                let mut part = vec![0; segment.len()];
                segment.read_bytes(0, &mut part).unwrap();
                buffer.extend(part);
            }
            assert!(written != 0);
            bytes.extend(&buffer[..written as usize]);
            buffers += 1;
            if !continues {
                break;
            }
        }
        assert!(buffers == 1 || self.mergeable);
        assert_eq!(bytes[10..12], buffers.to_le_bytes());
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let checksum = match bytes[0] {
            0 => Checksum::Unknown,
            1 => Checksum::Partial { start: word(6), offset: word(8) },
            2 => Checksum::Valid,
            other => panic!("flags {other}"),
        };
        assert!(checksum != Checksum::Valid || self.accepts.contains(Offloads::CSUM));
        let kind = match bytes[1] & 0x7F {
            0 => None,
            1 => Some(Segmentation::TcpV4),
            4 => Some(Segmentation::TcpV6),
            5 => Some(Segmentation::Udp),
            other => panic!("gso type {other}"),
        };
        let ecn = bytes[1] & 0x80 != 0;
        let gso = kind.map(|kind| Gso { kind, size: word(4), header_len: word(2), ecn });
        let frame = bytes.split_off(12);
        judge(&FrameInfo { checksum, gso }, self.accepts, frame.len());
        assert!(gso.is_some() || frame.len() <= usize::from(self.mtu_ever) + 18);
        Some(frame)
    }
}

fn mac(number: usize) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number as u8])
}

fn offloads(input: &mut Input<'_>) -> Offloads {
    Offloads::from_bits_truncate(input.u8())
}

/// A frame: mostly one that makes sense, in parts or as a whole.
fn frame(input: &mut Input<'_>) -> (FrameInfo, Vec<u8>) {
    let shape = input.u8();
    let mut bytes = Vec::new();
    for _ in 0..2 {
        bytes.extend(match input.below(10) {
            8 => [0xFF; 6],
            9 => [0x33, 0x33, 0, 0, 0, 1],
            number => mac(number).0,
        });
    }
    if shape & 1 != 0 {
        bytes.extend([0x81, 0]);
        bytes.extend(input.u16().to_be_bytes());
    }
    let network = bytes.len() + 2;
    let v6 = shape & 2 != 0;
    let tcp = shape & 4 != 0;
    let transport = network + if v6 { 40 } else { 20 };
    let protocol = if tcp { 6 } else { 17 };
    if v6 {
        bytes.extend([0x86, 0xDD, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
    } else {
        bytes.extend([0x08, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol]);
    }
    bytes.resize(transport, 0x0A);
    bytes.resize(transport + if tcp { 12 } else { 8 }, 0);
    if tcp {
        bytes.extend([0x50, 0xFF, 0, 0, 0, 0, 0, 0]);
    }
    let payload = input.bytes(16).to_vec();
    bytes.extend(&payload);
    let len = match shape >> 6 {
        0 => 0,
        1 => input.u8().into(),
        2 => input.u16() as usize % 4096,
        _ => input.u16().into(),
    };
    bytes.resize((bytes.len() + len).min(65_535), 0x5A);
    for _ in 0..input.below(4) {
        let at = usize::from(input.u8()) % bytes.len();
        bytes[at] = input.u8();
    }
    if shape & 8 != 0 {
        bytes.truncate(14 + input.below(64));
    }
    // What a device model has judged: places in the frame, no size of 0.
    let limit = bytes.len() as u16;
    let partial = |start: u16, offset: u16| {
        let inside = u32::from(start) + u32::from(offset) + 2 <= u32::from(limit);
        if inside { Checksum::Partial { start, offset } } else { Checksum::Unknown }
    };
    let checksum = match input.below(4) {
        0 => Checksum::Unknown,
        1 => Checksum::Valid,
        2 => partial(input.u16(), input.u8().into()),
        _ => partial(transport as u16, if tcp { 16 } else { 6 }),
    };
    let gso = (shape & 0x30 == 0x30).then(|| Gso {
        kind: match input.below(8) {
            0 => Segmentation::TcpV4,
            1 => Segmentation::TcpV6,
            2 => Segmentation::Udp,
            _ if !tcp => Segmentation::Udp,
            _ if v6 => Segmentation::TcpV6,
            _ => Segmentation::TcpV4,
        },
        size: input.u16().max(1),
        header_len: input.u16(),
        ecn: input.flag(),
    });
    let gso = gso.filter(|_| matches!(checksum, Checksum::Partial { .. }));
    (FrameInfo { checksum, gso }, bytes)
}

/// Memory that is cut where the input says; begins anew when it is used up.
struct Memory<'m> {
    pages: Vec<SharedSlice<'m>>,
    /// How many bytes were given away, with what lies between them.
    given: usize,
}

impl<'m> Memory<'m> {
    fn segments(&mut self, input: &mut Input<'_>, mut len: usize) -> Vec<SharedSlice<'m>> {
        let mut segments = Vec::new();
        let cut = [PAGE, PAGE, 2048, 17][input.below(4)];
        while len > 0 && segments.len() < 200 {
            let gap = input.below(64);
            let left = PAGE - self.given % PAGE;
            self.given += if gap < left { gap } else { left + gap };
            let (page, offset) = (self.given / PAGE, self.given % PAGE);
            let piece = if segments.len() > 100 { PAGE } else { cut };
            let part = len.min(piece).min(PAGE - offset);
            segments.push(self.pages[page % self.pages.len()].subslice(offset, part).unwrap());
            self.given += part;
            len -= part;
        }
        segments
    }

    /// Segments that share nothing with what was given away since `oldest`, if there is room.
    fn own(
        &mut self,
        input: &mut Input<'_>,
        len: usize,
        oldest: Option<usize>,
    ) -> Option<Posted<'m>> {
        let from = self.given;
        let segments = self.segments(input, len);
        if self.given - oldest.unwrap_or(from) > (self.pages.len() - 1) * PAGE {
            self.given = from;
            return None;
        }
        Some(Posted { from, segments })
    }
}

/// A buffer that a port has, and where it is in what was given away.
struct Posted<'m> {
    from: usize,
    segments: Vec<SharedSlice<'m>>,
}

/// No panic, whatever comes; nobody gets what it does not accept, more than the MTU, or less than a
/// frame; what a guest sends by the card comes back once; and afterwards the switch works.
pub fn switch(data: &[u8]) {
    let input = &mut Input::new(data);
    let rams: Vec<_> = (0..2 * PAGES).map(|_| HostRam::new(PAGE)).collect();
    let mut pages: Vec<_> = rams.iter().map(|ram| ram.slice(Pa::new(0x8000_0000))).collect();
    let mut sources = Memory { pages: pages.split_off(PAGES), given: 0 };
    let mut buffers = Memory { pages, given: 0 };
    let waits: Vec<_> = (0..MAX_PORTS).map(|_| HostRam::new(BACKLOG)).collect();
    let lent = HostRam::new(0x1_1000);
    let mut queues: Vec<_> =
        (0..MAX_PORTS).map(|_| vec![PairQueue::new(), PairQueue::new()]).collect();
    let vlan = |input: &mut Input<'_>| [None, None, Some(1), Some(10), Some(4094)][input.below(5)];
    let mtu = |input: &mut Input<'_>| [68, 1500, 1500, 9000, 65_535][input.below(5)];

    let count = 1 + input.below(MAX_PORTS);
    let mut mtus = [0; MAX_PORTS];
    let mut cells = Vec::new();
    for (number, (queues, wait)) in queues.iter_mut().zip(&waits).enumerate().take(count) {
        mtus[number] = mtu(input);
        cells.push(PortCell::new(PortConfig {
            mac: mac(number),
            mtu: mtus[number],
            vlan: vlan(input),
            isolated: input.flag(),
            guard: input.flag(),
            speed: None,
            waker: Waker::new(&Nobody, 0),
            queues: &mut queues[..1 + number % 2],
            backlog: wait.slice(Pa::new(0)).subslice(0, 64 << input.below(8)).unwrap(),
        }));
    }
    let state = Arc::new(Mutex::new(CardState { room: input.below(100), ..Default::default() }));
    let mut card = Card { state: state.clone(), memory: lent.slice(Pa::new(0)), lent: Vec::new() };
    let switch = Switch::new(Frequency::new(1).unwrap(), input.u64());
    if input.flag() {
        let info = UplinkInfo {
            mac: mac(0xFE),
            mtu: mtu(input),
            link_up: true,
            speed: None,
            takes: offloads(input),
            gives: Offloads::all(),
            max_segments: 1 + u16::from(input.u8()),
        };
        state.lock().unwrap().info = Some(info);
        switch.connect(&mut card);
    }
    let mut drivers: Vec<_> = cells
        .iter()
        .zip(mtus)
        .map(|(cell, mtu_ever)| Driver {
            port: switch.attach(cell).unwrap(),
            accepts: Offloads::empty(),
            mergeable: false,
            mtu_ever,
            posted: Default::default(),
            in_flight: Vec::new(),
        })
        .collect();
    let mut now = Ticks(1);
    let mut tag = 0;
    for _ in 0..MAX_STEPS {
        if !input.more() {
            break;
        }
        let number = input.below(count);
        let oldest = drivers.iter().filter_map(Driver::oldest).min();
        let driver = &mut drivers[number];
        let pair = input.below(2);
        match input.below(16) {
            0..=4 => {
                let (info, bytes) = frame(input);
                let segments = sources.segments(input, bytes.len());
                let len = fill(&segments, &bytes);
                if len == bytes.len() {
                    tag += 1;
                    let frame = Frame { info, segments: &segments, len };
                    if driver.port.send(pair as u16, SendTag(tag), frame, now) == Ok(Sent::InFlight)
                    {
                        driver.in_flight.push(SendTag(tag));
                    }
                }
            }
            5..=7 => {
                for _ in 0..1 + input.below(8) {
                    let len = 12 + [0, 48, 1514, 4000, 70_000][input.below(5)];
                    let oldest = oldest.or(driver.oldest());
                    let Some(posted) = buffers.own(input, len, oldest) else { break };
                    if driver.port.post(pair as u16, &posted.segments).is_ok() {
                        driver.posted[pair].push_back(posted);
                    }
                }
            }
            8 => while driver.receive(pair).is_some() {},
            9 => {
                let pairs = 1 + (number % 2).min(input.below(2)) as u16;
                // A driver comes after the last one has gone; of that one's frames nothing is told.
                driver.in_flight.clear();
                driver.posted = Default::default();
                if driver.port.close(now) {
                    driver.open(offloads(input), input.flag(), pairs);
                }
            }
            10 => {
                let bits = input.u8();
                let mut filter = Filter {
                    mac: mac(input.below(8)),
                    promiscuous: bits & 1 != 0,
                    all_multicast: bits & 2 != 0,
                    all_unicast: bits & 4 != 0,
                    no_multicast: bits & 8 != 0,
                    no_unicast: bits & 16 != 0,
                    no_broadcast: bits & 32 != 0,
                    addresses: Default::default(),
                    vlans: (bits & 64 != 0).then(|| [input.u64(); 64]),
                };
                for number in 0..input.below(33) {
                    filter.addresses.push(mac(number)).unwrap();
                }
                driver.port.set_filter(&filter);
            }
            11 => match input.below(5) {
                0 => switch.set_link(number, input.flag()).unwrap(),
                1 => {
                    let mtu = mtu(input);
                    driver.mtu_ever = driver.mtu_ever.max(mtu);
                    switch.set_mtu(number, mtu).unwrap();
                }
                2 => switch.set_isolated(number, input.flag()).unwrap(),
                3 => {
                    let _ = switch.set_vlan(number, vlan(input));
                }
                _ => {
                    driver.port.withdraw(pair as u16);
                    driver.posted[pair].clear();
                }
            },
            12 => {
                let (info, bytes) = frame(input);
                if state.lock().unwrap().info.is_some() && bytes.len() >= 14 {
                    state.lock().unwrap().received = Some((info, bytes));
                    while switch.poll_uplink(now) {}
                }
            }
            13 => {
                let mut state = state.lock().unwrap();
                for _ in 0..1 + input.below(64) {
                    let sent = state.on_it.pop_front();
                    state.sent.extend(sent);
                }
            }
            14 => {
                now = now.after(Ticks(input.u16().into()));
                if let Some(info) = &mut state.lock().unwrap().info {
                    info.link_up = input.flag();
                }
                state.lock().unwrap().changed = true;
                switch.poll_uplink(now);
            }
            _ => {
                driver.port.kick();
                collect(driver, now);
            }
        }
    }
    // The card ends all it has.
    {
        let mut state = state.lock().unwrap();
        let CardState { on_it, sent, .. } = &mut *state;
        sent.extend(on_it.drain(..));
    }
    while switch.poll_uplink(now) {}
    for driver in &mut drivers {
        collect(driver, now);
        assert!(driver.in_flight.is_empty(), "a frame that was never told to have gone");
        assert_eq!(driver.port.in_flight(), 0);
    }
    prove(&switch, &mut drivers, buffers, sources, now);
}

/// Writes what of `bytes` there are segments for; how many that is.
fn fill(segments: &[SharedSlice<'_>], bytes: &[u8]) -> usize {
    let mut at = 0;
    for segment in segments {
        segment.write_bytes(0, &bytes[at..at + segment.len()]).unwrap();
        at += segment.len();
    }
    at
}

/// What has gone was on its way.
fn collect(driver: &mut Driver<'_, '_>, now: Ticks) {
    while let Some(tag) = driver.port.poll_sent(now) {
        let at = driver.in_flight.iter().position(|other| *other == tag);
        driver.in_flight.remove(at.expect("a frame that was on its way"));
    }
}

/// Two ports in one network, with new drivers: each hears the other.
fn prove<'m>(
    switch: &Switch<'m>,
    drivers: &mut [Driver<'_, 'm>],
    mut buffers: Memory<'m>,
    mut sources: Memory<'m>,
    now: Ticks,
) {
    for driver in &mut *drivers {
        assert!(driver.port.close(now));
        driver.posted = Default::default();
    }
    let [a, b, ..] = drivers else { return };
    let nothing = &mut Input::new(&[]);
    for (number, driver) in [&mut *a, &mut *b].into_iter().enumerate() {
        switch.set_link(number, true).unwrap();
        switch.set_isolated(number, false).unwrap();
        switch.set_vlan(number, None).unwrap();
        switch.set_mtu(number, 1500).unwrap();
        driver.open(Offloads::empty(), false, 1);
        let posted = buffers.own(nothing, 1600, None).unwrap();
        driver.port.post(0, &posted.segments).unwrap();
        driver.posted[0].push_back(posted);
    }
    for (from, to, at) in [(0, 1, &mut *a), (1, 0, &mut *b)] {
        let mut bytes = [mac(to).0, mac(from).0].concat();
        bytes.extend([0x88, 0xB5]);
        bytes.resize(60, from as u8);
        let segments = sources.segments(nothing, bytes.len());
        fill(&segments, &bytes);
        let frame = Frame { info: FrameInfo::PLAIN, segments: &segments, len: bytes.len() };
        assert_eq!(at.port.send(0, SendTag(0), frame, now), Ok(Sent::Done));
    }
    for (driver, from) in [(a, 1), (b, 0)] {
        let frame = driver.receive(0).expect("a frame from the other");
        assert_eq!((frame.len(), frame[11], frame[59]), (60, from, from));
    }
}
