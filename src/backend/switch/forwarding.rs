//! Who is behind which port: the forwarding table (IEEE 802.1Q: filtering database).
//!
//! Ports have addresses of their own, which nobody else can take; others are learned. A frame costs a
//! look at two buckets of what was learned, at the most, whatever is in them. Looking takes no lock: an
//! entry is one word, and a second one with the time. Only those who put an entry there take turns.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::frame::Vlan;
use crate::backend::clock::Ticks;
use crate::backend::net::MacAddress;
use crate::sync::Mutex;

/// log2 of the number of buckets.
const BUCKET_BITS: u32 = 7;
/// Entries in a bucket.
const WAYS: usize = 8;
/// Entries of a bucket that a guest's port may have, so that no guest can fill one on its own and have
/// the others' frames flooded.
const WAYS_OF_A_PORT: usize = 2;
/// Room for the ports' own addresses: twice what they need, so that one finds them soon.
const OWN: usize = 2 * super::MAX_PORTS;

/// Where a frame may come from or go to: a port, or the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u8);

impl Place {
    pub(super) const UPLINK: Place = Place(0x1F);

    /// Of port `index`, less than [`super::MAX_PORTS`].
    #[inline]
    pub(super) const fn port(index: usize) -> Place {
        Place(index as u8 & 0x0F)
    }

    /// The port's index, if it is not the uplink.
    #[inline]
    pub(super) const fn index(self) -> Option<usize> {
        if self.0 == Self::UPLINK.0 { None } else { Some(self.0 as usize) }
    }
}

/// An entry: the address without its group bit (47 bits), the VLAN (12), the place (5). 0: none, for
/// the address of zeros belongs to nobody.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const FREE: Entry = Entry(0);
    const PLACE_BITS: u32 = 5;
    const ADDRESS_SHIFT: u32 = Self::PLACE_BITS + 12;
    const PLACE: u64 = (1 << Self::PLACE_BITS) - 1;
    const VLAN: u64 = 0x0FFF << Self::PLACE_BITS;
    /// Stands for all VLANs; there is none of this number.
    const ANY_VLAN: Vlan = Vlan(0x0FFF);

    #[inline]
    fn new(address: u64, vlan: Vlan, place: Place) -> Entry {
        Entry(
            address << Self::ADDRESS_SHIFT
                | u64::from(vlan.0) << Self::PLACE_BITS
                | u64::from(place.0),
        )
    }

    #[inline]
    fn place(self) -> Place {
        Place((self.0 & Self::PLACE) as u8)
    }

    /// Whether it is about the same station as `key`, an entry of one VLAN.
    #[inline]
    fn is_about(self, key: Entry) -> bool {
        let difference = (self.0 ^ key.0) & !Self::PLACE;
        difference == 0 || (difference & !Self::VLAN == 0 && self.0 & Self::VLAN == Self::VLAN)
    }
}

struct Slot {
    entry: AtomicU64,
    /// When the station was last heard of.
    seen: AtomicU64,
}

impl Slot {
    #[inline]
    fn entry(&self) -> Entry {
        Entry(self.entry.load(Relaxed))
    }
}

/// An address as a number, without its group bit. `None` for the address that nobody has.
#[inline]
fn number(address: MacAddress) -> Option<u64> {
    let [a, b, c, d, e, f] = address.0;
    // The group bit is the lowest of the first byte: that comes last.
    let number = u64::from_be_bytes([0, 0, b, c, d, e, f, a]) >> 1;
    (number != 0).then_some(number)
}

/// What the table says of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is where it was.
    Known,
    /// It is new here, or has come here from another port.
    New,
    /// There is no room for it. Frames to it go everywhere.
    Full,
    /// The address is another port's own.
    Forbidden,
}

