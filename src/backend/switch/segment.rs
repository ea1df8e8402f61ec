//! Cutting frames that are larger than the MTU: TCP over IPv4 or IPv6, and UDP over either.

use super::checksum::{Sum, for_field};
use super::gather::{Gather, Outgoing};
use super::uplink::MAX_HEADER;
use crate::backend::net::{Checksum, FrameInfo, Gso, Segmentation};

/// The least payload of a segment: with less, one frame would be more frames than is good for anybody.
const MIN_SIZE: u16 = 48;
const ADDRESSES: usize = 12;
const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86DD;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_SERVICE_VLAN: u16 = 0x88A8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
/// MF and the offset: the packet is a fragment.
const IPV4_FRAGMENT: u16 = 0x3FFF;
const TCP_FLAGS: usize = 13;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// The headers of a frame that is to be cut, understood and checked.
#[derive(Clone, Copy)]
pub(super) struct Headers {
    bytes: [u8; MAX_HEADER],
    len: usize,
    /// Where IP and TCP or UDP begin.
    network: usize,
    transport: usize,
    v6: bool,
    tcp: bool,
    size: u16,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk::<2>()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut::<N>()? = value;
    Some(())
}

impl Headers {
    /// `None` if the frame is not what `gso` says, or its checksum is not the one of its transport.
    pub(super) fn read(frame: &Outgoing<'_, '_>, info: &FrameInfo, gso: &Gso) -> Option<Headers> {
        let mut bytes = [0; MAX_HEADER];
        let there = frame.read(&mut bytes);
        let bytes_there = bytes.get(..there)?;
        let mut network = ADDRESSES + 2;
        let mut kind = be16(bytes_there, ADDRESSES)?;
        for _ in 0..2 {
            if kind == ETHER_VLAN || kind == ETHER_SERVICE_VLAN {
                network += 4;
                kind = be16(bytes_there, network - 2)?;
            }
        }
        let version = bytes_there.get(network)? >> 4;
        let (v6, protocol, transport) = match kind {
            ETHER_IPV4 if version == 4 => {
                let len = usize::from(bytes_there.get(network)? & 0x0F) * 4;
                if len < IPV4_HEADER || be16(bytes_there, network + 6)? & IPV4_FRAGMENT != 0 {
                    return None;
                }
                (false, *bytes_there.get(network + 9)?, network + len)
            }
            ETHER_IPV6 if version == 6 => {
                let mut protocol = *bytes_there.get(network + 6)?;
                let mut at = network + IPV6_HEADER;
                // Each is at least 8 bytes, and there are not more than what was read.
                while protocol == HOP_BY_HOP || protocol == DESTINATION_OPTIONS {
                    protocol = *bytes_there.get(at)?;
                    at += 8 + 8 * usize::from(*bytes_there.get(at + 1)?);
                }
                (true, protocol, at)
            }
            _ => return None,
        };
        let (tcp, len, checksum) = match (gso.kind, v6, protocol) {
            (Segmentation::TcpV4, false, PROTOCOL_TCP)
            | (Segmentation::TcpV6, true, PROTOCOL_TCP) => {
                let len = usize::from(bytes_there.get(transport + 12)? >> 4) * 4;
                (true, if len < TCP_HEADER { return None } else { len }, TCP_CHECKSUM)
            }
            (Segmentation::Udp, _, PROTOCOL_UDP) => (false, UDP_HEADER, UDP_CHECKSUM),
            _ => return None,
        };
        let len = transport + len;
        let partial =
            info.checksum == Checksum::Partial { start: transport as u16, offset: checksum };
        let in_range = len <= there && frame.head.len() <= len && len < frame.len();
        let datagram = len - network + usize::from(gso.size) <= usize::from(u16::MAX);
        (partial && in_range && datagram && gso.size >= MIN_SIZE).then_some(Headers {
            bytes,
            len,
            network,
            transport,
            v6,
            tcp,
            size: gso.size,
        })
    }

    /// Bytes of each segment but the last after the Ethernet header and tags.
    pub(super) fn datagram(&self) -> usize {
        self.len - self.network + usize::from(self.size)
    }

