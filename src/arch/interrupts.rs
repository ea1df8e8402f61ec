//! Physical interrupts. EL2 drives its devices by polling; an interrupt only says when to look.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::core::{NEVER, NUDGE};
use super::gic::PhysicalGic;
use super::guest::Seat;
use super::mmio::Mmio;
use super::smp::this_core;
use super::{console, gic, operator, timer, wake};
use crate::backend::switch::Switch;
use crate::backend::wake::Collect;
use crate::console::Input;
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
#[derive(Clone, Copy)]
pub struct Doorbell {
    /// Its INTID.
    pub intid: u32,
    /// Whether the line is edge-triggered.
    pub edge: bool,
    /// Whose it is.
    pub source: Source,
    /// What machines on several cores have of it, to be collected when it rings.
    shared: Option<&'static dyn Collect>,
    /// Times in a row that it rang for nothing.
    vain: u16,
}

/// A doorbell that rings this often for nothing, one ring after the other, is stuck: a dying device
/// holds its line. It is silenced, lest the guest do nothing but exit; the timer still polls.
const PATIENCE: u16 = 1000;

impl Doorbell {
    /// The doorbell of `source` at interrupt `intid`.
    pub const fn new(intid: u32, edge: bool, source: Source) -> Self {
        Self { intid, edge, source, shared: None, vain: 0 }
    }

    /// The same, of something that machines on several cores have.
    #[must_use]
    pub const fn shared(self, shared: &'static dyn Collect) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// Lets it ring on this core. What its source has asserted before is acknowledged: on an
    /// edge-triggered line it would never be heard, nor anything after it.
    pub fn connect(&self, gic: &gic::PhysicalGic) {
        gic.enable(self.intid, self.edge);
        match self.source {
            Source::VirtioMmio(registers) | Source::Network { registers, .. } => {
                registers.write32_relaxed(INTERRUPT_ACK, ALL_CAUSES);
            }
            Source::Console => console::set_receive_interrupt(true),
        }
    }
}

/// What rings a doorbell.
#[derive(Clone, Copy)]
pub enum Source {
    /// The console has input.
    Console,
    /// A virtio-mmio device has finished something.
    VirtioMmio(Mmio),
    /// The board's virtio-mmio network card has received something, or sent it, or has lost its link.
    Network {
        /// Its registers.
        registers: Mmio,
        /// What to set when its configuration has changed.
        reconfigured: &'static AtomicBool,
        /// Whoever takes from it what it has.
        switch: &'static Switch<'static>,
    },
}

/// InterruptStatus and InterruptACK (virtio 1.3, 4.2.2).
const INTERRUPT_STATUS: usize = 0x60;
const INTERRUPT_ACK: usize = 0x64;
/// Configuration changes.
const CONFIGURATION: u32 = 0b10;
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
    // What has come before did not ring.
    collect_all(seat);
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
            timer @ (VIRTUAL_TIMER_INTID | PHYSICAL_TIMER_INTID) => {
                // Two numbers that the compiler knows for those of PPIs.
                let is_virtual = timer == VIRTUAL_TIMER_INTID;
                let intid = if is_virtual { VIRTUAL_TIMER_INTID } else { PHYSICAL_TIMER_INTID };
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
                collect_all(seat);
                seat.each_vm(|vm, here, core| vm.on_timer(here, core));
                if seat.core.console_look != NEVER {
                    look_at_console(seat);
                }
                seat.core.look |= seat.must_look();
            }
            intid => {
                seat.vcpu.exits.doorbells += 1;
                answer(seat, intid);
                gic.deactivate(acknowledged);
            }
        }
    }
    seat.poll();
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
    if operator::are_exits_wanted() {
        seat.publish_exits();
        operator::exits_are_published();
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
    let Some(doorbell) = seat.doorbells.get(at).copied() else { return };
    let useful = match doorbell.source {
        Source::VirtioMmio(registers) => {
            // Somebody else may have collected already what it rings for, however often. Then an edge is
            // over, and a level line that is all right drops with the acknowledgement.
            let causes = registers.read32_relaxed(INTERRUPT_STATUS);
            let rings = doorbell.edge || causes != 0;
            registers.write32_relaxed(INTERRUPT_ACK, ALL_CAUSES);
            if causes & CONFIGURATION != 0 {
                seat.each_vm(|vm, here, core| vm.backend_changed(here, core));
            }
            let mut useful = match doorbell.shared {
                Some(shared) => shared.collect(seat.core.now(), this_core() as u8),
                None => false,
            };
            // Most of the time it is for the machine that runs.
            useful |= seat.loaded().is_some() && seat.vcpu.vm.waits_for_events();
            if !useful {
                seat.each_vm(|vm, _, _| useful |= vm.waits_for_events());
            }
            useful || rings && (doorbell.edge || registers.read32_relaxed(INTERRUPT_STATUS) == 0)
        }
        Source::Network { registers, reconfigured, switch } => {
            let causes = registers.read32_relaxed(INTERRUPT_STATUS);
            // Also what has come since: an edge-triggered line that stays up never rings again.
            registers.write32_relaxed(INTERRUPT_ACK, ALL_CAUSES);
            // A card that is all right does not raise its line again before it is polled: one that keeps what
            // was acknowledged is dying.
            let drops = doorbell.edge || registers.read32_relaxed(INTERRUPT_STATUS) & causes == 0;
            if causes & CONFIGURATION != 0 {
                reconfigured.store(true, Ordering::Release);
            }
            collect(seat, switch);
            causes != 0 && drops
        }
        Source::Console => feed_console(seat),
    };
    let Some(doorbell) = seat.doorbells.get_mut(at) else { return };
    doorbell.vain = if useful { 0 } else { doorbell.vain.saturating_add(1) };
    if doorbell.vain == PATIENCE {
        seat.gic.disable(intid);
        log::warn!("interrupt {intid} is stuck: it is disabled, its device polled less often");
    }
}

