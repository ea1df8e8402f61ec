//! The contract of a device model: what a new device's author writes, and what is done for them.
//!
//! A device model is a state machine that is called and returns. It owns no thread, no lock and no
//! timer, and it waits for nothing: what takes time is handed to a back end, and collected in
//! [`VirtioDevice::poll`]. The transport owns everything that is the same for all devices -
//! status, negotiation, queues, interrupts - and calls the device with a [`Context`].
//!
//! `examples/device.rs` is a whole device in a hundred lines, with a driver for it.
//!
//! # A device's life
//!
//! ```text
//!             negotiated      activate, queue_enabled...      queue_notified, poll
//!   (reset) --FEATURES_OK--> . --------DRIVER_OK--------> live ------------------->
//!      ^                                                   |  reset_queue, queue_enabled
//!      +---------------------- reset ----------------------+
//! ```
//!
//! | when | what is called |
//! |---|---|
//! | the operator changes it | [`adjust`](VirtioDevice::adjust) |
//! | at any time | [`offered_features`](VirtioDevice::offered_features), [`read_config`](VirtioDevice::read_config), [`shared_memory`](VirtioDevice::shared_memory), [`statistics`](VirtioDevice::statistics) |
//! | the driver writes configuration | [`write_config`](VirtioDevice::write_config) |
//! | the machine says that the back end has changed | [`backend_changed`](VirtioDevice::backend_changed) |
//! | FEATURES_OK | [`check_features`](VirtioDevice::check_features), [`negotiated`](VirtioDevice::negotiated) |
//! | DRIVER_OK | [`activate`](VirtioDevice::activate), then [`queue_enabled`](VirtioDevice::queue_enabled) for each queue |
//! | a queue is enabled later | [`queue_enabled`](VirtioDevice::queue_enabled) |
//! | the driver rings | [`queue_notified`](VirtioDevice::queue_notified) |
//! | back ends may have finished | [`poll`](VirtioDevice::poll), as [`next_poll`](VirtioDevice::next_poll) asks |
//! | a queue is disabled or reset | [`reset_queue`](VirtioDevice::reset_queue) |
//! | Status = 0, FAILED, an error | [`reset`](VirtioDevice::reset) |
//! | the machine is saved or restored | [`put_back_waiting`](VirtioDevice::put_back_waiting), [`save`](VirtioDevice::save), [`restore`](VirtioDevice::restore) |
//!
//! Only the first two and `queue_notified` have no useful default.
//!
//! # What the transport guarantees
//! - [`VirtioDevice::activate`] comes before any queue is there, with the agreed features.
//! - Chains come out of [`ActiveQueue::pop`] validated whole: in RAM, readable before writable,
//!   no loop. A chain or ring that is not so never reaches the device; the device is marked
//!   DEVICE_NEEDS_RESET, and `pop` gives `None` from then on.
//! - A batch is bounded: one call pops at most as many chains as the queue holds, and the rest
//!   comes with the next [`VirtioDevice::poll`].
//! - All completions of one call become visible at once, with one interrupt decision.
//! - Calls do not overlap: a device is called by one core at a time.
//!
//! # What the device guarantees
//! - Validation before effect: a request is judged completely before any of it is carried out.
//! - Each chain popped is completed once, or put back, or forgotten by a reset.
//! - Configuration space changes only in calls that have a [`Context`], which say so with
//!   [`Context::config_changed`], and in [`VirtioDevice::reset`] and
//!   [`VirtioDevice::negotiated`].
//! - After [`VirtioDevice::reset`] has returned [`Progress::Done`] nothing of it, back ends
//!   included, touches guest memory.
//! - No call waits, allocates or panics, whatever the driver has written.
//!
//! # The smallest device
//!
//! ```
//! use sparkler::virtio::queue::ChainBuffer;
//! use sparkler::virtio::{Context, DeviceType, VirtioDevice};
//!
//! /// Fills every buffer with zeros: an entropy device for the easily satisfied.
//! struct Zeros<'m> {
//!     chain: ChainBuffer<'m>,
//! }
//!
//! impl<'m> VirtioDevice<'m> for Zeros<'m> {
//!     fn device_type(&self) -> DeviceType {
//!         DeviceType::ENTROPY
//!     }
//!     fn queue_max_sizes(&self) -> &[u16] {
//!         &[64]
//!     }
//!     fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
//!         let Some(mut queue) = context.queue(index) else { return };
//!         while let Some(mut chain) = queue.pop(&mut self.chain) {
//!             while chain.writable.write_bytes(&[0]).is_some() {}
//!             queue.complete(chain.head, chain.writable.written() as u32);
//!         }
//!     }
//!     /// The rest of a batch that was larger than the queue.
//!     fn poll(&mut self, context: &mut Context<'_, 'm>) {
//!         self.queue_notified(0, context);
//!     }
//! }
//! ```

