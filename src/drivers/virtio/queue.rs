//! A split virtqueue from the driver's side. Source: virtio 2.7.
//!
//! Memory the device can write is never read back as our own state: indices and what is
//! outstanding live in this structure; of the used ring only `idx` and the element's `id` are
//! read, each once, and both are checked.

use crate::drivers::registers::Registers;
use crate::memory::{Pa, SharedSlice};

/// The most entries a ring of ours has.
pub const MAX_RING_SIZE: u16 = 256;

/// The descriptor's buffer is followed by the one of descriptor `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The device writes the buffer, rather than reads it.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// Bytes in a descriptor.
pub const DESC_BYTES: usize = 16;

/// avail.flags: do not interrupt. Without EVENT_IDX only.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// used.flags: no need to notify. Without EVENT_IDX only.
const USED_F_NO_NOTIFY: u16 = 1;

/// Offset of `flags` in both rings.
const FLAGS: usize = 0;
/// Offset of `idx` in both rings.
const INDEX: usize = 2;
/// Offset of the entries in both rings.
const ENTRIES: usize = 4;
/// Bytes in an entry of the used ring.
const USED_ENTRY: usize = 8;

/// Where the parts of a queue lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Descriptor table.
    pub descriptors: Pa,
    /// Available ring (driver area).
    pub available: Pa,
    /// Used ring (device area).
    pub used: Pa,
}

/// The device moved used.idx past what it had been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingViolation;

/// Writes descriptor `index` of `table`. `None`, and no effect, if it lies outside.
#[inline(always)]
pub fn write_descriptor(
    table: &SharedSlice<'_>,
    index: u16,
    address: Pa,
    attributes: u64,
) -> Option<()> {
    // One check of bounds for both halves.
    let descriptor = table.subslice(usize::from(index) * DESC_BYTES, DESC_BYTES)?;
    descriptor.store_u64(0, address.raw())?;
    descriptor.store_u64(8, attributes)
}

/// The second half of a descriptor: len, flags, next.
#[inline(always)]
pub const fn attributes(length: u32, flags: u16, next: u16) -> u64 {
    length as u64 | (flags as u64) << 32 | (next as u64) << 48
}

/// A split virtqueue.
pub struct SplitQueue<'m> {
    descriptors: SharedSlice<'m>,
    available: SharedSlice<'m>,
    used: SharedSlice<'m>,
    /// Entries, a power of two.
    size: u16,
    /// EVENT_IDX was agreed on.
    event_index: bool,
    /// The device shall interrupt.
    interrupts: bool,
    /// Index of the next entry to write into the available ring.
    next_available: u16,
    /// avail.idx, as last written.
    published: u16,
    /// Index of the next element to take from the used ring.
    last_used: u16,
    /// used.idx, as last read and checked.
    seen_used: u16,
    /// used_event, as last written.
    used_event: u16,
}

impl<'m> SplitQueue<'m> {
    /// Bytes a queue of `size` entries takes.
    pub const fn bytes(size: u16) -> usize {
        Self::used_offset(size) + ENTRIES + size as usize * USED_ENTRY + 2
    }

    const fn available_offset(size: u16) -> usize {
        size as usize * DESC_BYTES
    }

    /// The used ring has a cache line to itself: it is the device that writes it.
    const fn used_offset(size: u16) -> usize {
        (Self::available_offset(size) + ENTRIES + size as usize * 2 + 2).next_multiple_of(64)
    }

    /// An empty queue in `memory`, which is cleared; the device must not be using it. `None` if
    /// `size` is not a power of two of at most [`MAX_RING_SIZE`], or `memory` is not
    /// [`Self::bytes`] long and aligned to 16 bytes.
    pub fn new(
        memory: SharedSlice<'m>,
        size: u16,
        event_index: bool,
        interrupts: bool,
    ) -> Option<Self> {
        if !size.is_power_of_two() || size > MAX_RING_SIZE || !memory.pa().is_aligned(16) {
            return None;
        }
        let available_len = ENTRIES + usize::from(size) * 2 + 2;
        let used_len = ENTRIES + usize::from(size) * USED_ENTRY + 2;
        let mut queue = Self {
            descriptors: memory.subslice(0, Self::available_offset(size))?,
            available: memory.subslice(Self::available_offset(size), available_len)?,
            used: memory.subslice(Self::used_offset(size), used_len)?,
            size,
            event_index,
            interrupts: false,
            next_available: 0,
            published: 0,
            last_used: 0,
            seen_used: 0,
            used_event: 0,
        };
        memory.fill(0, Self::bytes(size), 0)?;
        queue.set_interrupts(interrupts);
        Some(queue)
    }

    /// Empties it: the device has been reset. Descriptors stay as they are.
    pub fn restart(&mut self) {
        for ring in [&self.available, &self.used] {
            ring.fill(0, ring.len(), 0);
        }
        (self.next_available, self.published) = (0, 0);
        (self.last_used, self.seen_used) = (0, 0);
        self.set_interrupts(self.interrupts);
    }

