//! A network, as a network device model sees it: a port with two directions.
//!
//! Data goes straight from the sender's memory to where it is going. What a port sends to another
//! guest is copied once, into a buffer that the receiver has posted; what goes out through the board's
//! network card is read by the card itself.

use core::fmt;

use super::clock::Ticks;
use crate::memory::SharedSlice;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// A group of stations, or all: such an address is never a sender's.
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

bitflags::bitflags! {
    /// Frames that are not yet as they would be on a wire, which one side may give the other.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Offloads: u8 {
        /// The checksum of TCP or UDP is not complete.
        const CSUM = 1 << 0;
        /// TCP over IPv4 in pieces larger than the MTU.
        const TSO4 = 1 << 1;
        /// TCP over IPv6 in pieces larger than the MTU.
        const TSO6 = 1 << 2;
        /// Such pieces with the congestion bits of TCP set (CWR in the first segment only).
        const ECN = 1 << 3;
        /// UDP in pieces larger than the MTU, over either.
        const USO = 1 << 4;
    }
}

/// The largest frame, with its Ethernet header, before segmentation.
pub const MAX_FRAME: usize = 65_535 + 14 + 4;

/// The smallest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// Pairs of queues that a device can have.
pub const MAX_PAIRS: usize = 4;

/// What a port is. Constant but for `link_up`, `mtu` and `speed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetInfo {
    /// The address that the device has when its driver sets no other.
    pub mac: MacAddress,
    /// The most bytes after the Ethernet header.
    pub mtu: u16,
    /// Whether anything can be reached.
    pub link_up: bool,
    /// In Mbit/s, as far as known.
    pub speed: Option<u32>,
    /// What the port takes from the driver. It does the rest itself for whoever cannot.
    pub takes: Offloads,
    /// What the port gives to a driver that accepts it.
    pub gives: Offloads,
    /// Pairs of queues, 1 to [`MAX_PAIRS`].
    pub pairs: u16,
}

/// What is left to do about the checksum of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing is known of it.
    Unknown,
    /// It is right.
    Valid,
    /// From byte `start` of the frame to its end is to be summed up, and the result put `offset` bytes
    /// after `start`, where the sum of the pseudo header is. Both places lie in the frame.
    Partial {
        /// Where to begin.
        start: u16,
        /// Where the checksum is, from `start`.
        offset: u16,
    },
}

/// How a frame larger than the MTU is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP, over either.
    Udp,
}

/// A frame that is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How.
    pub kind: Segmentation,
    /// The most bytes of payload in each; not 0.
    pub size: u16,
    /// Length of all headers, as the driver says: a hint, never to be relied on.
    pub header_len: u16,
    /// The segments of TCP have its congestion bits (ECN).
    pub ecn: bool,
}

/// What is known of a frame besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// The checksum of TCP or UDP. Partial if the frame is to be cut.
    pub checksum: Checksum,
    /// It is larger than the MTU and is to be cut.
    pub gso: Option<Gso>,
}

impl FrameInfo {
    /// A frame as on a wire.
    pub const PLAIN: FrameInfo = FrameInfo { checksum: Checksum::Unknown, gso: None };
}

/// A frame to be sent.
#[derive(Clone, Copy)]
pub struct Frame<'a, 'm> {
    /// What is known of it.
    pub info: FrameInfo,
    /// Its bytes, from the Ethernet header on, without FCS. No segment is empty.
    pub segments: &'a [SharedSlice<'m>],
    /// The sum of their lengths: [`MIN_FRAME`] to [`MAX_FRAME`].
    pub len: usize,
}

/// Names a frame on its way; the sender chooses it, unique among its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTag(pub u16);

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It has gone, or nobody wanted it: its memory is not needed any more.
    Done,
    /// It is read by hardware, until [`NetBackend::poll_sent`] names it.
    InFlight,
}

/// There is no room just now; nothing was done. The port's waker tells when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// How a driver wants to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reception {
    /// What it can deal with.
    pub accepts: Offloads,
    /// A frame may go on in further buffers (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
    /// Pairs of queues in use, at least 1.
    pub pairs: u16,
}

/// Addresses in a filter's table.
pub const MAX_FILTER: usize = 32;

