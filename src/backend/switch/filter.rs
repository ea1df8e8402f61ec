//! Which frames a driver wants to have.

use crate::backend::net::{Filter, MacAddress};

/// The filter of a driver that has said nothing but its address.
pub(super) const fn default(mac: MacAddress) -> Filter {
    Filter {
        mac,
        promiscuous: false,
        all_multicast: false,
        all_unicast: false,
        no_multicast: false,
        no_unicast: false,
        no_broadcast: false,
        addresses: heapless::Vec::new(),
        vlans: None,
    }
}

/// Whether a frame to `destination`, with a tag of `vlan` or none, is wanted (5.1.6.5.1 to 5.1.6.5.3).
#[inline]
pub(super) fn wants(filter: &Filter, destination: MacAddress, vlan: Option<u16>) -> bool {
    if let (Some(vlans), Some(vlan)) = (&filter.vlans, vlan) {
        let word = vlans.get(usize::from(vlan >> 6)).copied().unwrap_or(0);
        if word >> (vlan & 63) & 1 == 0 {
            return false;
        }
    }
    if filter.promiscuous {
        return true;
    }
    let listed = || filter.addresses.contains(&destination);
    if !destination.is_group() {
        !filter.no_unicast && (destination == filter.mac || filter.all_unicast || listed())
    } else if destination == MacAddress::BROADCAST {
        !filter.no_broadcast
    } else {
        !filter.no_multicast && (filter.all_multicast || listed())
    }
}
