//! Lives of machines, step by step.

use super::super::testing::{FakeHost, HERTZ, Machine};
use super::*;
use crate::backend::clock::Frequency;
use crate::monitor::DeviceInfo;
use crate::vm::layout;

const SECOND: u64 = HERTZ;

/// Bytes of kernel and ramdisk.
const MODULES: usize = 2500;

/// Counts what it is asked to do.
#[derive(Default)]
struct Board {
    refuses: bool,
    scrubbed: usize,
    copied: usize,
    loads: u32,
    ends: u32,
}

impl Starter<FakeHost> for Board {
    fn plan(&mut self, _: &Vm<'_>) -> Result<(), LoadError> {
        if self.refuses { Err(LoadError::NoRam) } else { Ok(()) }
    }
    fn scrub(&mut self, memory: SharedSlice<'_>) {
        memory.fill(0, memory.len(), 0).unwrap();
        self.scrubbed += memory.len();
    }
    fn copy(&mut self, vm: &Vm<'_>, done: usize) -> Result<usize, LoadError> {
        assert!(done == 0 || done == self.copied);
        assert_eq!(self.scrubbed % vm.memory.regions()[0].1.len(), 0, "what it copies is zeroed");
        let step = (MODULES - done).min(1000);
        self.copied = done + step;
        Ok(step)
    }
    fn load(&mut self, vm: &Vm<'_>) -> Result<Placement, LoadError> {
        self.loads += 1;
        let (ram, _) = vm.memory.regions()[0];
        Ok(Placement { kernel: ram, ramdisk: None, fdt: ram })
    }
    fn ended(&mut self, _: &Vm<'_>, _: &mut FakeHost) {
        self.ends += 1;
    }
}

pub(super) struct Home {
    pub(super) machine: Machine,
    manager: Manager,
    board: Board,
}

impl Home {
    fn with(machine: Machine, policy: OnCrash) -> Self {
        let manager = Manager::new(policy, Frequency::new(HERTZ as u32).unwrap());
        Self { machine, manager, board: Board::default() }
    }

    pub(super) fn new(policy: OnCrash) -> Self {
        Self::with(Machine::new(vec![]), policy)
    }

    pub(super) fn step(&mut self) -> Step {
        self.manager.step(self.machine.vm, &mut self.machine.host, &mut self.board)
    }

    /// Asks for what has a meaning, and steps until nothing is left to do at once.
    fn ask(&mut self, request: Request) -> Step {
        self.machine.vm.ask(request, &mut self.machine.host).unwrap();
        self.settle()
    }

    /// Asks for a reset, once more.
    fn ask_again(&mut self) -> Step {
        self.ask(Request::Reset)
    }

    /// Asks for what has none; what the answer is.
    fn refused(&mut self, request: Request) -> State {
        self.machine.vm.ask(request, &mut self.machine.host).unwrap_err()
    }

    fn happen(&mut self, event: Event) -> Step {
        self.machine.vm.happen(event, &mut self.machine.host);
        self.settle()
    }

    fn settle(&mut self) -> Step {
        for _ in 0..1000 {
            match self.step() {
                Step::Again => {}
                step => return step,
            }
        }
        panic!("it never settles");
    }

    pub(super) fn state(&self) -> State {
        self.machine.vm.life.state()
    }

    /// The core of the boot vCPU takes it up.
    fn run(&self) {
        self.machine.vm.vcpus.take_start(VcpuIndex::BOOT).expect("it was turned on");
        self.machine.vm.vcpus.enter(VcpuIndex::BOOT);
    }

    /// It comes back to its core.
    fn run_on(&self) {
        self.machine.vm.vcpus.enter(VcpuIndex::BOOT);
    }

    fn leave(&self) {
        self.machine.vm.vcpus.leave(VcpuIndex::BOOT);
    }
}

#[test]
fn a_machine_is_zeroed_loaded_and_its_boot_vcpu_turned_on() {
    let mut home = Home::new(OnCrash::Stop);
    assert_eq!(home.state(), State::Off);
    assert_eq!(home.ask(Request::Start), Step::Settled);
    assert_eq!(home.state(), State::Running);
    assert_eq!(home.board.scrubbed, home.machine.vm.memory.regions()[0].1.len());
    assert_eq!(home.board.copied, MODULES);
    assert_eq!((home.board.loads, home.machine.vm.life.starts()), (1, 1));
    home.run();
    assert_eq!(home.refused(Request::Start), State::Running);
    assert_eq!(home.settle(), Step::Settled);
    assert_eq!(home.board.loads, 1, "it runs already");
}

