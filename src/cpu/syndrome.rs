//! Why a guest came to EL2: ESR_EL2, decoded once (Arm ARM D24.2, ESR_EL2).
//!
//! The variants wrap the instruction-specific syndrome and give its fields by name, so a syndrome
//! is two registers wide and a field costs one instruction where it is used.

pub mod fault;
#[cfg(test)]
mod tests;

use super::sysreg::SystemRegister;
use super::{LoadTarget, Register, Width};
use crate::memory::Ipa;
pub use fault::{FaultKind, FaultStatus};

/// Length of the instruction that was trapped: ESR_EL2.IL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstructionLength {
    /// A 16-bit T32 instruction, from AArch32 EL0.
    Two,
    /// A 32-bit instruction.
    Four,
}

impl InstructionLength {
    /// The length an ESR states.
    #[inline]
    pub const fn from_esr(esr: u64) -> Self {
        if esr & 1 << 25 != 0 { Self::Four } else { Self::Two }
    }

    /// The length in bytes.
    #[inline]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// Why a guest came to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Syndrome {
    /// A load or store of the guest failed at stage 2.
    DataAbort(DataAbort),
    /// An instruction fetch of the guest failed at stage 2.
    InstructionAbort(InstructionAbort),
    /// HVC. The return address is already past it.
    Hvc {
        /// Its immediate; zero for SMCCC calls.
        immediate: u16,
    },
    /// SMC, trapped. The return address is at it.
    Smc {
        /// Its immediate; zero for SMCCC calls.
        immediate: u16,
    },
    /// WFI, WFE, WFIT or WFET, trapped.
    WaitFor(WaitFor),
    /// MSR, MRS or a system instruction, trapped.
    SystemRegister(SystemRegisterAccess),
    /// Access to FP or SIMD registers, trapped.
    FpAccess,
    /// Access to SVE, trapped.
    SveAccess,
    /// Access to SME, trapped.
    SmeAccess,
    /// Use of a pointer authentication key or instruction, trapped.
    PointerAuthentication,
    /// ERET, trapped.
    Eret,
    /// A trapped AArch32 instruction: coprocessor access, VMRS or SMC.
    AArch32(ExceptionClass),
    /// Illegal execution state.
    IllegalState,
    /// SError.
    SError,
    /// A debug exception: breakpoint, step, watchpoint, BKPT, vector catch or BRK.
    Debug(ExceptionClass),
    /// An instruction abort of EL2's own.
    InstructionAbortInEl2(InstructionAbort),
    /// A data abort of EL2's own.
    DataAbortInEl2(DataAbort),
    /// Everything else, including classes without a meaning.
    Other(ExceptionClass),
}

/// ESR_EL2.EC, six bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExceptionClass(u8);

impl ExceptionClass {
    /// The class an ESR states.
    #[inline]
    pub const fn from_esr(esr: u64) -> Self {
        Self((esr >> 26 & 0x3F) as u8)
    }

    /// The number, 0 to 63.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl Syndrome {
    /// Decodes ESR_EL2 of a synchronous exception.
    #[inline]
    pub const fn decode(esr: u64) -> Self {
        let class = ExceptionClass::from_esr(esr);
        let iss = (esr & 0x01FF_FFFF) as u32;
        match class.0 {
            0x24 => Self::DataAbort(DataAbort(iss)),
            0x18 => Self::SystemRegister(SystemRegisterAccess(iss)),
            0x16 => Self::Hvc { immediate: iss as u16 },
            0x01 => Self::WaitFor(WaitFor(iss)),
            0x17 => Self::Smc { immediate: iss as u16 },
            0x20 => Self::InstructionAbort(InstructionAbort(iss)),
            0x07 => Self::FpAccess,
            0x19 => Self::SveAccess,
            0x1D => Self::SmeAccess,
            0x09 => Self::PointerAuthentication,
            0x1A => Self::Eret,
            0x03..=0x06 | 0x08 | 0x0C | 0x12 | 0x13 => Self::AArch32(class),
            0x0E => Self::IllegalState,
            0x2F => Self::SError,
            0x30..=0x35 | 0x38 | 0x3A | 0x3C => Self::Debug(class),
            0x21 => Self::InstructionAbortInEl2(InstructionAbort(iss)),
            0x25 => Self::DataAbortInEl2(DataAbort(iss)),
            _ => Self::Other(class),
        }
    }

    /// Whether the return address is at the trapped instruction, so that having carried it out for
    /// the guest we must step over it. It is not after HVC, whose return address is the next
    /// instruction's (Arm ARM D1.3.4, preferred return address).
    #[inline]
    pub const fn advances_pc(&self) -> bool {
        matches!(
            self,
            Self::DataAbort(_)
                | Self::Smc { .. }
                | Self::WaitFor(_)
                | Self::SystemRegister(_)
                | Self::AArch32(_)
        )
    }
}

/// The syndrome of a data abort (EC 0x24, 0x25).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct DataAbort(u32);

/// What ISV = 1 says of the instruction that aborted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InstructionSyndrome {
    /// SAS: how much it accesses.
    pub width: Width,
    /// SSE: whether a load extends the sign.
    pub sign_extend: bool,
    /// SF: whether the register is 64 bits wide.
    pub sixty_four: bool,
    /// SRT: the register loaded or stored.
    pub register: Register,
    /// AR: acquire or release semantics.
    pub acquire_release: bool,
}

