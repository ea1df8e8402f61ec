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
use crate::memory::{EntryOffset, GuestMemory, Ipa, SharedEntry, SharedSlice, SharedTable};
use crate::sync::atomic::{Ordering, fence};
use crate::virtio::Features;

// Flags, where they are in the last word of a descriptor: above the buffer ID.
const NEXT: u32 = 1 << 16;
const INDIRECT: u32 = 4 << 16;
const AVAIL: u32 = 1 << 23;
const USED: u32 = 1 << 31;
/// Whose a descriptor is.
const OWNER: u32 = AVAIL | USED;
/// What must be as expected of a descriptor that a list goes on with.
const KIND: u32 = OWNER | WRITE | INDIRECT;

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
///
/// A place in the next lap may also be told by this lap's flags and an offset past the end of the
/// ring, by less than its length: then the laps are sorted out where the offset is first found
/// outside, with [`Position::settled`], and not on every step.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    offset: EntryOffset,
    /// Of an available descriptor the flag AVAIL or USED, of a used one both or none (2.8.1): both
    /// change with every lap.
    owner: u32,
}

impl Position {
    /// Where the first available descriptor is; the wrap counter is initially 1.
    const FIRST_AVAILABLE: Position = Position { offset: EntryOffset::START, owner: AVAIL };
    /// Where the first used descriptor is.
    const FIRST_USED: Position = Position { offset: EntryOffset::START, owner: OWNER };

    /// The same place, with an offset in the ring, which is `len` long.
    #[inline(always)]
    fn settled(self, len: EntryOffset) -> Position {
        if self.offset < len {
            return self;
        }
        Position { offset: self.offset.minus(len), owner: self.owner ^ OWNER }
    }

    /// `distance` back, at most `len`.
    #[inline(always)]
    fn back(self, distance: EntryOffset, len: EntryOffset) -> Position {
        if self.offset >= distance {
            return Position { offset: self.offset.minus(distance), ..self };
        }
        Position { offset: self.offset.plus(len).minus(distance), owner: self.owner ^ OWNER }
    }

    /// The wrap counter.
    #[inline(always)]
    fn wrap(self) -> bool {
        self.owner & AVAIL != 0
    }

    /// As an event suppression structure has it. The place is settled.
    #[inline(always)]
    fn event(self) -> u32 {
        self.offset.index() | u32::from(self.wrap()) << EVENT_WRAP_SHIFT
    }
}

/// What is wrong with a descriptor in a list: [`KIND`] as it was seen, and as it should be, with
/// WRITE.
#[cold]
fn unlike(seen: u32, kind: u32) -> QueueError {
    if (seen ^ kind) & OWNER != 0 {
        QueueError::NotAvailable
    } else if seen & INDIRECT != 0 {
        // A list is of one kind (2.8.5).
        QueueError::Indirect
    } else {
        QueueError::ReadableAfterWritable
    }
}

