//! The beginning of a frame: addresses and the VLAN tag.

use super::gather::{Gather, Outgoing};
use crate::backend::net::{Checksum, Frame, FrameInfo, MacAddress};

/// Both addresses; a tag comes next, or the type.
pub(super) const ADDRESSES: usize = 12;
/// An 802.1Q tag.
pub(super) const TAG: usize = 4;
/// The type that says that the rest of a tag follows.
const TPID: [u8; 2] = [0x81, 0x00];
/// The part of a tag that names the VLAN.
const VID: u16 = 0x0FFF;
/// No VLAN has this number.
const RESERVED: u16 = 0x0FFF;

/// A VLAN, 1 to 4094, or 0 for frames of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Vlan(pub(super) u16);

impl Vlan {
    pub(super) const NONE: Vlan = Vlan(0);

    /// `None` if there is no such VLAN.
    pub(super) const fn new(number: u16) -> Option<Vlan> {
        if number < RESERVED { Some(Vlan(number)) } else { None }
    }
}

/// What the switch needs to know of a frame, read once.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) destination: MacAddress,
    pub(super) source: MacAddress,
    /// What the frame's tag says, if it has one.
    pub(super) tag: Option<u16>,
    /// Both addresses, as they are in the frame, and room for a tag.
    bytes: [u8; ADDRESSES + TAG],
}

impl Head {
    /// `None` if the frame has less than a header, or less than its tag asks for.
    #[inline]
    pub(super) fn read(frame: &Gather<'_, '_>) -> Option<Head> {
        let mut bytes = [0; ADDRESSES + TAG];
        if frame.read(&mut bytes).is_none() {
            // Has no tag, for there is no room for one, and is no frame if it has no type.
            frame.read(bytes.first_chunk_mut::<{ ADDRESSES + 2 }>()?)?;
            if bytes.ends_with(&[TPID[0], TPID[1], 0, 0]) {
                return None;
            }
        }
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1, v0, v1] = bytes;
        let tag = ([t0, t1] == TPID).then_some(u16::from_be_bytes([v0, v1]));
        // The type of what is in the tag.
        if tag.is_some() && frame.len() < ADDRESSES + TAG + 2 {
            return None;
        }
        Some(Head {
            destination: MacAddress([d0, d1, d2, d3, d4, d5]),
            source: MacAddress([s0, s1, s2, s3, s4, s5]),
            tag,
            bytes,
        })
    }

    /// The VLAN that the tag names; of none if it only tells a priority. `None`: there is no such VLAN.
    #[inline]
    pub(super) fn vlan(&self) -> Option<Vlan> {
        self.tag.map_or(Some(Vlan::NONE), |tag| Vlan::new(tag & VID))
    }
}

/// How a frame has to look where it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tagging {
    /// As it is.
    Keep,
    /// Without its tag.
    Remove,
    /// With a tag of this VLAN, which it has not.
    Insert(Vlan),
    /// Its tag names no VLAN but a priority; it is to name this one.
    Name(Vlan),
}

impl Tagging {
    /// Of a frame with `tag` that is in `vlan`, on its way to a place where it has a tag if it is in
    /// a VLAN, or, if not `tagged`, to one where it has none.
    #[inline]
    pub(super) fn of(tag: Option<u16>, vlan: Vlan, tagged: bool) -> Tagging {
        match tag {
            Some(_) if !tagged => Tagging::Remove,
            Some(tag) if tag & VID != vlan.0 => Tagging::Name(vlan),
            None if tagged && vlan != Vlan::NONE => Tagging::Insert(vlan),
            _ => Tagging::Keep,
        }
    }
}

/// A frame in the form that it has where it goes.
#[derive(Clone, Copy)]
pub(super) struct Shaped<'a, 'm> {
    pub(super) info: FrameInfo,
    pub(super) body: Gather<'a, 'm>,
    head: [u8; ADDRESSES + TAG],
    head_len: usize,
}

impl<'a, 'm> Shaped<'a, 'm> {
    /// `None` if what is to be summed up were outside of the frame.
    #[inline]
    pub(super) fn new(frame: &Frame<'a, 'm>, head: &Head, tagging: Tagging) -> Option<Self> {
        let mut body = Gather::of(frame);
        let mut info = frame.info;
        let mut bytes = head.bytes;
        let mut head_len = 0;
        if tagging != Tagging::Keep {
            head_len = ADDRESSES;
            body.skip(if head.tag.is_some() { ADDRESSES + TAG } else { ADDRESSES });
            let tag = match tagging {
                Tagging::Insert(Vlan(number)) => Some(number),
                Tagging::Name(Vlan(number)) => Some(head.tag.unwrap_or(0) & !VID | number),
                _ => None,
            };
            if let (Some(tag), Some(place)) = (tag, bytes.last_chunk_mut::<TAG>()) {
                let [high, low] = tag.to_be_bytes();
                *place = [TPID[0], TPID[1], high, low];
                head_len += TAG;
            }
            let moved = |place: u16| match tagging {
                Tagging::Insert(_) => place.checked_add(TAG as u16),
                Tagging::Remove => place.checked_sub(TAG as u16),
                _ => Some(place),
            };
            if let Checksum::Partial { start, offset } = info.checksum {
                info.checksum = Checksum::Partial { start: moved(start)?, offset };
            }
            if let Some(gso) = &mut info.gso {
                // A hint, and no reason to drop the frame.
                gso.header_len = moved(gso.header_len).unwrap_or(0);
            }
        }
        Some(Shaped { info, body, head: bytes, head_len })
    }

    /// Its bytes.
    #[inline]
    pub(super) fn outgoing(&self) -> Outgoing<'_, 'm> {
        Outgoing { head: self.head.get(..self.head_len).unwrap_or_default(), body: self.body }
    }
}
