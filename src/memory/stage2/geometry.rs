//! The shape of a stage-2 tree, and the two registers that tell it to the core.
//!
//! Arm ARM (DDI 0487) D8.2 "Translation process", D19 for the registers.

use super::Stage2Error;
use crate::memory::Pa;

/// Bits of address one table resolves: 512 entries.
pub(super) const BITS_PER_LEVEL: u32 = 9;
/// The level whose entries map single pages.
pub(super) const LAST_LEVEL: u8 = 3;
/// The first level whose entries may be blocks (1 GiB); a level-0 entry is always a table.
pub(super) const FIRST_BLOCK_LEVEL: u8 = 1;

/// Address bits below an entry of `level`: 39, 30, 21, 12.
pub(super) const fn shift(level: u8) -> u32 {
    12 + BITS_PER_LEVEL * (LAST_LEVEL - level) as u32
}

/// Bytes one entry of `level` covers: 512 GiB, 1 GiB, 2 MiB, 4 KiB.
pub(super) const fn span(level: u8) -> u64 {
    1 << shift(level)
}

/// A virtual machine's tag in the TLBs; of 8 bits unless the core has 16 (`ID_AA64MMFR1_EL1.VMIDBits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vmid(u16);

impl Vmid {
    /// Wraps a VMID. One above 255 needs [`VmidBits::Sixteen`].
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The raw VMID.
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// Size of the VMIDs in use (`VTCR_EL2.VS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmidBits {
    /// Every core has these.
    Eight,
    /// If `ID_AA64MMFR1_EL1.VMIDBits` is 2.
    Sixteen,
}

/// How many address bits a tree translates, and how its walk starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    ipa_bits: u8,
    pa_range: u8,
    start_level: u8,
    root_tables: u8,
}

impl Geometry {
    /// Least size of a guest's address space, in bits.
    pub const MIN_IPA_BITS: u8 = 32;
    /// Greatest size with a 4 KiB granule and without FEAT_LPA2, in bits.
    pub const MAX_IPA_BITS: u8 = 48;

    /// The tree for `ipa_bits` of guest address on a core with `pa_range`
    /// (`ID_AA64MMFR0_EL1.PARange`, or the least of all cores').
    ///
    /// Up to 39 bits the walk starts at one level-1 table; up to 43 bits at 2 to 16 concatenated
    /// ones, which saves a level and is the only way on a core with 40-bit addresses; above that
    /// at one level-0 table.
    ///
    /// # Errors
    /// [`Stage2Error::IpaBits`] unless `ipa_bits` is 32 to 48 and no more than the core's
    /// [`pa_bits`].
    pub const fn new(ipa_bits: u8, pa_range: u8) -> Result<Self, Stage2Error> {
        if ipa_bits < Self::MIN_IPA_BITS || ipa_bits > pa_bits(pa_range) {
            return Err(Stage2Error::IpaBits);
        }
        let (start_level, root_tables) = match ipa_bits {
            ..=39 => (1, 1),
            40..=43 => (1, 1 << (ipa_bits - 39)),
            _ => (0, 1),
        };
        Ok(Self { ipa_bits, pa_range, start_level, root_tables })
    }

    /// The widest tree of a core with `pa_range`, but no more than `wanted` bits.
    ///
    /// # Errors
    /// As [`Geometry::new`], if `wanted` is under 32.
    pub const fn widest(wanted: u8, pa_range: u8) -> Result<Self, Stage2Error> {
        let bits = pa_bits(pa_range);
        Self::new(if wanted < bits { wanted } else { bits }, pa_range)
    }

    /// Size of the guest's address space, in bits.
    pub const fn ipa_bits(self) -> u8 {
        self.ipa_bits
    }

    /// The first guest address that is none.
    pub const fn ipa_end(self) -> u64 {
        1 << self.ipa_bits
    }

    /// The first physical address the core cannot output.
    pub const fn pa_end(self) -> u64 {
        1 << pa_bits(self.pa_range)
    }

    /// The level at which walks start.
    pub const fn start_level(self) -> u8 {
        self.start_level
    }

    /// Concatenated tables at the start level: 1 to 16. The root is aligned to all of them.
    pub const fn root_tables(self) -> usize {
        self.root_tables as usize
    }

