//! Structures and numbers of section 5.1.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::backend::net::{MacAddress, NetInfo, Offloads};
use crate::virtio::Features;

/// The features of a network device (5.1.3) that one of ours may offer, each as the specification
/// names it after VIRTIO_NET_F_.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        $($(#[$doc])* pub const $name: Features = Features::from_bits_retain(1 << $bit);)*
    };
}

features! {
    /// The device takes frames with incomplete checksums.
    CSUM = 0;
    /// The driver takes frames with incomplete checksums.
    GUEST_CSUM = 1;
    /// The driver can change at any time what it takes.
    CTRL_GUEST_OFFLOADS = 2;
    /// `mtu` is valid.
    MTU = 3;
    /// `mac` is valid.
    MAC = 5;
    /// The driver takes TCP over IPv4 in large pieces.
    GUEST_TSO4 = 7;
    /// The driver takes TCP over IPv6 in large pieces.
    GUEST_TSO6 = 8;
    /// The driver takes such pieces with the congestion bits of TCP.
    GUEST_ECN = 9;
    /// The device takes TCP over IPv4 in large pieces.
    HOST_TSO4 = 11;
    /// The device takes TCP over IPv6 in large pieces.
    HOST_TSO6 = 12;
    /// The device takes such pieces with the congestion bits of TCP.
    HOST_ECN = 13;
    /// A frame may go on in further receive buffers.
    MRG_RXBUF = 15;
    /// `status` is valid.
    STATUS = 16;
    /// There is a control queue.
    CTRL_VQ = 17;
    /// The driver says which frames it wants.
    CTRL_RX = 18;
    /// The driver says which VLANs it wants.
    CTRL_VLAN = 19;
    /// The driver says in more detail which frames it wants.
    CTRL_RX_EXTRA = 20;
    /// The driver can tell the network where it is.
    GUEST_ANNOUNCE = 21;
    /// There can be several pairs of queues.
    MQ = 22;
    /// The driver sets its address.
    CTRL_MAC_ADDR = 23;
    /// The driver takes UDP over IPv4 in large pieces.
    GUEST_USO4 = 54;
    /// The driver takes UDP over IPv6 in large pieces.
    GUEST_USO6 = 55;
    /// The device takes UDP in large pieces.
    HOST_USO = 56;
    /// `speed` and `duplex` are valid.
    SPEED_DUPLEX = 63;
}

/// What a driver can receive besides frames as on a wire, and can turn on and off (5.1.6.5.8).
pub(super) const GUEST_OFFLOADS: Features = GUEST_CSUM
    .union(GUEST_TSO4)
    .union(GUEST_TSO6)
    .union(GUEST_ECN)
    .union(GUEST_USO4)
    .union(GUEST_USO6);

/// Features, and those of which each needs at least one (5.1.3.1).
const NEEDS: [(Features, Features); 5] = [
    (GUEST_TSO4.union(GUEST_TSO6).union(GUEST_USO4).union(GUEST_USO6), GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4.union(GUEST_TSO6)),
    (HOST_TSO4.union(HOST_TSO6).union(HOST_USO), CSUM),
    (HOST_ECN, HOST_TSO4.union(HOST_TSO6)),
    (CTRL_RX.union(CTRL_VLAN).union(GUEST_ANNOUNCE).union(MQ).union(CTRL_MAC_ADDR), CTRL_VQ),
];

/// The smallest and the largest MTU that can be told (5.1.4.1).
const MTU_MIN: u16 = 68;

/// Whether all that the features of `set` need is there.
pub(super) fn is_complete(set: Features) -> bool {
    NEEDS.iter().all(|(these, one_of)| !set.intersects(*these) || set.intersects(*one_of))
}

/// Takes out of `set` what it lacks something for.
fn completed(mut set: Features) -> Features {
    for (these, one_of) in NEEDS {
        if !set.intersects(one_of) {
            set &= !these;
        }
    }
    set
}

/// What each offload is called on the way to the device, and on the way to the driver.
const OFFLOADS: [(Offloads, Features, Features); 5] = [
    (Offloads::CSUM, CSUM, GUEST_CSUM),
    (Offloads::TSO4, HOST_TSO4, GUEST_TSO4),
    (Offloads::TSO6, HOST_TSO6, GUEST_TSO6),
    (Offloads::ECN, HOST_ECN, GUEST_ECN),
    (Offloads::USO, HOST_USO, GUEST_USO4.union(GUEST_USO6)),
];