#[test]
fn a_machine_that_is_stopped_while_it_is_copied_begins_anew_when_it_is_started() {
    let mut home = Home::new(OnCrash::Stop);
    let life = &home.machine.vm.life;
    life.ask(Request::Start).unwrap();
    while home.board.copied == 0 {
        assert_eq!(home.step(), Step::Again);
    }
    assert!(home.board.copied < MODULES && home.manager.is_active());
    assert_eq!(home.ask(Request::Stop), Step::Settled);
    assert_eq!((home.state(), home.board.loads), (State::Off, 0));
    home.ask(Request::Start);
    assert_eq!((home.state(), home.board.loads, home.board.copied), (State::Running, 1, MODULES));
}

#[test]
fn a_machine_is_not_taken_down_before_its_vcpus_have_left() {
    let mut home = Home::new(OnCrash::Stop);
    home.ask(Request::Start);
    home.run();
    assert_eq!(home.ask(Request::Reset), Step::Settled);
    assert_eq!(home.state(), State::Stopping);
    assert!(!home.machine.vm.life.may_run());
    home.settle();
    assert_eq!(home.board.loads, 1);
    home.leave();
    home.settle();
    assert_eq!((home.state(), home.board.loads), (State::Running, 2));
}

#[test]
fn a_machine_is_not_taken_down_before_its_disk_has_let_go() {
    let (mut machine, disk) = Machine::with_held_disk();
    let memory = machine.vm.memory.clone();
    let mut driver = crate::virtio::testing::Driver::new(memory, 4);
    machine.bring_up(0, &driver);
    super::super::machine::tests::request(&mut machine, &mut driver, 0);
    let mut home = Home::with(machine, OnCrash::Stop);
    home.ask(Request::Start);
    assert!(matches!(home.state(), State::Starting), "the disk is not quiet");
    disk.finish();
    assert_eq!(home.settle(), Step::Settled);
    assert_eq!(home.state(), State::Running);
}

#[test]
fn a_machine_whose_disk_may_still_reach_its_memory_is_not_started_again() {
    let (machine, disk) = Machine::with_held_disk();
    let mut home = Home::with(machine, OnCrash::Restart);
    home.ask(Request::Start);
    disk.get().stuck = true;
    let scrubbed = home.board.scrubbed;
    for _ in 0..2000 {
        assert!(matches!(home.ask_again(), Step::At(_)));
    }
    assert_eq!((home.state(), home.board.scrubbed), (State::Stopping, scrubbed));
    assert_eq!(DeviceInfo::of(&home.machine.vm.slot(0).unwrap().lock()).state_name(), "stuck");
    disk.get().stuck = false;
    home.settle();
    assert_eq!((home.state(), home.board.loads), (State::Running, 2));
}

#[test]
fn a_machine_that_is_paused_goes_on_where_it_was() {
    let mut home = Home::new(OnCrash::Stop);
    home.ask(Request::Start);
    home.run();
    home.ask(Request::Pause);
    assert_eq!((home.state(), home.machine.vm.life.may_run()), (State::Paused, false));
    home.leave();
    assert_eq!(home.refused(Request::Pause), State::Paused);
    home.ask(Request::Resume);
    assert_eq!((home.state(), home.board.loads), (State::Running, 1));
    // And may be stopped while it stands still.
    home.ask(Request::Pause);
    home.ask(Request::Stop);
    assert_eq!((home.state(), home.board.ends), (State::Off, 1));
    assert_eq!(home.refused(Request::Resume), State::Off);
}

#[test]
fn what_a_machine_does_is_of_no_account_once_it_is_to_be_stopped() {
    let mut home = Home::new(OnCrash::Restart);
    home.ask(Request::Start);
    home.run();
    home.ask(Request::Reset);
    home.happen(Event::Crash);
    home.ask(Request::Stop);
    home.happen(Event::Reset);
    home.leave();
    home.settle();
    assert_eq!((home.state(), home.board.loads, home.board.ends), (State::Off, 1, 1));
}

