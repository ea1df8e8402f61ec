//! A machine's life: started, paused, reset, stopped, started again after a crash.
//!
//! Anyone may ask ([`Life::ask`]), at any time; the machine's home core acts ([`Manager::step`]), in
//! steps that are short, so that other machines' vCPUs on that core run in between. A machine is taken down in
//! an order that leaves nothing behind: its vCPUs leave their cores, its devices let go of its
//! memory, its interrupt controller is reset, and only then is its RAM zeroed and loaded anew.
//!
//! One that crashes and is to be started again waits for a second before, then two, four, and so on to
//! a minute; once it has run for a minute, its crashes are forgiven.

mod life;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;

use core::time::Duration;

use self::life::{Course, Goal};
pub use self::life::{Event, Life, Request, State};
use super::host::Host;
use super::loader::{LoadError, Placement};
use super::machine::Vm;
use super::vcpus::Start;
use crate::backend::clock::{Frequency, Ticks};
use crate::fdt::OnCrash;
use crate::gic::VcpuIndex;
use crate::memory::SharedSlice;

/// The first wait after a crash, in seconds.
const FIRST_WAIT: u32 = 1;
/// The longest, and how long a machine must run for its crashes to be forgiven.
const LAST_WAIT: u32 = 60;
/// RAM that is zeroed in one step: a bound on what a neighbour on the same core waits.
const SCRUB: usize = 0x20_0000;
/// How often devices that do not let go at once are asked again.
const PATIENCE: Duration = Duration::from_millis(1);
/// After how many times that is said: longer than a disk's time-outs.
const LONG: u32 = 30_000;

/// What the home core does for a machine that starts and ends. It is called while no vCPU of any
/// machine is on that core.
pub trait Starter<H> {
    /// Whether it can be loaded: to be asked before its RAM is zeroed, which takes its time.
    ///
    /// # Errors
    /// If it cannot.
    fn plan(&mut self, vm: &Vm<'_>) -> Result<(), LoadError>;

    /// Zeroes RAM of the machine, for a guest whose caches are off.
    fn scrub(&mut self, memory: SharedSlice<'_>);

    /// Copies what comes next of kernel and ramdisk, of which `done` bytes are in its RAM, which is
    /// little; how many bytes it was, 0 if all are there.
    ///
    /// # Errors
    /// If it cannot.
    fn copy(&mut self, vm: &Vm<'_>, done: usize) -> Result<usize, LoadError>;

    /// Makes the device tree, the last of what is loaded.
    ///
    /// # Errors
    /// If it cannot.
    fn load(&mut self, vm: &Vm<'_>) -> Result<Placement, LoadError>;

    /// The machine is down: for good, unless somebody starts it.
    fn ended(&mut self, vm: &Vm<'_>, host: &mut H);
}

/// When [`Manager::step`] wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// When somebody asks for something, or a vCPU leaves its core.
    Settled,
    /// At once, after others had their turn.
    Again,
    /// At this time.
    At(Ticks),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Settled,
    Stopping,
    Waiting { until: Ticks },
    Scrubbing { region: usize, offset: usize },
    Copying { done: usize },
}

/// Whether a machine that is paused stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// It is not paused.
    No,
    /// Not yet: some of its vCPUs have not left their cores.
    Leaving,
    Since(Ticks),
}

/// The home core's part of a machine's life.
#[derive(Debug)]
pub struct Manager {
    phase: Phase,
    pause: Pause,
    policy: OnCrash,
    frequency: Frequency,
    /// The next wait after a crash, in seconds.
    wait: u32,
    /// How often devices were asked in vain to let go.
    asked: u32,
    started: Ticks,
}

impl Manager {
    /// For a machine that is off.
    pub const fn new(policy: OnCrash, frequency: Frequency) -> Self {
        let (phase, pause, wait) = (Phase::Settled, Pause::No, FIRST_WAIT);
        Self { phase, pause, policy, frequency, wait, asked: 0, started: Ticks(0) }
    }

    /// Whether it is about something that only [`Self::step`] takes further, time apart.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Stopping | Phase::Scrubbing { .. } | Phase::Copying { .. })
            || self.pause == Pause::Leaving
    }

    /// Does what is to be done next, which is little.
    pub fn step<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
    ) -> Step {
        self.obey(vm, host);
        match self.phase {
            Phase::Settled => {
                if self.pause == Pause::Leaving && vm.vcpus.is_at_rest() {
                    self.pause = Pause::Since(host.now());
                }
                Step::Settled
            }
            Phase::Stopping => self.stop(vm, host, starter),
            Phase::Waiting { until } if host.now() < until => Step::At(until),
            Phase::Waiting { .. } => self.start(vm, host, starter),
            Phase::Scrubbing { region, offset } => self.scrub(vm, starter, region, offset),
            Phase::Copying { done } => self.copy(vm, host, starter, done),
        }
    }

    /// Sets out for where the machine is to be, if somebody has asked for something.
    fn obey<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H) {
        if !vm.life.is_asked() {
            return;
        }
        let course = vm.life.take();
        match (course.state, course.goal) {
            (State::Off | State::Crashed, Goal::Running | Goal::Paused) => {
                self.phase = Phase::Stopping;
                vm.life.set(State::Starting);
            }
            (State::Running | State::Paused, _) if course.anew || course.crash => {
                self.take_down(vm, host);
            }
            (State::Starting | State::Waiting, Goal::Down) => self.take_down(vm, host),
            // Started and stopped before anything was done about it.
            (State::Off | State::Crashed, Goal::Down) if course.anew => self.take_down(vm, host),
            (State::Waiting, _) if course.anew => self.phase = Phase::Waiting { until: Ticks(0) },
            (State::Running, Goal::Paused) => {
                self.pause = Pause::Leaving;
                vm.life.set(State::Paused);
                vm.nudge_all(host);
            }
            (State::Paused, Goal::Running) => self.resume(vm, host),
            _ => {}
        }
    }

