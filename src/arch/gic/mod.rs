//! The physical GIC: what EL2 takes from it, and the list registers it lends the virtual one.
//!
//! Arm IHI 0069 (GICv3) and IHI 0048 (GICv2). EL2 runs with EOImode 1: the priority drop and the
//! deactivation are two writes, so that a guest's timer interrupt can be dropped here and deactivated
//! by the guest itself (HW = 1).

pub mod list_registers;
mod v2;
mod v3;

use super::barrier;
use super::mmio::Mmio;
use super::registers::{ICC_DIR_EL1, ICC_EOIR1_EL1, ICC_IAR1_EL1};
use crate::gic::{GicVersion, ListRegister, ListRegisters, Maintenance};
use crate::memory::PaRange;

/// Offsets in GICD. Those of the first group are the same in the SGI frame of a GICv3's
/// redistributor, and banked in a GICv2's GICD: this core's SGIs and PPIs.
const IGROUPR: usize = 0x0080;
const ISENABLER: usize = 0x0100;
const ICENABLER: usize = 0x0180;
const ICPENDR: usize = 0x0280;
const ISACTIVER: usize = 0x0300;
const ICACTIVER: usize = 0x0380;
const IPRIORITYR: usize = 0x0400;
const ICFGR: usize = 0x0c00;
const GICD_CTLR: usize = 0x0000;
const GICD_TYPER: usize = 0x0004;
const IROUTER: usize = 0x6000;

/// GICD_CTLR.RWP: a write is still on its way. Reserved, and zero, in a GICv2.
const CTLR_RWP: u32 = 1 << 31;
/// All EL2 interrupts have one priority: none preempts another.
const PRIORITY: u8 = 0xa0;
/// Reads of a register that is waited for, at the most.
const PATIENCE: usize = 1_000_000;

/// Interrupt of list-register maintenance (Arm BSA).
pub const MAINTENANCE_INTID: u32 = 25;
/// INTIDs from here on are special: no interrupt.
const SPECIAL: u32 = 1020;
/// INTID of a value of GICC_IAR; above it is an SGI's sender. A GICv3's INTIDs that are wider are
/// LPIs and extended ranges, which are never enabled.
const IAR_INTID: u32 = 0x3ff;

/// Why the GIC cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// No redistributor has this core's affinity.
    NoRedistributor,
    /// A register that must settle did not.
    Stuck,
    /// EL2 cannot map its registers.
    Unmappable,
}

impl core::fmt::Display for GicError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NoRedistributor => "no redistributor is this core's",
            Self::Stuck => "a register does not settle",
            Self::Unmappable => "EL2 cannot map its registers",
        })
    }
}

/// Where the board has its GIC.
#[derive(Clone, Copy, Debug)]
pub enum Frames<'a> {
    /// GICv2 with the virtualization extensions.
    V2 {
        /// GICD.
        distributor: PaRange,
        /// GICC.
        cpu_interface: PaRange,
        /// GICH.
        hypervisor: PaRange,
    },
    /// GICv3 or GICv4.
    V3 {
        /// GICD.
        distributor: PaRange,
        /// GICR: regions with the cores' redistributors in a row.
        redistributors: &'a [PaRange],
    },
}

/// What the GIC knows a core by: its affinity (GICv3), or the bit it is wired to (GICv2). Only the
/// core itself can find it out ([`PhysicalGic::this_core`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreAddress(u64);

/// An interrupt that this core has acknowledged and must end: the value of IAR. On a GICv2 it has an
/// SGI's sender in bits 12:10, which the end must repeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledged(u32);

impl Acknowledged {
    /// Which one it is.
    #[inline(always)]
    pub const fn intid(self) -> u32 {
        self.0 & IAR_INTID
    }
}

/// What a vCPU's CPU interface holds besides list registers: its mask, its groups, its active
/// priorities. To be saved and restored where vCPUs share a core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtualInterface {
    /// ICH_VMCR_EL2 or GICH_VMCR.
    vmcr: u32,
    /// `ICH_AP0R<n>_EL2` and `ICH_AP1R<n>_EL2`; GICH_APR is the first.
    active_priorities: [[u32; 4]; 2],
}

impl VirtualInterface {
    /// After reset: groups off, everything masked, nothing active.
    pub const RESET: Self = Self { vmcr: 0, active_priorities: [[0; 4]; 2] };
}

