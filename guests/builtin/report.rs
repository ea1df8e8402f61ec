//! The verdicts: one line a check, and the line a script looks for at the end.

use crate::console::{Hex, Show, line};
use crate::psci;
use crate::racy::Racy;
use core::sync::atomic::{AtomicU32, Ordering};

/// Where verdicts start.
const COLUMN: usize = 56;

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// A check failed; why is kept for its line of the report.
///
/// Kept aside rather than returned, because dozens of checks hand it up through several calls and
/// the guest is part of the EL2 image, whose size has a bar.
#[derive(Clone, Copy)]
pub(crate) struct Failed(());

/// The last failure's reason and what was seen, if anything.
static REASON: Racy<Option<(&str, Option<u64>)>> = Racy::new(None);

impl Failed {
    /// For a reason that words say.
    #[inline(never)]
    pub(crate) fn because(reason: &'static str) -> Self {
        // SAFETY: one core, and handlers do not fail checks.
        unsafe { *REASON.get() = Some((reason, None)) };
        Self(())
    }

    /// For a reason with the value that was seen.
    #[inline(never)]
    pub(crate) fn seeing(reason: &'static str, value: u64) -> Self {
        // SAFETY: as above.
        unsafe { *REASON.get() = Some((reason, Some(value))) };
        Self(())
    }
}

/// What a check returns.
pub(crate) type Verdict = Result<(), Failed>;

/// `Ok` if `holds`, otherwise the reason with what was seen instead.
#[inline(always)]
pub(crate) fn expect(holds: bool, reason: &'static str, seen: impl Into<u64>) -> Verdict {
    if holds { Ok(()) } else { Err(Failed::seeing(reason, seen.into())) }
}

/// Runs a check and prints `NAME ... ok` or `NAME ... FAILED: why`.
#[inline(always)]
pub(crate) fn check(name: &str, run: impl FnOnce() -> Verdict) -> bool {
    begin(name);
    end(run().is_ok())
}

#[inline(never)]
fn begin(name: &str) {
    name.show();
    for _ in name.len()..COLUMN {
        " ".show();
    }
    " ... ".show();
}

#[inline(never)]
fn end(passed: bool) -> bool {
    count(passed);
    if passed {
        line!("ok");
    } else {
        // SAFETY: as in `Failed`.
        match unsafe { *REASON.get() } {
            Some((why, Some(value))) => line!("FAILED: ", why, " (saw ", Hex(value), ")"),
            Some((why, None)) => line!("FAILED: ", why),
            None => line!("FAILED"),
        }
    }
    passed
}

#[inline(never)]
fn count(passed: bool) {
    let counter = if passed { &PASSED } else { &FAILED };
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Prints the totals and powers off.
pub(crate) fn finish() -> ! {
    let (passed, failed) = (PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    line!(env!("CARGO_BIN_NAME"), ": ", passed, " passed, ", failed, " failed");
    psci::system_off()
}

/// Counts what is running now as failed, and finishes.
pub(crate) fn abandon() -> ! {
    count(false);
    finish()
}
