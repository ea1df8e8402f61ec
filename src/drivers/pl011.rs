//! Arm PrimeCell UART (PL011), polled. Source: Arm DDI 0183, "PrimeCell UART (PL011) Technical
//! Reference Manual", chapter 3.

use super::registers::Registers;
use crate::backend::serial::Serial;

/// Data (UARTDR): a byte, and on reading the errors that came with it.
const UARTDR: usize = 0x00;
/// Flags (UARTFR).
const UARTFR: usize = 0x18;
/// Line control (UARTLCR_H).
const UARTLCR_H: usize = 0x2c;
/// Control (UARTCR).
const UARTCR: usize = 0x30;
/// Interrupt mask (UARTIMSC): a set bit lets the interrupt through.
const UARTIMSC: usize = 0x38;
/// Interrupt clear (UARTICR), write-only.
const UARTICR: usize = 0x44;

/// UARTDR.BE: the byte is not one but a break on the line.
const DR_BE: u32 = 1 << 10;

/// UARTFR.BUSY: a byte is still being sent.
const FR_BUSY: u32 = 1 << 3;
/// UARTFR.RXFE: nothing has been received.
const FR_RXFE: u32 = 1 << 4;
/// UARTFR.TXFF: there is no room to send.
const FR_TXFF: u32 = 1 << 5;

/// UARTLCR_H.FEN: FIFOs on.
const LCR_H_FEN: u32 = 1 << 4;
/// UARTLCR_H.WLEN: eight bits.
const LCR_H_WLEN_8: u32 = 0b11 << 5;
/// Eight bits, no parity, one stop bit, FIFOs on.
const LCR_H_8N1: u32 = LCR_H_WLEN_8 | LCR_H_FEN;

/// UARTCR.UARTEN: the UART is on.
const CR_UARTEN: u32 = 1 << 0;
/// UARTCR.TXE: the transmitter is on.
const CR_TXE: u32 = 1 << 8;
/// UARTCR.RXE: the receiver is on.
const CR_RXE: u32 = 1 << 9;
/// What a console needs to be on.
const CR_ON: u32 = CR_UARTEN | CR_TXE | CR_RXE;

/// RXIM, RXIC: the receive FIFO has reached its trigger level.
const INT_RX: u32 = 1 << 4;
/// RTIM, RTIC: something has lain in the receive FIFO for 32 bit periods.
const INT_RT: u32 = 1 << 6;

/// Looks at UARTFR before a wait is given up. A byte takes 1 ms at 9600 Bd, a look about 0.1 us.
const PATIENCE: u32 = 1 << 16;
/// Breaks passed over in one [`Serial::read_byte`]; the deepest FIFO of any revision.
const FIFO_DEPTH: usize = 32;

/// A PL011.
pub struct Pl011<R> {
    registers: R,
    /// The last wait for room ran out; until there is room again, bytes are dropped at once.
    stuck: bool,
}

impl<R: Registers> Pl011<R> {
    /// The PL011 behind `registers`, left as the firmware set it up.
    pub const fn new(registers: R) -> Self {
        Self { registers, stuck: false }
    }

    /// Makes the line 8N1 with FIFOs and turns transmitter and receiver on.
    ///
    /// The divisors stay, since only the firmware knows the UART's clock. A line that is already
    /// so is left alone: reprogramming would lose the byte that is on its way. Interrupts stay as
    /// they are.
    pub fn enable(&self) {
        let control = self.registers.read32(UARTCR);
        let format = self.registers.read32(UARTLCR_H);
        if control & CR_ON == CR_ON && format == LCR_H_8N1 {
            return;
        }
        if control & CR_UARTEN != 0 {
            // DDI 0183 3.3.8: no reprogramming before the byte on the line is out.
            let _ = self.wait_while(FR_BUSY);
            self.registers.write32(UARTCR, control & !CR_UARTEN);
        }
        self.registers.write32(UARTLCR_H, LCR_H_8N1);
        self.registers.write32(UARTCR, control | CR_ON);
    }

    /// Lets received bytes raise the UART's interrupt, or not; all its other causes are masked.
    /// The line stays up until [`acknowledge_interrupt`](Self::acknowledge_interrupt), or until
    /// the FIFO has been read empty.
    pub fn set_receive_interrupt(&self, on: bool) {
        self.registers.write32(UARTIMSC, if on { INT_RX | INT_RT } else { 0 });
    }

    /// Takes the receive interrupt back. Read the bytes afterwards: one that comes in later raises
    /// it again.
    #[inline]
    pub fn acknowledge_interrupt(&self) {
        self.registers.write32(UARTICR, INT_RX | INT_RT);
    }

    /// Whether all of `flags` went away within [`PATIENCE`] looks.
    fn wait_while(&self, flags: u32) -> bool {
        for _ in 0..PATIENCE {
            if self.registers.read32(UARTFR) & flags == 0 {
                return true;
            }
            core::hint::spin_loop();
        }
        false
    }
}

impl<R: Registers> Serial for Pl011<R> {
    /// Waits for room for a bounded number of looks, then drops the byte; a line found stuck so
    /// costs later bytes one look each, until it moves.
    fn write_byte(&mut self, byte: u8) {
        let room = if self.stuck {
            self.registers.read32(UARTFR) & FR_TXFF == 0
        } else {
            self.wait_while(FR_TXFF)
        };
        self.stuck = !room;
        if room {
            self.registers.write32(UARTDR, u32::from(byte));
        }
    }

