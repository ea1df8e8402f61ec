//! The stage-2 registers, and the TLB maintenance that stage-2 tables ask for. The tables themselves
//! are portable: [`crate::memory::stage2`].

use core::arch::asm;

use aarch64_cpu::registers::{Readable, VTCR_EL2, VTTBR_EL2, Writeable};

use super::{barrier, registers};
use crate::memory::Ipa;
use crate::memory::stage2::{Stage2, Tlb, Vmid, VmidBits, vttbr};

/// VTCR_EL2 and VTTBR_EL2 of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    vtcr: u64,
    vttbr: u64,
}

impl Registers {
    /// Those of a guest with these tables. VMIDs have 8 bits, which every core has.
    pub fn new(tables: &Stage2<'_>) -> Self {
        Self { vtcr: tables.geometry().vtcr(VmidBits::Eight), vttbr: tables.vttbr() }
    }

    /// Makes this core translate by them, from the next entry of the guest on. The tables are not
    /// changed by it, and VMIDs are never used for others: no TLB maintenance is needed.
    pub fn activate(&self) {
        VTCR_EL2.set(self.vtcr);
        VTTBR_EL2.set(self.vttbr);
        barrier::isb();
    }
}

/// ID_AA64MMFR0_EL1.PARange of this core.
pub fn pa_range() -> u8 {
    (registers::ID_AA64MMFR0_EL1::get() & 0xf) as u8
}

/// Maintenance of this core's TLBs and, by broadcast, of all others'.
#[derive(Clone, Copy, Debug)]
pub struct Tlbs;

impl Tlbs {
    /// Runs `maintain` with `vmid` current: TLBI takes the VMID from VTTBR_EL2.
    fn with_vmid(vmid: Vmid, maintain: impl FnOnce()) {
        let current = VTTBR_EL2.get();
        let wanted = vttbr(crate::memory::Pa::new(current & 0x0000_ffff_ffff_fffe), vmid);
        VTTBR_EL2.set(wanted);
        barrier::isb();
        maintain();
        VTTBR_EL2.set(current);
        barrier::isb();
    }
}

impl Tlb for Tlbs {
    fn publish(&self) {
        barrier::tables_written();
    }

    /// TLBI IPAS2E1IS drops the stage-2 entry of the IPA only. Entries that combine both stages are
    /// known by virtual addresses, so all of the VMID's go after it (TLBI VMALLE1IS).
    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa) {
        Self::with_vmid(vmid, || {
            // SAFETY: dropping TLB entries is always allowed. The operand is IPA[51:12].
            unsafe {
                asm!(
                    "dsb ishst", "tlbi ipas2e1is, {}", "dsb ish", "tlbi vmalle1is", "dsb ish", "isb",
                    in(reg) ipa.raw() >> 12,
                    options(nostack, preserves_flags)
                );
            }
        });
    }

    fn invalidate_vmid(&self, vmid: Vmid) {
        Self::with_vmid(vmid, || {
            // SAFETY: dropping TLB entries is always allowed.
            unsafe {
                asm!(
                    "dsb ishst",
                    "tlbi vmalls12e1is",
                    "dsb ish",
                    "isb",
                    options(nostack, preserves_flags)
                );
            }
        });
    }
}
