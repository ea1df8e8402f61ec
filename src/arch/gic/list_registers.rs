//! The list registers of this core: `ICH_LR<n>_EL2` (IHI 0069), or those of a GICv2.

use super::{ListRegister, ListRegisters, Maintenance, v2};
use crate::arch::registers::{
    ICC_DIR_EL1, ICH_ELRSR_EL2, ICH_HCR_EL2, ICH_LR0_EL2, ICH_VMCR_EL2, ICH_VTR_EL2,
};

pub use v2::GicV2ListRegisters;

/// ICH_HCR_EL2.En: the virtual CPU interface is on.
const HCR_EN: u64 = 1;
/// ICH_HCR_EL2.LRENPIE: maintenance while EOIcount is not zero.
const HCR_LRENPIE: u64 = 1 << 2;
/// ICH_HCR_EL2.NPIE: maintenance while no list register is pending.
const HCR_NPIE: u64 = 1 << 3;
/// ICH_HCR_EL2.TDIR: the guest's writes to ICC_DIR_EL1 trap.
const HCR_TDIR: u64 = 1 << 14;
/// ICH_HCR_EL2.EOIcount, five bits: ends of interrupts that were in no list register.
const HCR_EOI_COUNT_SHIFT: u32 = 27;
/// ICH_VMCR_EL2.VEOIM: the guest's EOImode.
const VMCR_VEOIM: u64 = 1 << 9;
/// ICH_VTR_EL2.TDS: TDIR is there.
const VTR_TDS: u64 = 1 << 19;

/// This core's list registers, of either version.
///
/// The exit path asks for them often, so the version is told by one test and GICv3's are inlined.
#[derive(Debug)]
pub struct CoreListRegisters {
    /// System registers; of a GICv2, only how many there are.
    v3: GicV3ListRegisters,
    /// GICH.
    v2: Option<GicV2ListRegisters>,
}

impl CoreListRegisters {
    /// Those of a GICv2, or of a GICv3 if there are no such frames; all empty.
    pub(super) fn new(v2: Option<v2::Frames>) -> Self {
        match v2.map(GicV2ListRegisters::new) {
            None => Self { v3: GicV3ListRegisters::new(), v2: None },
            Some(v2) => {
                let v3 = GicV3ListRegisters { count: v2.count(), trap_dir: 0 };
                Self { v3, v2: Some(v2) }
            }
        }
    }
}

impl ListRegisters for CoreListRegisters {
    #[inline(always)]
    fn count(&self) -> usize {
        self.v3.count
    }

    #[inline]
    fn read(&self, n: usize) -> ListRegister {
        match &self.v2 {
            None => self.v3.read(n),
            Some(v2) => v2.read(n),
        }
    }

    #[inline(always)]
    fn write(&mut self, n: usize, value: ListRegister) {
        match &mut self.v2 {
            None => self.v3.write(n, value),
            Some(v2) => v2.write(n, value),
        }
    }

    #[inline(always)]
    fn empty(&self) -> u32 {
        match &self.v2 {
            None => self.v3.empty(),
            Some(v2) => v2.empty(),
        }
    }

    #[inline]
    fn set_maintenance(&mut self, wanted: Maintenance) {
        match &mut self.v2 {
            None => self.v3.set_maintenance(wanted),
            Some(v2) => v2.set_maintenance(wanted),
        }
    }

    #[inline]
    fn take_eoi_count(&mut self) -> u32 {
        match &mut self.v2 {
            None => self.v3.take_eoi_count(),
            Some(v2) => v2.take_eoi_count(),
        }
    }

    #[inline]
    fn deactivate_physical(&mut self, pintid: u16) {
        match &mut self.v2 {
            None => self.v3.deactivate_physical(pintid),
            Some(v2) => v2.deactivate_physical(pintid),
        }
    }
}

/// GICv3's.
#[derive(Debug)]
pub struct GicV3ListRegisters {
    count: usize,
    /// Traps writes to ICC_DIR_EL1, where the implementation can.
    trap_dir: u64,
}

