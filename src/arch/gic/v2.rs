//! GICv2: banked distributor registers and a CPU interface in memory (Arm IHI 0048).

use core::cell::Cell;

use super::{
    CoreAddress, GicError, IGROUPR, ListRegister, ListRegisters, Maintenance, VirtualInterface,
};
use crate::arch::mmio::Mmio;
use crate::gic::MAX_LIST_REGISTERS;
use crate::gic::v2::{GICC_SIZE, GichLr};
use crate::memory::PaRange;

/// GICD_CTLR: the one group there is for us. As a Non-secure access sees it, EnableGrp1; without the
/// Security Extensions, EnableGrp0, and interrupts are left in group 0.
pub(super) const CTLR_ENABLE: u32 = 1;
const GICD_ITARGETSR: usize = 0x0800;
const GICD_SGIR: usize = 0x0f00;

const GICC_CTLR: usize = 0x0000;
const GICC_PMR: usize = 0x0004;
const GICC_IAR: usize = 0x000c;
const GICC_EOIR: usize = 0x0010;
const GICC_IIDR: usize = 0x00fc;
const GICC_DIR: usize = 0x1000;
/// GICC_CTLR.EOImode, EOImodeNS in the Non-secure view: EOIR drops the priority, DIR deactivates.
const CTLR_EOI_MODE: u32 = 1 << 9;

/// GICC_IIDR of QEMU's model. When a guest's end of an interrupt deactivates a physical one (HW = 1),
/// it does not look whether that is still pending: an expired timer would stay unheard until
/// something else happens (`hw/intc/arm_gic.c`, `gic_complete_irq`, QEMU 7.2 and 10). So there the
/// physical interrupt is deactivated by software, after a maintenance interrupt.
const QEMU_ID: u32 = 0x0002_043b;

const GICH_HCR: usize = 0x000;
const GICH_VTR: usize = 0x004;
const GICH_VMCR: usize = 0x008;
const GICH_ELRSR: usize = 0x030;
const GICH_APR: usize = 0x0f0;
const GICH_LR: usize = 0x100;

const HCR_EN: u32 = 1;
/// GICH_HCR.LRENPIE: maintenance while EOIcount is not zero.
const HCR_LRENPIE: u32 = 1 << 2;
/// GICH_HCR.NPIE: maintenance while no list register is pending.
const HCR_NPIE: u32 = 1 << 3;
const HCR_EOI_COUNT_SHIFT: u32 = 27;

/// Some boards repeat each 4 KiB page of GICC and GICV sixteen times. The last copy of the first page
/// and the first of the second are the frame in one piece.
const SPREAD_OFFSET: u64 = 0xf000;
/// Size of such a frame.
const SPREAD_SIZE: u64 = 0x2_0000;

/// This core's GICC and GICH; the same addresses on every core.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frames {
    cpu: Mmio,
    hypervisor: Mmio,
    /// Where in the board's GICC frame `cpu` begins, and so in GICV.
    offset: u64,
}

impl Frames {
    /// Maps them.
    pub(super) fn map(cpu: PaRange, hypervisor: PaRange) -> Result<Self, GicError> {
        // SAFETY: the caller of `PhysicalGic::init` says that these are GICC and GICH, which do no
        // DMA.
        let map = |range: PaRange| unsafe { Mmio::map(range.base, range.len as usize) };
        let cpu = map(cpu).map_err(|_| GicError::Unmappable)?;
        let hypervisor = map(hypervisor).map_err(|_| GicError::Unmappable)?;
        let offset = spread_offset(&cpu);
        Ok(Self { cpu: cpu.at(offset as usize), hypervisor, offset })
    }

