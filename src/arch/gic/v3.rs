//! GICv3: redistributors, and a CPU interface of system registers (Arm IHI 0069).

use aarch64_cpu::registers::{ICC_SRE_EL2, MPIDR_EL1, Readable, Writeable};

use super::{CoreAddress, GicError, IROUTER, VirtualInterface, wait_clear};
use crate::arch::barrier;
use crate::arch::mmio::Mmio;
use crate::arch::registers::{
    ICC_CTLR_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_SGI1R_EL1, ICH_AP0R0_EL2, ICH_AP0R1_EL2,
    ICH_AP0R2_EL2, ICH_AP0R3_EL2, ICH_AP1R0_EL2, ICH_AP1R1_EL2, ICH_AP1R2_EL2, ICH_AP1R3_EL2,
    ICH_HCR_EL2, ICH_VMCR_EL2, ICH_VTR_EL2,
};
use crate::memory::PaRange;

const GICR_TYPER: usize = 0x0008;
const GICR_WAKER: usize = 0x0014;
const SGI_BASE: usize = 0x1_0000;

/// GICD_CTLR, as a Non-secure access of two Security states sees it (ARE_NS, EnableGrp1A,
/// EnableGrp1) and as one of a single state does (ARE, EnableGrp1, EnableGrp0): the same bits
/// serve.
pub(super) const CTLR_ENABLE: u32 = 1 << 4 | 1 << 1 | 1;
/// ICC_CTLR_EL1.EOImode: EOIR drops the priority, DIR deactivates.
const CTLR_EOI_MODE: u64 = 1 << 1;
/// Size of a redistributor's two frames.
const REDISTRIBUTOR_SIZE: usize = 0x2_0000;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_VLPIS: u64 = 1 << 1;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// A region holds one redistributor a core; no board has more cores.
const MAX_REDISTRIBUTORS: usize = 512;

/// Affinity of this core, in the layout of MPIDR_EL1 and GICD_IROUTER.
pub(super) fn this_core() -> CoreAddress {
    CoreAddress(MPIDR_EL1.get() & 0xff_00ff_ffff)
}

/// GICR frames number `n` of the regions; `None` past their end.
fn redistributor(regions: &[PaRange], n: usize) -> Option<Mmio> {
    let mut offset = n as u64 * REDISTRIBUTOR_SIZE as u64;
    for region in regions {
        if offset < region.len {
            let at = region.base.checked_add(offset)?;
            // SAFETY: the caller of `PhysicalGic::init` says that these are redistributors, which do
            // no DMA while LPIs are off.
            return unsafe { Mmio::map(at, REDISTRIBUTOR_SIZE) }.ok();
        }
        offset -= region.len;
    }
    None
}

/// Wakes this core's redistributor; its SGI frame.
pub(super) fn find_redistributor(regions: &[PaRange]) -> Result<Mmio, GicError> {
    let mpidr = MPIDR_EL1.get();
    let affinity = mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff;
    let mut n = 0;
    while n < MAX_REDISTRIBUTORS {
        let rd = redistributor(regions, n).ok_or(GicError::NoRedistributor)?;
        let typer = rd.read64_relaxed(GICR_TYPER);
        if typer >> 32 == affinity {
            let waker = rd.read32_relaxed(GICR_WAKER) & !WAKER_PROCESSOR_SLEEP;
            rd.write32_relaxed(GICR_WAKER, waker);
            wait_clear(&rd, GICR_WAKER, WAKER_CHILDREN_ASLEEP)?;
            return Ok(rd.at(SGI_BASE));
        }
        // Last is of a region: there may be another.
        if typer & TYPER_LAST != 0 {
            n = next_region(regions, n).ok_or(GicError::NoRedistributor)?;
        } else {
            n += if typer & TYPER_VLPIS != 0 { 2 } else { 1 };
        }
    }
    Err(GicError::NoRedistributor)
}

