//! A network with nothing on it: what a port sends comes back to it.

use core::iter;

use super::clock::Ticks;
use super::net::{
    Busy, Checksum, Filter, Frame, FrameInfo, MAX_PAIRS, MacAddress, NetBackend, NetInfo, Offloads,
    Received, Reception, Segmentation, SendTag, Sent,
};
use crate::memory::SharedSlice;

/// Buffers that are remembered, of each pair.
pub const BUFFERS: usize = 64;

/// Their segments: one chain of as many as there can be, at least.
const SEGMENTS: usize = 256 + BUFFERS;

/// Frames that are kept as if hardware read them.
pub const DEPTH: usize = 64;

/// virtio_net_hdr (virtio 5.1.6).
const HEADER: usize = 12;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// When a loopback is done with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    /// At once.
    #[default]
    AtOnce,
    /// At a poll after the kick, first in, first out: as hardware would be.
    Later,
    /// At a poll after the kick, last in, first out, to try users on.
    LaterReversed,
}

/// The buffers of one pair of queues.
struct Pair<'m> {
    /// Bytes and segments of those that are posted.
    buffers: heapless::Deque<(usize, usize), BUFFERS>,
    segments: heapless::Deque<SharedSlice<'m>, SEGMENTS>,
    received: heapless::Deque<Received, BUFFERS>,
}

impl Pair<'_> {
    const EMPTY: Self = Self {
        buffers: heapless::Deque::new(),
        segments: heapless::Deque::new(),
        received: heapless::Deque::new(),
    };

    fn clear(&mut self) {
        self.buffers.clear();
        self.segments.clear();
        self.received.clear();
    }

    /// The first buffers that hold `len` bytes: how many.
    fn needed(&self, len: usize) -> Option<usize> {
        let mut room = 0;
        let mut buffers = self.buffers.iter();
        for count in 1.. {
            room += buffers.next()?.0;
            if room >= len {
                return Some(count);
            }
        }
        None
    }

    /// Where byte `at` of the posted segments is.
    fn place(&self, mut at: usize) -> Option<SharedSlice<'_>> {
        for segment in &self.segments {
            if at < segment.len() {
                return segment.subslice(at, segment.len() - at);
            }
            at -= segment.len();
        }
        None
    }

    /// Writes `source` from byte `at` of the posted segments on.
    fn copy(&self, mut at: usize, source: &SharedSlice<'_>) -> Option<()> {
        let mut done = 0;
        while done < source.len() {
            let place = self.place(at)?;
            let len = place.len().min(source.len() - done);
            place.subslice(0, len)?.copy_from(&source.subslice(done, len)?)?;
            done += len;
            at += len;
        }
        Some(())
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Option<()> {
        for (byte, at) in bytes.iter().zip(at..) {
            self.place(at)?.store_u8(0, *byte)?;
        }
        Some(())
    }

    /// Gives the first `count` buffers back, which `len` bytes are in.
    fn consume(&mut self, count: usize, mut len: usize) -> Option<()> {
        for left in (0..count).rev() {
            let (room, segments) = self.buffers.pop_front()?;
            let written = room.min(len);
            len -= written;
            for _ in 0..segments {
                self.segments.pop_front();
            }
            let received = Received { written: written as u32, continues: left != 0 };
            self.received.push_back(received).ok()?;
        }
        Some(())
    }
}

/// What has become of frames.
#[derive(Clone, Copy, Default)]
struct Counters {
    looped: u64,
    no_buffer: u64,
    small_buffer: u64,
    not_accepted: u64,
    closed: u64,
}

/// A port whose frames come back to it, whatever address they are for: filters are not asked.
///
/// Offloads are passed on to a driver that accepts them. For one that does not, checksums are
/// completed; nothing is cut: what would have to be is lost. So is what finds no buffer.
pub struct Loopback<'m, const PAIRS: usize = MAX_PAIRS> {
    info: NetInfo,
    completion: Completion,
    reception: Option<Reception>,
    pairs: [Pair<'m>; PAIRS],
    sent: heapless::Deque<SendTag, DEPTH>,
    /// How many of those sent have been kicked.
    kicked: usize,
    changed: bool,
    counters: Counters,
}

