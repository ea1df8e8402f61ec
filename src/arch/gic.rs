//! The physical GICv3: what EL2 takes from it, and the list registers it lends the virtual one.
//!
//! Arm IHI 0069. EL2 runs with EOImode 1: the priority drop and the deactivation are two writes, so
//! that a guest's timer interrupt can be dropped here and deactivated by the guest itself (HW=1).

use aarch64_cpu::registers::{ICC_SRE_EL2, MPIDR_EL1, Readable, Writeable};

use super::barrier;
use super::mmio::Mmio;
use super::registers::{
    ICC_CTLR_EL1, ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1,
    ICH_AP0R0_EL2, ICH_AP0R1_EL2, ICH_AP0R2_EL2, ICH_AP0R3_EL2, ICH_AP1R0_EL2, ICH_AP1R1_EL2,
    ICH_AP1R2_EL2, ICH_AP1R3_EL2, ICH_HCR_EL2, ICH_VMCR_EL2, ICH_VTR_EL2,
};

/// GICD and GICR offsets used here (IHI 0069, "Distributor register map" and "Redistributor
/// register map"). Those without prefix are the same in GICD and in the SGI frame of a
/// redistributor.
mod offset {
    pub(super) const GICD_CTLR: usize = 0x0000;
    pub(super) const GICD_TYPER: usize = 0x0004;
    pub(super) const IGROUPR: usize = 0x0080;
    pub(super) const ISENABLER: usize = 0x0100;
    pub(super) const ICENABLER: usize = 0x0180;
    pub(super) const ICACTIVER: usize = 0x0380;
    pub(super) const ICPENDR: usize = 0x0280;
    pub(super) const IPRIORITYR: usize = 0x0400;
    pub(super) const ICFGR: usize = 0x0c00;
    pub(super) const IROUTER: usize = 0x6000;
    pub(super) const GICR_TYPER: usize = 0x0008;
    pub(super) const GICR_WAKER: usize = 0x0014;
    pub(super) const SGI_BASE: usize = 0x1_0000;
}

/// GICD_CTLR, as a Non-secure access of two Security states sees it (ARE_NS, EnableGrp1A,
/// EnableGrp1) and as one of a single state does (ARE, EnableGrp1, EnableGrp0): the same bits
/// serve.
const CTLR_ENABLE: u32 = 1 << 4 | 1 << 1 | 1;
/// ICC_CTLR_EL1.EOImode: EOIR drops the priority, DIR deactivates.
const CTLR_EOI_MODE: u64 = 1 << 1;
/// GICD_CTLR.RWP: a write is still on its way.
const CTLR_RWP: u32 = 1 << 31;
/// Size of a GICv3 redistributor's two frames.
pub const REDISTRIBUTOR_SIZE: usize = 0x2_0000;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_VLPIS: u64 = 1 << 1;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// All EL2 interrupts have one priority: none preempts another.
const PRIORITY: u8 = 0xa0;
/// Reads of a register that is waited for, at the most.
const PATIENCE: usize = 1_000_000;

/// Interrupt of list-register maintenance (Arm BSA).
pub const MAINTENANCE_INTID: u32 = 25;
/// INTIDs from here on are special: no interrupt.
const SPECIAL: u32 = 1020;

/// Why the GIC cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// No redistributor has this core's affinity.
    NoRedistributor,
    /// A register that must settle did not.
    Stuck,
}

impl core::fmt::Display for GicError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoRedistributor => "no redistributor is this core's",
            Self::Stuck => "a register does not settle",
        })
    }
}

/// The board's distributor, and this core's redistributor.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalGic {
    distributor: Mmio,
    sgi_frame: Mmio,
}

fn wait_clear(frame: &Mmio, register: usize, bits: u32) -> Result<(), GicError> {
    for _ in 0..PATIENCE {
        if frame.read32_relaxed(register) & bits == 0 {
            return Ok(());
        }
        barrier::relax();
    }
    Err(GicError::Stuck)
}

