//! The metadata service: TCP segments of any form to it, near what it expects and far from it, and an
//! archive of any bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::metadata::{ADDRESS, Archive, Memory, Metadata, STATION};
use sparkler::backend::net::{
    Busy, Checksum, Filter, Frame, FrameInfo, Gso, MacAddress, NetBackend, NetInfo, Offloads,
    Received, Reception, Segmentation, SendTag, Sent,
};
use sparkler::memory::{HostRam, Pa, SharedSlice};

use crate::input::Input;

/// Steps of one input, at the most.
const MAX_STEPS: usize = 200;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PORTS: usize = 5;
const REQUESTS: [&[u8]; 4] = [
    b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"PUT /latest/api/token HTTP/1.1\r\n\r\n",
    b"GET /d/small HTTP/1.0\r\n\r\n",
];
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

type Delivered = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// What is behind the service: nothing gets there.
struct Port(Delivered, u16);

impl<'m> NetBackend<'m> for Port {
    fn info(&self) -> NetInfo {
        let (takes, gives) = (Offloads::all(), Offloads::all());
        let mac = MacAddress(GUEST);
        NetInfo { mac, mtu: self.1, link_up: true, speed: None, takes, gives, pairs: 1 }
    }
    fn open(&mut self, _: Reception) {}
    fn set_filter(&mut self, _: &Filter) {}
    fn send(&mut self, _: u16, _: SendTag, _: Frame<'_, 'm>, _: Ticks) -> Result<Sent, Busy> {
        panic!("a frame to the service has left the device")
    }
    fn kick(&mut self) {}
    fn poll_sent(&mut self, _: Ticks) -> Option<SendTag> {
        None
    }
    fn post(&mut self, _: u16, _: &[SharedSlice<'m>]) -> Result<(), Busy> {
        Err(Busy)
    }
    fn poll_received(&mut self, _: u16) -> Option<Received> {
        None
    }
    fn withdraw(&mut self, _: u16) {}
    fn close(&mut self, _: Ticks) -> bool {
        true
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn take_change(&mut self) -> bool {
        false
    }
    fn deliver(&mut self, frame: &[u8]) {
        let mut delivered = self.0.lock().unwrap();
        delivered.push_back(frame.to_vec());
        assert!(delivered.len() <= 64, "more is sent at once than was to be");
    }
}

fn entry(name: &str, kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    mend(&mut header);
    let mut bytes = [&header, contents].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Makes a header's checksum right.
fn mend(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// What the other side does not change.
fn sample() -> Vec<u8> {
    let entries = [
        entry("d/", b'5', b""),
        entry("d/small", b'0', b"text"),
        entry("large", b'0', &[b'x'; 20_000]),
    ];
    entries.concat()
}

struct Guest<'m> {
    service: Metadata<'m, 'm>,
    delivered: Delivered,
    memory: SharedSlice<'m>,
    now: u64,
    /// What to acknowledge, and what the service expects next, by port.
    seen: [(u32, u32); PORTS],
}

impl Guest<'_> {
    fn send(&mut self, bytes: &[u8], info: FrameInfo, cut: usize) {
        self.memory.write_bytes(0, bytes).unwrap();
        let len = bytes.len();
        let first = (cut % len).max(1);
        let halves = [(0, first), (first, len - first)];
        let segments: Vec<_> = halves.iter().filter(|half| half.1 != 0).collect();
        let segments: Vec<_> =
            segments.iter().map(|half| self.memory.subslice(half.0, half.1).unwrap()).collect();
        let frame = Frame { info, segments: &segments, len };
        let sent = self.service.send(0, SendTag(0), frame, Ticks(self.now));
        assert_eq!(sent, Ok(Sent::Done));
    }

    /// What the service has sent, of which all is sound.
    fn take(&mut self) -> Vec<Vec<u8>> {
        let frames: Vec<_> = self.delivered.lock().unwrap().drain(..).collect();
        for frame in &frames {
            assert!(frame[6..12] == STATION && frame.len() <= 1514);
            if frame[12..14] == [8, 6] {
                continue;
            }
            let ip = &frame[14..];
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
            assert!(ip[9] == 6 && ip[12..16] == ADDRESS);
            let word = |at: usize| u32::from_be_bytes(ip[at..at + 4].try_into().unwrap());
            let flags = ip[33];
            let len = ip.len() - 20 - 4 * usize::from(ip[32] >> 4);
            let len = len + usize::from(flags & FIN != 0) + usize::from(flags & SYN != 0);
            let port = u16::from_be_bytes([ip[22], ip[23]]).wrapping_sub(5000);
            if let Some(seen) = self.seen.get_mut(usize::from(port)) {
                *seen = (word(24).wrapping_add(len as u32), word(28));
            }
        }
        frames
    }

    fn tick(&mut self) -> Option<Ticks> {
        let due = self.service.tick(Ticks(self.now));
        assert!(due.is_none_or(|due| due.0 > self.now), "something is due for ever");
        due
    }

    fn segment(
        &self,
        port: usize,
        flags: u8,
        near: [u32; 2],
        window: u16,
        rest: [&[u8]; 2],
    ) -> Vec<u8> {
        let [options, payload] = rest;
        let (next, expected) = self.seen[port];
        let mut frame = [[0xff; 6], GUEST].concat();
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((40 + options.len() + payload.len()) as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15]);
        frame.extend(ADDRESS);
        let words =
            frame[14..].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend((5000 + port as u16).to_be_bytes());
        frame.extend([0, 80]);
        frame.extend(expected.wrapping_add(near[0]).to_be_bytes());
        frame.extend(next.wrapping_add(near[1]).to_be_bytes());
        frame.extend([((20 + options.len()) as u8 / 4) << 4, flags]);
        frame.extend(window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(options);
        frame.extend(payload);
        frame
    }
}

/// A number that is most often near 0.
fn near(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        0..=99 => 0,
        kind @ 100..=199 => u32::from(kind).wrapping_sub(150),
        200..=239 => u32::from(input.u16()).wrapping_sub(0x8000),
        _ => input.u32(),
    }
}

/// One input.
pub fn metadata(data: &[u8]) {
    let mut input = Input::new(data);
    // An archive with some bytes changed, alone.
    let mut bytes = sample();
    for _ in 0..input.below(8) {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.u8();
    }
    if input.flag() {
        mend(&mut bytes[..512]);
    }
    let ram = HostRam::new(bytes.len());
    let archive = ram.slice(Pa::new(0x4000_0000)).subslice(0, bytes.len()).unwrap();
    archive.write_bytes(0, &bytes).unwrap();
    let archive = Archive::new(archive);
    let sound = sample();
    let ram = HostRam::new(sound.len());
    let memory = ram.slice(Pa::new(0x5000_0000)).subslice(0, sound.len()).unwrap();
    memory.write_bytes(0, &sound).unwrap();
    let changed = archive.is_ok() && bytes != sound;
    let archive = archive.unwrap_or_else(|_| Archive::new(memory).unwrap());

    let delivered = Delivered::default();
    let mtu = [1500, 68, 576, 9000][input.below(4)];
    let mut port = Port(delivered.clone(), mtu);
    let mut connections: Vec<_> = (0..Memory::CONNECTIONS).map(|_| Memory::NO_CONNECTION).collect();
    let mut buffers = vec![0; Memory::BUFFERS];
    let memory = Memory { connections: &mut connections, buffers: &mut buffers };
    let frequency = Frequency::new(1000).unwrap();
    let service = Metadata::new(&mut port, archive, 1, frequency, memory).unwrap();
    let frames = HostRam::new(0x2000);
    let memory = frames.slice(Pa::new(0x6000_0000));
    let mut guest = Guest { service, delivered, memory, now: 0, seen: [(0, 0x1000); PORTS] };

    for _ in 0..MAX_STEPS {
        if !input.more() {
            break;
        }
        step(&mut guest, &mut input);
        guest.tick();
        guest.take();
    }
    // Whoever is there is gone after a while; then it works.
    for _ in 0..4 {
        guest.now += 6000;
        guest.tick();
        guest.take();
    }
    assert_eq!(guest.tick(), None);
    prove(&mut guest, changed);
}

fn step(guest: &mut Guest<'_>, input: &mut Input<'_>) {
    let partial = Checksum::Partial { start: 34, offset: 16 };
    let mut info = FrameInfo { checksum: partial, gso: None };
    match input.u8() {
        0..=15 => guest.now += u64::from(input.u8()),
        16..=23 => guest.now += u64::from(input.u16()),
        24..=25 => assert!(guest.service.close(Ticks(guest.now))),
        26..=35 => {
            let mut frame = [[0xff; 6], GUEST].concat();
            frame.extend(if input.flag() { [8, 6] } else { [8, 0] });
            let len = input.u8();
            frame.extend(input.bytes(len.into()));
            frame.resize(frame.len().max(60), 0);
            let at = if frame[13] == 6 { 38 } else { 30 };
            frame[at..at + 4].copy_from_slice(&ADDRESS);
            guest.send(&frame, info, input.u8().into());
        }
        kind => {
            let port = input.below(PORTS);
            let flags = [ACK, ACK | 8, SYN, ACK | FIN, 4, input.u8()][input.below(6)];
            let near = [near(input), near(input)];
            let window = if input.flag() { 0xffff } else { input.u16() };
            let options = 4 * input.below(11);
            let options = if kind > 128 { input.bytes(options / 4 * 4) } else { &[] };
            let options = &options[..options.len() / 4 * 4];
            let payload: Vec<u8> = match input.below(4) {
                0 => REQUESTS[input.below(4)].to_vec(),
                1 => vec![b'a'; input.u16() as usize % 2100],
                2 => input.bytes(kind.into()).to_vec(),
                _ => vec![],
            };
            if payload.len() > 1460 {
                let (kind, size) = (Segmentation::TcpV4, 1460);
                info.gso = Some(Gso { kind, size, header_len: 54, ecn: false });
            }
            let mut frame = guest.segment(port, flags, near, window, [options, &payload]);
            if kind == 255 {
                let at = 14 + usize::from(input.u8()) % (frame.len() - 14);
                frame[at] = input.u8();
                frame[30..34].copy_from_slice(&ADDRESS);
            }
            guest.send(&frame, info, input.u8().into());
        }
    }
}

/// A client that does everything right is served.
fn prove(guest: &mut Guest<'_>, changed: bool) {
    let port = PORTS - 1;
    guest.seen[port] = (0, 0x7777);
    let step = |guest: &mut Guest<'_>, flags, payload: &[u8]| {
        let frame = guest.segment(port, flags, [0, 0], 0xffff, [&[], payload]);
        guest.send(&frame, FrameInfo::PLAIN, 20);
        guest.tick();
        guest.take()
    };
    let answer = step(guest, SYN, b"");
    assert!(answer.len() == 1 && answer[0][47] == SYN | ACK, "{answer:?}");
    let answer = step(guest, ACK, b"GET /d/small HTTP/1.1\r\n\r\n").concat();
    let status: &[u8] = b"HTTP/1.1 200 OK\r\n";
    assert!(changed || answer.windows(status.len()).any(|window| window == status));
}
