//! `GICH_LR<n>`, and how it is to say what an `ICH_LR<n>_EL2` says.

use super::super::list_register::ListRegister;

/// State, bits \[29:28\] for \[63:62\].
const STATE_DOWN: u32 = 34;
/// The five bits of priority, \[27:23\] for \[55:51\].
const PRIORITY_DOWN: u32 = 28;
/// PhysicalID, \[19:10\] for \[41:32\]. With HW = 0 the topmost is EOI in both.
const PHYSICAL_DOWN: u32 = 22;

const HW: u32 = 1 << 31;
const GROUP1: u32 = 1 << 30;
const STATE: u32 = 3 << 28;
const PRIORITY: u32 = 0x1f << 23;
const PHYSICAL: u32 = 0x3ff << 10;
const EOI: u32 = 1 << 19;
const VIRTUAL: u32 = 0x3ff;
/// CPUID of an SGI's sender, with HW = 0.
const SENDER: u32 = 7 << 10;

const V3_HW: u64 = 1 << 61;
const V3_GROUP1: u64 = 1 << 60;

/// A GICv2 list register's content (Arm IHI 0048, `GICH_LR<n>`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct GichLr(u32);

impl GichLr {
    /// From the register.
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// For the register.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The same without HW, and maintenance on EOI in its place.
    #[inline]
    pub const fn untied(self) -> Self {
        Self(self.0 & !(HW | PHYSICAL) | EOI)
    }

    /// As [`ListRegister`] says it.
    #[inline]
    pub const fn list_register(self) -> ListRegister {
        let lr = self.0;
        let mut bits = ((lr & STATE) as u64) << STATE_DOWN
            | ((lr & PRIORITY) as u64) << PRIORITY_DOWN
            | (lr & VIRTUAL) as u64;
        if lr & GROUP1 != 0 {
            bits |= V3_GROUP1;
        }
        if lr & HW != 0 {
            bits |= V3_HW | ((lr & PHYSICAL) as u64) << PHYSICAL_DOWN;
        } else {
            bits |= ((lr & EOI) as u64) << PHYSICAL_DOWN | (lr & SENDER) as u64;
        }
        ListRegister::from_bits(bits)
    }
}

impl From<ListRegister> for GichLr {
    /// Priority bits that a GICv2 does not have, and INTIDs from 1024 on, are cut.
    #[inline]
    fn from(lr: ListRegister) -> Self {
        let lr = lr.bits();
        let mut bits = (lr >> STATE_DOWN) as u32 & STATE
            | (lr >> PRIORITY_DOWN) as u32 & PRIORITY
            | lr as u32 & VIRTUAL;
        if lr & V3_GROUP1 != 0 {
            bits |= GROUP1;
        }
        let physical = (lr >> PHYSICAL_DOWN) as u32;
        if lr & V3_HW != 0 {
            bits |= HW | physical & PHYSICAL;
        } else {
            bits |= physical & EOI | lr as u32 & SENDER;
        }
        Self(bits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gic::{IntId, State};

    fn lr(intid: u32, state: State, priority: u8, group1: bool) -> ListRegister {
        ListRegister::new(IntId::new(intid).unwrap(), state, priority, group1)
    }

    #[test]
    fn v1_fields_are_where_gicv2_puts_them() {
        let bits = |lr: ListRegister| GichLr::from(lr).bits();
        assert_eq!(bits(lr(42, State::Pending, 0, false)), 0x1000_002a);
        assert_eq!(bits(lr(42, State::Active, 0, false)), 0x2000_002a);
        assert_eq!(bits(lr(42, State::PendingActive, 0, false)), 0x3000_002a);
        assert_eq!(bits(lr(42, State::Pending, 0, true)), 0x5000_002a);
        assert_eq!(bits(lr(42, State::Pending, 0xa0, true)), 0x5a00_002a);
        assert_eq!(bits(lr(255, State::Pending, 0xf8, false)), 0x1f80_00ff);
        assert_eq!(bits(lr(27, State::Pending, 0xa0, true).with_physical(27)), 0xda00_6c1b);
        assert_eq!(bits(lr(27, State::Pending, 0, true).with_physical(1019)), 0xd00f_ec1b);
        assert_eq!(bits(lr(33, State::Pending, 0, true).with_eoi_maintenance(true)), 0x5008_0021);
        assert_eq!(bits(lr(5, State::Pending, 0, true).with_sender(6)), 0x5000_1805);
        assert_eq!(bits(ListRegister::EMPTY), 0);
        let tied = lr(27, State::Pending, 0xa0, true).with_physical(27);
        assert_eq!(GichLr::from(tied).untied().bits(), 0x5a08_001b);
    }

    proptest! {
        #[test]
        fn a_list_register_reads_back_as_written(
            intid in 0u32..256,
            state in prop::sample::select(
                &[State::Invalid, State::Pending, State::Active, State::PendingActive][..]
            ),
            priority in 0u8..32,
            group1: bool,
            physical in prop::option::of(0u16..1020),
            eoi: bool,
            sender in 0u8..8,
        ) {
            let plain = lr(intid, state, priority << 3, group1);
            let written = match physical {
                Some(pintid) => plain.with_physical(pintid),
                None if intid < 16 => plain.with_eoi_maintenance(eoi).with_sender(sender),
                None => plain.with_eoi_maintenance(eoi),
            };
            prop_assert_eq!(GichLr::from(written).list_register(), written);
        }

        #[test]
        fn every_value_of_the_hardware_keeps_its_defined_bits(bits: u32) {
            let reserved = if bits & HW != 0 { 7 << 20 } else { 7 << 20 | 0x3f << 13 };
            prop_assert_eq!(
                GichLr::from(GichLr::from_bits(bits).list_register()).bits(),
                bits & !reserved
            );
        }
    }
}
