//! Checks of the interrupt controller and the virtual timer.

use crate::board::{Board, Gic};
use crate::gic::{self, *};
use crate::mmio::{read8, read32, read64, write8, write32, write64};
use crate::report::{Failed, Verdict, check, expect};
use crate::timer;

/// Shared interrupts pended at once: more than any list register file we know holds.
const MANY: u32 = 20;

/// INTID of the clock, in QEMU's map and in ours.
const RTC_INTID: u32 = 34;
/// RTCMR: the second of the alarm.
const RTC_MR: usize = 0x04;
/// RTCIMSC: whether the alarm interrupts.
const RTC_IMSC: usize = 0x10;
/// RTCICR: ends the alarm.
const RTC_ICR: usize = 0x1c;

/// Runs them all; interrupts are on afterwards.
pub(crate) fn run(board: &Board) {
    check("gic: is of the version that the device tree says", || identity(board));
    gic::start(board);
    check("gic: a shared interrupt's configuration reads back", || configuration(board));
    check("gic: an SGI to this core arrives once", || {
        let taken = observe(|| gic::send_to_self(1));
        expect(taken == 1 && gic::taken_at(0) == 1, "interrupts", taken)
    });
    check("gic: an SGI to whom a list names arrives once", || {
        gic::enable(board, 2, true);
        // A uniprocessor's GICv2 does not say which bit is its only core's.
        let taken = observe(|| gic::Sgi::to(gic::own_targets().max(1), 2).send());
        expect(taken == 1 && gic::taken_at(0) == 2, "interrupts", taken)
    });
    check("gic: a disabled SGI stays pending until enabled", || {
        let (base, _, bit) = bank(board, 1);
        write32(base + ICENABLER, bit);
        if matches!(board.gic, Gic::V2 { .. }) && read32(base + ISENABLER) & bit != 0 {
            // IHI 0048, 4.3.5: whether SGIs can be disabled is up to the implementation.
            return Ok(());
        }
        let while_disabled = observe(|| gic::send_to_self(1));
        let pending = read32(base + ISPENDR) & bit;
        let after = observe(|| write32(base + ISENABLER, bit));
        expect(while_disabled == 0, "taken while disabled", while_disabled)?;
        expect(pending != 0, "not pending", pending)?;
        expect(after == 1, "taken after", after)
    });
    check("gic: the priority mask holds an interrupt back", || {
        gic::set_priority_mask(DEFAULT_PRIORITY);
        let while_masked = observe(|| gic::send_to_self(1));
        let after = observe(|| gic::set_priority_mask(0xf8));
        expect(while_masked == 0, "taken while masked", while_masked)?;
        expect(after == 1, "taken after", after)
    });
    check("gic: a pending interrupt can be cleared", || {
        let (base, word, bit) = bank(board, first_spare(board));
        gic::enable(board, first_spare(board), true);
        gic::mask();
        write32(base + ISPENDR + word, bit);
        let before = read32(base + ISPENDR + word) & bit;
        write32(base + ICPENDR + word, bit);
        let after = read32(base + ISPENDR + word) & bit;
        let taken = observe(gic::unmask);
        expect(before != 0 && after == 0, "pending after clear", after)?;
        expect(taken == 0, "taken", taken)
    });
    check("gic: 20 pending at once arrive by priority", || by_priority(board));
    check("gic: a late higher priority goes first", || overtaking(board));
    check("gic: with EOImode 1, ten in service end in any order", || split_ends(board));
    let arrived = check("timer: the virtual timer's interrupt arrives", timer_arrives);
    check("timer: the level stays until its cause is removed", || {
        gic::forget();
        gic::keep_timer(3);
        timer::fire_at(timer::now());
        timer::wait(1000, || gic::taken() >= 4);
        let taken = observe(|| ());
        expect(taken == 0, "still firing", taken)?;
        Ok(())
    });
    if arrived {
        check("timer: WFI sleeps until the timer", sleeps);
        if let Some(rtc) = board.rtc {
            check("rtc: the alarm wakes a sleeping core", || alarm(board, rtc));
        }
    }
}

