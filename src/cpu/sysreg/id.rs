//! How the hardware's ID registers become the guest's: field by field, and only the fields that
//! are listed. What the architecture adds later is hidden until someone has thought about it.

use super::SystemRegister;

/// The ID registers of the core.
pub trait IdRegisters {
    /// The hardware's value of one of [`super::NAMED_ID_REGISTERS`].
    fn read(&self, register: SystemRegister) -> u64;
}

/// What the virtual machine is, where the ID registers must say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Size of the stage 2 input address in bits; the guest's PARange is at most this.
    pub ipa_bits: u8,
    /// The guest has a GICv3 and reaches its CPU interface by system registers.
    pub gic_system_registers: bool,
}

/// What the guest sees of one ID register.
#[derive(Clone, Copy, Debug)]
pub(super) enum IdRule {
    /// All of it: it describes instructions and memory that we do not touch.
    Whole,
    /// These fields; all others read as zero.
    Fields(&'static [Field]),
}

/// A field of four bits, at this bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub(super) u8, pub(super) Shown);

/// What the guest sees of one field.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    /// What the hardware has.
    Hardware,
    /// What the hardware has, but no more than this (the field is unsigned).
    AtMost(u8),
    /// This.
    Fixed(u8),
    /// PARange: what the hardware has, but no more than stage 2 can map.
    PhysicalRange,
    /// GIC: system registers, version 3, if the VM and the hardware have them.
    GicSystemRegisters,
}

impl IdRule {
    /// The guest's value.
    pub(super) fn apply(
        self,
        register: SystemRegister,
        ids: &impl IdRegisters,
        limits: &Limits,
    ) -> u64 {
        let hardware = ids.read(register);
        match self {
            Self::Whole => hardware,
            Self::Fields(fields) => fields.iter().fold(0, |value, Field(at, shown)| {
                value | u64::from(shown.field((hardware >> at & 0xF) as u8, limits)) << at
            }),
        }
    }
}

impl Shown {
    fn field(self, hardware: u8, limits: &Limits) -> u8 {
        match self {
            Self::Hardware => hardware,
            Self::AtMost(most) => hardware.min(most),
            Self::Fixed(value) => value,
            Self::PhysicalRange => hardware.min(physical_range(limits.ipa_bits)),
            Self::GicSystemRegisters => hardware.min(u8::from(limits.gic_system_registers)),
        }
    }
}

/// The largest PARange that `bits` of address cover (Arm ARM D24.2, ID_AA64MMFR0_EL1).
const fn physical_range(bits: u8) -> u8 {
    match bits {
        0..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48..52 => 5,
        52..56 => 6,
        _ => 7,
    }
}
