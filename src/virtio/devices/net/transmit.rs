//! What the header of a frame to be sent says (5.1.6.2), judged completely before any effect.

use super::wire::{
    CSUM, HEADER, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, Header, NEEDS_CSUM, gso_type,
};
use crate::backend::net::{Checksum, FrameInfo, Gso, MAX_FRAME, MIN_FRAME, Segmentation};
use crate::virtio::Features;
use crate::virtio::buffer::Reader;

/// Why a frame is not sent. The driver hears nothing of it: a frame can always get lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No header, or one that the frame or the agreement does not bear out.
    Header,
    /// Shorter or longer than a frame can be.
    Length,
}

/// Where the first checksum of a transport protocol can begin: after Ethernet's header and the
/// shortest one of IP. What comes before is what switches go by.
const CSUM_START_MIN: usize = MIN_FRAME + 20;

/// Length of a VLAN tag, which does not count for the MTU.
const VLAN_TAG: usize = 4;

/// The most segments that a frame is cut into: Linux's smallest for TCP has 48 bytes of payload,
/// and it cuts no frame of UDP into more than 128. Work done for one frame is bounded by it.
const MAX_PIECES: usize = 1400;

/// What of a frame is allowed.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// What the device has agreed to take.
    features: Features,
    /// The most bytes of a frame that is not to be cut.
    max_plain: usize,
}

impl Rules {
    /// For a driver that has accepted `features`, at a port with `mtu`.
    pub(super) fn new(features: Features, mtu: u16) -> Self {
        Self { features, max_plain: usize::from(mtu) + MIN_FRAME + VLAN_TAG }
    }

    /// Takes the header off `readable`, and judges it against the frame that is left there. Flags
    /// other than NEEDS_CSUM mean nothing here, nor does `num_buffers`.
    #[inline]
    pub(super) fn judge(&self, readable: &mut Reader<'_, '_>) -> Result<FrameInfo, Refusal> {
        let Some(header) = readable.read_object::<Header>() else {
            return Err(Refusal::Header);
        };
        let len = readable.remaining();
        if len < MIN_FRAME {
            return Err(Refusal::Length);
        }
        let whole = header.gso_type & !gso_type::ECN == gso_type::NONE;
        if len > if whole { self.max_plain } else { MAX_FRAME } {
            return Err(Refusal::Length);
        }
        if header.flags & NEEDS_CSUM == 0 {
            // A frame that is to be cut always needs checksums.
            return if whole { Ok(FrameInfo::PLAIN) } else { Err(Refusal::Header) };
        }
        self.judge_offloads(&header, len).ok_or(Refusal::Header)
    }

    /// For a frame of `len` bytes whose checksum is incomplete.
    fn judge_offloads(&self, header: &Header, len: usize) -> Option<FrameInfo> {
        let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
        let from = usize::from(start);
        if !self.features.contains(CSUM)
            || from < CSUM_START_MIN
            || from + usize::from(offset) + size_of::<u16>() > len
        {
            return None;
        }
        Some(FrameInfo {
            checksum: Checksum::Partial { start, offset },
            gso: self.judge_gso(header, len)?,
        })
    }

    /// How the frame is to be cut, if at all; `None` if it cannot be.
    fn judge_gso(&self, header: &Header, len: usize) -> Option<Option<Gso>> {
        let ecn = header.gso_type & gso_type::ECN != 0;
        let (kind, needed) = match header.gso_type & !gso_type::ECN {
            gso_type::NONE => return Some(None),
            gso_type::TCP_V4 => (Segmentation::TcpV4, HOST_TSO4),
            gso_type::TCP_V6 => (Segmentation::TcpV6, HOST_TSO6),
            gso_type::UDP_L4 if !ecn => (Segmentation::Udp, HOST_USO),
            _ => return None,
        };
        let size = header.gso_size.get();
        let agreed = self.features.contains(needed) && (!ecn || self.features.contains(HOST_ECN));
        if !agreed || usize::from(size) * MAX_PIECES < len {
            return None;
        }
        Some(Some(Gso { kind, size, header_len: header.hdr_len.get(), ecn }))
    }
}

