//! The split virtqueue (2.7), device side.
//!
//! # Ordering
//! The driver runs on another core, or on this one between two exits; both map the rings as
//! inner-shareable cacheable normal memory, so thread fences (DMB ISH) order what each sees of the
//! other. There are three places:
//! 1. `avail.idx` is read before the entries it announces: an acquire fence between, which pairs
//!    with the driver's barrier between writing the entries and `avail.idx` (2.7.13).
//! 2. used elements, and all that the device wrote to the buffers, come before `used.idx`: a
//!    release fence between (2.7.8.2).
//! 3. two flags crossing: the device writes `used.idx` and then reads `used_event`; the driver
//!    writes `used_event` and then re-reads `used.idx`. Either must see the other's write or an
//!    interrupt is lost; only a full fence orders a store before a later load. The same holds for
//!    `avail_event` and `avail.idx` (2.7.7, 2.7.10).

use super::chain::{Chain, ChainBuffer, DESCRIPTOR, Descriptor, Extent, Head, MAX_SEGMENTS};
use super::{Areas, QueueError, passes};
use crate::memory::{EntryOffset, GuestMemory, Ipa, SharedRing, SharedSlice, SharedTable};
use crate::sync::atomic::{Ordering, fence};
use crate::virtio::Features;

// Flags, where they are in the last word of a descriptor: below the index of the next one.
const NEXT: u32 = 1;
const WRITE: u32 = 2;
const INDIRECT: u32 = 4;
const NEXT_SHIFT: u32 = 16;

/// Offsets in the available and the used ring; the event field follows the entries.
const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;
const AVAILABLE_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;

/// In `avail.flags`: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// In `used.flags`: the device wants no notifications.
const NO_NOTIFY: u16 = 1;

/// Adds the descriptors from `index` on, at most `limit` (not 0): a loop runs out of them. `read` reads
/// each once, if there is such a descriptor. If the last refers to a table, it is the result, and
/// the chain goes on there.
#[inline(always)]
fn walk_table<'m>(
    read: impl Fn(u16) -> Option<Descriptor>,
    index: u16,
    limit: usize,
    extent: &mut Extent,
    memory: &GuestMemory<'m>,
    buffer: &mut ChainBuffer<'m>,
) -> Result<Option<Descriptor>, QueueError> {
    let mut left = limit;
    // What WRITE and INDIRECT must be: a chain changes from readable to writable once.
    let mut kind = if extent.is_writable() { WRITE } else { 0 };
    let mut index = index;
    loop {
        let Some(descriptor) = read(index) else {
            return Err(QueueError::DescriptorIndex);
        };
        let seen = descriptor.last & (WRITE | INDIRECT);
        if seen != kind {
            if seen & INDIRECT != 0 {
                return Ok(Some(descriptor));
            }
            if kind == WRITE {
                return Err(QueueError::ReadableAfterWritable);
            }
            kind = WRITE;
            extent.begin_writable();
        }
        buffer.add(extent, memory, descriptor.address, descriptor.len)?;
        if descriptor.last & NEXT == 0 {
            return Ok(None);
        }
        left -= 1;
        if left == 0 {
            return Err(QueueError::ChainTooLong);
        }
        index = (descriptor.last >> NEXT_SHIFT) as u16;
    }
}

/// A split virtqueue that is enabled: its areas are resolved, its size is a power of two.
pub(super) struct SplitRing<'m> {
    descriptors: SharedTable<'m>,
    available: SharedSlice<'m>,
    /// The entries of the available ring.
    heads: SharedRing<'m, u16>,
    used: SharedSlice<'m>,
    /// The entries of the used ring.
    elements: SharedRing<'m, [u32; 2]>,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// The driver is asked to notify.
    notifications: bool,
    /// `avail_event` as last written.
    armed_at: Option<u16>,
    /// The next available entry to take.
    next_available: u16,
    /// `avail.idx` as last read and believed.
    available_idx: u16,
    /// Where the batch ends: no entry from there on is taken in it.
    batch_end: u16,
    /// The first of the two: up to there entries may be taken without a look at anything.
    stop: u16,
    /// The next used entry to write.
    next_used: u16,
    /// `used.idx` as last written.
    published: u16,
    /// Entries were left that no notification will announce.
    leftover: bool,
}

