//! The packed virtqueue (2.8), device side.
//!
//! There is one ring. The driver writes descriptors into it in ring order, the device overwrites
//! them with used descriptors, in ring order too but in the order in which it completes: one for
//! each list, at the place where the last one ended. Which side a descriptor belongs to is said by
//! its AVAIL and USED flags and the lap, whose parity each side keeps as a wrap counter (2.8.1).
//!
//! # What is believed
//! Each field of a descriptor is read once; the flags and the buffer ID in one load.
//! Flags that flip afterwards have no effect. A list ends where its NEXT flags say, but is never
//! longer than what the device does not work on already; so it cannot run into its own beginning,
//! nor into descriptors of lists in flight. All of its descriptors must be available in their lap
//! (2.8.6). The buffer ID means nothing to the device: it may be any, and is given back.
//!
//! # Ordering
//! As for the split ring ([`split`](super::split)), thread fences order what device and driver see
//! of each other:
//! 1. The flags of a list's first descriptor are read before all else of it; the driver writes them
//!    last, after a barrier (2.8.13.1, 2.8.21): an acquire fence. The ID comes with the flags, in
//!    one single-copy atomic load of 4 bytes, so it is not older: a load that saw the flags and
//!    missed what was written before them would have happened at two times.
//! 2. Used descriptors, and all that the device wrote to buffers, come before the flags that show
//!    the first of them: a release fence. The driver looks at one place only, where it expects the
//!    next used descriptor (2.8.2); so of a batch all but the first are written at once, and the
//!    first when it is published. It shows them all together.
//! 3. Flags crossing: the device writes flags of descriptors, then reads the driver's event
//!    suppression structure; the driver writes that, then re-reads the flags. And the other way
//!    round, with the device's event suppression structure. A full fence on either side, or an
//!    event is lost (2.8.21.3.1, 2.8.22).

use super::chain::{Chain, ChainBuffer, DESCRIPTOR, Descriptor, Extent, MAX_SEGMENTS, WRITE};
use super::{Areas, Head, QueueError, passes};
use crate::memory::{GuestMemory, Ipa, SharedEntry, SharedSlice, SharedTable};
use crate::sync::atomic::{Ordering, fence};
use crate::virtio::Features;

// Flags, where they are in the last word of a descriptor: above the buffer ID.
const NEXT: u32 = 1 << 16;
const INDIRECT: u32 = 4 << 16;
const AVAIL: u32 = 1 << 23;
const USED: u32 = 1 << 31;
/// Whose a descriptor is.
const OWNER: u32 = AVAIL | USED;

/// Size of an event suppression structure (2.8.14).
const EVENT: usize = 4;
/// In an event suppression structure read as one word: the position of the wrap counter.
const EVENT_WRAP_SHIFT: u32 = 15;
const EVENT_OFFSET: u32 = 0x7FFF;
const EVENT_FLAGS_SHIFT: u32 = 16;
const EVENT_ENABLE: u32 = 0;
const EVENT_DISABLE: u32 = 1;
const EVENT_DESC: u32 = 2;

/// A place in the ring, and the owner flags that descriptors get there in this lap.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    index: u32,
    /// Of an available descriptor the flag AVAIL or USED, of a used one both or none (2.8.1): both
    /// change with every lap.
    owner: u32,
}

impl Position {
    /// Where the first available descriptor is; the wrap counter is initially 1.
    const FIRST_AVAILABLE: Position = Position { index: 0, owner: AVAIL };
    /// Where the first used descriptor is.
    const FIRST_USED: Position = Position { index: 0, owner: OWNER };

    /// `count` descriptors on, at most `size`.
    #[inline(always)]
    fn advance(&mut self, count: u32, size: u32) {
        self.index += count;
        if self.index >= size {
            seldom();
            self.index -= size;
            self.owner ^= OWNER;
        }
    }

    /// `count` descriptors back, at most `size`.
    #[inline(always)]
    fn go_back(&mut self, count: u32, size: u32) {
        if self.index < count {
            self.index += size;
            self.owner ^= OWNER;
        }
        self.index -= count;
    }

    /// The wrap counter.
    #[inline(always)]
    fn wrap(self) -> bool {
        self.owner & AVAIL != 0
    }

    /// As an event suppression structure has it.
    #[inline(always)]
    fn event(self) -> u32 {
        self.index | u32::from(self.wrap()) << EVENT_WRAP_SHIFT
    }
}

/// Tells the compiler which way a branch seldom goes.
#[cold]
fn seldom() {}

/// Where a list ends.
struct End {
    /// The last word of the last descriptor, with the buffer ID (2.8.6); with [`WRITE`] if any
    /// segment is writable.
    last: u32,
    /// The place of that descriptor.
    place: Position,
    /// Descriptors that are not in flight with the list taken.
    left: u32,
}