    /// How many segments `frame` makes.
    pub(super) fn segments(&self, frame: &Outgoing<'_, '_>) -> usize {
        let mut count = 0;
        let mut left = frame.len().saturating_sub(self.len);
        // Without a division; there are at most as many as a frame has room for.
        while left > 0 {
            left = left.saturating_sub(usize::from(self.size));
            count += 1;
        }
        count
    }
}

/// The segments of a frame, one after the other.
pub(super) struct Segments<'a, 'm> {
    headers: Headers,
    payload: Gather<'a, 'm>,
    /// The header of the next one is made in place.
    first: bool,
    complete: bool,
    flags: u8,
}

impl<'a, 'm> Segments<'a, 'm> {
    /// `complete`: the checksum of TCP or UDP is to be completed, not left to the receiver.
    pub(super) fn new(headers: Headers, frame: &Outgoing<'a, 'm>, complete: bool) -> Option<Self> {
        let payload = frame.after(headers.len)?;
        let flags = headers.bytes.get(headers.transport + TCP_FLAGS).copied().unwrap_or(0);
        Some(Self { headers, payload, first: true, complete, flags })
    }

    /// The next segment.
    pub(super) fn next(&mut self) -> Option<(FrameInfo, Outgoing<'_, 'm>)> {
        let step = u32::from(self.headers.size);
        let payload = self.payload.split_to(step as usize);
        if payload.len() == 0 {
            return None;
        }
        let last = self.payload.len() == 0;
        let Headers { bytes, len, network, transport, v6, tcp, .. } = &mut self.headers;
        let (len, network, transport) = (*len, *network, *transport);
        let bytes = bytes.get_mut(..len)?;
        // Less than 64 KiB, as was checked for full segments.
        let datagram = (len - network + payload.len()) as u16;
        let segment = (len - transport + payload.len()) as u16;
        if !self.first && *tcp {
            let sequence = be32(bytes, transport + 4)?.wrapping_add(step);
            put(bytes, transport + 4, sequence.to_be_bytes())?;
        }
        if *v6 {
            put(bytes, network + 4, (datagram - IPV6_HEADER as u16).to_be_bytes())?;
        } else {
            if !self.first {
                let id = be16(bytes, network + 4)?.wrapping_add(1);
                put(bytes, network + 4, id.to_be_bytes())?;
            }
            put(bytes, network + 2, datagram.to_be_bytes())?;
            put(bytes, network + 10, [0, 0])?;
            let mut sum = Sum::default();
            sum.add(bytes.get(network..transport)?);
            put(bytes, network + 10, sum.complement())?;
        }
        let (protocol, offset) = if *tcp {
            let mut flags = self.flags;
            if !last {
                flags &= !(TCP_FIN | TCP_PSH);
            }
            if !self.first {
                flags &= !TCP_CWR;
            }
            put(bytes, transport + TCP_FLAGS, [flags])?;
            (PROTOCOL_TCP, TCP_CHECKSUM)
        } else {
            put(bytes, transport + 4, segment.to_be_bytes())?;
            (PROTOCOL_UDP, UDP_CHECKSUM)
        };
        self.first = false;
        // The pseudo header: addresses, protocol and length.
        let mut sum = Sum::default();
        let addresses = if *v6 { network + 8..network + 40 } else { network + 12..network + 20 };
        sum.add(bytes.get(addresses)?);
        let [high, low] = segment.to_be_bytes();
        sum.add(&[high, low, 0, protocol]);
        let field = transport + usize::from(offset);
        let mut info = FrameInfo::PLAIN;
        if self.complete {
            put(bytes, field, [0, 0])?;
            sum.add(bytes.get(transport..)?);
            sum.add_gather(payload);
            put(bytes, field, for_field(sum.complement(), offset))?;
        } else {
            put(bytes, field, sum.bytes())?;
            info.checksum = Checksum::Partial { start: transport as u16, offset };
        }
        Some((info, Outgoing { head: bytes, body: payload }))
    }
}
