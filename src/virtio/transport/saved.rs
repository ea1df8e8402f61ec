//! A whole device's state as bytes: registers, queues, and the device model's own.
//!
//! The guest must not run meanwhile, and its memory, where the rings are, goes with the state. What
//! comes back may have been anywhere: it is checked as the writes of a driver are that would lead
//! there, and what no driver could have led to is refused.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CONFIG_CHANGE, MmioTransport, Stop, USED_BUFFER};
use crate::backend::clock::Ticks;
use crate::virtio::features::Features;
use crate::virtio::queue::{QueueState, SavedQueue};
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::status::{STEPS, Status};

/// What a state begins with: "vst", and the version of the format.
const FORMAT: u32 = u32::from_le_bytes(*b"vst\x01");

/// In [`Saved::flags`]: an edge has not been taken.
const EDGE: u32 = 1;

/// The transport's own state. [`SavedQueue`]s follow, then what the device model writes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Saved {
    format: U32,
    device_type: U32,
    offered: U64,
    accepted: U64,
    accepted_unknown: U32,
    device_features_page: U32,
    driver_features_page: U32,
    queue_select: U32,
    shared_memory_select: U32,
    status: U32,
    interrupt_status: U32,
    generation: U32,
    flags: U32,
    queues: U32,
}

impl MmioTransport<'_, '_> {
    /// Has the device put back what waits for nothing that it could finish itself: buffers to receive
    /// into. To be followed by [`Self::save`], or by a [`Self::poll`], which takes them again.
    pub fn prepare_save(&mut self, now: Ticks) {
        if self.stop == Stop::No && self.status.is_live() {
            self.dispatch_rarely(now, &mut |device, context| device.put_back_waiting(context));
        }
    }

    /// Writes down what [`Self::restore`] needs to have another transport, with another device
    /// model of the same kind, go on where this one is. The guest does not run meanwhile, and does
    /// not hear of it.
    ///
    /// # Errors
    /// [`StateError::Busy`] while chains of the guest are at work or a reset is not over: nothing
    /// of the guest's is in the state, so all must have been answered, or put back
    /// ([`Self::prepare_save`]). [`Self::poll`], and ask again; a guest that does not run adds no more than its rings hold.
    /// [`StateError::Length`] if there is not enough room.
    pub fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        if self.stop != Stop::No || self.device.in_flight() != 0 {
            return Err(StateError::Busy);
        }
        state.write_object(&Saved {
            format: FORMAT.into(),
            device_type: self.device.device_type().0.into(),
            offered: self.offered.bits().into(),
            accepted: self.accepted.bits().into(),
            accepted_unknown: self.accepted_unknown.into(),
            device_features_page: self.device_features_page.into(),
            driver_features_page: self.driver_features_page.into(),
            queue_select: self.queue_select.into(),
            shared_memory_select: self.shared_memory_select.into(),
            status: self.status.bits().into(),
            interrupt_status: self.interrupt_status.into(),
            generation: self.generation.into(),
            flags: if self.interrupt_edge { EDGE } else { 0 }.into(),
            queues: (self.queues.len() as u32).into(),
        })?;
        for queue in &self.queues {
            state.write_object(&queue.save()?)?;
        }
        self.device.save(state)
    }

    /// Goes on where the device was that wrote `state`, in the same guest memory or a copy of it.
    /// To be followed by a [`Self::poll`]: what the driver has made available is in the rings, and
    /// no notification of it will come again.
    ///
    /// The state is not to be trusted. It can be no worse than a driver: whatever it says, the
    /// device stays in the guest's memory, and a reset leads back to a device that works.
    ///
    /// # Errors
    /// [`StateError::Busy`] if this device is not reset. Otherwise the state cannot be that of such
    /// a device, and this one is reset.
    pub fn restore(&mut self, state: &mut StateReader<'_>, now: Ticks) -> Result<(), StateError> {
        let untouched = self.queues.iter().all(|queue| queue.state() == QueueState::Disabled);
        if self.stop != Stop::No || !self.status.is_empty() || !untouched {
            return Err(StateError::Busy);
        }
        let result = self.take_on(state);
        if result.is_err() {
            // The device has taken nothing of the guest's yet: it has nothing to let go of.
            let _ = self.reset(now);
        }
        result
    }

    fn take_on(&mut self, state: &mut StateReader<'_>) -> Result<(), StateError> {
        let saved: Saved = state.read_object()?;
        let status = Status::from_bits(saved.status.get()).ok_or(StateError::Invalid)?;
        let of_this_device = saved.format.get() == FORMAT
            && saved.device_type.get() == self.device.device_type().0
            && saved.queues.get() as usize == self.queues.len()
            // What the driver has been offered it may still accept.
            && self.offered.contains(Features::from_bits_retain(saved.offered.get()));
        let possible =
            STEPS.iter().all(|step| !status.contains(step.bit) || status.contains(step.after))
                && saved.interrupt_status.get() & !(USED_BUFFER | CONFIG_CHANGE) == 0
                && saved.flags.get() & !EDGE == 0;
        if !(of_this_device && possible) {
            return Err(StateError::Invalid);
        }
        self.accepted = Features::from_bits_retain(saved.accepted.get());
        self.accepted_unknown = saved.accepted_unknown.get();
        let agreed = status.contains(Status::FEATURES_OK);
        if agreed && !self.features_are_good() {
            return Err(StateError::Invalid);
        }
        let live = status.is_live().then_some(self.accepted);
        for queue in &mut self.queues {
            queue.restore(&state.read_object::<SavedQueue>()?, live, &self.memory)?;
        }
        self.device_features_page = saved.device_features_page.get();
        self.driver_features_page = saved.driver_features_page.get();
        self.queue_select = saved.queue_select.get();
        self.shared_memory_select = saved.shared_memory_select.get();
        self.interrupt_status = saved.interrupt_status.get();
        self.interrupt_edge = saved.flags.get() & EDGE != 0;
        self.generation = saved.generation.get();
        self.status = status;
        let accepted = if agreed { self.accepted } else { Features::empty() };
        self.device.restore(accepted, state)
    }
}

#[cfg(test)]
mod tests;
