//! Software-generated interrupts: ICC_SGI1R_EL1 and its siblings, trapped at EL2.

use super::{Affinity, GicVersion, VcpuIndex, VcpuSet, Vgic};

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

    /// The first affinity of the sixteen that the target list is of: Aff3.Aff2.Aff1, and RS for
    /// Aff0\[7:4\].
    const fn first(self) -> u64 {
        self.0 >> 16 & 0xff_00ff_0000 | self.0 >> 8 & 0xff00 | self.0 >> 40 & 0xf0
    }

    /// Whether `affinity` is among the sixteen, and in the target list.
    const fn selects(self, affinity: Affinity) -> bool {
        let bit = affinity.bits() ^ self.first();
        bit < 16 && self.0 >> bit & 1 != 0
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
                request.selects(interface.affinity)
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
