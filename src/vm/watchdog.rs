//! A generic watchdog for the guest (Arm Base System Architecture, DEN 0094, "Generic Watchdog",
//! version 1: an offset of 48 bits): two frames, one to refresh it and one to set it up.
//!
//! When the counter passes the compare value, the watchdog first raises WS0, its interrupt, and sets
//! the compare value once more; the second time it raises WS1, which resets the machine it is in.
//! Linux drives it as `arm,sbsa-gwdt`.
//!
//! It has no time of its own: every call says what time it is. An expiry is noticed at the first
//! call after it; [`Watchdog::deadline`] says when that should be. A guest that did not run for a
//! while thus has its full offset left between WS0 and WS1.

use crate::backend::clock::Ticks;
use crate::cpu::Width;

/// Size of each frame in bytes, as described to the guest.
pub const SIZE: u64 = 0x1000;

/// A page of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The refresh frame.
    Refresh,
    /// The control frame.
    Control,
}

/// Offsets in the control frame, but for [`offset::WRR`], and [`offset::IIDR`] which is in both.
mod offset {
    pub(super) const WRR: u64 = 0x000;
    pub(super) const WCS: u64 = 0x000;
    pub(super) const WOR: u64 = 0x008;
    pub(super) const WOR_HIGH: u64 = 0x00C;
    pub(super) const WCV: u64 = 0x010;
    pub(super) const WCV_HIGH: u64 = 0x014;
    pub(super) const IIDR: u64 = 0xFCC;
}

/// WCS.EN.
const ENABLED: u64 = 1 << 0;
/// WCS.WS0.
const WS0: u64 = 1 << 1;
/// WCS.WS1.
const WS1: u64 = 1 << 2;
/// W_IIDR: architecture version 1 in bits 19:16; no product, no implementer.
const IIDR_VALUE: u64 = 1 << 16;
/// WOR has 48 bits.
const OFFSET_BITS: u64 = (1 << 48) - 1;

/// The watchdog.
#[derive(Clone, Debug)]
pub struct Watchdog {
    /// What the guest's counter is behind the board's (CNTVOFF_EL2).
    behind: Ticks,
    enabled: bool,
    ws0: bool,
    ws1: bool,
    /// WOR.
    offset: u64,
    /// WCV, in the guest's counter.
    compare: u64,
}

impl Watchdog {
    /// A watchdog that is off. The guest's counter is `behind` the board's by this much: its
    /// CNTVOFF_EL2.
    pub const fn new(behind: Ticks) -> Self {
        Self { behind, enabled: false, ws0: false, ws1: false, offset: 0, compare: 0 }
    }

    /// The machine is reset, and its counter now `behind` by this much. The watchdog is off; if it
    /// was the cause, WS1 stays for the guest to see.
    pub fn reset(&mut self, behind: Ticks) {
        let ws1 = self.enabled && self.ws1;
        *self = Self { ws1, ..Self::new(behind) };
    }

    /// The machine goes on after it stood still, and its counter with it: that is now `behind` by this
    /// much. What was left until it expires is left still.
    pub fn resume(&mut self, behind: Ticks) {
        self.behind = behind;
    }

    /// What it signals, as of the last call that said what time it was: its interrupt (WS0), and that the
    /// machine is to be reset (WS1).
    pub const fn signals(&self) -> (bool, bool) {
        (self.ws0, self.enabled && self.ws1)
    }

    /// The level of the interrupt line: WS0.
    pub fn interrupt_line(&mut self, now: Ticks) -> bool {
        self.expire(now);
        self.ws0
    }

    /// Whether it has expired twice: the machine is to be reset.
    pub fn has_expired(&mut self, now: Ticks) -> bool {
        self.expire(now);
        self.enabled && self.ws1
    }

    /// When it will expire next, if it will.
    pub fn deadline(&self, now: Ticks) -> Option<Ticks> {
        if !self.enabled || self.ws1 {
            return None;
        }
        match self.compare.checked_sub(self.counter(now)) {
            None => Some(now),
            Some(left) => Some(now.after(Ticks(left)).after(Ticks(1))),
        }
    }

