//! Requests in any order, at any time: what is accepted is done, and what is answered is true.

use proptest::prelude::*;

use super::super::testing::HERTZ;
use super::tests::Home;
use super::*;

/// What the table of [`super::life`] says of a machine once everything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Down(State),
    Up { paused: bool },
    Crashing { paused: bool },
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Ask(Request),
    Happen(Event),
    Step,
    /// The boot vCPU's core looks.
    Look,
    /// Time passes, in milliseconds.
    Wait(u64),
}

struct Trial {
    home: Home,
    policy: OnCrash,
    fate: Fate,
    /// The boot vCPU is on, since this start.
    on: Option<u32>,
    loaded: bool,
    /// The life of this number is to end.
    over: Option<u32>,
    /// There must be a start after this one.
    anew: Option<u32>,
}

impl Trial {
    fn new(policy: OnCrash) -> Self {
        let fate = Fate::Down(State::Off);
        let home = Home::new(policy);
        Self { home, policy, fate, on: None, loaded: false, over: None, anew: None }
    }

    fn life(&self) -> &Life {
        &self.home.machine.vm.life
    }

    /// A machine that has crashed waits or is down once that is seen.
    fn follow(&mut self) {
        match (self.fate, self.home.state()) {
            (Fate::Crashing { .. }, State::Crashed) => self.fate = Fate::Down(State::Crashed),
            // It is loaded anew, in steps, of which the last one counts as a start.
            (Fate::Crashing { paused }, State::Starting) if self.policy == OnCrash::Restart => {
                self.fate = Fate::Up { paused };
            }
            (Fate::Crashing { paused }, State::Running | State::Paused)
                if self.policy == OnCrash::Restart && self.over != Some(self.life().starts()) =>
            {
                self.fate = Fate::Up { paused };
            }
            _ => {}
        }
    }

    /// What becomes of the machine by the table; `None` if the request is refused.
    fn expected(&self, request: Request) -> Option<Fate> {
        let up = Some(Fate::Up { paused: false });
        let waits = self.home.state() == State::Waiting;
        match (request, self.fate) {
            (Request::Start, Fate::Down(_) | Fate::Crashing { .. }) => up,
            (Request::Reset, Fate::Up { .. } | Fate::Crashing { .. }) => up,
            (Request::Stop, Fate::Up { .. } | Fate::Crashing { .. }) => {
                Some(Fate::Down(State::Off))
            }
            (Request::Pause, Fate::Up { paused: false }) => Some(Fate::Up { paused: true }),
            (Request::Resume, Fate::Up { paused: true }) => up,
            (Request::Pause, Fate::Crashing { paused: false }) if waits => {
                Some(Fate::Crashing { paused: true })
            }
            (Request::Resume, Fate::Crashing { paused: true }) if waits => {
                Some(Fate::Crashing { paused: false })
            }
            _ => None,
        }
    }

    fn ask(&mut self, request: Request) {
        let expected = self.expected(request);
        let answer = self.home.machine.vm.ask(request, &mut self.home.machine.host);
        assert_eq!(answer.is_ok(), expected.is_some(), "{request:?}: {answer:?}, {:?}", self.fate);
        let Some(fate) = expected else { return };
        self.fate = fate;
        let starts = self.life().starts();
        match request {
            Request::Start | Request::Reset => {
                (self.over, self.anew) = (Some(starts), Some(starts));
            }
            Request::Stop => (self.over, self.anew) = (Some(starts), None),
            Request::Pause | Request::Resume => {}
        }
    }

    /// What a guest does, it does while a vCPU of it is on its core.
    fn happen(&mut self, event: Event) {
        if !self.loaded {
            return;
        }
        self.home.machine.vm.happen(event, &mut self.home.machine.host);
        let starts = self.life().starts();
        if self.over == Some(starts) {
            return;
        }
        let Fate::Up { paused } = self.fate else { return };
        self.over = Some(starts);
        match event {
            Event::Reset => self.anew = Some(starts),
            Event::Off => self.fate = Fate::Down(State::Off),
            Event::Crash => self.fate = Fate::Crashing { paused },
        }
    }

    fn look(&mut self) {
        let vm = self.home.machine.vm;
        if self.loaded {
            if !vm.life.may_run() {
                vm.vcpus.leave(VcpuIndex::BOOT);
                self.loaded = false;
            }
        } else if vm.life.may_run() {
            if vm.vcpus.take_start(VcpuIndex::BOOT).is_some() {
                self.on = Some(vm.life.starts());
            }
            if self.on == Some(vm.life.starts()) {
                vm.vcpus.enter(VcpuIndex::BOOT);
                self.loaded = true;
            }
        }
    }

    fn make(&mut self, step: Move) {
        match step {
            Move::Ask(request) => self.ask(request),
            Move::Happen(event) => self.happen(event),
            Move::Step => drop(self.home.step()),
            Move::Look => self.look(),
            Move::Wait(milliseconds) => {
                self.home.machine.host.now.0 += milliseconds * HERTZ / 1000;
            }
        }
        self.follow();
    }
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    use Request::{Pause, Reset, Resume, Start, Stop};
    let request = prop::sample::select(vec![Start, Stop, Pause, Resume, Reset]);
    let event = prop::sample::select(vec![Event::Reset, Event::Off, Event::Crash]);
    let one = prop_oneof![
        4 => request.prop_map(Move::Ask),
        1 => event.prop_map(Move::Happen),
        5 => Just(Move::Step),
        3 => Just(Move::Look),
        1 => (0..3000u64).prop_map(Move::Wait),
    ];
    prop::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn what_is_accepted_is_done_whatever_the_machine_was_doing(
        restarts in any::<bool>(),
        moves in moves(),
    ) {
        let mut trial = Trial::new(if restarts { OnCrash::Restart } else { OnCrash::Stop });
        for step in moves {
            trial.make(step);
        }
        for _ in 0..20 {
            for step in [Move::Step, Move::Look, Move::Step, Move::Wait(10_000)] {
                trial.make(step);
            }
        }
        let expected = match trial.fate {
            Fate::Down(state) => state,
            Fate::Up { paused: false } => State::Running,
            Fate::Up { paused: true } => State::Paused,
            Fate::Crashing { .. } => panic!("the crash was never seen"),
        };
        prop_assert_eq!(trial.home.state(), expected);
        if let (Some(before), Fate::Up { .. }) = (trial.anew, trial.fate) {
            prop_assert!(trial.life().starts() > before, "it was to be started anew");
        }
        prop_assert_eq!(trial.loaded, expected == State::Running);
    }
}