    pub(super) fn init_cpu_interface(&self) {
        self.cpu.write32_relaxed(GICC_PMR, 0xff);
        self.cpu.write32_relaxed(GICC_CTLR, CTLR_EOI_MODE | CTLR_ENABLE);
        self.hypervisor.write32_relaxed(GICH_HCR, HCR_EN);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn acknowledge(&self) -> u32 {
        self.cpu.read32_relaxed(GICC_IAR)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn drop_priority(&self, iar: u32) {
        self.cpu.write32_relaxed(GICC_EOIR, iar);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn deactivate(&self, iar: u32) {
        self.cpu.write32_relaxed(GICC_DIR, iar);
    }

    pub(super) fn save_interface(&self) -> VirtualInterface {
        let mut interface = VirtualInterface::RESET;
        interface.vmcr = self.hypervisor.read32_relaxed(GICH_VMCR);
        let [[first, ..], _] = &mut interface.active_priorities;
        *first = self.hypervisor.read32_relaxed(GICH_APR);
        interface
    }

    pub(super) fn restore_interface(&self, interface: &VirtualInterface) {
        let [[first, ..], _] = interface.active_priorities;
        self.hypervisor.write32_relaxed(GICH_VMCR, interface.vmcr);
        self.hypervisor.write32_relaxed(GICH_APR, first);
        self.hypervisor.write32_relaxed(GICH_HCR, HCR_EN);
    }
}

/// How far into the GICC frame the registers begin that are in one piece.
fn spread_offset(frame: &Mmio) -> u64 {
    // Where there are no copies, reading one may be an external abort.
    if (frame.len() as u64) < SPREAD_SIZE {
        return 0;
    }
    let id = frame.read32_relaxed(GICC_IIDR);
    let copy = frame.read32_relaxed(SPREAD_OFFSET as usize + GICC_IIDR);
    if id != 0 && id == copy { SPREAD_OFFSET } else { 0 }
}

/// What of the board's GICV to map at the guest's GICC: 8 KiB, whole pages.
pub(super) fn guest_frame(frames: &Frames, virtual_cpu: PaRange) -> Option<PaRange> {
    let base = virtual_cpu.base.checked_add(frames.offset)?;
    (virtual_cpu.len >= frames.offset + GICC_SIZE).then(|| PaRange::new(base.raw(), GICC_SIZE))
}

/// Leaves everything in group 0: where a board has the Security Extensions the register is RAZ/WI.
pub(super) fn ungroup(distributor: &Mmio, word: usize) {
    distributor.write32_relaxed(IGROUPR + word * 4, 0);
}

/// The bit by which the distributor knows this core. It is wired, and no affinity says it: the
/// banked ITARGETSR of SGIs and PPIs do. They are RAZ where there is one core only.
pub(super) fn this_core(distributor: &Mmio) -> CoreAddress {
    let mut bits = 0;
    for n in 0..8 {
        bits |= distributor.read32_relaxed(GICD_ITARGETSR + n * 4);
    }
    let [a, b, c, d] = bits.to_le_bytes();
    CoreAddress(u64::from(a | b | c | d).max(1))
}

/// Where an SPI goes.
pub(super) fn route(distributor: &Mmio, spi: u32, core: CoreAddress) {
    let at = GICD_ITARGETSR + (spi as usize & !3);
    let shift = (spi & 3) * 8;
    let others = distributor.read32_relaxed(at) & !(0xff << shift);
    distributor.write32_relaxed(at, others | (core.0 as u32 & 0xff) << shift);
}

/// Sends SGI `sgi` to one core.
pub(super) fn send_sgi(distributor: &Mmio, core: CoreAddress, sgi: u32) {
    distributor.write32_relaxed(GICD_SGIR, (core.0 as u32 & 0xff) << 16 | sgi & 15);
}

/// This core's list registers, in GICH.
#[derive(Debug)]
pub struct GicV2ListRegisters {
    frames: Frames,
    count: usize,
    /// HW = 1 cannot be used: see [`QEMU_ID`].
    software_ends: bool,
    /// List registers that were asked for with HW = 1 and are without, the physical interrupt being
    /// deactivated here once they are seen to be Invalid.
    tied: Cell<u16>,
    /// Those physical interrupts.
    physical: [u16; MAX_LIST_REGISTERS],
}

impl GicV2ListRegisters {
    pub(super) fn new(frames: Frames) -> Self {
        let vtr = frames.hypervisor.read32_relaxed(GICH_VTR);
        let mut registers = Self {
            frames,
            count: ((vtr & 0x3f) as usize + 1).min(MAX_LIST_REGISTERS),
            software_ends: frames.cpu.read32_relaxed(GICC_IIDR) == QEMU_ID,
            tied: Cell::new(0),
            physical: [0; MAX_LIST_REGISTERS],
        };
        for n in 0..registers.count {
            registers.write(n, ListRegister::EMPTY);
        }
        registers
    }

    fn register(&self, n: usize) -> GichLr {
        GichLr::from_bits(self.frames.hypervisor.read32_relaxed(GICH_LR + (n & 15) * 4))
    }

    /// Ends the physical interrupt of a tied list register that has become Invalid. Rewritten, it
    /// asks for maintenance no more.
    fn finish(&self, n: usize) {
        self.tied.set(self.tied.get() & !(1 << n));
        self.frames.hypervisor.write32_relaxed(GICH_LR + (n & 15) * 4, 0);
        if let Some(pintid) = self.physical.get(n) {
            self.frames.deactivate(u32::from(*pintid));
        }
    }
}

impl ListRegisters for GicV2ListRegisters {
    fn count(&self) -> usize {
        self.count
    }

    #[cold]
    #[inline(never)]
    fn read(&self, n: usize) -> ListRegister {
        let lr = self.register(n).list_register();
        match self.physical.get(n) {
            Some(pintid) if self.tied.get() & 1 << n != 0 => {
                if lr.is_invalid() {
                    self.finish(n);
                }
                lr.with_physical(*pintid)
            }
            _ => lr,
        }
    }

    #[cold]
    #[inline(never)]
    fn write(&mut self, n: usize, value: ListRegister) {
        let mut lr = GichLr::from(value);
        self.tied.set(self.tied.get() & !(1 << n));
        if let (true, Some(pintid), Some(physical)) =
            (self.software_ends, value.physical(), self.physical.get_mut(n))
        {
            *physical = pintid;
            lr = lr.untied();
            self.tied.set(self.tied.get() | 1 << n);
        }
        self.frames.hypervisor.write32_relaxed(GICH_LR + (n & 15) * 4, lr.bits());
    }

    #[cold]
    #[inline(never)]
    fn empty(&self) -> u32 {
        let mut empty = self.frames.hypervisor.read32_relaxed(GICH_ELRSR);
        let mut tied = self.tied.get();
        while tied != 0 {
            let n = tied.trailing_zeros() as usize;
            tied &= tied - 1;
            if self.register(n).list_register().is_invalid() {
                self.finish(n);
                empty |= 1 << n;
            }
        }
        empty
    }

    #[cold]
    #[inline(never)]
    fn set_maintenance(&mut self, wanted: Maintenance) {
        let mut hcr = HCR_EN;
        if wanted.no_pending {
            hcr |= HCR_NPIE;
        }
        if wanted.unlisted_active {
            hcr |= HCR_LRENPIE;
        }
        self.frames.hypervisor.write32_relaxed(GICH_HCR, hcr);
    }

    #[cold]
    #[inline(never)]
    fn take_eoi_count(&mut self) -> u32 {
        let hcr = self.frames.hypervisor.read32_relaxed(GICH_HCR);
        let count = hcr >> HCR_EOI_COUNT_SHIFT;
        if count != 0 {
            let hcr = hcr & !(!0 << HCR_EOI_COUNT_SHIFT);
            self.frames.hypervisor.write32_relaxed(GICH_HCR, hcr);
        }
        count
    }

    #[cold]
    #[inline(never)]
    fn deactivate_physical(&mut self, pintid: u16) {
        self.frames.deactivate(u32::from(pintid));
    }
}