impl<'m> SplitRing<'m> {
    /// Resolves and checks the areas.
    ///
    /// # Errors
    /// If an area is misaligned (2.7: 16, 2 and 4 bytes), not wholly RAM, or two overlap.
    pub(super) fn new(
        size: u16,
        areas: &Areas,
        features: Features,
        memory: &GuestMemory<'m>,
    ) -> Result<Self, QueueError> {
        let event_idx = features.contains(Features::EVENT_IDX);
        let entries = usize::from(size);
        let event = if event_idx { 2 } else { 0 };
        let lengths = [
            entries * DESCRIPTOR,
            RING + entries * AVAILABLE_ENTRY + event,
            RING + entries * USED_ENTRY + event,
        ];
        let [descriptors, available, used] = areas.resolve([16, 2, 4], lengths, memory)?;
        Ok(Self {
            descriptors: descriptors.table().ok_or(QueueError::Inaccessible)?,
            available,
            heads: available.ring(RING, entries).ok_or(QueueError::Inaccessible)?,
            used,
            elements: used.ring(RING, entries).ok_or(QueueError::Inaccessible)?,
            size,
            event_idx,
            indirect: features.contains(Features::INDIRECT_DESC),
            notifications: true,
            armed_at: None,
            next_available: 0,
            available_idx: 0,
            batch_end: size,
            stop: 0,
            next_used: 0,
            published: 0,
            leftover: false,
        })
    }

    /// Allows another [`Self::size`] chains to be taken.
    #[inline(always)]
    pub(super) fn begin_batch(&mut self) {
        self.batch_end = self.next_available.wrapping_add(self.size);
        self.set_stop();
    }