#[test]
fn a_request_that_meets_a_machine_on_its_way_is_kept() {
    let mut home = Home::new(OnCrash::Restart);
    // Paused before it has run.
    home.machine.vm.life.ask(Request::Start).unwrap();
    assert_eq!(home.step(), Step::Again);
    home.ask(Request::Pause);
    assert_eq!((home.state(), home.board.loads), (State::Paused, 1));
    home.ask(Request::Resume);
    home.run();
    // Started again although it was not down yet.
    home.ask(Request::Stop);
    assert_eq!(home.state(), State::Stopping);
    assert_eq!(home.refused(Request::Reset), State::Stopping);
    home.ask(Request::Start);
    home.leave();
    home.settle();
    assert_eq!((home.state(), home.board.loads, home.board.ends), (State::Running, 2, 0));
    // Started before its time.
    home.happen(Event::Crash);
    assert_eq!(home.state(), State::Waiting);
    home.ask(Request::Pause);
    assert_eq!(home.state(), State::Waiting);
    home.ask(Request::Reset);
    assert_eq!((home.state(), home.board.loads), (State::Running, 3));
    // Stopped by one, started by another, neither of them seen before the other's.
    home.machine.vm.life.ask(Request::Stop).unwrap();
    home.ask(Request::Start);
    assert_eq!((home.state(), home.board.loads), (State::Running, 4));
}

#[test]
fn the_time_of_a_machine_that_stands_still_does_too() {
    let mut home = Home::new(OnCrash::Stop);
    home.machine.host.now = Ticks(1000);
    home.ask(Request::Start);
    home.run();
    assert_eq!(home.machine.vm.life.behind(), Ticks(1000));
    home.ask(Request::Pause);
    home.machine.host.now = Ticks(1500);
    assert!(home.manager.is_active(), "its vCPU is on its core: it counts on");
    home.leave();
    home.settle();
    assert!(!home.manager.is_active());
    home.machine.host.now = Ticks(9500);
    home.ask(Request::Resume);
    assert_eq!(home.machine.vm.life.behind(), Ticks(9000));
    // So short a pause that nobody left.
    home.run_on();
    home.ask(Request::Pause);
    home.machine.host.now = Ticks(9600);
    home.ask(Request::Resume);
    assert_eq!(home.machine.vm.life.behind(), Ticks(9000));
    // Its next life has a time of its own.
    home.ask(Request::Reset);
    home.leave();
    home.settle();
    assert_eq!(home.machine.vm.life.behind(), Ticks(9600));
}

#[test]
fn who_crashes_stays_down_by_default_and_can_be_started() {
    let mut home = Home::new(OnCrash::Stop);
    home.ask(Request::Start);
    home.happen(Event::Crash);
    assert_eq!((home.state(), home.board.ends), (State::Crashed, 1));
    home.happen(Event::Crash);
    home.ask(Request::Start);
    assert_eq!((home.state(), home.board.loads), (State::Running, 2));
}

#[test]
fn who_crashes_again_and_again_waits_longer_each_time() {
    let mut home = Home::new(OnCrash::Restart);
    home.ask(Request::Start);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let now = home.machine.host.now;
        assert_eq!(home.happen(Event::Crash), Step::At(Ticks(now.0 + seconds * SECOND)));
        assert_eq!(home.state(), State::Waiting);
        home.machine.host.now = Ticks(now.0 + seconds * SECOND - 1);
        assert!(matches!(home.step(), Step::At(_)));
        home.machine.host.now = Ticks(now.0 + seconds * SECOND);
        assert_eq!(home.settle(), Step::Settled);
        assert_eq!(home.state(), State::Running);
    }
    // It runs for a minute: forgiven.
    let now = Ticks(home.machine.host.now.0 + 60 * SECOND);
    home.machine.host.now = now;
    assert_eq!(home.happen(Event::Crash), Step::At(Ticks(now.0 + SECOND)));
    // Who waits can be stopped.
    assert_eq!(home.ask(Request::Stop), Step::Settled);
    assert_eq!((home.state(), home.board.ends), (State::Off, 1));
}

#[test]
fn a_machine_that_cannot_be_loaded_is_not_zeroed() {
    let mut home = Home::new(OnCrash::Restart);
    home.board.refuses = true;
    assert_eq!(home.ask(Request::Start), Step::Settled);
    assert_eq!((home.state(), home.board.ends, home.board.scrubbed), (State::Crashed, 1, 0));
    home.board.refuses = false;
    home.ask(Request::Start);
    assert_eq!(home.state(), State::Running);
}

