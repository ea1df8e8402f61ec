//! The board's console: the log's way out, and a guest's.
//!
//! A line of the log is written whole: its writer holds the UART. Bytes of a guest take it one by
//! one.

use core::fmt::{self, Write};
use core::time::Duration;

use super::mmio::Mmio;
use super::{barrier, layout, timer};
use crate::backend::clock::Clock;
use crate::backend::serial::Serial;
use crate::drivers::pl011::Pl011;
use crate::memory::Pa;
use crate::sync::{Mutex, MutexGuard};

/// The UART; `None` until the boot code's successor has found one.
static UART: Mutex<Option<Pl011<Mmio>>> = Mutex::new(None);

/// The console becomes `uart`.
pub fn set(uart: Pl011<Mmio>) {
    *UART.lock() = Some(uart);
}

/// Opens the default UART if no console is open yet: for what goes wrong before one is.
pub(super) fn open_default() {
    if UART.is_locked() || UART.lock().is_some() {
        return;
    }
    // SAFETY: nothing better is known, and nothing is left to lose.
    if let Ok(registers) = unsafe { Mmio::map(Pa::new(layout::DEFAULT_UART), 0x1000) } {
        set(Pl011::new(registers));
    }
}

/// Runs `f` on the UART, if there is one.
pub fn with<T>(f: impl FnOnce(&mut Pl011<Mmio>) -> T) -> Option<T> {
    UART.lock().as_mut().map(f)
}

fn write(uart: &mut Pl011<Mmio>, text: &str) {
    for byte in text.bytes() {
        if byte == b'\n' {
            uart.write_byte(b'\r');
        }
        uart.write_byte(byte);
    }
}

/// The UART as a [`Write`]. Each piece is written whole; a line in several pieces may be torn by
/// another core's.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        with(|uart| write(uart, text));
        Ok(())
    }
}

/// The console in the hands of a core that is about to end EL2.
pub(super) struct Seized(MutexGuard<'static, Option<Pl011<Mmio>>>);

/// How long [`seize`] waits for a line of the log to end.
const PATIENCE: Duration = Duration::from_millis(20);

/// Takes the console, whoever holds it: perhaps this core, which then will not return to let go of it.
pub(super) fn seize() -> Seized {
    let clock = timer::Counter;
    let end = clock.now().after(clock.frequency().ticks(PATIENCE));
    loop {
        if let Some(uart) = UART.try_lock() {
            return Seized(uart);
        }
        if clock.now() > end {
            // SAFETY: the holder, if it is this core, never runs again; another core's line may be
            // torn, which a dying EL2 accepts. The lock protects nothing but the order of bytes.
            unsafe { UART.force_unlock() };
        }
        barrier::relax();
    }
}

impl Write for Seized {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(uart) = self.0.as_mut() {
            write(uart, text);
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
        with(|uart| {
            let mut line = Line(uart);
            let _ = match record.level() {
                log::Level::Info => writeln!(line, "[sparkler] {}", record.args()),
                log::Level::Error => writeln!(line, "[sparkler] error: {}", record.args()),
                log::Level::Warn => writeln!(line, "[sparkler] warning: {}", record.args()),
                level => writeln!(line, "[sparkler] {level}: {}", record.args()),
            };
        });
    }

    fn flush(&self) {}
}

struct Line<'a>(&'a mut Pl011<Mmio>);

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(self.0, text);
        Ok(())
    }
}

/// The log goes to the console from now on, from `level` up.
pub fn init_log(level: log::LevelFilter) {
    static LOGGER: Logger = Logger;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}