/// A packed virtqueue that is enabled: its areas are resolved, its size is 1 to 2^15.
pub(super) struct PackedRing<'m> {
    ring: SharedTable<'m>,
    /// Read only.
    driver_event: SharedSlice<'m>,
    /// Written only.
    device_event: SharedSlice<'m>,
    size: u32,
    event_idx: bool,
    indirect: bool,
    /// The driver is asked to notify.
    notifications: bool,
    /// The place the driver was last asked to notify of.
    armed_at: Option<Position>,
    /// Where the next list to take begins.
    next_available: Position,
    /// Where the next used descriptor goes.
    next_used: Position,
    /// Descriptors that are not between the two, where those are that the device has taken and not
    /// used.
    free: u32,
    /// Lists taken, and lists completed; both wrap.
    popped: u32,
    completed: u32,
    /// `popped` at the end of the batch.
    batch_end: u32,
    /// Descriptors of the list taken last.
    last: u32,
    /// The first used descriptor that is not published: its index, and its second word.
    unpublished: Option<(u32, u64)>,
    /// Lists were left that no notification will announce.
    leftover: bool,
}

impl<'m> PackedRing<'m> {
    /// Resolves and checks the areas.
    ///
    /// # Errors
    /// If an area is misaligned (2.8.10.1: 16, 4 and 4 bytes), not wholly RAM, or two overlap.
    pub(super) fn new(
        size: u16,
        areas: &Areas,
        features: Features,
        memory: &GuestMemory<'m>,
    ) -> Result<Self, QueueError> {
        let lengths = [usize::from(size) * DESCRIPTOR, EVENT, EVENT];
        let [ring, driver_event, device_event] = areas.resolve([16, 4, 4], lengths, memory)?;
        Ok(Self {
            ring: ring.table().ok_or(QueueError::Inaccessible)?,
            driver_event,
            device_event,
            size: size.into(),
            event_idx: features.contains(Features::EVENT_IDX),
            indirect: features.contains(Features::INDIRECT_DESC),
            notifications: true,
            armed_at: None,
            next_available: Position::FIRST_AVAILABLE,
            next_used: Position::FIRST_USED,
            free: size.into(),
            popped: 0,
            completed: 0,
            batch_end: size.into(),
            last: 0,
            unpublished: None,
            leftover: false,
        })
    }

    /// Allows another [`Self::size`] lists to be taken.
    #[inline(always)]
    pub(super) fn begin_batch(&mut self) {
        self.batch_end = self.popped.wrapping_add(self.size);
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u16 {
        self.size as u16
    }

    #[inline(always)]
    pub(super) fn leftover(&self) -> bool {
        self.leftover
    }

    #[inline(always)]
    pub(super) fn outstanding(&self) -> u16 {
        self.popped.wrapping_sub(self.completed) as u16
    }

    /// Takes the next list, validated whole. `None` if there is none, or the batch is used up.
    #[inline]
    pub(super) fn pop<'c>(
        &mut self,
        memory: &GuestMemory<'m>,
        buffer: &'c mut ChainBuffer<'m>,
    ) -> Result<Option<Chain<'c, 'm>>, QueueError> {
        if self.popped == self.batch_end {
            self.leftover = true;
            return Ok(None);
        }
        let place = self.next_available;
        let entry = self.ring.entry(place.index).ok_or(QueueError::Inaccessible)?;
        let mut last = entry.load_high();
        if last & OWNER != place.owner {
            match self.refresh(&entry) {
                Some(available) => last = available,
                None => {
                    self.leftover = false;
                    return Ok(None);
                }
            }
        }
        // If the ring is full of lists in flight, this is one of their descriptors.
        let left = self.free.checked_sub(1).ok_or(QueueError::AvailableIndex)?;
        // Ordering 1.
        fence(Ordering::Acquire);
        let (address, len) = entry.load_first_and_low();
        let mut extent = Extent::EMPTY;
        let mut end = End { last, place, left };
        if last & INDIRECT == 0 {
            let first = Descriptor { address, len, last };
            self.walk(first, &mut end, &mut extent, memory, buffer)?;
        } else {
            // One of its own: the other one can stay in registers.
            let mut table = Extent::EMPTY;
            if last & NEXT != 0 {
                return Err(QueueError::Indirect);
            }
            self.walk_indirect(address, len as usize, &mut table, memory, buffer)?;
            extent = table;
            end.last = last & !WRITE | if extent.is_writable() { WRITE } else { 0 };
        }
        let descriptors = self.free - end.left;
        let head = Head::from_word(end.last, descriptors);
        let chain = buffer.chain(extent, head)?;
        end.place.advance(1, self.size);
        self.next_available = end.place;
        self.free = end.left;
        self.popped = self.popped.wrapping_add(1);
        self.last = descriptors;
        Ok(Some(chain))
    }

