//! An exception put into the guest's EL1, as its core would have taken it
//! (Arm ARM, AArch64.TakeException).

use super::Pstate;

/// What the guest's EL1 is told has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestException {
    /// A synchronous external abort on a load or store: nobody answers at that address.
    DataAbort {
        /// The virtual address (FAR_EL2), or `None` if it is not known.
        address: Option<u64>,
        /// Whether it was a write.
        write: bool,
    },
    /// A synchronous external abort on an instruction fetch.
    InstructionAbort {
        /// The virtual address (FAR_EL2), or `None` if it is not known.
        address: Option<u64>,
    },
    /// The instruction is undefined.
    Undefined,
}

/// What the guest's core was doing, and how it takes exceptions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExceptionSource {
    /// Address of the instruction that failed (ELR_EL2 unless that instruction was HVC).
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: Pstate,
    /// VBAR_EL1.
    pub vector_base: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// State bits that exist only on cores with the feature: elsewhere they are RES0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PstateFeatures {
    /// FEAT_PAN: PAN is set on entry unless SCTLR_EL1.SPAN.
    pub pan: bool,
    /// FEAT_SSBS: SSBS becomes SCTLR_EL1.DSSBS.
    pub ssbs: bool,
    /// FEAT_MTE: TCO is set on entry.
    pub mte: bool,
}

impl PstateFeatures {
    /// The features of the core itself, from the hardware's ID_AA64PFR1_EL1 and ID_AA64MMFR1_EL1:
    /// not what the guest is shown, because the guest's core behaves as the hardware does.
    pub const fn from_id_registers(pfr1: u64, mmfr1: u64) -> Self {
        Self { pan: mmfr1 >> 20 & 0xF != 0, ssbs: pfr1 >> 4 & 0xF != 0, mte: pfr1 >> 8 & 0xF != 0 }
    }
}

/// What to write before the guest goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injection {
    /// For ESR_EL1.
    pub esr: u64,
    /// For FAR_EL1; `None` leaves it as it is.
    pub far: Option<u64>,
    /// For ELR_EL1.
    pub elr: u64,
    /// For SPSR_EL1.
    pub spsr: Pstate,
    /// Where the guest goes on: the vector (ELR_EL2).
    pub pc: u64,
    /// The state it goes on in (SPSR_EL2).
    pub pstate: Pstate,
}

/// ESR_EL1.EC: unknown reason.
const EC_UNKNOWN: u64 = 0x00;
/// ESR_EL1.EC: instruction abort from a lower level; one more means the same level.
const EC_INSTRUCTION_ABORT: u64 = 0x20;
/// ESR_EL1.EC: data abort from a lower level; one more means the same level.
const EC_DATA_ABORT: u64 = 0x24;
/// ESR_EL1.IL: set for all three kinds, whatever the instruction's length.
const IL: u64 = 1 << 25;
/// DFSC and IFSC: synchronous external abort, not on a table walk.
const SYNC_EXTERNAL: u64 = 0b01_0000;
/// FAR_EL1 is not valid.
const FNV: u64 = 1 << 10;
/// The abort was caused by a write.
const WNR: u64 = 1 << 6;
/// SCTLR_EL1.SPAN: PAN is left alone on entry.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: SSBS on entry.
const SCTLR_DSSBS: u64 = 1 << 44;

impl ExceptionSource {
    /// The registers with which the guest finds itself in its vector.
    pub const fn inject(&self, exception: GuestException, features: PstateFeatures) -> Injection {
        let same_level = if self.pstate.is_el0() { 0 } else { 1 };
        let (esr, far) = match exception {
            GuestException::DataAbort { address, write } => {
                let write = if write { WNR } else { 0 };
                abort(EC_DATA_ABORT + same_level, write, address)
            }
            GuestException::InstructionAbort { address } => {
                abort(EC_INSTRUCTION_ABORT + same_level, 0, address)
            }
            GuestException::Undefined => (EC_UNKNOWN << 26 | IL, None),
        };
        Injection {
            esr,
            far,
            elr: self.pc,
            spsr: self.pstate,
            pc: (self.vector_base & !0x7FF).wrapping_add(self.vector_offset()),
            pstate: self.entry_state(features),
        }
    }

    /// Offset of the synchronous vector from VBAR_EL1 (Arm ARM D1.3.1).
    const fn vector_offset(&self) -> u64 {
        if self.pstate.is_aarch32() {
            0x600
        } else if self.pstate.is_el0() {
            0x400
        } else if self.pstate.uses_sp_el1() {
            0x200
        } else {
            0x000
        }
    }

    /// EL1h with everything masked. Flags and DIT carry over; IL, SS, BTYPE and UAO are clear.
    const fn entry_state(&self, features: PstateFeatures) -> Pstate {
        let from = self.pstate.bits();
        let mut to = from & Pstate::NZCV | Pstate::DAIF | Pstate::EL1H;
        let dit = if self.pstate.is_aarch32() { Pstate::DIT_AARCH32 } else { Pstate::DIT };
        if from & dit != 0 {
            to |= Pstate::DIT;
        }
        if features.pan && (self.sctlr & SCTLR_SPAN == 0 || from & Pstate::PAN != 0) {
            to |= Pstate::PAN;
        }
        if features.ssbs && self.sctlr & SCTLR_DSSBS != 0 {
            to |= Pstate::SSBS;
        }
        if features.mte {
            to |= Pstate::TCO;
        }
        Pstate::new(to)
    }
}

