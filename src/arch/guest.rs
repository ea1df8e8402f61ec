//! What a core runs: its vCPUs by turns, and the lives of the machines whose home it is.
//!
//! The vectors come back to a [`Seat`], one a core. The vCPU that runs sits in it, its EL1 state in
//! the core's registers; that of the others waits in their [`Resident`]. A core with one vCPU never
//! changes it, and its guest's WFI is the core's own. Whatever is more than an exit served and
//! resumed comes to `Seat::look`.

use core::arch::asm;
use core::time::Duration;

use super::context::El1Context;
use super::core::{Core, NEVER};
use super::gic::{CoreAddress, PhysicalGic, VirtualInterface};
use super::interrupts::{self, Doorbell, MAX_DOORBELLS};
use super::smp::MAX_CORES;
use super::{barrier, cache, context, el1, fault, operator, pmu, stage2, timer};
use crate::backend::clock::{Clock, Ticks};
use crate::cpu::{GuestRegisters, Pstate, Register};
use crate::gic::VcpuIndex;
use crate::memory::SharedSlice;
use crate::vm::exit::Next;
use crate::vm::lifecycle::{Manager, Request, Starter, State, Step};
use crate::vm::loader::{self, LoadError, Modules, Placement};
use crate::vm::run_queue::{MAX_ENTITIES, RunQueue, Weight};
use crate::vm::{ExitCounts, Host, Vcpu, Vm};

/// Machines that can have their home on one core.
pub const MAX_MACHINES: usize = 8;

/// How long a vCPU runs while others are ready.
const SLICE: Duration = Duration::from_millis(5);
/// How long machines are started and ended in one go while vCPUs are ready.
const MANAGE: Duration = Duration::from_millis(2);

/// MPIDR_EL1 bit 31, RES1. The affinity is 0.0.0.n.
const MPIDR_RES1: u64 = 1 << 31;

/// A vCPU on its core: what of it is not in registers while another runs.
pub struct Resident {
    vcpu: Vcpu<'static>,
    context: El1Context,
    interface: VirtualInterface,
    stage2: stage2::Registers,
    /// The start of its machine that it was turned on in; 0 if it is off. One of an earlier start is
    /// as good as off.
    on_since: u32,
    /// It waits for an interrupt.
    waits: bool,
    /// When its timers end its wait.
    wake: Ticks,
    /// No other vCPU of its machine has been on the core since it was, nor has it been turned on anew.
    ran_last: bool,
}

impl Resident {
    /// The vCPU `index` of `vm`, off.
    pub fn new(vm: &'static Vm<'static>, index: VcpuIndex, stage2: stage2::Registers) -> Self {
        Self {
            vcpu: Vcpu::new(index, vm, ExitCounts::NONE),
            context: El1Context::reset(0, Ticks(0)),
            interface: VirtualInterface::RESET,
            stage2,
            on_since: 0,
            waits: false,
            wake: NEVER,
            ran_last: false,
        }
    }

    fn is_on(&self) -> bool {
        self.on_since != 0 && self.on_since == self.vcpu.vm.life.starts()
    }

    /// It waits no longer.
    fn ready(&mut self) {
        self.waits = false;
        self.wake = NEVER;
    }

    /// Turned on: entered at EL1 with SP_EL1, interrupts masked, MMU and caches off.
    fn reset(&mut self, entry: u64, context: u64) {
        let life = &self.vcpu.vm.life;
        self.on_since = life.starts();
        self.ready();
        // What the TLBs keep of an earlier start would be taken for this one's.
        self.ran_last = false;
        let mpidr = MPIDR_RES1 | self.vcpu.index.get() as u64;
        self.context = El1Context::reset(mpidr, life.epoch());
        self.interface = VirtualInterface::RESET;
        let registers = &mut self.vcpu.registers;
        *registers = GuestRegisters::new();
        registers.set(Register::from_bits(0), context);
        registers.pc = entry;
        registers.pstate = Pstate::new(Pstate::EL1H | Pstate::DAIF);
    }
}

/// What a machine is started from, each time anew, and what becomes of its core when it has ended.
pub struct Plan {
    /// Kernel, ramdisk, command line.
    pub modules: Modules<'static>,
    /// Where the device tree is made.
    pub scratch: &'static mut [u8],
    /// Called when the machine is down for good, its devices quiet.
    pub on_end: fn(),
}

impl Starter<Core> for Plan {
    fn plan(&mut self, vm: &Vm<'_>) -> Result<(), LoadError> {
        loader::plan(&self.modules, &vm.memory, self.scratch.len()).map(|_| ())
    }

    fn scrub(&mut self, memory: SharedSlice<'_>) {
        cache::scrub(memory);
    }

