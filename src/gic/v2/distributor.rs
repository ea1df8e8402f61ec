//! GICD of a GICv2.

use super::super::irq::{Bits, INTID_COUNT};
use super::super::list_register::ListRegisters;
use super::super::registers::{BitRegister, is_spi_word};
use super::super::{VcpuIndex, VcpuSet, Vgic};

const CTLR: u64 = 0x000;
const TYPER: u64 = 0x004;
const IIDR_OFFSET: u64 = 0x008;
const IGROUPR: u64 = 0x080;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
/// GICD_ITARGETSR of the first SPI.
const ITARGETSR_SPI: u64 = ITARGETSR + 32;
const ICFGR: u64 = 0xc00;
const SGIR: u64 = 0xf00;
const CPENDSGIR: u64 = 0xf10;
const SPENDSGIR: u64 = 0xf20;
const ID: u64 = 0xfd0;

/// First offset past the registers that have one bit (IGROUPR to ICACTIVER: seven classes), one byte
/// and two bits an interrupt.
const BITS_END: u64 = IPRIORITYR;
const IPRIORITYR_END: u64 = IPRIORITYR + INTID_COUNT as u64;
const ITARGETSR_END: u64 = ITARGETSR + INTID_COUNT as u64;
const ICFGR_END: u64 = ICFGR + INTID_COUNT as u64 / 4;
/// One byte an SGI.
const CPENDSGIR_END: u64 = CPENDSGIR + 16;
const SPENDSGIR_END: u64 = SPENDSGIR + 16;

/// ITLinesNumber: 256 INTIDs. No Security Extensions.
const TYPER_LINES: u32 = INTID_COUNT / 32 - 1;
/// CPUNumber: CPU interfaces less one.
const TYPER_CPUS_SHIFT: u32 = 5;
/// Arm's JEP106 code, a product number of our own.
const IIDR: u32 = 0x5300_043b;
/// PIDR4-7, PIDR0-3, CIDR0-3. PIDR2\[7:4\] = 2 says GICv2.
const ID_REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0x90, 0xb4, 0x2b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/// What GICD_SGIR asks for.
#[derive(Clone, Copy)]
struct SgiRequest(u32);

impl SgiRequest {
    const fn sgi(self) -> u32 {
        self.0 & 0xf
    }

    /// The CPU interfaces named, one bit each, by one of `all` with bit `from`.
    const fn targets(self, from: u8, all: u8) -> u8 {
        match self.0 >> 24 & 3 {
            0 => (self.0 >> 16) as u8 & all,
            1 => all & !from,
            2 => from,
            // Reserved.
            _ => 0,
        }
    }
}

/// Word and bit of the interrupt at `offset` of a class with one byte an interrupt.
const fn byte_at(offset: u64) -> (usize, u32) {
    ((offset as usize & 0x3ff) >> 5, offset as u32 & 31)
}

