//! A machine's life: started, paused, reset, stopped, started again after a crash.
//!
//! Anyone may ask ([`Life::ask`]); the machine's home core acts ([`Manager::step`]), in steps that
//! are short, so that other machines' vCPUs on that core run in between. A machine is taken down in
//! an order that leaves nothing behind: its vCPUs leave their cores, its devices let go of its
//! memory, its interrupt controller is reset, and only then is its RAM zeroed and loaded anew.
//!
//! One that crashes and is to be started again waits for a second before, then two, four, and so on to
//! a minute; once it has run for a minute, its crashes are forgiven.

#[cfg(test)]
mod tests;

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use super::host::Host;
use super::loader::{LoadError, Placement};
use super::machine::Vm;
use super::vcpus::Start;
use super::watchdog::Watchdog;
use crate::backend::clock::{Frequency, Ticks};
use crate::fdt::OnCrash;
use crate::gic::VcpuIndex;
use crate::memory::SharedSlice;

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It does not run: it has not been started, or has ended.
    Off = 0,
    /// Its RAM is being zeroed and loaded.
    Starting = 1,
    /// Its vCPUs run.
    Running = 2,
    /// Its vCPUs stand still.
    Paused = 3,
    /// Its vCPUs leave their cores, its devices let go of its memory.
    Stopping = 4,
    /// It crashed, and is started again after a while.
    Waiting = 5,
    /// It crashed, or could not be started, and stays down.
    Crashed = 6,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Off,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Waiting,
        Self::Crashed,
    ];

    /// Whether it has ended, until somebody starts it.
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Off | Self::Crashed)
    }

    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Waiting => "waiting",
            Self::Crashed => "crashed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What can be asked of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Request {
    /// Start it, if it is down.
    Start = 1 << 0,
    /// Turn it off.
    Stop = 1 << 1,
    /// Let it stand still.
    Pause = 1 << 2,
    /// Let it go on.
    Resume = 1 << 3,
    /// Start it anew.
    Reset = 1 << 4,
    /// It cannot go on: act by its policy.
    Crash = 1 << 5,
}

/// The first wait after a crash, in seconds.
const FIRST_WAIT: u32 = 1;
/// The longest, and how long a machine must run for its crashes to be forgiven.
const LAST_WAIT: u32 = 60;
/// RAM that is zeroed in one step: a bound on what a neighbour on the same core waits.
const SCRUB: usize = 0x20_0000;
/// How often devices that do not let go at once are asked again.
const PATIENCE: Duration = Duration::from_millis(1);

/// What every core may know of a machine's life, and ask.
#[derive(Debug)]
pub struct Life {
    state: AtomicU8,
    requests: AtomicU8,
    starts: AtomicU32,
    epoch: AtomicU64,
}

impl Life {
    /// A machine that is off.
    pub const fn new() -> Self {
        let (state, requests) = (AtomicU8::new(State::Off as u8), AtomicU8::new(0));
        Self { state, requests, starts: AtomicU32::new(0), epoch: AtomicU64::new(0) }
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        let state = self.state.load(Ordering::SeqCst);
        State::ALL.into_iter().find(|known| *known as u8 == state).unwrap_or(State::Off)
    }

    /// Whether its vCPUs may be on their cores.
    #[inline]
    pub fn may_run(&self) -> bool {
        // SeqCst: see `VcpuTable::enter`.
        self.state.load(Ordering::SeqCst) == State::Running as u8
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    /// When it was last started: its virtual counter reads zero then.
    pub fn epoch(&self) -> Ticks {
        Ticks(self.epoch.load(Ordering::Relaxed))
    }

    /// Asks for something. The home core must be told to look.
    pub fn ask(&self, request: Request) {
        self.requests.fetch_or(request as u8, Ordering::AcqRel);
    }

    /// Whether something is asked for.
    pub fn is_asked(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::SeqCst);
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

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

    /// Loads kernel, ramdisk and device tree.
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
enum Then {
    End,
    Start,
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Settled,
    Stopping(Then),
    Waiting { until: Ticks },
    Scrubbing { region: usize, offset: usize },
}

/// The home core's part of a machine's life.
#[derive(Debug)]
pub struct Manager {
    phase: Phase,
    policy: OnCrash,
    frequency: Frequency,
    /// The next wait after a crash, in seconds.
    wait: u32,
    started: Ticks,
}

impl Manager {
    /// For a machine that is off.
    pub const fn new(policy: OnCrash, frequency: Frequency) -> Self {
        let (phase, wait) = (Phase::Settled, FIRST_WAIT);
        Self { phase, policy, frequency, wait, started: Ticks(0) }
    }

    /// Whether it is about something that only [`Self::step`] takes further, time apart.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_) | Phase::Scrubbing { .. })
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
            Phase::Settled => Step::Settled,
            Phase::Stopping(then) => self.stop(vm, host, starter, then),
            Phase::Waiting { until } if host.now() < until => Step::At(until),
            Phase::Waiting { .. } => self.start(vm, host, starter),
            Phase::Scrubbing { region, offset } => self.scrub(vm, host, starter, region, offset),
        }
    }

