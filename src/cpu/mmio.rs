//! One access to a device's registers, and how a load ends in the guest's register.

use super::{DataAbort, GuestRegisters, Register};
use crate::memory::Ipa;

/// How many bytes one access moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    Byte = 0,
    /// Two bytes.
    Half = 1,
    /// Four bytes.
    Word = 2,
    /// Eight bytes.
    Double = 3,
}

impl Width {
    /// The width of two to the low two bits' power, as SAS and the instructions encode it.
    #[inline(always)]
    pub const fn from_log2(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// The width in bytes.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        1 << self as u8
    }

    /// How far a value must be shifted to stand at the top of 64 bits.
    #[inline(always)]
    const fn headroom(self) -> u32 {
        64 - (8 << self as u8)
    }

    /// `value` cut to this width, zero-extended.
    #[inline(always)]
    pub const fn truncate(self, value: u64) -> u64 {
        value << self.headroom() >> self.headroom()
    }

    /// `value` cut to this width, sign-extended.
    #[inline(always)]
    pub const fn sign_extend(self, value: u64) -> u64 {
        ((value << self.headroom()) as i64 >> self.headroom()) as u64
    }
}

/// Where a load goes, and how: the bits of a data abort's syndrome that say it, so that they need not
/// be taken apart before the device has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct LoadTarget(u32);

impl LoadTarget {
    /// SAS, SSE, SRT and SF of ESR_EL2.ISS (Arm ARM D24.2).
    const WIDTH_SHIFT: u32 = 22;
    const SIGN_EXTEND: u32 = 1 << 21;
    const REGISTER_SHIFT: u32 = 16;
    const SIXTY_FOUR: u32 = 1 << 15;
    const FIELDS: u32 =
        3 << Self::WIDTH_SHIFT | Self::SIGN_EXTEND | 31 << Self::REGISTER_SHIFT | Self::SIXTY_FOUR;

    /// A load of `width` to `register` (for XZR the value is dropped, the access still happens),
    /// which may extend the sign; to the whole X register if `sixty_four`, otherwise to W, and the
    /// upper half becomes zero.
    pub const fn new(
        register: Register,
        width: Width,
        sign_extend: bool,
        sixty_four: bool,
    ) -> Self {
        let flags = if sign_extend { Self::SIGN_EXTEND } else { 0 }
            | if sixty_four { Self::SIXTY_FOUR } else { 0 };
        let register = (register.number() as u32) << Self::REGISTER_SHIFT;
        Self((width as u32) << Self::WIDTH_SHIFT | register | flags)
    }

    /// What the syndrome of a load says, ISV being 1.
    #[inline(always)]
    pub(super) const fn from_iss(iss: u32) -> Self {
        Self(iss & Self::FIELDS)
    }

    /// Bytes loaded.
    #[inline(always)]
    pub const fn width(self) -> Width {
        Width::from_log2(self.0 >> Self::WIDTH_SHIFT)
    }

    /// What the register holds after `raw` was loaded.
    #[inline(always)]
    pub const fn extend(self, raw: u64) -> u64 {
        let value = if self.0 & Self::SIGN_EXTEND != 0 {
            self.width().sign_extend(raw)
        } else {
            self.width().truncate(raw)
        };
        if self.0 & Self::SIXTY_FOUR != 0 { value } else { value & 0xFFFF_FFFF }
    }

    /// Completes the load with the device's answer.
    #[inline(always)]
    pub fn complete(self, raw: u64, registers: &mut GuestRegisters) {
        registers.set(Register::from_bits(self.0 >> Self::REGISTER_SHIFT), self.extend(raw));
    }
}

/// The direction of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioKind {
    /// Device to guest.
    Load(LoadTarget),
    /// Guest to device.
    Store {
        /// What is stored, zero-extended from the access's width.
        value: u64,
    },
}

/// One access. Little-endian: we do not advertise mixed endianness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioAccess {
    /// Address of the first byte. An allegation: nothing says that a device is there, nor that it
    /// is aligned.
    pub ipa: Ipa,
    /// Bytes moved.
    pub width: Width,
    /// Which way, and from or to where.
    pub kind: MmioKind,
}

