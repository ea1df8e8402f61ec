//! Counting instructions at EL2, for benchmarks: exact under QEMU's `-icount`, zero without it.

use super::registers::{
    MDCR_EL2, PMCNTENSET_EL0, PMCR_EL0, PMEVCNTR0_EL0, PMEVCNTR1_EL0, PMEVTYPER0_EL0,
    PMEVTYPER1_EL0,
};

/// PMU event INST_RETIRED: instructions architecturally executed.
const INST_RETIRED: u64 = 0x8;
/// Do not count EL1; do not count EL0; do count EL2 (`PMEVTYPER<n>_EL0` P, U, NSH).
const EL2_ONLY: u64 = 1 << 31 | 1 << 30 | 1 << 27;
/// Count EL1 and EL0; EL2 is not counted while NSH is clear.
const BELOW_EL2: u64 = 0;

/// Starts two counters: instructions at EL2, and at EL1 and EL0. Guests cannot see or stop them.
pub fn start() {
    let counters = PMCR_EL0::get() >> 11 & 0x1f;
    // HPMN = PMCR_EL0.N: none is reserved for EL2, so PMCR_EL0.E enables them. The guest cannot reach
    // any: MDCR_EL2.{TPM, TPMCR} trap (see `el1`).
    MDCR_EL2::set(MDCR_EL2::get() & !0x1f | counters);
    PMEVTYPER0_EL0::set(INST_RETIRED | EL2_ONLY);
    PMEVTYPER1_EL0::set(INST_RETIRED | BELOW_EL2);
    PMEVCNTR0_EL0::set(0);
    PMEVCNTR1_EL0::set(0);
    PMCNTENSET_EL0::set(0b11);
    // LC and E.
    PMCR_EL0::set(PMCR_EL0::get() | 1 << 6 | 1);
    super::barrier::isb();
}

/// Instructions retired at EL2 since [`start`], modulo 2^32.
#[inline(always)]
pub fn at_el2() -> u32 {
    PMEVCNTR0_EL0::get() as u32
}

/// Instructions retired at EL1 and EL0 since [`start`], modulo 2^32.
#[inline(always)]
pub fn below_el2() -> u32 {
    PMEVCNTR1_EL0::get() as u32
}
