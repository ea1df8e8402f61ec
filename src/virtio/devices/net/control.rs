//! What the driver asks for on the control queue (5.1.6.5): each command is judged completely, and
//! then carried out at once.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::wire::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, GUEST_ANNOUNCE,
    GUEST_OFFLOADS, MAC, MQ, MRG_RXBUF, accepts, command,
};
use crate::backend::net::{Filter, MAX_FILTER, MacAddress, NetInfo, Reception};
use crate::virtio::Features;
use crate::virtio::buffer::Reader;
use crate::virtio::state::{StateError, StateReader, StateWriter};

/// VLANs there are: tags have 12 bits for them.
const VLANS: u16 = 1 << 12;

bitflags::bitflags! {
    /// The receive modes (5.1.6.5.1) that are on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Modes: u8 {
        const PROMISCUOUS = 1 << 0;
        const ALL_MULTICAST = 1 << 1;
        const ALL_UNICAST = 1 << 2;
        const NO_MULTICAST = 1 << 3;
        const NO_UNICAST = 1 << 4;
        const NO_BROADCAST = 1 << 5;
        /// More single stations were asked for than there is room for: all come.
        const UNICAST_OVERFLOW = 1 << 6;
        /// More groups were asked for than there is room for: all come.
        const MULTICAST_OVERFLOW = 1 << 7;
    }
}

/// The addresses that are wanted besides the driver's own.
type Addresses = heapless::Vec<MacAddress, MAX_FILTER>;

/// A command that may be carried out as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Turn a receive mode on or off.
    Mode(Modes, bool),
    /// Replace the filter's table. Of the modes, the overflows count.
    Table(Addresses, Modes),
    /// Change the driver's address.
    Address(MacAddress),
    /// Add a VLAN, or remove it.
    Vlan(u16, bool),
    /// The driver announces itself.
    Announced,
    /// Use as many pairs of queues.
    Pairs(u16),
    /// Receive with these offloads only.
    Offloads(Features),
}

/// What has changed for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// What the driver wants to receive.
    Filter,
    /// The same, and configuration space.
    Address,
    /// How the driver wants to receive.
    Reception,
    /// Configuration space.
    Config,
}

impl Command {
    /// Reads all of `readable`. `None` for what is not a command that a driver may give which has
    /// accepted `features`, at a port like `info`.
    pub(super) fn parse(
        readable: &mut Reader<'_, '_>,
        features: Features,
        info: &NetInfo,
    ) -> Option<Self> {
        let code: [u8; 2] = readable.read_object()?;
        let (needed, command) = match code {
            command::RX_PROMISC => (CTRL_RX, mode(Modes::PROMISCUOUS, readable)?),
            command::RX_ALLMULTI => (CTRL_RX, mode(Modes::ALL_MULTICAST, readable)?),
            command::RX_ALLUNI => (CTRL_RX_EXTRA, mode(Modes::ALL_UNICAST, readable)?),
            command::RX_NOMULTI => (CTRL_RX_EXTRA, mode(Modes::NO_MULTICAST, readable)?),
            command::RX_NOUNI => (CTRL_RX_EXTRA, mode(Modes::NO_UNICAST, readable)?),
            command::RX_NOBCAST => (CTRL_RX_EXTRA, mode(Modes::NO_BROADCAST, readable)?),
            command::MAC_TABLE_SET => (CTRL_RX, table(readable)?),
            command::MAC_ADDR_SET => (CTRL_MAC_ADDR, address(readable)?),
            command::VLAN_ADD => (CTRL_VLAN, vlan(true, readable)?),
            command::VLAN_DEL => (CTRL_VLAN, vlan(false, readable)?),
            command::ANNOUNCE_ACK => (GUEST_ANNOUNCE, Command::Announced),
            command::MQ_VQ_PAIRS_SET => {
                let pairs = readable.read_object::<U16>()?.get();
                (MQ, (1..=info.pairs).contains(&pairs).then_some(Command::Pairs(pairs))?)
            }
            command::GUEST_OFFLOADS_SET => {
                let offloads = Features::from_bits_retain(readable.read_object::<U64>()?.get());
                let agreed = (features & GUEST_OFFLOADS).contains(offloads);
                (CTRL_GUEST_OFFLOADS, agreed.then_some(Command::Offloads(offloads))?)
            }
            _ => return None,
        };
        (features.contains(needed) && readable.remaining() == 0).then_some(command)
    }
}