    /// The value of `VTCR_EL2` for this tree.
    ///
    /// | field | value |
    /// |---|---|
    /// | T0SZ \[5:0\] | 64 - IPA bits |
    /// | SL0 \[7:6\] | 4 KiB granule: 1 for start level 1, 2 for level 0 |
    /// | IRGN0 \[9:8\], ORGN0 \[11:10\] | 1: walks are Normal, write-back, read- and write-allocate |
    /// | SH0 \[13:12\] | 3: and inner shareable |
    /// | TG0 \[15:14\] | 0: 4 KiB granule |
    /// | PS \[18:16\] | the core's PARange, but 48 bits (5) at most |
    /// | VS \[19\] | 1 for 16-bit VMIDs |
    /// | HA \[21\], HD \[22\] | 0: no hardware access flag or dirty state |
    /// | RES1 \[31\] | 1 |
    pub const fn vtcr(self, vmid_bits: VmidBits) -> u64 {
        let t0sz = 64 - self.ipa_bits as u64;
        let sl0 = 2 - self.start_level as u64;
        let ps = if self.pa_range > MAX_PS { MAX_PS } else { self.pa_range } as u64;
        let vs = matches!(vmid_bits, VmidBits::Sixteen) as u64;
        t0sz | sl0 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | ps << 16 | vs << 19 | 1 << 31
    }
}

/// `VTCR_EL2.PS` for 48 bits; 52 bits need FEAT_LPA2, which is not used.
const MAX_PS: u8 = 5;

/// Usable physical address bits of a core with `pa_range` (`ID_AA64MMFR0_EL1.PARange`): 32 to 48.
pub const fn pa_bits(pa_range: u8) -> u8 {
    match pa_range {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// The value of `VTTBR_EL2`: VMID \[63:48\], BADDR \[47:1\] (aligned to the root), CnP \[0\] = 0.
pub const fn vttbr(root: Pa, vmid: Vmid) -> u64 {
    (vmid.0 as u64) << 48 | root.raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_bits_on_an_a53_are_two_concatenated_level_1_tables() {
        let geometry = Geometry::new(40, 2).unwrap();
        assert_eq!((geometry.start_level(), geometry.root_tables()), (1, 2));
        assert_eq!(geometry.vtcr(VmidBits::Eight), 0x8002_3558);
    }

    #[test]
    fn every_size_has_a_root_that_covers_it_and_no_more_than_16_tables() {
        for bits in 32..=48 {
            let geometry = Geometry::new(bits, 5).unwrap();
            let root = geometry.root_tables() as u64 * 512 * span(geometry.start_level());
            assert!(root >= geometry.ipa_end(), "{bits}");
            assert!(geometry.root_tables() <= 16);
            let slack = root / geometry.ipa_end();
            assert!(geometry.root_tables() == 1 || slack == 1, "{bits}");
        }
    }

    #[test]
    fn sizes_the_core_cannot_output_are_refused() {
        assert_eq!(Geometry::new(31, 5), Err(Stage2Error::IpaBits));
        assert_eq!(Geometry::new(49, 6), Err(Stage2Error::IpaBits));
        assert_eq!(Geometry::new(41, 2), Err(Stage2Error::IpaBits));
        assert_eq!(Geometry::widest(48, 2).unwrap().ipa_bits(), 40);
        assert_eq!(Geometry::widest(40, 6).unwrap().ipa_bits(), 40);
        assert_eq!(Geometry::widest(20, 6), Err(Stage2Error::IpaBits));
    }

    #[test]
    fn ps_is_clamped_to_48_bits_and_vs_follows_the_vmid_size() {
        let geometry = Geometry::new(40, 6).unwrap();
        assert_eq!(geometry.vtcr(VmidBits::Eight) >> 16 & 0xf, 5);
        assert_eq!(geometry.vtcr(VmidBits::Sixteen) >> 16 & 0xf, 0xd);
        assert_eq!(geometry.pa_end(), 1 << 48);
    }

    #[test]
    fn vttbr_has_the_vmid_on_top() {
        assert_eq!(vttbr(Pa::new(0x4001_2000), Vmid::new(0x1ff)), 0x01ff_0000_4001_2000);
    }
}
