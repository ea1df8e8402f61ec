//! virtio over MMIO (4.2): the register file, the status machine, and the only owner of a device's
//! queues.
//!
//! # Reads
//! No register read has a side effect: [`MmioTransport::read`] takes `&self`, and could be served
//! from a page image without an exit.
//!
//! # Reset
//! A reset must not be seen to be over while a back end may still touch the guest's memory, and
//! EL2 must not wait. So the store that resets (Status = 0, or QueueReady = 0 of a queue at work)
//! is answered [`WriteOutcome::Retry`] while requests are in flight: the guest executes it again,
//! taking its interrupts in between, until it is done. QueueReset needs no such thing; the driver
//! reads it back until it is 0 (2.6.1, 4.2.2.1).
//!
//! # Interrupts
//! Each event is one edge: [`MmioTransport::take_interrupt`] is true once for every batch of used
//! buffers the driver wants to hear of, and for every configuration change, whether or not the
//! bit in InterruptStatus was set already. So nothing is lost on an edge-triggered line whatever
//! order a driver works in: one that acknowledges only after it has looked at the rings gets
//! another edge for what came in between. For a line that the guest configures as level-sensitive
//! there is [`MmioTransport::interrupt_asserted`].

mod registers;
mod saved;

use crate::backend::clock::{Clock, Ticks};
use crate::memory::GuestMemory;

use super::device::{
    Adjustment, Context, DeviceType, Direction, Events, NextPoll, NotAdjusted, Progress,
    VirtioDevice,
};
use super::features::Features;
use super::histogram::Histogram;
use super::limiter::Limits;
use super::queue::{Queue, QueueError, QueueState};
use super::status::{STEPS, Status, StatusWrite};

/// Queues a device can have: those of a network device with four pairs, and its control queue.
pub const MAX_QUEUES: usize = 9;

/// Size of a device's MMIO region in bytes.
pub const REGION_SIZE: u64 = 0x1000;

/// InterruptStatus bit 0: the device has used buffers.
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: configuration or status has changed.
const CONFIG_CHANGE: u32 = 2;

/// What is to become of the guest's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum WriteOutcome {
    /// It is done: go on after it.
    Done,
    /// It cannot be done yet: let the guest execute it again, and poll meanwhile.
    Retry,
}

/// Whether the device has been told to let go of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// No.
    No,
    /// It has failed (DEVICE_NEEDS_RESET or FAILED), and has not let go yet.
    Quiescing,
    /// The driver resets it, and it has not let go yet.
    Resetting,
}

/// One virtio device behind its MMIO registers.
///
/// `'d` is the lifetime of the device model, `'m` that of guest memory.
pub struct MmioTransport<'d, 'm> {
    device: &'d mut (dyn VirtioDevice<'m> + 'd),
    memory: GuestMemory<'m>,
    /// The common features the device may be offered with.
    common: Features,
    /// What is offered.
    offered: Features,
    /// What the driver has accepted; frozen by FEATURES_OK.
    accepted: Features,
    /// Pages beyond [`Features`] of which the driver has accepted something: bit n is page n, and bit
    /// 31 all from there on.
    accepted_unknown: u32,
    device_features_page: u32,
    driver_features_page: u32,
    queue_select: u32,
    shared_memory_select: u32,
    status: Status,
    interrupt_status: u32,
    /// An edge that has not been taken.
    interrupt_edge: bool,
    generation: u32,
    queues: heapless::Vec<Queue<'m>, MAX_QUEUES>,
    stop: Stop,
    fault: Option<QueueError>,
    kicks: u64,
    interrupts: u64,
}

impl<'d, 'm> MmioTransport<'d, 'm> {
    /// A device, reset, that sees `memory`. Queues beyond [`MAX_QUEUES`] do not exist.
    pub fn new(device: &'d mut (dyn VirtioDevice<'m> + 'd), memory: GuestMemory<'m>) -> Self {
        let mut queues = heapless::Vec::new();
        for size in device.queue_max_sizes() {
            if queues.push(Queue::new(*size)).is_err() {
                break;
            }
        }
        let mut transport = Self {
            device,
            memory,
            common: Features::COMMON,
            offered: Features::empty(),
            accepted: Features::empty(),
            accepted_unknown: 0,
            device_features_page: 0,
            driver_features_page: 0,
            queue_select: 0,
            shared_memory_select: 0,
            status: Status::empty(),
            interrupt_status: 0,
            interrupt_edge: false,
            generation: 0,
            queues,
            stop: Stop::No,
            fault: None,
            kicks: 0,
            interrupts: 0,
        };
        transport.offer();
        transport
    }