use super::Features;
use super::histogram::Histogram;
use super::limiter::Limits;
use super::queue::{Chain, ChainBuffer, Head, Queue, QueueError, Ring};
use super::state::{StateError, StateReader, StateWriter};
use crate::backend::clock::{Frequency, Ticks};
use crate::memory::{GuestMemory, Ipa};

/// A device type (5): the value of the DeviceID register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType(pub u32);

impl DeviceType {
    /// Network device (5.1).
    pub const NETWORK: DeviceType = DeviceType(1);
    /// Block device (5.2).
    pub const BLOCK: DeviceType = DeviceType(2);
    /// Console (5.3).
    pub const CONSOLE: DeviceType = DeviceType(3);
    /// Entropy device (5.4).
    pub const ENTROPY: DeviceType = DeviceType(4);
    /// Traditional memory balloon (5.5).
    pub const BALLOON: DeviceType = DeviceType(5);
    /// Socket device (5.10).
    pub const SOCKET: DeviceType = DeviceType(19);
    /// Memory device (5.15).
    pub const MEMORY: DeviceType = DeviceType(24);
    /// PMEM device (5.19).
    pub const PMEM: DeviceType = DeviceType(27);
}

/// Whether something that may take time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It is over.
    Done,
    /// Not yet; call again.
    Pending,
}

/// When a device wants [`VirtioDevice::poll`] to be called though the guest does nothing. In the
/// order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextPoll {
    /// There is nothing to look for.
    Idle,
    /// When something may have come for it: an interrupt of the board's device behind it, say.
    OnEvent,
    /// At this time, or soon after, and on events.
    At(Ticks),
    /// At every poll point, before long: requests are in flight.
    Soon,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the guest: reads, frames received.
    In,
    /// From the guest: writes, frames sent.
    Out,
}

/// What an operator changes of a device while its driver uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// How much it may do in one direction.
    Limit(Direction, Limits),
    /// Its link to the network is up, or down.
    Link(bool),
    /// Its capacity in sectors; no more than the disk behind it has.
    Capacity(u64),
    /// Its medium: that of this number, or none.
    Medium(Option<u8>),
    /// Its terminal's columns and rows.
    Size([u16; 2]),
}

/// Why a device is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdjusted {
    /// It has no such thing.
    Unsupported,
    /// That is more than it can be, or less.
    OutOfRange,
    /// It has a medium already.
    Occupied,
}

/// The device cannot work as set up. The driver sees DEVICE_NEEDS_RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivateError;

/// A shared memory region (2.10), as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryRegion {
    /// First byte.
    pub base: Ipa,
    /// Length in bytes.
    pub len: u64,
}