    /// Bytes with parity, framing or overrun errors are handed on as they came; breaks are not
    /// bytes and are passed over.
    fn read_byte(&mut self) -> Option<u8> {
        for _ in 0..FIFO_DEPTH {
            if self.registers.read32(UARTFR) & FR_RXFE != 0 {
                return None;
            }
            let data = self.registers.read32(UARTDR);
            if data & DR_BE == 0 {
                return Some(data as u8);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    #[derive(Default)]
    struct Uart {
        control: Cell<u32>,
        format: Cell<u32>,
        mask: Cell<u32>,
        cleared: Cell<u32>,
        received: RefCell<VecDeque<u32>>,
        sent: RefCell<Vec<u8>>,
        /// Looks at UARTFR for which TXFF and BUSY are still up.
        full_for: Cell<u32>,
        looks: Cell<u32>,
        writes: RefCell<Vec<(usize, u32)>>,
    }

    impl Registers for Uart {
        fn read32(&self, offset: usize) -> u32 {
            match offset {
                UARTDR => self.received.borrow_mut().pop_front().unwrap(),
                UARTFR => {
                    self.looks.set(self.looks.get() + 1);
                    let mut flags = 0;
                    if self.received.borrow().is_empty() {
                        flags |= FR_RXFE;
                    }
                    if self.full_for.get() > 0 {
                        self.full_for.set(self.full_for.get() - 1);
                        flags |= FR_TXFF | FR_BUSY;
                    }
                    flags
                }
                UARTCR => self.control.get(),
                UARTLCR_H => self.format.get(),
                _ => panic!("read of {offset:#x}"),
            }
        }

        fn write32(&self, offset: usize, value: u32) {
            self.writes.borrow_mut().push((offset, value));
            match offset {
                UARTDR => self.sent.borrow_mut().push(value as u8),
                UARTCR => self.control.set(value),
                UARTLCR_H => {
                    assert_eq!(self.control.get() & CR_UARTEN, 0, "format changed while on");
                    self.format.set(value);
                }
                UARTIMSC => self.mask.set(value),
                UARTICR => self.cleared.set(value),
                _ => panic!("write of {offset:#x}"),
            }
        }
    }

    #[test]
    fn a_line_the_firmware_set_up_is_left_alone() {
        let uart = Uart::default();
        uart.control.set(CR_ON | 1 << 15);
        uart.format.set(0x70);
        Pl011::new(&uart).enable();
        assert!(uart.writes.borrow().is_empty());
    }

    #[test]
    fn a_line_that_is_off_becomes_8n1_and_on() {
        let uart = Uart::default();
        uart.control.set(0x300); // the reset value
        Pl011::new(&uart).enable();
        assert_eq!(*uart.writes.borrow(), [(0x2c, 0x70), (0x30, 0x301)]);
    }

    #[test]
    fn another_format_is_changed_after_the_last_byte_and_flow_control_is_kept() {
        let uart = Uart::default();
        uart.control.set(CR_ON | 1 << 15 | 1 << 14);
        uart.format.set(0x60);
        uart.full_for.set(3);
        Pl011::new(&uart).enable();
        assert_eq!(uart.looks.get(), 4);
        assert_eq!(*uart.writes.borrow(), [(0x30, 0xc300), (0x2c, 0x70), (0x30, 0xc301)]);
    }

    #[test]
    fn a_byte_waits_for_room() {
        let uart = Uart::default();
        uart.full_for.set(10);
        Pl011::new(&uart).write_byte(b'x');
        assert_eq!(*uart.sent.borrow(), b"x");
        assert_eq!(uart.looks.get(), 11);
    }

    #[test]
    #[cfg_attr(miri, ignore = "65,536 looks")]
    fn a_stuck_line_drops_bytes_after_one_bounded_wait_and_recovers() {
        let uart = Uart::default();
        let mut port = Pl011::new(&uart);
        uart.full_for.set(PATIENCE + 1);
        port.write_byte(b'a');
        port.write_byte(b'b');
        assert_eq!(uart.looks.get(), PATIENCE + 1, "the second byte takes one look");
        port.write_byte(b'c');
        uart.full_for.set(5);
        port.write_byte(b'd');
        assert_eq!(*uart.sent.borrow(), b"cd");
    }

    #[test]
    fn received_bytes_come_in_order_and_breaks_are_passed_over() {
        let uart = Uart::default();
        let mut port = Pl011::new(&uart);
        assert_eq!(port.read_byte(), None);
        // 0x800: overrun, the byte itself is good.
        uart.received.borrow_mut().extend([u32::from(b'1'), DR_BE, 0x800 | u32::from(b'2')]);
        assert_eq!(port.read_byte(), Some(b'1'));
        assert_eq!(port.read_byte(), Some(b'2'));
        assert_eq!(port.read_byte(), None);
    }

    #[test]
    fn a_line_held_in_break_does_not_hold_the_reader() {
        let uart = Uart::default();
        uart.received.borrow_mut().extend([DR_BE; FIFO_DEPTH + 1]);
        assert_eq!(Pl011::new(&uart).read_byte(), None);
        assert_eq!(uart.received.borrow().len(), 1);
    }

    #[test]
    fn the_receive_interrupt_is_masked_unmasked_and_cleared() {
        let uart = Uart::default();
        let port = Pl011::new(&uart);
        port.set_receive_interrupt(true);
        assert_eq!(uart.mask.get(), 0x50);
        port.acknowledge_interrupt();
        assert_eq!(uart.cleared.get(), 0x50);
        port.set_receive_interrupt(false);
        assert_eq!(uart.mask.get(), 0);
    }
}
