//! GICR: each vCPU's redistributor, RD_base and SGI_base.

use super::super::interface::{CHILDREN_ASLEEP, PROCESSOR_SLEEP};
use super::super::list_register::ListRegisters;
use super::super::registers::BitRegister;
use super::super::{GicVersion, VcpuIndex, VcpuSet, Vgic};
use super::{GICR_STRIDE, IIDR, half, id_register};

const IIDR_OFFSET: u64 = 0x0004;
const TYPER: u64 = 0x0008;
const TYPER_HIGH: u64 = TYPER + 4;
const WAKER: u64 = 0x0014;
/// SGI_base, from the start of a vCPU's frames.
const SGI: u64 = 0x1_0000;

/// GICR_TYPER.Last.
const TYPER_LAST: u64 = 1 << 4;

impl Vgic {
    /// Reads `width` bytes at `offset` from the first vCPU's RD_base. `vcpu` is the one that runs
    /// on this core with `lrs`; the frames may be any vCPU's.
    pub fn gicr_read<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        width: u32,
        lrs: &mut L,
    ) -> u64 {
        let Some((owner, offset)) = self.frames_at(offset) else {
            return 0;
        };
        match (width, offset) {
            (8, TYPER) => self.gicr_typer(owner),
            (1, 0x1_0400..0x1_0420) => u64::from(self.read_priority(owner, 0, offset as u32 & 31)),
            (4, _) if offset & 3 == 0 => u64::from(match offset {
                IIDR_OFFSET => IIDR,
                TYPER | TYPER_HIGH => half(self.gicr_typer(owner), offset - TYPER),
                WAKER => self.interface(owner).waker,
                0xffd0..0x1_0000 => id_register(offset),
                0x1_0400..0x1_0420 => self.read_priorities(owner, 0, offset as usize & 31),
                0x1_0c00 | 0x1_0c04 => self.read_config(owner, 0, offset & 4 != 0),
                // The registers of word 0 only; the rest of each class is extended PPIs.
                0x1_0080..0x1_0400 if offset & 0x7f == 0 => match BitRegister::at(offset - SGI) {
                    Some(register) => self.read_bits(register, owner, 0, vcpu, lrs),
                    None => 0,
                },
                _ => 0,
            }),
            _ => 0,
        }
    }

    /// Writes the `width` lowest bytes of `value` at `offset` from the first vCPU's RD_base.
    pub fn gicr_write(&mut self, offset: u64, width: u32, value: u64) -> VcpuSet {
        let Some((owner, offset)) = self.frames_at(offset) else {
            return VcpuSet::EMPTY;
        };
        let value = value as u32;
        match (width, offset) {
            (1, 0x1_0400..0x1_0420) => {
                self.write_priorities(owner, 0, offset as u32 & 31, 1, value)
            }
            (4, _) if offset & 3 == 0 => match offset {
                WAKER => {
                    // Nothing below is asleep or awake by itself: ChildrenAsleep follows at once.
                    let asleep = value & PROCESSOR_SLEEP != 0;
                    self.interface_mut(owner).waker =
                        if asleep { PROCESSOR_SLEEP | CHILDREN_ASLEEP } else { 0 };
                    VcpuSet::EMPTY
                }
                0x1_0400..0x1_0420 => self.write_priorities(owner, 0, offset as u32 & 31, 4, value),
                0x1_0080..0x1_0400 if offset & 0x7f == 0 => match BitRegister::at(offset - SGI) {
                    Some(register) => self.write_bits(register, owner, 0, value),
                    None => VcpuSet::EMPTY,
                },
                _ => VcpuSet::EMPTY,
            },
            _ => VcpuSet::EMPTY,
        }
    }

    /// Whose frames `offset` is in (a GICv2 has none), and the offset within them.
    fn frames_at(&self, offset: u64) -> Option<(VcpuIndex, u64)> {
        let owner = usize::try_from(offset / GICR_STRIDE).ok().and_then(VcpuIndex::new)?;
        (owner.get() < self.vcpu_count && self.version == GicVersion::V3)
            .then_some((owner, offset % GICR_STRIDE))
    }

    fn gicr_typer(&self, owner: VcpuIndex) -> u64 {
        let last = owner.get() + 1 == self.vcpu_count;
        let affinity = u64::from(self.interface(owner).affinity.packed());
        affinity << 32 | (owner.get() as u64) << 8 | if last { TYPER_LAST } else { 0 }
    }
}
