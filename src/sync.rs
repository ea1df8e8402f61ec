//! Locks, and the atomics of memory that cores share.
//!
//! This is one of the listed seams for `unsafe`: one hint instruction.

#[cfg(all(test, not(miri)))]
pub(crate) mod model;
#[cfg(test)]
pub(crate) mod testing;

use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::RelaxStrategy;

/// Atomics and fences for memory shared with a driver on another core: core's. In unit tests they
/// can be made loom's, so that the code that is shipped is the code that is explored.
pub(crate) mod atomic {
    #[cfg(not(all(test, not(miri))))]
    pub(crate) use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};

    pub(crate) use core::sync::atomic::Ordering;

    #[cfg(all(test, not(miri)))]
    pub(crate) use super::model::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};
}

/// A lock whose waiters spin. What it protects is held for a bounded time and never while a guest
/// runs, so that a wait is short; see the users for their lock order.
#[derive(Debug)]
pub struct Mutex<T>(SpinMutex<T, Relax>);
/// What a [`Mutex`] protects, while it is held.
pub type MutexGuard<'a, T> = SpinMutexGuard<'a, T, Relax>;

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    /// Takes the lock, and waits for it if somebody has it. What waits reads, and does not write.
    #[inline(always)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            if let Some(guard) = self.0.try_lock_weak() {
                return guard;
            }
            Relax::relax();
        }
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    /// The lock itself, for who must break it.
    pub const fn raw(&self) -> &SpinMutex<T, Relax> {
        &self.0
    }

    /// Whether somebody has the lock, this very moment.
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

/// What a core does while it waits for a lock: YIELD, which lets another hardware thread go first.
///
/// `core::hint::spin_loop` is an ISB on aarch64: no hint to anybody, and under QEMU's `-icount` the
/// holder does not get to run before the waiter's time slice is over.
#[derive(Clone, Copy, Debug)]
pub struct Relax;

impl RelaxStrategy for Relax {
    #[inline(always)]
    fn relax() {
        #[cfg(target_arch = "aarch64")]
        #[allow(unsafe_code)]
        // SAFETY: a hint; it changes no register and touches no memory.
        unsafe {
            core::arch::asm!("yield", options(nomem, nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "aarch64"))]
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_contend_take_turns() {
        const ROUNDS: u32 = 50;
        let pair = Mutex::new((0u32, 0u32));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let mut pair = pair.lock();
                        assert_eq!(pair.0, pair.1);
                        pair.0 += 1;
                        // Gives another thread the time to find the lock taken.
                        std::thread::yield_now();
                        pair.1 += 1;
                    }
                });
            }
        });
        assert_eq!(*pair.lock(), (2 * ROUNDS, 2 * ROUNDS));
    }
}
