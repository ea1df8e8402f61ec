//! A PL031 real-time clock for the guest (Arm DDI 0224): seconds since 1970, and one alarm.
//!
//! It has no time of its own: every call says what time it is. The alarm is noticed at the next
//! call after it is due; [`Pl031::deadline`] says when that should be.

use crate::backend::clock::{Frequency, Ticks};
use crate::cpu::Width;

/// Size of the register block in bytes.
pub const SIZE: u64 = 0x1000;

/// Register offsets (DDI 0224, 3.2).
mod offset {
    pub(super) const DR: u64 = 0x000;
    pub(super) const MR: u64 = 0x004;
    pub(super) const LR: u64 = 0x008;
    pub(super) const CR: u64 = 0x00C;
    pub(super) const IMSC: u64 = 0x010;
    pub(super) const RIS: u64 = 0x014;
    pub(super) const MIS: u64 = 0x018;
    pub(super) const ICR: u64 = 0x01C;
    pub(super) const PERIPH_ID0: u64 = 0xFE0;
    pub(super) const PERIPH_ID1: u64 = 0xFE4;
    pub(super) const PERIPH_ID2: u64 = 0xFE8;
    pub(super) const PCELL_ID0: u64 = 0xFF0;
    pub(super) const PCELL_ID1: u64 = 0xFF4;
    pub(super) const PCELL_ID2: u64 = 0xFF8;
    pub(super) const PCELL_ID3: u64 = 0xFFC;
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Pl031 {
    frequency: Frequency,
    /// When the clock was made; whole seconds are counted from here.
    origin: Ticks,
    /// The counter at `origin`; setting the clock moves it.
    base: u32,
    /// The counter when it was last compared with the match register.
    compared: u32,
    load: u32,
    matching: u32,
    raw: bool,
    unmasked: bool,
}

impl Pl031 {
    /// The frequency of the ticks it is given.
    pub const fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// A clock that shows `epoch` (seconds since 1970, the low 32 bits) at `now`.
    pub const fn new(epoch: u64, now: Ticks, frequency: Frequency) -> Self {
        let base = epoch as u32;
        Self {
            frequency,
            origin: now,
            base,
            compared: base,
            load: 0,
            matching: 0,
            raw: false,
            unmasked: false,
        }
    }

    /// The machine is reset: the alarm is off; the time goes on as it was set.
    pub fn reset(&mut self, now: Ticks) {
        self.compared = self.counter(now);
        (self.load, self.matching) = (0, 0);
        (self.raw, self.unmasked) = (false, false);
    }

    /// The level of the interrupt line.
    pub fn interrupt_line(&mut self, now: Ticks) -> bool {
        self.compare(now);
        self.raw && self.unmasked
    }

    /// When the interrupt line will rise by itself, if it will.
    pub fn deadline(&self, now: Ticks) -> Option<Ticks> {
        let seconds = self.seconds(now);
        let shown = self.base.wrapping_add(seconds as u32);
        let wait = self.matching.wrapping_sub(shown);
        if self.raw || !self.unmasked {
            return None;
        }
        if self.is_due(shown) {
            return Some(now);
        }
        // A match that is just over comes again in 136 years.
        let wait = if wait == 0 { 1 << 32 } else { u64::from(wait) };
        let ticks = seconds.saturating_add(wait).saturating_mul(u64::from(self.frequency.hertz()));
        Some(self.origin.after(Ticks(ticks)))
    }

    /// A read. Registers are 32 bits wide at multiples of four; what is not there reads as zero.
    pub fn read(&mut self, offset: u64, width: Width, now: Ticks) -> u64 {
        self.compare(now);
        let value = match offset & !3 {
            offset::DR => self.counter(now),
            offset::MR => self.matching,
            offset::LR => self.load,
            // Always started.
            offset::CR => 1,
            offset::IMSC => u32::from(self.unmasked),
            offset::RIS => u32::from(self.raw),
            offset::MIS => u32::from(self.raw && self.unmasked),
            // Part 0x031, designer 0x41 (Arm), revision 0.
            offset::PERIPH_ID0 => 0x31,
            offset::PERIPH_ID1 => 0x10,
            offset::PERIPH_ID2 => 0x04,
            offset::PCELL_ID0 => 0x0D,
            offset::PCELL_ID1 => 0xF0,
            offset::PCELL_ID2 => 0x05,
            offset::PCELL_ID3 => 0xB1,
            _ => 0,
        };
        width.truncate(u64::from(value) >> (8 * (offset & 3)))
    }