/// A packed virtqueue that is enabled: its areas are resolved, its size is 1 to 2^15.
pub(super) struct PackedRing<'m> {
    ring: SharedTable<'m>,
    /// The ring as far as lists may be taken in this lap: to its end, or to where used descriptors
    /// have come to in the lap before. Those may have gone on since, so its end is where to look
    /// again, no more.
    open: SharedTable<'m>,
    /// Read only.
    driver_event: SharedSlice<'m>,
    /// Written only.
    device_event: SharedSlice<'m>,
    /// How long the ring is.
    len: EntryOffset,
    event_idx: bool,
    indirect: bool,
    /// The driver is asked to notify.
    notifications: bool,
    /// The place the driver was last asked to notify of.
    armed_at: Option<Position>,
    /// Where the next list to take begins. From where the next used descriptor goes up to here are
    /// the descriptors that the device has taken and not used; this is never more than the ring.
    next_available: Position,
    /// Where the next used descriptor goes.
    next_used: Position,
    /// Lists that may be taken in this batch.
    batch_left: u32,
    /// The first used descriptor that is not published: its place, and its second word.
    unpublished: Option<(EntryOffset, u64)>,
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
        let ring = ring.table().ok_or(QueueError::Inaccessible)?;
        Ok(Self {
            ring,
            open: ring,
            driver_event,
            device_event,
            len: EntryOffset::of(size.into()),
            event_idx: features.contains(Features::EVENT_IDX),
            indirect: features.contains(Features::INDIRECT_DESC),
            notifications: true,
            armed_at: None,
            next_available: Position::FIRST_AVAILABLE,
            next_used: Position::FIRST_USED,
            batch_left: size.into(),
            unpublished: None,
            leftover: false,
        })
    }

    /// Allows another [`Self::size`] lists to be taken.
    #[inline(always)]
    pub(super) fn begin_batch(&mut self) {
        self.batch_left = self.len.index();
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u16 {
        self.len.index() as u16
    }

    #[inline(always)]
    pub(super) fn leftover(&self) -> bool {
        self.leftover
    }

    /// Descriptors of lists that the device works on.
    #[inline(always)]
    pub(super) fn outstanding(&self) -> u16 {
        self.in_flight().index() as u16
    }

    /// How much of the ring lists take up that the device works on.
    #[inline(always)]
    fn in_flight(&self) -> EntryOffset {
        let ahead = self.next_available.offset.minus(self.next_used.offset);
        if self.next_available.wrap() == self.next_used.wrap() {
            ahead
        } else {
            ahead.plus(self.len)
        }
    }

    /// Settles both places. Always both: used descriptors are in the lap of available ones, or in
    /// the one before, and by the flags alone the one after would look the same.
    #[inline(never)]
    fn settle(&mut self) {
        self.next_used = self.next_used.settled(self.len);
        if self.next_available.offset >= self.len {
            self.next_available = self.next_available.settled(self.len);
            // In the new lap, nothing before it is looked at.
            self.open = self.open.up_to(EntryOffset::START).unwrap_or(self.open);
        }
    }

    /// Takes the next list, validated whole. `None` if there is none, or the batch is used up.
    #[inline(always)]
    pub(super) fn pop<'c>(
        &mut self,
        memory: &GuestMemory<'m>,
        buffer: &'c mut ChainBuffer<'m>,
    ) -> Result<Option<Chain<'c, 'm>>, QueueError> {
        if self.batch_left == 0 {
            self.leftover = true;
            return Ok(None);
        }
        let mut place = self.next_available;
        let entry = match self.open.entry(place.offset) {
            Some(entry) => entry,
            None => {
                let Some(there) = self.go_on(place) else {
                    return self.pop_from_full().map(|()| None);
                };
                self.next_available = there;
                place = there;
                self.open.entry(place.offset).ok_or(QueueError::Inaccessible)?
            }
        };
        let mut last = entry.load_high();
        let mut kind = place.owner;
        let mut extent = Extent::EMPTY;
        if last & KIND != kind {
            if (last ^ kind) & OWNER != 0 {
                match self.refresh(&entry) {
                    Some(available) => last = available,
                    None => {
                        self.leftover = false;
                        return Ok(None);
                    }
                }
            }
            if last & WRITE != 0 {
                kind |= WRITE;
                extent.begin_writable();
            }
        }
        // Ordering 1.
        fence(Ordering::Acquire);
        let (address, len) = entry.load_first_and_low();
        // From the offset of the last descriptor to the list's end: over that descriptor, and a lap
        // more if the list has come to the next one.
        let mut to_end = EntryOffset::ONE;
        if last & INDIRECT != 0 {
            if last & NEXT != 0 {
                return Err(QueueError::Indirect);
            }
            // One of its own: the other one can stay in registers.
            let mut table = Extent::EMPTY;
            self.walk_indirect(address, len as usize, &mut table, memory, buffer)?;
            extent = table;
            // WRITE of the descriptor itself means nothing (2.8.7).
            last = last & !WRITE | if extent.is_writable() { WRITE } else { 0 };
        } else {
            let mut descriptor = Descriptor { address, len, last };
            loop {
                buffer.add(&mut extent, memory, descriptor.address, descriptor.len)?;
                if descriptor.last & NEXT == 0 {
                    break;
                }
                place.offset = place.offset.plus(EntryOffset::ONE);
                let entry = match self.open.entry(place.offset) {
                    Some(entry) => entry,
                    None => {
                        place.owner = kind & OWNER;
                        let there = self.go_on(place).ok_or(QueueError::ChainTooLong)?;
                        to_end = to_end.plus(place.offset).minus(there.offset);
                        kind = kind & WRITE | there.owner;
                        place = there;
                        self.open.entry(place.offset).ok_or(QueueError::Inaccessible)?
                    }
                };
                descriptor = entry.load().into();
                let seen = descriptor.last & KIND;
                if seen != kind {
                    // A list changes from readable to writable once.
                    kind |= WRITE;
                    if seen != kind {
                        return Err(unlike(seen, kind));
                    }
                    extent.begin_writable();
                }
            }
            last = descriptor.last;
        }
        // The lap stays the one in which the list began, until the place is settled.
        let end = place.offset.plus(to_end);
        let head = Head::from_word(last, end.minus(self.next_available.offset));
        let chain = buffer.chain(extent, head)?;
        self.next_available.offset = end;
        self.batch_left -= 1;
        Ok(Some(chain))
    }

    /// Where lists go on from `place`, which is not in the ring, or was taken when last looked at:
    /// possibly in the next lap. `None` if the ring is full.
    #[inline(never)]
    fn go_on(&mut self, place: Position) -> Option<Position> {
        self.settle();
        let place = place.settled(self.len);
        if place.wrap() == self.next_used.wrap() {
            self.open = self.ring;
        } else if place.offset == self.next_used.offset {
            return None;
        } else {
            self.open = self.ring.up_to(self.next_used.offset)?;
        }
        Some(place)
    }

    /// The ring is full of lists in flight: what is next is one of their descriptors. That nothing
    /// is available is as good an answer as ever.
    #[cold]
    fn pop_from_full(&mut self) -> Result<(), QueueError> {
        // Settled by `go_on`.
        let next = self.next_available;
        let entry = self.ring.entry(next.offset).ok_or(QueueError::Inaccessible)?;
        if entry.load_high() & OWNER == next.owner || self.refresh(&entry).is_some() {
            return Err(QueueError::AvailableIndex);
        }
        self.leftover = false;
        Ok(())
    }

    /// Undoes the last [`Self::pop`], which gave `head`; the list has had no effect, and is taken
    /// again later. The batch has had it nevertheless.
    #[inline]
    pub(super) fn put_back(&mut self, head: Head) {
        // Not more than was taken. What is open is left as it is: in the lap before, the place is
        // not inside, and everything is looked at again.
        if head.span() <= self.in_flight() {
            self.next_available = self.next_available.back(head.span(), self.len);
        }
        self.leftover = true;
    }

    /// As [`Self::put_back`], but what is left is no leftover.
    pub(super) fn park(&mut self, head: Head) {
        self.put_back(head);
        self.leftover = false;
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
        (self.in_flight() == EntryOffset::START && self.unpublished.is_none())
            .then_some(self.next_used.settled(self.len).event() as u16)
    }

    /// Goes on, just made, at a [`Self::position`]. Whether something is available is looked for
    /// again. `false`, and nothing done, if the ring has no such place.
    pub(super) fn resume(&mut self, position: u16) -> bool {
        let offset = EntryOffset::of(u32::from(position) & EVENT_OFFSET);
        if offset >= self.len {
            return false;
        }
        let lap = if position >> EVENT_WRAP_SHIFT == 1 { 0 } else { OWNER };
        self.next_available = Position { offset, owner: Position::FIRST_AVAILABLE.owner ^ lap };
        self.next_used = Position { offset, owner: Position::FIRST_USED.owner ^ lap };
        self.leftover = true;
        true
    }

    /// Writes the used descriptor of a list; the driver sees it after [`Self::publish`].
    ///
    /// The WRITE flag says whether the device wrote anywhere (2.8.3). A device tells what it wrote
    /// without a gap, and may have written a status behind one; so the flag is set whenever there
    /// was something to write to. Without it the length means nothing (2.8.4).
    #[inline]
    pub(super) fn complete(&mut self, head: Head, written: u32) {
        let place = self.next_used;
        let next = place.offset.plus(head.span());
        match self.ring.entry(place.offset) {
            Some(entry) if next <= self.next_available.offset => {
                self.write_used(&entry, place, head, written);
                self.next_used.offset = next;
            }
            _ => self.complete_across(head, written),
        }
    }

    /// As [`Self::complete`], where available descriptors are in the next lap; or `head` is more
    /// than was taken, and places would be skipped that are the driver's.
    #[inline(never)]
    fn complete_across(&mut self, head: Head, written: u32) {
        self.settle();
        let span = head.span().min(self.in_flight());
        let place = self.next_used;
        if span != EntryOffset::START
            && let Some(entry) = self.ring.entry(place.offset)
        {
            self.write_used(&entry, place, head, written);
            self.next_used.offset = place.offset.plus(span);
            self.settle();
        }
    }

    /// Writes the used descriptor at `place`, or keeps it if it is the first.
    #[inline(always)]
    fn write_used(&mut self, entry: &SharedEntry<'_>, place: Position, head: Head, written: u32) {
        let second = u64::from(head.word() | place.owner) << 32 | u64::from(written);
        if self.unpublished.is_none() {
            self.unpublished = Some((place.offset, second));
        } else {
            entry.store_low_and_high(second);
        }
    }

    /// Shows the driver what has been completed since the last time. `true` if the driver wants an
    /// interrupt for it (2.8.9).
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((first, second)) = self.unpublished.take() else {
            return false;
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
            EVENT_DESC if self.event_idx => self.used_up_to(event, first),
            // ENABLE; or what the driver may not say, where an interrupt too many does no harm.
            _ => true,
        }
    }

    /// Whether the place that `event` names is among the descriptors used from `first` on.
    #[inline(always)]
    fn used_up_to(&mut self, event: u32, first: EntryOffset) -> bool {
        self.settle();
        let new = self.next_used.offset.index();
        // At least 1, so the same place again is a whole lap.
        let mut used = new.wrapping_sub(first.index());
        if self.next_used.offset <= first {
            used = used.wrapping_add(self.len.index());
        }
        let wrap = event >> EVENT_WRAP_SHIFT & 1 != 0;
        let mut place = event & EVENT_OFFSET;
        if wrap != self.next_used.wrap() {
            // In the lap before: negative, as what was used before the end of the ring is.
            place = place.wrapping_sub(self.len.index());
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
