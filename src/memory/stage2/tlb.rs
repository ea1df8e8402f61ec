//! What a change of the tables asks of the cores.

use super::Vmid;
use crate::memory::Ipa;

/// What the tables need from the core that walks them.
pub trait Tlb {
    /// Makes all table stores before this visible to the table walkers of every core before any
    /// store after it (`DSB ISHST`).
    fn publish(&self);

    /// Drops whatever any core has cached for `ipa` of `vmid`: the stage-2 entry at any level, the
    /// pointers to tables on its way, and combined stage-1 and stage-2 entries
    /// (`TLBI IPAS2E1IS; DSB ISH; TLBI VMALLE1IS; DSB ISH; ISB`, with `vmid` in `VTTBR_EL2`).
    /// Complete when it returns.
    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa);

    /// Drops everything any core has cached for `vmid`
    /// (`TLBI VMALLS12E1IS; DSB ISH; ISB`, with `vmid` in `VTTBR_EL2`). Complete when it returns.
    fn invalidate_vmid(&self, vmid: Vmid);
}