impl DataAbort {
    /// Wraps an instruction-specific syndrome (ESR_EL2\[24:0\]).
    pub const fn from_iss(iss: u32) -> Self {
        Self(iss & 0x01FF_FFFF)
    }

    /// What the core says of the instruction, or `None` (ISV = 0) if it must be decoded from
    /// memory, see [`super::decode`].
    #[inline(always)]
    pub const fn instruction(self) -> Option<InstructionSyndrome> {
        if self.0 & 1 << 24 == 0 {
            return None;
        }
        Some(InstructionSyndrome {
            width: Width::from_log2(self.0 >> 22),
            sign_extend: self.0 & 1 << 21 != 0,
            sixty_four: self.0 & 1 << 15 != 0,
            register: Register::from_bits(self.0 >> 16),
            acquire_release: self.0 & 1 << 14 != 0,
        })
    }

    /// Where the load goes that aborted, ISV being 1.
    #[inline(always)]
    pub(super) const fn load_target(self) -> LoadTarget {
        LoadTarget::from_iss(self.0)
    }

    /// WnR: whether it was a write.
    #[inline(always)]
    pub const fn is_write(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// FnV clear: whether FAR_EL2 holds the address.
    #[inline(always)]
    pub const fn far_is_valid(self) -> bool {
        self.0 & 1 << 10 == 0
    }

    /// EA: the external abort type, implementation defined.
    pub const fn external_abort_type(self) -> bool {
        self.0 & 1 << 9 != 0
    }

    /// CM: whether it was cache maintenance or an address translation instruction.
    #[inline(always)]
    pub const fn is_cache_maintenance(self) -> bool {
        self.0 & 1 << 8 != 0
    }

    /// S1PTW: whether the guest's own table walk failed at stage 2.
    #[inline(always)]
    pub const fn is_stage1_walk(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// DFSC: what failed.
    #[inline(always)]
    pub const fn status(self) -> FaultStatus {
        FaultStatus::from_bits(self.0)
    }

    /// Whether this can be an access to a device we emulate: a translation or permission fault on
    /// the access itself, not on a walk or a cache operation, with the address known.
    #[inline(always)]
    pub const fn may_be_mmio(self) -> bool {
        // FnV, CM and S1PTW in one test.
        self.0 & 0x580 == 0 && (self.status().is_translation() || self.status().is_permission())
    }
}

/// The syndrome of an instruction abort (EC 0x20, 0x21).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct InstructionAbort(u32);

impl InstructionAbort {
    /// Wraps an instruction-specific syndrome (ESR_EL2\[24:0\]).
    pub const fn from_iss(iss: u32) -> Self {
        Self(iss & 0x01FF_FFFF)
    }

    /// FnV clear: whether FAR_EL2 holds the address.
    pub const fn far_is_valid(self) -> bool {
        self.0 & 1 << 10 == 0
    }

    /// S1PTW: whether the guest's own table walk failed at stage 2.
    pub const fn is_stage1_walk(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// IFSC: what failed.
    pub const fn status(self) -> FaultStatus {
        FaultStatus::from_bits(self.0)
    }
}

/// The IPA a stage 2 fault names: HPFAR_EL2.FIPA, and the offset in the page from FAR_EL2.
///
/// HPFAR_EL2 is valid after translation and access flag faults and after any stage 2 fault on a
/// stage 1 walk. It may be UNKNOWN after a permission fault on the access itself (Arm ARM D24.2,
/// HPFAR_EL2): then the address must be had by translating FAR_EL2 at stage 1.
#[inline(always)]
pub const fn fault_ipa(hpfar: u64, far: u64) -> Ipa {
    Ipa::new((hpfar & 0x0000_FFFF_FFFF_FFF0) << 8 | far & 0xFFF)
}

/// The syndrome of a trapped WFI, WFE, WFIT or WFET (EC 0x01).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct WaitFor(u32);

impl WaitFor {
    /// Whether it waits for an event (WFE, WFET) and not for an interrupt (WFI, WFIT).
    #[inline]
    pub const fn event(self) -> bool {
        self.0 & 0b01 != 0
    }

    /// The register with the virtual counter value at which WFIT and WFET give up; `None` for WFI
    /// and WFE, or if the core does not name it (RV = 0).
    pub const fn timeout(self) -> Option<Register> {
        if self.0 & 0b110 == 0b110 { Some(Register::from_bits(self.0 >> 5)) } else { None }
    }

    /// Whether it is WFIT or WFET.
    pub const fn has_timeout(self) -> bool {
        self.0 & 0b10 != 0
    }
}

/// The syndrome of a trapped MSR, MRS or system instruction (EC 0x18).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct SystemRegisterAccess(u32);

impl SystemRegisterAccess {
    /// Wraps an instruction-specific syndrome (ESR_EL2\[24:0\]).
    pub const fn from_iss(iss: u32) -> Self {
        Self(iss & 0x01FF_FFFF)
    }

    /// Which system register or instruction.
    #[inline]
    pub const fn system_register(self) -> SystemRegister {
        SystemRegister::from_iss(self.0)
    }

    /// Rt: the register to read into or to write from.
    #[inline]
    pub const fn register(self) -> Register {
        Register::from_bits(self.0 >> 5)
    }

    /// Whether it is a read (MRS).
    #[inline]
    pub const fn is_read(self) -> bool {
        self.0 & 1 != 0
    }
}
