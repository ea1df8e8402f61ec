//! The header before each frame, `struct virtio_net_hdr`. Source: virtio 5.1.6.

use crate::backend::net::{Checksum, FrameInfo, Gso, Offloads, Segmentation};
use crate::memory::SharedSlice;

/// Its bytes. VERSION_1 gives it `num_buffers` whether or not MRG_RXBUF was agreed on.
pub(super) const HEADER_BYTES: usize = 12;

/// Bits of `flags`.
const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;

/// Values of `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Bit of `gso_type`.
const GSO_ECN: u8 = 0x80;

/// The header of a frame that is to be sent, in words.
#[inline(always)]
pub(super) fn encode(info: &FrameInfo) -> [u32; 3] {
    let [mut first, mut second, mut third] = [0; 3];
    match info.checksum {
        Checksum::Partial { start, offset } => {
            first |= u32::from(F_NEEDS_CSUM);
            second |= u32::from(start) << 16;
            third |= u32::from(offset);
        }
        // DATA_VALID is not for frames that are sent (5.1.6.2.1).
        Checksum::Unknown | Checksum::Valid => {}
    }
    if let Some(gso) = &info.gso {
        let kind = match gso.kind {
            Segmentation::TcpV4 => GSO_TCPV4,
            Segmentation::TcpV6 => GSO_TCPV6,
            Segmentation::Udp => GSO_UDP_L4,
        };
        let kind = kind | if gso.ecn { GSO_ECN } else { 0 };
        first |= u32::from(kind) << 8 | u32::from(gso.header_len) << 16;
        second |= u32::from(gso.size);
    }
    [first, second, third]
}

/// The header of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    kind: u8,
    header_len: u16,
    gso_size: u16,
    start: u16,
    offset: u16,
    /// How many buffers the frame takes, if MRG_RXBUF was agreed on.
    pub(super) buffers: u16,
}

impl Header {
    /// Reads what the device has written at the beginning of `buffer`, once.
    #[inline]
    pub(super) fn read(buffer: &SharedSlice<'_>) -> Option<Self> {
        let (first, second) = (buffer.load_u64(0)?, buffer.load_u32(8)?);
        Some(Self {
            flags: first as u8,
            kind: (first >> 8) as u8,
            header_len: (first >> 16) as u16,
            gso_size: (first >> 32) as u16,
            start: (first >> 48) as u16,
            offset: second as u16,
            buffers: (second >> 16) as u16,
        })
    }

    /// What it says of a frame of `len` bytes, from a device that was told it may leave `gives` to
    /// do. `None` if it makes no sense.
    pub(super) fn info(&self, len: usize, gives: Offloads) -> Option<FrameInfo> {
        let mut info = FrameInfo::PLAIN;
        if self.flags & F_NEEDS_CSUM != 0 {
            let place = usize::from(self.start) + usize::from(self.offset);
            if !gives.contains(Offloads::CSUM) || place + 2 > len {
                return None;
            }
            info.checksum = Checksum::Partial { start: self.start, offset: self.offset };
        } else if self.flags & F_DATA_VALID != 0 && gives.contains(Offloads::CSUM) {
            info.checksum = Checksum::Valid;
        }
        if self.kind == GSO_NONE {
            return Some(info);
        }
        let ecn = self.kind & GSO_ECN != 0;
        let (kind, mut needs) = match self.kind & !GSO_ECN {
            GSO_TCPV4 => (Segmentation::TcpV4, Offloads::TSO4),
            GSO_TCPV6 => (Segmentation::TcpV6, Offloads::TSO6),
            GSO_UDP_L4 if !ecn => (Segmentation::Udp, Offloads::USO),
            _ => return None,
        };
        needs.set(Offloads::ECN, ecn);
        if !gives.contains(needs) || self.gso_size == 0 || self.flags & F_NEEDS_CSUM == 0 {
            return None;
        }
        let (size, header_len) = (self.gso_size, self.header_len);
        info.gso = Some(Gso { kind, size, header_len, ecn });
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::testing::{FakeRam, fill};

    const ALL: Offloads = Offloads::all();

    fn header(bytes: [u8; HEADER_BYTES]) -> Header {
        let ram = FakeRam::new(4096);
        let memory = ram.allocate(HEADER_BYTES);
        fill(memory, &bytes);
        Header::read(&memory).unwrap()
    }

    fn written(info: &FrameInfo) -> [u8; HEADER_BYTES] {
        let words = encode(info).map(u32::to_le_bytes);
        words.concat().try_into().unwrap()
    }

    #[test]
    fn a_plain_frame_has_a_header_of_zeros() {
        assert_eq!(written(&FrameInfo::PLAIN), [0; HEADER_BYTES]);
        let valid = FrameInfo { checksum: Checksum::Valid, gso: None };
        assert_eq!(written(&valid), [0; HEADER_BYTES]);
        assert_eq!(header([0; HEADER_BYTES]).info(60, ALL), Some(FrameInfo::PLAIN));
    }

    #[test]
    fn every_field_is_where_the_specification_has_it() {
        let gso = Gso { kind: Segmentation::TcpV6, size: 0x5a4, header_len: 0x136, ecn: true };
        let checksum = Checksum::Partial { start: 0x122, offset: 0x10 };
        let info = FrameInfo { checksum, gso: Some(gso) };
        let bytes = [1, 0x84, 0x36, 1, 0xa4, 5, 0x22, 1, 0x10, 0, 0, 0];
        assert_eq!(written(&info), bytes);
        assert_eq!(header(bytes).info(0x400, ALL), Some(info));
        assert_eq!(header([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1]).buffers, 0x103);
    }

    #[test]
    fn a_checksum_outside_the_frame_is_not_believed() {
        let at = |start: u8, offset| header([1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0]);
        assert!(at(34, 16).info(52, ALL).is_some());
        assert!(at(34, 16).info(51, ALL).is_none());
        assert!(header([1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0]).info(60, ALL).is_none());
    }

    #[test]
    fn what_was_not_agreed_on_is_not_believed() {
        let tcp4 = header([1, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
        assert!(tcp4.info(1000, Offloads::CSUM | Offloads::TSO4).is_some());
        assert!(tcp4.info(1000, Offloads::CSUM | Offloads::TSO6).is_none());
        assert!(
            header([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]).info(1000, Offloads::empty()).is_none()
        );
        let ecn = header([1, 0x81, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
        assert!(ecn.info(1000, Offloads::CSUM | Offloads::TSO4).is_none());
        // No size, no checksum to complete, UFO, unknown types.
        for bytes in [
            [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            [0, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0],
            [1, 3, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0],
            [1, 0x85, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0],
            [1, 0x7f, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        ] {
            assert!(header(bytes).info(1000, ALL).is_none(), "{bytes:?}");
        }
    }
}
