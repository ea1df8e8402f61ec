//! A guest's general-purpose registers, as the exit vector saves them.

use core::mem::offset_of;

use super::{InstructionLength, Pstate};

/// The number of a general-purpose register in an instruction or a syndrome: 0 to 31, where 31 is
/// XZR (or, as a base, SP; see [`super::decode`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Register(u8);

impl Register {
    /// XZR: reads as zero, writes are discarded.
    pub const ZERO: Register = Register(31);

    /// The register named by the low five bits.
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self((bits & 31) as u8)
    }

    /// The number, 0 to 31.
    #[inline]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What the exit vector saves: x0 to x30, then ELR_EL2 and SPSR_EL2.
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestRegisters {
    /// Thirty-one of them: that register 31 is not there is the XZR rule.
    x: [u64; 31],
    /// ELR_EL2: where the guest goes on.
    pub pc: u64,
    /// SPSR_EL2: the state it goes on in.
    pub pstate: Pstate,
}

impl GuestRegisters {
    /// Bytes from the start of the structure to x0; xN follows at eight times N.
    pub const X_OFFSET: usize = offset_of!(GuestRegisters, x);
    /// Bytes from the start of the structure to the program counter.
    pub const PC_OFFSET: usize = offset_of!(GuestRegisters, pc);
    /// Bytes from the start of the structure to the processor state.
    pub const PSTATE_OFFSET: usize = offset_of!(GuestRegisters, pstate);

    /// All registers zero.
    pub const fn new() -> Self {
        Self { x: [0; 31], pc: 0, pstate: Pstate::new(0) }
    }

    /// The value of a register; zero for XZR.
    #[inline(always)]
    pub fn get(&self, register: Register) -> u64 {
        match self.x.get(register.0 as usize) {
            Some(value) => *value,
            None => 0,
        }
    }

    /// Sets a register; no effect for XZR.
    #[inline(always)]
    pub fn set(&mut self, register: Register, value: u64) {
        if let Some(slot) = self.x.get_mut(register.0 as usize) {
            *slot = value;
        }
    }

    /// x0 to x3: a call's function and arguments (SMCCC).
    #[inline]
    pub fn arguments(&self) -> [u64; 4] {
        let [x0, x1, x2, x3, ..] = self.x;
        [x0, x1, x2, x3]
    }

    /// Sets x0, where a call returns its result.
    #[inline]
    pub fn set_result(&mut self, value: u64) {
        self.set(Register(0), value);
    }

    /// Steps over an instruction that was completed on the guest's behalf.
    #[inline(always)]
    pub fn complete_instruction(&mut self, length: InstructionLength) {
        self.pc = self.pc.wrapping_add(length.bytes());
        self.pstate = self.pstate.after_instruction();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_what_a_vector_expects() {
        assert_eq!(GuestRegisters::X_OFFSET, 0);
        assert_eq!(GuestRegisters::PC_OFFSET, 31 * 8);
        assert_eq!(GuestRegisters::PSTATE_OFFSET, 32 * 8);
        assert_eq!(size_of::<GuestRegisters>(), 33 * 8);
    }

    #[test]
    fn every_register_holds_its_own_value_and_xzr_none() {
        let mut registers = GuestRegisters::new();
        for number in 0..32 {
            registers.set(Register::from_bits(number), u64::from(number) + 100);
        }
        for number in 0..31 {
            assert_eq!(registers.get(Register::from_bits(number)), u64::from(number) + 100);
        }
        assert_eq!(registers.get(Register::ZERO), 0);
        assert_eq!((registers.pc, registers.pstate.bits()), (0, 0));
        assert_eq!(registers.arguments(), [100, 101, 102, 103]);
    }

    #[test]
    fn a_register_number_is_five_bits() {
        assert_eq!(Register::from_bits(0xFFFF_FFE3).number(), 3);
    }

    #[test]
    fn completing_an_instruction_steps_by_its_length_and_wraps() {
        let mut registers = GuestRegisters::new();
        registers.pc = u64::MAX - 3;
        registers.pstate = Pstate::new(Pstate::EL1H | Pstate::BTYPE);
        registers.complete_instruction(InstructionLength::Four);
        assert_eq!((registers.pc, registers.pstate.bits()), (0, Pstate::EL1H));
        registers.complete_instruction(InstructionLength::Two);
        assert_eq!(registers.pc, 2);
    }
}
