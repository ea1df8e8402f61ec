//! A guest on this core: started, run, ended.

use core::arch::asm;

use super::console::Console;
use super::core::Core;
use super::gic::{PhysicalGic, VirtualInterface};
use super::interrupts::{Doorbell, MAX_DOORBELLS, PHYSICAL_TIMER_INTID, VIRTUAL_TIMER_INTID};
use super::{barrier, cache, el1, fault, firmware, pmu, stage2, timer};
use crate::backend::clock::Clock;
use crate::cpu::{GuestRegisters, Pstate, Register};
use crate::vm::exit::Next;
use crate::vm::loader::{self, LoadError, Modules};
use crate::vm::{Host, Vcpu};

/// MPIDR_EL1 of vCPU 0: bit 31 is RES1, affinity 0.0.0.0.
const MPIDR: u64 = 1 << 31;

/// What a guest is started from, each time anew.
pub struct Plan {
    /// Kernel, ramdisk, command line.
    pub modules: Modules<'static>,
    /// Where the device tree is made.
    pub scratch: &'static mut [u8],
    /// Its stage 2.
    pub stage2: stage2::Registers,
    /// The board's interrupt controller.
    pub gic: PhysicalGic,
    /// What this core does once the guest has ended for good, its devices quiet:
    /// [`Next::PowerOff`] or [`Next::Stop`] says how. The core is at EL2, on its own stack.
    pub on_end: fn(Next) -> !,
}

/// Turns the board off, however the guest ended: for a board with one guest.
pub fn power_off(_: Next) -> ! {
    firmware::power_off();
    firmware::park()
}

/// A vCPU and the core it has to itself. The vectors know it by the address of its first field.
#[repr(C)]
pub struct Seat {
    /// The vCPU; its registers come first.
    pub vcpu: Vcpu<'static>,
    /// The core.
    pub core: Core,
    /// Interrupts that say: poll.
    pub doorbells: heapless::Vec<Doorbell, MAX_DOORBELLS>,
    /// What it is started from.
    pub plan: Plan,
}

const _: () = assert!(
    core::mem::offset_of!(Seat, vcpu) == 0 && core::mem::offset_of!(Vcpu<'static>, registers) == 0
);

impl Seat {
    /// Starts the guest, and never comes back: from here on this core runs it, or its exits.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn start(&'static mut self) -> Result<core::convert::Infallible, LoadError> {
        el1::set_traps();
        self.load()?;
        pmu::start();
        unsafe extern "C" {
            fn enter_guest(registers: *mut GuestRegisters) -> !;
        }
        let registers = (&raw mut *self).cast::<GuestRegisters>();
        // SAFETY: TPIDR_EL2 is EL2's own. The vectors find the seat by it for ever: it is 'static,
        // and given up here. Its first field is the registers (asserted above).
        unsafe { asm!("msr tpidr_el2, {}", in(reg) registers, options(nostack, preserves_flags)) };
        // SAFETY: the registers are those of a loaded guest; nothing on this stack is needed again.
        unsafe { enter_guest(registers) }
    }

    /// Zeroes the guest's RAM, loads it, and puts the vCPU into its reset state: entered at the
    /// kernel, at EL1 with SP_EL1, interrupts masked, x0 = device tree (the arm64 boot protocol).
    fn load(&mut self) -> Result<(), LoadError> {
        let vm = self.vcpu.vm;
        let plan = &mut self.plan;
        loader::plan(&plan.modules, &vm.memory, plan.scratch.len())?;
        for (_, memory) in vm.memory.regions() {
            cache::scrub(*memory);
        }
        let bootargs = plan.modules.bootargs;
        let placement = loader::load(
            &plan.modules,
            &vm.memory,
            plan.scratch,
            |placement, scratch| vm.describe(placement, bootargs, scratch),
            cache::clean_invalidate,
        )?;
        cache::instructions_written();
        plan.stage2.install();
        // Before the guest's counter starts, so that nothing of this start is missing from a sum.
        log::info!("{}: start at tick {}", vm.name, timer::Counter.now().0);
        el1::reset(MPIDR);
        // Now that the timers are off: one still asserted would be active again at once.
        for intid in [VIRTUAL_TIMER_INTID, PHYSICAL_TIMER_INTID] {
            plan.gic.clear_active(intid);
        }
        plan.gic.restore_interface(&VirtualInterface::RESET);
        self.vcpu.registers = GuestRegisters::new();
        self.vcpu.registers.set(Register::from_bits(0), placement.fdt.raw());
        self.vcpu.registers.pc = placement.kernel.raw();
        self.vcpu.registers.pstate = Pstate::new(Pstate::EL1H | Pstate::DAIF);
        Ok(())
    }

    /// The guest does not simply go on.
    #[cold]
    pub(super) fn leave(&'static mut self, next: Next) -> &'static mut Self {
        match next {
            Next::Resume => self,
            Next::Reset => self.restart(),
            Next::PowerOff => {
                let name = self.vcpu.vm.name;
                let (below, at_el2) = (pmu::below_el2(), pmu::at_el2());
                log::info!(
                    "{name}: off at tick {}; exits: {}",
                    timer::Counter.now().0,
                    self.vcpu.exits
                );
                // Without -icount, QEMU's PMU counts nothing.
                if below != 0 {
                    log::info!("{name}: instructions: guest={below} el2={at_el2} (modulo 2^32)");
                }
                self.quiesce();
                (self.plan.on_end)(next)
            }
            Next::Stop(reason) => {
                log::error!("{}: stopped: {reason}", self.vcpu.vm.name);
                self.dump();
                self.quiesce();
                (self.plan.on_end)(next)
            }
        }
    }

    /// Waits, at most for the disks' time-out, until no device touches the guest's memory.
    fn quiesce(&mut self) {
        let (vm, index) = (self.vcpu.vm, self.vcpu.index);
        while !vm.reset(index, &mut self.core) {
            vm.poll(index, &mut self.core);
            barrier::relax();
        }
    }

    fn restart(&'static mut self) -> &'static mut Self {
        log::info!("{}: reset", self.vcpu.vm.name);
        self.quiesce();
        if let Err(error) = self.load() {
            log::error!("{}: cannot be started again: {error}", self.vcpu.vm.name);
            (self.plan.on_end)(Next::Stop("it cannot be started again"))
        }
        self
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
        fault::write_registers(&mut Console, &|n| registers.get(Register::from_bits(n as u32)));
    }
}
