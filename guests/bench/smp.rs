//! What several vCPUs and several machines cost: an interrupt from one vCPU to another, a change of
//! vCPUs on a core, and who gets how much of it.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::board::Board;
use crate::console::line;
use crate::exits::{self, report};
use crate::gic::{self, Sgi};
use crate::mmio::{write8, write32};
use crate::psci;
use crate::racy::Racy;
use crate::report::{check, expect};
use crate::timer;

const CPU_ON_64: u32 = 0xc400_0003;
/// Interrupts measured, and warm-up.
const COUNT: u64 = 2_000;
const WARM_UP: u64 = 16;

/// The second core's stack, and above it the address of its function.
#[repr(C, align(16))]
struct Stack([u8; 8192], fn() -> !);

static STACK: Racy<Stack> = Racy::new(Stack([0; 8192], second_core));
/// The frame of the second core's private interrupts.
static FRAME_OF_SECOND: AtomicUsize = AtomicUsize::new(0);
/// The second core's bit in an SGI's target list, once it is ready.
static READY: AtomicU64 = AtomicU64::new(0);

/// How the second core waits.
const IN_WFI: u64 = 1;
const IN_YIELD: u64 = 2;
static WAY: AtomicU64 = AtomicU64::new(IN_WFI);

/// SGI 1 from this vCPU to the next, which is on a core of its own: from the store to ICC_SGI1R_EL1
/// or GICD_SGIR until the other's handler has acknowledged and ended it. The receiver waits in WFI, then in a loop of
/// YIELD; the sender in a loop of YIELD. Instructions of both cores.
pub(crate) fn interrupts(board: &Board) {
    if !check("bench: virtual time counts instructions", exits::calibrate) {
        return;
    }
    gic::start(board);
    report("lr_interrupt", listed(), COUNT);
    gic::mask();
    FRAME_OF_SECOND.store(gic::private(board, 1), Ordering::Relaxed);
    // SAFETY: an address; the second core is the only one that uses the stack.
    let end = unsafe { &raw const (*STACK.get()).1 } as u64;
    let entry: usize;
    // SAFETY: an address.
    unsafe {
        asm!("adrp {0}, secondary_entry", "add {0}, {0}, :lo12:secondary_entry", out(reg) entry,
            options(nomem, nostack));
    }
    let started = check("bench: another core starts", || {
        let answer = psci::hvc(CPU_ON_64, [1, entry as u64, end]);
        expect(answer == 0, "CPU_ON", answer as u64)?;
        expect(timer::wait(1000, || READY.load(Ordering::Acquire) != 0), "waited, ready", 0u32)
    });
    if !started {
        return;
    }
    report("ipi", to_second(), COUNT);
    WAY.store(IN_YIELD, Ordering::Release);
    report("ipi_yield", to_second(), COUNT);
}

/// Sends interrupts to the second core; the ticks until they were ended.
fn to_second() -> u64 {
    let interrupt = Sgi::to(READY.load(Ordering::Relaxed), 1);
    let mut from = 0;
    for n in 0..COUNT + WARM_UP {
        if n == WARM_UP {
            from = timer::now();
        }
        if n % 16 == 0 {
            gic::forget();
        }
        let before = gic::taken();
        interrupt.send();
        while gic::taken() == before {
            relax();
        }
    }
    timer::now() - from
}

/// Interrupts that are in a list register already: from the instruction that unmasks them to the end of
/// the handler. Nothing of it is EL2's.
fn listed() -> u64 {
    let mut ticks = 0;
    for n in 0..COUNT {
        if n % 16 == 0 {
            gic::forget();
        }
        gic::mask();
        gic::send_to_self(1);
        let from = timer::now();
        gic::unmask();
        ticks += timer::now() - from;
    }
    ticks
}

fn second_core() -> ! {
    let frame = FRAME_OF_SECOND.load(Ordering::Relaxed);
    gic::start_core(frame);
    write8(frame + gic::IPRIORITYR + 1, gic::DEFAULT_PRIORITY);
    write32(frame + gic::ISENABLER, 1 << 1);
    gic::unmask();
    READY.store(gic::own_targets(), Ordering::Release);
    loop {
        if WAY.load(Ordering::Relaxed) == IN_WFI {
            // SAFETY: an interrupt ends it.
            unsafe { asm!("wfi", options(nomem, nostack)) };
        } else {
            relax();
        }
    }
}

#[inline(always)]
fn relax() {
    // SAFETY: a hint; the emulator runs the other core.
    unsafe { asm!("yield", options(nomem, nostack)) };
}

/// Milliseconds before the count begins, so that all machines have started; of the count; and after
/// it, so that the last to start is not alone when it counts.
const BEFORE: u64 = 300;
const DURING: u64 = 600;
const AFTER: u64 = 400;
/// Ticks between two looks at the counter that mean that somebody else had the core. An exit takes less.
const AWAY: u64 = 10_000;

/// Takes all of the core that it can get, and prints of the count: `times` that others had the core; and
/// between the ends of the first and the last of them `away`, ticks of theirs, and `stretches`, ticks
/// of ours.
///
/// The second of two machines has the word `second`, and its figures too: it prints later.
pub(crate) fn share(board: &Board) {
    let second = board.has_argument("second");
    spin(timer::now() + timer::ticks(BEFORE), &mut Shares::default());
    let mut shares = Shares::default();
    spin(timer::now() + timer::ticks(DURING), &mut shares);
    let after = if second { 2 * AFTER } else { AFTER };
    spin(timer::now() + timer::ticks(after), &mut Shares::default());
    let who = if second { "second_" } else { "first_" };
    line!("bench ", who, "times ", shares.times);
    line!("bench ", who, "away ", shares.away);
    line!("bench ", who, "stretches ", shares.stretches);
    let shared = shares.times > 2;
    check("bench: the core is shared", || expect(shared, "times", shares.times));
}

#[derive(Default)]
struct Shares {
    /// Times that others had the core.
    times: u64,
    /// Ticks of others and of ours after the first time.
    away: u64,
    stretches: u64,
    /// Since when it is ours.
    back: u64,
}

fn spin(end: u64, shares: &mut Shares) {
    let mut last = timer::now();
    while last < end {
        let now = timer::now();
        if now - last > AWAY {
            if shares.times != 0 {
                shares.away += now - last;
                shares.stretches += last - shares.back;
            }
            shares.times += 1;
            shares.back = now;
        }
        last = now;
    }
}