/// ESR and FAR of an abort.
const fn abort(class: u64, write: u64, address: Option<u64>) -> (u64, Option<u64>) {
    let esr = class << 26 | IL | write | SYNC_EXTERNAL;
    match address {
        Some(_) => (esr, address),
        None => (esr | FNV, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PstateFeatures = PstateFeatures { pan: true, ssbs: true, mte: true };
    const NONE: PstateFeatures = PstateFeatures { pan: false, ssbs: false, mte: false };

    fn source(pstate: u64) -> ExceptionSource {
        ExceptionSource {
            pc: 0x4008_1234,
            pstate: Pstate::new(pstate),
            vector_base: 0xFFFF_8000_0801_0800,
            sctlr: SCTLR_SPAN,
        }
    }

    const READ: GuestException =
        GuestException::DataAbort { address: Some(0xFFFF_0000_DEAD_0000), write: false };

    #[test]
    fn the_vector_depends_on_where_the_guest_was() {
        let vector = |pstate| source(pstate).inject(READ, NONE).pc - 0xFFFF_8000_0801_0800;
        assert_eq!(vector(Pstate::EL1T), 0x000);
        assert_eq!(vector(Pstate::EL1H), 0x200);
        assert_eq!(vector(Pstate::EL0T), 0x400);
        assert_eq!(vector(0b1_0000), 0x600);
    }

    #[test]
    fn a_data_abort_names_class_direction_and_address() {
        let injection = source(Pstate::EL1H).inject(READ, NONE);
        assert_eq!(injection.esr, 0x9600_0010);
        assert_eq!(injection.far, Some(0xFFFF_0000_DEAD_0000));
        assert_eq!(injection.elr, 0x4008_1234);
        assert_eq!(injection.spsr, Pstate::new(Pstate::EL1H));
        let write = GuestException::DataAbort { address: None, write: true };
        let injection = source(Pstate::EL0T).inject(write, NONE);
        assert_eq!((injection.esr, injection.far), (0x9200_0450, None));
    }

    #[test]
    fn an_instruction_abort_and_an_undefined_instruction_have_their_classes() {
        let fetch = GuestException::InstructionAbort { address: Some(0x5000_0000) };
        let injection = source(Pstate::EL1H).inject(fetch, NONE);
        assert_eq!((injection.esr, injection.far), (0x8600_0010, Some(0x5000_0000)));
        assert_eq!(source(0b1_0000).inject(fetch, NONE).esr, 0x8200_0010);
        let undefined = source(Pstate::EL1H).inject(GuestException::Undefined, NONE);
        assert_eq!((undefined.esr, undefined.far), (0x0200_0000, None));
    }

    #[test]
    fn the_handler_starts_masked_with_flags_kept_and_modes_cleared() {
        let before = Pstate::EL1T | 1 << 30 | 1 << 28 | Pstate::DIT | Pstate::IL | Pstate::SS;
        let before = before | Pstate::BTYPE | 1 << 23 | Pstate::TCO | Pstate::SSBS;
        let injection = source(before).inject(READ, NONE);
        let after = Pstate::EL1H | Pstate::DAIF | 1 << 30 | 1 << 28 | Pstate::DIT;
        assert_eq!(injection.pstate.bits(), after);
        assert_eq!(injection.spsr.bits(), before);
    }

    #[test]
    fn pan_and_ssbs_follow_the_guests_sctlr_and_tco_the_core() {
        let state = |sctlr, pstate, features| {
            let source = ExceptionSource { sctlr, ..source(pstate) };
            source.inject(READ, features).pstate.bits() & !(Pstate::DAIF | Pstate::MODE)
        };
        let (pan, ssbs, tco) = (Pstate::PAN, Pstate::SSBS, Pstate::TCO);
        assert_eq!(state(0, Pstate::EL1H, ALL), pan | tco);
        assert_eq!(state(SCTLR_SPAN, Pstate::EL1H, ALL), tco);
        assert_eq!(state(SCTLR_SPAN, Pstate::EL1H | pan, ALL), pan | tco);
        assert_eq!(state(SCTLR_SPAN | SCTLR_DSSBS, Pstate::EL1H, ALL), ssbs | tco);
        assert_eq!(state(SCTLR_DSSBS, Pstate::EL1H | pan | ssbs | tco, NONE), 0);
    }

    #[test]
    fn dit_moves_from_its_aarch32_place() {
        let injection = source(0b1_0000 | Pstate::DIT_AARCH32).inject(READ, NONE);
        assert_eq!(injection.pstate.bits(), Pstate::EL1H | Pstate::DAIF | Pstate::DIT);
        // SS of AArch64 is in the same place and is no DIT.
        let injection = source(Pstate::EL0T | Pstate::SS).inject(READ, NONE);
        assert_eq!(injection.pstate.bits(), Pstate::EL1H | Pstate::DAIF);
    }

    #[test]
    fn features_come_from_the_cores_id_registers() {
        assert_eq!(PstateFeatures::from_id_registers(0, 0), NONE);
        assert_eq!(PstateFeatures::from_id_registers(0x220, 0x30_0000), ALL);
    }

    #[test]
    fn a_vector_base_with_reserved_bits_or_at_the_top_is_no_panic() {
        let odd = ExceptionSource { vector_base: u64::MAX, ..source(0b1_0000) };
        assert_eq!(odd.inject(READ, ALL).pc, 0xFFFF_FFFF_FFFF_FE00);
    }
}