macro_rules! each_list_register {
    ($n:expr, |$name:ident| $action:expr, $($index:literal = $register:ident,)*) => {
        match $n {
            $($index => { use crate::arch::registers::$register as $name; $action })*
            _ => {}
        }
    };
}

macro_rules! list_register {
    ($n:expr, |$name:ident| $action:expr) => {
        each_list_register!(
            $n,
            |$name| $action,
            0 = ICH_LR0_EL2,
            1 = ICH_LR1_EL2,
            2 = ICH_LR2_EL2,
            3 = ICH_LR3_EL2,
            4 = ICH_LR4_EL2,
            5 = ICH_LR5_EL2,
            6 = ICH_LR6_EL2,
            7 = ICH_LR7_EL2,
            8 = ICH_LR8_EL2,
            9 = ICH_LR9_EL2,
            10 = ICH_LR10_EL2,
            11 = ICH_LR11_EL2,
            12 = ICH_LR12_EL2,
            13 = ICH_LR13_EL2,
            14 = ICH_LR14_EL2,
            15 = ICH_LR15_EL2,
        )
    };
}

impl GicV3ListRegisters {
    /// This core's, all empty.
    pub fn new() -> Self {
        let vtr = ICH_VTR_EL2::get();
        let mut registers = Self {
            count: (vtr & 0x1f) as usize + 1,
            trap_dir: if vtr & VTR_TDS != 0 { HCR_TDIR } else { 0 },
        };
        for n in 0..registers.count {
            registers.write(n, ListRegister::EMPTY);
        }
        registers
    }
}

impl Default for GicV3ListRegisters {
    fn default() -> Self {
        Self::new()
    }
}

// Sixteen registers are sixteen instructions to choose from: once in the image is enough.
#[inline(never)]
fn read_any(n: usize) -> ListRegister {
    let mut bits = 0;
    list_register!(n, |LR| bits = LR::get());
    ListRegister::from_bits(bits)
}

#[inline(never)]
fn write_any(n: usize, value: ListRegister) {
    list_register!(n, |LR| LR::set(value.bits()));
}

impl ListRegisters for GicV3ListRegisters {
    #[inline(always)]
    fn count(&self) -> usize {
        self.count
    }

    #[inline(always)]
    fn read(&self, n: usize) -> ListRegister {
        read_any(n)
    }

    // With little to do it is always the first.
    #[inline(always)]
    fn write(&mut self, n: usize, value: ListRegister) {
        if n == 0 {
            ICH_LR0_EL2::set(value.bits());
        } else {
            write_any(n, value);
        }
    }

    #[inline(always)]
    fn empty(&self) -> u32 {
        ICH_ELRSR_EL2::get() as u32
    }

    #[inline]
    fn set_maintenance(&mut self, wanted: Maintenance) {
        let mut hcr = HCR_EN;
        if wanted.no_pending {
            hcr |= HCR_NPIE;
        }
        if wanted.unlisted_active {
            hcr |= HCR_LRENPIE | self.trap_dir;
        }
        ICH_HCR_EL2::set(hcr);
    }

    #[inline]
    fn take_eoi_count(&mut self) -> u32 {
        let hcr = ICH_HCR_EL2::get();
        let count = (hcr >> HCR_EOI_COUNT_SHIFT) as u32 & 0x1f;
        if count != 0 {
            ICH_HCR_EL2::set(hcr & !(0x1f << HCR_EOI_COUNT_SHIFT));
        }
        // With EOImode 1 deactivations are trapped one by one. QEMU 7.2 counts priority drops
        // then, which end nothing (IHI 0069, ICH_HCR_EL2.EOIcount).
        if hcr & HCR_TDIR != 0 && ICH_VMCR_EL2::get() & VMCR_VEOIM != 0 {
            return 0;
        }
        count
    }

    fn deactivate_physical(&mut self, pintid: u16) {
        ICC_DIR_EL1::set(u64::from(pintid));
    }
}
