//! The EL1 state of a vCPU that starts, and the traps it runs under. What a trap leads to is in
//! [`crate::vm::exit`] and [`crate::cpu::sysreg`].

use aarch64_cpu::registers::{CNTHCTL_EL2, CPTR_EL2, HCR_EL2, Writeable};

use super::barrier;
use super::registers as r;

/// Bits of HCR_EL2, by the names the Arm ARM gives them.
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_INNER: u64 = 1 << 10;
    pub(super) const TWI: u64 = 1 << 13;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const TERR: u64 = 1 << 36;
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;
}

/// HCR_EL2 while a guest runs.
///
/// - Stage 2 on (VM); EL1 is AArch64 (RW); E2H and TGE clear: no VHE.
/// - Physical IRQs, FIQs and SErrors come to EL2, and the virtual ones are on (IMO, FMO, AMO).
/// - Maintenance and barriers reach the inner shareable domain, whatever the guest asked for (FB,
///   BSU); invalidation by set/way cleans too (SWIO).
/// - Trapped: SMC (TSC), maintenance by set/way (TSW), ID registers (TID3), ACTLR_EL1 (TACR),
///   LORegion registers (TLOR), error records (TERR), implementation-defined registers (TIDCP).
/// - Not trapped: pointer authentication (APK, API), which is the guest's own; WFE (TWE clear), and
///   WFI where the guest has the core to itself.
const HCR_GUEST: u64 = hcr::VM
    | hcr::SWIO
    | hcr::FMO
    | hcr::IMO
    | hcr::AMO
    | hcr::FB
    | hcr::BSU_INNER
    | hcr::TID3
    | hcr::TSC
    | hcr::TIDCP
    | hcr::TACR
    | hcr::TSW
    | hcr::RW
    | hcr::TLOR
    | hcr::TERR
    | hcr::APK
    | hcr::API;

/// CPTR_EL2: the RES1 bits of Armv8.0, which where SVE and SME exist are TZ and TSM and trap them,
/// TTA: trace registers trap, and TAM: activity monitors trap. TFP is clear: FP and SIMD are the
/// guest's, EL2 is built without.
const CPTR_GUEST: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// MDCR_EL2: TPMCR, TPM (the PMU), TDA, TDOSA, TDRA (debug registers), TPMS (statistical profiling)
/// and TTRF (trace filters) trap; so do the profiling and trace buffers, with E2PB and E2TB clear.
/// HPMN is [`super::pmu`]'s.
const MDCR_GUEST: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19;
/// CNTHCTL_EL2 with E2H = 0: EL1PCTEN and EL1PCEN. EL1 has the physical counter and its timer.
const CNTHCTL_GUEST: u64 = 0b11;

/// Sets up this core for guests: the traps that all run under, and what no guest can change. They read
/// the core's own MIDR_EL1; MDSCR_EL1, which traps, leaves debug exceptions off. Of several vCPUs
/// that share a core, one that waits gives it up: WFI traps (TWI).
pub fn set_traps(shared: bool) {
    HCR_EL2.set(HCR_GUEST | if shared { hcr::TWI } else { 0 });
    CPTR_EL2.set(CPTR_GUEST);
    r::MDCR_EL2::set(r::MDCR_EL2::get() & 0x1f | MDCR_GUEST);
    r::HSTR_EL2::set(0);
    r::VPIDR_EL2::set(r::MIDR_EL1::get());
    r::MDSCR_EL1::set(0);
    CNTHCTL_EL2.set(CNTHCTL_GUEST);
    // FEAT_HCX (ID_AA64MMFR1_EL1.HCX): nothing of what it adds is offered.
    if r::ID_AA64MMFR1_EL1::get() >> 40 & 0xf != 0 {
        r::HCRX_EL2::set(0);
    }
    // FEAT_FGT (ID_AA64MMFR0_EL1.FGT): its registers hold anything at reset. A clear bit traps what
    // is newer than FEAT_FGT itself (TPIDR2_EL0, BRBE, GCS, permission indirection), which is not
    // offered, and nothing else.
    if r::ID_AA64MMFR0_EL1::get() >> 56 & 0xf != 0 {
        r::HFGRTR_EL2::set(0);
        r::HFGWTR_EL2::set(0);
        r::HFGITR_EL2::set(0);
        r::HDFGRTR_EL2::set(0);
        r::HDFGWTR_EL2::set(0);
    }
    barrier::isb();
}