    /// A read. Registers are 32 bits wide; WOR and WCV can also be read whole. All else reads as
    /// zero.
    pub fn read(&mut self, frame: Frame, offset: u64, width: Width, now: Ticks) -> u64 {
        self.expire(now);
        let value = match (offset, width) {
            (offset::IIDR, Width::Word) => IIDR_VALUE,
            _ if frame == Frame::Refresh => 0,
            (offset::WCS, Width::Word) => {
                let bit = |set: bool, bit: u64| if set { bit } else { 0 };
                bit(self.enabled, ENABLED) | bit(self.ws0, WS0) | bit(self.ws1, WS1)
            }
            (offset::WOR, Width::Word | Width::Double) => self.offset,
            (offset::WOR_HIGH, Width::Word) => self.offset >> 32,
            (offset::WCV, Width::Word | Width::Double) => self.compare,
            (offset::WCV_HIGH, Width::Word) => self.compare >> 32,
            _ => 0,
        };
        width.truncate(value)
    }

    /// A write. What is not a register, or not with this width, is ignored.
    pub fn write(&mut self, frame: Frame, offset: u64, width: Width, value: u64, now: Ticks) {
        self.expire(now);
        let value = width.truncate(value);
        let low = |register: u64| register & !0xFFFF_FFFF | value;
        let high = |register: u64| register & 0xFFFF_FFFF | value << 32;
        match (frame, offset, width) {
            (Frame::Refresh, offset::WRR, Width::Word) => self.refresh(now),
            (Frame::Control, offset::WCS, Width::Word) => {
                self.enabled = value & ENABLED != 0;
                self.refresh(now);
            }
            (Frame::Control, offset::WOR, Width::Word) => self.set_offset(low(self.offset), now),
            (Frame::Control, offset::WOR, Width::Double) => self.set_offset(value, now),
            (Frame::Control, offset::WOR_HIGH, Width::Word) => {
                self.set_offset(high(self.offset), now);
            }
            (Frame::Control, offset::WCV, Width::Word) => self.compare = low(self.compare),
            (Frame::Control, offset::WCV, Width::Double) => self.compare = value,
            (Frame::Control, offset::WCV_HIGH, Width::Word) => self.compare = high(self.compare),
            _ => {}
        }
    }

    /// The guest's counter.
    fn counter(&self, now: Ticks) -> u64 {
        now.0.wrapping_sub(self.behind.0)
    }

    /// The compare value is the offset away again.
    fn rewind(&mut self, now: Ticks) {
        self.compare = self.counter(now).saturating_add(self.offset);
    }

    /// An explicit refresh: a write to WRR, WOR or WCS.
    fn refresh(&mut self, now: Ticks) {
        (self.ws0, self.ws1) = (false, false);
        self.rewind(now);
    }

    fn set_offset(&mut self, offset: u64, now: Ticks) {
        self.offset = offset & OFFSET_BITS;
        self.refresh(now);
    }

