//! The board's serial line: the guests' consoles, the log and the monitor share it.
//!
//! One lock is around the UART and [`Mux`], which says who is seen. It is the last one taken: under it
//! nobody wants another. A line of the log is written whole; bytes of a guest take it one by one.

use core::fmt::{self, Write};
use core::time::Duration;

use super::mmio::Mmio;
use super::{barrier, layout, timer};
use crate::backend::clock::{Clock, Ticks};
use crate::backend::serial::Serial;
pub(super) use crate::console::IDLE;
use crate::console::{Input, Mux, Settings};
use crate::drivers::pl011::Pl011;
use crate::memory::Pa;
use crate::sync::{Mutex, MutexGuard};

type Uart = Pl011<Mmio>;

/// An [`Option`] whose none is zero: what is zero takes no room in the image, and [`Mux`] is large.
#[repr(u8)]
enum Line {
    /// The boot code's successor has not found a UART yet.
    Closed = 0,
    Open(Uart),
}

struct Console {
    mux: Mux,
    line: Line,
}

impl Console {
    /// The UART, if there is one.
    fn uart(&mut self) -> Option<&mut Uart> {
        match &mut self.line {
            Line::Open(uart) => Some(uart),
            Line::Closed => None,
        }
    }
}

static CONSOLE: Mutex<Console> = Mutex::new(Console { mux: Mux::new(), line: Line::Closed });

/// The console becomes `uart`.
pub fn set(uart: Pl011<Mmio>) {
    CONSOLE.lock().line = Line::Open(uart);
}

/// What the console is like, by the hypervisor's arguments.
///
/// # Errors
/// The first word of them that is meant for the console and means nothing.
pub fn configure(bootargs: &str) -> Result<(), &str> {
    let settings = Settings::new(timer::Counter.frequency()).parse(bootargs)?;
    CONSOLE.lock().mux.configure(settings);
    Ok(())
}

/// The next guest has a console, and this name on it. Its number is that of its machine.
pub fn add_guest(name: &str) {
    let _ = CONSOLE.lock().mux.add_guest(name);
}

/// Opens the default UART if no console is open yet: for what goes wrong before one is.
pub(super) fn open_default() {
    if CONSOLE.is_locked() || CONSOLE.lock().uart().is_some() {
        return;
    }
    // SAFETY: nothing better is known, and nothing is left to lose.
    if let Ok(registers) = unsafe { Mmio::map(Pa::new(layout::DEFAULT_UART), 0x1000) } {
        set(Pl011::new(registers));
    }
}

/// Runs `f` on the console, if there is one.
#[inline]
fn with<T>(f: impl FnOnce(&mut Mux, &mut Uart) -> T) -> Option<T> {
    let Console { mux, line } = &mut *CONSOLE.lock();
    match line {
        Line::Open(uart) => Some(f(mux, uart)),
        Line::Closed => None,
    }
}

/// A guest's byte. `true` if this core is to call [`tick`] after [`IDLE`].
#[inline(never)]
pub(super) fn output(guest: usize, byte: u8) -> bool {
    with(|mux, uart| mux.output(guest, byte, uart)).unwrap_or(false)
}

/// Does what only time can bring about; when to call again.
pub(super) fn tick(now: Ticks) -> Option<Ticks> {
    with(|mux, uart| mux.tick(now, uart)).flatten()
}

/// The next byte of input, or the one that was held, and what is to be done with it.
pub(super) fn next_input() -> Option<Input> {
    with(|mux, uart| {
        if let Some((guest, byte)) = mux.take_held() {
            return Some(Input::Guest { guest, byte });
        }
        let byte = uart.read_byte()?;
        Some(mux.input(byte, uart))
    })
    .flatten()
}

/// A guest had no room for a byte: whether it will come again from [`next_input`].
pub(super) fn hold(guest: usize, byte: u8) -> bool {
    let now = timer::Counter.now();
    with(|mux, _| mux.hold(guest, byte, now)).unwrap_or(false)
}

/// Whether a byte is held.
pub(super) fn is_held() -> bool {
    with(|mux, _| mux.is_held()).unwrap_or(false)
}

/// A guest took its byte.
pub(super) fn delivered() {
    with(|mux, _| mux.delivered());
}

/// Lets received bytes raise the UART's interrupt, or not.
pub(super) fn set_receive_interrupt(on: bool) {
    with(|_, uart| uart.set_receive_interrupt(on));
}

/// Takes the UART's interrupt back; what has come is to be read afterwards.
pub(super) fn acknowledge_interrupt() {
    with(|_, uart| uart.acknowledge_interrupt());
}

/// Gives the terminal to a guest. `false` if there is no such guest.
pub(super) fn attach(guest: usize) -> bool {
    with(|mux, uart| mux.attach(guest, uart)).unwrap_or(false)
}

/// The monitor gives the terminal back.
pub(super) fn quit() {
    with(|mux, uart| mux.quit(uart));
}

/// The monitor is done with a command.
pub(super) fn prompt() {
    with(|mux, uart| mux.prompt(uart));
}

/// Bytes that were ever logged.
pub(super) fn log_written() -> u64 {
    CONSOLE.lock().mux.log_written()
}

/// The log from `position` on: see [`Mux::read_log`].
pub(super) fn read_log(position: u64, out: &mut [u8]) -> (usize, u64) {
    CONSOLE.lock().mux.read_log(position, out)
}

/// Where the monitor writes. The console is taken for each piece, so that nobody waits for all.
pub(super) struct Terminal;

impl Write for Terminal {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        with(|mux, uart| mux.terminal(uart).write_str(text)).unwrap_or(Ok(()))
    }
}

/// Writes lines to the log as they are; the last one is ended.
pub(super) fn log_line(write: impl FnOnce(&mut dyn Write)) {
    with(|mux, uart| write(&mut mux.log(uart)));
}

/// The console in the hands of a core that is about to end EL2. What is written goes to the UART, past
/// the [`Mux`], whose state nobody can rely on any more.
pub(super) struct Seized(MutexGuard<'static, Console>);

/// How long [`seize`] waits for a line of the log to end.
const PATIENCE: Duration = Duration::from_millis(20);

/// Takes the console, whoever holds it: perhaps this core, which then will not return to let go of it.
pub(super) fn seize() -> Seized {
    let clock = timer::Counter;
    let end = clock.now().after(clock.frequency().ticks(PATIENCE));
    loop {
        if let Some(console) = CONSOLE.try_lock() {
            return Seized(console);
        }
        if clock.now() > end {
            // SAFETY: the holder, if it is this core, never runs again; another core's line may be
            // torn, which a dying EL2 accepts. Of what the lock protects, only the UART is used from
            // now on, and for that it protects nothing but the order of bytes.
            unsafe { CONSOLE.raw().force_unlock() };
        }
        barrier::relax();
    }
}

impl Write for Seized {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let Some(uart) = self.0.uart() else { return Ok(()) };
        for byte in text.bytes() {
            if byte == b'\n' {
                uart.write_byte(b'\r');
            }
            uart.write_byte(byte);
        }
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Info => "",
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            log::Level::Debug => "DEBUG: ",
            log::Level::Trace => "TRACE: ",
        };
        with(|mux, uart| write!(mux.log(uart), "[sparkler] {level}{}", record.args()));
    }

    fn flush(&self) {}
}

/// The log goes to the console from now on, from `level` up.
pub fn init_log(level: log::LevelFilter) {
    static LOGGER: Logger = Logger;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}