    /// Where it lies, for the transport.
    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            descriptors: self.descriptors.pa(),
            available: self.available.pa(),
            used: self.used.pa(),
        }
    }

    /// Entries.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table.
    #[inline(always)]
    pub const fn descriptors(&self) -> &SharedSlice<'m> {
        &self.descriptors
    }

    /// Changes length, flags and `next` of descriptor `index` and leaves its address. `None`, and
    /// no effect, if there is no such descriptor.
    #[inline(always)]
    pub fn set_attributes(&self, index: u16, attributes: u64) -> Option<()> {
        let descriptor = usize::from(index) * DESC_BYTES;
        self.descriptors.store_u64(descriptor + 8, attributes)
    }

    /// Puts the chain at `head` into the available ring; the device sees it after the next
    /// [`publish`](Self::publish). At most [`size`](Self::size) chains may be outstanding.
    #[inline(always)]
    pub fn offer(&mut self, head: u16) {
        let entry = usize::from(self.next_available & (self.size - 1));
        self.available.store_u16(ENTRIES + entry * 2, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Takes back what was offered and the device has not been shown.
    pub fn retract(&mut self) {
        self.next_available = self.published;
    }

    /// Shows the device what was offered. Whether it wants to be notified of it.
    #[inline(always)]
    pub fn publish(&mut self, order: &impl Registers) -> bool {
        let old = self.published;
        let new = self.next_available;
        if old == new {
            return false;
        }
        // Descriptors and entries before the index that covers them.
        order.order_dma_writes();
        self.available.store_u16(INDEX, new);
        self.published = new;
        // The index before the device's wish is read, or both sides could miss each other.
        order.order_dma();
        if self.event_index {
            let event = ENTRIES + usize::from(self.size) * USED_ENTRY;
            needs_event(self.used.load_u16(event).unwrap_or(old), new, old)
        } else {
            self.used.load_u16(FLAGS).unwrap_or(0) & USED_F_NO_NOTIFY == 0
        }
    }

    /// The `id` of the next chain the device has finished; an allegation the caller must check.
    /// What the device wrote before finishing it may be read afterwards.
    ///
    /// # Errors
    /// [`RingViolation`]: the device claims more than is outstanding.
    #[inline]
    pub fn take_used(&mut self, order: &impl Registers) -> Result<Option<u32>, RingViolation> {
        Ok(self.next_used(order)?.map(|element| self.used.load_u32(element).unwrap_or(u32::MAX)))
    }

    /// As [`Self::take_used`], with how many bytes the device says to have written: an allegation
    /// too.
    ///
    /// # Errors
    /// [`RingViolation`].
    #[inline]
    pub fn take_used_with_length(
        &mut self,
        order: &impl Registers,
    ) -> Result<Option<(u32, u32)>, RingViolation> {
        let element = self.next_used(order)?;
        let load = |place| self.used.load_u32(place).unwrap_or(u32::MAX);
        Ok(element.map(|element| (load(element), load(element + 4))))
    }

    /// Where in the used ring the next element is; it is taken.
    #[inline(always)]
    fn next_used(&mut self, order: &impl Registers) -> Result<Option<usize>, RingViolation> {
        if self.last_used == self.seen_used {
            if self.interrupts {
                // The wish for an interrupt before the look that finds nothing.
                order.order_dma();
            }
            let index = self.used.load_u16(INDEX).unwrap_or(self.last_used);
            if index == self.last_used {
                return Ok(None);
            }
            let outstanding = self.published.wrapping_sub(self.last_used);
            if index.wrapping_sub(self.last_used) > outstanding {
                return Err(RingViolation);
            }
            self.seen_used = index;
            // The index before the elements it covers, and what they announce.
            order.order_dma_reads();
        }
        let entry = usize::from(self.last_used & (self.size - 1));
        self.last_used = self.last_used.wrapping_add(1);
        if self.event_index {
            self.rearm();
        }
        Ok(Some(ENTRIES + entry * USED_ENTRY))
    }

    /// Keeps used_event ahead of the device (interrupts on), or out of its way (off).
    #[inline(always)]
    fn rearm(&mut self) {
        if self.interrupts {
            // Once a batch: an interrupt for what is already known helps nobody.
            if self.last_used == self.seen_used {
                self.write_used_event(self.last_used);
            }
        } else if self.last_used.wrapping_sub(self.used_event) > 1 << 15 {
            self.write_used_event(self.last_used.wrapping_sub(1));
        }
    }

    #[inline(always)]
    fn write_used_event(&mut self, index: u16) {
        self.available.store_u16(ENTRIES + usize::from(self.size) * 2, index);
        self.used_event = index;
    }

    /// Whether the device shall interrupt when it finishes a chain. With EVENT_IDX it does so
    /// once, for the first chain finished after [`take_used`](Self::take_used) found everything
    /// taken. Chains finished before the call may not interrupt: look once more.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        if self.event_index {
            // An index just passed comes up again only after 65,535 more chains.
            self.write_used_event(self.last_used.wrapping_sub(u16::from(!on)));
        } else {
            self.available.store_u16(FLAGS, if on { 0 } else { AVAIL_F_NO_INTERRUPT });
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event` (virtio 2.7.7 and 2.7.10), modulo 2^16.
#[inline(always)]
const fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
