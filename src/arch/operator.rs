//! The board's machines, cores and memory, as the monitor sees them; its commands, carried out.
//!
//! A command runs on the core that has the console, or on that of the guest whose hypercall it is. It
//! holds no lock but to copy what it shows, so nobody but that core waits for it.

use core::cell::Cell;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use core::time::Duration;

use log::LevelFilter;

use super::core::Core;
use super::smp::{MAX_CORES, this_core};
use super::{barrier, console, timer};
use crate::backend::clock::Frequency;
use crate::backend::switch::{Counter, Switch};
use crate::console::LOG_LEN;
use crate::gic::VcpuIndex;
use crate::monitor::{
    self, Action, ActionError, CoreInfo, DeviceInfo, MemoryInfo, Operator, VmInfo,
};
use crate::virtio::Adjustment;
use crate::vm::config::MAX_VMS;
use crate::vm::vcpus::CoreNumber;
use crate::vm::{ExitCounts, Host, Milestones, Vm};

/// A core of the board.
#[derive(Clone, Copy, Debug)]
pub struct BoardCore {
    /// Its affinity, as in MPIDR_EL1.
    pub affinity: u64,
    /// It has come up.
    pub online: bool,
}

/// What there is on the board.
#[derive(Default)]
pub struct Inventory {
    /// Its machines; a machine's number is its place.
    pub machines: heapless::Vec<&'static Vm<'static>, MAX_VMS>,
    /// Its cores, by number.
    pub cores: [Option<BoardCore>; MAX_CORES],
    /// Its memory.
    pub memory: MemoryInfo,
    /// The switch between its machines, if there is one.
    pub switch: Option<&'static Switch<'static>>,
}

static INVENTORY: spin::Once<Inventory> = spin::Once::new();

/// Tells of what there is, once, before any machine runs: each gets its place on the console.
pub fn publish(inventory: Inventory) {
    for vm in &inventory.machines {
        console::add_guest(vm.name);
    }
    INVENTORY.call_once(|| inventory);
}

/// The board's machines.
pub fn machines() -> &'static [&'static Vm<'static>] {
    INVENTORY.get().map_or(&[], |inventory| &inventory.machines)
}

/// The machine of this number.
pub(super) fn machine(number: usize) -> Option<&'static Vm<'static>> {
    machines().get(number).copied()
}

/// What a core says of itself.
struct Record {
    /// The vCPU it runs, or ran last: 1 + its number * 256 + that of its machine. 0: none yet.
    runs: AtomicU16,
    switches: AtomicU64,
}

static RECORDS: [Record; MAX_CORES] =
    [const { Record { runs: AtomicU16::new(0), switches: AtomicU64::new(0) } }; MAX_CORES];

/// This core runs a vCPU from now on, and another one than before if it has `switched`.
pub(super) fn runs(machine: usize, vcpu: VcpuIndex, switched: bool) {
    let Some(record) = RECORDS.get(this_core()) else { return };
    record.runs.store(1 + (vcpu.get() << 8 | machine) as u16, Ordering::Relaxed);
    if switched {
        // Nobody else writes it.
        let switches = record.switches.load(Ordering::Relaxed);
        record.switches.store(switches + 1, Ordering::Relaxed);
    }
}

/// Cores that are to publish the exits of the vCPU they run, a bit each.
static WANTED: AtomicU8 = AtomicU8::new(0);
/// How long to wait for that.
const PATIENCE: Duration = Duration::from_millis(2);

/// Whether this core is to publish the exits of its vCPU.
#[inline]
pub(super) fn are_exits_wanted() -> bool {
    WANTED.load(Ordering::Relaxed) >> this_core() & 1 != 0
}

/// It has.
pub(super) fn exits_are_published() {
    WANTED.fetch_and(!(1 << this_core()), Ordering::Release);
}

/// The monitor's hands on the board. This core has published its exits.
pub(super) struct BoardOperator<'a> {
    core: &'a mut Core,
    /// Whoever gives the commands sits at the terminal.
    at_terminal: bool,
    /// The other cores were asked for their exits.
    gathered: Cell<bool>,
}

impl<'a> BoardOperator<'a> {
    /// For commands given on this `core`.
    pub(super) fn new(core: &'a mut Core, at_terminal: bool) -> Self {
        Self { core, at_terminal, gathered: Cell::new(false) }
    }