fn identity(board: &Board) -> Verdict {
    match board.gic {
        Gic::V2 { interface } => {
            let revision = read32(board.gicd + PIDR2_V2) >> 4 & 0xf;
            expect(revision == 2, "GICD architecture", revision)?;
            let revision = read32(interface + GICC_IIDR) >> 16 & 0xf;
            expect(revision == 2, "GICC architecture", revision)?;
        }
        Gic::V3 { redistributor } => {
            let revision = read32(board.gicd + PIDR2) >> 4 & 0xf;
            expect(revision == 3, "GICD architecture", revision)?;
            let revision = read32(redistributor + PIDR2) >> 4 & 0xf;
            expect(revision == 3, "GICR architecture", revision)?;
            let typer = read64(redistributor + GICR_TYPER);
            let me = affinity();
            let affinity = me & 0xff_ffff | me >> 32 << 24;
            expect(typer >> 32 == affinity, "GICR_TYPER", typer)?;
        }
    }
    // LPIs need an ITS, which the device tree does not name.
    let typer = read32(board.gicd + GICD_TYPER);
    expect(typer & 0x1f != 0, "GICD_TYPER", typer)
}

fn configuration(board: &Board) -> Verdict {
    let intid = first_spare(board);
    match board.gic {
        Gic::V2 { .. } => targets(board, intid)?,
        Gic::V3 { .. } => route(board, intid)?,
    }
    let priority = board.gicd + IPRIORITYR + intid as usize;
    write8(priority, 0x58);
    let seen = read8(priority);
    write8(priority, DEFAULT_PRIORITY);
    expect(seen == 0x58, "priority", seen)?;
    let (control, wanted) = (read32(board.gicd + GICD_CTLR), gic::controls(board));
    expect(control & wanted == wanted, "GICD_CTLR", control)
}

/// GICD_ITARGETSR by bytes and words, if there is more than one core to choose from.
fn targets(board: &Board, intid: u32) -> Verdict {
    let own = own_targets();
    if read32(board.gicd + GICD_TYPER) >> 5 & 7 == 0 {
        return expect(own <= 1, "targets of a uniprocessor", own);
    }
    let at = board.gicd + ITARGETSR + intid as usize;
    write8(at, 0);
    let none = read8(at);
    write8(at, own as u8);
    let word = read32(at & !3) >> (intid % 4 * 8) & 0xff;
    expect(own.is_power_of_two(), "own targets", own)?;
    expect(none == 0, "targets, none wanted", none)?;
    expect(u64::from(word) == own, "targets", word)
}

/// GICD_IROUTER, whole and by halves.
fn route(board: &Board, intid: u32) -> Verdict {
    let router = board.gicd + IROUTER + 8 * intid as usize;
    write64(router, 1 << 31);
    let any = read64(router);
    write32(router, 0);
    write32(router + 4, 0);
    let zero = read64(router);
    write64(router, affinity());
    // A distributor without 1 of N routing (GICD_TYPER.No1N) may hold the bit at 0.
    let wanted = if read32(board.gicd + GICD_TYPER) & 1 << 25 == 0 { 1 << 31 } else { any };
    expect(any == wanted, "IROUTER.IRM lost", any)?;
    expect(zero == 0, "IROUTER halves lost", zero)
}

/// Pends [`MANY`] interrupts with one write and no two of one priority.
fn by_priority(board: &Board) -> Verdict {
    let first = first_spare(board);
    let (base, word, _) = bank(board, first);
    for n in 0..MANY {
        gic::enable(board, first + n, true);
        write8(base + IPRIORITYR + (first + n) as usize, nth_priority(n));
    }
    gic::mask();
    write32(base + ISPENDR + word, (1 << MANY) - 1);
    let taken = observe(gic::unmask);
    let order = (0..MANY).find(|&n| {
        let intid = gic::taken_at(n as usize) - first;
        // The one of rank n: the priorities are a permutation of the ranks.
        nth_priority(intid) != rank_priority(n)
    });
    let active = read32(base + ISACTIVER + word);
    expect(taken == MANY, "taken", taken)?;
    if let Some(n) = order {
        return Err(Failed::seeing("out of order, INTID", gic::taken_at(n as usize).into()));
    }
    expect(active == 0, "still active", active)
}

/// Fills whatever holds pending interrupts, then pends a more urgent one.
fn overtaking(board: &Board) -> Verdict {
    let first = first_spare(board);
    let (base, word, _) = bank(board, first);
    for n in 0..MANY {
        let priority = if n == MANY - 1 { 0x20 } else { DEFAULT_PRIORITY };
        gic::enable(board, first + n, true);
        write8(base + IPRIORITYR + (first + n) as usize, priority);
    }
    gic::mask();
    write32(base + ISPENDR + word, (1 << (MANY - 1)) - 1);
    write32(base + ISPENDR + word, 1 << (MANY - 1));
    let taken = observe(gic::unmask);
    let leader = gic::taken_at(0);
    expect(taken == MANY, "taken", taken)?;
    expect(leader == first + MANY - 1, "first was", leader)
}

