//! System registers that trap: what the guest reads, and what its writes do.
//!
//! The integrator sets HCR_EL2.{TID3, TSW, TACR, TIDCP}, MDCR_EL2.{TDA, TDOSA, TDRA, TPM, TPMCR}
//! and what else hides features; every access that comes is looked up here. A register that is
//! not known is not there: the guest gets an undefined instruction, as on a core without it.

mod id;
mod table;
#[cfg(test)]
mod tests;

pub use id::{IdRegisters, Limits};
pub use table::{NAMED_ID_REGISTERS, named};

use table::{Behaviour, lookup};

/// A system register or system instruction, named by op0, op1, CRn, CRm and op2, packed where
/// ESR_EL2.ISS has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct SystemRegister(u32);

impl SystemRegister {
    /// The bits of ISS that name the register: op0, op2, op1, CRn and CRm.
    const FIELDS: u32 = 0x003F_FC1E;

    /// The register with this encoding, in the order of the S-form name S\<op0\>_\<op1\>_...
    pub const fn new(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Self {
        Self(
            (op0 & 3) << 20
                | (op2 & 7) << 17
                | (op1 & 7) << 14
                | (crn & 15) << 10
                | (crm & 15) << 1,
        )
    }

    /// The register a trap's syndrome names.
    #[inline]
    pub const fn from_iss(iss: u32) -> Self {
        Self(iss & Self::FIELDS)
    }

    /// op0, op1, CRn, CRm and op2.
    pub const fn encoding(self) -> [u8; 5] {
        [
            (self.0 >> 20 & 3) as u8,
            (self.0 >> 14 & 7) as u8,
            (self.0 >> 10 & 15) as u8,
            (self.0 >> 1 & 15) as u8,
            (self.0 >> 17 & 7) as u8,
        ]
    }

    /// The architecture's name, if we know the register.
    pub fn name(self) -> Option<&'static str> {
        lookup(self).map(|entry| entry.name)
    }

    /// Whether it lies where the architecture keeps the ID registers that HCR_EL2.TID3 traps,
    /// those it has not named yet included: they read as zero.
    const fn is_id_space(self) -> bool {
        let [op0, op1, crn, crm, _] = self.encoding();
        op0 == 3 && op1 == 0 && crn == 0 && crm >= 1 && crm <= 7
    }
}

/// What the guest wants of the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// MRS.
    Read,
    /// MSR, or a system instruction, with this value.
    Write(u64),
}

/// Which group an SGI register sends to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgiGroup {
    /// ICC_SGI0R_EL1: group 0.
    Zero,
    /// ICC_SGI1R_EL1: group 1 of the caller's security state.
    One,
    /// ICC_ASGI1R_EL1: group 1 of the other security state.
    OtherOne,
}

/// What comes of the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Put this into the register, step on.
    Value(u64),
    /// The write is without effect; step on.
    Ignored,
    /// Send SGIs as this value of the SGI register says, step on.
    SendSgi(SgiGroup, u64),
    /// Deactivate the interrupt this value of ICC_DIR_EL1 names, step on.
    Deactivate(u64),
    /// The guest gets an undefined instruction exception, at the instruction.
    Undefined,
}

/// Judges an access. `ids` is asked for the hardware's value only if the guest may see some of it.
pub fn access(
    register: SystemRegister,
    access: Access,
    ids: &impl IdRegisters,
    limits: &Limits,
) -> Outcome {
    let Some(entry) = lookup(register) else {
        return match access {
            Access::Read if register.is_id_space() => Outcome::Value(0),
            _ => Outcome::Undefined,
        };
    };
    match (entry.behaviour, access) {
        (Behaviour::SendSgi(group), Access::Write(value)) => Outcome::SendSgi(group, value),
        (Behaviour::Deactivate, Access::Write(value)) => Outcome::Deactivate(value),
        (Behaviour::Id(rule), Access::Read) => Outcome::Value(rule.apply(register, ids, limits)),
        (Behaviour::ReadOnly(value) | Behaviour::ReadWrite(value), Access::Read) => {
            Outcome::Value(value)
        }
        (Behaviour::ReadWrite(_) | Behaviour::WriteOnly, Access::Write(_)) => Outcome::Ignored,
        _ => Outcome::Undefined,
    }
}
