//! Measures disks and networks from inside Linux: a static program of raw system calls.
//!
//! `read4k DEVICE [N]`, `write4k DEVICE [N]`: 4 KiB at places a fixed generator chooses, one at a
//! time, past the page cache; `read4k32`, `write4k32`: 32 at a time. `seq1m DEVICE [N]`: 1 MiB after
//! another. `boot`: when the shell came. `udp HOST PORT [N]` has datagrams of 64 bytes sent back by
//! `udp-serve PORT` elsewhere, `tcp HOST PORT [MIB]` sends a stream to `tcp-serve PORT`.
//!
//! `vsock CID PORT [N]` measures round trips to `vsock-echo PORT`, `vsock-stream CID PORT [MIB]` a stream
//! to `vsock-serve PORT`. `vsock-send CID PORT MIB` and `vsock-send-messages` send to `vsock-take PORT` and
//! `vsock-take-messages`, and both sides print a sum. `vsock-wait CID PORT` waits for the end of a connection.
//! `monitor WORD...` gives the hypervisor a command, at CID 2.
//!
//! `fill DEVICE SEED [MIB [FROM]]` writes a whole disk in random pieces, or that many MiB of it from
//! MiB FROM on, and flushes it; `check DEVICE SEED [MIB [FROM]]` reads it in others and compares.
//! Writing destroys what the device holds.
//!
//! `zero DEVICE AT BYTES`, `punch DEVICE AT BYTES`: that part of the device becomes zeros, by the
//! kernel's requests for it (busybox has no program that asks so); `punch` allows to give the space up.
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

macro_rules! say {
    ($($text:tt)*) => {{
        // There is nobody to tell that nothing can be told.
        let _ = core::fmt::Write::write_fmt(&mut $crate::Output, format_args!("{}\n", format_args!($($text)*)));
    }};
}

mod linux;
mod net;
mod verify;
mod vsock;

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::fmt::{self, Write};

use linux::Kind;

/// Requests that are not measured, so that caches and queues have settled.
const WARM_UP: usize = 200;
/// Most requests measured, and the usual number.
const MOST: usize = 20_000;
const USUAL: usize = 2_000;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// Requests at a time where there are many.
const DEEP: usize = 32;

/// Too large for the stack; aligned as direct I/O wants it.
#[repr(align(4096))]
struct Memory {
    buffer: [u8; verify::MEMORY],
    ticks: [u32; MOST],
}

static MEMORY: Once =
    Once(UnsafeCell::new(Memory { buffer: [0; verify::MEMORY], ticks: [0; MOST] }));

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

/// How requests follow one another.
#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    writes: bool,
    sequential: bool,
    size: usize,
    /// So many at a time.
    depth: usize,
}

impl Job {
    const fn new(name: &'static str, writes: bool, depth: usize) -> Self {
        Self { name, writes, sequential: false, size: PAGE, depth }
    }
}

const JOBS: [(&CStr, Job); 6] = [
    (c"read4k", Job::new("blk_read_4k", false, 1)),
    (c"write4k", Job::new("blk_write_4k", true, 1)),
    (c"read4k32", Job::new("blk_read_4k_32", false, DEEP)),
    (c"write4k32", Job::new("blk_write_4k_32", true, DEEP)),
    (c"seq1m", Job { size: MIB, sequential: true, ..Job::new("blk_seq_1m", false, 1) }),
    (c"seq1mw", Job { size: MIB, sequential: true, ..Job::new("blk_seq_1m_write", true, 1) }),
];

