//! GICD: the distributor frame.

use super::super::irq::INTID_COUNT;
use super::super::list_register::ListRegisters;
use super::super::registers::{BitRegister, is_spi_word};
use super::super::{VcpuIndex, VcpuSet, Vgic};
use super::{IIDR, half, id_register};

const CTLR: u64 = 0x0000;
const TYPER: u64 = 0x0004;
const IIDR_OFFSET: u64 = 0x0008;
const IROUTER: u64 = 0x6000;
const IROUTER_LAST: u64 = IROUTER + 8 * (INTID_COUNT as u64 - 1) + 7;

/// ARE and DS: both fixed to one.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// 256 INTIDs of 10 bits, affinity 3 is valid, no 1-of-N routing; no LPIs, messages or extended
/// SPIs.
const TYPER_VALUE: u32 = (INTID_COUNT / 32 - 1) | 9 << 19 | 1 << 24 | 1 << 25;

/// Word and bit of the first interrupt an IPRIORITYR access at `offset` touches.
#[inline]
const fn priority_at(offset: u64) -> (usize, u32) {
    ((offset as usize & 0x3ff) >> 5, offset as u32 & 31)
}

impl Vgic {
    #[inline]
    pub(in super::super) fn gicd_read_v3<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        width: u32,
        lrs: &mut L,
    ) -> u64 {
        if width != 4 || offset & 3 != 0 {
            return self.gicd_read_odd(offset, width);
        }
        let word = (offset as usize >> 2) & 31;
        u64::from(match offset {
            CTLR => CTLR_FIXED | self.group_enables(),
            TYPER => TYPER_VALUE,
            IIDR_OFFSET => IIDR,
            0x080..0x400 if is_spi_word(word) => match BitRegister::at(offset) {
                Some(register) => self.read_bits(register, VcpuIndex::BOOT, word, vcpu, lrs),
                None => 0,
            },
            0x420..0x500 => {
                let (word, bit) = priority_at(offset);
                self.read_priorities(VcpuIndex::BOOT, word, bit as usize)
            }
            0xc08..0xc40 => {
                let index = (offset as usize >> 2) & 15;
                self.read_config(VcpuIndex::BOOT, index >> 1, index & 1 != 0)
            }
            IROUTER..=IROUTER_LAST => {
                let index = (offset - IROUTER) as usize >> 3;
                half(self.read_route(index >> 5, index & 31), offset)
            }
            0xffd0.. => id_register(offset),
            _ => 0,
        })
    }

    /// Widths other than 32 bits: IROUTER has 64, IPRIORITYR can be read by bytes.
    #[cold]
    fn gicd_read_odd(&self, offset: u64, width: u32) -> u64 {
        match (width, offset) {
            (8, IROUTER..=IROUTER_LAST) if offset & 7 == 0 => {
                let index = (offset - IROUTER) as usize >> 3;
                self.read_route(index >> 5, index & 31)
            }
            (1, 0x420..0x500) => {
                let (word, bit) = priority_at(offset);
                u64::from(self.read_priority(VcpuIndex::BOOT, word, bit))
            }
            _ => 0,
        }
    }

    pub(in super::super) fn gicd_write_v3(
        &mut self,
        offset: u64,
        width: u32,
        value: u64,
    ) -> VcpuSet {
        let half_value = value as u32;
        let word = (offset as usize >> 2) & 31;
        match (width, offset) {
            (8, IROUTER..=IROUTER_LAST) if offset & 7 == 0 => {
                let index = (offset - IROUTER) as usize >> 3;
                self.write_route(index >> 5, index & 31, value)
            }
            (1, 0x420..0x500) => {
                let (word, bit) = priority_at(offset);
                self.write_priorities(VcpuIndex::BOOT, word, bit, 1, half_value)
            }
            (4, _) if offset & 3 == 0 => match offset {
                CTLR => self.write_group_enables(half_value),
                0x080..0x400 if is_spi_word(word) => match BitRegister::at(offset) {
                    Some(register) => self.write_bits(register, VcpuIndex::BOOT, word, half_value),
                    None => VcpuSet::EMPTY,
                },
                0x420..0x500 => {
                    let (word, bit) = priority_at(offset);
                    self.write_priorities(VcpuIndex::BOOT, word, bit, 4, half_value)
                }
                0xc08..0xc40 => {
                    let index = (offset as usize >> 2) & 15;
                    self.write_config(index >> 1, index & 1 != 0, half_value)
                }
                IROUTER..=IROUTER_LAST => {
                    let index = (offset - IROUTER) as usize >> 3;
                    let shift = (offset & 4) * 8;
                    let kept = self.read_route(index >> 5, index & 31) & !(0xffff_ffff << shift);
                    let route = kept | (u64::from(half_value) << shift);
                    self.write_route(index >> 5, index & 31, route)
                }
                _ => VcpuSet::EMPTY,
            },
            _ => VcpuSet::EMPTY,
        }
    }
}
