//! Stations and a network card for the tests of the switch.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::backend::net::{Gso, NetBackend, Received, Reception, Segmentation};
use crate::backend::wake::{Wake, Waker};
use crate::memory::{HostRam, Pa, SharedSlice};

/// Ticks a second.
pub(super) const HERTZ: u32 = 1000;
/// Bytes of frames that may wait at a port.
pub(super) const BACKLOG: usize = 0x4000;

pub(super) fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// How often each core was woken.
#[derive(Default)]
pub(super) struct Woken(pub(super) [AtomicU32; MAX_PORTS]);

impl Wake for Woken {
    fn wake(&self, core: u8) {
        self.0[usize::from(core)].fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    pub(super) fn take(&self, core: usize) -> u32 {
        self.0[core].swap(0, Ordering::Relaxed)
    }
}

pub(super) fn memory(len: usize) -> SharedSlice<'static> {
    leak(HostRam::new(len)).slice(Pa::new(0x4000_0000))
}

pub(super) fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

/// What a station is to be.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) mtu: u16,
    pub(super) vlan: Option<u16>,
    pub(super) isolated: bool,
    pub(super) guard: bool,
    pub(super) pairs: usize,
    pub(super) backlog: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { mtu: 1500, vlan: None, isolated: false, guard: true, pairs: 1, backlog: BACKLOG }
    }
}

/// A switch with what is around it. All is leaked: the tests are short.
pub(super) struct Net {
    pub(super) switch: &'static Switch<'static>,
    pub(super) woken: &'static Woken,
}

impl Net {
    pub(super) fn new() -> Self {
        let switch = leak(Switch::new(Frequency::new(HERTZ).unwrap(), 0x1234));
        Self { switch, woken: leak(Woken::default()) }
    }

    /// A station with the address `mac(number)`, its port not open yet.
    pub(super) fn station(&self, number: u8, options: Options) -> Station {
        let queues: Vec<_> = (0..options.pairs).map(|_| PairQueue::new()).collect();
        let core = self.switch.count.load(Ordering::Relaxed) as u8;
        let cell = leak(PortCell::new(PortConfig {
            mac: mac(number),
            mtu: options.mtu,
            vlan: options.vlan,
            isolated: options.isolated,
            guard: options.guard,
            speed: None,
            waker: Waker::new(self.woken, core),
            queues: queues.leak(),
            backlog: memory(options.backlog.max(1)).subslice(0, options.backlog).unwrap(),
        }));
        let port = self.switch.attach(cell).unwrap();
        let index = port.index();
        Station { port, index, posted: Default::default(), memory: memory(0x40_0000), used: 0 }
    }

    /// One that is open, with 16 buffers of 2048 bytes, and that accepts all.
    pub(super) fn open(&self, number: u8, options: Options) -> Station {
        let mut station = self.station(number, options);
        let pairs = options.pairs as u16;
        station.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs });
        for pair in 0..pairs {
            station.post(pair, 16, 2048);
        }
        station
    }

    pub(super) fn uplink(&self, info: UplinkInfo) -> Card {
        let state = Arc::new(Mutex::new(CardState::new(info)));
        self.switch.connect(leak(Card(state.clone())));
        Card(state)
    }
}

/// A guest with its device.
pub(super) struct Station {
    pub(super) port: Port<'static, 'static>,
    pub(super) index: usize,
    posted: [VecDeque<Vec<SharedSlice<'static>>>; 4],
    memory: SharedSlice<'static>,
    used: usize,
}

/// A frame as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) header: [u8; 12],
    pub(super) bytes: Vec<u8>,
}

