//! Stage-2 descriptors: Arm ARM D8.3 "Translation table descriptor formats", 4 KiB granule, 48-bit
//! output addresses, FEAT_S2FWB off.

use super::geometry::{FIRST_BLOCK_LEVEL, LAST_LEVEL, span};
use crate::memory::Pa;

/// How the memory behind a mapping behaves (MemAttr, SH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Normal, inner and outer write-back, inner shareable.
    Normal,
    /// Device-nGnRE.
    Device,
}

/// What the guest may do with it (S2AP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: every access is a permission fault.
    None,
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Memory type.
    pub memory: MemoryType,
    /// Permission for data accesses.
    pub access: Access,
    /// Whether the guest may execute from it (XN clear). Device memory should not be.
    pub executable: bool,
}

impl Attributes {
    /// Guest RAM.
    pub const RAM: Self =
        Self { memory: MemoryType::Normal, access: Access::ReadWrite, executable: true };
    /// Normal memory the guest can only look at.
    pub const READ_ONLY: Self =
        Self { memory: MemoryType::Normal, access: Access::ReadOnly, executable: false };
    /// A device's registers.
    pub const DEVICE: Self =
        Self { memory: MemoryType::Device, access: Access::ReadWrite, executable: false };
}

const VALID: u64 = 1 << 0;
/// In a valid descriptor of level 0 to 2: a table. At level 3: a page, and must be set.
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEM_ATTR: u64 = 0xf << 2;
const MEM_ATTR_NORMAL: u64 = 0xf << 2;
const MEM_ATTR_DEVICE_NGNRE: u64 = 0x1 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const SH_INNER: u64 = 3 << 8;
/// Access flag: set, or the first access faults.
const AF: u64 = 1 << 10;
/// Never execute. With FEAT_XNX this is XN\[1:0\] = 0b10: neither EL1 nor EL0.
const XN: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// One 64-bit entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

/// What an entry is, at its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Invalid,
    Table(Pa),
    /// A block or a page, with its output address.
    Leaf(Pa),
}

impl Descriptor {
    pub(super) const INVALID: Self = Self(0);

    pub(super) const fn table(next: Pa) -> Self {
        Self(next.raw() & ADDRESS | TABLE_OR_PAGE | VALID)
    }

    /// The block or page at `level` (1 to 3) with output address `pa`, aligned to its span.
    pub(super) const fn leaf(pa: Pa, attributes: Attributes, level: u8) -> Self {
        let kind = if level == LAST_LEVEL { TABLE_OR_PAGE | VALID } else { VALID };
        let memory = match attributes.memory {
            MemoryType::Normal => MEM_ATTR_NORMAL | SH_INNER,
            MemoryType::Device => MEM_ATTR_DEVICE_NGNRE,
        };
        let access = match attributes.access {
            Access::None => 0,
            Access::ReadOnly => S2AP_READ,
            Access::ReadWrite => S2AP_READ | S2AP_WRITE,
        };
        let xn = if attributes.executable { 0 } else { XN };
        Self(pa.raw() & ADDRESS | kind | memory | access | xn | AF)
    }

    pub(super) const fn kind(self, level: u8) -> Kind {
        let pa = Pa::new(self.0 & ADDRESS);
        match (self.0 & VALID != 0, self.0 & TABLE_OR_PAGE != 0) {
            (false, _) => Kind::Invalid,
            (true, true) if level < LAST_LEVEL => Kind::Table(pa),
            (true, true) => Kind::Leaf(pa),
            (true, false) if level >= FIRST_BLOCK_LEVEL && level < LAST_LEVEL => Kind::Leaf(pa),
            (true, false) => Kind::Invalid,
        }
    }

    /// The attributes of a leaf.
    pub(super) const fn attributes(self) -> Attributes {
        let normal = self.0 & MEM_ATTR == MEM_ATTR_NORMAL;
        Attributes {
            memory: if normal { MemoryType::Normal } else { MemoryType::Device },
            access: match (self.0 & S2AP_READ != 0, self.0 & S2AP_WRITE != 0) {
                (true, true) => Access::ReadWrite,
                (true, false) => Access::ReadOnly,
                (false, _) => Access::None,
            },
            executable: self.0 & XN == 0,
        }
    }