impl Loopback<'_> {
    /// A port whose driver has the address `mac`, with one pair of queues and all offloads.
    pub fn new(mac: MacAddress, mtu: u16) -> Self {
        Self::empty(mac, mtu)
    }
}

impl Loopback<'_, 1> {
    /// The same, with no room for more pairs: a quarter of the size.
    #[inline]
    pub fn single(mac: MacAddress, mtu: u16) -> Self {
        Self::empty(mac, mtu)
    }
}

impl<'m, const PAIRS: usize> Loopback<'m, PAIRS> {
    #[inline]
    fn empty(mac: MacAddress, mtu: u16) -> Self {
        Self {
            info: NetInfo {
                mac,
                mtu,
                link_up: true,
                speed: None,
                takes: Offloads::all(),
                gives: Offloads::all(),
                pairs: 1,
            },
            completion: Completion::default(),
            reception: None,
            pairs: [const { Pair::EMPTY }; PAIRS],
            sent: heapless::Deque::new(),
            kicked: 0,
            changed: false,
            counters: Counters::default(),
        }
    }

    /// The same with `pairs` pairs of queues, at least 1 and at most as many as there is room for: a
    /// frame comes back on the pair it was sent on, if that is in use and has buffers.
    #[must_use]
    pub fn with_pairs(mut self, pairs: u16) -> Self {
        self.info.pairs = pairs.clamp(1, PAIRS as u16);
        self
    }

    /// The same with other offloads.
    #[must_use]
    pub fn with_offloads(mut self, takes: Offloads, gives: Offloads) -> Self {
        self.info.takes = takes;
        self.info.gives = gives;
        self
    }

    /// The same, done with frames at another time.
    #[must_use]
    pub fn with_completion(mut self, completion: Completion) -> Self {
        self.completion = completion;
        self
    }

    /// Takes the link up or down. Frames get lost while it is down.
    pub fn set_link(&mut self, up: bool) {
        self.changed |= self.info.link_up != up;
        self.info.link_up = up;
    }

    /// Sets what the speed is said to be, in Mbit/s.
    pub fn set_speed(&mut self, speed: Option<u32>) {
        self.changed |= self.info.speed != speed;
        self.info.speed = speed;
    }

    /// Writes a frame to the buffers of `pair`, or counts why not.
    fn deliver(&mut self, pair: u16, frame: &Frame<'_, '_>) -> Option<()> {
        let counters = &mut self.counters;
        let Some(reception) = self.reception.filter(|_| self.info.link_up) else {
            counters.closed += 1;
            return None;
        };
        let Some((header, complete)) = header(&frame.info, reception.accepts) else {
            counters.not_accepted += 1;
            return None;
        };
        let len = HEADER + frame.len;
        let pairs = &mut self.pairs[..];
        let in_use = pairs.get_mut(..usize::from(reception.pairs)).unwrap_or_default();
        let own = usize::from(pair);
        // Its own first; another if that has no buffers, which a queue that is being reset has not.
        let chosen = iter::once(own)
            .chain(0..MAX_PAIRS)
            .find_map(|at| Some((at, in_use.get(at)?.needed(len)?)));
        let Some((at, count)) = chosen else {
            counters.no_buffer += 1;
            return None;
        };
        let pair = in_use.get_mut(at)?;
        if count != 1 && !reception.mergeable {
            counters.small_buffer += 1;
            return None;
        }
        pair.write(0, &header)?;
        pair.write(HEADER - size_of::<u16>(), &(count as u16).to_le_bytes())?;
        let mut at = HEADER;
        for segment in frame.segments {
            pair.copy(at, segment)?;
            at += segment.len();
        }
        if let Some((start, offset)) = complete {
            let sum = checksum(frame.segments, start.into());
            pair.write(HEADER + usize::from(start) + usize::from(offset), &sum.to_be_bytes())?;
        }
        pair.consume(count, len)?;
        counters.looped += 1;
        Some(())
    }
}