    /// Undoes the last [`Self::pop`]; the list has had no effect, and is taken again later.
    #[inline]
    pub(super) fn put_back(&mut self) {
        if self.last != 0 && self.last <= self.size - self.free {
            self.free += self.last;
            self.next_available.go_back(self.last, self.size);
            self.popped = self.popped.wrapping_sub(1);
            // The batch has had it nevertheless.
            self.batch_end = self.batch_end.wrapping_sub(1);
            self.last = 0;
        }
        self.leftover = true;
    }

    /// Nothing is available: makes the driver notify of its next addition. The last word of the
    /// next descriptor if there is one after all.
    #[inline(never)]
    fn refresh(&mut self, entry: &SharedEntry<'_>) -> Option<u32> {
        let next = self.next_available;
        if !self.notifications || !self.event_idx || self.armed_at == Some(next) {
            // Without EVENT_IDX notifications were on all the time, or are not wanted; with it, the
            // driver has been told already: no addition can have gone unannounced.
            return None;
        }
        self.store_device_event(next.event() | EVENT_DESC << EVENT_FLAGS_SHIFT);
        self.armed_at = Some(next);
        // Ordering 3: the driver may have added a list before it could see the request.
        fence(Ordering::SeqCst);
        let last = entry.load_high();
        (last & OWNER == next.owner).then_some(last)
    }

    /// Fills `buffer` from the list that begins with `first`, where `end` is; moves `end` to its
    /// last descriptor.
    #[inline(always)]
    fn walk(
        &self,
        first: Descriptor,
        end: &mut End,
        extent: &mut Extent,
        memory: &GuestMemory<'m>,
        buffer: &mut ChainBuffer<'m>,
    ) -> Result<(), QueueError> {
        let mut descriptor = first;
        // What OWNER, WRITE and INDIRECT must be: a list changes from readable to writable once.
        let mut kind = end.place.owner;
        loop {
            if descriptor.last & (OWNER | WRITE | INDIRECT) != kind {
                if (descriptor.last ^ kind) & OWNER != 0 {
                    return Err(QueueError::NotAvailable);
                }
                if descriptor.last & INDIRECT != 0 {
                    // A list is of one kind (2.8.5).
                    return Err(QueueError::Indirect);
                }
                if kind & WRITE != 0 {
                    return Err(QueueError::ReadableAfterWritable);
                }
                kind |= WRITE;
                extent.begin_writable();
            }
            buffer.add(extent, memory, descriptor.address, descriptor.len)?;
            if descriptor.last & NEXT == 0 {
                break;
            }
            if end.left == 0 {
                return Err(QueueError::ChainTooLong);
            }
            end.left -= 1;
            end.place.index += 1;
            let entry = match self.ring.entry(end.place.index) {
                Some(entry) => entry,
                None => {
                    // The table is the ring: its end is where the lap ends.
                    seldom();
                    end.place.index = 0;
                    kind ^= OWNER;
                    self.ring.entry(0).ok_or(QueueError::Inaccessible)?
                }
            };
            descriptor = entry.load().into();
        }
        end.last = descriptor.last;
        end.place.owner = kind & OWNER;
        Ok(())
    }