    /// Takes what was asked for. Of several requests the strongest counts: who stops a machine does
    /// not want it reset.
    fn obey<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H) {
        let asked = vm.life.requests.swap(0, Ordering::AcqRel);
        if asked == 0 {
            return;
        }
        let has = |request: Request| asked & request as u8 != 0;
        let state = vm.life.state();
        let runs = matches!(state, State::Running | State::Paused);
        if has(Request::Stop) {
            match state {
                State::Off | State::Crashed => {}
                State::Stopping => self.phase = Phase::Stopping(Then::End),
                _ => self.take_down(vm, host, Then::End),
            }
        } else if has(Request::Crash) && runs {
            self.take_down(vm, host, Then::Crash);
        } else if has(Request::Reset) && runs {
            self.take_down(vm, host, Then::Start);
        } else if has(Request::Start) && state.is_down() {
            self.phase = Phase::Stopping(Then::Start);
            vm.life.set(State::Starting);
        } else if has(Request::Pause) && state == State::Running {
            vm.life.set(State::Paused);
            vm.nudge_all(host);
        } else if has(Request::Resume) && state == State::Paused {
            vm.life.set(State::Running);
            vm.with_watchdog(None, host, Watchdog::resume);
            vm.nudge_all(host);
        }
    }

    fn take_down<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, then: Then) {
        self.phase = Phase::Stopping(then);
        vm.life.set(State::Stopping);
        vm.nudge_all(host);
    }

    fn stop<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
        then: Then,
    ) -> Step {
        if !vm.vcpus.is_at_rest() {
            // The last one to leave tells this core.
            return Step::Settled;
        }
        if !vm.reset(host) {
            return Step::At(host.now().after(self.frequency.ticks(PATIENCE)));
        }
        vm.vcpus.reset();
        match then {
            Then::Start => self.start(vm, host, starter),
            Then::End => self.end(vm, host, starter, State::Off),
            Then::Crash if self.policy == OnCrash::Restart => self.wait(vm, host),
            Then::Crash => self.end(vm, host, starter, State::Crashed),
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
        vm.life.set(State::Waiting);
        Step::At(until)
    }

    fn end<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
        state: State,
    ) -> Step {
        self.phase = Phase::Settled;
        vm.life.set(state);
        starter.ended(vm, host);
        Step::Settled
    }

    fn start<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        vm.life.set(State::Starting);
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
        self.end(vm, host, starter, State::Crashed)
    }

    fn scrub<H: Host>(
        &mut self,
        vm: &Vm<'_>,
        host: &mut H,
        starter: &mut impl Starter<H>,
        region: usize,
        offset: usize,
    ) -> Step {
        let Some((_, memory)) = vm.memory.regions().get(region) else {
            return self.load(vm, host, starter);
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

    fn load<H: Host>(&mut self, vm: &Vm<'_>, host: &mut H, starter: &mut impl Starter<H>) -> Step {
        let placement = match starter.load(vm) {
            Ok(placement) => placement,
            Err(error) => return self.refuse(vm, host, starter, error),
        };
        let start = Start { entry: placement.kernel, context: placement.fdt.raw() };
        // All are off: nobody else turns a vCPU of a machine on that does not run.
        let _ = vm.vcpus.turn_on(VcpuIndex::BOOT, start);
        self.started = host.now();
        vm.life.epoch.store(self.started.0, Ordering::Relaxed);
        vm.with_watchdog(None, host, |watchdog, now| watchdog.reset(now));
        self.phase = Phase::Settled;
        vm.life.starts.fetch_add(1, Ordering::Relaxed);
        vm.life.set(State::Running);
        vm.nudge_all(host);
        Step::Settled
    }
}