impl MmioAccess {
    /// The access a data abort describes, or `None` if the instruction must be decoded (ISV = 0).
    #[inline(always)]
    pub fn from_abort(abort: DataAbort, ipa: Ipa, registers: &GuestRegisters) -> Option<Self> {
        let instruction = abort.instruction()?;
        let width = instruction.width;
        let kind = if abort.is_write() {
            MmioKind::Store { value: width.truncate(registers.get(instruction.register)) }
        } else {
            MmioKind::Load(abort.load_target())
        };
        Some(Self { ipa, width, kind })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

    #[test]
    fn widths_are_one_two_four_and_eight_bytes() {
        assert_eq!(WIDTHS.map(Width::bytes), [1, 2, 4, 8]);
        assert_eq!([0, 1, 2, 7].map(Width::from_log2), WIDTHS);
    }

    proptest! {
        #[test]
        fn a_load_extends_as_the_instruction_says(raw: u64, sign_extend: bool, sixty_four: bool) {
            for width in WIDTHS {
                let register = Register::from_bits(3);
                let target = LoadTarget::new(register, width, sign_extend, sixty_four);
                let extended = match (width, sign_extend) {
                    (Width::Byte, false) => u64::from(raw as u8),
                    (Width::Byte, true) => raw as i8 as u64,
                    (Width::Half, false) => u64::from(raw as u16),
                    (Width::Half, true) => raw as i16 as u64,
                    (Width::Word, false) => u64::from(raw as u32),
                    (Width::Word, true) => raw as i32 as u64,
                    (Width::Double, _) => raw,
                };
                let expected = if sixty_four { extended } else { u64::from(extended as u32) };
                prop_assert_eq!(target.extend(raw), expected);
            }
        }

        #[test]
        fn the_syndrome_of_a_load_says_where_it_goes(iss: u32) {
            let abort = DataAbort::from_iss(iss & !(1 << 6) | 1 << 24);
            let said = abort.instruction().unwrap();
            let access = MmioAccess::from_abort(abort, Ipa::new(0), &GuestRegisters::new()).unwrap();
            prop_assert_eq!(access.width, said.width);
            prop_assert_eq!(
                access.kind,
                MmioKind::Load(LoadTarget::new(
                    said.register, said.width, said.sign_extend, said.sixty_four
                ))
            );
        }

        #[test]
        fn a_store_carries_the_register_cut_to_the_width(value: u64, number in 0u32..32, sas in 0u32..4) {
            let mut registers = GuestRegisters::new();
            registers.set(Register::from_bits(number), value);
            let abort = DataAbort::from_iss(1 << 24 | sas << 22 | number << 16 | 1 << 6 | 0x07);
            let access = MmioAccess::from_abort(abort, Ipa::new(0x900_0000), &registers).unwrap();
            let stored = if number == 31 { 0 } else { value };
            let mask = [0xFF, 0xFFFF, 0xFFFF_FFFF, u64::MAX][sas as usize];
            prop_assert_eq!(access.kind, MmioKind::Store { value: stored & mask });
            prop_assert_eq!(access.width.bytes(), 1 << sas);
        }
    }

    #[test]
    fn a_load_to_xzr_changes_no_register() {
        let abort = DataAbort::from_iss(1 << 24 | 2 << 22 | 31 << 16 | 0x07);
        let mut registers = GuestRegisters::new();
        let access = MmioAccess::from_abort(abort, Ipa::new(0), &registers).unwrap();
        let MmioKind::Load(target) = access.kind else { panic!("a store") };
        target.complete(u64::MAX, &mut registers);
        assert_eq!(registers, GuestRegisters::new());
    }

    #[test]
    fn an_abort_without_instruction_syndrome_is_no_access_yet() {
        let abort = DataAbort::from_iss(0x00FF_FFFF);
        assert_eq!(MmioAccess::from_abort(abort, Ipa::new(0), &GuestRegisters::new()), None);
    }
}