    fn load(&mut self, vm: &Vm<'_>) -> Result<Placement, LoadError> {
        let bootargs = self.modules.bootargs;
        let placement = loader::load(
            &self.modules,
            &vm.memory,
            self.scratch,
            |placement, scratch| vm.describe(placement, bootargs, scratch),
            cache::clean_invalidate,
        )?;
        cache::instructions_written();
        // Before the guest's counter starts, so that nothing of this start is missing from a sum.
        log::info!("{}: start at tick {}", vm.name, timer::Counter.now().0);
        Ok(placement)
    }

    fn ended(&mut self, vm: &Vm<'_>, _: &mut Core) {
        if vm.life.state() == State::Off {
            let (below, at_el2) = (pmu::below_el2(), pmu::at_el2());
            log::info!(
                "{}: off at tick {}; exits: {}",
                vm.name,
                timer::Counter.now().0,
                vm.exits()
            );
            // Without -icount, QEMU's PMU counts nothing.
            if below != 0 {
                log::info!("{}: instructions: guest={below} el2={at_el2} (modulo 2^32)", vm.name);
            }
        }
        (self.on_end)();
    }
}

/// A machine whose home this core is.
pub struct Machine {
    vm: &'static Vm<'static>,
    manager: Manager,
    plan: Plan,
    /// When its manager wants to be called.
    next: Ticks,
}

impl Machine {
    fn wants(&self, now: Ticks) -> bool {
        self.vm.life.is_asked() || self.manager.is_active() || now >= self.next
    }

    /// Does a little of what is to be done; whether there is more to do at once.
    fn step(&mut self, core: &mut Core) -> bool {
        if !self.wants(core.now()) {
            return false;
        }
        self.next = NEVER;
        match self.manager.step(self.vm, core, &mut self.plan) {
            Step::Settled => {}
            Step::Again => return true,
            Step::At(time) => self.next = time,
        }
        false
    }