/// The board's GIC, as one core reaches it: the distributor, and that core's own registers. A copy
/// is good on that core only.
#[derive(Clone, Copy, Debug)]
pub struct PhysicalGic {
    distributor: Mmio,
    /// Registers of this core's SGIs and PPIs.
    private: Mmio,
    this_core: CoreAddress,
    /// GICC and GICH, of a GICv2 only.
    v2: Option<v2::Frames>,
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
    /// Brings up the distributor, and what is this core's, everything disabled: for the first core.
    ///
    /// # Errors
    /// [`GicError`]: the hardware is not what the device tree says.
    ///
    /// # Safety
    /// The frames are this board's GIC, and nobody else drives it.
    pub unsafe fn init(frames: &Frames<'_>) -> Result<Self, GicError> {
        let (Frames::V2 { distributor: d, .. } | Frames::V3 { distributor: d, .. }) = frames;
        // SAFETY: by the caller it is the distributor, which does no DMA while LPIs are off.
        let d = unsafe { Mmio::map(d.base, d.len as usize) }.map_err(|_| GicError::Unmappable)?;
        let is_v3 = matches!(frames, Frames::V3 { .. });
        d.write32_relaxed(GICD_CTLR, 0);
        wait_clear(&d, GICD_CTLR, CTLR_RWP)?;
        let words = (d.read32_relaxed(GICD_TYPER) & 0x1f) as usize + 1;
        for word in 1..words {
            quiet(&d, word, is_v3);
        }
        wait_clear(&d, GICD_CTLR, CTLR_RWP)?;
        d.write32_relaxed(GICD_CTLR, if is_v3 { v3::CTLR_ENABLE } else { v2::CTLR_ENABLE });
        wait_clear(&d, GICD_CTLR, CTLR_RWP)?;
        Self::with_distributor(d, frames)
    }