/// Takes from the card what it has, for whatever machines, before those here are polled.
fn collect(seat: &mut Seat, switch: &Switch<'_>) {
    let now = seat.core.now();
    if wake::before_poll(|| switch.poll_uplink(now)) {
        // The guest runs in between.
        seat.core.wake_at(now);
    }
}

/// Takes from the card what it has, if it interrupts this core.
fn collect_all(seat: &mut Seat) {
    for at in 0..seat.doorbells.len() {
        if let Some(Source::Network { switch, .. }) =
            seat.doorbells.get(at).map(|doorbell| doorbell.source)
        {
            collect(seat, switch);
        }
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

/// Passes the board's console input on, as much as there is room for. What its guest has no room for is
/// held for a while, and the board's interrupt is off meanwhile: input waits here, and is only lost
/// if its guest does not read at all. `false` if there was none.
fn feed_console(seat: &mut Seat) -> bool {
    console::acknowledge_interrupt();
    let mut any = false;
    for _ in 0..INPUT_BATCH {
        let Some(input) = console::next_input() else { break };
        any = true;
        match input {
            Input::Nothing => {}
            Input::Guest { guest, byte } => {
                if !deliver(seat, guest, byte) && console::hold(guest, byte) {
                    console::set_receive_interrupt(false);
                    seat.core.look_at_console_soon();
                    return true;
                }
            }
            Input::Command(line) => {
                seat.publish_exits();
                operator::carry_out(&line, &mut seat.core);
            }
        }
    }
    console::set_receive_interrupt(true);
    if any {
        // The view may have changed.
        seat.core.look_at_console(seat.core.now());
    }
    any
}

/// Gives a byte to a machine. `false` if it has no room; one that is down misses nothing.
fn deliver(seat: &mut Seat, guest: usize, byte: u8) -> bool {
    if let Some(vm) = operator::machine(guest)
        && !vm.life.state().is_down()
        && !vm.receive(byte, seat.here(vm), &mut seat.core)
    {
        return false;
    }
    console::delivered();
    true
}

/// EL2's timer has fired: does what the console waits for.
#[cold]
fn look_at_console(seat: &mut Seat) {
    let now = seat.core.now();
    if seat.core.console_look > now {
        let again = seat.core.console_look;
        return seat.core.look_at_console(again);
    }
    seat.core.console_look = NEVER;
    if console::is_held() && CONSOLE_CORE.load(Ordering::Relaxed) == this_core() as u8 + 1 {
        feed_console(seat);
    }
    if let Some(time) = console::tick(now) {
        seat.core.look_at_console(time);
    }
}