impl Station {
    /// Memory that was not used yet; begins anew when there is no more.
    pub(super) fn room(&mut self, len: usize) -> SharedSlice<'static> {
        if self.used + len > self.memory.len() {
            self.used = 0;
        }
        let room = self.memory.subslice(self.used, len).unwrap();
        self.used += len;
        room
    }

    /// Posts buffers.
    pub(super) fn post(&mut self, pair: u16, count: usize, len: usize) {
        for _ in 0..count {
            let room = self.room(len);
            self.post_segments(pair, &[room]).unwrap();
        }
    }

    pub(super) fn post_segments(
        &mut self,
        pair: u16,
        segments: &[SharedSlice<'static>],
    ) -> Result<(), Busy> {
        self.port.post(pair, segments)?;
        self.posted[usize::from(pair)].push_back(segments.to_vec());
        Ok(())
    }

    /// The segments of a frame with these bytes, cut in `pieces`.
    pub(super) fn segments(&mut self, bytes: &[u8], pieces: usize) -> Vec<SharedSlice<'static>> {
        let len = bytes.len().div_ceil(pieces);
        let place = |bytes: &[u8]| {
            let room = self.room(bytes.len());
            room.write_bytes(0, bytes).unwrap();
            room
        };
        bytes.chunks(len).map(place).collect()
    }

    pub(super) fn send_as(
        &mut self,
        tag: u16,
        bytes: &[u8],
        info: FrameInfo,
        now: u64,
    ) -> Result<Sent, Busy> {
        let pieces = 1 + usize::from(tag) % 3;
        let segments = self.segments(bytes, pieces);
        let frame = Frame { info, segments: &segments, len: bytes.len() };
        self.port.send(0, SendTag(tag), frame, Ticks(now))
    }

    /// Sends a frame that has gone when this returns.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.send_as(0, bytes, FrameInfo::PLAIN, 1), Ok(Sent::Done));
        self.port.kick();
    }

    /// The next frame for `pair`; its buffers are not posted again.
    pub(super) fn receive_on(&mut self, pair: u16) -> Option<Got> {
        let mut all = Vec::new();
        let mut buffers = 0u16;
        loop {
            let received = self.port.poll_received(pair);
            let Some(Received { written, continues }) = received else {
                assert!(all.is_empty(), "the buffers of a frame are there together");
                return None;
            };
            let buffer = self.posted[usize::from(pair)].pop_front().unwrap();
            let mut bytes: Vec<u8> = Vec::new();
            for segment in buffer {
                let mut part = vec![0; segment.len()];
                segment.read_bytes(0, &mut part).unwrap();
                bytes.extend(part);
            }
            all.extend(&bytes[..written as usize]);
            buffers += 1;
            if !continues {
                break;
            }
        }
        let bytes = all.split_off(12);
        let header: [u8; 12] = all.try_into().unwrap();
        assert_eq!(header[10..], buffers.to_le_bytes());
        Some(Got { header, bytes })
    }

    pub(super) fn receive(&mut self) -> Option<Got> {
        self.receive_on(0)
    }

    /// The bytes of all frames that have come, new buffers posted for them.
    pub(super) fn all(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(got) = self.receive() {
            frames.push(got.bytes);
            while self.posted[0].len() < 16 {
                self.post(0, 1, 2048);
            }
        }
        frames
    }

    pub(super) fn forget_posted(&mut self) {
        self.posted = Default::default();
    }
}

/// An Ethernet frame of 60 bytes or more.
pub(super) fn ethernet(to: MacAddress, from: MacAddress, tag: Option<u16>, text: &str) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    if let Some(tag) = tag {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([0x88, 0xB5]);
    frame.extend(text.as_bytes());
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A card that does what it is told, when it is told.
pub(super) struct Card(Arc<Mutex<CardState>>);

/// A frame that the card was given.
pub(super) struct Submitted {
    pub(super) tag: UplinkTag,
    pub(super) info: FrameInfo,
    header: Vec<u8>,
    pub(super) segments: Vec<SharedSlice<'static>>,
}

impl Submitted {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.clone();
        for segment in &self.segments {
            let mut part = vec![0; segment.len()];
            segment.read_bytes(0, &mut part).unwrap();
            bytes.extend(part);
        }
        bytes
    }
}

