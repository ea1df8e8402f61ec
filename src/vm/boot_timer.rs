//! The boot timer: a page of registers by which a guest says how far it has come, and what is known of
//! its boot without its help. All times are the board's ticks; see `docs/monitor.md`.
//!
//! | offset | access | |
//! |---|---|---|
//! | 0x000 | write, any size | a mark: the low byte says which; 123 is Firecracker's end of the boot |
//! | 0x000 | read | microseconds since the machine's start, at most 2^32 - 1 |
//! | 0x008 | read | the same in ticks; 64 bits, or the low half |
//! | 0x00C | read | the high half |
//!
//! Everything else reads as zero, and writes there are ignored.

use crate::backend::clock::{Frequency, Ticks};
use crate::vm::machine::MAX_DEVICES;

/// Size of the page in bytes.
pub const SIZE: u64 = 0x1000;

/// Marks that are kept of one boot; those after them are only counted.
pub const MAX_MARKS: usize = 8;

const MARK: u64 = 0x0;
const TICKS: u64 = 0x8;
const TICKS_HIGH: u64 = 0xC;

/// What is known of the machine's last boot. Times but for the first are since then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Milestones {
    /// When it was started; `None` if it never was.
    pub start: Option<Ticks>,
    /// Its first access to a device.
    pub first_mmio: Option<Ticks>,
    /// For each virtio slot, when its driver first set DRIVER_OK.
    pub driver_ok: [Option<Ticks>; MAX_DEVICES],
    /// What the guest has marked.
    pub marks: heapless::Vec<(u8, Ticks), MAX_MARKS>,
    /// Marks that were not kept.
    pub lost_marks: u32,
}

impl Milestones {
    /// Of a machine that was never started.
    pub const NONE: Self = Self {
        start: None,
        first_mmio: None,
        driver_ok: [None; MAX_DEVICES],
        marks: heapless::Vec::new(),
        lost_marks: 0,
    };

    /// The machine starts.
    pub fn begin(&mut self, now: Ticks) {
        *self = Self { start: Some(now), ..Self::NONE };
    }

    fn since_start(&self, now: Ticks) -> Ticks {
        Ticks(self.start.map_or(0, |start| now.0.saturating_sub(start.0)))
    }

    /// The guest accesses a device.
    pub fn access(&mut self, now: Ticks) {
        let time = self.since_start(now);
        self.first_mmio.get_or_insert(time);
    }

    /// The driver of the device in `slot` has set DRIVER_OK.
    pub fn driver_ok(&mut self, slot: usize, now: Ticks) {
        let time = self.since_start(now);
        if let Some(place) = self.driver_ok.get_mut(slot) {
            place.get_or_insert(time);
        }
    }

    /// The guest's load of `bytes` bytes at `offset` of the page.
    pub fn read(&self, offset: u64, bytes: u64, now: Ticks, frequency: Frequency) -> u64 {
        let ticks = self.since_start(now);
        match offset {
            MARK => frequency.microseconds(ticks).min(u32::MAX.into()),
            TICKS if bytes == 8 => ticks.0,
            TICKS => ticks.0 & 0xffff_ffff,
            TICKS_HIGH => ticks.0 >> 32,
            _ => 0,
        }
    }

    /// The guest's store of `value` at `offset` of the page.
    pub fn write(&mut self, offset: u64, value: u64, now: Ticks) {
        if offset == MARK && self.marks.push((value as u8, self.since_start(now))).is_err() {
            self.lost_marks = self.lost_marks.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MHZ: Frequency = Frequency::new(10_000_000).unwrap();

    #[test]
    fn times_are_since_the_start_in_ticks_and_microseconds() {
        let mut boot = Milestones::NONE;
        assert_eq!(boot.read(0, 4, Ticks(1000), MHZ), 0);
        boot.begin(Ticks(1000));
        assert_eq!(boot.read(0, 4, Ticks(1000), MHZ), 0);
        assert_eq!(boot.read(0, 4, Ticks(21_009), MHZ), 2000);
        assert_eq!(boot.read(8, 4, Ticks(21_009), MHZ), 20_009);
        let late = Ticks(1000 + 0x1_2345_6789);
        assert_eq!(boot.read(8, 8, late, MHZ), 0x1_2345_6789);
        assert_eq!((boot.read(8, 4, late, MHZ), boot.read(12, 4, late, MHZ)), (0x2345_6789, 1));
        assert_eq!(boot.read(0, 4, Ticks(u64::MAX), MHZ), 0xffff_ffff);
        for offset in [4, 16, 0xffc] {
            assert_eq!(boot.read(offset, 4, late, MHZ), 0);
        }
    }

    #[test]
    fn of_what_happens_again_the_first_time_counts_until_the_next_start() {
        let mut boot = Milestones::NONE;
        for start in [100, 1000] {
            boot.begin(Ticks(start));
            for time in [5, 6, 7] {
                boot.access(Ticks(start + time));
                boot.driver_ok(1, Ticks(start + 2 * time));
                boot.driver_ok(MAX_DEVICES, Ticks(start));
            }
            assert_eq!((boot.start, boot.first_mmio), (Some(Ticks(start)), Some(Ticks(5))));
            assert_eq!(boot.driver_ok.iter().flatten().collect::<Vec<_>>(), [&Ticks(10)]);
            assert_eq!(boot.driver_ok[1], Some(Ticks(10)));
        }
    }

    #[test]
    fn so_many_marks_are_kept_and_the_others_counted() {
        let mut boot = Milestones::NONE;
        boot.begin(Ticks(0));
        boot.write(8, 123, Ticks(1));
        assert_eq!(boot.marks, []);
        for n in 0..MAX_MARKS as u64 + 3 {
            boot.write(0, 0xff00 | n, Ticks(n));
        }
        let marks: Vec<_> = (0..MAX_MARKS as u8).map(|n| (n, Ticks(n.into()))).collect();
        assert_eq!((boot.marks.as_slice(), boot.lost_marks), (marks.as_slice(), 3));
    }
}
