//! State shared with devices or set up once: this guest has one core and no threads.

use core::cell::UnsafeCell;

/// A static whose contents are reached through a raw pointer only.
#[repr(C, align(4096))]
pub(crate) struct Racy<T>(UnsafeCell<T>);

// SAFETY: one core, and no interrupt handler touches one of these; devices do, which is why only a
// raw pointer is given out.
unsafe impl<T> Sync for Racy<T> {}

impl<T> Racy<T> {
    /// Wraps `value`; page-aligned, as devices like it.
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where the value is.
    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}
