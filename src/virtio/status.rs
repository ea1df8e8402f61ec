//! The device status field (2.1) as a table of what each bit presupposes.

bitflags::bitflags! {
    /// The device status field.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Status: u32 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for the device.
        const DRIVER = 2;
        /// The driver is set up; the device is live.
        const DRIVER_OK = 4;
        /// The features are agreed.
        const FEATURES_OK = 8;
        /// The device is in an error from which only a reset leads out.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

/// What becomes of a write to the status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    /// Zero: reset the device.
    Reset,
    /// These bits are to be set, one after the other in the order of [`STEPS`]; none is set yet.
    /// Empty for a write that changes nothing.
    Set(Status),
    /// The write would clear a bit, which only a reset may do (2.1.1). It has no effect.
    Ignored,
}

/// One step of initialisation (3.1.1): a bit, the bits it presupposes, and the bits that bar it.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The bit the driver sets.
    pub bit: Status,
    /// Must be set before.
    pub after: Status,
    /// Must not be set.
    pub unless: Status,
}

const STOPPED: Status = Status::FAILED.union(Status::DEVICE_NEEDS_RESET);

/// The steps in the order in which they are taken. A driver may take several in one write.
pub const STEPS: [Step; 5] = [
    Step { bit: Status::ACKNOWLEDGE, after: Status::empty(), unless: STOPPED },
    Step { bit: Status::DRIVER, after: Status::ACKNOWLEDGE, unless: STOPPED },
    Step { bit: Status::FEATURES_OK, after: Status::DRIVER, unless: STOPPED },
    Step { bit: Status::DRIVER_OK, after: Status::FEATURES_OK, unless: STOPPED },
    Step { bit: Status::FAILED, after: Status::empty(), unless: Status::empty() },
];

/// The bits a driver may set.
const OF_DRIVER: Status = Status::DEVICE_NEEDS_RESET.complement();

impl Status {
    /// What a write of `value` means while the field is `self`.
    ///
    /// Bits the specification does not define, and DEVICE_NEEDS_RESET, which is the device's, are
    /// ignored.
    pub fn write(self, value: u32) -> StatusWrite {
        if value == 0 {
            return StatusWrite::Reset;
        }
        let value = Status::from_bits_truncate(value);
        if !value.contains(self.intersection(OF_DRIVER)) {
            return StatusWrite::Ignored;
        }
        StatusWrite::Set(value.intersection(OF_DRIVER).difference(self))
    }

    /// Whether `step` may be taken while the field is `self`.
    pub fn allows(self, step: &Step) -> bool {
        self.contains(step.after) && !self.intersects(step.unless)
    }

    /// Whether the device may work on its queues.
    #[inline]
    pub fn is_live(self) -> bool {
        self.intersection(STOPPED.union(Status::DRIVER_OK)) == Status::DRIVER_OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the steps of a write as the transport does when the device agrees to everything.
    fn written(status: Status, value: u32) -> Option<Status> {
        match status.write(value) {
            StatusWrite::Reset => Some(Status::empty()),
            StatusWrite::Ignored => None,
            StatusWrite::Set(bits) => {
                let mut status = status;
                for step in STEPS.iter().filter(|step| bits.contains(step.bit)) {
                    if status.allows(step) {
                        status.insert(step.bit);
                    }
                }
                Some(status)
            }
        }
    }

    #[test]
    fn a_driver_may_go_step_by_step_or_take_steps_at_once() {
        let mut status = Status::empty();
        for value in [1, 3, 11, 15] {
            status = written(status, value).unwrap();
            assert_eq!(status.bits(), value);
        }
        assert_eq!(written(Status::empty(), 3).unwrap().bits(), 3);
        assert_eq!(written(Status::empty(), 15).unwrap().bits(), 15);
    }

    #[test]
    fn a_step_without_its_predecessor_is_not_taken() {
        assert_eq!(written(Status::empty(), 2).unwrap().bits(), 0);
        assert_eq!(written(Status::empty(), 8).unwrap().bits(), 0);
        assert_eq!(written(Status::from_bits_retain(3), 7).unwrap().bits(), 3);
        assert_eq!(written(Status::from_bits_retain(1), 9).unwrap().bits(), 1);
    }

    #[test]
    fn only_a_reset_clears_bits() {
        for value in 1..16 {
            let outcome = written(Status::from_bits_retain(15), value);
            assert_eq!(outcome, (value == 15).then_some(Status::from_bits_retain(15)));
        }
        assert_eq!(written(Status::from_bits_retain(0xCF), 0), Some(Status::empty()));
    }

    #[test]
    fn a_failed_or_broken_device_goes_no_further() {
        let failed = Status::from_bits_retain(3) | Status::FAILED;
        assert_eq!(written(failed, 0x8B), Some(failed));
        let broken = Status::from_bits_retain(11) | Status::DEVICE_NEEDS_RESET;
        assert_eq!(written(broken, 15), Some(broken));
        assert_eq!(written(broken, 0x8B), Some(broken | Status::FAILED));
    }

    #[test]
    fn a_driver_cannot_set_the_devices_bit_nor_undefined_ones() {
        assert_eq!(written(Status::empty(), 0x40 | 0x10 | 0x100 | 1).unwrap().bits(), 1);
    }

    #[test]
    fn only_driver_ok_without_an_error_is_live() {
        for bits in 0..256 {
            let status = Status::from_bits_retain(bits);
            assert_eq!(status.is_live(), bits & 4 != 0 && bits & 0xC0 == 0);
        }
    }
}
