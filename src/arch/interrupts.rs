//! Physical interrupts. EL2 drives its devices by polling; an interrupt only says when to look.

use super::guest::Seat;
use super::mmio::Mmio;
use super::{console, gic, timer};
use crate::backend::serial::Serial;
use crate::gic::{IntId, VcpuSet};

/// Interrupts served in one go: a bound on what a screaming line costs the guest per exit.
const BATCH: usize = 8;
/// Bytes of console input taken in one go.
const INPUT_BATCH: usize = 64;
/// Doorbells a board can have.
pub const MAX_DOORBELLS: usize = 16;

/// PPI of the virtual timer (Arm BSA).
pub const VIRTUAL_TIMER_INTID: u32 = 27;
/// PPI of the EL1 physical timer (Arm BSA).
pub const PHYSICAL_TIMER_INTID: u32 = 30;

/// A physical interrupt that says: poll.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell {
    /// Its INTID.
    pub intid: u32,
    /// Whether the line is edge-triggered.
    pub edge: bool,
    /// Whose it is.
    pub source: Source,
    /// Times in a row that it rang for nothing.
    vain: u16,
}

/// A doorbell that rings this often for nothing, one ring after the other, is stuck: a dying device
/// holds its line. It is silenced, lest the guest do nothing but exit; the timer still polls.
const PATIENCE: u16 = 1000;

impl Doorbell {
    /// The doorbell of `source` at interrupt `intid`.
    pub const fn new(intid: u32, edge: bool, source: Source) -> Self {
        Self { intid, edge, source, vain: 0 }
    }

    /// Lets it ring on this core. What its source has asserted before is acknowledged: on an
    /// edge-triggered line it would never be heard, nor anything after it.
    pub fn connect(&self, gic: &gic::PhysicalGic) {
        gic.enable(self.intid, self.edge);
        match self.source {
            Source::VirtioMmio(registers) => registers.write32_relaxed(INTERRUPT_ACK, ALL_CAUSES),
            Source::Console => {
                console::with(|uart| uart.set_receive_interrupt(true));
            }
        }
    }
}

/// What rings a doorbell.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The console has input.
    Console,
    /// A virtio-mmio device has finished something.
    VirtioMmio(Mmio),
}

/// InterruptACK (virtio 1.3, 4.2.2).
const INTERRUPT_ACK: usize = 0x64;
/// Used buffers and configuration changes.
const ALL_CAUSES: u32 = 0b11;

/// Serves what is pending.
pub(super) fn serve(seat: &mut Seat) {
    let (vm, index) = (seat.vcpu.vm, seat.vcpu.index);
    for _ in 0..BATCH {
        let Some(acknowledged) = seat.plan.gic.acknowledge() else { break };
        seat.plan.gic.drop_priority(acknowledged);
        let intid = acknowledged.intid();
        match intid {
            VIRTUAL_TIMER_INTID | PHYSICAL_TIMER_INTID => {
                // Stays active: the guest's own deactivation ends it (list register with HW = 1).
                if let Some(ppi) = IntId::new(intid) {
                    vm.interrupt(index, &mut seat.core, |vgic, lrs| {
                        vgic.inject_hw(index, ppi, intid as u16, lrs)
                    });
                }
            }
            gic::MAINTENANCE_INTID => {
                vm.interrupt(index, &mut seat.core, |vgic, _| {
                    vgic.on_maintenance(index);
                    VcpuSet::EMPTY
                });
                seat.plan.gic.deactivate(acknowledged);
            }
            timer::TIMER_INTID => {
                seat.core.timer_has_fired();
                seat.plan.gic.deactivate(acknowledged);
                vm.on_timer(index, &mut seat.core);
            }
            _ => {
                seat.vcpu.exits.doorbells += 1;
                answer(seat, intid);
                seat.plan.gic.deactivate(acknowledged);
            }
        }
    }
    if vm.waits_for_events() {
        vm.poll(index, &mut seat.core);
    }
}

/// A doorbell has rung. What it rang for is collected by the poll that follows every interrupt.
fn answer(seat: &mut Seat, intid: u32) {
    let Some(at) = seat.doorbells.iter().position(|doorbell| doorbell.intid == intid) else {
        return;
    };
    let useful = match seat.doorbells.get(at).map(|doorbell| doorbell.source) {
        Some(Source::VirtioMmio(registers)) => {
            registers.write32_relaxed(INTERRUPT_ACK, ALL_CAUSES);
            seat.vcpu.vm.waits_for_events()
        }
        Some(Source::Console) => feed_console(seat),
        None => return,
    };
    let Some(doorbell) = seat.doorbells.get_mut(at) else { return };
    doorbell.vain = if useful { 0 } else { doorbell.vain.saturating_add(1) };
    if doorbell.vain == PATIENCE {
        seat.plan.gic.disable(intid);
        log::warn!("interrupt {intid} is stuck: it is disabled, its device polled less often");
    }
}

/// Passes the board's console input to the guest, as much as it has room for. With none left, the
/// board's interrupt is off until the guest has read: input is never lost here, it waits. `false` if
/// there was none.
pub(super) fn feed_console(seat: &mut Seat) -> bool {
    seat.core.input_wanted = false;
    console::with(|uart| uart.acknowledge_interrupt());
    let (vm, index) = (seat.vcpu.vm, seat.vcpu.index);
    let mut any = false;
    for _ in 0..INPUT_BATCH {
        if !vm.wants_input() {
            console::with(|uart| uart.set_receive_interrupt(false));
            return true;
        }
        let Some(byte) = console::with(Serial::read_byte).flatten() else { break };
        vm.receive(byte, index, &mut seat.core);
        any = true;
    }
    console::with(|uart| uart.set_receive_interrupt(true));
    any
}
