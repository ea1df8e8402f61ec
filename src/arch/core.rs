//! This core, as the portable exit handling sees it.

use core::arch::asm;
use core::time::Duration;

use aarch64_cpu::registers::{
    ELR_EL1, ESR_EL1, ESR_EL2, FAR_EL1, FAR_EL2, PAR_EL1, Readable, SCTLR_EL1, SP_EL0, SP_EL1,
    SPSR_EL1, VBAR_EL1, Writeable,
};

use super::gic::list_registers::CoreListRegisters;
use super::gic::{CoreAddress, PhysicalGic};
use super::operator::BoardOperator;
use super::registers::{HPFAR_EL2, ID_AA64MMFR1_EL1, ID_AA64PFR1_EL1};
use super::smp::{MAX_CORES, this_core};
use super::{barrier, console, id_registers, timer};
use crate::backend::clock::{Clock, Frequency, Ticks};
use crate::cpu::abort::{Injection, PstateFeatures};
use crate::cpu::sysreg::{IdRegisters, SystemRegister};
use crate::memory::Ipa;
use crate::monitor::Operator;
use crate::vm::host::{GuestVectors, Host};
use crate::vm::vcpus::CoreNumber;

/// How often requests in flight are looked after when no interrupt of a device asks for it. It
/// bounds how late a time-out is noticed; completions come with an interrupt.
const TICK: Duration = Duration::from_millis(100);

/// The SGI by which cores tell each other to look.
pub(super) const NUDGE: u32 = 0;

/// Later than any time that comes.
pub(super) const NEVER: Ticks = Ticks(u64::MAX);

/// One core at EL2.
#[derive(Debug)]
pub struct Core {
    lrs: CoreListRegisters,
    gic: PhysicalGic,
    /// How the board's cores are addressed, by number.
    pub(super) addresses: [Option<CoreAddress>; MAX_CORES],
    /// There is more than one vCPU here.
    pub(super) shared: bool,
    /// Something is to be done that is not a guest's exit.
    pub(super) look: bool,
    frequency: Frequency,
    tick: Ticks,
    features: PstateFeatures,
    /// When EL2's timer fires; [`NEVER`] if it does not.
    wake: Ticks,
    /// A guest's console has taken input, and the board's may have more for it.
    pub(super) input_wanted: bool,
    /// How long a guest is silent before what it has of a line is shown.
    idle: Ticks,
    /// When the console is to be looked at; [`NEVER`] if others do that.
    pub(super) console_look: Ticks,
}

impl Core {
    /// The core whose `gic` it is, its list registers empty.
    pub fn new(gic: PhysicalGic) -> Self {
        let (pfr1, mmfr1) = (ID_AA64PFR1_EL1::get(), ID_AA64MMFR1_EL1::get());
        let frequency = timer::Counter.frequency();
        Self {
            lrs: gic.list_registers(),
            gic,
            addresses: [None; MAX_CORES],
            shared: false,
            look: false,
            frequency,
            tick: frequency.ticks(TICK),
            features: PstateFeatures::from_id_registers(pfr1, mmfr1),
            wake: NEVER,
            input_wanted: false,
            idle: frequency.ticks(console::IDLE),
            console_look: NEVER,
        }
    }

    /// That of the system counter.
    pub(super) fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// Has another core look.
    #[inline]
    pub(super) fn send_nudge(&self, core: CoreNumber) {
        if let Some(Some(address)) = self.addresses.get(usize::from(core)) {
            self.gic.send_sgi(*address, NUDGE);
        }
    }

    /// See to it that the console is looked at by this core, in a little while.
    #[cold]
    pub(super) fn look_at_console_soon(&mut self) {
        self.look_at_console(self.now().after(self.idle));
    }

    /// See to it that the console is looked at by this core, at `time`.
    #[cold]
    pub(super) fn look_at_console(&mut self, time: Ticks) {
        self.console_look = self.console_look.min(time);
        self.wake_at(time);
    }

