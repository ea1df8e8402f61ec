//! The runner's board's interrupt controller.

use sparkler::arch::gic::{PhysicalGic, REDISTRIBUTOR_SIZE};
use sparkler::arch::mmio::Mmio;
use sparkler::memory::Pa;

const GICD: Pa = Pa::new(0x0800_0000);
const GICR: Pa = Pa::new(0x080a_0000);
/// GICR_ISACTIVER0, in the redistributor's second frame.
const ISACTIVER0: usize = 0x1_0300;

fn redistributor() -> Mmio {
    // SAFETY: the board has its one redistributor there, which does no DMA while LPIs are off.
    unsafe { Mmio::map(GICR, REDISTRIBUTOR_SIZE) }.expect("the GICR")
}

/// Brings it up, with everything disabled.
pub fn physical() -> PhysicalGic {
    // SAFETY: the board has a distributor there, which does no DMA.
    let distributor = unsafe { Mmio::map(GICD, 0x1_0000) }.expect("the GICD");
    // SAFETY: both are this board's.
    unsafe { PhysicalGic::init(distributor, |n| (n == 0).then(redistributor)) }.expect("a GICv3")
}

/// Which of this core's private interrupts are active.
pub fn active() -> u32 {
    redistributor().read32_relaxed(ISACTIVER0)
}
