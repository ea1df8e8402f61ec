//! The header of a packet (5.10.6), and what may be in it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The context ID of the host (5.10.4): sparkler itself.
pub const HOST_CID: u32 = 2;

/// Length of a [`Header`].
pub const HEADER: usize = size_of::<Header>();

/// The header of every packet. The names of the fields are the specification's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Header {
    pub src_cid: U64,
    pub dst_cid: U64,
    pub src_port: U32,
    pub dst_port: U32,
    pub len: U32,
    pub kind: U16,
    pub op: U16,
    pub flags: U32,
    pub buf_alloc: U32,
    pub fwd_cnt: U32,
}

/// Values of `op`.
pub mod op {
    /// A connection is asked for.
    pub const REQUEST: u16 = 1;
    /// And accepted.
    pub const RESPONSE: u16 = 2;
    /// And refused, or ended.
    pub const RST: u16 = 3;
    /// The sender will not receive any more ([`RECEIVE`](super::flags::RECEIVE)), or not send.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// `buf_alloc` and `fwd_cnt` are news.
    pub const CREDIT_UPDATE: u16 = 6;
    /// They are asked for.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Bits of `flags`.
pub mod flags {
    /// Of a SHUTDOWN: the sender will not receive any more.
    pub const RECEIVE: u32 = 1 << 0;
    /// Of a SHUTDOWN: the sender will not send any more.
    pub const SEND: u32 = 1 << 1;
    /// Of data of a SEQPACKET socket: where a message ends, and a record.
    pub const BOUNDARIES: u32 = 1 << 0 | 1 << 1;
}

bitflags::bitflags! {
    /// Socket types.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Kinds: u8 {
        /// A stream of bytes: `type` 1.
        const STREAM = 1 << 0;
        /// Messages: `type` 2.
        const SEQPACKET = 1 << 1;
    }
}

impl Kinds {
    /// The one that a header has; none if it is unknown.
    #[inline]
    pub(super) fn of(header: &Header) -> Self {
        match header.kind.get() {
            1 => Self::STREAM,
            2 => Self::SEQPACKET,
            _ => Self::empty(),
        }
    }
}

impl Kinds {
    /// Whether the one that a header has is among them.
    #[inline]
    pub fn has(self, header: &Header) -> bool {
        self.intersects(Self::of(header))
    }
}

impl Header {
    /// The other end of what this header goes to, as a number that has no upper half (5.10.6).
    #[inline]
    pub(super) fn destination(&self) -> Option<u32> {
        u32::try_from(self.dst_cid.get()).ok()
    }

    /// A packet without payload the other way, which says nothing about credit.
    pub(super) fn answer(&self, op: u16) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op.into(),
            ..Self::default()
        }
    }
}
