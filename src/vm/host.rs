//! What exit handling asks of the core a guest runs on, and of the board.

use super::vcpus::CoreNumber;
use crate::backend::clock::Ticks;
use crate::cpu::abort::{Injection, PstateFeatures};
use crate::cpu::sysreg::IdRegisters;
use crate::gic::ListRegisters;
use crate::memory::Ipa;
use crate::monitor::Operator;

/// What decides how the guest takes an exception.
#[derive(Clone, Copy, Debug)]
pub struct GuestVectors {
    /// VBAR_EL1.
    pub vector_base: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// What the core's PSTATE has.
    pub features: PstateFeatures,
}

/// The core that runs the vCPU whose exit is handled.
pub trait Host: IdRegisters {
    /// Its list registers.
    type ListRegisters: ListRegisters;

    /// Its list registers.
    fn list_registers(&mut self) -> &mut Self::ListRegisters;

    /// The present time.
    fn now(&self) -> Ticks;

    /// ESR_EL2 of the exit.
    fn syndrome(&self) -> u64;

    /// FAR_EL2 of the exit: the faulting virtual address.
    fn fault_address(&self) -> u64;

    /// HPFAR_EL2 of the exit: the page of the faulting intermediate physical address. UNKNOWN after
    /// a permission fault that is not on a table walk.
    fn fault_page(&self) -> u64;

    /// Where the guest's own tables put `address`, for a read by EL0 or EL1. `None` if they do not.
    fn translate(&self, address: u64, el0: bool) -> Option<Ipa>;

    /// The guest's SP_EL1, or its SP_EL0.
    fn stack_pointer(&self, el1: bool) -> u64;

    /// Sets SP_EL1 or SP_EL0.
    fn set_stack_pointer(&mut self, el1: bool, value: u64);

    /// What decides how the guest takes an exception.
    fn guest_vectors(&self) -> GuestVectors;

    /// Sets the EL1 registers that an exception leaves behind.
    fn set_exception(&mut self, injection: &Injection);

    /// Transmits a byte of the console of the machine with this number.
    fn transmit(&mut self, machine: usize, byte: u8);

    /// Calls `work` with the board's operator, whose commands a guest may be allowed to give.
    fn with_operator<T>(&mut self, work: impl FnOnce(&mut dyn Operator) -> T) -> T;

    /// The guest's console had no room for input, and has again.
    fn input_wanted(&mut self);

    /// Have the core of this number look at what its vCPUs are to do; it may be this one.
    fn nudge(&mut self, core: CoreNumber);

    /// Whether a vCPU that waits must give the core up, for others to run or the core to sleep.
    fn is_shared(&self) -> bool;

    /// Requests are in flight: see to it that [`Vm::on_timer`](super::Vm::on_timer) is called, and
    /// the VM polled, before long, even if no interrupt of a device asks for it.
    fn keep_polling(&mut self);

    /// See to it that [`Vm::on_timer`](super::Vm::on_timer) is called at `deadline` or soon after;
    /// at once if it is over. Of several deadlines the first counts: the others are asked for again
    /// then.
    fn wake_at(&mut self, deadline: Ticks);
}
