//! Text on the PL011 that the device tree names.

use crate::mmio;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

/// UARTDR, PL011 TRM 3.3.1.
const DR: usize = 0x000;
/// UARTFR, PL011 TRM 3.3.3.
const FR: usize = 0x018;
/// Transmit FIFO full.
const FR_TXFF: u32 = 1 << 5;

static UART: AtomicUsize = AtomicUsize::new(0);

/// Prints from now on go to the PL011 at `base`.
pub(crate) fn set_uart(base: usize) {
    UART.store(base, Ordering::Relaxed);
}

struct Pl011;

impl Write for Pl011 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = UART.load(Ordering::Relaxed);
        if base != 0 {
            for byte in text.bytes() {
                if byte == b'\n' {
                    put(base, b'\r');
                }
                put(base, byte);
            }
        }
        Ok(())
    }
}

fn put(base: usize, byte: u8) {
    while mmio::read32(base + FR) & FR_TXFF != 0 {
        core::hint::spin_loop();
    }
    mmio::write32(base + DR, byte.into());
}

/// The target of the print macros.
pub(crate) fn emit(text: fmt::Arguments<'_>) {
    // The console has no errors to return.
    let _ = Pl011.write_fmt(text);
}

/// Prints a line.
macro_rules! println {
    () => { $crate::console::emit(format_args!("\n")) };
    ($($text:tt)*) => {{
        $crate::console::emit(format_args!($($text)*));
        $crate::console::emit(format_args!("\n"));
    }};
}

/// Prints without ending the line.
macro_rules! print {
    ($($text:tt)*) => { $crate::console::emit(format_args!($($text)*)) };
}

pub(crate) use {print, println};
