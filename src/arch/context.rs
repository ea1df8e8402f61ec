//! The EL1 and EL0 state of a vCPU that does not run: saved when another takes the core, restored
//! when it has its turn.
//!
//! | part of the vCPU | kept by |
//! |---|---|
//! | x0 to x30, pc, PSTATE | `boot/vectors.S`, at every exit |
//! | system registers it writes without a trap, its timers, V0 to V31 | [`El1Context`] |
//! | stage 2 and its VMID | [`super::stage2::Registers`] |
//! | its side of the interrupt controller | [`super::gic`] |
//! | what it reaches by traps only | the portable vCPU |

use core::arch::asm;

use super::interrupts::{PHYSICAL_TIMER_INTID, VIRTUAL_TIMER_INTID};
use super::{barrier, registers};
use crate::backend::clock::Ticks;

/// SCTLR_EL1 at reset: the RES1 bits of Armv8.0 (29, 28, 23, 22, 20, 11), everything off.
const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

/// CNTV_CTL_EL0 and CNTP_CTL_EL0.
const ENABLE: u64 = 1 << 0;
const IMASK: u64 = 1 << 1;

/// Defines a set of registers, each named as the assembler knows it.
macro_rules! register_set {
    ($(#[$doc:meta])* $set:ident { $($field:ident = $register:literal,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        struct $set { $($field: u64,)* }

        impl $set {
            const ZERO: Self = Self { $($field: 0,)* };

            #[inline(always)]
            fn save(&mut self) {
                // SAFETY: reading these registers has no effect.
                unsafe {
                    $(asm!(
                        concat!("mrs {}, ", $register), out(reg) self.$field,
                        options(nomem, nostack, preserves_flags)
                    );)*
                }
            }

            #[inline(always)]
            fn restore(&self) {
                // SAFETY: they are the guest's, or steer what only a guest sees; EL2 runs without
                // them.
                unsafe {
                    $(asm!(
                        concat!("msr ", $register, ", {}"), in(reg) self.$field,
                        options(nomem, nostack, preserves_flags)
                    );)*
                }
            }
        }
    };
}

register_set! {
    /// On every core. MDSCR_EL1, ACTLR_EL1 and the like trap, and are the same for all guests.
    Common {
        sctlr_el1 = "SCTLR_EL1",
        cpacr_el1 = "CPACR_EL1",
        ttbr0_el1 = "TTBR0_EL1",
        ttbr1_el1 = "TTBR1_EL1",
        tcr_el1 = "TCR_EL1",
        mair_el1 = "MAIR_EL1",
        amair_el1 = "AMAIR_EL1",
        contextidr_el1 = "CONTEXTIDR_EL1",
        vbar_el1 = "VBAR_EL1",
        elr_el1 = "ELR_EL1",
        spsr_el1 = "SPSR_EL1",
        esr_el1 = "ESR_EL1",
        far_el1 = "FAR_EL1",
        afsr0_el1 = "AFSR0_EL1",
        afsr1_el1 = "AFSR1_EL1",
        par_el1 = "PAR_EL1",
        csselr_el1 = "CSSELR_EL1",
        tpidr_el0 = "TPIDR_EL0",
        tpidrro_el0 = "TPIDRRO_EL0",
        tpidr_el1 = "TPIDR_EL1",
        sp_el0 = "SP_EL0",
        sp_el1 = "SP_EL1",
        vmpidr_el2 = "VMPIDR_EL2",
        cntkctl_el1 = "CNTKCTL_EL1",
        cntvoff_el2 = "CNTVOFF_EL2",
        cntv_cval_el0 = "CNTV_CVAL_EL0",
        cntp_cval_el0 = "CNTP_CVAL_EL0",
        cntv_ctl_el0 = "CNTV_CTL_EL0",
        cntp_ctl_el0 = "CNTP_CTL_EL0",
    }
}

register_set! {
    /// Keys of pointer authentication, which is not trapped: where a core has it (FEAT_PAuth).
    Keys {
        ia_low = "S3_0_C2_C1_0",
        ia_high = "S3_0_C2_C1_1",
        ib_low = "S3_0_C2_C1_2",
        ib_high = "S3_0_C2_C1_3",
        da_low = "S3_0_C2_C2_0",
        da_high = "S3_0_C2_C2_1",
        db_low = "S3_0_C2_C2_2",
        db_high = "S3_0_C2_C2_3",
        ga_low = "S3_0_C2_C3_0",
        ga_high = "S3_0_C2_C3_1",
    }
}

register_set! {
    /// What the guest has in DISR_EL1 while HCR_EL2.AMO is set (FEAT_RAS).
    Deferred {
        vdisr_el2 = "S3_4_C12_C1_1",
    }
}

/// V0 to V31, FPCR and FPSR.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
struct Simd {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

/// Has `$operation` done on all of V0 to V31, four at a time, at `$base`.
macro_rules! all_vectors {
    ($operation:literal, $base:expr) => {
        // SAFETY: the caller's reference covers the 512 bytes. EL2 is built without FP and SIMD:
        // nothing of Rust lives in these registers.
        unsafe {
            asm!(
                ".arch_extension fp",
                ".arch_extension simd",
                ".irp four, v0.2d-v3.2d, v4.2d-v7.2d, v8.2d-v11.2d, v12.2d-v15.2d, v16.2d-v19.2d, v20.2d-v23.2d, v24.2d-v27.2d, v28.2d-v31.2d",
                concat!($operation, " {{\\four}}, [{base}], #64"),
                ".endr",
                base = inout(reg) $base => _,
                options(nostack, preserves_flags)
            );
        }
    };
}

impl Simd {
    const ZERO: Self = Self { v: [0; 32], fpcr: 0, fpsr: 0 };

    fn save(&mut self) {
        all_vectors!("st1", self.v.as_mut_ptr());
        // SAFETY: reading these registers has no effect.
        unsafe {
            asm!(
                ".arch_extension fp", "mrs {}, fpcr", "mrs {}, fpsr",
                out(reg) self.fpcr, out(reg) self.fpsr,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    fn restore(&self) {
        all_vectors!("ld1", self.v.as_ptr());
        // SAFETY: EL2 is built without FP and SIMD.
        unsafe {
            asm!(
                ".arch_extension fp", "msr fpcr, {}", "msr fpsr, {}",
                in(reg) self.fpcr, in(reg) self.fpsr,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Which optional registers this core has.
fn has_keys() -> bool {
    // ID_AA64ISAR1_EL1: APA, API, GPA, GPI; ID_AA64ISAR2_EL1: GPA3, APA3.
    registers::ID_AA64ISAR1_EL1::get() & 0xff00_0ff0 != 0
        || registers::ID_AA64ISAR2_EL1::get() & 0xff00 != 0
}

fn has_ras() -> bool {
    registers::ID_AA64PFR0_EL1::get() >> 28 & 0xf != 0
}

/// What a vCPU has in the registers of the core it runs on, and must find there again.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct El1Context {
    simd: Simd,
    common: Common,
    keys: Keys,
    deferred: Deferred,
}

impl El1Context {
    /// The state of a vCPU that has been reset: it reads `mpidr` as its MPIDR_EL1, and its virtual
    /// counter is `behind` the board's, which all vCPUs of a machine share. Its physical counter is the
    /// board's.
    ///
    /// The architecture leaves most registers unknown at reset. They are zero here, so that nothing
    /// of an earlier guest, or of EL2's loader, can be read.
    pub const fn reset(mpidr: u64, behind: Ticks) -> Self {
        let common = Common {
            sctlr_el1: SCTLR_EL1_RESET,
            vmpidr_el2: mpidr,
            cntvoff_el2: behind.0,
            ..Common::ZERO
        };
        Self { simd: Simd::ZERO, common, keys: Keys::ZERO, deferred: Deferred::ZERO }
    }

    /// Has the virtual counter of a vCPU that has been [saved](Self::save) be `behind` the board's by this
    /// much from now on.
    pub fn set_behind(&mut self, behind: Ticks) {
        self.common.cntvoff_el2 = behind.0;
    }

    /// Takes the state out of this core. Its timers are off afterwards: a vCPU that does not run
    /// cannot be interrupted by them, see [`Self::timer_deadline`].
    ///
    /// [`super::el1::set_traps`] has been called on this core: FP must not trap.
    pub fn save(&mut self) {
        self.common.save();
        registers::CNTV_CTL_EL0::set(0);
        registers::CNTP_CTL_EL0::set(0);
        self.simd.save();
        if has_keys() {
            self.keys.save();
        }
        if has_ras() {
            self.deferred.save();
        }
        barrier::isb();
    }

    /// Puts the state into this core, whose timers are off ([`Self::save`]) or its last vCPU's.
    pub fn restore(&self) {
        // Lest a timer that is on meets a comparison or an offset that is not its own.
        registers::CNTV_CTL_EL0::set(0);
        registers::CNTP_CTL_EL0::set(0);
        barrier::isb();
        self.common.restore();
        self.simd.restore();
        if has_keys() {
            self.keys.restore();
        }
        if has_ras() {
            self.deferred.restore();
        }
        barrier::isb();
    }

    /// When the first timer of a vCPU that has been [saved](Self::save) is due, by the board's
    /// counter; in the past if it is due already. `None` if none will interrupt: off, masked, or its
    /// interrupt among the PPIs `spent`, a bit each, which the guest has been given already.
    pub fn timer_deadline(&self, spent: u32) -> Option<Ticks> {
        let at = &self.common;
        let due = |control: u64, at: u64, intid: u32| {
            let fires = control & (ENABLE | IMASK) == ENABLE && spent >> intid & 1 == 0;
            fires.then_some(Ticks(at))
        };
        // The virtual counter is the physical one less CNTVOFF_EL2. Compared as unsigned numbers: a
        // time the counter does not reach is never.
        let physical = at.cntv_cval_el0.saturating_add_signed(at.cntvoff_el2.cast_signed());
        let virtual_timer = due(at.cntv_ctl_el0, physical, VIRTUAL_TIMER_INTID);
        let physical_timer = due(at.cntp_ctl_el0, at.cntp_cval_el0, PHYSICAL_TIMER_INTID);
        match (virtual_timer, physical_timer) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// Drops what this core's TLBs have of the present VMID (TLBI VMALLE1). Between two vCPUs of *one*
/// machine on one core: each may use an ASID, or no translation at all, for tables of its own, as on
/// cores of their own.
pub fn forget_translations() {
    // SAFETY: dropping TLB entries is always allowed.
    unsafe {
        asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags));
    }
}
