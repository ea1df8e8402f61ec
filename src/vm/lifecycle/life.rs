//! What every core may know of a machine's life, and ask: one word, so that a request is judged by
//! what is true when it is taken.
//!
//! What is asked for is not a step but a place to get to. The word has, beside what the machine is
//! doing, where it is to be (down, running, paused) and whether it must be down in between; the home
//! core takes it there ([`super::Manager`]), however long that takes. So a request that meets a machine
//! on its way is kept, the newest wins, and one that has no meaning for a machine that is headed
//! there is refused to who asks:
//!
//! | headed for | start | stop | pause | resume | reset |
//! |---|---|---|---|---|---|
//! | down | runs | refused | refused | refused | refused |
//! | running | refused; at once, if it waits after a crash | down | paused | refused | runs anew |
//! | paused | refused; runs at once, if it waits after a crash | down | refused | runs | runs anew |
//! | what its policy says, having crashed | runs anew | down | refused | refused | runs anew |
//!
//! What the machine does itself ([`Event`]) counts only while the life that does it is not to end
//! anyway.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::backend::clock::Ticks;

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

/// What an operator can ask of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start it, if it is down or waits to be started again.
    Start,
    /// Turn it off.
    Stop,
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Start it anew.
    Reset,
}

/// What a machine does itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its guest, or its watchdog, resets it.
    Reset,
    /// Its guest turns it off.
    Off,
    /// It cannot go on: its policy says what becomes of it.
    Crash,
}

/// Where a machine is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Goal {
    Down = 0,
    Running = 1 << 3,
    Paused = 2 << 3,
}

/// [`Life`]'s word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    pub(super) state: State,
    pub(super) goal: Goal,
    /// On its way to the goal it must be down.
    pub(super) anew: bool,
    /// It has crashed, and its policy has yet to be asked.
    pub(super) crash: bool,
    /// The manager has not seen this yet.
    pub(super) asked: bool,
}

const STATE: u8 = 0b111;
const GOAL: u8 = 0b11 << 3;
const ANEW: u8 = 1 << 5;
const CRASH: u8 = 1 << 6;
const ASKED: u8 = 1 << 7;

impl Course {
    fn bits(self) -> u8 {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        self.state as u8
            | self.goal as u8
            | flag(self.anew, ANEW)
            | flag(self.crash, CRASH)
            | flag(self.asked, ASKED)
    }

    fn from_bits(bits: u8) -> Self {
        let known = State::ALL.get(usize::from(bits & STATE)).copied();
        Self {
            state: known.unwrap_or(State::Off),
            goal: match bits & GOAL {
                goal if goal == Goal::Running as u8 => Goal::Running,
                goal if goal == Goal::Paused as u8 => Goal::Paused,
                _ => Goal::Down,
            },
            anew: bits & ANEW != 0,
            crash: bits & CRASH != 0,
            asked: bits & ASKED != 0,
        }
    }

    /// Its vCPUs are where the guest left them.
    pub(super) const fn is_up(self) -> bool {
        matches!(self.state, State::Running | State::Paused)
    }

    /// What to call its state once what was accepted has begun.
    const fn outlook(self) -> State {
        match (self.state, self.goal) {
            (state, Goal::Down) if state.is_down() => state,
            (_, Goal::Down) => State::Stopping,
            (State::Off | State::Crashed, _) => State::Starting,
            _ if self.is_up() && (self.anew || self.crash) => State::Stopping,
            (State::Running | State::Paused, Goal::Running) => State::Running,
            (State::Running | State::Paused, Goal::Paused) => State::Paused,
            (State::Waiting, _) if self.anew => State::Starting,
            (state, _) => state,
        }
    }