impl PhysicalGic {
    /// Brings up the distributor and this core's redistributor and CPU interface, everything
    /// disabled.
    ///
    /// # Errors
    /// [`GicError`]: the hardware is not what the device tree says.
    ///
    /// # Safety
    /// The frames are this board's GIC; `redistributor` maps GICR frame number n of its region, or
    /// `None` past its end.
    pub unsafe fn init(
        distributor: Mmio,
        redistributor: impl Fn(usize) -> Option<Mmio>,
    ) -> Result<Self, GicError> {
        let sgi_frame = find_redistributor(redistributor)?;
        let gic = Self { distributor, sgi_frame };
        gic.init_distributor()?;
        gic.init_redistributor();
        init_cpu_interface();
        Ok(gic)
    }

    fn init_distributor(&self) -> Result<(), GicError> {
        let d = &self.distributor;
        d.write32_relaxed(offset::GICD_CTLR, 0);
        wait_clear(d, offset::GICD_CTLR, CTLR_RWP)?;
        let words = (d.read32_relaxed(offset::GICD_TYPER) & 0x1f) as usize + 1;
        for word in 1..words {
            d.write32_relaxed(offset::ICENABLER + word * 4, !0);
            d.write32_relaxed(offset::ICPENDR + word * 4, !0);
            d.write32_relaxed(offset::ICACTIVER + word * 4, !0);
            d.write32_relaxed(offset::IGROUPR + word * 4, !0);
            for priorities in 0..8 {
                let value = u32::from_ne_bytes([PRIORITY; 4]);
                d.write32_relaxed(offset::IPRIORITYR + word * 32 + priorities * 4, value);
            }
        }
        wait_clear(d, offset::GICD_CTLR, CTLR_RWP)?;
        d.write32_relaxed(offset::GICD_CTLR, CTLR_ENABLE);
        wait_clear(d, offset::GICD_CTLR, CTLR_RWP)
    }

    fn init_redistributor(&self) {
        let r = &self.sgi_frame;
        r.write32_relaxed(offset::ICENABLER, !0);
        r.write32_relaxed(offset::ICPENDR, !0);
        r.write32_relaxed(offset::ICACTIVER, !0);
        r.write32_relaxed(offset::IGROUPR, !0);
        for priorities in 0..8 {
            let value = u32::from_ne_bytes([PRIORITY; 4]);
            r.write32_relaxed(offset::IPRIORITYR + priorities * 4, value);
        }
    }

    /// Enables an SGI or PPI of this core, whose trigger is left as it is, or an SPI, which is
    /// routed to this core and becomes edge-triggered or level-sensitive.
    pub fn enable(&self, intid: u32, edge: bool) {
        let (word, bit) = ((intid / 32) as usize, 1u32 << (intid % 32));
        if intid < 32 {
            self.sgi_frame.write32_relaxed(offset::ISENABLER, bit);
            return;
        }
        let affinity = MPIDR_EL1.get() & 0xff_00ff_ffff;
        let d = &self.distributor;
        d.write64_relaxed(offset::IROUTER + intid as usize * 8, affinity);
        let config = offset::ICFGR + (intid / 16) as usize * 4;
        let edge_bit = 2u32 << (intid % 16 * 2);
        let others = d.read32_relaxed(config) & !edge_bit;
        d.write32_relaxed(config, others | if edge { edge_bit } else { 0 });
        d.write32_relaxed(offset::ISENABLER + word * 4, bit);
    }

    /// Whether an SGI or PPI of this core is enabled. One that firmware keeps for the Secure state
    /// cannot be: to us its enable bit is RAZ/WI.
    pub fn is_enabled(&self, ppi: u32) -> bool {
        self.sgi_frame.read32_relaxed(offset::ISENABLER) >> (ppi & 31) & 1 != 0
    }

    /// Disables an SGI or PPI of this core, or an SPI.
    pub fn disable(&self, intid: u32) {
        let (word, bit) = ((intid / 32) as usize, 1u32 << (intid % 32));
        let frame = if intid < 32 { &self.sgi_frame } else { &self.distributor };
        frame.write32_relaxed(offset::ICENABLER + word * 4, bit);
    }

