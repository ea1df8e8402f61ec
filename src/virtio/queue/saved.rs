//! A queue's state as bytes ([`state`](crate::virtio::state)): registers, and how far the ring is.
//!
//! What is in the ring is the guest's memory, and saved with it. The device has nothing of it while
//! it is saved, so one position says how far both sides of it are.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Areas, Layout, Queue, QueueState, Ring};
use crate::memory::GuestMemory;
use crate::virtio::Features;
use crate::virtio::state::StateError;

/// QueueReady is 1.
const READY: u16 = 1;
/// The device has asked the driver not to notify.
const SILENT: u16 = 2;

/// A queue's state.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in super::super) struct SavedQueue {
    descriptor: U64,
    driver: U64,
    device: U64,
    size: U32,
    max_size: U16,
    flags: U16,
    /// Of an enabled queue of a live device, otherwise 0. Split: the index that `avail.idx` and
    /// `used.idx` count. Packed: the place in the ring, and the wrap counter above it.
    position: U16,
    reserved: [U16; 3],
}

impl Ring<'_> {
    /// How far the ring is; `None` while the device has chains of it.
    fn position(&self) -> Option<u16> {
        match &self.0 {
            Layout::Split(ring) => ring.position(),
            Layout::Packed(ring) => ring.position(),
        }
    }

    /// Goes on at `position`. `false` if the ring has no such place.
    fn resume(&mut self, position: u16) -> bool {
        match &mut self.0 {
            Layout::Split(ring) => {
                ring.resume(position);
                true
            }
            Layout::Packed(ring) => ring.resume(position),
        }
    }

    /// Whether the driver is asked to notify.
    fn notifications(&self) -> bool {
        match &self.0 {
            Layout::Split(ring) => ring.notifications(),
            Layout::Packed(ring) => ring.notifications(),
        }
    }

    /// The driver was asked not to notify, and its memory says so.
    fn resume_silent(&mut self) {
        match &mut self.0 {
            Layout::Split(ring) => ring.resume_silent(),
            Layout::Packed(ring) => ring.resume_silent(),
        }
    }
}

impl<'m> Queue<'m> {
    /// The queue's state.
    ///
    /// # Errors
    /// [`StateError::Busy`] while the device has chains of it, or is being stopped.
    pub(in super::super) fn save(&self) -> Result<SavedQueue, StateError> {
        let Areas { descriptor, driver, device } = self.areas;
        let mut flags = match self.state {
            QueueState::Disabled => 0,
            QueueState::Ready => READY,
            QueueState::Stopping { .. } => return Err(StateError::Busy),
        };
        let mut position = 0;
        if let Some(ring) = &self.ring {
            position = ring.position().ok_or(StateError::Busy)?;
            flags |= if ring.notifications() { 0 } else { SILENT };
        }
        Ok(SavedQueue {
            descriptor: descriptor.into(),
            driver: driver.into(),
            device: device.into(),
            size: self.size.into(),
            max_size: self.max_size.into(),
            flags: flags.into(),
            position: position.into(),
            reserved: [U16::ZERO; 3],
        })
    }

    /// Takes on `saved`; the ring is made if the device is `live` with these features.
    ///
    /// # Errors
    /// If a queue of this device cannot be in that state, or not in this memory. What has been
    /// taken on by then is for a reset to clear.
    pub(in super::super) fn restore(
        &mut self,
        saved: &SavedQueue,
        live: Option<Features>,
        memory: &GuestMemory<'m>,
    ) -> Result<(), StateError> {
        let (flags, position) = (saved.flags.get(), saved.position.get());
        let known = flags & !(READY | SILENT) == 0 && saved.reserved == [U16::ZERO; 3];
        if !known || saved.max_size.get() != self.max_size || self.state != QueueState::Disabled {
            return Err(StateError::Invalid);
        }
        let [descriptor, driver, device] =
            [saved.descriptor, saved.driver, saved.device].map(U64::get);
        self.areas = Areas { descriptor, driver, device };
        self.size = saved.size.get();
        if flags & READY != 0 {
            self.set_ready();
        }
        if let Some(features) = live {
            self.start(features, memory).map_err(|_| StateError::Invalid)?;
        }
        match &mut self.ring {
            Some(ring) => {
                if !ring.resume(position) {
                    return Err(StateError::Invalid);
                }
                if flags & SILENT != 0 {
                    ring.resume_silent();
                }
                Ok(())
            }
            None if position != 0 || flags & SILENT != 0 => Err(StateError::Invalid),
            None => Ok(()),
        }
    }
}