/// The table.
pub(super) struct Forwarding {
    /// The ports' own addresses, by the hash of the address, in the next place that was free.
    own: [AtomicU64; OWN],
    /// What was learned, by the hash of address and VLAN.
    learned: [[Slot; WAYS]; 1 << BUCKET_BITS],
    /// Taken by who changes an entry. A leaf: nothing else is taken meanwhile.
    changes: Mutex<()>,
    /// What lets nobody predict which addresses share a bucket.
    seed: u64,
    /// Entries that were not heard of for so long are forgotten.
    age: u64,
    /// How exactly that is known: an entry is not touched more often.
    refresh: u64,
}

impl Forwarding {
    /// An empty table, in which what is learned lasts for `age`.
    pub(super) const fn new(age: Ticks, seed: u64) -> Self {
        Self {
            own: [const { AtomicU64::new(0) }; OWN],
            learned: [const {
                [const { Slot { entry: AtomicU64::new(0), seen: AtomicU64::new(0) } }; WAYS]
            }; 1 << BUCKET_BITS],
            changes: Mutex::new(()),
            seed,
            age: age.0,
            refresh: age.0 >> 8,
        }
    }

    #[inline]
    fn hash(&self, number: u64) -> u64 {
        (number ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    #[inline]
    fn bucket(&self, key: Entry) -> Option<&[Slot; WAYS]> {
        // The place is not part of it.
        let hash = self.hash(key.0 >> Entry::PLACE_BITS);
        self.learned.get((hash >> (u64::BITS - BUCKET_BITS)) as usize)
    }

    /// The places where an address can be that is a port's own, in order.
    #[inline]
    fn own(&self, number: u64) -> impl Iterator<Item = &AtomicU64> {
        let first = (self.hash(number) >> 32) as usize;
        (0..OWN).filter_map(move |step| self.own.get((first + step) & (OWN - 1)))
    }

    /// Whose own the address is.
    #[inline]
    fn owner(&self, number: u64, key: Entry) -> Option<Place> {
        let entries = self.own(number).map(|place| Entry(place.load(Relaxed)));
        entries
            .take_while(|entry| *entry != Entry::FREE)
            .find(|entry| entry.is_about(key))
            .map(Entry::place)
    }

    /// Where frames to `address` go. `None`: nobody knows.
    #[inline]
    pub(super) fn look_up(&self, address: MacAddress, vlan: Vlan, now: Ticks) -> Option<Place> {
        let number = number(address)?;
        let key = Entry::new(number, vlan, Place(0));
        if let Some(owner) = self.owner(number, key) {
            return Some(owner);
        }
        let (slot, entry) = find(self.bucket(key)?, key)?;
        let age = now.0.saturating_sub(slot.seen.load(Relaxed));
        (age <= self.age).then_some(entry.place())
    }

    /// A frame of `vlan` has come from `address`, a single station's, at `place`.
    #[inline]
    pub(super) fn learn(
        &self,
        address: MacAddress,
        vlan: Vlan,
        place: Place,
        now: Ticks,
    ) -> Learned {
        let Some(number) = number(address) else { return Learned::Full };
        let key = Entry::new(number, vlan, place);
        match self.owner(number, key) {
            Some(owner) if owner == place => return Learned::Known,
            Some(_) => return Learned::Forbidden,
            None => (),
        }
        let Some(bucket) = self.bucket(key) else { return Learned::Full };
        if let Some((slot, entry)) = find(bucket, key)
            && entry == key
        {
            let seen = slot.seen.load(Relaxed);
            if now.0.saturating_sub(seen) > self.refresh {
                // Unless somebody else has just put something else there.
                let _ = slot.seen.compare_exchange(seen, now.0, Relaxed, Relaxed);
            }
            return Learned::Known;
        }
        self.insert(bucket, key, now.0)
    }

    /// Puts an entry where it belongs: over the one of the same station, one that is free or too old,
    /// or instead of the port's own.
    #[inline(never)]
    fn insert(&self, bucket: &[Slot; WAYS], key: Entry, now: u64) -> Learned {
        let _turn = self.changes.lock();
        let place = key.place();
        let (mut same, mut free, mut own, mut oldest) = (None, None, None, None);
        let mut owned = 0;
        for slot in bucket {
            let (entry, seen) = (slot.entry(), slot.seen.load(Relaxed));
            if entry.is_about(key) {
                same = Some(slot);
            } else if entry == Entry::FREE || now.saturating_sub(seen) > self.age {
                free = Some(slot);
            } else {
                if entry.place() == place {
                    owned += 1;
                    own = older(own, slot, seen);
                }
                oldest = older(oldest, slot, seen);
            }
        }
        let slot = if same.is_some() {
            same
        } else if place == Place::UPLINK {
            // Most stations are there.
            free.or(first(own)).or(first(oldest))
        } else if owned >= WAYS_OF_A_PORT {
            first(own)
        } else {
            free
        };
        let Some(slot) = slot else { return Learned::Full };
        // Whoever looks meanwhile finds the new entry with the old time: it is then taken for too old,
        // or for fresh a moment too early.
        slot.entry.store(key.0, Relaxed);
        slot.seen.store(now, Relaxed);
        Learned::New
    }

    /// `address` is the own one of the port at `place`, in `vlan` or in all. `false`, and no effect, if
    /// it is somebody else's.
    pub(super) fn set_own(&self, address: MacAddress, vlan: Option<Vlan>, place: Place) -> bool {
        let Some(number) = number(address) else { return false };
        let key = Entry::new(number, vlan.unwrap_or(Entry::ANY_VLAN), place);
        let _turn = self.changes.lock();
        for slot in self.own(number) {
            let entry = Entry(slot.load(Relaxed));
            if entry == Entry::FREE {
                slot.store(key.0, Relaxed);
                return true;
            }
            // Either may be for all VLANs.
            if entry.place() != place && (entry.is_about(key) || key.is_about(entry)) {
                return false;
            }
        }
        false
    }

    /// The port at `place` has no address of its own any more. Whoever looks meanwhile may miss
    /// another's, and takes it for one that is not known.
    pub(super) fn remove_own(&self, place: Place) {
        let _turn = self.changes.lock();
        let mut others: heapless::Vec<Entry, OWN> = heapless::Vec::new();
        for slot in &self.own {
            let entry = Entry(slot.swap(0, Relaxed));
            if entry != Entry::FREE && entry.place() != place {
                // There is room for all of them.
                let _ = others.push(entry);
            }
        }
        for entry in others {
            let number = entry.0 >> Entry::ADDRESS_SHIFT;
            if let Some(free) = self.own(number).find(|slot| slot.load(Relaxed) == 0) {
                free.store(entry.0, Relaxed);
            }
        }
    }

    /// Forgets what was learned from `place`.
    pub(super) fn forget(&self, place: Place) {
        let _turn = self.changes.lock();
        for slot in self.learned.iter().flatten() {
            if slot.entry() != Entry::FREE && slot.entry().place() == place {
                slot.entry.store(0, Relaxed);
                slot.seen.store(0, Relaxed);
            }
        }
    }
}

/// The slot with what was learned of a station.
#[inline]
fn find(bucket: &[Slot; WAYS], key: Entry) -> Option<(&Slot, Entry)> {
    bucket.iter().map(|slot| (slot, slot.entry())).find(|(_, entry)| entry.is_about(key))
}

/// The slot that was not heard of for longer.
fn older<'a>(best: Option<(&'a Slot, u64)>, slot: &'a Slot, seen: u64) -> Option<(&'a Slot, u64)> {
    match best {
        Some((_, oldest)) if oldest <= seen => best,
        _ => Some((slot, seen)),
    }
}