const _: () = assert!(HEADER == 12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::net::Offloads;
    use crate::memory::{HostRam, Pa};
    use crate::virtio::devices::net::tests::INFO;
    use crate::virtio::devices::net::wire::{features, is_complete};

    const MTU: u16 = 1500;

    fn plain() -> Header {
        zerocopy::FromZeros::new_zeroed()
    }

    fn partial(start: u16, offset: u16) -> Header {
        let csum_start = start.into();
        Header { flags: NEEDS_CSUM, csum_start, csum_offset: offset.into(), ..plain() }
    }

    fn cut(gso_type: u8, size: u16) -> Header {
        Header { gso_type, gso_size: size.into(), ..partial(34, 16) }
    }

    fn judge_with(features: Features, header: Header, len: usize) -> Result<FrameInfo, Refusal> {
        let ram = HostRam::new(1 << 17);
        let memory = ram.slice(Pa::new(0));
        memory.write_bytes(0, zerocopy::IntoBytes::as_bytes(&header)).unwrap();
        let mut segments = [memory.subslice(0, HEADER + len).unwrap()];
        let mut reader = Reader::new(&mut segments, HEADER + len);
        let result = Rules::new(features, MTU).judge(&mut reader);
        assert_eq!(reader.remaining(), len);
        result
    }

    fn judge(header: Header, len: usize) -> Result<FrameInfo, Refusal> {
        judge_with(features(&INFO), header, len)
    }

    #[test]
    fn a_chain_without_a_whole_header_is_no_frame() {
        let ram = HostRam::new(64);
        for len in 0..HEADER {
            let mut segments = [ram.slice(Pa::new(0)).subslice(0, len).unwrap()];
            let segments = if len == 0 { &mut [][..] } else { &mut segments[..] };
            let mut reader = Reader::new(segments, len);
            let rules = Rules::new(features(&INFO), MTU);
            assert_eq!(rules.judge(&mut reader), Err(Refusal::Header), "{len}");
        }
    }

    #[test]
    fn a_frame_is_as_long_as_ethernet_and_the_mtu_allow() {
        let longest = usize::from(MTU) + 18;
        for len in [0, 1, 13, longest + 1, MAX_FRAME] {
            assert_eq!(judge(plain(), len), Err(Refusal::Length), "{len}");
        }
        for len in [14, 60, 1514, longest] {
            assert_eq!(judge(plain(), len), Ok(FrameInfo::PLAIN), "{len}");
        }
        let large = cut(gso_type::TCP_V4, 1448);
        assert!(judge(large, MAX_FRAME).is_ok());
        assert_eq!(judge(large, MAX_FRAME + 1), Err(Refusal::Length));
        assert_eq!(judge(large, 13), Err(Refusal::Length));
    }

    #[test]
    fn unknown_flags_num_buffers_and_places_without_the_flag_mean_nothing() {
        let header = Header {
            flags: !NEEDS_CSUM,
            num_buffers: 7.into(),
            csum_start: 0xFFFF.into(),
            csum_offset: 0xFFFF.into(),
            hdr_len: 0xFFFF.into(),
            gso_size: 9.into(),
            ..plain()
        };
        assert_eq!(judge(header, 60), Ok(FrameInfo::PLAIN));
        let ecn = Header { gso_type: gso_type::ECN, ..header };
        assert_eq!(judge(ecn, 60), Ok(FrameInfo::PLAIN));
    }

    #[test]
    fn the_checksum_lies_in_the_frame_behind_what_switches_go_by() {
        let ok =
            |start, offset| FrameInfo { checksum: Checksum::Partial { start, offset }, gso: None };
        for (start, offset) in [(34, 16), (34, 24), (58, 0), (40, 18)] {
            assert_eq!(
                judge(partial(start, offset), 60),
                Ok(ok(start, offset)),
                "{start} {offset}"
            );
        }
        for (start, offset) in
            [(0, 0), (14, 0), (33, 6), (34, 25), (59, 0), (60, 0), (34, 0xFFFF), (0xFFFF, 0xFFFF)]
        {
            let result = judge(partial(start, offset), 60);
            assert_eq!(result, Err(Refusal::Header), "{start} {offset}");
        }
        let without = features(&INFO) & !CSUM;
        assert_eq!(judge_with(without, partial(34, 16), 60), Err(Refusal::Header));
    }

    #[test]
    fn a_frame_is_cut_as_agreed_or_not_sent() {
        let kinds = [
            (gso_type::TCP_V4, Segmentation::TcpV4, HOST_TSO4),
            (gso_type::TCP_V6, Segmentation::TcpV6, HOST_TSO6),
            (gso_type::UDP_L4, Segmentation::Udp, HOST_USO),
        ];
        for (value, kind, feature) in kinds {
            let header = Header { hdr_len: 54.into(), ..cut(value, 1400) };
            let gso = Gso { kind, size: 1400, header_len: 54, ecn: false };
            assert_eq!(judge(header, 9000).map(|info| info.gso), Ok(Some(gso)));
            let without = features(&INFO) & !feature;
            assert_eq!(judge_with(without, header, 9000), Err(Refusal::Header));
            let whole = Header { flags: 0, ..header };
            assert_eq!(judge(whole, 9000), Err(Refusal::Header), "no checksum");
        }
        for value in (0..=0x7F).filter(|value| ![0, 1, 4, 5].contains(value)) {
            assert_eq!(judge(cut(value, 1400), 9000), Err(Refusal::Header), "{value}");
        }
    }

    #[test]
    fn congestion_bits_are_for_tcp_where_agreed() {
        let tcp = cut(gso_type::TCP_V6 | gso_type::ECN, 1400);
        assert!(judge(tcp, 9000).is_ok_and(|info| info.gso.is_some_and(|gso| gso.ecn)));
        let without = features(&INFO) & !HOST_ECN;
        assert_eq!(judge_with(without, tcp, 9000), Err(Refusal::Header));
        let udp = cut(gso_type::UDP_L4 | gso_type::ECN, 1400);
        assert_eq!(judge(udp, 9000), Err(Refusal::Header));
    }

    #[test]
    fn pieces_are_not_too_many() {
        for (size, len, good) in [
            (0, 60, false),
            (1, 128, true),
            (1, 60_000, false),
            (48, MAX_FRAME, true),
            (46, MAX_FRAME, false),
        ] {
            assert_eq!(judge(cut(gso_type::TCP_V4, size), len).is_ok(), good, "{size} {len}");
        }
    }

    #[test]
    fn what_is_offered_is_complete_whatever_the_port_can_do() {
        for (takes, gives) in
            (0..32_u8).flat_map(|takes| (0..32_u8).map(move |gives| (takes, gives)))
        {
            let [takes, gives] = [takes, gives].map(Offloads::from_bits_retain);
            let set = features(&crate::backend::net::NetInfo { takes, gives, ..INFO });
            assert!(is_complete(set), "{takes:?} {gives:?}: {set:?}");
            assert_eq!(set.contains(CSUM), takes.contains(Offloads::CSUM));
        }
    }
}
