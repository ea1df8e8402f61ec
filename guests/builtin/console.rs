//! Text on the PL011 that the device tree names.

use crate::mmio;
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

/// What can be printed. `core::fmt` would be a tenth of this guest.
pub(crate) trait Show {
    /// Prints it.
    fn show(&self);
}

impl Show for &str {
    #[inline(never)]
    fn show(&self) {
        self.bytes().for_each(put);
    }
}

impl Show for u64 {
    fn show(&self) {
        digits(*self, 10);
    }
}

impl Show for usize {
    fn show(&self) {
        digits(*self as u64, 10);
    }
}

impl Show for u32 {
    fn show(&self) {
        digits((*self).into(), 10);
    }
}

/// A number in hexadecimal, with its 0x.
pub(crate) struct Hex(pub(crate) u64);

impl Show for Hex {
    fn show(&self) {
        "0x".show();
        digits(self.0, 16);
    }
}

#[inline(never)]
fn digits(mut value: u64, base: u64) {
    // 2^64 has 20 decimal digits.
    let mut text = [0u8; 20];
    let mut length = 0;
    for digit in &mut text {
        *digit = b"0123456789abcdef"[(value % base) as usize];
        value /= base;
        length += 1;
        if value == 0 {
            break;
        }
    }
    text[..length].iter().rev().copied().for_each(put);
}

#[inline(never)]
fn put(byte: u8) {
    let base = UART.load(Ordering::Relaxed);
    if base == 0 {
        return;
    }
    if byte == b'\n' {
        put(b'\r');
    }
    while mmio::read32(base + FR) & FR_TXFF != 0 {
        core::hint::spin_loop();
    }
    mmio::write32(base + DR, byte.into());
}

/// Prints each argument, then ends the line.
macro_rules! line {
    ($($piece:expr),* $(,)?) => {{
        $($crate::console::Show::show(&$piece);)*
        $crate::console::Show::show(&"\n");
    }};
}

pub(crate) use line;
