//! What the device says about the card. Source: virtio 5.1.3 (features), 5.1.4 (configuration).

use crate::backend::net::{MacAddress, Offloads};
use crate::drivers::registers::Registers;
use crate::drivers::virtio::mmio::{InitError, Transport};

bitflags::bitflags! {
    /// Features of a network device that are used if they are there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct NetFeatures: u64 {
        /// The device completes checksums.
        const CSUM = 1 << 0;
        /// The driver takes frames whose checksum is not complete.
        const GUEST_CSUM = 1 << 1;
        /// `mtu` is the MTU.
        const MTU = 1 << 3;
        /// `mac` is the address.
        const MAC = 1 << 5;
        /// The driver takes TCP over IPv4 that is longer than the MTU.
        const GUEST_TSO4 = 1 << 7;
        /// The same over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// Such frames with congestion bits.
        const GUEST_ECN = 1 << 9;
        /// The device cuts TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// The same over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// Such frames with congestion bits.
        const HOST_ECN = 1 << 13;
        /// A received frame may take several buffers.
        const MRG_RXBUF = 1 << 15;
        /// `status` says whether there is a link.
        const STATUS = 1 << 16;
        /// The driver takes UDP over IPv4 that is longer than the MTU.
        const GUEST_USO4 = 1 << 54;
        /// The same over IPv6.
        const GUEST_USO6 = 1 << 55;
        /// The device cuts UDP over IPv4 and IPv6.
        const HOST_USO = 1 << 56;
        /// `speed` and `duplex` are there.
        const SPEED_DUPLEX = 1 << 63;
    }
}

/// Those that let the device give frames longer than the MTU. They need buffers for 64 KiB: without
/// MRG_RXBUF these would be few.
const LONG_RECEIVED: NetFeatures = NetFeatures::GUEST_TSO4
    .union(NetFeatures::GUEST_TSO6)
    .union(NetFeatures::GUEST_ECN)
    .union(NetFeatures::GUEST_USO4)
    .union(NetFeatures::GUEST_USO6);

/// Those by which the device cuts long frames.
const CUT: NetFeatures = NetFeatures::HOST_TSO4
    .union(NetFeatures::HOST_TSO6)
    .union(NetFeatures::HOST_ECN)
    .union(NetFeatures::HOST_USO);

impl NetFeatures {
    /// Those to ask for of a device that offers `self`: what builds on something that it does not
    /// offer (5.1.3.1) is not asked for.
    pub(super) fn wanted(self) -> Self {
        let mut wanted = Self::all();
        if !self.contains(Self::MRG_RXBUF.union(Self::GUEST_CSUM)) {
            wanted -= LONG_RECEIVED;
        }
        if !self.intersects(Self::GUEST_TSO4.union(Self::GUEST_TSO6)) {
            wanted -= Self::GUEST_ECN;
        }
        if !self.contains(Self::CSUM) {
            wanted -= CUT;
        }
        if !self.intersects(Self::HOST_TSO4.union(Self::HOST_TSO6)) {
            wanted -= Self::HOST_ECN;
        }
        wanted
    }

    /// What the device does to frames that it sends.
    pub(super) fn takes(self) -> Offloads {
        let mut takes = Offloads::empty();
        takes.set(Offloads::CSUM, self.contains(Self::CSUM));
        takes.set(Offloads::TSO4, self.contains(Self::HOST_TSO4));
        takes.set(Offloads::TSO6, self.contains(Self::HOST_TSO6));
        takes.set(Offloads::ECN, self.contains(Self::HOST_ECN));
        takes.set(Offloads::USO, self.contains(Self::HOST_USO));
        takes
    }

    /// What may be left to do about frames that it has received.
    pub(super) fn gives(self) -> Offloads {
        let mut gives = Offloads::empty();
        gives.set(Offloads::CSUM, self.contains(Self::GUEST_CSUM));
        gives.set(Offloads::TSO4, self.contains(Self::GUEST_TSO4));
        gives.set(Offloads::TSO6, self.contains(Self::GUEST_TSO6));
        gives.set(Offloads::ECN, self.contains(Self::GUEST_ECN));
        gives.set(Offloads::USO, self.intersects(Self::GUEST_USO4.union(Self::GUEST_USO6)));
        gives
    }
}

/// Offsets of configuration fields in bytes.
mod field {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MTU: usize = 10;
    pub(super) const SPEED: usize = 12;
}

/// Bit of `status`: there is a link.
const S_LINK_UP: u16 = 1;
/// `speed` of a device that does not know it.
const SPEED_UNKNOWN: u32 = u32::MAX;

/// The MTU of a device that does not say.
const USUAL_MTU: u16 = 1500;
/// The least MTU of an Ethernet that carries IPv4 (RFC 791), and the least that is believed.
const LEAST_MTU: u16 = 68;

/// The address of a card that has none. Locally administered; no frame is ever sent from it.
const NAMELESS: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 0xff]);

/// The card, as far as the configuration space describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NicConfig {
    pub(super) mac: MacAddress,
    /// At least [`LEAST_MTU`].
    pub(super) mtu: u16,
    pub(super) link_up: bool,
    /// In Mbit/s.
    pub(super) speed: Option<u32>,
}

impl NicConfig {
    /// Reads the fields that `features`, as agreed on, make valid.
    pub(super) fn read<R: Registers>(
        transport: &Transport<R>,
        features: NetFeatures,
    ) -> Result<Self, InitError> {
        let config = transport.config(|device| {
            let mut config = Self { mac: NAMELESS, mtu: USUAL_MTU, link_up: true, speed: None };
            if features.contains(NetFeatures::MAC) {
                let MacAddress(mac) = &mut config.mac;
                for (index, byte) in mac.iter_mut().enumerate() {
                    *byte = device.config8(field::MAC + index);
                }
            }
            if features.contains(NetFeatures::STATUS) {
                config.link_up = device.config16(field::STATUS) & S_LINK_UP != 0;
            }
            if features.contains(NetFeatures::MTU) {
                config.mtu = device.config16(field::MTU);
            }
            if features.contains(NetFeatures::SPEED_DUPLEX) {
                let speed = device.config32(field::SPEED);
                config.speed = (speed != SPEED_UNKNOWN && speed != 0).then_some(speed);
            }
            config
        })?;
        if config.mac.is_group() || config.mtu < LEAST_MTU {
            return Err(InitError::BadConfiguration);
        }
        Ok(config)
    }
}