/// Which frames a driver wants to have (5.1.6.5.1 to 5.1.6.5.3), besides those to its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its address.
    pub mac: MacAddress,
    /// All frames.
    pub promiscuous: bool,
    /// All to groups.
    pub all_multicast: bool,
    /// All to single stations.
    pub all_unicast: bool,
    /// None to groups but all stations'.
    pub no_multicast: bool,
    /// None to single stations.
    pub no_unicast: bool,
    /// None to all stations.
    pub no_broadcast: bool,
    /// Those to these addresses, single stations' and groups'.
    pub addresses: heapless::Vec<MacAddress, MAX_FILTER>,
    /// With tags of these VLANs only (a bit for each), and untagged ones; `None`: all.
    pub vlans: Option<[u64; 64]>,
}

/// A frame that has come: how much of which buffers it has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the oldest buffer that has been posted and not yet been given back, the header
    /// (virtio_net_hdr, 12 bytes, filled in whole) included.
    pub written: u32,
    /// More buffers of the same frame follow.
    pub continues: bool,
}

/// One device's port of a network. Polled by whichever core works on the device in front of it, one
/// at a time; frames come for it from any core.
pub trait NetBackend<'m>: Send {
    /// What the port is.
    fn info(&self) -> NetInfo;

    /// The driver is ready: frames may come, with a filter that wants what is for `mac` and for all.
    /// Called again when it wants to receive in another way: what is posted and what has been
    /// received stay, and from then on no pair gets frames that is not in use. The filter is set
    /// again afterwards.
    fn open(&mut self, reception: Reception);

    /// The driver wants other frames than before.
    fn set_filter(&mut self, filter: &Filter);

    /// Takes a frame from the driver's transmit queue of `pair`. What can be done at once is done at
    /// once; what hardware reads starts at once or at the next [`Self::kick`].
    ///
    /// # Errors
    /// [`Busy`].
    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        now: Ticks,
    ) -> Result<Sent, Busy>;

    /// Starts what was sent: one doorbell for a batch, and receivers are woken.
    fn kick(&mut self);

    /// A frame that hardware does not read any more. Those that outlive the time-out end here as
    /// well, after the hardware was kept from their memory. Never waits.
    fn poll_sent(&mut self, now: Ticks) -> Option<SendTag>;

    /// Posts a buffer that frames may be written to, header first; at least a header long. Each comes
    /// back from [`Self::poll_received`], in the order of posting, unless the port is closed.
    ///
    /// # Errors
    /// [`Busy`] if there are enough of `pair`, for now: as many as the port can remember. Never if
    /// there is none: it has room for any one chain. Tried again when something has been received.
    fn post(&mut self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy>;

    /// A buffer of `pair` that a frame has filled. All buffers of a frame are there together.
    fn poll_received(&mut self, pair: u16) -> Option<Received>;

    /// Forgets the buffers posted for `pair`, filled ones too: nothing is written to them once this
    /// returns, and [`Self::poll_received`] tells of none.
    fn withdraw(&mut self, pair: u16);

    /// No frames come any more, all buffers are forgotten, and those sent too. `false` while hardware
    /// may still read one: then call again. Must not wait.
    fn close(&mut self, now: Ticks) -> bool;

    /// Frames sent that hardware still reads.
    fn in_flight(&self) -> usize;

    /// Something has changed that configuration space tells: the link, the MTU, the speed. Once for
    /// each time.
    fn take_change(&mut self) -> bool;

    /// Brings the driver a frame that is whole, as if it had come from the network: for whoever is
    /// between the device and the network. It gets lost if the driver does not want it or has no room,
    /// and where there is no such thing.
    fn deliver(&mut self, frame: &[u8]) {
        let _ = frame;
    }

    /// Does what is due of what the port does by itself. Called after frames were sent and whenever the
    /// device is polled, when the link and filled buffers have not been looked at yet. When to call it
    /// again, if nothing else happens.
    fn tick(&mut self, now: Ticks) -> Option<Ticks> {
        let _ = now;
        None
    }

    /// Takes the port's link up or down, as an operator wants it; [`Self::take_change`] tells of it.
    /// Whether the port has such a thing.
    fn set_link(&mut self, up: bool) -> bool {
        let _ = up;
        false
    }

    /// Counters, for diagnosis: `visit` gets a name and a value for each.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let _ = visit;
    }
}
