//! Virtqueues (2.6): the registers of one queue, and its ring once it is enabled.
//!
//! A queue's size and areas are checked once, when the device goes live or the queue is enabled
//! later; from then on the ring is memory that no look-up is needed for.

pub mod chain;
mod packed;
mod saved;
mod split;

pub use chain::{Chain, ChainBuffer, Head};
pub(super) use saved::SavedQueue;

use core::fmt;

use crate::memory::{GuestMemory, GuestMemoryError, Ipa, SharedSlice};
use crate::virtio::Features;
use packed::PackedRing;
use split::SplitRing;

/// Largest size a queue can have (2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Why a queue cannot go on; always the driver's fault, and answered with DEVICE_NEEDS_RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The size is zero, above the maximum, or not a power of two where it must be.
    Size,
    /// An area does not have the alignment its kind needs.
    Alignment,
    /// An area is not wholly RAM.
    Area(GuestMemoryError),
    /// Two areas overlap.
    Overlap,
    /// A ring cannot be accessed as naturally aligned words.
    Inaccessible,
    /// More is announced as available than the ring can hold.
    AvailableIndex,
    /// A list of a packed ring goes on to a descriptor that is not available.
    NotAvailable,
    /// A descriptor index is outside the table.
    DescriptorIndex,
    /// More descriptors than a chain can have (a loop, perhaps), or more than 4 GiB.
    ChainTooLong,
    /// A readable buffer follows a writable one.
    ReadableAfterWritable,
    /// An indirect table that is nested, chained on, empty, of broken length, or not negotiated.
    Indirect,
    /// A buffer is not wholly RAM.
    Buffer(GuestMemoryError),
    /// A notification names a place that the ring does not have (2.9).
    NotificationData,
    /// A request has no room for the answer its device type must give.
    NoRoomForStatus,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "a queue size that cannot be",
            Self::Alignment => "a queue area that is not aligned",
            Self::Area(_) => "a queue area outside RAM",
            Self::Overlap => "queue areas that overlap",
            Self::Inaccessible => "a ring at an odd address",
            Self::AvailableIndex => "more available than the ring holds",
            Self::NotAvailable => "a list that goes on where nothing is available",
            Self::DescriptorIndex => "a descriptor outside the table",
            Self::ChainTooLong => "a chain that loops or is too long",
            Self::ReadableAfterWritable => "a readable buffer after a writable one",
            Self::Indirect => "a broken indirect table",
            Self::Buffer(_) => "a buffer outside RAM",
            Self::NotificationData => "a notification of no place in the ring",
            Self::NoRoomForStatus => "a request without room for its answer",
        })
    }
}

/// Guest addresses of a queue's three areas, as the driver wrote them: allegations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// Descriptor area: the descriptor table, or the packed ring.
    pub descriptor: u64,
    /// Driver area: the available ring, or the driver event suppression structure.
    pub driver: u64,
    /// Device area: the used ring, or the device event suppression structure.
    pub device: u64,
}

impl Areas {
    /// Checks the areas against alignments and lengths in bytes, and resolves them.
    fn resolve<'m>(
        &self,
        alignments: [u64; 3],
        lengths: [usize; 3],
        memory: &GuestMemory<'m>,
    ) -> Result<[SharedSlice<'m>; 3], QueueError> {
        let addresses = [self.descriptor, self.driver, self.device];
        let area = |address: u64, alignment: u64, len: usize| {
            let ipa = Ipa::new(address);
            if !ipa.is_aligned(alignment) {
                return Err(QueueError::Alignment);
            }
            let area = memory.slice(ipa, len).map_err(QueueError::Area)?;
            // Ring entries are words of at most 8 bytes; where EL2 or a host maps the memory, they
            // must be as aligned as where the guest sees them.
            let accessible = if alignment >= 8 {
                area.load_u64(0).is_some()
            } else if alignment >= 4 {
                area.load_u32(0).is_some()
            } else {
                area.load_u16(0).is_some()
            };
            if accessible { Ok((address, area)) } else { Err(QueueError::Inaccessible) }
        };
        let [a, b, c] = addresses;
        let [align_a, align_b, align_c] = alignments;
        let [len_a, len_b, len_c] = lengths;
        let a = area(a, align_a, len_a)?;
        let b = area(b, align_b, len_b)?;
        let c = area(c, align_c, len_c)?;
        // No overflow: each is a range of RAM.
        let disjoint = |x: &(u64, SharedSlice<'m>), y: &(u64, SharedSlice<'m>)| {
            x.0 + x.1.len() as u64 <= y.0 || y.0 + y.1.len() as u64 <= x.0
        };
        if !(disjoint(&a, &b) && disjoint(&b, &c) && disjoint(&a, &c)) {
            return Err(QueueError::Overlap);
        }
        Ok([a.1, b.1, c.1])
    }
}

