//! The console and the monitor: guests' output, what is typed, the log and time in any order.

use std::fmt::Write;

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::serial::Serial;
use sparkler::console::{Input as Typed, LOG_LEN, MAX_GUESTS, Mux, Settings, View};
use sparkler::monitor::{
    Action, ActionError, CoreInfo, DeviceInfo, MemoryInfo, Operator, VmInfo, VmState, run,
};
use sparkler::virtio::device::DeviceType;
use sparkler::virtio::histogram::Histogram;
use sparkler::virtio::limiter::Limits;
use sparkler::virtio::{Adjustment, Status};
use sparkler::vm::{ExitCounts, Milestones};

use crate::input::Input;

const NAMES: [&str; MAX_GUESTS] = ["a", "vm1", "c", "d", "e", "f", "g", "a|\u{e9}\x1b"];
/// Steps of one input, at the most.
const MAX_STEPS: usize = 400;

#[derive(Default)]
struct Terminal(Vec<u8>);

impl Serial for Terminal {
    fn write_byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
    fn read_byte(&mut self) -> Option<u8> {
        None
    }
}

/// As many VMs as the console has guests, with counters out of the input.
struct Vms<'a> {
    mux: &'a mut Mux,
    terminal: &'a mut Terminal,
    count: usize,
    number: u64,
    refuse: bool,
}

impl Vms<'_> {
    fn answer(&self) -> Result<(), ActionError> {
        if self.refuse { Err(ActionError::WrongState(VmState::Paused)) } else { Ok(()) }
    }
}

impl Operator for Vms<'_> {
    fn vm(&self, vm: usize) -> Option<VmInfo<'_>> {
        (vm < self.count).then(|| VmInfo {
            name: NAMES[vm],
            state: VmState::Running,
            vcpus: self.number as usize,
            online: 1,
            memory: self.number,
            cores: self.number as u8,
            restarts: self.number as u32,
        })
    }
    fn exits(&self, _: usize, _: usize) -> Option<ExitCounts> {
        None
    }
    fn boot(&self, _: usize) -> Option<Milestones> {
        let mut boot = Milestones::NONE;
        boot.begin(Ticks(self.number));
        boot.write(0, self.number, Ticks(u64::MAX));
        Some(boot)
    }
    fn device(&self, _: usize, _: usize) -> Option<DeviceInfo> {
        Some(DeviceInfo {
            kind: DeviceType(self.number as u32 & 0x1F),
            status: Status::empty(),
            stuck: false,
            kicks: self.number,
            interrupts: self.number,
            requests: self.number,
            errors: self.number,
            bytes_in: self.number,
            bytes_out: self.number,
            latency: self.number,
            latency_max: self.number,
            latencies: Histogram::EMPTY,
            limits: [Limits::default(); 2],
            merged: self.number,
            drops: [("number", self.number); _],
        })
    }
    fn core(&self, _: usize) -> Option<CoreInfo> {
        let running = Some((self.number as usize, 0));
        Some(CoreInfo { affinity: self.number, online: true, vcpus: 1, running, switches: 1 })
    }
    fn memory(&self) -> MemoryInfo {
        MemoryInfo { total: self.number, ..MemoryInfo::default() }
    }
    fn frequency(&self) -> Frequency {
        Frequency::new(self.number as u32 | 1).unwrap()
    }
    fn log_written(&self) -> u64 {
        self.mux.log_written()
    }
    fn read_log(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        self.mux.read_log(position, out)
    }
    fn set_log_level(&mut self, _: log::LevelFilter) {}
    fn act(&mut self, _: usize, _: Action) -> Result<(), ActionError> {
        self.answer()
    }
    fn adjust(&mut self, _: usize, _: usize, _: Adjustment) -> Result<(), ActionError> {
        self.answer()
    }
    fn attach(&mut self, vm: usize) -> Result<(), ActionError> {
        assert!(self.mux.attach(vm, self.terminal));
        self.answer()
    }
    fn quit(&mut self) -> Result<(), ActionError> {
        self.mux.quit(self.terminal);
        self.answer()
    }
}

/// Calls `work` with the operator of a board that has one VM.
pub fn with_operator<T>(work: impl FnOnce(&mut dyn Operator) -> T) -> T {
    let (mut mux, mut terminal) = (Box::new(Mux::new()), Terminal::default());
    mux.add_guest(NAMES[0]);
    work(&mut Vms { mux: &mut mux, terminal: &mut terminal, count: 1, number: 1, refuse: false })
}

/// No panic; in the view of all, nothing but text comes out, and every line begins with the name of
/// its guest; commands are answered in whole lines of text.
pub fn monitor(data: &[u8]) {
    let input = &mut Input::new(data);
    let guests = 1 + input.below(MAX_GUESTS);
    let mut mux = Box::new(Mux::new());
    let colours = input.flag();
    let mut settings = Settings::new(Frequency::new(1000).unwrap());
    settings.colours = colours;
    mux.configure(settings);
    for name in &NAMES[..guests] {
        mux.add_guest(name).unwrap();
    }
    let mut terminal = Terminal::default();
    let mut now = Ticks(0);
    for _ in 0..MAX_STEPS {
        if !input.more() {
            break;
        }
        terminal.0.clear();
        let before = mux.view();
        let mut switched = false;
        match input.below(8) {
            0..=2 => {
                let guest = input.below(guests);
                let len = 1 + input.below(64);
                for byte in input.bytes(len) {
                    let _ = mux.output(guest, *byte, &mut terminal);
                }
            }
            3 | 4 => {
                switched = true;
                let len = 1 + input.below(16);
                for byte in input.bytes(len) {
                    if let Typed::Command(line) = mux.input(*byte, &mut terminal) {
                        command(&mut mux, &mut terminal, guests, &line, input);
                    }
                }
            }
            5 => {
                now = now.after(Ticks(input.u8().into()));
                if let Some(next) = mux.tick(now, &mut terminal) {
                    assert!(next >= now);
                }
            }
            6 => {
                let number = input.u8();
                write!(mux.log(&mut terminal), "[sparkler] {number}").unwrap();
                assert!(terminal.0.windows(2).any(|pair| pair == b"\r\n"));
            }
            _ => {
                // A command from a guest.
                switched = true;
                let len = input.below(128);
                let line = input.bytes(len).to_vec();
                command(&mut mux, &mut terminal, guests, &line, input);
            }
        }
        let text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t' | 8);
        if before == View::All && !switched && !colours {
            assert!(terminal.0.iter().all(text), "{:?}", terminal.0);
        }
    }
}

fn command(
    mux: &mut Mux,
    terminal: &mut Terminal,
    count: usize,
    line: &[u8],
    input: &mut Input<'_>,
) {
    let (number, refuse) = (input.u64(), input.flag());
    let mut answer = String::new();
    let mut vms = Vms { mux, terminal, count, number, refuse };
    run(line, &mut vms, &mut answer, LOG_LEN).unwrap();
    assert!(answer.is_empty() || answer.ends_with('\n'));
    write!(mux.terminal(terminal), "{answer}").unwrap();
    mux.prompt(terminal);
}