/// Ends priority and service of more interrupts than list registers hold apart, oldest first.
fn split_ends(board: &Board) -> Verdict {
    const COUNT: u32 = 10;
    let first = first_spare(board);
    let (base, word, _) = bank(board, first);
    gic::mask();
    gic::set_end_mode(true);
    let mut acknowledged = 0;
    for n in 0..COUNT {
        gic::enable(board, first + n, true);
        write32(base + ISPENDR + word, 1 << n);
        acknowledged += u32::from(gic::acknowledge_and_drop() == first + n);
    }
    let in_service = read32(base + ISACTIVER + word);
    let mut ended_alone = 0;
    for n in 0..COUNT {
        gic::deactivate(first + n);
        let left = (1 << COUNT) - (2 << n);
        ended_alone += u32::from(read32(base + ISACTIVER + word) == left);
    }
    gic::set_end_mode(false);
    let taken = observe(gic::unmask);
    expect(acknowledged == COUNT, "acknowledged", acknowledged)?;
    expect(in_service == (1 << COUNT) - 1, "in service", in_service)?;
    expect(ended_alone == COUNT, "ended alone", ended_alone)?;
    expect(taken == 0, "taken again", taken)
}

/// Eight bits in steps of 8, of which every implementation has at least five.
fn rank_priority(rank: u32) -> u8 {
    0x20 + 8 * rank as u8
}

fn nth_priority(n: u32) -> u8 {
    // 7 and 20 have no common factor, so this is a permutation.
    rank_priority(n * 7 % MANY)
}

fn timer_arrives() -> Verdict {
    gic::forget();
    let from = timer::now();
    let at = from + timer::ticks(2);
    timer::fire_at(at);
    // Unless this core was held up beyond the moment itself.
    let early = gic::taken() != 0 && timer::now() < at;
    let came = timer::wait(1000, || gic::taken() != 0);
    let when = timer::now();
    timer::stop();
    expect(came, "nothing in 1 s", when - from)?;
    expect(gic::taken_at(0) == timer::INTID, "INTID", gic::taken_at(0))?;
    expect(!early && when >= at, "early by", at.saturating_sub(when))
}

fn sleeps() -> Verdict {
    let mut latest = 0;
    for _ in 0..20 {
        gic::forget();
        let at = timer::now() + timer::ticks(1);
        timer::fire_at(at);
        gic::sleep_until(|| gic::taken() != 0);
        let now = timer::now();
        if now < at {
            return Err(Failed::seeing("early by", at - now));
        }
        latest = latest.max(now - at);
    }
    // The emulator's host may be busy: a bound against tick-granular wake-ups, not a measurement.
    expect(latest < timer::ticks(1000), "late by ticks", latest)
}

/// Sets the clock's alarm, sleeps, and looks at the line before, when it is due, and after.
fn alarm(board: &Board, rtc: usize) -> Verdict {
    let (base, word, bit) = bank(board, RTC_INTID);
    gic::enable(board, RTC_INTID, false);
    let pending = || read32(base + ISPENDR + word) & bit;
    let deadline = timer::now() + timer::ticks(3000);
    timer::fire_at(deadline);
    gic::mask();
    let due = read32(rtc) + 1;
    write32(rtc + RTC_MR, due);
    write32(rtc + RTC_IMSC, 1);
    let before = pending();
    gic::doze_until(|| pending() != 0 || timer::now() > deadline);
    let (rang, seconds) = (pending(), read32(rtc));
    write32(rtc + RTC_IMSC, 0);
    write32(rtc + RTC_ICR, 1);
    let after = pending();
    timer::stop();
    gic::unmask();
    write32(base + ICENABLER + word, bit);
    expect(before == 0 || seconds > due, "pending before", before)?;
    expect(rang != 0, "not pending, seconds", seconds)?;
    expect(seconds >= due, "early, seconds", seconds)?;
    expect(after == 0, "pending after", after)
}

/// How many interrupts arrive because of `cause`, within 20 ms of it: a busy host may take a while to run its timers.
fn observe(cause: impl FnOnce()) -> u32 {
    gic::forget();
    cause();
    timer::wait(20, || false);
    gic::taken()
}

/// First INTID of a word of shared interrupts that no device has: the last the distributor has.
fn first_spare(board: &Board) -> u32 {
    let words = (read32(board.gicd + GICD_TYPER) & 0x1f) + 1;
    // INTIDs 1020-1023 are special: of 32 words the last is not whole.
    (words.min(31) - 1) * 32
}