#[test]
fn a_thousand_resets_end_as_the_first() {
    let mut home = Home::new(OnCrash::Stop);
    home.ask(Request::Start);
    for _ in 0..1000 {
        home.run();
        home.ask(Request::Reset);
        home.leave();
        assert_eq!(home.settle(), Step::Settled);
        assert_eq!(home.state(), State::Running);
    }
    assert_eq!((home.board.loads, home.machine.vm.life.starts()), (1001, 1001));
}

const WATCHDOG_INTID: u32 = layout::FIRST_SPI + layout::WATCHDOG_SPI;
const WCS: u64 = layout::WATCHDOG_CONTROL.raw();
const WOR: u64 = layout::WATCHDOG_CONTROL.raw() + 8;
const WRR: u64 = layout::WATCHDOG_REFRESH.raw();

/// A machine that runs since [`SECOND`], with a watchdog of 100 ticks.
fn watched() -> Home {
    let mut home = Home::new(OnCrash::Stop);
    home.machine.host.now = Ticks(SECOND);
    home.ask(Request::Start);
    home.run();
    home.machine.enable_interrupts();
    home.machine.set(WOR, 100);
    home.machine.set(WCS, 1);
    assert_eq!(home.machine.host.wake, Some(Ticks(SECOND + 101)));
    home
}

#[test]
fn a_watchdog_that_nobody_feeds_interrupts_and_then_resets_its_machine() {
    let mut home = watched();
    home.machine.host.now = Ticks(SECOND + 90);
    home.machine.set(WRR, 0);
    assert!(home.machine.run_timer(Ticks(SECOND + 101)), "the deadline of before");
    assert_eq!(home.machine.host.lrs.pending(), []);
    assert!(home.machine.run_timer(Ticks(SECOND + 191)));
    assert_eq!(home.machine.host.lrs.pending(), [WATCHDOG_INTID]);
    assert!(!home.machine.vm.life.is_asked());
    assert!(home.machine.run_timer(Ticks(SECOND + 292)));
    assert!(home.machine.vm.life.is_asked());

    home.settle();
    assert_eq!(home.state(), State::Stopping);
    home.machine.host.wake = Some(Ticks(0));
    assert!(home.machine.run_timer(Ticks(SECOND + 500)));
    assert!(!home.machine.vm.life.is_asked(), "once is enough");
    home.machine.vm.unload_interrupts(VcpuIndex::BOOT, &mut home.machine.host);
    home.leave();
    home.settle();
    assert_eq!((home.state(), home.board.loads), (State::Running, 2));
    home.machine.enable_interrupts();
    assert_eq!(home.machine.host.lrs.pending(), []);
    assert_eq!(home.machine.get(WCS), 0b100, "off; it was the cause");
    assert_eq!(home.machine.get(WCS + 16), 0);
}

#[test]
fn a_machine_that_stands_still_is_not_reset_by_its_watchdog() {
    let mut home = watched();
    home.machine.host.now = Ticks(SECOND + 40);
    home.ask(Request::Pause);
    home.leave();
    home.settle();
    assert!(home.machine.run_timer(Ticks(SECOND + 101)));
    home.machine.host.wake = Some(Ticks(0));
    assert!(home.machine.run_timer(Ticks(SECOND + 500)));
    assert!(!home.machine.vm.life.is_asked());
    assert_eq!(home.machine.host.wake, None);
    home.ask(Request::Resume);
    assert_eq!(home.machine.host.lrs.pending(), []);
    // 61 of 101 were left.
    assert_eq!(home.machine.host.wake, Some(Ticks(SECOND + 561)));
    assert!(home.machine.run_timer(Ticks(SECOND + 561)));
    assert!(home.machine.run_timer(Ticks(SECOND + 662)));
    assert!(home.machine.vm.life.is_asked());
}

#[test]
fn the_watchdog_of_a_machine_that_is_down_does_nothing() {
    let mut home = watched();
    home.ask(Request::Stop);
    home.leave();
    home.settle();
    assert_eq!(home.state(), State::Off);
    assert!(home.machine.run_timer(Ticks(SECOND + 101)));
    assert_eq!(home.machine.host.wake, None);
    assert!(!home.machine.vm.life.is_asked());
}