    /// A write. One that does not begin at a register that can be written has no effect.
    pub fn write(&mut self, offset: u64, width: Width, value: u64, now: Ticks) {
        self.compare(now);
        let value = width.truncate(value) as u32;
        match offset {
            offset::MR => {
                self.matching = value;
                self.raw |= self.counter(now) == value;
            }
            offset::LR => {
                self.load = value;
                self.base = value.wrapping_sub(self.seconds(now) as u32);
                self.compared = value;
                self.raw |= self.matching == value;
            }
            offset::IMSC => self.unmasked = value & 1 != 0,
            offset::ICR if value & 1 != 0 => self.raw = false,
            _ => {}
        }
    }

    /// Whole seconds since the clock was made.
    fn seconds(&self, now: Ticks) -> u64 {
        let elapsed = now.0.saturating_sub(self.origin.0);
        elapsed.checked_div(u64::from(self.frequency.hertz())).unwrap_or(0)
    }

    fn counter(&self, now: Ticks) -> u32 {
        self.base.wrapping_add(self.seconds(now) as u32)
    }

    /// Whether the counter has passed the match register on its way to `shown`.
    fn is_due(&self, shown: u32) -> bool {
        shown.wrapping_sub(self.matching) < shown.wrapping_sub(self.compared)
    }

    /// Notices a match since the last time.
    fn compare(&mut self, now: Ticks) {
        let shown = self.counter(now);
        self.raw |= self.is_due(shown);
        self.compared = shown;
    }
}

#[cfg(test)]
mod tests {
    use super::offset::*;
    use super::*;

    const HERTZ: u64 = 24_000_000;
    const EPOCH: u64 = 1_700_000_000;

    /// `seconds` after the clock was made, which was not at tick zero.
    fn at(seconds: u64) -> Ticks {
        Ticks(777 + seconds * HERTZ)
    }

    fn clock() -> Pl031 {
        Pl031::new(EPOCH, at(0), Frequency::new(HERTZ as u32).unwrap())
    }

    fn read(clock: &mut Pl031, offset: u64, seconds: u64) -> u64 {
        clock.read(offset, Width::Word, at(seconds))
    }

    fn write(clock: &mut Pl031, offset: u64, value: u64, seconds: u64) {
        clock.write(offset, Width::Word, value, at(seconds));
    }

    #[test]
    fn the_identification_is_an_arm_pl031() {
        let mut clock = clock();
        let mut word =
            |base: u64| (0..4).fold(0, |id, n| id | read(&mut clock, base + 4 * n, 0) << (8 * n));
        assert_eq!(word(0xFE0), 0x0004_1031);
        assert_eq!(word(0xFF0), 0xB105_F00D);
    }

    #[test]
    fn it_counts_whole_seconds_from_its_epoch() {
        let mut clock = clock();
        assert_eq!(read(&mut clock, DR, 0), EPOCH);
        assert_eq!(clock.read(DR, Width::Word, Ticks(777 + HERTZ - 1)), EPOCH);
        assert_eq!(read(&mut clock, DR, 1), EPOCH + 1);
        assert_eq!(read(&mut clock, DR, 86_400), EPOCH + 86_400);
        assert_eq!(read(&mut clock, CR, 0), 1);
        // A counter that is behind the origin is no reason to jump.
        assert_eq!(clock.read(DR, Width::Word, Ticks(0)), EPOCH);
    }

    #[test]
    fn the_guest_can_set_it() {
        let mut clock = clock();
        write(&mut clock, LR, 5, 100);
        assert_eq!(read(&mut clock, DR, 100), 5);
        assert_eq!(read(&mut clock, DR, 110), 15);
        assert_eq!(read(&mut clock, LR, 110), 5);
        write(&mut clock, LR, 0xFFFF_FFFF, 110);
        assert_eq!(read(&mut clock, DR, 111), 0);
    }

