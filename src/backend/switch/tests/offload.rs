//! What the switch does for those who cannot: checksums and segments. An independent reader
//! (`etherparse`) judges what comes out.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::backend::net::{Gso, Segmentation};

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const FIN_PSH_ACK_CWR: u8 = 0x99;

/// A frame with the sum of its pseudo header where the checksum goes, as a driver makes it.
fn packet(
    to: MacAddress,
    from: MacAddress,
    tag: Option<u16>,
    v6: bool,
    protocol: u8,
    options: usize,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    if let Some(tag) = tag {
        frame.extend([0x81, 0]);
        frame.extend(tag.to_be_bytes());
    }
    let header = if protocol == PROTOCOL_TCP { 20 + options } else { 8 };
    let len = (header + payload.len()) as u16;
    let addresses = if v6 {
        frame.extend([0x86, 0xDD, 0x60, 0, 0, 1]);
        frame.extend(len.to_be_bytes());
        frame.extend([protocol, 64]);
        [[0xFD; 16], [0xFE; 16]].concat()
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((20 + len).to_be_bytes());
        // The last but one identification.
        frame.extend([0xFF, 0xFE, 0x40, 0, 64, protocol, 0, 0]);
        vec![10, 0, 0, 1, 10, 0, 0, 2]
    };
    frame.extend(&addresses);
    let mut sum: u32 = addresses.chunks(2).map(word).sum();
    sum += u32::from(protocol) + u32::from(len);
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    let sum = (sum as u16).to_be_bytes();
    frame.extend([0x12, 0x34, 0x00, 0x50]);
    if protocol == PROTOCOL_TCP {
        frame.extend([0xFF, 0xFF, 0xF0, 0x00, 1, 2, 3, 4]);
        frame.extend([((header / 4) << 4) as u8, FIN_PSH_ACK_CWR, 0x10, 0]);
        frame.extend(sum);
        frame.extend([0, 0]);
        frame.extend(vec![1; options]);
    } else {
        frame.extend(len.to_be_bytes());
        frame.extend(sum);
    }
    frame.extend(payload);
    frame
}

fn word(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

pub(super) fn tcp4(to: MacAddress, from: MacAddress, tag: Option<u16>, len: usize) -> Vec<u8> {
    packet(to, from, tag, false, PROTOCOL_TCP, 0, &bytes(len))
}

/// A segment, as the independent reader understands it.
#[derive(Debug)]
struct Segment {
    sequence: u32,
    flags: u8,
    identification: u16,
    payload: Vec<u8>,
}

/// Reads a frame; all lengths and checksums in it have to be right.
fn read(frame: &[u8]) -> Segment {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (transport, payload, identification);
    match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            identification = header.identification;
            transport = sliced.transport.unwrap();
            match &transport {
                TransportSlice::Tcp(tcp) => {
                    let checksum =
                        tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination());
                    assert_eq!(tcp.checksum(), checksum.unwrap());
                }
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    let checksum =
                        header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
                    assert_eq!(udp.checksum(), checksum.unwrap());
                    assert_eq!(usize::from(udp.length()), udp.payload().len() + 8);
                }
                other => panic!("{other:?}"),
            }
            payload = ip.payload().payload;
        }
        NetSlice::Ipv6(ip) => {
            identification = 0;
            transport = sliced.transport.unwrap();
            let (source, destination) = (ip.header().source(), ip.header().destination());
            match &transport {
                TransportSlice::Tcp(tcp) => {
                    let checksum = tcp.calc_checksum_ipv6(source, destination);
                    assert_eq!(tcp.checksum(), checksum.unwrap());
                }
                TransportSlice::Udp(udp) => {
                    let header = udp.to_header();
                    let checksum =
                        header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
                    assert_eq!(udp.checksum(), checksum.unwrap());
                }
                other => panic!("{other:?}"),
            }
            payload = ip.payload().payload;
        }
        other => panic!("{other:?}"),
    }
    // The reader cuts what is longer than the header says: nothing was.
    assert!(frame.ends_with(payload));
    match transport {
        TransportSlice::Tcp(tcp) => Segment {
            sequence: tcp.sequence_number(),
            flags: tcp.slice()[13],
            identification,
            payload: tcp.payload().to_vec(),
        },
        TransportSlice::Udp(udp) => {
            Segment { sequence: 0, flags: 0, identification, payload: udp.payload().to_vec() }
        }
        other => panic!("{other:?}"),
    }
}

/// The segments are those of `payload`, of `size` bytes each but for the last.
fn check(frames: &[Vec<u8>], payload: &[u8], size: usize, tcp: bool, v6: bool) {
    let segments: Vec<_> = frames.iter().map(|frame| read(frame)).collect();
    assert_eq!(segments.len(), payload.len().div_ceil(size));
    let all: Vec<u8> = segments.iter().flat_map(|segment| segment.payload.clone()).collect();
    assert!(all == payload, "the payload is another");
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        assert!(last || segment.payload.len() == size);
        if !v6 {
            assert_eq!(segment.identification, 0xFFFEu16.wrapping_add(index as u16));
        }
        if tcp {
            let sequence = 0xFFFF_F000u32.wrapping_add((index * size) as u32);
            assert_eq!(segment.sequence, sequence);
            let first = if index == 0 { 0x80 } else { 0 };
            assert_eq!(segment.flags, 0x10 | first | if last { 0x09 } else { 0 });
        }
    }
}