    /// Notices one expiry.
    fn expire(&mut self, now: Ticks) {
        if !self.enabled || self.counter(now) <= self.compare {
            return;
        }
        if self.ws0 {
            self.ws1 = true;
        } else {
            self.ws0 = true;
            self.rewind(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::offset::*;
    use super::*;

    const BEHIND: u64 = 5000;
    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];
    const FRAMES: [Frame; 2] = [Frame::Refresh, Frame::Control];

    /// This much after the guest's counter was zero.
    fn at(counter: u64) -> Ticks {
        Ticks(BEHIND + counter)
    }

    fn control(watchdog: &mut Watchdog, offset: u64, counter: u64) -> u64 {
        watchdog.read(Frame::Control, offset, Width::Word, at(counter))
    }

    fn set(watchdog: &mut Watchdog, offset: u64, value: u64, counter: u64) {
        watchdog.write(Frame::Control, offset, Width::Word, value, at(counter));
    }

    /// Enabled at 0, with an offset of 100.
    fn running() -> Watchdog {
        let mut watchdog = Watchdog::new(Ticks(BEHIND));
        set(&mut watchdog, WOR, 100, 0);
        set(&mut watchdog, WCS, 1, 0);
        watchdog
    }

    #[test]
    fn the_first_expiry_interrupts_and_the_second_resets() {
        let mut watchdog = running();
        assert_eq!(watchdog.deadline(at(0)), Some(at(101)));
        assert!(!watchdog.interrupt_line(at(100)));
        assert!(watchdog.interrupt_line(at(101)));
        assert_eq!(control(&mut watchdog, WCS, 101), 0b011);
        assert_eq!(control(&mut watchdog, WCV, 101), 201);
        assert_eq!(watchdog.deadline(at(101)), Some(at(202)));
        assert!(!watchdog.has_expired(at(201)));
        assert!(watchdog.has_expired(at(202)));
        assert_eq!(control(&mut watchdog, WCS, 202), 0b111);
        assert_eq!(watchdog.deadline(at(202)), None);
    }

    #[test]
    fn a_machine_that_goes_on_has_left_what_was_left() {
        let mut watchdog = running();
        // It stood still from 40 to 1040.
        watchdog.resume(Ticks(BEHIND + 1000));
        assert!(!watchdog.interrupt_line(at(1100)));
        assert_eq!(watchdog.deadline(at(1100)), Some(at(1101)));
        assert!(watchdog.interrupt_line(at(1101)));
        watchdog.resume(Ticks(BEHIND + 5000));
        assert!(!watchdog.has_expired(at(5201)));
        assert!(watchdog.has_expired(at(5202)));
        let mut off = Watchdog::new(Ticks(BEHIND));
        off.resume(Ticks(BEHIND + 1000));
        assert_eq!((off.deadline(at(1000)), control(&mut off, WCV, 1000)), (None, 0));
    }

    #[test]
    fn a_guest_that_did_not_run_has_its_offset_left_after_the_interrupt() {
        let mut watchdog = running();
        assert_eq!(watchdog.deadline(at(1_000_000)), Some(at(1_000_000)));
        assert!(watchdog.interrupt_line(at(1_000_000)));
        assert!(!watchdog.has_expired(at(1_000_100)));
        assert!(watchdog.has_expired(at(1_000_101)));
    }

    #[test]
    fn every_refresh_takes_the_signals_back() {
        for (frame, offset, value) in
            [(Frame::Refresh, WRR, 0), (Frame::Control, WCS, 1), (Frame::Control, WOR, 100)]
        {
            let mut watchdog = running();
            assert!(watchdog.interrupt_line(at(150)));
            watchdog.write(frame, offset, Width::Word, value, at(160));
            assert!(!watchdog.interrupt_line(at(260)));
            assert_eq!(control(&mut watchdog, WCV, 260), 260);
            assert!(watchdog.interrupt_line(at(261)));
        }
        let mut watchdog = running();
        assert!(watchdog.interrupt_line(at(150)));
        set(&mut watchdog, WCV, 1000, 160);
        assert!(watchdog.interrupt_line(at(170)), "a compare value is no refresh");
        assert_eq!(watchdog.deadline(at(170)), Some(at(1001)));
    }

    #[test]
    fn while_it_is_off_it_does_not_expire() {
        let mut watchdog = running();
        set(&mut watchdog, WCS, 0, 50);
        assert_eq!(watchdog.deadline(at(50)), None);
        assert!(!watchdog.interrupt_line(at(u64::MAX / 2)));
        assert!(!watchdog.has_expired(at(u64::MAX / 2)));
        assert_eq!(control(&mut watchdog, WCS, 0), 0);
    }

    #[test]
    fn after_a_reset_it_is_off_and_says_if_it_was_the_cause() {
        let mut watchdog = running();
        assert!(watchdog.interrupt_line(at(150)));
        assert!(watchdog.has_expired(at(300)));
        watchdog.reset(at(300));
        assert!(!watchdog.has_expired(at(400)) && !watchdog.interrupt_line(at(400)));
        assert_eq!(watchdog.deadline(at(400)), None);
        assert_eq!(watchdog.read(Frame::Control, WCS, Width::Word, at(400)), 0b100);
        assert_eq!(watchdog.read(Frame::Control, WOR, Width::Word, at(400)), 0);
        watchdog.reset(at(500));
        assert_eq!(watchdog.read(Frame::Control, WCS, Width::Word, at(500)), 0);
    }

    #[test]
    fn the_offset_has_48_bits_and_registers_can_be_written_in_halves_or_whole() {
        let mut watchdog = Watchdog::new(Ticks(BEHIND));
        set(&mut watchdog, WOR, 0x1111_2222, 0);
        set(&mut watchdog, WOR_HIGH, 0xFFFF_3333, 0);
        assert_eq!(watchdog.read(Frame::Control, WOR, Width::Double, at(0)), 0x3333_1111_2222);
        assert_eq!(control(&mut watchdog, WOR_HIGH, 0), 0x3333);
        watchdog.write(Frame::Control, WOR, Width::Double, u64::MAX, at(0));
        assert_eq!(watchdog.read(Frame::Control, WOR, Width::Double, at(0)), OFFSET_BITS);
        set(&mut watchdog, WCV, 1, 0);
        set(&mut watchdog, WCV_HIGH, 2, 0);
        assert_eq!(watchdog.read(Frame::Control, WCV, Width::Double, at(0)), 2 << 32 | 1);
        watchdog.write(Frame::Control, WCV, Width::Double, u64::MAX, at(0));
        assert_eq!(control(&mut watchdog, WCV_HIGH, 0), 0xFFFF_FFFF);
    }

    #[test]
    fn what_is_no_register_reads_as_zero_and_ignores_writes() {
        for (frame, width) in
            FRAMES.into_iter().flat_map(|frame| WIDTHS.map(|width| (frame, width)))
        {
            for offset in 0..SIZE {
                let here = |offsets: &[u64]| offsets.contains(&offset);
                let written = match (frame, width) {
                    (Frame::Refresh, Width::Word) => here(&[WRR]),
                    (Frame::Control, Width::Word) => here(&[WCS, WOR, WOR_HIGH, WCV, WCV_HIGH]),
                    (Frame::Control, Width::Double) => here(&[WOR, WCV]),
                    _ => false,
                };
                let read = (written && frame == Frame::Control)
                    || (width == Width::Word && offset == IIDR);
                let mut watchdog = running();
                set(&mut watchdog, WCV_HIGH, 1, 0);
                set(&mut watchdog, WOR_HIGH, 1, 0);
                assert_eq!(watchdog.read(frame, offset, width, at(0)) != 0, read, "{offset:#x}");
                let before = format!("{watchdog:?}");
                watchdog.write(frame, offset, width, 0x10, at(7));
                assert_eq!(format!("{watchdog:?}") != before, written, "{frame:?} {offset:#x}");
            }
        }
    }

    proptest! {
        /// Any accesses at any times: WS1 never without WS0 before, and a deadline that is kept
        /// brings the signal.
        #[test]
        fn any_trace_keeps_the_order_of_its_signals(
            behind in any::<u64>(),
            steps in prop::collection::vec(
                (any::<bool>(), 0..6u64, any::<bool>(), prop_oneof![0..4u64, any::<u64>()],
                 prop_oneof![0..300u64, any::<u64>()]),
                1..60,
            ),
        ) {
            let mut watchdog = Watchdog::new(Ticks(behind));
            let mut now = Ticks(behind);
            for (refresh, register, double, value, wait) in steps {
                let frame = FRAMES[usize::from(!refresh)];
                let width = if double { Width::Double } else { Width::Word };
                watchdog.write(frame, register * 4, width, value, now);
                let status = watchdog.read(Frame::Control, WCS, Width::Word, now);
                prop_assert!(status & WS1 == 0 || status & WS0 != 0);
                if let Some(deadline) = watchdog.deadline(now) {
                    prop_assert!(deadline >= now);
                    if deadline.0 < u64::MAX && deadline.0 >= behind {
                        let line = watchdog.clone().interrupt_line(deadline);
                        prop_assert!(line);
                    }
                }
                now = now.after(Ticks(wait));
            }
        }
    }
}