/// Number of the first redistributor of the region behind that of number `n`.
fn next_region(regions: &[PaRange], n: usize) -> Option<usize> {
    let mut first = 0;
    for region in regions {
        if first > n {
            break;
        }
        first += region.len as usize / REDISTRIBUTOR_SIZE;
    }
    (first > n).then_some(first)
}

/// Where an SPI goes.
pub(super) fn route(distributor: &Mmio, spi: u32, core: CoreAddress) {
    distributor.write64_relaxed(IROUTER + spi as usize * 8, core.0);
}

/// System registers on for EL2 and below (ICC_SRE_EL2.{SRE, DFB, DIB, Enable}), nothing masked by
/// priority, group 1 on, the virtual interface on (ICH_HCR_EL2.En).
pub(super) fn init_cpu_interface() {
    ICC_SRE_EL2.set(0xf);
    barrier::isb();
    ICC_PMR_EL1::set(0xff);
    ICC_CTLR_EL1::set(ICC_CTLR_EL1::get() | CTLR_EOI_MODE);
    ICC_IGRPEN1_EL1::set(1);
    ICH_HCR_EL2::set(1);
    barrier::isb();
}

/// Sends SGI `sgi` of group 1 to one core.
pub(super) fn send_sgi(core: CoreAddress, sgi: u32) {
    let affinity = core.0;
    let value = (affinity & 0xff_0000_0000) << 16 // Aff3 to [55:48]
        | (affinity & 0xff_0000) << 16 // Aff2 to [39:32]
        | (affinity & 0xff00) << 8 // Aff1 to [23:16]
        | (affinity & 0xf0) << 40 // RS: Aff0 [7:4] to [47:44]
        | u64::from(sgi & 15) << 24
        | 1 << (affinity & 0xf);
    ICC_SGI1R_EL1::set(value);
    barrier::isb();
}

macro_rules! active_priorities {
    ($bits:expr, |$name:ident, $value:ident| $action:expr, $values:expr) => {{
        active_priorities!(@each $values, 0, 0, |$name, $value| $action, ICH_AP0R0_EL2);
        active_priorities!(@each $values, 1, 0, |$name, $value| $action, ICH_AP1R0_EL2);
        if $bits >= 6 {
            active_priorities!(@each $values, 0, 1, |$name, $value| $action, ICH_AP0R1_EL2);
            active_priorities!(@each $values, 1, 1, |$name, $value| $action, ICH_AP1R1_EL2);
        }
        if $bits >= 7 {
            active_priorities!(@each $values, 0, 2, |$name, $value| $action, ICH_AP0R2_EL2);
            active_priorities!(@each $values, 0, 3, |$name, $value| $action, ICH_AP0R3_EL2);
            active_priorities!(@each $values, 1, 2, |$name, $value| $action, ICH_AP1R2_EL2);
            active_priorities!(@each $values, 1, 3, |$name, $value| $action, ICH_AP1R3_EL2);
        }
    }};
    (@each $values:expr, $group:literal, $n:literal, |$name:ident, $value:ident| $action:expr,
     $register:ident) => {{
        use $register as $name;
        let [group0, group1] = $values;
        let group = if $group == 0 { group0 } else { group1 };
        if let Some($value) = group.into_iter().nth($n) {
            $action
        }
    }};
}

/// Bits of preemption priority (ICH_VTR_EL2.PREbits, which is one less).
pub(super) fn preemption_bits() -> u64 {
    (ICH_VTR_EL2::get() >> 26 & 7) + 1
}

pub(super) fn save_interface() -> VirtualInterface {
    let mut interface = VirtualInterface::RESET;
    interface.vmcr = ICH_VMCR_EL2::get() as u32;
    let values = &mut interface.active_priorities;
    active_priorities!(preemption_bits(), |APR, value| *value = APR::get() as u32, &mut *values);
    interface
}

pub(super) fn restore_interface(interface: &VirtualInterface) {
    ICH_VMCR_EL2::set(u64::from(interface.vmcr));
    let values = &interface.active_priorities;
    active_priorities!(preemption_bits(), |APR, value| APR::set(u64::from(*value)), values);
    ICH_HCR_EL2::set(1);
    barrier::isb();
}