    /// Has the cores publish the exits of the vCPUs they run, and waits for that a while.
    fn gather_exits(&self) {
        let all = machines().iter().fold(0, |cores, vm| cores | vm.vcpus.cores());
        let others = all & !(1 << this_core());
        WANTED.fetch_or(others, Ordering::Release);
        for core in (0..MAX_CORES as CoreNumber).filter(|core| others >> core & 1 != 0) {
            self.core.send_nudge(core);
        }
        let end = self.core.now().after(self.core.frequency().ticks(PATIENCE));
        while WANTED.load(Ordering::Acquire) & others != 0 && self.core.now() < end {
            // Another core may be doing the same.
            if are_exits_wanted() {
                exits_are_published();
            }
            barrier::relax();
        }
    }

    fn only_at_terminal(&self) -> Result<(), ActionError> {
        if self.at_terminal { Ok(()) } else { Err(ActionError::Denied) }
    }
}

/// Carries out a command given at the terminal of this `core`.
#[inline(never)]
pub(super) fn carry_out(line: &[u8], core: &mut Core) {
    let mut operator = BoardOperator::new(core, true);
    // The terminal takes everything.
    let _ = monitor::run(line, &mut operator, &mut console::Terminal, LOG_LEN);
    console::prompt();
}

impl Operator for BoardOperator<'_> {
    fn vm(&self, vm: usize) -> Option<VmInfo<'_>> {
        machine(vm).map(VmInfo::of)
    }

    fn exits(&self, vm: usize, vcpu: usize) -> Option<ExitCounts> {
        if !self.gathered.replace(true) {
            self.gather_exits();
        }
        machine(vm)?.exits_of(VcpuIndex::new(vcpu)?)
    }

    fn boot(&self, vm: usize) -> Option<Milestones> {
        Some(machine(vm)?.milestones())
    }

    fn device(&self, vm: usize, slot: usize) -> Option<DeviceInfo> {
        Some(DeviceInfo::of(&machine(vm)?.slot(slot)?.lock()))
    }

    fn core(&self, core: usize) -> Option<CoreInfo> {
        let BoardCore { affinity, online } = (*INVENTORY.get()?.cores.get(core)?)?;
        let record = RECORDS.get(core)?;
        let running = record.runs.load(Ordering::Relaxed).checked_sub(1).map(usize::from);
        let number = u8::try_from(core).ok()?;
        Some(CoreInfo {
            affinity,
            online,
            vcpus: machines().iter().map(|vm| vm.vcpus.count_at(number)).sum(),
            running: running.map(|runs| (runs & 0xff, runs >> 8)),
            switches: record.switches.load(Ordering::Relaxed),
        })
    }

    fn uplink(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        if let Some(switch) = INVENTORY.get().and_then(|inventory| inventory.switch) {
            // Not the card's own, which are behind a lock.
            for &(counter, name) in Counter::ALL {
                visit(name, switch.counter(None, counter));
            }
        }
    }

    fn memory(&self) -> MemoryInfo {
        INVENTORY.get().map(|inventory| inventory.memory).unwrap_or_default()
    }

    fn frequency(&self) -> Frequency {
        self.core.frequency()
    }

    fn log_written(&self) -> u64 {
        console::log_written()
    }

    fn read_log(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        console::read_log(position, out)
    }

    fn set_log_level(&mut self, level: LevelFilter) {
        log::set_max_level(level);
    }

    fn act(&mut self, vm: usize, action: Action) -> Result<(), ActionError> {
        let Some(vm) = machine(vm) else { return Ok(()) };
        action.ask(vm, self.core)
    }

    fn adjust(&mut self, vm: usize, slot: usize, change: Adjustment) -> Result<(), ActionError> {
        let vm = machine(vm).ok_or(ActionError::NoSuchThing)?;
        Ok(vm.adjust(slot, change, &timer::Counter, self.core)?)
    }

    fn attach(&mut self, vm: usize) -> Result<(), ActionError> {
        self.only_at_terminal()?;
        console::attach(vm);
        Ok(())
    }

    fn quit(&mut self) -> Result<(), ActionError> {
        self.only_at_terminal()?;
        console::quit();
        Ok(())
    }
}
