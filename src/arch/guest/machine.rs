//! The machines whose home a core is: what they are started from, and who starts and ends them.

use super::super::core::{Core, NEVER};
use super::super::{cache, pmu, timer};
use crate::backend::clock::{Clock, Ticks};
use crate::backend::overlay::Revert;
use crate::memory::SharedSlice;
use crate::vm::lifecycle::{Manager, Starter, State, Step};
use crate::vm::loader::{self, LoadError, Modules, Placement};
use crate::vm::machine::MAX_DEVICES;
use crate::vm::{Host, Vm};

/// What a machine is started from, each time anew, and what becomes of its core when it has ended.
pub struct Plan {
    /// Kernel, ramdisk, command line.
    pub modules: Modules<'static>,
    /// Where the device tree is made.
    pub scratch: &'static mut [u8],
    /// Its disks that are to forget what was written when it is started.
    pub reverts: heapless::Vec<&'static Revert, MAX_DEVICES>,
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

    fn copy(&mut self, vm: &Vm<'_>, done: usize) -> Result<usize, LoadError> {
        let (modules, room) = (&self.modules, self.scratch.len());
        loader::copy(modules, &vm.memory, room, done, cache::clean_invalidate)
    }

    fn load(&mut self, vm: &Vm<'_>) -> Result<Placement, LoadError> {
        // Its devices were reset, and none has anything in flight.
        self.reverts.iter().for_each(|revert| revert.ask());
        let bootargs = self.modules.bootargs;
        let placement = loader::finish(
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
    pub(super) next: Ticks,
}

impl Machine {
    pub(super) fn wants(&self, now: Ticks) -> bool {
        self.vm.life.is_asked() || self.manager.is_active() || now >= self.next
    }

    /// Does a little of what is to be done; whether there is more to do at once.
    pub(super) fn step(&mut self, core: &mut Core) -> bool {
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