impl Vgic {
    #[cold]
    #[inline(never)]
    pub(in super::super) fn gicd_read_v2<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        width: u32,
        lrs: &mut L,
    ) -> u64 {
        // The classes with one byte an interrupt are accessible by bytes, too.
        let by_bytes = matches!(
            offset,
            IPRIORITYR..IPRIORITYR_END | ITARGETSR..ITARGETSR_END | CPENDSGIR..SPENDSGIR_END
        );
        if by_bytes && (width == 1 || width == 4 && offset & 3 == 0) {
            let bytes = [0, 1, 2, 3].map(|n| {
                if n < u64::from(width) { self.byte_of(vcpu, offset + n, n == 0, lrs) } else { 0 }
            });
            return u64::from(u32::from_le_bytes(bytes));
        }
        if width != 4 || offset & 3 != 0 {
            return 0;
        }
        u64::from(match offset {
            CTLR => self.group_enables(),
            TYPER => TYPER_LINES | (self.vcpus() as u32 - 1) << TYPER_CPUS_SHIFT,
            IIDR_OFFSET => IIDR,
            IGROUPR..BITS_END => {
                let word = (offset as usize >> 2) & 31;
                match BitRegister::at(offset) {
                    Some(register) if word == 0 || is_spi_word(word) => {
                        self.read_bits(register, vcpu, word, vcpu, lrs)
                    }
                    _ => 0,
                }
            }
            ICFGR..ICFGR_END => {
                let index = (offset as usize >> 2) & 15;
                self.read_config(vcpu, index >> 1, index & 1 != 0)
            }
            ID..GICD_END => {
                let index = (offset - ID) as usize >> 2;
                ID_REGISTERS.get(index).copied().map_or(0, u32::from)
            }
            _ => 0,
        })
    }

    /// One byte of IPRIORITYR, ITARGETSR, CPENDSGIR or SPENDSGIR; `first` of those of one access.
    fn byte_of<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        first: bool,
        lrs: &mut L,
    ) -> u8 {
        let (word, bit) = byte_at(offset);
        match offset {
            IPRIORITYR..IPRIORITYR_END => self.read_priority(vcpu, word, bit),
            // A uniprocessor has no targets to choose from.
            _ if offset < ITARGETSR_END && self.vcpus() == 1 => 0,
            ITARGETSR..ITARGETSR_SPI => interface_bit(vcpu),
            ITARGETSR_SPI..ITARGETSR_END => self.read_route(word, bit as usize) as u8,
            _ => {
                if first {
                    self.fold(vcpu, 0, vcpu, lrs);
                }
                self.bank(vcpu, 0).senders_of(offset as u32 & 15)
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(in super::super) fn gicd_write_v2(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        width: u32,
        value: u64,
    ) -> VcpuSet {
        let value = value as u32;
        let word_access = width == 4 && offset & 3 == 0;
        if !word_access && width != 1 {
            return VcpuSet::EMPTY;
        }
        let (word, bit) = byte_at(offset);
        match offset {
            IPRIORITYR..IPRIORITYR_END => {
                return self.write_priorities(vcpu, word, bit, width, value);
            }
            ITARGETSR_SPI..ITARGETSR_END => return self.write_targets(word, bit, width, value),
            CPENDSGIR..CPENDSGIR_END => {
                return self.write_senders(vcpu, offset as u32 & 15, width, value, false);
            }
            SPENDSGIR..SPENDSGIR_END => {
                return self.write_senders(vcpu, offset as u32 & 15, width, value, true);
            }
            _ if !word_access => return VcpuSet::EMPTY,
            _ => {}
        }
        match offset {
            CTLR => self.write_group_enables(value),
            IGROUPR..BITS_END => {
                let word = (offset as usize >> 2) & 31;
                match BitRegister::at(offset) {
                    Some(register) if word == 0 || is_spi_word(word) => {
                        self.write_bits(register, vcpu, word, value)
                    }
                    _ => VcpuSet::EMPTY,
                }
            }
            ICFGR..ICFGR_END => {
                let index = (offset as usize >> 2) & 15;
                self.write_config(index >> 1, index & 1 != 0, value)
            }
            SGIR => self.send_sgi_v2(vcpu, SgiRequest(value)),
            _ => VcpuSet::EMPTY,
        }
    }

    /// All CPU interfaces, one bit each.
    fn interfaces(&self) -> u8 {
        ((1u16 << self.vcpus()) - 1) as u8
    }

    fn write_targets(&mut self, word: usize, bit: u32, width: u32, value: u32) -> VcpuSet {
        if self.vcpus() == 1 {
            return VcpuSet::EMPTY;
        }
        let all = self.interfaces();
        let mask = if width == 4 { 0xf } else { 1 } << bit;
        self.change_routes(word, mask, |routes| {
            for (bit, byte) in Bits(mask).zip(value.to_le_bytes()) {
                if let Some(route) = routes.get_mut(bit as usize) {
                    *route = u64::from(byte & all);
                }
            }
        })
    }

    fn write_senders(
        &mut self,
        vcpu: VcpuIndex,
        sgi: u32,
        width: u32,
        value: u32,
        pending: bool,
    ) -> VcpuSet {
        let all = self.interfaces();
        let bank = self.bank_mut(vcpu, 0);
        let mask = if width == 4 { 0xf } else { 1 } << sgi;
        for (sgi, byte) in Bits(mask).zip(value.to_le_bytes()) {
            if pending {
                bank.add_senders(sgi, byte & all);
            } else {
                bank.remove_senders(sgi, byte);
            }
        }
        self.touch(vcpu, 0, mask)
    }

    fn send_sgi_v2(&mut self, from: VcpuIndex, request: SgiRequest) -> VcpuSet {
        let sender = interface_bit(from);
        let targets = request.targets(sender, self.interfaces());
        let mut set = VcpuSet::EMPTY;
        for target in Bits(u32::from(targets)) {
            if let Some(vcpu) = VcpuIndex::new(target as usize) {
                self.bank_mut(vcpu, 0).add_senders(request.sgi(), sender);
                set.merge(self.touch(vcpu, 0, 1 << request.sgi()));
            }
        }
        set
    }
}

const GICD_END: u64 = super::GICD_SIZE;

/// The bit by which ITARGETSR and SGIR name a vCPU's CPU interface.
const fn interface_bit(vcpu: VcpuIndex) -> u8 {
    1 << (vcpu.get() & 7)
}