/// The features of this type that a device at a port like `info` has.
pub(super) fn features(info: &NetInfo) -> Features {
    let mut set = MAC
        | STATUS
        | SPEED_DUPLEX
        | MRG_RXBUF
        | CTRL_VQ
        | CTRL_RX
        | CTRL_RX_EXTRA
        | CTRL_VLAN
        | CTRL_MAC_ADDR
        | GUEST_ANNOUNCE;
    set.set(MTU, info.mtu >= MTU_MIN);
    set.set(MQ, info.pairs > 1);
    for (offload, to_device, to_driver) in OFFLOADS {
        set.set(to_device, info.takes.contains(offload));
        set.set(to_driver, info.gives.contains(offload));
    }
    set = completed(set);
    set.set(CTRL_GUEST_OFFLOADS, set.intersects(GUEST_OFFLOADS));
    set
}

/// What a driver accepts to receive that has `enabled`. A port does not tell pieces of UDP over IPv4
/// from those over IPv6: they are accepted together.
pub(super) fn accepts(enabled: Features) -> Offloads {
    let enabled = completed(enabled);
    let mut accepts = Offloads::empty();
    for (offload, _, to_driver) in OFFLOADS {
        accepts.set(offload, enabled.contains(to_driver));
    }
    accepts
}

/// The header before every frame (5.1.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    pub(super) hdr_len: U16,
    pub(super) gso_size: U16,
    pub(super) csum_start: U16,
    pub(super) csum_offset: U16,
    pub(super) num_buffers: U16,
}

/// Length of the header.
pub(super) const HEADER: usize = size_of::<Header>();

/// In [`Header::flags`]: the checksum is incomplete.
pub(super) const NEEDS_CSUM: u8 = 1;

/// Values of [`Header::gso_type`].
pub(super) mod gso_type {
    pub(in super::super) const NONE: u8 = 0;
    pub(in super::super) const TCP_V4: u8 = 1;
    pub(in super::super) const TCP_V6: u8 = 4;
    pub(in super::super) const UDP_L4: u8 = 5;
    /// A bit beside those of TCP.
    pub(in super::super) const ECN: u8 = 0x80;
}

/// In `status` of the configuration space.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// `speed` and `duplex` where they are not known.
const UNKNOWN_SPEED: u32 = u32::MAX;
const UNKNOWN_DUPLEX: u8 = 0xFF;
/// The largest speed that can be told.
const MAX_SPEED: u32 = 0x7FFF_FFFF;
/// What 5.1.4 says and drivers expect; 5.1.4.1 has it the other way round.
const FULL_DUPLEX: u8 = 1;

/// Length of the part of configuration space that is not zero.
pub(super) const CONFIG_SIZE: usize = size_of::<Config>();

/// The beginning of `struct virtio_net_config`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
    speed: U32,
    duplex: u8,
}

/// Configuration space at a port like `info`, for a driver with the address `mac` that is to announce
/// itself or not. Fields of features that are not offered are 0.
pub(super) fn config(info: &NetInfo, mac: MacAddress, announce: bool) -> [u8; CONFIG_SIZE] {
    let offered = features(info);
    let of = |feature, value| if offered.contains(feature) { value } else { 0 };
    let speed = info.speed.filter(|speed| *speed <= MAX_SPEED);
    let mut status = if info.link_up { LINK_UP } else { 0 };
    if announce {
        status |= ANNOUNCE;
    }
    zerocopy::transmute!(Config {
        mac: mac.0,
        status: U16::new(status),
        max_virtqueue_pairs: U16::new(of(MQ, info.pairs)),
        mtu: U16::new(of(MTU, info.mtu)),
        speed: U32::new(speed.unwrap_or(UNKNOWN_SPEED)),
        duplex: if speed.is_some() { FULL_DUPLEX } else { UNKNOWN_DUPLEX },
    })
}

/// Control commands (5.1.6.5): class and command.
pub(super) mod command {
    pub(in super::super) const RX_PROMISC: [u8; 2] = [0, 0];
    pub(in super::super) const RX_ALLMULTI: [u8; 2] = [0, 1];
    pub(in super::super) const RX_ALLUNI: [u8; 2] = [0, 2];
    pub(in super::super) const RX_NOMULTI: [u8; 2] = [0, 3];
    pub(in super::super) const RX_NOUNI: [u8; 2] = [0, 4];
    pub(in super::super) const RX_NOBCAST: [u8; 2] = [0, 5];
    pub(in super::super) const MAC_TABLE_SET: [u8; 2] = [1, 0];
    pub(in super::super) const MAC_ADDR_SET: [u8; 2] = [1, 1];
    pub(in super::super) const VLAN_ADD: [u8; 2] = [2, 0];
    pub(in super::super) const VLAN_DEL: [u8; 2] = [2, 1];
    pub(in super::super) const ANNOUNCE_ACK: [u8; 2] = [3, 0];
    pub(in super::super) const MQ_VQ_PAIRS_SET: [u8; 2] = [4, 0];
    pub(in super::super) const GUEST_OFFLOADS_SET: [u8; 2] = [5, 0];
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ack {
    Ok = 0,
    Error = 1,
}
