//! Processor state as SPSR_ELx holds it (Arm ARM C5.2, SPSR_EL2).

/// A saved processor state: the layout of SPSR_EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Pstate(u64);

impl Pstate {
    /// M\[4:0\]: execution state, exception level, stack pointer.
    pub const MODE: u64 = 0b1_1111;
    /// M\[4\]: AArch32.
    pub const AARCH32: u64 = 1 << 4;
    /// M of EL0 with SP_EL0.
    pub const EL0T: u64 = 0b0_0000;
    /// M of EL1 with SP_EL0.
    pub const EL1T: u64 = 0b0_0100;
    /// M of EL1 with SP_EL1.
    pub const EL1H: u64 = 0b0_0101;
    /// T: T32 instructions (AArch32 only).
    pub const T32: u64 = 1 << 5;
    /// D, A, I and F: debug exceptions, SError, IRQ and FIQ masked.
    pub const DAIF: u64 = 0b1111 << 6;
    /// BTYPE: the kind of the last indirect branch.
    pub const BTYPE: u64 = 0b11 << 10;
    /// SSBS: speculative store bypass allowed.
    pub const SSBS: u64 = 1 << 12;
    /// IL: illegal execution state.
    pub const IL: u64 = 1 << 20;
    /// SS: software step.
    pub const SS: u64 = 1 << 21;
    /// PAN: privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// DIT: data independent timing, in AArch64's place.
    pub const DIT: u64 = 1 << 24;
    /// DIT in AArch32's place, which is AArch64's SS.
    pub const DIT_AARCH32: u64 = 1 << 21;
    /// TCO: tag check override.
    pub const TCO: u64 = 1 << 25;
    /// N, Z, C and V.
    pub const NZCV: u64 = 0b1111 << 28;

    /// IT\[1:0\] (AArch32 only).
    const IT_LOW: u64 = 0b11 << 25;
    /// IT\[7:2\] (AArch32 only).
    const IT_HIGH: u64 = 0b11_1111 << 10;

    /// Wraps the value of an SPSR.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The value for an SPSR.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether this is an AArch32 state; for our guests that can only be EL0.
    #[inline]
    pub const fn is_aarch32(self) -> bool {
        self.0 & Self::AARCH32 != 0
    }

    /// Whether this is a state of EL0, in either execution state.
    #[inline]
    pub const fn is_el0(self) -> bool {
        self.0 & Self::MODE == Self::EL0T || self.is_aarch32()
    }

    /// Whether register 31 as a base is SP_EL1; otherwise it is SP_EL0.
    #[inline]
    pub const fn uses_sp_el1(self) -> bool {
        self.0 & Self::MODE == Self::EL1H
    }

    /// The state after an instruction was completed on the guest's behalf: as the core itself
    /// would leave it, without BTYPE and SS, and one step on in a T32 IT block.
    #[inline]
    pub const fn after_instruction(self) -> Self {
        if self.is_aarch32() {
            return self.after_aarch32_instruction();
        }
        Self(self.0 & !(Self::BTYPE | Self::SS))
    }

    /// AArch32: SS is not in AArch64's place, IT moves on (Arm ARM, AArch32.ITAdvance).
    #[cold]
    const fn after_aarch32_instruction(self) -> Self {
        if self.0 & Self::T32 == 0 {
            return self;
        }
        let state = (self.0 & Self::IT_HIGH) >> 8 | (self.0 & Self::IT_LOW) >> 25;
        let next = if state & 0b111 == 0 { 0 } else { state & 0xE0 | (state << 1) & 0x1F };
        let rest = self.0 & !(Self::IT_HIGH | Self::IT_LOW);
        Self(rest | (next << 8) & Self::IT_HIGH | (next << 25) & Self::IT_LOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_a64_instruction_clears_btype_and_step() {
        let before = Pstate::new(0x6000_0000 | Pstate::EL1H | Pstate::BTYPE | Pstate::SS);
        assert_eq!(before.after_instruction().bits(), 0x6000_0000 | Pstate::EL1H);
    }

    #[test]
    fn levels_and_stack_pointers_follow_the_mode() {
        let user32 = Pstate::new(0b1_0000);
        assert!(user32.is_el0() && user32.is_aarch32() && !user32.uses_sp_el1());
        let (el0, el1t, el1h) =
            (Pstate::new(Pstate::EL0T), Pstate::new(Pstate::EL1T), Pstate::new(Pstate::EL1H));
        assert!(el0.is_el0() && !el0.uses_sp_el1());
        assert!(!el1t.is_el0() && !el1t.uses_sp_el1());
        assert!(!el1h.is_el0() && el1h.uses_sp_el1());
    }

    #[test]
    fn an_it_block_moves_on_one_instruction() {
        let pack = |it: u64| (it >> 2 & 0x3F) << 10 | (it & 3) << 25 | Pstate::T32 | 0x10;
        // ITTE EQ: condition 0000, mask 0110 with the next condition's low bit on top.
        for (it, next) in [(0b0000_0110, 0b0000_1100), (0b0000_1100, 0b0001_1000), (0b0001_1000, 0)]
        {
            assert_eq!(Pstate::new(pack(it)).after_instruction().bits(), pack(next));
        }
        let a32 = Pstate::new(pack(6) & !Pstate::T32);
        assert_eq!(a32.after_instruction(), a32);
    }
}
