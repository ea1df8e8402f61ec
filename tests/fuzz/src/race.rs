//! A second core of the guest.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::guest::Guest;

/// Does `work` while another thread makes these writes (where, what) over and over again.
pub(crate) fn while_writing(guest: &Guest, writes: &[(u64, Vec<u8>)], work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    thread::scope(|scope| {
        let core = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for (address, bytes) in writes {
                    guest.put(*address, bytes);
                }
                rounds.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        // Not before the other core is at it.
        while rounds.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let stop = Stop(&over);
        work();
        drop(stop);
        // Not left to the scope, which does not wait for the last of the thread.
        core.join().unwrap();
    });
}

/// Stops the other core, also when `work` has panicked: the scope waits for it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