    /// Offers only those of [`Features::COMMON`] that are in `common`, and VERSION_1.
    #[must_use]
    pub fn with_common_features(mut self, common: Features) -> Self {
        self.common = Features::COMMON & (common | Features::VERSION_1);
        self.offer();
        self
    }

    /// Offers queues of at most `max` entries. What the maximum is where neither the split ring nor
    /// a driver may like it (not a power of two, or 0: no queue at all) is the caller's to judge.
    #[must_use]
    pub fn with_max_queue_size(mut self, max: u16) -> Self {
        for queue in &mut self.queues {
            *queue = Queue::new(queue.max_size().min(max));
        }
        self
    }

    fn offer(&mut self) {
        self.offered = self.common | (self.device.offered_features() & Features::OF_DEVICE);
    }

    /// Collects completions, and works on what was left over: chains a busy back end did not take,
    /// or more than fit in a batch.
    pub fn poll(&mut self, now: Ticks) {
        match self.stop {
            Stop::No => {
                if !self.status.is_live() {
                    return;
                }
                self.poll_queue_resets(now);
                self.dispatch(now, |device, context| device.poll(context));
            }
            Stop::Quiescing => self.quiesce(now),
            Stop::Resetting => {
                if self.device.reset(now) == Progress::Done {
                    self.finish_reset();
                }
            }
        }
    }

    /// The back end has changed: the device looks at it again, and the driver is told if it makes a
    /// difference to it (a disk has grown).
    pub fn backend_changed(&mut self, now: Ticks) {
        self.dispatch_rarely(now, &mut |device, context| device.backend_changed(context));
    }

    /// True once for each event the driver wants to be interrupted for.
    #[inline]
    pub fn take_interrupt(&mut self) -> bool {
        let edge = core::mem::take(&mut self.interrupt_edge);
        self.interrupts += u64::from(edge);
        edge
    }

    /// Whether InterruptStatus is not zero: the level of the line, for a guest that has configured
    /// it as level-sensitive.
    #[inline]
    pub fn interrupt_asserted(&self) -> bool {
        self.interrupt_status != 0
    }

    /// Whether the device must be polled though the guest does nothing: requests are in flight,
    /// chains were left over, a reset is not over, or the device asks for it. Who can tell events
    /// and times apart asks [`Self::next_poll`].
    #[inline]
    pub fn has_work_in_flight(&self) -> bool {
        self.next_poll() != NextPoll::Idle
    }

    /// When to call [`Self::poll`] next though the guest does nothing.
    #[inline]
    pub fn next_poll(&self) -> NextPoll {
        let stopping = |queue: &Queue<'m>| matches!(queue.state(), QueueState::Stopping { .. });
        let left = |queue: &Queue<'m>| queue.ring_ref().is_some_and(|ring| ring.has_leftover());
        if self.stop != Stop::No || self.queues.iter().any(stopping) {
            return NextPoll::Soon;
        }
        if !self.status.is_live() {
            return NextPoll::Idle;
        }
        match self.device.next_poll() {
            // The device itself leaves them there.
            NextPoll::At(time) => NextPoll::At(time),
            _ if self.queues.iter().any(left) => NextPoll::Soon,
            next => next,
        }
    }

    /// Writes to QueueNotify since the device was made.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Events that [`Self::take_interrupt`] has told of since the device was made.
    pub fn interrupts(&self) -> u64 {
        self.interrupts
    }

    /// What kind of device it is.
    pub fn device_type(&self) -> DeviceType {
        self.device.device_type()
    }

