//! Cores that tell each other that a shared device has something for them.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

use super::core::NUDGE;
use super::gic::{CoreAddress, PhysicalGic};
use super::smp::{MAX_CORES, this_core};
use crate::backend::wake::Wake;

/// How the board's cores are addressed, by number; with an interrupt controller to send by.
static ADDRESSES: Once<(PhysicalGic, [Option<CoreAddress>; MAX_CORES])> = Once::new();
/// Cores that are about to poll their machines, and need nobody to tell them. Each is written by its
/// core alone.
static POLLS_NEXT: [AtomicBool; MAX_CORES] = [const { AtomicBool::new(false) }; MAX_CORES];

/// The board's cores, as shared back ends wake them: by the SGI that has a core look.
pub struct Cores;

impl Cores {
    /// Tells how they are addressed, once, before anybody is woken.
    pub fn connect(gic: PhysicalGic, addresses: [Option<CoreAddress>; MAX_CORES]) {
        ADDRESSES.call_once(|| (gic, addresses));
    }
}

impl Wake for Cores {
    fn wake(&self, core: u8) {
        let core = usize::from(core);
        if core == this_core()
            && POLLS_NEXT.get(core).is_some_and(|own| own.load(Ordering::Relaxed))
        {
            return;
        }
        if let Some((gic, addresses)) = ADDRESSES.get()
            && let Some(Some(address)) = addresses.get(core)
        {
            gic.send_sgi(*address, NUDGE);
        }
    }
}

/// Does something for shared devices after which this core polls its machines: it need not be woken.
pub(super) fn before_poll<T>(work: impl FnOnce() -> T) -> T {
    let own = POLLS_NEXT.get(this_core());
    let set = |value| {
        if let Some(own) = own {
            own.store(value, Ordering::Relaxed);
        }
    };
    set(true);
    let result = work();
    set(false);
    result
}
