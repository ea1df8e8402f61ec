//! Loads and stores that abort without an instruction syndrome (ISV = 0): those with write-back
//! and pairs, from their A64 encoding (Arm ARM C4.1, loads and stores).
//!
//! The word comes from guest memory some time after the abort, so it is an allegation: another
//! vCPU may have changed it. It is believed only if it would have made the access that aborted,
//! in direction and address. What is refused gets an external abort: SIMD and FP registers,
//! exclusives, atomics, acquire and release, tag stores, prefetches, and everything the
//! architecture leaves CONSTRAINED UNPREDICTABLE.

#[cfg(test)]
mod tests;

use super::{GuestRegisters, LoadTarget, MmioAccess, MmioKind, Register, Width};
use crate::memory::{Ipa, PAGE_SIZE};

/// What the core reported of the access that aborted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultingAccess {
    /// FAR_EL2: the virtual address.
    pub address: u64,
    /// The same place as IPA.
    pub ipa: Ipa,
    /// WnR: whether it was a write.
    pub write: bool,
    /// The guest's stack pointer: SP_EL1 if [`super::Pstate::uses_sp_el1`], else SP_EL0.
    pub stack_pointer: u64,
}

/// Why an instruction is not emulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// No load or store that we emulate.
    Unsupported,
    /// CONSTRAINED UNPREDICTABLE: write-back to a transferred register, or a pair loaded into one.
    Unpredictable,
    /// The instruction is a load and the abort a write, or the other way round.
    Direction,
    /// The instruction accesses another address than the one that aborted.
    Address,
    /// The access runs over the end of a page, where its other part may be anything.
    CrossesPage,
}

/// The base register's new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteBack {
    /// The instruction has none.
    None,
    /// To a general-purpose register.
    Register(Register, u64),
    /// To the stack pointer that was given.
    StackPointer(u64),
}

/// One or two accesses, then write-back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// The first access.
    pub first: MmioAccess,
    /// The second access of a pair; it has the next higher address.
    pub second: Option<MmioAccess>,
    /// The base register's new value, once the accesses are done.
    pub write_back: WriteBack,
}

impl Transfer {
    /// The accesses, in order.
    pub fn accesses(&self) -> impl Iterator<Item = MmioAccess> {
        core::iter::once(self.first).chain(self.second)
    }

    /// Writes the base register back. A new stack pointer is given to the caller, who holds it.
    #[must_use]
    pub fn finish(&self, registers: &mut GuestRegisters) -> Option<u64> {
        match self.write_back {
            WriteBack::None => None,
            WriteBack::Register(register, value) => {
                registers.set(register, value);
                None
            }
            WriteBack::StackPointer(value) => Some(value),
        }
    }
}

/// How the address is formed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Index {
    /// Base plus offset, base unchanged.
    Offset,
    /// Base; then base plus offset is written back.
    Post,
    /// Base plus offset, which is written back.
    Pre,
}

/// An instruction's fields, checked but not yet applied to register values.
struct Instruction {
    load: bool,
    width: Width,
    sign_extend: bool,
    sixty_four: bool,
    offset: i64,
    index: Index,
    base: Register,
    transfer: Register,
    second: Option<Register>,
}

/// `count` bits of `word` from bit `low`.
const fn bits(word: u32, low: u32, count: u32) -> u32 {
    word >> low & ((1 << count) - 1)
}

/// `count` bits of `word` from bit `low`, as a signed number.
const fn signed_bits(word: u32, low: u32, count: u32) -> i64 {
    ((word << (32 - low - count)) as i32 >> (32 - count)) as i64
}

impl Instruction {
    fn decode(word: u32) -> Result<Self, Refused> {
        // Bits 29:27 and V: what kind of load or store. V (bit 26) set is SIMD and FP.
        match bits(word, 26, 4) {
            0b1110 if bits(word, 24, 2) == 0b00 && bits(word, 21, 1) == 0 => {
                Self::decode_immediate(word)
            }
            0b1010 if bits(word, 25, 1) == 0 => Self::decode_pair(word),
            _ => Err(Refused::Unsupported),
        }
    }