    /// `vm`, to be started from `plan` when somebody asks.
    pub fn new(vm: &'static Vm<'static>, manager: Manager, plan: Plan) -> Self {
        Self { vm, manager, plan, next: NEVER }
    }
}

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
                if vm.has_pending_here(index, &mut self.core) {
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
                    vm.ask(Request::Crash, &mut self.core);
                }
            }
            Next::Reset => {
                log::info!("{}: reset", vm.name);
                vm.ask(Request::Reset, &mut self.core);
                self.retire();
            }
            Next::PowerOff => {
                self.intercepted(next);
                vm.ask(Request::Stop, &mut self.core);
                self.retire();
            }
            Next::Stop(reason) => {
                log::error!("{}: stopped: {reason}", vm.name);
                self.dump();
                self.intercepted(next);
                vm.ask(Request::Crash, &mut self.core);
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

    /// Takes the current vCPU off the core, to wait for an interrupt.
    fn park(&mut self) {
        let Some(n) = self.current else { return };
        self.unload();
        self.queue.sleep(n);
        if let Some(resident) = self.residents.get_mut(n) {
            resident.waits = true;
            resident.wake = resident.context.timer_deadline().unwrap_or(NEVER);
        }
    }

    /// Takes the current vCPU off the core: it does not go on unless it is turned on anew.
    fn retire(&mut self) {
        let Some(n) = self.current else { return };
        self.unload();
        self.queue.sleep(n);
        if let Some(resident) = self.residents.get_mut(n) {
            resident.on_since = 0;
            resident.ready();
        }
    }

    /// Finds out who is to run, and has it on the core when it returns; until there is somebody, the
    /// core sleeps.
    #[inline(never)]
    pub(super) fn look(&'static mut self) -> &'static mut Self {
        loop {
            self.core.look = false;
            if self.core.input_wanted {
                interrupts::want_input(self);
            }
            let busy = self.tend();
            let woken = self.wake();
            let now = self.core.now();
            self.charge(now);
            if let Some(n) = self.current
                && (self.queue.is_ready(n) && !woken && now < self.slice_end)
            {
                self.set_alarms(busy);
                return self;
            }
            let next = self.queue.pick(self.last);
            if next != self.current {
                self.unload();
                if let Some(n) = next
                    && !self.load(n)
                {
                    continue;
                }
            }
            if next.is_some() {
                let slice = self.core.frequency().ticks(SLICE);
                self.slice_end = self.core.now().after(slice);
                self.set_alarms(busy);
                return self;
            }
            if !busy {
                self.set_alarms(false);
                self.sleep();
            }
            // Interrupts are masked at EL2. Those of machines whose vCPUs all wait are not to wait for
            // another one to be started.
            interrupts::serve(self);
        }
    }

    /// Waits for an interrupt.
    fn sleep(&mut self) {
        if !self.core.look {
            // One that is pending ends the wait although it is masked.
            barrier::wait_for_interrupt();
        }
    }

    /// Has EL2's timer come at the first of what this core waits for.
    fn set_alarms(&mut self, busy: bool) {
        if let Some(n) = self.current
            && (busy || self.queue.has_others(n))
        {
            self.core.wake_at(self.slice_end);
        }
        // Of a machine that stands still no timer wakes anybody.
        let waiting = self.residents.iter().filter(|resident| resident.vcpu.vm.life.may_run());
        let waiting = waiting.map(|resident| resident.wake);
        let machines = self.machines.iter().map(|machine| machine.next);
        let first = waiting.chain(machines).min().unwrap_or(NEVER);
        if first != NEVER {
            self.core.wake_at(first);
        }
    }

    fn charge(&mut self, now: Ticks) {
        if let Some(n) = self.current {
            self.queue.charge(n, Ticks(now.0.saturating_sub(self.since.0)));
        }
        self.since = now;
    }

    /// Starts and ends machines as they ask for it; whether there is more to do at once.
    fn tend(&mut self) -> bool {
        let now = self.core.now();
        if !self.machines.iter().any(|machine| machine.wants(now)) {
            return false;
        }
        // Their memory and interrupt controllers change hands: nobody is on the core meanwhile.
        self.charge(now);
        self.unload();
        let end = now.after(self.core.frequency().ticks(MANAGE));
        let Self { machines, core, .. } = self;
        loop {
            let mut busy = false;
            for machine in machines.iter_mut() {
                busy |= machine.step(core);
            }
            if !busy || core.now() >= end {
                return busy;
            }
        }
    }

    /// Makes ready who has something to do, and puts to sleep whose machine stands still; whether
    /// anybody became ready.
    fn wake(&mut self) -> bool {
        let now = self.core.now();
        let mut woken = false;
        if let Some(n) = self.current
            && !self.vcpu.vm.life.may_run()
        {
            self.unload();
            self.queue.sleep(n);
        }
        for (n, resident) in self.residents.iter_mut().enumerate() {
            if self.current == Some(n) {
                continue;
            }
            let (vm, index) = (resident.vcpu.vm, resident.vcpu.index);
            if !vm.life.may_run() {
                self.queue.sleep(n);
                continue;
            }
            if let Some(start) = vm.vcpus.take_start(index) {
                resident.reset(start.entry.raw(), start.context);
                self.queue.sleep(n);
                self.queue.wake(n);
                woken = true;
            } else if !resident.is_on() {
                self.queue.sleep(n);
                resident.ready();
            } else if !self.queue.is_ready(n)
                && (!resident.waits || now >= resident.wake || vm.has_pending(index))
            {
                resident.ready();
                self.queue.wake(n);
                woken = true;
            }
        }
        woken
    }

    /// Puts a resident onto the core. `false` if its machine has just been told to stand still.
    fn load(&mut self, n: usize) -> bool {
        let Some(resident) = self.residents.get_mut(n) else { return false };
        let (vm, index) = (resident.vcpu.vm, resident.vcpu.index);
        vm.vcpus.enter(index);
        if !vm.life.may_run() {
            vm.vcpus.leave(index);
            self.core.nudge(vm.vcpus.home());
            return false;
        }
        core::mem::swap(&mut self.vcpu, &mut resident.vcpu);
        resident.stage2.activate();
        self.gic.restore_interface(&resident.interface);
        resident.context.restore();
        if !resident.ran_last {
            self.forget_others(n, vm);
        }
        vm.load_interrupts(index, &mut self.core);
        operator::runs(vm.number, index, n != self.last);
        self.current = Some(n);
        self.last = n;
        self.since = self.core.now();
        true
    }

    /// Another vCPU of the same machine may have been here: what the TLBs keep of it is tagged as if
    /// it were this one's.
    #[cold]
    fn forget_others(&mut self, n: usize, vm: &'static Vm<'static>) {
        context::forget_translations();
        for (other, resident) in self.residents.iter_mut().enumerate() {
            if other == n {
                resident.ran_last = true;
            } else if core::ptr::eq(resident.vcpu.vm, vm) {
                resident.ran_last = false;
            }
        }
    }

    /// Takes the current vCPU off the core, all its state in memory.
    fn unload(&mut self) {
        let Some(n) = self.current.take() else { return };
        let Some(resident) = self.residents.get_mut(n) else { return };
        let (vm, index) = (self.vcpu.vm, self.vcpu.index);
        vm.unload_interrupts(index, &mut self.core);
        resident.interface = self.gic.save_interface();
        resident.context.save();
        vm.publish_exits(index, &self.vcpu.exits);
        core::mem::swap(&mut self.vcpu, &mut resident.vcpu);
        vm.vcpus.leave(index);
        if !vm.life.may_run() {
            self.core.nudge(vm.vcpus.home());
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