/// A device model. `'m` is the lifetime of guest memory. Whichever core runs one of the guest's
/// vCPUs calls it, one at a time.
pub trait VirtioDevice<'m>: Send {
    /// The device type; constant.
    fn device_type(&self) -> DeviceType;

    /// Maximum sizes of the queues, by index; constant. Zero means that there is no such queue.
    fn queue_max_sizes(&self) -> &[u16];

    /// The features of this device type that are offered, out of [`Features::OF_DEVICE`]; the
    /// transport adds those it implements itself. May change in [`Self::reset`] only.
    fn offered_features(&self) -> Features {
        Features::empty()
    }

    /// Whether the device can work with `accepted`, a subset of what was offered. `false` keeps
    /// FEATURES_OK from being set (2.2.2).
    fn check_features(&self, accepted: Features) -> bool {
        let _ = accepted;
        true
    }

    /// FEATURES_OK is set: from now on configuration space is as `accepted` says. Not called again
    /// before the next reset.
    fn negotiated(&mut self, accepted: Features) {
        let _ = accepted;
    }

    /// Reads configuration space: `data` is zero, and stays so where the device has no field.
    /// Has no side effect.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// The driver writes configuration space, at whatever status; the context has queues only while
    /// the device is live. What is not writable is ignored. If other fields change with the one
    /// written, [`Context::config_changed`] tells the driver.
    fn write_config(&mut self, offset: usize, data: &[u8], context: &mut Context<'_, 'm>) {
        let _ = (offset, data, context);
    }

    /// The back end is not what it was: what configuration space says of it, a disk's capacity for
    /// one, is to be read anew, and [`Context::config_changed`] tells the driver of what changed. The
    /// context has queues only while the device is live.
    fn backend_changed(&mut self, context: &mut Context<'_, 'm>) {
        let _ = context;
    }

    /// The shared memory region `id`, if there is one. Not for what controls the device, nor for
    /// streams of data (2.10.2).
    fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
        let _ = id;
        None
    }

    /// The driver has set DRIVER_OK. Called once after each reset.
    ///
    /// # Errors
    /// If the device cannot work like this.
    fn activate(&mut self, accepted: Features) -> Result<(), ActivateError> {
        let _ = accepted;
        Ok(())
    }

    /// Queue `index` can be used from now on: after [`Self::activate`], or later if the driver
    /// enables it later, or again after [`Self::reset_queue`].
    fn queue_enabled(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let _ = (index, context);
    }

    /// The driver says that there is something new in queue `index`.
    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>);

    /// Collects what back ends have finished, and works on what was left over
    /// ([`ActiveQueue::has_leftover`]). Called at poll points while the device is live, at least
    /// when [`Self::next_poll`] asks for it.
    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let _ = context;
    }

    /// Requests handed to a back end that have not come back.
    fn in_flight(&self) -> usize {
        0
    }

    /// Whether the memory of requests that have come back is out of the back ends' reach. False for
    /// hardware that has failed, and does not complete its reset.
    fn dma_stopped(&self) -> bool {
        true
    }

    /// When to poll next. Asked after every call. Leftovers in the queues are the transport's to
    /// think of, but while the answer is [`NextPoll::At`]: then the device leaves them there until
    /// that time.
    fn next_poll(&self) -> NextPoll {
        if self.in_flight() == 0 { NextPoll::Idle } else { NextPoll::Soon }
    }

    /// Back to the state before the driver came; requests in flight are forgotten, not completed.
    /// While a back end may still touch guest memory the answer is [`Progress::Pending`], and the
    /// call is repeated. Must not wait.
    fn reset(&mut self, now: Ticks) -> Progress {
        let _ = now;
        Progress::Done
    }

    /// As [`Self::reset`], for what came out of queue `index` only (2.6.1).
    fn reset_queue(&mut self, index: u16, now: Ticks) -> Progress {
        let _ = (index, now);
        Progress::Done
    }

    /// The operator changes something, at whatever status; the context has queues only while the
    /// device is live. The driver is told by [`Context::config_changed`] of what concerns it.
    ///
    /// # Errors
    /// [`NotAdjusted`]: nothing has changed.
    fn adjust(
        &mut self,
        change: Adjustment,
        frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        let _ = (change, frequency, context);
        Err(NotAdjusted::Unsupported)
    }

    /// How long requests took, if it keeps count of that.
    fn latencies(&self) -> Option<&Histogram> {
        None
    }

    /// What it may do in a direction; see [`Adjustment::Limit`].
    fn limits(&self, direction: Direction) -> Limits {
        let _ = direction;
        Limits::default()
    }

    /// Counters, for diagnosis: `visit` gets a name and a value for each. Names are constant,
    /// lower case, with underscores; counters count from when the device was made, and wrap.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let _ = visit;
    }

    /// Puts back the chains that wait for something to happen, buffers to receive into say, so that
    /// the device can be saved ([`MmioTransport::prepare_save`](super::MmioTransport::prepare_save)).
    /// The next [`Self::poll`] takes them again.
    fn put_back_waiting(&mut self, context: &mut Context<'_, 'm>) {
        let _ = context;
    }

    /// Writes down what [`Self::restore`] needs, beyond features and queues, which the transport
    /// knows ([`MmioTransport::save`](super::MmioTransport::save)), and the back end's own. Called
    /// only with nothing in flight, and no chain popped that is not completed.
    ///
    /// # Errors
    /// If there is not enough room.
    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        let _ = state;
        Ok(())
    }

    /// Takes on what [`Self::save`] of such a device wrote. Called on a device that is reset, with
    /// the features that were agreed (none if it had not come to that), instead of those calls of
    /// [`Self::negotiated`], [`Self::activate`] and [`Self::queue_enabled`] that the other device
    /// has had. A [`Self::poll`] follows if it was live, with leftovers in all its queues. The state
    /// is not to be trusted.
    ///
    /// # Errors
    /// If it is not such a state; the device is then as after [`Self::reset`].
    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        let _ = (accepted, state);
        Ok(())
    }
}