/// The ring of an enabled queue, in the negotiated layout.
enum Layout<'m> {
    Split(SplitRing<'m>),
    Packed(PackedRing<'m>),
}

/// Calls a method of whichever ring it is; the choice costs a predicted branch, not a dyn call.
macro_rules! on_ring {
    ($layout:expr, $ring:ident => $call:expr) => {
        match $layout {
            Layout::Split($ring) => $call,
            Layout::Packed($ring) => $call,
        }
    };
}

/// An enabled queue: what the device works on.
pub struct Ring<'m>(Layout<'m>);

impl<'m> Ring<'m> {
    /// Number of entries.
    #[inline]
    pub fn size(&self) -> u16 {
        on_ring!(&self.0, ring => ring.size())
    }

    /// Takes the next chain, validated whole, into `buffer`. `None` if there is none, or the batch
    /// has had as many as the queue holds.
    ///
    /// # Errors
    /// If the chain or the ring is not what the specification allows. The queue is then of no more
    /// use.
    #[inline(always)]
    pub fn pop<'c>(
        &mut self,
        memory: &GuestMemory<'m>,
        buffer: &'c mut ChainBuffer<'m>,
    ) -> Result<Option<Chain<'c, 'm>>, QueueError> {
        on_ring!(&mut self.0, ring => ring.pop(memory, buffer))
    }

    /// Undoes the last [`Self::pop`], which gave `head`; nothing may have been popped or done since.
    #[inline]
    pub fn put_back(&mut self, head: Head) {
        on_ring!(&mut self.0, ring => ring.put_back(head))
    }

    /// As [`Self::put_back`], but nobody is to look for the chain before the device does.
    #[inline]
    pub fn park(&mut self, head: Head) {
        on_ring!(&mut self.0, ring => ring.park(head))
    }

    /// Gives a chain back, `written` bytes of which were written from the start of its writable
    /// part. The driver sees it after [`Self::publish`].
    #[inline]
    pub fn complete(&mut self, head: Head, written: u32) {
        on_ring!(&mut self.0, ring => ring.complete(head, written))
    }

    /// Shows the driver all completions since the last call. `true` if it wants an interrupt.
    #[inline]
    pub fn publish(&mut self) -> bool {
        on_ring!(&mut self.0, ring => ring.publish())
    }

    /// Allows as many chains to be popped as the queue holds.
    #[inline(always)]
    pub fn begin_batch(&mut self) {
        on_ring!(&mut self.0, ring => ring.begin_batch())
    }

    /// Whether chains are waiting that no notification will announce: put back, or left when a
    /// batch was used up.
    #[inline]
    pub fn has_leftover(&self) -> bool {
        on_ring!(&self.0, ring => ring.leftover())
    }

    /// Chains popped and not yet completed; in a packed ring, the descriptors that they take up.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        on_ring!(&self.0, ring => ring.outstanding())
    }

    /// Whether a notification may carry `position` (2.9): where the driver will put the next entry.
    ///
    /// No more can be asked of it. A notification may be late: by the time it comes, another core
    /// may have added more, and the device may have taken all of it. So what is in the ring is
    /// found there, and not in the notification.
    #[inline]
    pub fn accepts_notification(&self, position: u16) -> bool {
        match &self.0 {
            // An index that counts on and wraps at 2^16.
            Layout::Split(_) => true,
            // An offset in the ring, and the wrap counter above it.
            Layout::Packed(ring) => position & 0x7FFF < ring.size(),
        }
    }

    /// Asks the driver to notify of new chains (the default), or not to.
    pub fn set_notifications(&mut self, wanted: bool) {
        on_ring!(&mut self.0, ring => ring.set_notifications(wanted))
    }
}

