//! A naive packed-ring driver (2.8).

use std::collections::HashMap;

use super::{Areas, RAM, get, put};
use crate::memory::{GuestMemory, Ipa};

pub(crate) const AVAIL: u16 = 1 << 7;
pub(crate) const USED: u16 = 1 << 15;

pub(crate) const ENABLE: u16 = 0;
pub(crate) const DISABLE: u16 = 1;
pub(crate) const DESC: u16 = 2;

/// A used descriptor: buffer ID, length, WRITE flag.
pub(crate) type Used = (u16, u32, bool);

/// Addresses everything by guest address, as a driver does.
pub(crate) struct PackedDriver<'m> {
    pub(crate) memory: GuestMemory<'m>,
    pub(crate) areas: Areas,
    pub(crate) size: u16,
    /// Where the next descriptor goes, and the Driver Ring Wrap Counter.
    pub(crate) next: (u16, bool),
    /// Where the next used descriptor is expected, and the wrap counter there.
    pub(crate) seen: (u16, bool),
    /// Descriptors of the list of each buffer ID in flight.
    lists: HashMap<u16, u16>,
}

impl<'m> PackedDriver<'m> {
    pub(crate) fn new(memory: GuestMemory<'m>, size: u16) -> Self {
        let areas = Areas { descriptor: RAM, driver: RAM + 0x3000, device: RAM + 0x3100 };
        memory.slice(Ipa::new(RAM), 0x3200).unwrap().fill(0, 0x3200, 0).unwrap();
        let start = (0, true);
        Self { memory, areas, size, next: start, seen: start, lists: HashMap::new() }
    }

    /// `count` places on.
    pub(crate) fn after(&self, (index, wrap): (u16, bool), count: u16) -> (u16, bool) {
        let index = u32::from(index) + u32::from(count);
        let laps = index / u32::from(self.size);
        ((index % u32::from(self.size)) as u16, wrap ^ (laps % 2 == 1))
    }

    /// The owner flags of an available descriptor in a lap.
    pub(crate) fn available(wrap: bool) -> u16 {
        if wrap { AVAIL } else { USED }
    }

    /// Writes the descriptor at `index` of the table at `table`; flags last.
    pub(crate) fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        (address, len, id, flags): (u64, u32, u16, u16),
    ) {
        let at = table + u64::from(index) * 16;
        put(&self.memory, at, &address.to_le_bytes());
        put(&self.memory, at + 8, &len.to_le_bytes());
        put(&self.memory, at + 12, &id.to_le_bytes());
        put(&self.memory, at + 14, &flags.to_le_bytes());
    }

    /// Writes a descriptor of the ring.
    pub(crate) fn descriptor(&self, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.descriptor_at(self.areas.descriptor, index, descriptor);
    }

    /// Makes a list of `buffers` (address, length, writable) available, the first descriptor last.
    /// The ID is in the last descriptor; the others have something else there.
    pub(crate) fn offer(&mut self, id: u16, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in buffers.iter().enumerate().rev() {
            let (index, wrap) = self.after(self.next, at as u16);
            let mut flags = Self::available(wrap) | if *writable { super::WRITE } else { 0 };
            let mut last = id;
            if at + 1 < buffers.len() {
                flags |= super::NEXT;
                last = !id;
            }
            self.descriptor(index, (*address, *len, last, flags));
        }
        self.offered(id, buffers.len() as u16);
    }

    /// Makes one descriptor available, with `flags` besides those that say so.
    pub(crate) fn offer_one(&mut self, id: u16, (address, len): (u64, u32), flags: u16) {
        let (index, wrap) = self.next;
        self.descriptor(index, (address, len, id, flags | Self::available(wrap)));
        self.offered(id, 1);
    }

    /// Makes a list in an indirect table at `table` available. What is reserved there is not zero.
    pub(crate) fn offer_indirect(&mut self, id: u16, table: u64, buffers: &[(u64, u32, bool)]) {
        for (at, (address, len, writable)) in buffers.iter().enumerate() {
            let flags = if *writable { super::WRITE } else { 0 } | super::NEXT | AVAIL;
            self.descriptor_at(table, at as u16, (*address, *len, !id, flags));
        }
        let flags = super::INDIRECT | super::WRITE;
        self.offer_one(id, (table, 16 * buffers.len() as u32), flags);
    }

    fn offered(&mut self, id: u16, descriptors: u16) {
        self.next = self.after(self.next, descriptors);
        self.lists.insert(id, descriptors);
    }

    /// The next used descriptor, if there is one.
    pub(crate) fn used(&mut self) -> Option<Used> {
        let (index, wrap) = self.seen;
        let at = self.areas.descriptor + u64::from(index) * 16;
        let flags = u16::from_le_bytes(get(&self.memory, at + 14));
        if flags & (AVAIL | USED) != if wrap { AVAIL | USED } else { 0 } || self.lists.is_empty() {
            return None;
        }
        let len = u32::from_le_bytes(get(&self.memory, at + 8));
        let id = u16::from_le_bytes(get(&self.memory, at + 12));
        let descriptors = self.lists.remove(&id).expect("an ID that is not in flight");
        self.seen = self.after(self.seen, descriptors);
        Some((id, len, flags & super::WRITE != 0))
    }

    /// Writes the driver event suppression structure.
    pub(crate) fn set_event(&self, flags: u16, (index, wrap): (u16, bool)) {
        let place = index | u16::from(wrap) << 15;
        put(&self.memory, self.areas.driver, &place.to_le_bytes());
        put(&self.memory, self.areas.driver + 2, &flags.to_le_bytes());
    }

    /// The device event suppression structure: flags, and the place.
    pub(crate) fn device_event(&self) -> (u16, (u16, bool)) {
        let place = u16::from_le_bytes(get(&self.memory, self.areas.device));
        let flags = u16::from_le_bytes(get(&self.memory, self.areas.device + 2));
        (flags, (place & 0x7FFF, place >> 15 == 1))
    }
}