pub(super) struct CardState {
    pub(super) info: UplinkInfo,
    pub(super) room: Room,
    pub(super) submitted: VecDeque<Submitted>,
    pub(super) sent: VecDeque<UplinkTag>,
    pub(super) received: VecDeque<(FrameInfo, Vec<SharedSlice<'static>>)>,
    pub(super) kicks: u32,
    pub(super) changed: bool,
    lent: Vec<SharedSlice<'static>>,
}

impl CardState {
    fn new(info: UplinkInfo) -> Self {
        Self {
            info,
            room: Room { frames: 64, segments: 256 },
            submitted: VecDeque::new(),
            sent: VecDeque::new(),
            received: VecDeque::new(),
            kicks: 0,
            changed: false,
            lent: Vec::new(),
        }
    }
}

pub(super) const CARD: UplinkInfo = UplinkInfo {
    mac: MacAddress([2, 0, 0, 0, 0, 0xFE]),
    mtu: 1500,
    link_up: true,
    speed: Some(1000),
    takes: Offloads::empty(),
    gives: Offloads::empty(),
    max_segments: 16,
};

impl Card {
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut CardState) -> T) -> T {
        work(&mut self.0.lock().unwrap())
    }

    /// A frame comes from the wire.
    pub(super) fn receive(&self, bytes: &[u8], info: FrameInfo) {
        let room = memory(bytes.len()).subslice(0, bytes.len()).unwrap();
        room.write_bytes(0, bytes).unwrap();
        self.with(|card| card.received.push_back((info, vec![room])));
    }

    /// All frames on the card are sent: their bytes.
    pub(super) fn transmit(&self) -> Vec<Vec<u8>> {
        self.with(|card| {
            let frames = core::mem::take(&mut card.submitted);
            let bytes = frames.iter().map(Submitted::bytes).collect();
            card.sent.extend(frames.iter().map(|frame| frame.tag));
            bytes
        })
    }
}

impl Uplink<'static> for Card {
    fn info(&self) -> UplinkInfo {
        self.with(|card| card.info)
    }

    fn room(&self) -> Room {
        self.with(|card| {
            let segments: usize = card.submitted.iter().map(|frame| frame.segments.len()).sum();
            Room {
                frames: card.room.frames - card.submitted.len(),
                segments: card.room.segments.saturating_sub(segments),
            }
        })
    }

    fn submit(
        &mut self,
        tag: UplinkTag,
        frame: UplinkFrame<'_, 'static>,
        _: Ticks,
    ) -> Result<(), Busy> {
        if self.room().frames == 0 {
            return Err(Busy);
        }
        self.with(|card| {
            let needs = needs(&frame.info);
            assert!(card.info.takes.contains(needs), "{needs:?} is more than the card takes");
            assert!(frame.segments.len() <= card.info.max_segments.into());
            assert!(frame.segments.iter().all(|segment| !segment.is_empty()));
            assert!(frame.header.len() <= MAX_HEADER);
            card.submitted.push_back(Submitted {
                tag,
                info: frame.info,
                header: frame.header.to_vec(),
                segments: frame.segments.to_vec(),
            });
            Ok(())
        })
    }

    fn kick(&mut self) {
        self.with(|card| card.kicks += 1);
    }

    fn poll_sent(&mut self, _: Ticks) -> Option<UplinkTag> {
        self.with(|card| card.sent.pop_front())
    }

    fn poll_received(&mut self, _: Ticks) -> Option<Frame<'_, 'static>> {
        let state = self.0.clone();
        let mut card = state.lock().unwrap();
        assert!(card.lent.is_empty(), "the last frame was not given back");
        let (info, segments) = card.received.pop_front()?;
        card.lent = segments.clone();
        let len = segments.iter().map(SharedSlice::len).sum();
        Some(Frame { info, segments: segments.leak(), len })
    }

    fn release_received(&mut self) {
        self.with(|card| assert!(!core::mem::take(&mut card.lent).is_empty()));
    }

    fn take_change(&mut self) -> bool {
        self.with(|card| core::mem::take(&mut card.changed))
    }
}

/// Information about a TCP frame over IPv4 with a VLAN tag or none, to be cut.
pub(super) fn gso(kind: Segmentation, size: u16, start: u16) -> FrameInfo {
    let offset = if kind == Segmentation::Udp { 6 } else { 16 };
    FrameInfo {
        checksum: Checksum::Partial { start, offset },
        gso: Some(Gso { kind, size, header_len: start + 20, ecn: false }),
    }
}