/// What happened during a call, for the transport.
#[derive(Default)]
pub(super) struct Events {
    /// The driver broke a queue.
    pub(super) fault: Option<QueueError>,
    /// Configuration space changed.
    pub(super) config_changed: bool,
    /// The device cannot go on.
    pub(super) failed: bool,
}

/// What a device may use during a call.
pub struct Context<'a, 'm> {
    pub(super) queues: &'a mut [Queue<'m>],
    pub(super) memory: &'a GuestMemory<'m>,
    pub(super) features: Features,
    pub(super) now: Ticks,
    pub(super) events: &'a mut Events,
}

impl<'m> Context<'_, 'm> {
    /// The present time.
    #[inline]
    pub fn now(&self) -> Ticks {
        self.now
    }

    /// The agreed features.
    #[inline]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Queue `index`, if the driver has enabled it.
    #[inline(always)]
    pub fn queue(&mut self, index: u16) -> Option<ActiveQueue<'_, 'm>> {
        let ring = self.queues.get_mut(usize::from(index))?.ring()?;
        Some(ActiveQueue { ring, memory: self.memory, fault: &mut self.events.fault })
    }

    /// Configuration space has changed: the generation moves, and the driver is told.
    pub fn config_changed(&mut self) {
        self.events.config_changed = true;
    }

    /// The device cannot go on, through no fault of a queue: DEVICE_NEEDS_RESET (2.1.2).
    pub fn fail(&mut self) {
        self.events.failed = true;
    }
}

/// A queue during a call.
pub struct ActiveQueue<'a, 'm> {
    ring: &'a mut Ring<'m>,
    memory: &'a GuestMemory<'m>,
    fault: &'a mut Option<QueueError>,
}

impl<'m> ActiveQueue<'_, 'm> {
    /// The next chain, its segments in `buffer`. `None` if there is none now.
    #[inline]
    pub fn pop<'c>(&mut self, buffer: &'c mut ChainBuffer<'m>) -> Option<Chain<'c, 'm>> {
        self.pop_inline(buffer)
    }

    /// As [`Self::pop`], for the loop that a device spends its time in: 2 KiB of code each time.
    #[inline(always)]
    pub fn pop_inline<'c>(&mut self, buffer: &'c mut ChainBuffer<'m>) -> Option<Chain<'c, 'm>> {
        if self.fault.is_some() {
            return None;
        }
        match self.ring.pop(self.memory, buffer) {
            Ok(chain) => chain,
            Err(error) => {
                *self.fault = Some(error);
                None
            }
        }
    }

    /// As [`Self::pop`], for a device that does not do so often: a call, not a copy of it.
    #[inline(never)]
    pub fn pop_rarely<'c>(&mut self, buffer: &'c mut ChainBuffer<'m>) -> Option<Chain<'c, 'm>> {
        self.pop(buffer)
    }

    /// As [`Self::complete`], likewise.
    #[inline(never)]
    pub fn complete_rarely(&mut self, head: Head, written: u32) {
        self.complete(head, written);
    }

    /// Leaves the chain popped last, `head`, for later; nothing may have been done with it. Then the
    /// one before it may be left, and so on.
    #[inline]
    pub fn put_back(&mut self, head: Head) {
        self.ring.put_back(head);
    }

    /// As [`Self::put_back`], for a device whose back end tells when there is room: no leftover, so
    /// that nobody polls for the chain before that.
    #[inline]
    pub fn park(&mut self, head: Head) {
        self.ring.park(head);
    }

    /// Gives a chain back to the driver. `written` bytes were written, without a gap, from the
    /// beginning of its writable part (2.7.8.2: fewer is allowed, more is not).
    #[inline(always)]
    pub fn complete(&mut self, head: Head, written: u32) {
        self.ring.complete(head, written);
    }

    /// The driver has broken the protocol so that no answer is possible: DEVICE_NEEDS_RESET.
    pub fn fail(&mut self, error: QueueError) {
        self.fault.get_or_insert(error);
    }

    /// Whether chains wait that no notification will announce.
    #[inline]
    pub fn has_leftover(&self) -> bool {
        self.ring.has_leftover()
    }

    /// Asks the driver to notify of new chains (the default), or not to because the device looks
    /// anyway.
    pub fn set_notifications(&mut self, wanted: bool) {
        self.ring.set_notifications(wanted);
    }
}