    /// The same leaf with other attributes.
    pub(super) const fn with_attributes(self, attributes: Attributes, level: u8) -> Self {
        Self::leaf(Pa::new(self.0 & ADDRESS), attributes, level)
    }

    /// The `index`th of the 512 leaves of `level` that together are this leaf of the level above.
    pub(super) const fn piece(self, index: usize, level: u8) -> Self {
        let pa = (self.0 & ADDRESS) + index as u64 * span(level);
        Self::leaf(Pa::new(pa), self.attributes(), level)
    }

    /// Whether the change from `self` to `other`, both valid leaves, is one of permissions only,
    /// which needs no break-before-make (Arm ARM D8.16 "Using break-before-make").
    pub(super) const fn differs_in_permission_only(self, other: Self) -> bool {
        (self.0 ^ other.0) & !(S2AP_READ | S2AP_WRITE | XN) == 0
    }

    /// A link in the list of unlinked tables, kept in a dead table's first entry. The core may
    /// still walk that table, so the link must read as an invalid descriptor.
    pub(super) const fn link(next: Option<Pa>) -> Self {
        match next {
            Some(pa) => Self(pa.raw() & ADDRESS | TABLE_OR_PAGE),
            None => Self::INVALID,
        }
    }

    /// The table after the one with this link.
    pub(super) const fn linked(self) -> Option<Pa> {
        if self.0 & TABLE_OR_PAGE == 0 {
            return None;
        }
        Some(Pa::new(self.0 & ADDRESS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_bits_of_the_architecture() {
        let pa = Pa::new(0x12_4000_0000);
        assert_eq!(Descriptor::leaf(pa, Attributes::RAM, 1).0, 0x12_4000_07fd);
        assert_eq!(Descriptor::leaf(pa, Attributes::RAM, 3).0, 0x12_4000_07ff);
        assert_eq!(Descriptor::leaf(pa, Attributes::DEVICE, 3).0, 0x40_0012_4000_04c7);
        assert_eq!(Descriptor::leaf(pa, Attributes::READ_ONLY, 2).0, 0x40_0012_4000_077d);
        assert_eq!(Descriptor::table(pa).0, 0x12_4000_0003);
    }

    #[test]
    fn attributes_survive_the_descriptor() {
        for memory in [MemoryType::Normal, MemoryType::Device] {
            for access in [Access::None, Access::ReadOnly, Access::ReadWrite] {
                for executable in [false, true] {
                    let attributes = Attributes { memory, access, executable };
                    let leaf = Descriptor::leaf(Pa::new(0x20_0000), attributes, 2);
                    assert_eq!(leaf.attributes(), attributes);
                    assert_eq!(leaf.kind(2), Kind::Leaf(Pa::new(0x20_0000)));
                }
            }
        }
    }

    #[test]
    fn a_link_is_never_a_valid_descriptor() {
        for pa in [0, 0x1000, 0xffff_ffff_f000] {
            let link = Descriptor::link(Some(Pa::new(pa)));
            assert_eq!(link.linked(), Some(Pa::new(pa)));
            assert!((0..=3).all(|level| link.kind(level) == Kind::Invalid));
        }
        assert_eq!(Descriptor::link(None).linked(), None);
    }

    #[test]
    fn reserved_encodings_are_invalid() {
        assert_eq!(Descriptor(0x4000_0001).kind(0), Kind::Invalid);
        assert_eq!(Descriptor(0x4000_0001).kind(3), Kind::Invalid);
    }

    #[test]
    fn a_change_of_address_or_type_is_not_one_of_permission() {
        let ram = Descriptor::leaf(Pa::new(0x1000), Attributes::RAM, 3);
        let ro = ram.with_attributes(Attributes::READ_ONLY, 3);
        assert!(ram.differs_in_permission_only(ro));
        assert!(!ram.differs_in_permission_only(ram.with_attributes(Attributes::DEVICE, 3)));
        let moved = Descriptor::leaf(Pa::new(0x2000), Attributes::RAM, 3);
        assert!(!ram.differs_in_permission_only(moved));
    }
}