    /// The device's counters; see [`VirtioDevice::statistics`].
    pub fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.device.statistics(visit);
    }

    /// The operator changes the device; see [`VirtioDevice::adjust`].
    ///
    /// # Errors
    /// [`NotAdjusted`]: nothing has changed.
    pub fn adjust(&mut self, change: Adjustment, clock: &impl Clock) -> Result<(), NotAdjusted> {
        let (now, frequency) = (clock.now(), clock.frequency());
        let mut result = Err(NotAdjusted::Unsupported);
        self.dispatch_rarely(now, &mut |device, context| {
            result = device.adjust(change, frequency, context);
        });
        result
    }

    /// What the device may do in a direction.
    pub fn limits(&self, direction: Direction) -> Limits {
        self.device.limits(direction)
    }

    /// How long the device's requests took, if it keeps count of that.
    pub fn latencies(&self) -> Option<&Histogram> {
        self.device.latencies()
    }

    /// The machine is reset, and the device with it. The same rule as for the driver's reset holds:
    /// [`WriteOutcome::Retry`] while guest memory may still be touched. Here that is also so for hardware that
    /// has been given up with a transfer under way: the driver may have its memory back, the next
    /// guest may not have it.
    pub fn reset_by_machine(&mut self, now: Ticks) -> WriteOutcome {
        match self.reset(now) {
            WriteOutcome::Done if !self.dma_stopped() => WriteOutcome::Retry,
            outcome => outcome,
        }
    }

    /// Whether the memory of requests that have come back is out of the hardware's reach.
    pub fn dma_stopped(&self) -> bool {
        self.device.dma_stopped()
    }

    /// Why DEVICE_NEEDS_RESET was set last; `None` if the device model refused to be activated, or
    /// nothing happened. For diagnosis.
    pub fn fault(&self) -> Option<QueueError> {
        self.fault
    }

    /// The status field.
    #[inline]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Calls the device, then does what is due for all that happened in the call at once.
    #[inline]
    fn dispatch(
        &mut self,
        now: Ticks,
        work: impl FnOnce(&mut (dyn VirtioDevice<'m> + 'd), &mut Context<'_, 'm>),
    ) {
        for queue in &mut self.queues {
            if let Some(ring) = queue.ring() {
                ring.begin_batch();
            }
        }
        let mut events = Events::default();
        let mut context = Context {
            queues: &mut self.queues,
            memory: &self.memory,
            features: self.accepted,
            now,
            events: &mut events,
        };
        work(self.device, &mut context);
        let mut used = false;
        for queue in &mut self.queues {
            if let Some(ring) = queue.ring() {
                used |= ring.publish();
            }
        }
        if used {
            self.interrupt(USED_BUFFER);
        }
        if events.config_changed {
            self.generation = self.generation.wrapping_add(1);
            if self.status.is_live() {
                self.interrupt(CONFIG_CHANGE);
            }
        }
        if events.fault.is_some() || events.failed {
            self.fault = events.fault;
            self.needs_reset(now);
        }
    }

    /// The same where it is rare. A device that is not live has no rings, and nobody to interrupt.
    #[cold]
    #[inline(never)]
    fn dispatch_rarely(
        &mut self,
        now: Ticks,
        work: &mut dyn FnMut(&mut (dyn VirtioDevice<'m> + 'd), &mut Context<'_, 'm>),
    ) {
        self.dispatch(now, work);
    }

    /// An event the driver is to hear of.
    #[inline]
    fn interrupt(&mut self, cause: u32) {
        self.interrupt_status |= cause;
        self.interrupt_edge = true;
    }

    /// The device goes no further until it is reset (2.1.2).
    fn needs_reset(&mut self, now: Ticks) {
        self.status |= Status::DEVICE_NEEDS_RESET;
        if self.status.contains(Status::DRIVER_OK) {
            self.interrupt(CONFIG_CHANGE);
        }
        self.quiesce(now);
    }

    /// Makes the device let go of the guest's memory; nothing is completed any more.
    fn quiesce(&mut self, now: Ticks) {
        for queue in &mut self.queues {
            queue.detach();
        }
        match self.device.reset(now) {
            Progress::Done => {
                self.stop = Stop::No;
                self.finish_queue_resets();
            }
            Progress::Pending => self.stop = Stop::Quiescing,
        }
    }

    /// Status = 0.
    fn reset(&mut self, now: Ticks) -> WriteOutcome {
        match self.device.reset(now) {
            Progress::Done => {
                self.finish_reset();
                WriteOutcome::Done
            }
            Progress::Pending => {
                self.stop = Stop::Resetting;
                WriteOutcome::Retry
            }
        }
    }

    fn finish_reset(&mut self) {
        self.status = Status::empty();
        self.accepted = Features::empty();
        self.accepted_unknown = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.queue_select = 0;
        self.shared_memory_select = 0;
        self.interrupt_status = 0;
        self.interrupt_edge = false;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.stop = Stop::No;
        // The device may have taken the occasion to change its configuration.
        self.generation = self.generation.wrapping_add(1);
        self.offer();
    }

    /// A write to Status other than zero: takes the steps it asks for, as far as they are legal.
    fn advance(&mut self, value: u32, now: Ticks) {
        let StatusWrite::Set(bits) = self.status.write(value) else {
            return;
        };
        for step in STEPS.iter().filter(|step| bits.contains(step.bit)) {
            if !self.status.allows(step) {
                return;
            }
            if step.bit == Status::FEATURES_OK && !self.features_are_good() {
                return;
            }
            self.status |= step.bit;
            if step.bit == Status::FEATURES_OK {
                self.device.negotiated(self.accepted);
            } else if step.bit == Status::DRIVER_OK {
                self.activate(now);
            } else if step.bit == Status::FAILED {
                self.quiesce(now);
            }
        }
    }

    /// Whether the driver accepted what the device can work with (2.2.2, 6.2).
    fn features_are_good(&self) -> bool {
        self.accepted_unknown == 0
            && self.offered.contains(self.accepted)
            && self.accepted.contains(Features::VERSION_1)
            && self.device.check_features(self.accepted)
    }

    /// DRIVER_OK: the queues are checked, and the device goes live.
    fn activate(&mut self, now: Ticks) {
        self.fault = None;
        for queue in &mut self.queues {
            if let Err(error) = queue.start(self.accepted, &self.memory) {
                self.fault = Some(error);
            }
        }
        if self.fault.is_some() || self.device.activate(self.accepted).is_err() {
            self.needs_reset(now);
            return;
        }
        self.dispatch_rarely(now, &mut |device, context| {
            for index in 0..MAX_QUEUES as u16 {
                if context.queue(index).is_some() {
                    device.queue_enabled(index, context);
                }
            }
        });
    }

    /// The selected queue, if it exists.
    fn selected(&self) -> Option<&Queue<'m>> {
        self.queues.get(self.queue_select as usize)
    }

    /// Changes the selected queue, if it exists.
    fn with_selected(&mut self, change: impl FnOnce(&mut Queue<'m>)) {
        if let Some(queue) = self.queues.get_mut(self.queue_select as usize) {
            change(queue);
        }
    }

    /// QueueReady = 1.
    fn enable_queue(&mut self, now: Ticks) {
        let live = self.status.is_live();
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else {
            return;
        };
        if queue.state() != QueueState::Disabled {
            return;
        }
        queue.set_ready();
        if !live {
            return;
        }
        if let Err(error) = queue.start(self.accepted, &self.memory) {
            self.fault = Some(error);
            self.needs_reset(now);
            return;
        }
        // It exists: the index is below MAX_QUEUES.
        let index = self.queue_select as u16;
        self.dispatch_rarely(now, &mut |device, context| device.queue_enabled(index, context));
    }

    /// QueueReady = 0, or QueueReset = 1: the queue stops; over when the device has let go of what
    /// came out of it.
    fn stop_queue(&mut self, by_reset: bool, now: Ticks) -> WriteOutcome {
        let stopping = self.stop != Stop::No;
        let index = self.queue_select as usize;
        let Some(queue) = self.queues.get_mut(index) else {
            return WriteOutcome::Done;
        };
        if queue.state() == QueueState::Disabled {
            return WriteOutcome::Done;
        }
        // A device that is stopping as a whole lets go of this queue too.
        let progress =
            if stopping { Progress::Pending } else { self.device.reset_queue(index as u16, now) };
        match progress {
            Progress::Done => {
                queue.reset();
                WriteOutcome::Done
            }
            Progress::Pending => {
                queue.stop(by_reset);
                WriteOutcome::Retry
            }
        }
    }

    fn poll_queue_resets(&mut self, now: Ticks) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if matches!(queue.state(), QueueState::Stopping { .. })
                && self.device.reset_queue(index as u16, now) == Progress::Done
            {
                queue.reset();
            }
        }
    }

    fn finish_queue_resets(&mut self) {
        for queue in &mut self.queues {
            if matches!(queue.state(), QueueState::Stopping { .. }) {
                queue.reset();
            }
        }
    }

    /// QueueNotify: the queue's index; with NOTIFICATION_DATA a place in its ring above it (4.2.3.3,
    /// 2.9). A queue that does not exist or is not enabled has nothing to say.
    #[inline]
    fn notify(&mut self, value: u32, now: Ticks) {
        let with_data = self.accepted.contains(Features::NOTIFICATION_DATA);
        let (index, position) = if with_data { (value & 0xFFFF, value >> 16) } else { (value, 0) };
        let Ok(index) = u16::try_from(index) else {
            return;
        };
        let queue = self.queues.get(usize::from(index));
        let Some(ring) = queue.and_then(Queue::ring_ref) else {
            return;
        };
        if !self.status.is_live() || self.stop != Stop::No {
            return;
        }
        if with_data && !ring.accepts_notification(position as u16) {
            self.fault = Some(QueueError::NotificationData);
            self.needs_reset(now);
            return;
        }
        self.dispatch(now, |device, context| device.queue_notified(index, context));
    }
}

#[cfg(test)]
mod tests;