    #[inline(always)]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    pub(super) fn leftover(&self) -> bool {
        self.leftover
    }

    #[inline(always)]
    pub(super) fn outstanding(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// Takes the next chain, validated whole. `None` if there is none, or the batch is used up.
    #[inline(always)]
    pub(super) fn pop<'c>(
        &mut self,
        memory: &GuestMemory<'m>,
        buffer: &'c mut ChainBuffer<'m>,
    ) -> Result<Option<Chain<'c, 'm>>, QueueError> {
        if self.next_available == self.stop && !self.go_on()? {
            return Ok(None);
        }
        let head = self.heads.load(self.next_available);
        let mut extent = Extent::EMPTY;
        // A chain has at most as many descriptors as the table.
        let limit = usize::from(self.size);
        let read = |index: u16| {
            let entry = self.descriptors.entry(EntryOffset::of(index.into()));
            entry.map(|it| it.load().into())
        };
        if let Some(table) = walk_table(read, head, limit, &mut extent, memory, buffer)? {
            // A copy: the other one can stay in registers.
            let mut whole = extent;
            self.walk_indirect(table, &mut whole, memory, buffer)?;
            extent = whole;
        }
        let chain = buffer.chain(extent, Head::new(head, 1, extent.is_writable()))?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Whether there is an entry to take after all, where there was none.
    #[inline(never)]
    fn go_on(&mut self) -> Result<bool, QueueError> {
        if self.next_available == self.batch_end {
            self.leftover = true;
            return Ok(false);
        }
        if !self.refresh()? {
            self.leftover = false;
            return Ok(false);
        }
        self.set_stop();
        Ok(true)
    }

    /// Sets `stop` after a change of what it depends on.
    #[inline(always)]
    fn set_stop(&mut self) {
        let announced = self.available_idx.wrapping_sub(self.next_available);
        let allowed = self.batch_end.wrapping_sub(self.next_available);
        self.stop = self.next_available.wrapping_add(announced.min(allowed));
    }

    /// Undoes the last [`Self::pop`]: the chain has had no effect, and is taken again later.
    #[inline]
    pub(super) fn put_back(&mut self, _: Head) {
        if self.outstanding() != 0 {
            self.next_available = self.next_available.wrapping_sub(1);
            // The batch has had it nevertheless.
            self.batch_end = self.batch_end.wrapping_sub(1);
            self.set_stop();
        }
        self.leftover = true;
    }

    /// As [`Self::put_back`], but what is left is no leftover.
    pub(super) fn park(&mut self, head: Head) {
        self.put_back(head);
        self.leftover = false;
    }

    /// Reads `avail.idx`. `false` if nothing is available; the driver's next addition then
    /// notifies.
    #[inline]
    fn refresh(&mut self) -> Result<bool, QueueError> {
        let mut idx = self.load_available(IDX)?;
        if idx == self.next_available {
            if !self.notifications || !self.event_idx || self.armed_at == Some(idx) {
                // Without EVENT_IDX notifications were on all the time, or are not wanted; with
                // it, the driver has been told already: no addition can have gone unannounced.
                return Ok(false);
            }
            self.store_used(RING + usize::from(self.size) * USED_ENTRY, idx)?;
            self.armed_at = Some(idx);
            // Ordering 3: the driver may have added an entry before it could see the request.
            fence(Ordering::SeqCst);
            idx = self.load_available(IDX)?;
            if idx == self.next_available {
                return Ok(false);
            }
        }
        // A ring holds at most `size` chains, those the device still works on included. More is a
        // jump; an index that goes backwards is one too.
        let available = u32::from(idx.wrapping_sub(self.next_available));
        if available + u32::from(self.outstanding()) > u32::from(self.size) {
            return Err(QueueError::AvailableIndex);
        }
        // Ordering 1.
        fence(Ordering::Acquire);
        self.available_idx = idx;
        Ok(true)
    }

    /// Adds the descriptors of an indirect table (2.7.5.3), the last descriptor of a chain.
    ///
    /// The table may be longer than the queue: Linux makes such tables for small queues, and
    /// [`MAX_SEGMENTS`] bounds the walk.
    #[inline(never)]
    fn walk_indirect(
        &self,
        descriptor: Descriptor,
        extent: &mut Extent,
        memory: &GuestMemory<'m>,
        buffer: &mut ChainBuffer<'m>,
    ) -> Result<(), QueueError> {
        let len = descriptor.len as usize;
        let last = descriptor.last & NEXT == 0;
        if !self.indirect || !last || len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(QueueError::Indirect);
        }
        let table = Ipa::new(descriptor.address);
        let table = memory.slice(table, len).map_err(QueueError::Buffer)?;
        let limit = MAX_SEGMENTS.min(len / DESCRIPTOR);
        let read = |index| Descriptor::read_indirect(&table, index);
        match walk_table(read, 0, limit, extent, memory, buffer)? {
            None => Ok(()),
            Some(_) => Err(QueueError::Indirect),
        }
    }

    /// The index that available and used ring have both come to; `None` with chains at work.
    pub(super) fn position(&self) -> Option<u16> {
        (self.outstanding() == 0 && self.published == self.next_used).then_some(self.next_used)
    }

    /// Goes on, just made, at a [`Self::position`]; any is one. Whether something is available is
    /// looked for again.
    pub(super) fn resume(&mut self, position: u16) {
        (self.next_available, self.available_idx) = (position, position);
        (self.next_used, self.published) = (position, position);
        self.leftover = true;
    }

    /// Writes the used element of a chain; the driver sees it after [`Self::publish`].
    #[inline]
    pub(super) fn complete(&mut self, head: Head, written: u32) {
        if self.outstanding() == 0 {
            // A device that completes more than it took would run over the driver's entries.
            return;
        }
        self.elements.store(self.next_used, [head.id().into(), written]);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what has been completed since the last time. `true` if the driver wants an
    /// interrupt for it (2.7.7.2).
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        // Ordering 2.
        fence(Ordering::Release);
        let _ = self.used.store_u16(IDX, new);
        self.published = new;
        // Ordering 3.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available.load_u16(RING + usize::from(self.size) * AVAILABLE_ENTRY);
            event.is_none_or(|event| passes(event, old, new))
        } else {
            let flags = self.available.load_u16(FLAGS);
            flags.is_none_or(|flags| flags & NO_INTERRUPT == 0)
        }
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
        // With EVENT_IDX, an `avail_event` that is not moved on silences the driver.
        self.armed_at = None;
        if !self.event_idx {
            let _ = self.used.store_u16(FLAGS, if wanted { 0 } else { NO_NOTIFY });
        }
        if wanted {
            // Ordering 3: what was added meanwhile was not announced.
            fence(Ordering::SeqCst);
            self.leftover = true;
        }
    }

    #[inline(always)]
    fn load_available(&self, offset: usize) -> Result<u16, QueueError> {
        self.available.load_u16(offset).ok_or(QueueError::Inaccessible)
    }

    #[inline(always)]
    fn store_used(&self, offset: usize, value: u16) -> Result<(), QueueError> {
        self.used.store_u16(offset, value).ok_or(QueueError::Inaccessible)
    }
}