fn first(slot: Option<(&Slot, u64)>) -> Option<&Slot> {
    slot.map(|(slot, _)| slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: u64 = 1000;

    fn address(number: u32) -> MacAddress {
        let [a, b, c, d] = number.to_be_bytes();
        MacAddress([2, 0, a, b, c, d])
    }

    fn table() -> Box<Forwarding> {
        Box::new(Forwarding::new(Ticks(AGE), 7))
    }

    #[test]
    fn a_flood_of_senders_neither_takes_own_addresses_nor_all_of_the_table() {
        let table = table();
        for port in 0..8 {
            assert!(table.set_own(address(port), None, Place::port(port as usize)));
        }
        let victims = 100..200;
        for victim in victims.clone() {
            table.learn(address(victim), Vlan(5), Place::UPLINK, Ticks(1));
        }
        for number in 1000..50_000 {
            table.learn(address(number), Vlan(5), Place::port(1), Ticks(2));
        }
        for port in 0..8 {
            let place = Some(Place::port(port as usize));
            assert_eq!(table.look_up(address(port), Vlan(port as u16), Ticks(3)), place);
        }
        for victim in victims {
            assert_eq!(table.look_up(address(victim), Vlan(5), Ticks(3)), Some(Place::UPLINK));
        }
        let kept = (1000..50_000)
            .filter(|number| table.look_up(address(*number), Vlan(5), Ticks(3)).is_some());
        assert_eq!(kept.count(), WAYS_OF_A_PORT << BUCKET_BITS);
        // Others are still learned, and what is too old makes room.
        assert_eq!(table.learn(address(9), Vlan(5), Place::port(2), Ticks(3)), Learned::New);
        table.forget(Place::port(1));
        assert_eq!(table.look_up(address(49_999), Vlan(5), Ticks(3)), None);
    }

    #[test]
    fn a_station_is_known_in_many_vlans() {
        let table = table();
        let router = address(1);
        for vlan in 0..40 {
            assert_eq!(table.learn(router, Vlan(vlan), Place::UPLINK, Ticks(1)), Learned::New);
        }
        for vlan in 0..40 {
            assert_eq!(table.look_up(router, Vlan(vlan), Ticks(1)), Some(Place::UPLINK));
        }
        assert_eq!(table.look_up(router, Vlan(40), Ticks(1)), None);
    }

    #[test]
    fn what_is_heard_of_stays() {
        let table = table();
        let mut now = 1;
        table.learn(address(1), Vlan(1), Place::port(3), Ticks(now));
        for _ in 0..10 {
            now += AGE;
            let known = table.learn(address(1), Vlan(1), Place::port(3), Ticks(now));
            assert_eq!(known, Learned::Known);
            assert_eq!(table.look_up(address(1), Vlan(1), Ticks(now)), Some(Place::port(3)));
        }
        assert_eq!(table.look_up(address(1), Vlan(1), Ticks(now + AGE + 1)), None);
    }

    #[test]
    fn sixteen_ports_may_have_the_same_address_in_different_vlans() {
        let table = table();
        let own =
            |vlan: usize| table.set_own(address(1), Some(Vlan(vlan as u16)), Place::port(vlan));
        assert!((0..super::super::MAX_PORTS).all(own));
        assert!(!table.set_own(address(1), None, Place::port(3)));
        for gone in 0..8 {
            table.remove_own(Place::port(gone));
        }
        for vlan in 0..16 {
            let found = table.look_up(address(1), Vlan(vlan), Ticks(1));
            assert_eq!(found, (vlan >= 8).then_some(Place::port(vlan.into())));
        }
    }

    #[test]
    fn the_address_of_zeros_belongs_to_nobody() {
        let (table, zero) = (table(), MacAddress([0; 6]));
        assert_eq!(table.learn(zero, Vlan::NONE, Place::port(0), Ticks(1)), Learned::Full);
        assert_eq!(table.look_up(zero, Vlan::NONE, Ticks(1)), None);
        assert!(!table.set_own(zero, None, Place::port(0)));
    }
}
