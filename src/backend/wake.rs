//! Back ends that several machines share: the work of one may finish something of another.

use super::clock::Ticks;

/// Tells whoever works on a device that something has come for it.
///
/// Called with locks held, so it takes none that a caller could have, and never waits. On a board it
/// is an interrupt for a core, the caller's own included.
pub trait Wake: Sync {
    /// Has `core` poll those of its machines' devices that wait for events, as after an interrupt of
    /// the board.
    fn wake(&self, core: u8);
}

/// Whom to wake: the core that works on the device at this end.
#[derive(Clone, Copy)]
pub struct Waker<'m> {
    wake: &'m dyn Wake,
    core: u8,
}

impl<'m> Waker<'m> {
    /// One that wakes `core`.
    pub fn new(wake: &'m dyn Wake, core: u8) -> Self {
        Self { wake, core }
    }

    /// The core.
    pub fn core(&self) -> u8 {
        self.core
    }

    /// Something has come.
    pub fn wake(&self) {
        self.wake.wake(self.core);
    }
}

/// Something of the board's that several cores' machines use, and that interrupts one core.
pub trait Collect: Sync {
    /// The board's interrupt for it has come to the core `here`: what it has finished is handed to whom it
    /// concerns, and their cores are woken; but not `here`, which polls its machines next. Whether
    /// there was anything.
    fn collect(&self, now: Ticks, here: u8) -> bool;
}
