//! Whose turn it is: vCPUs are made ready, put on their core and taken off it.

use core::time::Duration;

use super::super::core::NEVER;
use super::super::{barrier, context, interrupts, operator};
use super::Seat;
use crate::backend::clock::Ticks;
use crate::vm::{Host, Vm};

/// How long a vCPU runs while others are ready.
const SLICE: Duration = Duration::from_millis(5);
/// How long machines are started and ended in one go while vCPUs are ready.
const MANAGE: Duration = Duration::from_millis(2);

impl Seat {
    /// Takes the current vCPU off the core, to wait for an interrupt.
    pub(super) fn park(&mut self) {
        let Some(n) = self.current else { return };
        self.unload();
        self.queue.sleep(n);
        if let Some(resident) = self.residents.get_mut(n) {
            resident.waits = true;
        }
    }

    /// Takes the current vCPU off the core: it does not go on unless it is turned on anew.
    pub(super) fn retire(&mut self) {
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
    pub(in crate::arch) fn look(&'static mut self) -> &'static mut Self {
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
            resident.keep_time();
            if let Some(start) = vm.vcpus.take_start(index) {
                resident.reset(start.entry.raw(), start.context);
                self.queue.sleep(n);
                self.queue.wake(n);
                woken = true;
            } else if !resident.is_on() {
                self.queue.sleep(n);
                resident.ready();
            } else if !self.queue.is_ready(n) && resident.has_waited(now, &self.gic) {
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
        resident.keep_time();
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
    pub(super) fn unload(&mut self) {
        // Also who waits or turns itself off pays for what it has run.
        self.charge(self.core.now());
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
}
