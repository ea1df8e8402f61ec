//! For tests: a virtual CPU interface with list registers, its guest, and the physical timer
//! interrupt. Written from the architecture, not from the code under test.

use std::collections::BTreeSet;

use super::*;

/// The virtual timer's PPI, virtual and physical.
pub(super) const TIMER: u32 = 27;

/// A core's ICH_* registers and what its guest does through ICV_*.
#[derive(Debug)]
pub(super) struct FakeCore {
    pub(super) lrs: Vec<ListRegister>,
    pub(super) maintenance: Maintenance,
    pub(super) eoi_count: u32,
    /// Priorities of the active priorities registers, the running one last, and whose they are.
    pub(super) running: Vec<(u8, u32)>,
    /// Physical interrupts that are active, waiting for deactivation.
    pub(super) physical: BTreeSet<u16>,
    /// Writes to list registers and to ICH_HCR, to see that nothing is written for nothing.
    pub(super) writes: usize,
}

impl ListRegisters for FakeCore {
    fn count(&self) -> usize {
        self.lrs.len()
    }
    fn read(&self, n: usize) -> ListRegister {
        self.lrs[n]
    }
    fn write(&mut self, n: usize, value: ListRegister) {
        self.writes += 1;
        self.lrs[n] = value;
        let mut seen = BTreeSet::new();
        for lr in self.lrs.iter().filter(|lr| !lr.is_invalid()) {
            assert!(seen.insert(lr.vintid()), "{} is in two list registers", lr.vintid());
            assert!(
                lr.physical().is_none() || lr.state() != State::PendingActive,
                "HW = 1 and pending-and-active is UNPREDICTABLE"
            );
        }
    }
    fn empty(&self) -> u32 {
        let empty = |lr: &ListRegister| lr.is_invalid() && !lr.has_eoi_maintenance();
        (0..self.lrs.len()).filter(|&n| empty(&self.lrs[n])).map(|n| 1 << n).sum()
    }
    fn set_maintenance(&mut self, wanted: Maintenance) {
        self.writes += 1;
        self.maintenance = wanted;
        self.eoi_count = 0;
    }
    fn take_eoi_count(&mut self) -> u32 {
        std::mem::take(&mut self.eoi_count)
    }
    fn deactivate_physical(&mut self, pintid: u16) {
        assert!(self.physical.remove(&pintid), "{pintid} was not active");
    }
}

impl FakeCore {
    pub(super) fn new(count: usize) -> Self {
        Self {
            lrs: vec![ListRegister::EMPTY; count],
            maintenance: Maintenance::default(),
            eoi_count: 0,
            running: Vec::new(),
            physical: BTreeSet::new(),
            writes: 0,
        }
    }

    /// ICH_MISR_EL2 != 0.
    pub(super) fn maintenance_asserted(&self) -> bool {
        self.lrs.iter().any(|lr| lr.is_invalid() && lr.has_eoi_maintenance())
            || (self.maintenance.no_pending
                && !self.lrs.iter().any(|lr| lr.state() == State::Pending))
            || (self.maintenance.unlisted_active && self.eoi_count != 0)
    }

    pub(super) fn running_priority(&self) -> u8 {
        self.running.last().map_or(0xff, |&(priority, _)| priority)
    }

    /// Reads ICV_IAR: the INTID acknowledged, if any can be signalled.
    pub(super) fn acknowledge(&mut self) -> Option<u32> {
        let running = self.running_priority();
        let lr = self
            .lrs
            .iter_mut()
            .filter(|lr| lr.state() == State::Pending && lr.priority() < running)
            .min_by_key(|lr| lr.priority())?;
        *lr = ListRegister::from_bits(lr.bits() ^ (0b11 << 62));
        self.running.push((lr.priority(), lr.vintid()));
        Some(lr.vintid())
    }

    /// Priority drop: the first half of ICV_EOIR.
    pub(super) fn drop_priority(&mut self) -> Option<u32> {
        self.running.pop().map(|(_, intid)| intid)
    }

    /// Deactivation: the second half of ICV_EOIR with EOImode = 0, or ICV_DIR.
    pub(super) fn deactivate(&mut self, intid: u32) {
        let active = |lr: &&mut ListRegister| lr.vintid() == intid && lr.is_active();
        match self.lrs.iter_mut().find(active) {
            Some(lr) => {
                *lr = ListRegister::from_bits(lr.bits() & !(1 << 63));
                if let Some(pintid) = lr.physical() {
                    assert!(self.physical.remove(&pintid), "{pintid} was not active");
                }
            }
            None => self.eoi_count = (self.eoi_count + 1).min(31),
        }
    }

    /// ICV_EOIR of the running interrupt with EOImode = 0.
    pub(super) fn end_of_interrupt(&mut self) -> Option<u32> {
        let intid = self.drop_priority()?;
        self.deactivate(intid);
        Some(intid)
    }
}

/// A virtual GIC, its core and the timer line.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) vgic: Vgic,
    pub(super) core: FakeCore,
    pub(super) timer_line: bool,
}

impl Machine {
    /// At power-on.
    pub(super) fn at_reset(list_registers: usize) -> Self {
        Self { vgic: Vgic::new(1), core: FakeCore::new(list_registers), timer_line: false }
    }

    /// As Linux leaves it: both groups on, everything in Group 1, enabled, priority 0xa0.
    pub(super) fn new(list_registers: usize) -> Self {
        let mut machine = Self::at_reset(list_registers);
        machine.gicd_write(0x0, 4, 0b11);
        for word in 1..8 {
            machine.gicd_write(0x80 + 4 * word, 4, 0xffff_ffff);
            machine.gicd_write(0x100 + 4 * word, 4, 0xffff_ffff);
        }
        machine.gicr_write(0x1_0080, 4, 0xffff_ffff);
        machine.gicr_write(0x1_0100, 4, 0xffff_ffff);
        for intid in 0..256 {
            machine.set_priority(intid, 0xa0);
        }
        machine.enter();
        machine
    }