    /// Adds the descriptors of an indirect table (2.8.7): all of them, one after the other. Flags
    /// other than WRITE, and IDs, mean nothing there. The descriptor that refers to it is alone.
    ///
    /// The table may be longer than the queue, as in a split ring; [`MAX_SEGMENTS`] is the bound.
    #[inline(never)]
    fn walk_indirect(
        &self,
        address: u64,
        len: usize,
        extent: &mut Extent,
        memory: &GuestMemory<'m>,
        buffer: &mut ChainBuffer<'m>,
    ) -> Result<(), QueueError> {
        if !self.indirect || len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(QueueError::Indirect);
        }
        let entries = len / DESCRIPTOR;
        if entries > MAX_SEGMENTS {
            return Err(QueueError::ChainTooLong);
        }
        let table = memory.slice(Ipa::new(address), len).map_err(QueueError::Buffer)?;
        for index in 0..entries {
            let Some(descriptor) = Descriptor::read_indirect(&table, index as u16) else {
                return Err(QueueError::DescriptorIndex);
            };
            if descriptor.last & WRITE != 0 {
                if !extent.is_writable() {
                    extent.begin_writable();
                }
            } else if extent.is_writable() {
                return Err(QueueError::ReadableAfterWritable);
            }
            buffer.add(extent, memory, descriptor.address, descriptor.len)?;
        }
        Ok(())
    }

    /// The place that available and used descriptors have both come to, the wrap counter above it;
    /// `None` with lists at work.
    pub(super) fn position(&self) -> Option<u16> {
        (self.outstanding() == 0 && self.free == self.size && self.unpublished.is_none())
            .then_some(self.next_used.event() as u16)
    }

    /// Goes on, just made, at a [`Self::position`]. Whether something is available is looked for
    /// again. `false`, and nothing done, if the ring has no such place.
    pub(super) fn resume(&mut self, position: u16) -> bool {
        let index = u32::from(position) & EVENT_OFFSET;
        if index >= self.size {
            return false;
        }
        let lap = if position >> EVENT_WRAP_SHIFT == 1 { 0 } else { OWNER };
        self.next_available = Position { index, owner: Position::FIRST_AVAILABLE.owner ^ lap };
        self.next_used = Position { index, owner: Position::FIRST_USED.owner ^ lap };
        self.leftover = true;
        true
    }

    /// Writes the used descriptor of a list; the driver sees it after [`Self::publish`].
    ///
    /// The WRITE flag says whether the device wrote anywhere (2.8.3). A device tells what it wrote
    /// without a gap, and may have written a status behind one; so the flag is set whenever there
    /// was something to write to.
    #[inline]
    pub(super) fn complete(&mut self, head: Head, written: u32) {
        let mut descriptors = head.descriptors();
        let mut free = self.free + descriptors;
        if free > self.size {
            // Not more than was taken, or places would be skipped that are the driver's.
            seldom();
            descriptors = self.size - self.free;
            free = self.size;
            if descriptors == 0 {
                return;
            }
        }
        let place = self.next_used;
        let len = if head.is_writable() { written } else { 0 };
        let second = u64::from(head.word() | place.owner) << 32 | u64::from(len);
        if self.unpublished.is_none() {
            self.unpublished = Some((place.index, second));
        } else if let Some(entry) = self.ring.entry(place.index) {
            entry.store_low_and_high(second);
        }
        self.next_used.advance(descriptors, self.size);
        self.free = free;
        self.completed = self.completed.wrapping_add(1);
        self.last = 0;
    }

    /// Shows the driver what has been completed since the last time. `true` if the driver wants an
    /// interrupt for it (2.8.9).
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((first, second)) = self.unpublished.take() else {
            return false;
        };
        // At least 1, so the same place again is a whole lap.
        let used = match self.next_used.index.checked_sub(first) {
            Some(used) if used != 0 => used,
            _ => self.next_used.index + self.size - first,
        };
        // Ordering 2.
        fence(Ordering::Release);
        if let Some(entry) = self.ring.entry(first) {
            entry.store_low_and_high(second);
        }
        // Ordering 3.
        fence(Ordering::SeqCst);
        // Both halves in one load: they belong together.
        let Some(event) = self.driver_event.load_u32(0) else {
            return true;
        };
        match event >> EVENT_FLAGS_SHIFT & 3 {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => self.used_up_to(event, used),
            // ENABLE; or what the driver may not say, where an interrupt too many does no harm.
            _ => true,
        }
    }

    /// Whether the place that `event` names is among the last `used` descriptors used.
    #[inline(always)]
    fn used_up_to(&self, event: u32, used: u32) -> bool {
        let new = self.next_used.index;
        let wrap = event >> EVENT_WRAP_SHIFT & 1 != 0;
        let mut place = event & EVENT_OFFSET;
        if wrap != self.next_used.wrap() {
            // In the lap before: negative, as what was used before the end of the ring is.
            place = place.wrapping_sub(self.size);
        }
        passes(place as u16, new.wrapping_sub(used) as u16, new as u16)
    }

    /// Whether the driver is asked to notify.
    pub(super) fn notifications(&self) -> bool {
        self.notifications
    }

    /// Goes on, just made, with the driver asked not to notify.
    pub(super) fn resume_silent(&mut self) {
        self.notifications = false;
    }

    /// Asks the driver to notify, or not to because the queue is looked at anyway.
    pub(super) fn set_notifications(&mut self, wanted: bool) {
        if self.notifications == wanted {
            return;
        }
        self.notifications = wanted;
        self.armed_at = None;
        let flags = if wanted { EVENT_ENABLE } else { EVENT_DISABLE };
        self.store_device_event(flags << EVENT_FLAGS_SHIFT);
        if wanted {
            // Ordering 3: what was added meanwhile was not announced.
            fence(Ordering::SeqCst);
            self.leftover = true;
        }
    }

    /// Writes the device's event suppression structure, both halves at once.
    #[inline(always)]
    fn store_device_event(&self, event: u32) {
        // In bounds and aligned: the area was checked at enable.
        let _ = self.device_event.store_u32(0, event);
    }
}

#[cfg(test)]
mod tests;
