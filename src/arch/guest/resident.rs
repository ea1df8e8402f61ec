//! A vCPU on its core: what of it is not in registers while another runs.

use super::super::context::El1Context;
use super::super::core::NEVER;
use super::super::gic::{PhysicalGic, VirtualInterface};
use super::super::stage2;
use crate::backend::clock::Ticks;
use crate::cpu::{GuestRegisters, Pstate, Register};
use crate::gic::VcpuIndex;
use crate::vm::{ExitCounts, Vcpu, Vm};

/// MPIDR_EL1 bit 31, RES1. The affinity is 0.0.0.n.
const MPIDR_RES1: u64 = 1 << 31;

/// A vCPU on its core: what of it is not in registers while another runs.
pub struct Resident {
    pub(super) vcpu: Vcpu<'static>,
    pub(super) context: El1Context,
    pub(super) interface: VirtualInterface,
    pub(super) stage2: stage2::Registers,
    /// The start of its machine that it was turned on in; 0 if it is off. One of an earlier start is
    /// as good as off.
    pub(super) on_since: u32,
    /// It waits for an interrupt.
    pub(super) waits: bool,
    /// When its timers end its wait.
    pub(super) wake: Ticks,
    /// No other vCPU of its machine has been on the core since it was, nor has it been turned on anew.
    pub(super) ran_last: bool,
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

    pub(super) fn is_on(&self) -> bool {
        self.on_since != 0 && self.on_since == self.vcpu.vm.life.starts()
    }

    /// It waits no longer.
    pub(super) fn ready(&mut self) {
        self.waits = false;
        self.wake = NEVER;
    }

    /// Its machine may have stood still since it was on the core, and its counter with it.
    pub(super) fn keep_time(&mut self) {
        self.context.set_behind(self.vcpu.vm.life.behind());
    }

    /// Whether there is something for it to do, of a vCPU that is on but is not ready to run.
    pub(super) fn has_waited(&mut self, now: Ticks, gic: &PhysicalGic) -> bool {
        if !self.waits {
            return true;
        }
        let wait = self.vcpu.vm.wait_of(self.vcpu.index, gic.threshold(&self.interface));
        self.wake = self.context.timer_deadline(wait.spent).unwrap_or(NEVER);
        wait.over || now >= self.wake
    }

    /// Turned on: entered at EL1 with SP_EL1, interrupts masked, MMU and caches off.
    pub(super) fn reset(&mut self, entry: u64, context: u64) {
        let life = &self.vcpu.vm.life;
        self.on_since = life.starts();
        self.ready();
        // What the TLBs keep of an earlier start would be taken for this one's.
        self.ran_last = false;
        let mpidr = MPIDR_RES1 | self.vcpu.index.get() as u64;
        self.context = El1Context::reset(mpidr, life.behind());
        self.interface = VirtualInterface::RESET;
        let registers = &mut self.vcpu.registers;
        *registers = GuestRegisters::new();
        registers.set(Register::from_bits(0), context);
        registers.pc = entry;
        registers.pstate = Pstate::new(Pstate::EL1H | Pstate::DAIF);
    }
}
