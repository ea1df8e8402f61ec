//! The runner's board's interrupt controller: `virt`'s GICv3, or GICv2 where the core has no GIC
//! system registers.

use sparkler::arch::gic::{Frames, PhysicalGic};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::registers::{
    ICH_HCR_EL2, ICH_LR0_EL2, ICH_LR1_EL2, ICH_LR2_EL2, ICH_LR3_EL2, ICH_VTR_EL2, ID_AA64PFR0_EL1,
};
use sparkler::gic::v2::GichLr;
use sparkler::gic::{GicVersion, ListRegister};
use sparkler::memory::{Pa, PaRange};
use spin::Once;

const DISTRIBUTOR: PaRange = PaRange::new(0x0800_0000, 0x1_0000);
const GICH: Pa = Pa::new(0x0803_0000);
/// GICV.
pub const VIRTUAL_CPU: PaRange = PaRange::new(0x0804_0000, 0x1_0000);

/// Which of the two it is.
pub fn version() -> GicVersion {
    if ID_AA64PFR0_EL1::get() >> 24 & 0xf == 0 { GicVersion::V2 } else { GicVersion::V3 }
}

/// Where its frames are.
pub fn frames() -> Frames<'static> {
    match version() {
        GicVersion::V2 => Frames::V2 {
            distributor: DISTRIBUTOR,
            cpu_interface: PaRange::new(0x0801_0000, 0x1_0000),
            hypervisor: PaRange::new(GICH.raw(), 0x1_0000),
        },
        GicVersion::V3 => Frames::V3 {
            distributor: DISTRIBUTOR,
            redistributors: const { &[PaRange::new(0x080a_0000, 0xf6_0000)] },
        },
    }
}

/// The board's, brought up once with everything disabled.
pub fn physical() -> PhysicalGic {
    static GIC: Once<PhysicalGic> = Once::new();
    // SAFETY: they are this board's, and nobody else drives it.
    *GIC.call_once(|| unsafe { PhysicalGic::init(&frames()) }.expect("a GIC"))
}

/// Which of this core's private interrupts are active.
pub fn active() -> u32 {
    physical().active_private()
}

fn gich() -> Mmio {
    // SAFETY: a GICv2 board has it there; it does no DMA.
    unsafe { Mmio::map(GICH, 0x1000) }.expect("the GICH")
}

/// The list registers of this core, from outside, the first four.
pub fn list_registers() -> [ListRegister; 4] {
    match version() {
        GicVersion::V2 => core::array::from_fn(|n| {
            GichLr::from_bits(gich().read32_relaxed(0x100 + n * 4)).list_register()
        }),
        GicVersion::V3 => {
            [ICH_LR0_EL2::get(), ICH_LR1_EL2::get(), ICH_LR2_EL2::get(), ICH_LR3_EL2::get()]
                .map(ListRegister::from_bits)
        }
    }
}

/// How many list registers the hardware says it has.
pub fn list_register_count() -> usize {
    match version() {
        GicVersion::V2 => (gich().read32_relaxed(4) & 0x3f) as usize + 1,
        GicVersion::V3 => (ICH_VTR_EL2::get() & 0x1f) as usize + 1,
    }
}

/// ICH_HCR_EL2 or GICH_HCR: what is used of them is alike.
pub fn hcr() -> u64 {
    match version() {
        GicVersion::V2 => u64::from(gich().read32_relaxed(0)),
        GicVersion::V3 => ICH_HCR_EL2::get(),
    }
}

/// Writes what [`hcr`] reads.
pub fn set_hcr(value: u64) {
    match version() {
        GicVersion::V2 => gich().write32_relaxed(0, value as u32),
        GicVersion::V3 => ICH_HCR_EL2::set(value),
    }
}

/// Exits by which a guest gets `count` timer interrupts and ends them. QEMU's GICv2 has the end seen
/// to by software (`arch::gic::v2`).
pub fn exits_of_timer(count: u64) -> u64 {
    match version() {
        GicVersion::V2 => 2 * count,
        GicVersion::V3 => count,
    }
}
