//! Other cores, woken because something has come for their machines.

use super::core::NUDGE;
use super::gic::{CoreAddress, PhysicalGic};
use super::smp::MAX_CORES;
use crate::backend::wake::Wake;

/// Wakes cores by SGI 0, after which they poll.
pub struct CoreWaker {
    gic: PhysicalGic,
    addresses: [Option<CoreAddress>; MAX_CORES],
}

impl CoreWaker {
    /// For the cores with these addresses, by number. Any core's `gic` will do.
    pub const fn new(gic: PhysicalGic, addresses: [Option<CoreAddress>; MAX_CORES]) -> Self {
        Self { gic, addresses }
    }
}

impl Wake for CoreWaker {
    fn wake(&self, core: u8) {
        if let Some(Some(address)) = self.addresses.get(usize::from(core)) {
            self.gic.send_sgi(*address, NUDGE);
        }
    }
}
