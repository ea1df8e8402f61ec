//! Console devices, and what is at the other ends of their ports.

use core::time::Duration;

use sparkler::arch::timer::Counter;
use sparkler::arch::wake::Cores;
use sparkler::backend::clock::Clock;
use sparkler::backend::port::{LogPort, Pipe, PipeEnd, PortBackend};
use sparkler::backend::wake::Waker;
use sparkler::fdt::{PortList, PortTarget};
use sparkler::rate_limit::RateLimit;
use sparkler::virtio::devices::console::{Console, PortConfig};
use sparkler::vm::Vm;

use super::arena::place;

/// Pipes of which one end is in use.
const MAX_PIPES: usize = 16;
/// Lines that a guest can have logged at once, and how often another.
const LINES: u32 = 32;
const LINE_INTERVAL: Duration = Duration::from_millis(500);

static WAKE: Cores = Cores;

/// The pipes between consoles.
#[derive(Default)]
pub(super) struct Consoles {
    half: heapless::Vec<(&'static str, &'static Pipe<'static>), MAX_PIPES>,
}

impl Consoles {
    /// A device with these ports for `vm`, and the terminal's end of one. `None` if EL2 has too little
    /// memory.
    #[inline(never)]
    pub(super) fn device(
        &mut self,
        vm: &Vm<'static>,
        ports: &PortList<'static>,
    ) -> Option<(&'static mut Console<'static, 'static>, Option<PipeEnd<'static>>)> {
        let console = front()?;
        let mut terminal = None;
        let waker = || Some(Waker::new(&WAKE, vm.vcpus.home()));
        for target in ports.iter().flatten() {
            let (backend, name): (&'static mut dyn PortBackend, _) = match target {
                PortTarget::Terminal => {
                    let pipe = pipe()?;
                    terminal = Some(pipe.end(true, None));
                    (end(pipe.end(false, waker()))?, "terminal")
                }
                PortTarget::Log => {
                    let limit = RateLimit::new(LINES, Counter.frequency().ticks(LINE_INTERVAL));
                    (log(LogPort::new(vm.name, limit))?, "log")
                }
                PortTarget::Pipe(name) => {
                    let known = self.half.iter().find(|(known, _)| *known == name);
                    let (pipe, second) = match known {
                        Some((_, pipe)) => (*pipe, true),
                        None => {
                            let pipe = pipe()?;
                            self.half.push((name, pipe)).ok()?;
                            (pipe, false)
                        }
                    };
                    (end(pipe.end(second, waker()))?, name)
                }
            };
            let is_terminal = target == PortTarget::Terminal;
            if !console.add_port(PortConfig { backend, name, console: is_terminal }) {
                return None;
            }
        }
        Some((console, terminal))
    }
}

// What is large is built in a function of its own: see `machines`.

#[inline(never)]
fn front() -> Option<&'static mut Console<'static, 'static>> {
    place(Console::new)
}

#[inline(never)]
fn pipe() -> Option<&'static Pipe<'static>> {
    place(Pipe::new).map(|pipe| &*pipe)
}

#[inline(never)]
fn end(end: PipeEnd<'static>) -> Option<&'static mut PipeEnd<'static>> {
    place(|| end)
}

#[inline(never)]
fn log(port: LogPort) -> Option<&'static mut LogPort> {
    place(|| port)
}
