//! What a core runs: its vCPUs by turns, and the lives of the machines whose home it is.
//!
//! The vectors come back to a [`Seat`], one a core. The vCPU that runs sits in it, its EL1 state in
//! the core's registers; that of the others waits in their [`Resident`]. A core with one vCPU never
//! changes it, and its guest's WFI is the core's own. Whatever is more than an exit served and
//! resumed comes to `Seat::look`.

mod machine;
mod resident;
mod turns;

use core::arch::asm;

pub use machine::{Machine, Plan};
pub use resident::Resident;

use super::core::{Core, NEVER};
use super::gic::{CoreAddress, PhysicalGic};
use super::interrupts::{self, Doorbell, MAX_DOORBELLS};
use super::smp::MAX_CORES;
use super::{el1, fault, pmu};
use crate::backend::clock::Ticks;
use crate::cpu::{GuestRegisters, Register};
use crate::gic::VcpuIndex;
use crate::vm::exit::Next;
use crate::vm::lifecycle::Event;
use crate::vm::run_queue::{MAX_ENTITIES, RunQueue, Weight};
use crate::vm::{ExitCounts, Host, Vcpu, Vm};

/// Machines that can have their home on one core.
pub const MAX_MACHINES: usize = 8;

/// One core at work. The vectors know it by the address of its first field.
#[repr(C)]
pub struct Seat {
    /// The vCPU that runs; its registers come first. Nobody's while none is on the core.
    pub vcpu: Vcpu<'static>,
    /// The core.
    pub core: Core,
    /// Interrupts that say: poll.
    pub doorbells: heapless::Vec<Doorbell, MAX_DOORBELLS>,
    /// The board's interrupt controller.
    pub gic: PhysicalGic,
    residents: heapless::Vec<&'static mut Resident, MAX_ENTITIES>,
    queue: RunQueue,
    /// Which of the residents is in the core's registers.
    current: Option<usize>,
    /// Which of them ran last.
    last: usize,
    /// Since when the current one's time is not charged.
    since: Ticks,
    /// When the current one's slice is over.
    slice_end: Ticks,
    machines: heapless::Vec<&'static mut Machine, MAX_MACHINES>,
    /// The core's interrupts are enabled.
    connected: bool,
    /// Called when a guest turns its machine off or it cannot go on, before anything is done about
    /// it: for tests, which leave the core by it.
    pub intercept: Option<fn(Next) -> !>,
}

