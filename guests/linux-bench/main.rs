//! Measures a block device from inside Linux: a static program of raw system calls.
//!
//! `read4k DEVICE [N]`, `write4k DEVICE [N]`: 4 KiB at places a fixed generator chooses, one at a
//! time, past the page cache. `seq1m DEVICE [N]`: 1 MiB after another. `boot`: when the shell came.
//! `write4k` destroys what the device holds.
//!
//! Prints `bench NAME VALUE` lines, NAME being the median and NAME_mean the mean. A value is in
//! nanoseconds of the virtual counter, which under QEMU's `-icount shift=0` are instructions executed
//! by the whole machine, at every exception level; figures are refused where that does not hold.
#![no_std]
#![no_main]
// System calls and the entry from the kernel.
#![allow(unsafe_code)]
#![allow(clippy::indexing_slicing)]

#[cfg(not(all(target_arch = "aarch64", target_os = "none")))]
compile_error!("linux-bench is built for aarch64-unknown-none-softfloat only");

mod linux;

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::fmt::{self, Write};

/// Requests that are not measured, so that caches and queues have settled.
const WARM_UP: usize = 200;
/// Most requests measured, and the usual number.
const MOST: usize = 20_000;
const USUAL: usize = 2_000;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Too large for the stack; aligned as direct I/O wants it.
#[repr(align(4096))]
struct Memory {
    buffer: [u8; MIB],
    ticks: [u32; MOST],
}

static MEMORY: Once = Once(UnsafeCell::new(Memory { buffer: [0; MIB], ticks: [0; MOST] }));

/// [`Memory`], for the one thread there is, once.
struct Once(UnsafeCell<Memory>);

// SAFETY: this program has one thread.
unsafe impl Sync for Once {}

/// Standard output.
struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if linux::write(1, text.as_bytes()) == text.len() as isize {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

macro_rules! say {
    ($($text:tt)*) => {{
        // There is nobody to tell that nothing can be told.
        let _ = writeln!(Output, $($text)*);
    }};
}

/// How requests follow one another.
#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    writes: bool,
    sequential: bool,
    size: usize,
}

const JOBS: [(&CStr, Job); 3] = [
    (c"read4k", Job { name: "blk_read_4k", writes: false, sequential: false, size: PAGE }),
    (c"write4k", Job { name: "blk_write_4k", writes: true, sequential: false, size: PAGE }),
    (c"seq1m", Job { name: "blk_seq_1m", writes: false, sequential: true, size: MIB }),
];

/// The program; its result is the exit status.
fn run(mut arguments: impl Iterator<Item = &'static CStr>) -> i32 {
    let command = arguments.nth(1).unwrap_or(c"");
    if command == c"boot" {
        let ticks = linux::counter();
        say!("bench boot_ticks {ticks}");
        return 0;
    }
    let Some((_, job)) = JOBS.iter().find(|(name, _)| *name == command) else {
        say!("usage: linux-bench boot | {{read4k|write4k|seq1m}} DEVICE [N]");
        return 2;
    };
    let Some(device) = arguments.next() else {
        say!("linux-bench: which device?");
        return 2;
    };
    let count = arguments.next().map_or(Some(USUAL), number).filter(|n| (1..=MOST).contains(n));
    let Some(count) = count else {
        say!("linux-bench: N is between 1 and {MOST}");
        return 2;
    };
    if !counts_instructions() {
        say!("linux-bench: the virtual counter does not count instructions; use --icount");
        return 1;
    }
    match measure(*job, device, count) {
        Ok(()) => 0,
        Err(error) => {
            say!("linux-bench: {}: error {}", job.name, -error);
            1
        }
    }
}

/// Whether a loop of a million instructions takes a million nanoseconds, but for an interrupt or two.
fn counts_instructions() -> bool {
    let from = linux::counter();
    linux::spin(500_000);
    let nanoseconds = (linux::counter() - from) * per_tick();
    (1_000_000..1_100_000).contains(&nanoseconds)
}

/// Nanoseconds a tick.
fn per_tick() -> u64 {
    (1_000_000_000 / linux::frequency()).max(1)
}

fn measure(job: Job, device: &CStr, count: usize) -> Result<(), isize> {
    let file = linux::open_direct(device, job.writes)?;
    let requests = linux::size(file)? / job.size as u64;
    if requests == 0 {
        return Err(-22);
    }
    // SAFETY: `measure` runs once.
    let memory = unsafe { &mut *MEMORY.0.get() };
    let buffer = &mut memory.buffer[..job.size];
    let ticks = &mut memory.ticks[..count];
    // Knuth's MMIX constants.
    let mut random = 1u64;
    let mut next = 0;
    let mut total = 0;
    for turn in 0..WARM_UP + count {
        if job.sequential {
            next = (next + 1) % requests;
        } else {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            next = (random >> 16) % requests;
        }
        let at = next * job.size as u64;
        let from = linux::counter();
        let done = if job.writes {
            linux::write_at(file, buffer, at)
        } else {
            linux::read_at(file, buffer, at)
        };
        let taken = linux::counter() - from;
        if done != job.size as isize {
            return Err(done.min(-5));
        }
        if let Some(measured) = turn.checked_sub(WARM_UP) {
            ticks[measured] = taken as u32;
            total += taken;
        }
    }
    ticks.sort_unstable();
    say!("bench {}_requests {}", job.name, WARM_UP + count);
    say!("bench {}_mean {}", job.name, total * per_tick() / count as u64);
    // The median: timer ticks and late completions among the rest do not move it.
    say!("bench {} {}", job.name, u64::from(ticks[count / 2]) * per_tick());
    Ok(())
}

fn number(text: &CStr) -> Option<usize> {
    text.to_str().ok()?.parse().ok()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    linux::exit(101)
}