/// The program; its result is the exit status.
fn run(mut arguments: impl Iterator<Item = &'static CStr>) -> i32 {
    let command = arguments.nth(1).unwrap_or(c"");
    if command == c"boot" {
        let ticks = linux::counter();
        say!("bench boot_ticks {ticks}");
        return 0;
    }
    if command == c"zero" || command == c"punch" {
        return zero(command == c"punch", arguments);
    }
    if let Some(result) = other(command, &mut arguments) {
        return match result {
            Ok(()) => 0,
            Err(error) => {
                say!("linux-bench: {}: error {}", command.to_str().unwrap_or("?"), -error);
                1
            }
        };
    }
    let Some((_, job)) = JOBS.iter().find(|(name, _)| *name == command) else {
        say!(
            "usage: linux-bench boot | {{read4k|write4k|read4k32|write4k32|seq1m|seq1mw}} DEVICE [N]"
        );
        say!(
            "       linux-bench {{fill|check}} DEVICE SEED [MIB [FROM]] | {{udp|tcp}} HOST PORT [N]"
        );
        say!(
            "       linux-bench {{vsock|vsock-stream|vsock-send|vsock-wait}} CID PORT [N] | monitor WORD..."
        );
        say!("       linux-bench {{vsock-echo|vsock-serve|vsock-take}} PORT");
        say!("       linux-bench {{udp-serve|tcp-serve}} PORT | {{zero|punch}} DEVICE AT BYTES");
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
    let measured = match job.depth {
        1 => measure(*job, device, count),
        _ => measure_deep(*job, device, count),
    };
    match measured {
        Ok(()) => 0,
        Err(error) => {
            say!("linux-bench: {}: error {}", job.name, -error);
            1
        }
    }
}

/// What is not a measurement of a disk; `None` if `command` is none of these.
fn other(
    command: &CStr,
    arguments: &mut impl Iterator<Item = &'static CStr>,
) -> Option<Result<(), isize>> {
    const INVALID: isize = -22;
    let names = [c"fill", c"check", c"udp-serve", c"tcp-serve", c"udp", c"tcp"];
    if command == c"monitor" {
        // SAFETY: as below.
        return Some(vsock::monitor(arguments, unsafe { &mut (*MEMORY.0.get()).buffer }));
    }
    if command.to_bytes().starts_with(b"vsock") {
        return sockets(command, arguments);
    }
    if !names.contains(&command) {
        return None;
    }
    let words: [Option<&CStr>; 4] = core::array::from_fn(|_| arguments.next());
    // SAFETY: one of the users of the memory runs, once.
    let memory = unsafe { &mut (*MEMORY.0.get()).buffer };
    let count = |usual| words[2].map_or(Some(usual), number);
    let here = || net::address(c"0.0.0.0", words[0]?);
    let there = || net::address(words[0]?, words[1]?);
    let disk = || {
        let (length, from) = (count(1 << 20)?, words[3].map_or(Some(0), number)?);
        let (length, from) = ((length as u64) << 20, (from as u64) << 20);
        Some((words[0]?, number(words[1]?)? as u64, from..from.checked_add(length)?))
    };
    let mut verify = |pass| {
        disk().map_or(Err(INVALID), |(device, seed, range)| {
            verify::run(device, seed, range, pass, memory)
        })
    };
    Some(match command.to_bytes() {
        b"fill" => verify(verify::Pass::Write),
        b"check" => verify(verify::Pass::Read),
        b"udp-serve" => here().map_or(Err(INVALID), |port| net::serve_udp(&port)),
        b"tcp-serve" => here().map_or(Err(INVALID), |port| net::serve_stream(&port, memory)),
        b"udp" => {
            there().zip(count(USUAL)).map_or(Err(INVALID), |(to, n)| net::measure_udp(&to, n))
        }
        b"tcp" => {
            let to = there().zip(count(64));
            to.map_or(Err(INVALID), |(to, n)| net::measure_stream("tcp", &to, n, memory))
        }
        _ => return None,
    })
}

/// What is about sockets between guests; `None` if `command` is none of these.
fn sockets(
    command: &CStr,
    arguments: &mut impl Iterator<Item = &'static CStr>,
) -> Option<Result<(), isize>> {
    const INVALID: isize = -22;
    let words: [Option<&CStr>; 3] = core::array::from_fn(|_| arguments.next());
    // SAFETY: one of the users of the memory runs, once.
    let memory = unsafe { &mut (*MEMORY.0.get()).buffer };
    let count = |usual| words[2].map_or(Some(usual), number);
    let own = || words[0].and_then(vsock::here).ok_or(INVALID);
    let other = || vsock::there(words[0]?, words[1]?);
    let counted = |usual| other().zip(count(usual)).ok_or(INVALID);
    Some(match command.to_bytes() {
        b"vsock-echo" => own().and_then(|port| vsock::echo(&port, memory)),
        b"vsock-serve" => own().and_then(|port| net::serve_stream(&port, memory)),
        b"vsock-take" => own().and_then(|port| vsock::take(&port, Kind::Stream, memory)),
        b"vsock-take-messages" => own().and_then(|port| vsock::take(&port, Kind::Messages, memory)),
        b"vsock" => counted(USUAL).and_then(|(to, n)| vsock::measure_echo(&to, n)),
        b"vsock-stream" => {
            counted(64).and_then(|(to, n)| net::measure_stream("vsock", &to, n, memory))
        }
        b"vsock-send" => counted(1).and_then(|(to, n)| vsock::send(&to, Kind::Stream, n, memory)),
        b"vsock-send-messages" => {
            counted(1).and_then(|(to, n)| vsock::send(&to, Kind::Messages, n, memory))
        }
        b"vsock-wait" => other().ok_or(INVALID).and_then(|to| vsock::wait(&to, memory)),
        _ => return None,
    })
}

fn zero(unmap: bool, mut arguments: impl Iterator<Item = &'static CStr>) -> i32 {
    let device = arguments.next();
    let (at, bytes) = (arguments.next().and_then(number), arguments.next().and_then(number));
    let (Some(device), Some(at), Some(bytes)) = (device, at, bytes) else {
        say!("linux-bench: which device, from where, how much?");
        return 2;
    };
    let done = linux::open_direct(device, true)
        .and_then(|file| linux::zero(file, at as u64, bytes as u64, unmap));
    match done {
        Ok(()) => 0,
        Err(error) => {
            say!("linux-bench: error {}", -error);
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

/// A generator of numbers, always the same ones (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Keeps so many requests in flight, and measures how fast they go.
fn measure_deep(job: Job, device: &CStr, count: usize) -> Result<(), isize> {
    let file = linux::open_direct(device, job.writes)?;
    let places = linux::size(file)? / job.size as u64;
    if places == 0 {
        return Err(-22);
    }
    // SAFETY: `measure_deep` runs once, and `measure` then does not.
    let buffer = unsafe { &mut (*MEMORY.0.get()).buffer };
    let ring = linux::Ring::new(job.depth)?;
    let mut random = Random(1);
    let mut request = |slot: usize| {
        let memory = buffer[slot * job.size..].as_mut_ptr();
        let at = random.below(places) * job.size as u64;
        linux::Request::new(slot as u64, job.writes, file, memory, job.size, at)
    };
    let mut requests: [linux::Request; DEEP] = core::array::from_fn(&mut request);
    let mut events = [linux::Event::default(); DEEP];
    ring.submit(&mut requests)?;
    let (mut submitted, mut done, mut from, total) = (DEEP, 0, 0, WARM_UP + count);
    let mut begun = 0;
    while done < total {
        let answered = ring.wait(&mut events)?;
        if events[..answered].iter().any(|event| event.result != job.size as i64) {
            return Err(-5);
        }
        done += answered;
        if from == 0 && done >= WARM_UP {
            (from, begun) = (linux::counter(), done);
        }
        let mut again = 0;
        for event in &events[..answered] {
            if submitted < total {
                requests[again] = request(event.name as usize);
                again += 1;
                submitted += 1;
            }
        }
        ring.submit(&mut requests[..again])?;
    }
    let taken = linux::counter() - from;
    say!("bench {}_requests {total}", job.name);
    say!("bench {} {}", job.name, taken * per_tick() / (done - begun) as u64);
    Ok(())
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
    let mut random = Random(1);
    let mut next = 0;
    let mut total = 0;
    for turn in 0..WARM_UP + count {
        if job.sequential {
            next = (next + 1) % requests;
        } else {
            next = random.below(requests);
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
