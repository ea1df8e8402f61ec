//! The verdicts: one line a check, and the line a script looks for at the end.

use crate::console::{print, println};
use crate::psci;
use core::sync::atomic::{AtomicU32, Ordering};

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Why a check failed.
#[derive(Clone, Copy)]
pub(crate) enum Why {
    /// In words.
    Text(&'static str),
    /// In words and the value that was seen.
    Saw(&'static str, u64),
}

/// What a check returns.
pub(crate) type Verdict = Result<(), Why>;

/// `Ok` if `holds`, otherwise the reason with what was seen instead.
pub(crate) fn expect(holds: bool, reason: &'static str, seen: impl Into<u64>) -> Verdict {
    if holds { Ok(()) } else { Err(Why::Saw(reason, seen.into())) }
}

/// Runs a check and prints `NAME ... ok` or `NAME ... FAILED: why`.
pub(crate) fn check(name: &str, run: impl FnOnce() -> Verdict) -> bool {
    begin(name);
    end(run())
}

// Out of line: the guest is part of the EL2 image, whose size has a bar.
#[inline(never)]
fn begin(name: &str) {
    print!("{name:<56} ... ");
}

#[inline(never)]
fn end(verdict: Verdict) -> bool {
    count(verdict.is_ok());
    match verdict {
        Ok(()) => println!("ok"),
        Err(Why::Text(why)) => println!("FAILED: {why}"),
        Err(Why::Saw(why, value)) => println!("FAILED: {why} (saw {value:#x})"),
    }
    verdict.is_ok()
}

fn count(passed: bool) {
    let counter = if passed { &PASSED } else { &FAILED };
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Prints the totals and powers off.
pub(crate) fn finish() -> ! {
    let (passed, failed) = (PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    println!("builtin: {passed} passed, {failed} failed");
    psci::system_off()
}

/// Counts what is running now as failed, and finishes.
pub(crate) fn abandon() -> ! {
    count(false);
    finish()
}
