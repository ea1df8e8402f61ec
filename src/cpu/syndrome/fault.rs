//! Fault status codes: DFSC and IFSC (Arm ARM D24.2, ESR_EL2).

/// A fault status code, six bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct FaultStatus(u8);

/// What a fault status code says. Levels are -1 to 3; the last table level is 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// An address in a table is too large.
    AddressSize(i8),
    /// Nothing is mapped.
    Translation(i8),
    /// The access flag is clear.
    AccessFlag(i8),
    /// Mapped, but not for this access.
    Permission(i8),
    /// A synchronous external abort on the access.
    SyncExternal,
    /// A synchronous external abort on a table walk.
    SyncExternalOnWalk(i8),
    /// A tag check failed.
    TagCheck,
    /// Parity or ECC error on the access.
    Parity,
    /// Parity or ECC error on a table walk.
    ParityOnWalk(i8),
    /// A misaligned access.
    Alignment,
    /// Granule protection fault, on the access or on a walk.
    GranuleProtection,
    /// Entries in the TLB contradict each other.
    TlbConflict,
    /// The memory cannot do the atomic update of an access or dirty flag.
    UnsupportedAtomicUpdate,
    /// Implementation defined: lockdown.
    Lockdown,
    /// Implementation defined: exclusive or atomic access to memory that has none.
    UnsupportedAtomic,
    /// A code without a meaning.
    Reserved,
}

impl FaultStatus {
    /// The code in the low six bits of a syndrome.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self((bits & 0x3F) as u8)
    }

    /// The code, 0 to 63.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether it is a translation fault at level 0 to 3.
    #[inline(always)]
    pub const fn is_translation(self) -> bool {
        self.0 & 0b11_1100 == 0b00_0100
    }

    /// Whether it is a permission fault.
    #[inline(always)]
    pub const fn is_permission(self) -> bool {
        self.0 & 0b11_1100 == 0b00_1100
    }

    /// What the code says.
    pub const fn kind(self) -> FaultKind {
        let level = (self.0 & 0b11) as i8;
        match self.0 {
            0x00..=0x03 => FaultKind::AddressSize(level),
            0x04..=0x07 => FaultKind::Translation(level),
            0x08..=0x0B => FaultKind::AccessFlag(level),
            0x0C..=0x0F => FaultKind::Permission(level),
            0x10 => FaultKind::SyncExternal,
            0x11 => FaultKind::TagCheck,
            0x13 => FaultKind::SyncExternalOnWalk(-1),
            0x14..=0x17 => FaultKind::SyncExternalOnWalk(level),
            0x18 => FaultKind::Parity,
            0x1B => FaultKind::ParityOnWalk(-1),
            0x1C..=0x1F => FaultKind::ParityOnWalk(level),
            0x21 => FaultKind::Alignment,
            0x23..=0x28 => FaultKind::GranuleProtection,
            0x29 => FaultKind::AddressSize(-1),
            0x2B => FaultKind::Translation(-1),
            0x30 => FaultKind::TlbConflict,
            0x31 => FaultKind::UnsupportedAtomicUpdate,
            0x34 => FaultKind::Lockdown,
            0x35 => FaultKind::UnsupportedAtomic,
            _ => FaultKind::Reserved,
        }
    }
}
