//! Physical interrupts. EL2 drives its devices by polling; an interrupt only says when to look.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::core::NUDGE;
use super::gic::PhysicalGic;
use super::guest::Seat;
use super::mmio::Mmio;
use super::smp::this_core;
use super::{console, gic, timer};
use crate::backend::serial::Serial;
use crate::gic::{IntId, VcpuSet};
use crate::vm::Host;

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

/// The core that has the console, plus one; 0 while none has.
static CONSOLE_CORE: AtomicU8 = AtomicU8::new(0);
/// A guest has room for input again.
static INPUT_WANTED: AtomicBool = AtomicBool::new(false);

/// Enables what this core takes: its private interrupts, and the doorbells of its machines.
pub(super) fn enable(seat: &mut Seat) {
    let private = [
        NUDGE,
        VIRTUAL_TIMER_INTID,
        PHYSICAL_TIMER_INTID,
        gic::MAINTENANCE_INTID,
        timer::TIMER_INTID,
    ];
    for intid in private {
        seat.gic.enable(intid, false);
    }
    for doorbell in &seat.doorbells {
        if matches!(doorbell.source, Source::Console) {
            CONSOLE_CORE.store(this_core() as u8 + 1, Ordering::Relaxed);
        }
        doorbell.connect(&seat.gic);
    }
}

/// The first private interrupt that EL2 needs and cannot have, because it is kept for the Secure
/// state.
pub fn missing(gic: &PhysicalGic) -> Option<u32> {
    let private =
        [VIRTUAL_TIMER_INTID, PHYSICAL_TIMER_INTID, gic::MAINTENANCE_INTID, timer::TIMER_INTID];
    private.into_iter().find(|intid| {
        gic.enable(*intid, false);
        let enabled = gic.is_enabled(*intid);
        gic.disable(*intid);
        !enabled
    })
}

/// Serves what is pending.
pub(super) fn serve(seat: &mut Seat) {
    let gic = seat.gic;
    for _ in 0..BATCH {
        let Some(acknowledged) = gic.acknowledge() else { break };
        gic.drop_priority(acknowledged);
        match acknowledged.intid() {
            intid @ (VIRTUAL_TIMER_INTID | PHYSICAL_TIMER_INTID) => {
                // Stays active: the guest's own deactivation ends it (list register with HW = 1).
                match (seat.loaded(), IntId::new(intid)) {
                    (Some(index), Some(ppi)) => {
                        let vm = seat.vcpu.vm;
                        vm.interrupt(index, &mut seat.core, |vgic, lrs| {
                            vgic.inject_hw(index, ppi, intid as u16, lrs)
                        });
                    }
                    // The vCPU has just left, its timer with it.
                    _ => gic.deactivate(acknowledged),
                }
            }
            NUDGE => {
                gic.deactivate(acknowledged);
                nudged(seat);
            }
            gic::MAINTENANCE_INTID => {
                if let Some(index) = seat.loaded() {
                    seat.vcpu.vm.interrupt(index, &mut seat.core, |vgic, _| {
                        vgic.on_maintenance(index);
                        VcpuSet::EMPTY
                    });
                }
                gic.deactivate(acknowledged);
            }
            timer::TIMER_INTID => {
                seat.core.timer_has_fired();
                gic.deactivate(acknowledged);
                seat.each_vm(|vm, here, core| vm.on_timer(here, core));
                seat.core.look |= seat.must_look();
            }
            intid => {
                seat.vcpu.exits.doorbells += 1;
                answer(seat, intid);
                gic.deactivate(acknowledged);
            }
        }
    }
    seat.each_vm(|vm, here, core| {
        if vm.waits_for_events() {
            vm.poll(here, core);
        }
    });
}

/// Another core has something for a vCPU here, or for this core.
#[inline]
fn nudged(seat: &mut Seat) {
    if let Some(index) = seat.loaded() {
        seat.vcpu.vm.interrupt(index, &mut seat.core, |_, _| VcpuSet::EMPTY);
    }
    if seat.must_look() {
        seat.core.look = true;
    }
    if INPUT_WANTED.load(Ordering::Relaxed) && INPUT_WANTED.swap(false, Ordering::Acquire) {
        feed_console(seat);
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
            let mut useful = false;
            seat.each_vm(|vm, _, _| useful |= vm.waits_for_events());
            useful
        }
        Some(Source::Console) => feed_console(seat),
        None => return,
    };
    let Some(doorbell) = seat.doorbells.get_mut(at) else { return };
    doorbell.vain = if useful { 0 } else { doorbell.vain.saturating_add(1) };
    if doorbell.vain == PATIENCE {
        seat.gic.disable(intid);
        log::warn!("interrupt {intid} is stuck: it is disabled, its device polled less often");
    }
}

/// A guest here has room for input again: the core that has the console is to pass it on.
#[cold]
pub(super) fn want_input(seat: &mut Seat) {
    seat.core.input_wanted = false;
    let Some(core) = CONSOLE_CORE.load(Ordering::Relaxed).checked_sub(1) else { return };
    if usize::from(core) == this_core() {
        feed_console(seat);
    } else {
        INPUT_WANTED.store(true, Ordering::Release);
        seat.core.nudge(core);
    }
}

/// Passes the board's console input to the guest, as much as it has room for. With none left, the
/// board's interrupt is off until the guest has read: input is never lost here, it waits. `false` if
/// there was none.
fn feed_console(seat: &mut Seat) -> bool {
    console::with(|uart| uart.acknowledge_interrupt());
    let Some(vm) = seat.reader else { return false };
    let here = seat.here(vm);
    let mut any = false;
    for _ in 0..INPUT_BATCH {
        if !vm.wants_input() {
            console::with(|uart| uart.set_receive_interrupt(false));
            return true;
        }
        let Some(byte) = console::with(Serial::read_byte).flatten() else { break };
        vm.receive(byte, here, &mut seat.core);
        any = true;
    }
    console::with(|uart| uart.set_receive_interrupt(true));
    any
}