const _: () = assert!(
    core::mem::offset_of!(Seat, vcpu) == 0 && core::mem::offset_of!(Vcpu<'static>, registers) == 0
);

impl Seat {
    /// The seat of the core whose `gic` it is. `vm` is any machine: until a vCPU is
    /// [added](Self::add), nothing runs.
    pub fn new(vm: &'static Vm<'static>, gic: PhysicalGic) -> Self {
        Self {
            vcpu: Vcpu::new(VcpuIndex::BOOT, vm, ExitCounts::NONE),
            core: Core::new(gic),
            doorbells: heapless::Vec::new(),
            gic,
            residents: heapless::Vec::new(),
            queue: RunQueue::new(),
            current: None,
            last: 0,
            since: Ticks(0),
            slice_end: NEVER,
            machines: heapless::Vec::new(),
            connected: false,
            intercept: None,
        }
    }

    /// Gives the core another vCPU. `false` if it has as many as it can have.
    pub fn add(&mut self, resident: &'static mut Resident, weight: Weight) -> bool {
        self.queue.add(weight).is_some() && self.residents.push(resident).is_ok()
    }

    /// Gives the core a machine to manage. `false` if it has as many as it can have.
    pub fn manage(&mut self, machine: &'static mut Machine) -> bool {
        self.machines.push(machine).is_ok()
    }

    /// Tells the core how others are addressed, by their numbers.
    pub fn connect(&mut self, addresses: [Option<CoreAddress>; MAX_CORES]) {
        self.core.addresses = addresses;
    }

    /// Lets the core be interrupted by what it serves, once; on the core itself.
    pub fn enable_interrupts(&mut self) {
        if !core::mem::replace(&mut self.connected, true) {
            interrupts::enable(self);
        }
    }

    /// Begins to run what there is to run, on the core it is for, and never comes back.
    pub fn run(&'static mut self) -> ! {
        self.core.shared = self.queue.is_shared();
        el1::set_traps(self.core.shared);
        self.enable_interrupts();
        pmu::start();
        self.unload();
        unsafe extern "C" {
            fn enter_guest(registers: *mut GuestRegisters) -> !;
        }
        let registers = (&raw mut *self).cast::<GuestRegisters>();
        // SAFETY: TPIDR_EL2 is EL2's own. The vectors find the seat by it for ever: it is 'static,
        // and given up here. Its first field is the registers (asserted above).
        unsafe { asm!("msr tpidr_el2, {}", in(reg) registers, options(nostack, preserves_flags)) };
        let _ = self.look();
        // SAFETY: the registers are those of a vCPU on this core; nothing on this stack is needed
        // again.
        unsafe { enter_guest(registers) }
    }

    /// The vCPU of `vm` that is on this core now, if one is.
    pub(super) fn here(&self, vm: &Vm<'_>) -> Option<VcpuIndex> {
        let same = core::ptr::eq(core::ptr::from_ref(self.vcpu.vm).cast(), vm);
        (self.current.is_some() && same).then_some(self.vcpu.index)
    }

    /// The vCPU that is on this core now, if one is.
    pub(super) fn loaded(&self) -> Option<VcpuIndex> {
        self.current.map(|_| self.vcpu.index)
    }

    /// Publishes the exits of the vCPU that is on this core.
    pub(super) fn publish_exits(&self) {
        if self.current.is_some() {
            self.vcpu.vm.publish_exits(self.vcpu.index, &self.vcpu.exits);
        }
    }

    /// Calls `work` for each machine that has a vCPU here.
    #[inline(never)]
    pub(super) fn each_vm(
        &mut self,
        mut work: impl FnMut(&'static Vm<'static>, Option<VcpuIndex>, &mut Core),
    ) {
        let mut last: *const Vm<'static> = core::ptr::null();
        for n in 0..self.residents.len() {
            let Some(vm) = self.vm_of(n) else { return };
            if !core::ptr::eq(vm, last) {
                last = vm;
                work(vm, self.here(vm), &mut self.core);
            }
        }
    }

    /// Collects what physical devices have finished, for each machine that has a vCPU here.
    #[inline]
    pub(super) fn poll(&mut self) {
        let poll = |vm: &Vm<'_>, here, core: &mut Core| {
            if vm.waits_for_events() {
                vm.poll(here, core);
            }
        };
        if self.core.shared || self.current.is_none() {
            self.each_vm(poll);
        } else {
            poll(self.vcpu.vm, Some(self.vcpu.index), &mut self.core);
        }
    }

    #[inline(always)]
    fn vm_of(&self, n: usize) -> Option<&'static Vm<'static>> {
        // While a vCPU is in the seat, its resident has the seat's placeholder.
        if self.current == Some(n) {
            return Some(self.vcpu.vm);
        }
        self.residents.get(n).map(|resident| resident.vcpu.vm)
    }

    /// Somebody has nudged this core: whether there is more to do than to list interrupts.
    pub(super) fn must_look(&self) -> bool {
        self.queue.is_shared()
            || self.current.is_none()
            || !self.vcpu.vm.life.may_run()
            || self.machines.iter().any(|machine| machine.wants(self.core.now()))
    }

    /// The guest does not simply go on.
    #[cold]
    pub(super) fn leave(&'static mut self, next: Next) -> &'static mut Self {
        let vm = self.vcpu.vm;
        let index = self.vcpu.index;
        // What ends the machine is asked for while the vCPU is still on its core, and the machine thus
        // cannot end before: of several vCPUs that ask at once none asks the machine's next life.
        match next {
            Next::Resume => return self,
            Next::Wait => {
                let threshold = self.gic.threshold(&self.gic.save_interface());
                if vm.has_pending_here(index, threshold, &mut self.core) {
                    return self;
                }
                self.park();
            }
            Next::Off => {
                // Off in this order, since from the moment it is off another vCPU may turn it on.
                self.retire();
                if !vm.vcpus.turn_off(index) {
                    let reason = &"its last CPU turned itself off";
                    log::error!("{}: stopped: {reason}", vm.name);
                    self.intercepted(Next::Stop(reason));
                    vm.happen(Event::Crash, &mut self.core);
                }
            }
            Next::Reset => {
                log::info!("{}: reset", vm.name);
                vm.happen(Event::Reset, &mut self.core);
                self.retire();
            }
            Next::PowerOff => {
                self.intercepted(next);
                vm.happen(Event::Off, &mut self.core);
                self.retire();
            }
            Next::Stop(reason) => {
                log::error!("{}: stopped: {reason}", vm.name);
                self.dump();
                self.intercepted(next);
                vm.happen(Event::Crash, &mut self.core);
                self.retire();
            }
        }
        self.look()
    }

    fn intercepted(&self, next: Next) {
        if let Some(intercept) = self.intercept {
            intercept(next)
        }
    }

    /// The guest's registers, on the console.
    #[inline(never)]
    fn dump(&self) {
        let registers = &self.vcpu.registers;
        let state = registers.pstate.bits();
        log::error!(
            "  pc {:#018x}  pstate {state:#x}  esr {:#x}",
            registers.pc,
            self.core.syndrome()
        );
        super::console::log_line(|out| {
            fault::write_registers(out, &|n| registers.get(Register::from_bits(n as u32)));
        });
    }
}
