//! Back ends that several machines share: the work of one may finish something of another.

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

    /// Something has come.
    pub fn wake(&self) {
        self.wake.wake(self.core);
    }
}