    /// The course after a request; `None` if it has no meaning.
    const fn after_request(self, request: Request) -> Option<Self> {
        let down = matches!(self.goal, Goal::Down);
        let at_once = self.crash || matches!(self.state, State::Waiting) && !self.anew;
        let anew = Self { goal: Goal::Running, anew: true, crash: false, asked: true, ..self };
        match (request, self.goal) {
            (Request::Start, _) if down || at_once => Some(anew),
            (Request::Reset, _) if !down => Some(anew),
            (Request::Stop, _) if !down => Some(Self { goal: Goal::Down, ..anew }),
            (Request::Pause, Goal::Running) if !self.crash => {
                Some(Self { goal: Goal::Paused, asked: true, ..self })
            }
            (Request::Resume, Goal::Paused) if !self.crash => {
                Some(Self { goal: Goal::Running, asked: true, ..self })
            }
            _ => None,
        }
    }

    /// The course after an event; `None` if that is of a life that ends anyway.
    const fn after_event(self, event: Event) -> Option<Self> {
        if !self.is_up() || self.anew || self.crash {
            return None;
        }
        Some(match event {
            Event::Reset => Self { anew: true, asked: true, ..self },
            Event::Off => Self { goal: Goal::Down, anew: true, asked: true, ..self },
            Event::Crash => Self { crash: true, asked: true, ..self },
        })
    }
}

/// What every core may know of a machine's life, and ask.
#[derive(Debug)]
pub struct Life {
    course: AtomicU8,
    starts: AtomicU32,
    behind: AtomicU64,
}

impl Life {
    /// A machine that is off.
    pub const fn new() -> Self {
        let (course, starts) = (AtomicU8::new(State::Off as u8), AtomicU32::new(0));
        Self { course, starts, behind: AtomicU64::new(0) }
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.course().state
    }

    /// Whether it is down, and nobody has asked for its start.
    pub fn has_ended(&self) -> bool {
        let course = self.course();
        course.state.is_down() && course.goal == Goal::Down
    }

    /// Whether its vCPUs may be on their cores.
    #[inline]
    pub fn may_run(&self) -> bool {
        // SeqCst: see `VcpuTable::enter`.
        self.course.load(Ordering::SeqCst) & STATE == State::Running as u8
    }

    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    /// What its virtual counter is behind the board's: CNTVOFF_EL2 of all its vCPUs.
    pub fn behind(&self) -> Ticks {
        Ticks(self.behind.load(Ordering::Relaxed))
    }

    /// Asks for something, which will be done. The home core must be told to look.
    ///
    /// # Errors
    /// If it has no meaning for a machine that is, or is about to be, in the state that is returned.
    pub fn ask(&self, request: Request) -> Result<(), State> {
        self.change(|course| course.after_request(request)).map(|_| ()).map_err(Course::outlook)
    }

    /// The machine does something. The home core must be told to look.
    pub fn happen(&self, event: Event) {
        let _ = self.change(|course| course.after_event(event));
    }

    /// Whether something is asked for.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.course.load(Ordering::Relaxed) & ASKED != 0
    }

    pub(super) fn course(&self) -> Course {
        Course::from_bits(self.course.load(Ordering::SeqCst))
    }

    /// The course, which the manager has seen from now on.
    pub(super) fn take(&self) -> Course {
        Course::from_bits(self.course.fetch_and(!ASKED, Ordering::SeqCst))
    }

    /// Sets the state, and nothing else.
    pub(super) fn set(&self, state: State) {
        let _ = self.change(|course| Some(Course { state, ..course }));
    }

    /// Changes the course at once, unless `change` says not to; what it was, or still is.
    pub(super) fn change(
        &self,
        mut change: impl FnMut(Course) -> Option<Course>,
    ) -> Result<Course, Course> {
        let change = |bits| change(Course::from_bits(bits)).map(Course::bits);
        let changed = self.course.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        changed.map(Course::from_bits).map_err(Course::from_bits)
    }

    pub(super) fn has_started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_behind(&self, behind: Ticks) {
        self.behind.store(behind.0, Ordering::Relaxed);
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}