/// Where a checksum begins, and where it is from there.
type Sum = (u16, u16);

/// virtio_net_hdr for a driver that accepts `accepts`, without `num_buffers`, and where the checksum is
/// that is to be completed before. `None` if the frame would have to be cut.
fn header(info: &FrameInfo, accepts: Offloads) -> Option<([u8; HEADER], Option<Sum>)> {
    let mut complete = None;
    let (flags, start, offset) = match info.checksum {
        Checksum::Valid if accepts.contains(Offloads::CSUM) => (DATA_VALID, 0, 0),
        Checksum::Valid | Checksum::Unknown => (0, 0, 0),
        Checksum::Partial { start, offset } if accepts.contains(Offloads::CSUM) => {
            (NEEDS_CSUM, start, offset)
        }
        Checksum::Partial { start, offset } => {
            complete = Some((start, offset));
            (0, 0, 0)
        }
    };
    let (mut kind, mut header_len, mut size) = (0, 0, 0);
    if let Some(gso) = info.gso {
        let needed;
        (kind, needed) = match gso.kind {
            Segmentation::TcpV4 => (1, Offloads::TSO4),
            Segmentation::TcpV6 => (4, Offloads::TSO6),
            Segmentation::Udp => (5, Offloads::USO),
        };
        let ecn = if gso.ecn { Offloads::ECN } else { Offloads::empty() };
        if !accepts.contains(needed | ecn | Offloads::CSUM) {
            return None;
        }
        if gso.ecn {
            kind |= 0x80;
        }
        (header_len, size) = (gso.header_len, gso.size);
    }
    let mut header = [0; HEADER];
    let words = [u16::from_le_bytes([flags, kind]), header_len, size, start, offset];
    for (room, word) in header.chunks_exact_mut(size_of::<u16>()).zip(words) {
        room.copy_from_slice(&word.to_le_bytes());
    }
    Some((header, complete))
}