/// Where a queue is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// QueueReady is 0.
    Disabled,
    /// QueueReady is 1; the ring exists once the device is live.
    Ready,
    /// The queue is stopped, but the device still works on requests of it.
    Stopping {
        /// The driver used QueueReset, and may read it to see the end.
        by_reset: bool,
    },
}

/// The registers of one queue (4.2.2), and its ring.
pub struct Queue<'m> {
    max_size: u16,
    /// QueueSize, as written: possibly nonsense.
    size: u32,
    areas: Areas,
    state: QueueState,
    ring: Option<Ring<'m>>,
}

impl<'m> Queue<'m> {
    /// A disabled queue of up to `max_size` entries, which is cut to [`MAX_QUEUE_SIZE`].
    pub const fn new(max_size: u16) -> Self {
        let max_size = if max_size > MAX_QUEUE_SIZE { MAX_QUEUE_SIZE } else { max_size };
        let areas = Areas { descriptor: 0, driver: 0, device: 0 };
        let state = QueueState::Disabled;
        Self { max_size, size: max_size as u32, areas, state, ring: None }
    }

    /// QueueSizeMax.
    #[inline]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The state of the queue.
    #[inline]
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// The ring, if the queue is enabled and the device live.
    #[inline]
    pub fn ring(&mut self) -> Option<&mut Ring<'m>> {
        self.ring.as_mut()
    }

    /// As [`Self::ring`], to look at.
    #[inline]
    pub fn ring_ref(&self) -> Option<&Ring<'m>> {
        self.ring.as_ref()
    }

    /// Whether size and areas may be written: not from QueueReady = 1 on (4.2.2.2).
    pub(super) fn is_configurable(&self) -> bool {
        self.state == QueueState::Disabled
    }

    pub(super) fn set_size(&mut self, size: u32) {
        if self.is_configurable() {
            self.size = size;
        }
    }

    pub(super) fn set_areas(&mut self, change: impl FnOnce(&mut Areas)) {
        if self.is_configurable() {
            change(&mut self.areas);
        }
    }

    /// QueueReady = 1. Nothing is checked before [`Self::start`].
    pub(super) fn set_ready(&mut self) {
        if self.state == QueueState::Disabled {
            self.state = QueueState::Ready;
        }
    }

    /// Checks what the driver has set up, and makes the ring. Nothing to do if the queue is not
    /// ready.
    pub(super) fn start(
        &mut self,
        features: Features,
        memory: &GuestMemory<'m>,
    ) -> Result<(), QueueError> {
        if self.state != QueueState::Ready || self.ring.is_some() {
            return Ok(());
        }
        let size = u16::try_from(self.size).map_err(|_| QueueError::Size)?;
        let packed = features.contains(Features::RING_PACKED);
        // Only a split queue's size is a power of two (2.7, 2.8.10.1).
        if size == 0 || size > self.max_size || !(packed || size.is_power_of_two()) {
            return Err(QueueError::Size);
        }
        self.ring = Some(Ring(if packed {
            Layout::Packed(PackedRing::new(size, &self.areas, features, memory)?)
        } else {
            Layout::Split(SplitRing::new(size, &self.areas, features, memory)?)
        }));
        Ok(())
    }

    /// Takes the ring away from a device that goes no further.
    pub(super) fn detach(&mut self) {
        self.ring = None;
    }

    /// Takes the ring away from the device; [`Self::reset`] once it has let go of the requests.
    pub(super) fn stop(&mut self, by_reset: bool) {
        self.ring = None;
        self.state = QueueState::Stopping { by_reset };
    }

    /// Back to what a device reset leaves.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }
}

/// Whether an index that went from `old` to `new` passed the entry `event` (2.7.7.2).
#[inline(always)]
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
