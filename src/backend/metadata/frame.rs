//! Frames that are the service's, and the wire between it and the TCP that it uses.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::backend::net::{Frame, MAX_FRAME, Segmentation};

/// Where the service is.
pub const ADDRESS: [u8; 4] = [169, 254, 169, 254];
/// Whose answers come: a locally administered address.
pub const STATION: [u8; 6] = [0x02, 0, 169, 254, 169, 254];

/// An Ethernet header.
pub(super) const HEADER: usize = 14;
/// ARP for IPv4 on Ethernet, with that header.
const ARP: usize = HEADER + 28;
/// Frames that are taken: the request that there is room for, in one piece, with all headers at their
/// longest.
pub(super) const MOST_IN: usize = HEADER + 60 + 60 + super::responder::REQUEST;
/// Frames that are sent.
pub(super) const MOST_OUT: usize = HEADER + 1500;

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Hardware Ethernet, protocol IPv4, lengths of their addresses, request.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// The same, reply.
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
const TCP: u8 = 6;

/// A frame to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Arp,
    Ipv4,
}

/// Whether a frame is to the service. A tagged one never is: its VLAN is not the guest's own network.
pub(super) fn classify(frame: &Frame<'_, '_>) -> Option<Kind> {
    let mut head = [0; ARP];
    if frame.len < HEADER + 20 {
        return None;
    }
    copy(frame, &mut head);
    let address = |at: usize| head.get(at..at + ADDRESS.len()) == Some(ADDRESS.as_slice());
    match head.get(12..HEADER)? {
        kind if kind == TYPE_ARP && address(HEADER + 24) => Some(Kind::Arp),
        kind if kind == TYPE_IPV4 && address(HEADER + 16) => Some(Kind::Ipv4),
        _ => None,
    }
}

/// Copies a frame's first bytes, as many as there is room for; how many there are.
pub(super) fn copy(frame: &Frame<'_, '_>, mut out: &mut [u8]) -> usize {
    let mut copied = 0;
    for segment in frame.segments {
        let len = segment.len().min(out.len());
        let Some((now, later)) = out.split_at_mut_checked(len) else { break };
        if segment.read_bytes(0, now).is_none() {
            break;
        }
        copied += len;
        out = later;
    }
    copied
}

/// Whether TCP is to see a frame of [`Kind::Ipv4`]: it is a TCP segment, whole, and not larger than
/// what is to be cut may be.
pub(super) fn is_tcp(frame: &Frame<'_, '_>, bytes: &[u8]) -> bool {
    let cut_well = frame.info.gso.is_none_or(|gso| gso.kind == Segmentation::TcpV4);
    let [version, _, _, _, _, _, flags, offset, _, protocol] = bytes
        .get(HEADER..HEADER + 10)
        .and_then(|header| header.as_array())
        .copied()
        .unwrap_or_default();
    // More fragments, or not the first one.
    let fragment = flags & 0x3f != 0 || offset != 0;
    frame.len <= MAX_FRAME && cut_well && version >> 4 == 4 && protocol == TCP && !fragment
}

/// The answer to a request for the service's station; `None` if it is no such request.
pub(super) fn arp_reply(request: &[u8]) -> Option<[u8; ARP]> {
    let request: &[u8; ARP] = request.first_chunk()?;
    let asker = request.get(HEADER + 8..HEADER + 18)?;
    let mut reply = [0; ARP];
    let fields = [asker.get(..6)?, &STATION, &TYPE_ARP, &ARP_REPLY, &STATION, &ADDRESS, asker];
    if request.get(HEADER..HEADER + ARP_REQUEST.len())? != ARP_REQUEST {
        return None;
    }
    let mut rest = reply.as_mut_slice();
    for field in fields {
        let (place, after) = rest.split_at_mut_checked(field.len())?;
        place.copy_from_slice(field);
        rest = after;
    }
    Some(reply)
}

/// A wire that TCP/IP is on, for one packet in and any number out.
pub(super) struct Wire<'w> {
    /// A packet that has come; empty: none.
    pub(super) incoming: &'w [u8],
    /// Room for one that goes, at least [`MOST_OUT`].
    pub(super) outgoing: &'w mut [u8],
    /// The guest's station.
    pub(super) peer: [u8; 6],
    /// Brings a frame to the guest.
    pub(super) deliver: &'w mut dyn FnMut(&[u8]),
    /// The most bytes of a packet.
    pub(super) mtu: u16,
}

pub(super) struct Incoming<'t>(&'t [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Outgoing<'t> {
    room: &'t mut [u8],
    peer: [u8; 6],
    deliver: &'t mut dyn FnMut(&[u8]),
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // There is room for what the MTU allows, and no packet is larger.
        let result = f(self.room.get_mut(HEADER..HEADER + len).unwrap_or_default());
        let header = [self.peer, STATION];
        if let Some(place) = self.room.first_chunk_mut::<HEADER>() {
            for (place, byte) in place.iter_mut().zip(header.iter().flatten().chain(&TYPE_IPV4)) {
                *place = *byte;
            }
        }
        (self.deliver)(self.room.get(..HEADER + len).unwrap_or_default());
        result
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = core::mem::take(&mut self.incoming);
        if packet.is_empty() {
            return None;
        }
        Some((Incoming(packet), self.transmit(now)?))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        let (room, deliver) = (&mut *self.outgoing, &mut *self.deliver);
        Some(Outgoing { room, peer: self.peer, deliver })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu.into();
        // What comes has crossed no wire: it was copied out of the guest's memory, its checksum may not
        // be complete yet.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