    pub(super) fn gicd_read(&mut self, offset: u64, width: u32) -> u64 {
        self.vgic.gicd_read(VcpuIndex::BOOT, offset, width, &mut self.core)
    }
    pub(super) fn gicr_read(&mut self, offset: u64, width: u32) -> u64 {
        self.vgic.gicr_read(VcpuIndex::BOOT, offset, width, &mut self.core)
    }
    pub(super) fn gicd_write(&mut self, offset: u64, width: u32, value: u64) {
        let _ = self.vgic.gicd_write(VcpuIndex::BOOT, offset, width, value);
    }
    pub(super) fn gicr_write(&mut self, offset: u64, width: u32, value: u64) {
        let _ = self.vgic.gicr_write(offset, width, value);
    }

    /// Writes `intid`'s bit of the bit register at `class` (0x80 IGROUPR ... 0x380 ICACTIVER).
    pub(super) fn write_bit(&mut self, class: u64, intid: u32) {
        let bit = 1 << (intid & 31);
        if intid < 32 {
            self.gicr_write(0x1_0000 + class, 4, bit);
        } else {
            self.gicd_write(class + 4 * u64::from(intid / 32), 4, bit);
        }
    }

    /// Reads `intid`'s bit of the bit register at `class`.
    pub(super) fn read_bit(&mut self, class: u64, intid: u32) -> bool {
        let word = if intid < 32 {
            self.gicr_read(0x1_0000 + class, 4)
        } else {
            self.gicd_read(class + 4 * u64::from(intid / 32), 4)
        };
        word >> (intid & 31) & 1 != 0
    }

    pub(super) fn set_priority(&mut self, intid: u32, priority: u8) {
        let offset = 0x400 + u64::from(intid);
        if intid < 32 {
            self.gicr_write(0x1_0000 + offset, 1, u64::from(priority));
        } else {
            self.gicd_write(offset, 1, u64::from(priority));
        }
    }

    pub(super) fn set_edge(&mut self, spi: u32, edge: bool) {
        let offset = 0xc00 + 4 * u64::from(spi / 16);
        let field = 0b10 << (2 * (spi % 16));
        let others = self.gicd_read(offset, 4) & !field;
        self.gicd_write(offset, 4, others | if edge { field } else { 0 });
    }

    pub(super) fn pulse(&mut self, spi: u32) {
        let _ = self.vgic.pulse(IntId::new(spi).unwrap());
    }

    pub(super) fn set_level(&mut self, intid: u32, high: bool) {
        let intid = IntId::new(intid).unwrap();
        let _ = if intid.is_private() {
            self.vgic.set_ppi_level(VcpuIndex::BOOT, intid, high)
        } else {
            self.vgic.set_level(intid, high)
        };
    }

    /// The timer's output. Whoever sees it fall must tell, but need not once it is acknowledged.
    pub(super) fn set_timer(&mut self, high: bool) {
        self.timer_line = high;
        let timer = |lr: &ListRegister| lr.vintid() == TIMER && lr.physical().is_some();
        let acknowledged = self.core.lrs.iter().any(|lr| timer(lr) && lr.is_active());
        if !high && !acknowledged {
            self.vgic.retract_hw(VcpuIndex::BOOT, IntId::new(TIMER).unwrap(), &mut self.core);
        }
    }

    /// What happens before the guest runs on: physical interrupts are taken, list registers
    /// written. Fails if the guest would not get to run.
    pub(super) fn enter(&mut self) {
        for _ in 0..8 {
            if self.timer_line && self.core.physical.insert(TIMER as u16) {
                let timer = IntId::new(TIMER).unwrap();
                let _ = self.vgic.inject_hw(VcpuIndex::BOOT, timer, TIMER as u16, &mut self.core);
            } else if self.core.maintenance_asserted() {
                self.vgic.on_maintenance(VcpuIndex::BOOT);
            } else if !self.vgic.needs_flush(VcpuIndex::BOOT) {
                return;
            }
            if self.vgic.needs_flush(VcpuIndex::BOOT) {
                let _ = self.vgic.flush(VcpuIndex::BOOT, &mut self.core);
                assert!(!self.core.maintenance_asserted(), "maintenance storm: {:?}", self.core);
            }
        }
        panic!("the guest never runs: {self:?}");
    }

    /// The guest acknowledges.
    pub(super) fn ack(&mut self) -> Option<u32> {
        self.enter();
        let intid = self.core.acknowledge();
        self.enter();
        intid
    }

    /// The guest ends the running interrupt, EOImode = 0.
    pub(super) fn eoi(&mut self) -> Option<u32> {
        let intid = self.core.end_of_interrupt();
        self.enter();
        intid
    }

    /// The guest ends the running interrupt's priority only, EOImode = 1.
    pub(super) fn drop_priority(&mut self) -> Option<u32> {
        self.core.drop_priority()
    }

    /// The guest writes ICC_DIR_EL1, EOImode = 1.
    pub(super) fn dir(&mut self, intid: u32) {
        if self.core.maintenance.unlisted_active {
            let _ = self.vgic.deactivate(VcpuIndex::BOOT, u64::from(intid));
        } else {
            self.core.deactivate(intid);
        }
        self.enter();
    }

    /// Acknowledges and ends everything that is deliverable, in order.
    pub(super) fn drain(&mut self) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some(intid) = self.ack() {
            order.push(intid);
            assert!(order.len() < 1000, "an interrupt is delivered for ever");
            self.eoi();
        }
        order
    }
}