    /// LDR and STR (immediate, post- and pre-index), LDUR, STUR and all their widths.
    fn decode_immediate(word: u32) -> Result<Self, Refused> {
        let size = bits(word, 30, 2);
        let (load, sign_extend, sixty_four) = match (bits(word, 22, 2), size) {
            (0b00, _) => (false, false, size == 3),
            (0b01, _) => (true, false, size == 3),
            (0b10, 0..=2) => (true, true, true),
            (0b11, 0..=1) => (true, true, false),
            _ => return Err(Refused::Unsupported),
        };
        let index = match bits(word, 10, 2) {
            0b00 => Index::Offset,
            0b01 => Index::Post,
            0b11 => Index::Pre,
            _ => return Err(Refused::Unsupported),
        };
        Ok(Self {
            load,
            width: Width::from_log2(size),
            sign_extend,
            sixty_four,
            offset: signed_bits(word, 12, 9),
            index,
            base: Register::from_bits(word >> 5),
            transfer: Register::from_bits(word),
            second: None,
        })
    }

    /// LDP, STP, LDPSW, LDNP and STNP.
    fn decode_pair(word: u32) -> Result<Self, Refused> {
        let load = bits(word, 22, 1) == 1;
        let index = bits(word, 23, 2);
        let (width, sign_extend) = match (bits(word, 30, 2), load) {
            (0b00, _) => (Width::Word, false),
            // LDPSW has no form without allocation; as a store this is STGP.
            (0b01, true) if index != 0b00 => (Width::Word, true),
            (0b10, _) => (Width::Double, false),
            _ => return Err(Refused::Unsupported),
        };
        Ok(Self {
            load,
            width,
            sign_extend,
            sixty_four: sign_extend || width == Width::Double,
            offset: signed_bits(word, 15, 7) * width.bytes() as i64,
            index: match index {
                0b01 => Index::Post,
                0b11 => Index::Pre,
                _ => Index::Offset,
            },
            base: Register::from_bits(word >> 5),
            transfer: Register::from_bits(word),
            second: Some(Register::from_bits(word >> 10)),
        })
    }

    /// Whether the architecture does not say what the instruction does. As a base, 31 is SP and
    /// never a register that is transferred.
    fn is_unpredictable(&self) -> bool {
        let writes_back = self.index != Index::Offset;
        let base_is_transferred = self.base == self.transfer || Some(self.base) == self.second;
        let one_target = self.load && self.second == Some(self.transfer);
        one_target || writes_back && base_is_transferred && self.base != Register::ZERO
    }

    /// One of the accesses.
    fn access(&self, ipa: Ipa, register: Register, registers: &GuestRegisters) -> MmioAccess {
        let kind = if self.load {
            MmioKind::Load(LoadTarget::new(register, self.width, self.sign_extend, self.sixty_four))
        } else {
            MmioKind::Store { value: self.width.truncate(registers.get(register)) }
        };
        MmioAccess { ipa, width: self.width, kind }
    }
}

/// Decodes the instruction `word` that made `fault`.
///
/// # Errors
/// [`Refused`]: it is not emulated, and nothing has happened.
pub fn decode(
    word: u32,
    fault: &FaultingAccess,
    registers: &GuestRegisters,
) -> Result<Transfer, Refused> {
    let instruction = Instruction::decode(word)?;
    if instruction.is_unpredictable() {
        return Err(Refused::Unpredictable);
    }
    if instruction.load == fault.write {
        return Err(Refused::Direction);
    }
    let base = match instruction.base {
        Register::ZERO => fault.stack_pointer,
        register => registers.get(register),
    };
    let moved = base.wrapping_add_signed(instruction.offset);
    let address = if instruction.index == Index::Post { base } else { moved };
    let width = instruction.width.bytes();
    let total = if instruction.second.is_some() { 2 * width } else { width };
    // The core reports an address in the access, and for a pair of device registers the first;
    // one in the second register is as good, as long as all of it is in the page that aborted.
    let into = fault.address.wrapping_sub(address);
    if into >= total {
        return Err(Refused::Address);
    }
    if address % PAGE_SIZE + total > PAGE_SIZE {
        return Err(Refused::CrossesPage);
    }
    // Cannot wrap: `into` bytes before `fault.address` is in the same page.
    let ipa = Ipa::new(fault.ipa.raw().wrapping_sub(into));
    let next = Ipa::new(ipa.raw().wrapping_add(width));
    Ok(Transfer {
        first: instruction.access(ipa, instruction.transfer, registers),
        second: instruction.second.map(|register| instruction.access(next, register, registers)),
        write_back: match (instruction.index, instruction.base) {
            (Index::Offset, _) => WriteBack::None,
            (_, Register::ZERO) => WriteBack::StackPointer(moved),
            (_, register) => WriteBack::Register(register, moved),
        },
    })
}
