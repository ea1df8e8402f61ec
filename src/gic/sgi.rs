//! Software-generated interrupts: ICC_SGI1R_EL1 and its siblings, trapped at EL2.

use super::{GicVersion, VcpuIndex, VcpuSet, Vgic};

/// ICC_SGI1R_EL1 (Arm IHI 0069, "ICC_SGI1R_EL1"); ICC_SGI0R_EL1 and ICC_ASGI1R_EL1 are alike.
#[derive(Clone, Copy)]
struct SgiRequest(u64);

impl SgiRequest {
    const fn intid(self) -> u32 {
        (self.0 >> 24) as u32 & 0xf
    }

    /// IRM: all PEs but the sender.
    const fn all_others(self) -> bool {
        self.0 & (1 << 40) != 0
    }

    /// Whether the affinity Aff3.Aff2.Aff1.Aff0, packed, is in Aff3.Aff2.Aff1 and the target list.
    const fn selects(self, affinity: u32) -> bool {
        let cluster = ((self.0 >> 24) as u32 & 0xff00_0000) // Aff3 [55:48]
            | ((self.0 >> 16) as u32 & 0x00ff_0000) // Aff2 [39:32]
            | ((self.0 >> 8) as u32 & 0x0000_ff00); // Aff1 [23:16]
        let range = (self.0 >> 44) as u32 & 0xf; // RS: Aff0 [7:4]
        let aff0 = affinity & 0xff;
        affinity & 0xffff_ff00 == cluster && aff0 >> 4 == range && self.0 & (1 << (aff0 & 0xf)) != 0
    }
}

impl Vgic {
    /// `from` wrote `value` to ICC_SGI1R_EL1. Targets that do not exist are ignored; a GICv2 has no
    /// such register.
    pub fn send_sgi(&mut self, from: VcpuIndex, value: u64) -> VcpuSet {
        self.generate(from, SgiRequest(value), u32::MAX)
    }

    /// `from` wrote `value` to ICC_SGI0R_EL1 or ICC_ASGI1R_EL1, which with one Security state reach
    /// only targets that have the SGI in Group 0.
    pub fn send_group0_sgi(&mut self, from: VcpuIndex, value: u64) -> VcpuSet {
        self.generate(from, SgiRequest(value), 0)
    }

    fn generate(&mut self, from: VcpuIndex, request: SgiRequest, group1: u32) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        if self.version != GicVersion::V3 {
            return set;
        }
        let mask = 1 << request.intid();
        for (index, interface) in self.vcpus.iter_mut().enumerate().take(self.vcpu_count) {
            let target = if request.all_others() {
                index != from.get()
            } else {
                request.selects(interface.affinity.packed())
            };
            if target && (group1 | !interface.private.group1) & mask != 0 {
                interface.private.latch |= mask;
                if interface.lists.note(0, mask) {
                    set.insert(VcpuIndex(index as u8));
                }
            }
        }
        set
    }
}