    /// Brings up what is this core's, everything disabled: for every other core, one at a time
    /// because EL2's map may change. `frames` as in [`init`](Self::init), by which `self` was made.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_core(&self, frames: &Frames<'_>) -> Result<Self, GicError> {
        Self::with_distributor(self.distributor, frames)
    }

    fn with_distributor(distributor: Mmio, frames: &Frames<'_>) -> Result<Self, GicError> {
        let gic = match *frames {
            Frames::V3 { redistributors, .. } => {
                let private = v3::find_redistributor(redistributors)?;
                Self { distributor, private, this_core: v3::this_core(), v2: None }
            }
            Frames::V2 { cpu_interface, hypervisor, .. } => {
                let this_core = v2::this_core(&distributor);
                let v2 = Some(v2::Frames::map(cpu_interface, hypervisor)?);
                Self { distributor, private: distributor, this_core, v2 }
            }
        };
        quiet(&gic.private, 0, gic.v2.is_none());
        match &gic.v2 {
            Some(v2) => v2.init_cpu_interface(),
            None => v3::init_cpu_interface(),
        }
        Ok(gic)
    }

    /// What it is: a guest gets the same.
    pub fn version(&self) -> GicVersion {
        if self.v2.is_some() { GicVersion::V2 } else { GicVersion::V3 }
    }

    /// What other cores name this one by, in [`route`](Self::route) and
    /// [`send_sgi`](Self::send_sgi).
    pub fn this_core(&self) -> CoreAddress {
        self.this_core
    }

    /// What of the board's GICV frame a guest is to get for its GICC, 8 KiB; `None` on a GICv3, or if
    /// the frame is too small.
    pub fn guest_cpu_interface(&self, virtual_cpu: PaRange) -> Option<PaRange> {
        self.v2.as_ref().and_then(|v2| v2::guest_frame(v2, virtual_cpu))
    }

    /// This core's list registers, all empty.
    pub fn list_registers(&self) -> list_registers::CoreListRegisters {
        list_registers::CoreListRegisters::new(self.v2)
    }

    /// Enables an SGI or PPI of this core, whose trigger is left as it is, or an SPI, which is
    /// routed to this core and becomes edge-triggered or level-sensitive.
    pub fn enable(&self, intid: u32, edge: bool) {
        let (word, bit) = ((intid / 32) as usize, 1u32 << (intid % 32));
        if intid < 32 {
            self.private.write32_relaxed(ISENABLER, bit);
            return;
        }
        self.route(intid, self.this_core);
        let d = &self.distributor;
        let config = ICFGR + (intid / 16) as usize * 4;
        let edge_bit = 2u32 << (intid % 16 * 2);
        let others = d.read32_relaxed(config) & !edge_bit;
        d.write32_relaxed(config, others | if edge { edge_bit } else { 0 });
        d.write32_relaxed(ISENABLER + word * 4, bit);
    }

    /// Has an SPI go to `core`. Private interrupts cannot. Not to be called by two cores at once:
    /// on a GICv2, four SPIs share a register.
    pub fn route(&self, spi: u32, core: CoreAddress) {
        if !(32..SPECIAL).contains(&spi) {
            return;
        }
        match self.v2 {
            Some(_) => v2::route(&self.distributor, spi, core),
            None => v3::route(&self.distributor, spi, core),
        }
    }

    /// Whether an SGI or PPI of this core is enabled. One that firmware keeps for the Secure state
    /// cannot be: to us its enable bit is RAZ/WI.
    pub fn is_enabled(&self, private: u32) -> bool {
        self.private.read32_relaxed(ISENABLER) >> (private & 31) & 1 != 0
    }

    /// Which of this core's SGIs and PPIs are active, one bit each.
    pub fn active_private(&self) -> u32 {
        self.private.read32_relaxed(ISACTIVER)
    }

    /// Disables an SGI or PPI of this core, or an SPI.
    pub fn disable(&self, intid: u32) {
        let (word, bit) = ((intid / 32) as usize, 1u32 << (intid % 32));
        let frame = if intid < 32 { &self.private } else { &self.distributor };
        frame.write32_relaxed(ICENABLER + word * 4, bit);
    }

    /// Takes a private interrupt out of the active state wherever it was left: a guest that stops
    /// with its timer interrupt in service never deactivates it.
    pub fn clear_active(&self, intid: u32) {
        if intid < 32 {
            self.private.write32_relaxed(ICACTIVER, 1 << intid);
        }
    }

    /// Sends SGI `sgi` (0 to 15) to a core, which must have it enabled. What was written to memory
    /// before is seen by it.
    #[inline]
    pub fn send_sgi(&self, core: CoreAddress, sgi: u32) {
        barrier::before_sgi();
        match self.v2 {
            Some(_) => v2::send_sgi(&self.distributor, core, sgi),
            None => v3::send_sgi(core, sgi),
        }
    }

    /// The highest pending interrupt of this core, now active and ours to end (ICC_IAR1_EL1,
    /// GICC_IAR). `None` if there is none.
    #[inline(always)]
    pub fn acknowledge(&self) -> Option<Acknowledged> {
        let iar = match &self.v2 {
            Some(v2) => v2.acknowledge(),
            None => ICC_IAR1_EL1::get() as u32,
        };
        let acknowledged = Acknowledged(iar);
        (acknowledged.intid() < SPECIAL).then_some(acknowledged)
    }

    /// Ends an interrupt's hold on the running priority; it stays active (EOIR, EOImode 1).
    #[inline(always)]
    pub fn drop_priority(&self, acknowledged: Acknowledged) {
        match &self.v2 {
            Some(v2) => v2.drop_priority(acknowledged.0),
            None => ICC_EOIR1_EL1::set(u64::from(acknowledged.0)),
        }
    }

    /// Lets an interrupt come again: it is no longer active (DIR).
    #[inline(always)]
    pub fn deactivate(&self, acknowledged: Acknowledged) {
        match &self.v2 {
            Some(v2) => v2.deactivate(acknowledged.0),
            None => ICC_DIR_EL1::set(u64::from(acknowledged.0)),
        }
    }

    /// What the vCPU on this core has in its CPU interface. Its list registers are saved by
    /// [`crate::gic::Vgic::unload`].
    pub fn save_interface(&self) -> VirtualInterface {
        match &self.v2 {
            Some(v2) => v2.save_interface(),
            None => v3::save_interface(),
        }
    }

    /// What of a pending interrupt's priority decides whether a CPU interface signals it: it must be below
    /// the priority mask and that of what is active, and a group must be on. Of none, zero.
    pub fn threshold(&self, interface: &VirtualInterface) -> u8 {
        // ICH_VMCR_EL2 and GICH_VMCR alike: group enables, and the mask, in a GICv2 without its low bits.
        if interface.vmcr & 0b11 == 0 {
            return 0;
        }
        let mask = (interface.vmcr >> 24) as u8;
        let bits = if self.v2.is_some() { 5 } else { v3::preemption_bits() as u32 };
        let [group0, group1] = &interface.active_priorities;
        let active = group0.iter().zip(group1).map(|(one, other)| one | other).zip(0u32..);
        let mut active = active;
        let first = active.find(|(word, _)| *word != 0);
        match first {
            Some((word, n)) => mask.min(((32 * n + word.trailing_zeros()) << (8 - bits)) as u8),
            None => mask,
        }
    }

    /// Gives the vCPU that comes to this core, or that is reset ([`VirtualInterface::RESET`]), its
    /// CPU interface, with no maintenance asked for. The list registers are empty, and written by
    /// its next [`crate::gic::Vgic::flush`].
    pub fn restore_interface(&self, interface: &VirtualInterface) {
        match &self.v2 {
            Some(v2) => v2.restore_interface(interface),
            None => v3::restore_interface(interface),
        }
    }
}

/// Disables 32 interrupts and clears their state.
fn quiet(frame: &Mmio, word: usize, is_v3: bool) {
    frame.write32_relaxed(ICENABLER + word * 4, !0);
    frame.write32_relaxed(ICPENDR + word * 4, !0);
    frame.write32_relaxed(ICACTIVER + word * 4, !0);
    if is_v3 {
        frame.write32_relaxed(IGROUPR + word * 4, !0);
    } else {
        v2::ungroup(frame, word);
    }
    for priorities in 0..8 {
        let value = u32::from_ne_bytes([PRIORITY; 4]);
        frame.write32_relaxed(IPRIORITYR + word * 32 + priorities * 4, value);
    }
}