fn mode(mode: Modes, readable: &mut Reader<'_, '_>) -> Option<Command> {
    match readable.read_object()? {
        0_u8 => Some(Command::Mode(mode, false)),
        1 => Some(Command::Mode(mode, true)),
        _ => None,
    }
}

fn vlan(add: bool, readable: &mut Reader<'_, '_>) -> Option<Command> {
    let vlan = readable.read_object::<U16>()?.get();
    (vlan < VLANS).then_some(Command::Vlan(vlan, add))
}

/// An address that a sender can have.
fn address(readable: &mut Reader<'_, '_>) -> Option<Command> {
    let address = MacAddress(readable.read_object()?);
    (!address.is_group() && address != MacAddress::default()).then_some(Command::Address(address))
}

/// Two lists: single stations, then groups (5.1.6.5.2). One that is too long is not looked at.
fn table(readable: &mut Reader<'_, '_>) -> Option<Command> {
    let mut addresses = Addresses::new();
    let mut overflows = Modes::empty();
    for overflow in [Modes::UNICAST_OVERFLOW, Modes::MULTICAST_OVERFLOW] {
        let entries = readable.read_object::<U32>()?.get() as usize;
        if entries > addresses.capacity() - addresses.len() {
            readable.skip(entries.checked_mul(size_of::<MacAddress>())?)?;
            overflows |= overflow;
            continue;
        }
        for _ in 0..entries {
            addresses.push(MacAddress(readable.read_object()?)).ok()?;
        }
    }
    Some(Command::Table(addresses, overflows))
}

/// What the driver has asked for.
pub(super) struct Control {
    /// Its address.
    mac: MacAddress,
    modes: Modes,
    addresses: Addresses,
    /// As in [`Filter::vlans`].
    vlans: Option<[u64; 64]>,
    /// Pairs of queues in use.
    pairs: u16,
    /// [`GUEST_OFFLOADS`] that are on.
    offloads: Features,
    mergeable: bool,
    /// It is asked to announce itself.
    announce: bool,
}

/// [`Control`], to be saved.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Saved {
    offloads: U64,
    vlans: [U64; 64],
    addresses: [[u8; 6]; MAX_FILTER],
    mac: [u8; 6],
    pairs: U16,
    modes: u8,
    entries: u8,
    announce: u8,
    reserved: [u8; 5],
}

impl Control {
    /// For a driver that has accepted `features`, of which none are before it has; at a port like
    /// `info`.
    pub(super) fn new(features: Features, info: &NetInfo) -> Self {
        let mut modes = Modes::empty();
        // Who cannot name the groups it wants gets all, and whose address cannot be known all.
        modes.set(Modes::ALL_MULTICAST, !features.contains(CTRL_RX));
        modes.set(Modes::PROMISCUOUS, !features.contains(MAC));
        Self {
            mac: info.mac,
            modes,
            addresses: Addresses::new(),
            vlans: features.contains(CTRL_VLAN).then_some([0; 64]),
            pairs: 1,
            offloads: features & GUEST_OFFLOADS,
            mergeable: features.contains(MRG_RXBUF),
            announce: false,
        }
    }

    /// Its address.
    pub(super) fn mac(&self) -> MacAddress {
        self.mac
    }

    /// It is asked to announce itself, and has not answered.
    pub(super) fn announce(&self) -> bool {
        self.announce
    }

    /// Asks it to announce itself.
    pub(super) fn ask_to_announce(&mut self) {
        self.announce = true;
    }