    /// EL2's timer has fired.
    pub(super) fn timer_has_fired(&mut self) {
        self.wake = NEVER;
        timer::never_wake();
    }
}

impl IdRegisters for Core {
    fn read(&self, register: SystemRegister) -> u64 {
        let [.., crm, op2] = register.encoding();
        id_registers::read(crm, op2).unwrap_or(0)
    }
}

impl Host for Core {
    type ListRegisters = CoreListRegisters;

    #[inline(always)]
    fn list_registers(&mut self) -> &mut CoreListRegisters {
        &mut self.lrs
    }

    #[inline(always)]
    fn now(&self) -> Ticks {
        timer::Counter.now()
    }

    #[inline(always)]
    fn syndrome(&self) -> u64 {
        ESR_EL2.get()
    }

    #[inline(always)]
    fn fault_address(&self) -> u64 {
        FAR_EL2.get()
    }

    #[inline(always)]
    fn fault_page(&self) -> u64 {
        HPFAR_EL2::get()
    }

    fn translate(&self, address: u64, el0: bool) -> Option<Ipa> {
        // With HCR_EL2.{E2H, TGE} clear, AT S1E1R and S1E0R walk stage 1 of the guest (its tables
        // through stage 2), and PAR_EL1 has an IPA. PAR_EL1 is the guest's; it may be between its own
        // AT and the read of the result.
        let saved = PAR_EL1.get();
        if el0 {
            // SAFETY: AT changes PAR_EL1 and nothing else.
            unsafe { asm!("at s1e0r, {}", in(reg) address, options(nostack, preserves_flags)) };
        } else {
            // SAFETY: as above.
            unsafe { asm!("at s1e1r, {}", in(reg) address, options(nostack, preserves_flags)) };
        }
        barrier::isb();
        let par = PAR_EL1.get();
        // SAFETY: gives the guest its PAR_EL1 back.
        unsafe { asm!("msr par_el1, {}", in(reg) saved, options(nostack, preserves_flags)) };
        // PAR_EL1.F: the walk faulted. PAR_EL1.PA is bits 51 to 12.
        (par & 1 == 0).then(|| Ipa::new(par & 0x000f_ffff_ffff_f000 | address & 0xfff))
    }

    fn stack_pointer(&self, el1: bool) -> u64 {
        if el1 { SP_EL1.get() } else { SP_EL0.get() }
    }

    fn set_stack_pointer(&mut self, el1: bool, value: u64) {
        if el1 {
            SP_EL1.set(value);
        } else {
            SP_EL0.set(value);
        }
    }

    fn guest_vectors(&self) -> GuestVectors {
        GuestVectors {
            vector_base: VBAR_EL1.get(),
            sctlr: SCTLR_EL1.get(),
            features: self.features,
        }
    }

    fn set_exception(&mut self, injection: &Injection) {
        ESR_EL1.set(injection.esr);
        ELR_EL1.set(injection.elr);
        SPSR_EL1.set(injection.spsr.bits());
        if let Some(far) = injection.far {
            FAR_EL1.set(far);
        }
    }

    fn transmit(&mut self, machine: usize, byte: u8) {
        if console::output(machine, byte) {
            self.look_at_console_soon();
        }
    }

    fn with_operator<T>(&mut self, work: impl FnOnce(&mut dyn Operator) -> T) -> T {
        work(&mut BoardOperator::new(self, false))
    }

    fn input_wanted(&mut self) {
        self.input_wanted = true;
        self.look = true;
    }

    #[inline]
    fn nudge(&mut self, core: CoreNumber) {
        if usize::from(core) == this_core() {
            self.look = true;
        } else {
            self.send_nudge(core);
        }
    }

    #[inline(always)]
    fn is_shared(&self) -> bool {
        self.shared
    }

    #[inline(always)]
    fn keep_polling(&mut self) {
        self.wake_at(self.now().after(self.tick));
    }

    #[inline(always)]
    fn wake_at(&mut self, deadline: Ticks) {
        if deadline < self.wake {
            self.wake = deadline;
            timer::wake_at(deadline);
        }
    }
}