    /// Takes a private interrupt out of the active state wherever it was left: a guest that stops
    /// with its timer interrupt in service never deactivates it.
    pub fn clear_active(&self, intid: u32) {
        if intid < 32 {
            self.sgi_frame.write32_relaxed(offset::ICACTIVER, 1 << intid);
        }
    }
}

/// The highest pending group 1 interrupt of this core, now active and ours to end (ICC_IAR1_EL1).
/// `None` if there is none.
#[inline(always)]
pub fn acknowledge() -> Option<u32> {
    let intid = ICC_IAR1_EL1::get() as u32 & 0xff_ffff;
    (intid < SPECIAL).then_some(intid)
}

/// Ends an interrupt's hold on the running priority; it stays active (ICC_EOIR1_EL1, EOImode 1).
#[inline(always)]
pub fn drop_priority(intid: u32) {
    ICC_EOIR1_EL1::set(u64::from(intid));
}

/// Lets an interrupt come again: it is no longer active (ICC_DIR_EL1).
#[inline(always)]
pub fn deactivate(intid: u32) {
    ICC_DIR_EL1::set(u64::from(intid));
}

/// Wakes this core's redistributor; its SGI frame.
fn find_redistributor(frame: impl Fn(usize) -> Option<Mmio>) -> Result<Mmio, GicError> {
    let mpidr = MPIDR_EL1.get();
    let affinity = mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff;
    let mut n = 0;
    // A region holds one redistributor a core; 512 is more than any board has.
    while n < 512 {
        let rd = frame(n).ok_or(GicError::NoRedistributor)?;
        let typer = rd.read64_relaxed(offset::GICR_TYPER);
        if typer >> 32 == affinity {
            let waker = rd.read32_relaxed(offset::GICR_WAKER) & !WAKER_PROCESSOR_SLEEP;
            rd.write32_relaxed(offset::GICR_WAKER, waker);
            wait_clear(&rd, offset::GICR_WAKER, WAKER_CHILDREN_ASLEEP)?;
            return Ok(rd.at(offset::SGI_BASE));
        }
        if typer & TYPER_LAST != 0 {
            break;
        }
        n += if typer & TYPER_VLPIS != 0 { 2 } else { 1 };
    }
    Err(GicError::NoRedistributor)
}

/// System registers on for EL2 and below (ICC_SRE_EL2.{SRE, DFB, DIB, Enable}), nothing masked by
/// priority, group 1 on, the virtual interface on (ICH_HCR_EL2.En).
fn init_cpu_interface() {
    ICC_SRE_EL2.set(0xf);
    barrier::isb();
    ICC_PMR_EL1::set(0xff);
    ICC_CTLR_EL1::set(ICC_CTLR_EL1::get() | CTLR_EOI_MODE);
    ICC_IGRPEN1_EL1::set(1);
    ICH_HCR_EL2::set(1);
    barrier::isb();
}

/// The guest's CPU interface as it is after reset: groups off, everything masked, nothing active.
/// The list registers are [`crate::gic::Vgic::reset`]'s.
pub fn reset_virtual_interface() {
    ICH_VMCR_EL2::set(0);
    ICH_AP0R0_EL2::set(0);
    ICH_AP1R0_EL2::set(0);
    // ICH_VTR_EL2.PREbits: bits of preemption priority, less one.
    let preemption_bits = (ICH_VTR_EL2::get() >> 26 & 7) + 1;
    if preemption_bits >= 6 {
        ICH_AP0R1_EL2::set(0);
        ICH_AP1R1_EL2::set(0);
    }
    if preemption_bits >= 7 {
        ICH_AP0R2_EL2::set(0);
        ICH_AP0R3_EL2::set(0);
        ICH_AP1R2_EL2::set(0);
        ICH_AP1R3_EL2::set(0);
    }
    ICH_HCR_EL2::set(1);
    barrier::isb();
}