/// One who accepts nothing.
fn simple(net: &Net, number: u8, options: Options, accepts: Offloads) -> Station {
    let mut station = net.station(number, options);
    station.port.open(Reception { accepts, mergeable: false, pairs: 1 });
    station.post(0, 250, 2048);
    station
}

fn all(station: &mut Station) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| station.receive()).map(|got| got.bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn segments_are_right_for_ports_and_for_the_card(
        (v6, tcp) in any::<(bool, bool)>(),
        vlan in proptest::option::of(1u16..4095),
        options in (0usize..=10).prop_map(|words| 4 * words),
        len in 1usize..60_000,
        size in 400u16..1400,
        pieces in 0u16..3,
        csum in any::<bool>(),
    ) {
        let net = Net::new();
        let takes = if csum { Offloads::CSUM } else { Offloads::empty() };
        let card = net.uplink(UplinkInfo { takes, ..CARD });
        card.with(|card| card.room = Room { frames: 1000, segments: 5000 });
        let mut a = net.open(1, Options { vlan, ..Options::default() });
        let mut b = simple(&net, 2, Options { vlan, ..Options::default() }, Offloads::empty());
        let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let payload = bytes(len);
        let all_stations = MacAddress::BROADCAST;
        let frame = packet(all_stations, mac(1), None, v6, protocol, options, &payload);
        let kind = match (tcp, v6) {
            (false, _) => Segmentation::Udp,
            (true, false) => Segmentation::TcpV4,
            (true, true) => Segmentation::TcpV6,
        };
        let info = gso(kind, size, if v6 { 54 } else { 34 });
        prop_assert_eq!(a.send_as(pieces, &frame, info, 1), Ok(Sent::InFlight));
        check(&all(&mut b), &payload, size.into(), tcp, v6);
        let partial = card.with(|card| {
            card.submitted.iter().all(|frame| frame.info.checksum != Checksum::Unknown)
        });
        prop_assert_eq!(partial, csum);
        let mut frames = card.transmit();
        if csum {
            // The card's part.
            for frame in &mut frames {
                let start = if v6 { 54 } else { 34 } + if vlan.is_some() { 4 } else { 0 };
                let field = start + if tcp { 16 } else { 6 };
                let mut sum: u64 = frame[start..].chunks(2).map(|pair| u64::from(word(pair))).sum();
                while sum >> 16 != 0 {
                    sum = (sum & 0xFFFF) + (sum >> 16);
                }
                let checksum = if sum == 0xFFFF && !tcp { 0xFFFF } else { !(sum as u16) };
                frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        check(&frames, &payload, size.into(), tcp, v6);
        // All of them are one frame of the sender's.
        prop_assert_eq!(a.port.poll_sent(Ticks(1)), Some(SendTag(pieces)));
        prop_assert_eq!(a.port.in_flight(), 0);
    }

    #[test]
    fn checksums_are_completed_for_who_does_not_accept_them(
        v6 in any::<bool>(),
        tcp in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..1200),
        pieces in 0u16..3,
    ) {
        let net = Net::new();
        let card = net.uplink(CARD);
        let mut a = net.open(1, Options::default());
        let mut b = simple(&net, 2, Options::default(), Offloads::empty());
        let protocol = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let frame = packet(MacAddress::BROADCAST, mac(1), None, v6, protocol, 0, &payload);
        let start = if v6 { 54 } else { 34 };
        let checksum = Checksum::Partial { start, offset: if tcp { 16 } else { 6 } };
        let info = FrameInfo { checksum, gso: None };
        a.send_as(pieces, &frame, info, 1).unwrap();
        let mut frames = all(&mut b);
        frames.extend(card.transmit());
        prop_assert_eq!(frames.len(), 2);
        for mut frame in frames {
            if !v6 {
                // The driver's own; here nobody has made it.
                let header = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap();
                let checksum = header.to_header().calc_header_checksum();
                frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            }
            prop_assert_eq!(&read(&frame).payload, &payload);
        }
        prop_assert_eq!(net.switch.counter(Some(b.index), Counter::Checksums), 1);
    }
}

#[test]
fn a_checksum_of_zero_is_sent_as_ones_over_udp() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = simple(&net, 2, Options::default(), Offloads::empty());
    let mut payload = vec![0, 0];
    let info = FrameInfo { checksum: Checksum::Partial { start: 34, offset: 6 }, gso: None };
    let frame = packet(mac(2), mac(1), None, false, PROTOCOL_UDP, 0, &payload);
    a.send_as(0, &frame, info, 1).unwrap();
    let got = b.receive().unwrap().bytes;
    // With it, the sum is that of nothing.
    payload = got[40..42].to_vec();
    let frame = packet(mac(2), mac(1), None, false, PROTOCOL_UDP, 0, &payload);
    a.send_as(0, &frame, info, 1).unwrap();
    assert_eq!(b.receive().unwrap().bytes[40..42], [0xFF, 0xFF]);
}