    #[test]
    fn the_alarm_rises_when_due_and_stays_until_cleared() {
        let mut clock = clock();
        write(&mut clock, MR, EPOCH + 10, 0);
        write(&mut clock, IMSC, 1, 0);
        assert_eq!(clock.deadline(at(3)), Some(at(10)));
        assert!(!clock.interrupt_line(at(9)));
        assert!(clock.interrupt_line(at(12)));
        assert_eq!((read(&mut clock, RIS, 13), read(&mut clock, MIS, 13)), (1, 1));
        assert_eq!(clock.deadline(at(13)), None);
        write(&mut clock, ICR, 0, 13);
        assert!(clock.interrupt_line(at(13)));
        write(&mut clock, ICR, 1, 13);
        assert!(!clock.interrupt_line(at(14)));
        assert_eq!(clock.deadline(at(14)), Some(at(10 + (1 << 32))));
    }

    #[test]
    fn an_alarm_passed_while_nobody_looked_is_due_now() {
        let mut clock = clock();
        write(&mut clock, MR, EPOCH + 2, 0);
        write(&mut clock, IMSC, 1, 0);
        assert_eq!(clock.deadline(at(5)), Some(at(5)));
        assert!(clock.interrupt_line(at(5)));
    }

    #[test]
    fn a_masked_alarm_is_raw_only() {
        let mut clock = clock();
        write(&mut clock, MR, EPOCH + 1, 0);
        assert_eq!(clock.deadline(at(0)), None);
        assert!(!clock.interrupt_line(at(1)));
        assert_eq!((read(&mut clock, RIS, 1), read(&mut clock, MIS, 1)), (1, 0));
        write(&mut clock, IMSC, 1, 1);
        assert!(clock.interrupt_line(at(1)));
    }

    #[test]
    fn an_alarm_for_this_very_second_matches_at_once() {
        let mut clock = clock();
        write(&mut clock, IMSC, 1, 0);
        write(&mut clock, MR, EPOCH + 4, 4);
        assert!(clock.interrupt_line(at(4)));
        write(&mut clock, ICR, 1, 4);
        assert!(!clock.interrupt_line(at(4)));
        write(&mut clock, LR, EPOCH + 4, 9);
        assert!(clock.interrupt_line(at(9)));
    }

    #[test]
    fn setting_the_clock_past_the_alarm_does_not_ring_it() {
        let mut clock = clock();
        write(&mut clock, IMSC, 1, 0);
        write(&mut clock, MR, EPOCH + 10, 0);
        write(&mut clock, LR, EPOCH + 100, 1);
        assert!(!clock.interrupt_line(at(2)));
        write(&mut clock, LR, EPOCH, 2);
        assert_eq!(clock.deadline(at(2)), Some(at(12)));
    }

    #[test]
    fn a_reset_ends_the_alarm_and_keeps_the_time() {
        let mut clock = clock();
        write(&mut clock, LR, 500, 1);
        write(&mut clock, IMSC, 1, 1);
        write(&mut clock, MR, 502, 1);
        assert!(clock.interrupt_line(at(3)));
        clock.reset(at(4));
        assert!(!clock.interrupt_line(at(5)));
        assert_eq!(clock.deadline(at(5)), None);
        for offset in [MR, LR, IMSC, RIS, MIS] {
            assert_eq!(read(&mut clock, offset, 5), 0, "{offset:#x}");
        }
        assert_eq!(read(&mut clock, DR, 6), 505);
    }

    #[test]
    fn registers_that_are_read_only_or_absent_ignore_writes() {
        let mut clock = clock();
        for offset in [DR, CR, RIS, MIS, 0x020, 0xFE0, MR + 1] {
            write(&mut clock, offset, u64::MAX, 0);
        }
        assert_eq!(read(&mut clock, DR, 0), EPOCH);
        assert_eq!((read(&mut clock, CR, 0), read(&mut clock, RIS, 0)), (1, 0));
        assert_eq!((read(&mut clock, MR, 0), read(&mut clock, 0x020, 0)), (0, 0));
    }

    #[test]
    fn narrow_reads_give_the_bytes_they_ask_for() {
        let mut clock = clock();
        write(&mut clock, MR, 0x1234_5678, 0);
        assert_eq!(clock.read(MR, Width::Byte, at(0)), 0x78);
        assert_eq!(clock.read(MR + 2, Width::Half, at(0)), 0x1234);
        assert_eq!(clock.read(MR, Width::Double, at(0)), 0x1234_5678);
    }
}