/// The Internet checksum (RFC 1071) of the bytes from `start` on; never 0, which UDP has for none.
fn checksum(segments: &[SharedSlice<'_>], start: usize) -> u16 {
    let bytes = segments.iter().flat_map(|segment| {
        let mut at = 0;
        iter::from_fn(move || {
            let byte = segment.load_u8(at)?;
            at += 1;
            Some(byte)
        })
    });
    let mut sum = 0_u64;
    for (at, byte) in bytes.skip(start).enumerate() {
        sum += u64::from(byte) << if at & 1 == 0 { 8 } else { 0 };
    }
    while sum > 0xFFFF {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    match !(sum as u16) {
        0 => 0xFFFF,
        sum => sum,
    }
}

impl<'m, const PAIRS: usize> NetBackend<'m> for Loopback<'m, PAIRS> {
    fn info(&self) -> NetInfo {
        self.info
    }

    fn open(&mut self, reception: Reception) {
        self.reception = Some(reception);
    }

    fn set_filter(&mut self, _filter: &Filter) {}

    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        _now: Ticks,
    ) -> Result<Sent, Busy> {
        if self.completion == Completion::AtOnce {
            self.deliver(pair, &frame);
            return Ok(Sent::Done);
        }
        self.sent.push_back(tag).map_err(|_| Busy)?;
        self.deliver(pair, &frame);
        Ok(Sent::InFlight)
    }

    fn kick(&mut self) {
        self.kicked = self.sent.len();
    }

    fn poll_sent(&mut self, _now: Ticks) -> Option<SendTag> {
        self.kicked = self.kicked.checked_sub(1)?;
        if self.completion == Completion::LaterReversed {
            self.sent.pop_back()
        } else {
            self.sent.pop_front()
        }
    }

    fn post(&mut self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        let pair = self.pairs.get_mut(usize::from(pair)).ok_or(Busy)?;
        if pair.buffers.len() + pair.received.len() >= BUFFERS
            || segments.len() > SEGMENTS - pair.segments.len()
        {
            return Err(Busy);
        }
        for segment in segments {
            pair.segments.push_back(*segment).map_err(|_| Busy)?;
        }
        let len = segments.iter().map(SharedSlice::len).sum();
        pair.buffers.push_back((len, segments.len())).map_err(|_| Busy)
    }

    fn poll_received(&mut self, pair: u16) -> Option<Received> {
        self.pairs.get_mut(usize::from(pair))?.received.pop_front()
    }

    fn withdraw(&mut self, pair: u16) {
        if let Some(pair) = self.pairs.get_mut(usize::from(pair)) {
            pair.clear();
        }
    }

    fn close(&mut self, _now: Ticks) -> bool {
        self.reception = None;
        self.pairs.iter_mut().for_each(Pair::clear);
        self.sent.clear();
        self.kicked = 0;
        true
    }

    fn in_flight(&self) -> usize {
        self.sent.len()
    }

    fn take_change(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }

    fn set_link(&mut self, up: bool) -> bool {
        Loopback::set_link(self, up);
        true
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.counters;
        visit("looped", counters.looped);
        visit("rx_no_buffer", counters.no_buffer);
        visit("rx_small_buffer", counters.small_buffer);
        visit("rx_not_accepted", counters.not_accepted);
        visit("rx_closed", counters.closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::net::Gso;
    use crate::memory::{HostRam, Pa};

    const NOW: Ticks = Ticks(0);
    const RECEPTION: Reception = Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 };

    fn port<'m>() -> Loopback<'m> {
        Loopback::new(MacAddress([2, 0, 0, 0, 0, 1]), 1500)
    }

    struct Bench {
        ram: HostRam,
    }

    /// Where frames are, and where buffers are.
    const FRAME: usize = 0;
    const BUFFER: usize = 0x2_0000;

    impl Bench {
        fn new() -> Self {
            Self { ram: HostRam::new(0x4_0000) }
        }

        fn slice(&self, at: usize, len: usize) -> SharedSlice<'_> {
            self.ram.slice(Pa::new(0)).subslice(at, len).unwrap()
        }

        fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.slice(at, len).read_bytes(0, &mut bytes).unwrap();
            bytes
        }

        fn send<'m>(&'m self, port: &mut Loopback<'m>, bytes: &[u8], info: FrameInfo) -> Sent {
            self.slice(FRAME, bytes.len()).write_bytes(0, bytes).unwrap();
            let half = bytes.len() / 2;
            let segments = [self.slice(FRAME, half), self.slice(half, bytes.len() - half)];
            let frame = Frame { info, segments: &segments, len: bytes.len() };
            port.send(0, SendTag(3), frame, NOW).unwrap()
        }
    }

    fn count(port: &Loopback<'_>, wanted: &str) -> u64 {
        let mut found = None;
        port.statistics(&mut |name, value| {
            if name == wanted {
                found = Some(value);
            }
        });
        found.unwrap()
    }

    #[test]
    fn a_frame_fills_the_buffers_in_order_and_says_how_many() {
        let bench = Bench::new();
        let mut port = port();
        port.open(RECEPTION);
        let frame: Vec<u8> = (0..100).collect();
        for (at, len) in [(0, 40), (0x100, 40), (0x200, 40), (0x300, 40)] {
            let half = bench.slice(BUFFER + at, len / 2);
            let rest = bench.slice(BUFFER + at + len / 2, len / 2);
            port.post(0, &[half, rest]).unwrap();
        }
        assert_eq!(bench.send(&mut port, &frame, FrameInfo::PLAIN), Sent::Done);
        let expected = [(40, true), (40, true), (32, false)];
        for (written, continues) in expected {
            assert_eq!(port.poll_received(0), Some(Received { written, continues }));
        }
        assert_eq!(port.poll_received(0), None);
        let mut whole = bench.bytes(BUFFER, 40);
        whole.extend(bench.bytes(BUFFER + 0x100, 40));
        whole.extend(bench.bytes(BUFFER + 0x200, 32));
        assert_eq!(whole[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
        assert_eq!(whole[12..], frame);
        // One buffer of four is left.
        bench.send(&mut port, &frame, FrameInfo::PLAIN);
        assert_eq!(count(&port, "rx_no_buffer"), 1);
        bench.send(&mut port, &frame[..28], FrameInfo::PLAIN);
        assert_eq!(port.poll_received(0), Some(Received { written: 40, continues: false }));
    }

    #[test]
    fn without_merging_a_frame_fits_into_a_buffer_or_is_lost() {
        let bench = Bench::new();
        let mut port = port();
        port.open(Reception { mergeable: false, ..RECEPTION });
        port.post(0, &[bench.slice(BUFFER, 72)]).unwrap();
        port.post(0, &[bench.slice(BUFFER + 100, 72)]).unwrap();
        bench.send(&mut port, &[1; 61], FrameInfo::PLAIN);
        assert_eq!((port.poll_received(0), count(&port, "rx_small_buffer")), (None, 1));
        bench.send(&mut port, &[1; 60], FrameInfo::PLAIN);
        assert_eq!(port.poll_received(0), Some(Received { written: 72, continues: false }));
        assert_eq!(bench.bytes(BUFFER + 10, 2), [1, 0]);
    }

    #[test]
    fn a_frame_comes_back_on_its_pair_or_on_another_in_use_that_has_buffers() {
        let bench = Bench::new();
        let mut port = port().with_pairs(3);
        let segments = [bench.slice(FRAME, 60)];
        let frame = Frame { info: FrameInfo::PLAIN, segments: &segments, len: 60 };
        for (pairs, buffers, expected) in [
            (1, &[0, 1, 2][..], Some(0)),
            (3, &[0, 1, 2], Some(2)),
            (2, &[0, 1, 2], Some(0)),
            (3, &[1], Some(1)),
            (2, &[2], None),
        ] {
            port.close(NOW);
            port.open(Reception { pairs, ..RECEPTION });
            for pair in buffers {
                port.post(*pair, &[bench.slice(BUFFER, 100)]).unwrap();
            }
            port.send(2, SendTag(0), frame, NOW).unwrap();
            let received = (0..3).find(|pair| port.poll_received(*pair).is_some());
            assert_eq!(received, expected, "{pairs} {buffers:?}");
        }
    }

    #[test]
    fn offloads_are_passed_on_completed_or_the_frame_is_lost() {
        let bench = Bench::new();
        let mut port = port();
        let mut frame = [0x11; 64];
        frame[50..52].copy_from_slice(&[0x12, 0x34]);
        let partial = Checksum::Partial { start: 34, offset: 16 };
        let gso = Gso { kind: Segmentation::TcpV6, size: 1400, header_len: 54, ecn: true };
        let plain = FrameInfo { checksum: partial, gso: None };
        let large = FrameInfo { checksum: partial, gso: Some(gso) };
        let mut send = |accepts, info| {
            port.open(Reception { accepts, ..RECEPTION });
            port.withdraw(0);
            port.post(0, &[bench.slice(BUFFER, 128)]).unwrap();
            bench.send(&mut port, &frame, info);
            port.poll_received(0).map(|_| bench.bytes(BUFFER, 76))
        };
        let carried = send(Offloads::all(), large).unwrap();
        assert_eq!(carried[..12], [1, 0x84, 54, 0, 0x78, 5, 34, 0, 16, 0, 1, 0]);
        assert_eq!(carried[12..], frame);
        let carried = send(Offloads::CSUM, plain).unwrap();
        assert_eq!(carried[..12], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
        for accepts in [Offloads::CSUM, Offloads::all() - Offloads::ECN, Offloads::empty()] {
            assert_eq!(send(accepts, large), None);
        }
        let valid = FrameInfo { checksum: Checksum::Valid, gso: None };
        assert_eq!(send(Offloads::CSUM, valid).unwrap()[0], 2);
        assert_eq!(send(Offloads::empty(), valid).unwrap()[0], 0);
        let completed = send(Offloads::empty(), plain).unwrap();
        assert_eq!(completed[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        // All words from 34 on, the place of the checksum included: 14 times 0x1111, and 0x1234.
        let sum = 14 * 0x1111_u32 + 0x1234;
        let sum = !((sum >> 16) + (sum & 0xFFFF)) as u16;
        assert_eq!(completed[12 + 50..12 + 52], sum.to_be_bytes());
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_the_other_zero() {
        let bench = Bench::new();
        let slice = bench.slice(0, 4);
        slice.write_bytes(0, &[0xFF, 0xFF, 0, 0]).unwrap();
        assert_eq!(checksum(&[slice], 0), 0xFFFF);
        assert_eq!(checksum(&[slice.subslice(0, 1).unwrap()], 0), 0x00FF);
    }

    #[test]
    fn frames_stay_in_flight_until_kicked_and_polled_and_a_close_forgets_all() {
        let bench = Bench::new();
        for (completion, order) in
            [(Completion::Later, [0, 1]), (Completion::LaterReversed, [1, 0])]
        {
            let mut port = port().with_completion(completion);
            port.open(RECEPTION);
            let segments = [bench.slice(0, 60)];
            let frame = Frame { info: FrameInfo::PLAIN, segments: &segments, len: 60 };
            for tag in 0..2 {
                assert_eq!(port.send(0, SendTag(tag), frame, NOW), Ok(Sent::InFlight));
            }
            assert_eq!((port.poll_sent(NOW), port.in_flight()), (None, 2));
            port.kick();
            assert_eq!(port.poll_sent(NOW), Some(SendTag(order[0])));
            assert_eq!(port.poll_sent(NOW), Some(SendTag(order[1])));
            port.post(0, &[bench.slice(BUFFER, 100)]).unwrap();
            for tag in 0..DEPTH as u16 {
                port.send(0, SendTag(tag), frame, NOW).unwrap();
            }
            assert_eq!(port.send(0, SendTag(99), frame, NOW), Err(Busy));
            assert!(port.close(NOW));
            assert_eq!((port.in_flight(), port.poll_received(0)), (0, None));
        }
    }

    #[test]
    fn buffers_are_bounded_and_frames_are_lost_while_the_link_is_down() {
        let bench = Bench::new();
        let mut port = port();
        port.open(RECEPTION);
        for _ in 0..BUFFERS {
            port.post(0, &[bench.slice(BUFFER, 100)]).unwrap();
        }
        assert_eq!(port.post(0, &[bench.slice(BUFFER, 100)]), Err(Busy));
        assert_eq!(port.post(4, &[bench.slice(BUFFER, 100)]), Err(Busy));
        port.set_link(false);
        assert_eq!((port.take_change(), port.take_change()), (true, false));
        bench.send(&mut port, &[0; 60], FrameInfo::PLAIN);
        assert_eq!((port.poll_received(0), count(&port, "rx_closed")), (None, 1));
        // A filled buffer counts until it is taken.
        port.set_link(true);
        bench.send(&mut port, &[0; 60], FrameInfo::PLAIN);
        assert_eq!(port.post(0, &[bench.slice(BUFFER, 100)]), Err(Busy));
        assert!(port.poll_received(0).is_some());
        assert_eq!(port.post(0, &[bench.slice(BUFFER, 100)]), Ok(()));
    }
}