    /// Lets the machine go on. Its time has stood still with it, and with that its timers and its
    /// watchdog.
    fn resume<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H) {
        if let Pause::Since(since) = core::mem::replace(&mut self.pause, Pause::No) {
            let stood = host.now().0.saturating_sub(since.0);
            let behind = vm.life.behind().after(Ticks(stood));
            vm.life.set_behind(behind);
            vm.with_watchdog(None, host, &mut |watchdog, _| watchdog.resume(behind));
        } else {
            vm.with_watchdog(None, host, &mut |_, _| ());
        }
        vm.life.set(State::Running);
        vm.nudge_all(host);
    }

    fn take_down<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H) {
        self.phase = Phase::Stopping;
        self.pause = Pause::No;
        vm.life.set(State::Stopping);
        vm.nudge_all(host);
    }

    fn stop<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        if !vm.vcpus.is_at_rest() {
            // The last one to leave tells this core.
            return Step::Settled;
        }
        if !vm.reset(host) {
            self.asked = self.asked.saturating_add(1);
            if self.asked == LONG {
                log::warn!("{}: a device does not let go of its memory: it stays down", vm.name);
            }
            return Step::At(host.now().after(self.frequency.ticks(PATIENCE)));
        }
        self.asked = 0;
        vm.vcpus.reset();
        let next = |course| self.once_down(course);
        let _ = vm.life.change(|course| Some(next(course)));
        match vm.life.state() {
            State::Waiting => self.wait(vm, host),
            State::Starting => self.start(vm, host, starter),
            _ => self.end(vm, host, starter),
        }
    }

    /// What becomes of a machine that is down.
    fn once_down(&self, course: Course) -> Course {
        let down = Course { anew: false, crash: false, ..course };
        match (course.crash, self.policy, course.goal) {
            (true, OnCrash::Restart, _) => Course { state: State::Waiting, ..down },
            (true, OnCrash::Stop, _) => Course { state: State::Crashed, goal: Goal::Down, ..down },
            (false, _, Goal::Down) => Course { state: State::Off, ..down },
            (false, ..) => Course { state: State::Starting, ..down },
        }
    }

    fn seconds(&self, seconds: u32) -> Ticks {
        self.frequency.ticks(Duration::from_secs(seconds.into()))
    }

    fn wait<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H) -> Step {
        let now = host.now();
        if now >= self.started.after(self.seconds(LAST_WAIT)) {
            self.wait = FIRST_WAIT;
        }
        log::info!("{}: is started again in {} s", vm.name, self.wait);
        let until = now.after(self.seconds(self.wait));
        self.wait = self.wait.saturating_mul(2).min(LAST_WAIT);
        self.phase = Phase::Waiting { until };
        Step::At(until)
    }

    fn end<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        self.phase = Phase::Settled;
        starter.ended(vm, host);
        Step::Settled
    }

    fn start<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        // It has not run since it was asked to be started anew.
        let _ = vm.life.change(|course| {
            let anew = course.anew && course.goal == Goal::Down;
            Some(Course { state: State::Starting, anew, ..course })
        });
        self.phase = Phase::Scrubbing { region: 0, offset: 0 };
        match starter.plan(vm) {
            Ok(()) => Step::Again,
            Err(error) => self.refuse(vm, host, starter, error),
        }
    }

    fn refuse<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
        error: LoadError,
    ) -> Step {
        log::error!("{} is not started: {error}", vm.name);
        let down =
            |course| Course { state: State::Crashed, goal: Goal::Down, anew: false, ..course };
        let _ = vm.life.change(|course| Some(down(course)));
        self.end(vm, host, starter)
    }

    fn scrub<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        starter: &mut impl Starter<H>,
        region: usize,
        offset: usize,
    ) -> Step {
        let Some((_, memory)) = vm.memory.regions().get(region) else {
            self.phase = Phase::Copying { done: 0 };
            return Step::Again;
        };
        let len = SCRUB.min(memory.len() - offset.min(memory.len()));
        self.phase = match memory.subslice(offset, len) {
            Some(chunk) if len != 0 => {
                starter.scrub(chunk);
                Phase::Scrubbing { region, offset: offset + len }
            }
            _ => Phase::Scrubbing { region: region + 1, offset: 0 },
        };
        Step::Again
    }

    fn copy<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
        done: usize,
    ) -> Step {
        match starter.copy(vm, done) {
            Ok(0) => return self.load(vm, host, starter),
            Ok(bytes) => self.phase = Phase::Copying { done: done.saturating_add(bytes) },
            Err(error) => return self.refuse(vm, host, starter, error),
        }
        Step::Again
    }

    fn load<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        let placement = match starter.load(vm) {
            Ok(placement) => placement,
            Err(error) => return self.refuse(vm, host, starter, error),
        };
        let start = Start { entry: placement.kernel, context: placement.fdt.raw() };
        // All are off: nobody else turns a vCPU of a machine on that does not run.
        let _ = vm.vcpus.turn_on(VcpuIndex::BOOT, start);
        self.started = host.now();
        vm.life.set_behind(self.started);
        vm.with_watchdog(None, host, &mut |watchdog, now| watchdog.reset(now));
        vm.boot_begins(self.started);
        self.phase = Phase::Settled;
        vm.life.has_started();
        let _ = vm.life.change(|course| {
            Some(match course.goal {
                Goal::Down => Course { state: State::Running, ..course },
                Goal::Running => Course { state: State::Running, anew: false, ..course },
                Goal::Paused => Course { state: State::Paused, anew: false, ..course },
            })
        });
        if vm.life.state() == State::Paused {
            self.pause = Pause::Since(self.started);
        }
        vm.nudge_all(host);
        Step::Settled
    }
}