    /// How it wants to receive.
    pub(super) fn reception(&self) -> Reception {
        let accepts = accepts(self.offloads);
        Reception { accepts, mergeable: self.mergeable, pairs: self.pairs }
    }

    /// What it wants to receive.
    pub(super) fn filter(&self) -> Filter {
        let has = |modes| self.modes.intersects(modes);
        Filter {
            mac: self.mac,
            promiscuous: has(Modes::PROMISCUOUS),
            all_multicast: has(Modes::ALL_MULTICAST | Modes::MULTICAST_OVERFLOW),
            all_unicast: has(Modes::ALL_UNICAST | Modes::UNICAST_OVERFLOW),
            no_multicast: has(Modes::NO_MULTICAST),
            no_unicast: has(Modes::NO_UNICAST),
            no_broadcast: has(Modes::NO_BROADCAST),
            addresses: self.addresses.clone(),
            vlans: self.vlans,
        }
    }

    /// Takes a command on.
    pub(super) fn carry_out(&mut self, command: Command) -> Change {
        match command {
            Command::Mode(mode, on) => self.modes.set(mode, on),
            Command::Table(addresses, overflows) => {
                self.modes -= Modes::UNICAST_OVERFLOW | Modes::MULTICAST_OVERFLOW;
                self.modes |= overflows;
                self.addresses = addresses;
            }
            Command::Address(mac) => {
                self.mac = mac;
                return Change::Address;
            }
            Command::Vlan(vlan, add) => {
                let word = self.vlans.as_mut().and_then(|it| it.get_mut(usize::from(vlan / 64)));
                if let Some(word) = word {
                    let bit = 1 << (vlan % 64);
                    *word = if add { *word | bit } else { *word & !bit };
                }
            }
            Command::Announced => {
                self.announce = false;
                return Change::Config;
            }
            Command::Pairs(pairs) => {
                self.pairs = pairs;
                return Change::Reception;
            }
            Command::Offloads(offloads) => {
                self.offloads = offloads;
                return Change::Reception;
            }
        }
        Change::Filter
    }

    /// Writes it down.
    pub(super) fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        let mut addresses = [[0; 6]; MAX_FILTER];
        for (room, address) in addresses.iter_mut().zip(&self.addresses) {
            *room = address.0;
        }
        state.write_object(&Saved {
            offloads: self.offloads.bits().into(),
            vlans: self.vlans.unwrap_or([0; 64]).map(U64::new),
            addresses,
            mac: self.mac.0,
            pairs: self.pairs.into(),
            modes: self.modes.bits(),
            entries: self.addresses.len() as u8,
            announce: self.announce.into(),
            reserved: [0; 5],
        })
    }

    /// What [`Self::save`] has written, of a driver that has accepted `features`.
    pub(super) fn restore(
        features: Features,
        info: &NetInfo,
        state: &mut StateReader<'_>,
    ) -> Result<Self, StateError> {
        let saved: Saved = state.read_object()?;
        let mut control = Self::new(features, info);
        let offloads = Features::from_bits_retain(saved.offloads.get());
        let entries = saved.addresses.get(..usize::from(saved.entries));
        let entries = entries.ok_or(StateError::Invalid)?;
        let pairs = if features.contains(MQ) { info.pairs } else { 1 };
        let mac = MacAddress(saved.mac);
        if !(features & GUEST_OFFLOADS).contains(offloads)
            || !(1..=pairs).contains(&saved.pairs.get())
            || mac.is_group()
            || saved.announce > 1
        {
            return Err(StateError::Invalid);
        }
        control.offloads = offloads;
        for address in entries {
            // There is room: no more than in a table.
            let _ = control.addresses.push(MacAddress(*address));
        }
        if let Some(vlans) = &mut control.vlans {
            *vlans = saved.vlans.map(U64::get);
        }
        control.mac = mac;
        control.modes = Modes::from_bits_retain(saved.modes);
        control.pairs = saved.pairs.get();
        control.announce = saved.announce == 1;
        Ok(control)
    }
}