#[test]
fn a_receiver_that_accepts_checksums_gets_segments_without() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = simple(&net, 2, Options::default(), Offloads::CSUM);
    let frame = tcp4(mac(2), mac(1), None, 3000);
    a.send_as(1, &frame, gso(Segmentation::TcpV4, 1400, 34), 1).unwrap();
    for len in [1400, 1400, 200] {
        let got = b.receive().unwrap();
        assert_eq!(got.header, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
        assert_eq!(got.bytes.len(), 54 + len);
        let pseudo = packet(mac(2), mac(1), None, false, PROTOCOL_TCP, 0, &bytes(len));
        assert_eq!(got.bytes[50..52], pseudo[50..52]);
    }
}

#[test]
fn frames_that_are_not_what_their_header_says_are_dropped() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.open(2, Options::default());
    let good = tcp4(mac(2), mac(1), None, 3000);
    let info = gso(Segmentation::TcpV4, 1400, 34);
    let mut wrong = Vec::new();
    let mut bad = |change: &dyn Fn(&mut Vec<u8>, &mut FrameInfo)| {
        let (mut frame, mut info) = (good.clone(), info);
        change(&mut frame, &mut info);
        wrong.push((frame, info));
    };
    let with = |change: &'static dyn Fn(&mut Gso)| {
        move |_: &mut Vec<u8>, info: &mut FrameInfo| change(info.gso.as_mut().unwrap())
    };
    bad(&with(&|gso| gso.kind = Segmentation::TcpV6));
    bad(&with(&|gso| gso.kind = Segmentation::Udp));
    bad(&with(&|gso| gso.size = 0));
    bad(&with(&|gso| gso.size = 47));
    bad(&with(&|gso| gso.size = 65_535));
    bad(&|_, info| info.checksum = Checksum::Unknown);
    bad(&|_, info| info.checksum = Checksum::Partial { start: 34, offset: 6 });
    bad(&|_, info| info.checksum = Checksum::Partial { start: 14, offset: 16 });
    bad(&|frame, _| frame[12] = 0x86);
    bad(&|frame, _| frame[14] = 0x44);
    bad(&|frame, _| frame[14] = 0x65);
    bad(&|frame, _| frame[14] = 0x4F);
    bad(&|frame, _| frame[20] = 0x20);
    bad(&|frame, _| frame[23] = PROTOCOL_UDP);
    bad(&|frame, _| frame[46] = 0x40);
    bad(&|frame, _| frame.truncate(54));
    bad(&|frame, _| frame.truncate(40));
    bad(&|frame, _| frame.truncate(14));
    let count = wrong.len() as u64;
    for (frame, info) in wrong {
        assert_eq!(a.send_as(1, &frame, info, 1), DONE);
    }
    assert!(b.receive().is_none());
    assert_eq!(net.switch.counter(Some(a.index), Counter::DropMalformed), count);
    a.send_as(1, &good, info, 1).unwrap();
    assert_eq!(b.receive().unwrap().bytes, good);
}

#[test]
fn segments_larger_than_the_receivers_mtu_are_dropped() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.open(2, Options { mtu: 1000, ..Options::default() });
    let frame = tcp4(mac(2), mac(1), None, 3000);
    a.send_as(1, &frame, gso(Segmentation::TcpV4, 961, 34), 1).unwrap();
    assert!(b.receive().is_none());
    a.send_as(1, &frame, gso(Segmentation::TcpV4, 960, 34), 1).unwrap();
    assert_eq!(b.receive().unwrap().bytes, frame);
}

#[test]
fn a_frame_that_makes_more_segments_than_there_is_room_for_waits_or_is_dropped() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let [mut a, _b, _c] = three(&net, Default::default());
    let frame = tcp4(mac(0x77), mac(1), None, 30_000);
    let info = gso(Segmentation::TcpV4, 1000, 34);
    assert_eq!(a.send_as(0, &frame, info, 1), Ok(Sent::InFlight));
    assert_eq!(a.send_as(1, &frame, info, 1), Ok(Sent::InFlight));
    assert_eq!(a.send_as(2, &frame, info, 1), Err(Busy));
    assert_eq!(card.transmit().len(), 60);
    assert_eq!(a.port.poll_sent(Ticks(1)), Some(SendTag(0)));
    assert_eq!(a.port.poll_sent(Ticks(1)), Some(SendTag(1)));
    // More than the card can ever take.
    let info = gso(Segmentation::TcpV4, 400, 34);
    assert_eq!(a.send_as(3, &frame, info, 1), DONE);
    assert_eq!(net.switch.counter(None, Counter::DropUnfit), 1);
}
