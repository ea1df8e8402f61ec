//! The EL1 state of a vCPU that starts, and the traps it runs under.

use core::arch::asm;

use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTKCTL_EL1, CNTP_CTL_EL0, CNTPCT_EL0, CNTV_CTL_EL0, CNTVOFF_EL2, CPACR_EL1,
    CPTR_EL2, ELR_EL1, ESR_EL1, FAR_EL1, HCR_EL2, MAIR_EL1, PAR_EL1, Readable, SCTLR_EL1, SP_EL0,
    SP_EL1, SPSR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1, VBAR_EL1, Writeable,
};

use super::barrier;
use super::registers as r;

/// SCTLR_EL1 at reset: the RES1 bits of Armv8.0, everything off.
const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

/// HCR_EL2 bits (Arm ARM D19.2.48).
mod hcr {
    pub(super) const VM: u64 = 1 << 0;
    pub(super) const SWIO: u64 = 1 << 1;
    pub(super) const FMO: u64 = 1 << 3;
    pub(super) const IMO: u64 = 1 << 4;
    pub(super) const AMO: u64 = 1 << 5;
    pub(super) const FB: u64 = 1 << 9;
    pub(super) const BSU_INNER: u64 = 1 << 10;
    pub(super) const TID3: u64 = 1 << 18;
    pub(super) const TSC: u64 = 1 << 19;
    pub(super) const TIDCP: u64 = 1 << 20;
    pub(super) const TACR: u64 = 1 << 21;
    pub(super) const TSW: u64 = 1 << 22;
    pub(super) const RW: u64 = 1 << 31;
    pub(super) const TLOR: u64 = 1 << 35;
    pub(super) const APK: u64 = 1 << 40;
    pub(super) const API: u64 = 1 << 41;
}

/// Stage 2 on; interrupts to EL2; maintenance broadcast; SMC, set/way maintenance, ID registers,
/// auxiliary control, LORegions and implementation-defined registers trapped; pointer
/// authentication is the guest's own. WFI is not trapped: the guest has the core to itself.
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
    | hcr::APK
    | hcr::API;

/// CPTR_EL2: RES1, which traps SVE, and TTA: trace. FP and SIMD are the guest's.
const CPTR_GUEST: u64 = 0x33ff | 1 << 20;
/// MDCR_EL2: TPMCR, TPM, TDA, TDOSA, TDRA: the PMU and the debug registers are trapped.
const MDCR_GUEST: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11;
/// CNTHCTL_EL2 (E2H = 0): EL1 has the physical counter and the physical timer.
const CNTHCTL_GUEST: u64 = 0b11;

/// Sets the traps that all guests run under.
pub(super) fn set_traps() {
    HCR_EL2.set(HCR_GUEST);
    CPTR_EL2.set(CPTR_GUEST);
    r::MDCR_EL2::set(r::MDCR_EL2::get() & 0x1f | MDCR_GUEST);
    r::HSTR_EL2::set(0);
    CNTHCTL_EL2.set(CNTHCTL_GUEST);
    // FEAT_HCX: nothing of what it adds is offered.
    if r::ID_AA64MMFR1_EL1::get() >> 40 & 0xf != 0 {
        r::HCRX_EL2::set(0);
    }
    barrier::isb();
}

/// Puts the EL1 and EL0 registers of this core into their reset state, for a vCPU with the affinity
/// `mpidr`. Its virtual counter starts at zero.
pub(super) fn reset(mpidr: u64) {
    r::VPIDR_EL2::set(r::MIDR_EL1::get());
    r::VMPIDR_EL2::set(mpidr);
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    CNTVOFF_EL2.set(CNTPCT_EL0.get());
    SCTLR_EL1.set(SCTLR_EL1_RESET);
    CPACR_EL1.set(0);
    TCR_EL1.set(0);
    TTBR0_EL1.set(0);
    TTBR1_EL1.set(0);
    MAIR_EL1.set(0);
    VBAR_EL1.set(0);
    ELR_EL1.set(0);
    SPSR_EL1.set(0);
    ESR_EL1.set(0);
    FAR_EL1.set(0);
    PAR_EL1.set(0);
    SP_EL0.set(0);
    SP_EL1.set(0);
    CNTKCTL_EL1.set(0);
    r::AMAIR_EL1::set(0);
    r::AFSR0_EL1::set(0);
    r::AFSR1_EL1::set(0);
    r::CONTEXTIDR_EL1::set(0);
    r::CSSELR_EL1::set(0);
    r::MDSCR_EL1::set(0);
    r::TPIDR_EL0::set(0);
    r::TPIDRRO_EL0::set(0);
    r::TPIDR_EL1::set(0);
    clear_fp();
    barrier::isb();
}

/// Zeroes V0 to V31, FPCR and FPSR: the last guest's must not be this one's.
fn clear_fp() {
    // SAFETY: EL2 is built without FP and SIMD; nothing of Rust lives in these registers.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "movi v\\n\\().2d, #0",
            ".endr",
            "msr fpcr, xzr",
            "msr fpsr, xzr",
            options(nostack, nomem, preserves_flags)
        );
    }
}
