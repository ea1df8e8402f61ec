//! A value that a test and what it tests both hold.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Borrowed by the rules of a `Cell` or `RefCell`, but what holds one can go to another core, as
/// devices and back ends must. A borrow that conflicts fails the test; waiting for the other would be for ever.
#[derive(Default)]
pub(crate) struct Shared<T>(Arc<RwLock<T>>);

// Derived, this would ask for `T: Clone`.
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    #[track_caller]
    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.try_read().expect("being written")
    }

    #[track_caller]
    pub(crate) fn borrow_mut(&self) -> RwLockWriteGuard<'_, T> {
        self.0.try_write().expect("in use")
    }
}

impl<T: Copy> Shared<T> {
    #[track_caller]
    pub(crate) fn get(&self) -> T {
        *self.borrow()
    }

    #[track_caller]
    pub(crate) fn set(&self, value: T) {
        *self.borrow_mut() = value;
    }
}
