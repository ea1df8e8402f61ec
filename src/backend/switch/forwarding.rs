//! Who is behind which port: the forwarding table (IEEE 802.1Q: filtering database).
//!
//! A frame costs a look at two buckets, whatever is in them. Looking takes no lock: an entry is one
//! word, and a second one with the time. Only those who put an entry into a bucket take turns.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::frame::Vlan;
use crate::backend::clock::Ticks;
use crate::backend::net::MacAddress;
use crate::sync::Mutex;

/// log2 of the number of buckets.
const BUCKET_BITS: u32 = 7;
/// Entries in a bucket.
const WAYS: usize = 8;
/// Entries of a bucket that a guest's port may have, but for static ones: so that no guest can fill a
/// bucket on its own and have the others' frames flooded.
const WAYS_OF_A_PORT: usize = 2;

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
    const PLACE: u64 = (1 << Self::PLACE_BITS) - 1;
    const VLAN: u64 = 0x0FFF << Self::PLACE_BITS;
    /// Stands for all VLANs; there is none of this number.
    const ANY_VLAN: Vlan = Vlan(0x0FFF);

    #[inline]
    fn new(address: u64, vlan: Vlan, place: Place) -> Entry {
        Entry(address << 17 | u64::from(vlan.0) << Self::PLACE_BITS | u64::from(place.0))
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

/// When an entry was last heard of; of one that is set and not learned, for ever.
const STATIC: u64 = u64::MAX;

struct Slot {
    entry: AtomicU64,
    seen: AtomicU64,
}

impl Slot {
    #[inline]
    fn entry(&self) -> Entry {
        Entry(self.entry.load(Relaxed))
    }

    fn is_static(&self) -> bool {
        self.seen.load(Relaxed) == STATIC
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
    /// The address is that of somebody else, once and for all.
    Forbidden,
}

/// The table.
pub(super) struct Forwarding {
    slots: [[Slot; WAYS]; 1 << BUCKET_BITS],
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
    /// An empty table, whose entries last for `age`.
    pub(super) const fn new(age: Ticks, seed: u64) -> Self {
        Self {
            slots: [const {
                [const { Slot { entry: AtomicU64::new(0), seen: AtomicU64::new(0) } }; WAYS]
            }; 1 << BUCKET_BITS],
            changes: Mutex::new(()),
            seed,
            age: age.0,
            refresh: age.0 >> 8,
        }
    }

    #[inline]
    fn bucket(&self, number: u64) -> Option<&[Slot; WAYS]> {
        let hash = (number ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.slots.get((hash >> (u64::BITS - BUCKET_BITS)) as usize)
    }

    /// The slot with what is known of a station. One that is static comes first.
    #[inline]
    fn find(bucket: &[Slot; WAYS], key: Entry) -> Option<(&Slot, Entry)> {
        bucket.iter().map(|slot| (slot, slot.entry())).find(|(_, entry)| entry.is_about(key))
    }

    /// Where frames to `address` go. `None`: nobody knows.
    #[inline]
    pub(super) fn look_up(&self, address: MacAddress, vlan: Vlan, now: Ticks) -> Option<Place> {
        let number = number(address)?;
        let (slot, entry) = Self::find(self.bucket(number)?, Entry::new(number, vlan, Place(0)))?;
        // Of a static entry the age is 0.
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
        let Some(bucket) = self.bucket(number) else { return Learned::Full };
        let key = Entry::new(number, vlan, place);
        if let Some((slot, entry)) = Self::find(bucket, key) {
            let seen = slot.seen.load(Relaxed);
            if entry.place() == place {
                if seen != STATIC && now.0.wrapping_sub(seen) > self.refresh {
                    // Unless somebody else has just put something else there.
                    let _ = slot.seen.compare_exchange(seen, now.0, Relaxed, Relaxed);
                }
                return Learned::Known;
            }
            if seen == STATIC {
                return Learned::Forbidden;
            }
        }
        self.insert(bucket, key, now.0)
    }

    /// Puts an entry where it belongs: over the one of the same station, one that is free or too old,
    /// or instead of the port's own.
    #[inline(never)]
    fn insert(&self, bucket: &[Slot; WAYS], key: Entry, seen: u64) -> Learned {
        let _turn = self.changes.lock();
        let place = key.place();
        let uplink = place == Place::UPLINK;
        let (mut same, mut free, mut own, mut oldest) = (None, None, None, None);
        let mut owned = 0;
        for slot in bucket {
            let entry = slot.entry();
            let since = slot.seen.load(Relaxed);
            let age = if seen == STATIC { 0 } else { seen.saturating_sub(since) };
            if entry.is_about(key) {
                if since == STATIC && entry.place() != place {
                    return Learned::Forbidden;
                }
                same = Some(slot);
            } else if seen == STATIC && since != STATIC && key.is_about(entry) {
                // What was learned of the station in one of the VLANs is over.
                slot.entry.store(0, Relaxed);
                free = Some(slot);
            } else if since == STATIC {
                continue;
            } else if entry == Entry::FREE || age > self.age {
                free = Some(slot);
            } else {
                if entry.place() == place {
                    owned += 1;
                    own = older(own, slot, since);
                }
                oldest = older(oldest, slot, since);
            }
        }
        let slot = if same.is_some() {
            same
        } else if seen == STATIC {
            free.or(oldest.map(|(slot, _)| slot))
        } else if owned >= WAYS_OF_A_PORT && !uplink {
            own.map(|(slot, _)| slot)
        } else if uplink {
            free.or(own.map(|(slot, _)| slot))
        } else {
            free
        };
        let Some(slot) = slot else { return Learned::Full };
        // Whoever looks meanwhile finds the new entry with the old time: it is then taken for too old,
        // or for fresh a moment too early.
        slot.entry.store(key.0, Relaxed);
        slot.seen.store(seen, Relaxed);
        Learned::New
    }

    /// `address` is at `place` for ever, in `vlan` or in all. `false` if it is somebody else's, or too
    /// many static addresses share a bucket.
    pub(super) fn set_static(&self, address: MacAddress, vlan: Option<Vlan>, place: Place) -> bool {
        let Some(number) = number(address) else { return false };
        let Some(bucket) = self.bucket(number) else { return false };
        let key = Entry::new(number, vlan.unwrap_or(Entry::ANY_VLAN), place);
        let clash = bucket.iter().any(|slot| {
            let entry = slot.entry();
            // Either may be for all VLANs.
            slot.is_static()
                && entry.place() != place
                && (entry.is_about(key) || key.is_about(entry))
        });
        !clash && self.insert(bucket, key, STATIC) == Learned::New
    }

    /// Forgets what is known of `place`: all of it, or what was learned.
    pub(super) fn forget(&self, place: Place, statics: bool) {
        let _turn = self.changes.lock();
        for slot in self.slots.iter().flatten() {
            if slot.entry() != Entry::FREE
                && slot.entry().place() == place
                && (statics || !slot.is_static())
            {
                slot.entry.store(0, Relaxed);
                slot.seen.store(0, Relaxed);
            }
        }
    }
}

/// The slot that was not heard of for longer.
fn older<'a>(best: Option<(&'a Slot, u64)>, slot: &'a Slot, seen: u64) -> Option<(&'a Slot, u64)> {
    match best {
        Some((_, oldest)) if oldest <= seen => best,
        _ => Some((slot, seen)),
    }
}
