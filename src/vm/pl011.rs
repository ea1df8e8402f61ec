//! A PL011 UART for the guest (Arm DDI 0183, r1p5: 32-byte FIFOs).
//!
//! The line is infinitely fast: what is written is transmitted at once, so the transmit FIFO is
//! always empty, and a receive time-out has always just elapsed. As on QEMU's `virt`, data moves
//! whether or not the guest has enabled the UART, because many small guests never do.
//!
//! No register but DR has a side effect when it is read.

#[cfg(test)]
mod tests;

use crate::cpu::Width;

/// Size of the register block in bytes.
pub const SIZE: u64 = 0x1000;

/// Depth of the receive FIFO.
const FIFO_DEPTH: usize = 32;

/// Register offsets (DDI 0183, 3.2).
mod offset {
    pub(super) const DR: u64 = 0x000;
    pub(super) const RSR_ECR: u64 = 0x004;
    pub(super) const FR: u64 = 0x018;
    pub(super) const ILPR: u64 = 0x020;
    pub(super) const IBRD: u64 = 0x024;
    pub(super) const FBRD: u64 = 0x028;
    pub(super) const LCR_H: u64 = 0x02C;
    pub(super) const CR: u64 = 0x030;
    pub(super) const IFLS: u64 = 0x034;
    pub(super) const IMSC: u64 = 0x038;
    pub(super) const RIS: u64 = 0x03C;
    pub(super) const MIS: u64 = 0x040;
    pub(super) const ICR: u64 = 0x044;
    pub(super) const DMACR: u64 = 0x048;
    pub(super) const PERIPH_ID0: u64 = 0xFE0;
    pub(super) const PERIPH_ID1: u64 = 0xFE4;
    pub(super) const PERIPH_ID2: u64 = 0xFE8;
    pub(super) const PCELL_ID0: u64 = 0xFF0;
    pub(super) const PCELL_ID1: u64 = 0xFF4;
    pub(super) const PCELL_ID2: u64 = 0xFF8;
    pub(super) const PCELL_ID3: u64 = 0xFFC;
}

bitflags::bitflags! {
    /// Interrupts, as in IMSC, RIS, MIS and ICR.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Interrupts: u16 {
        /// The receive FIFO has reached its level.
        const RX = 1 << 4;
        /// The transmit FIFO has fallen to its level.
        const TX = 1 << 5;
        /// Received data waits.
        const RT = 1 << 6;
        /// A byte was lost.
        const OE = 1 << 10;
        /// Modem lines, framing, parity and break: never raised, but there in the mask.
        const NEVER = 0b011_1000_1111;
    }
}

/// LCR_H.FEN: FIFOs enabled; without it, the receiver holds one byte.
const LCR_H_FEN: u16 = 1 << 4;
/// CR.LBE: what is transmitted is received.
const CR_LBE: u16 = 1 << 7;
/// CR after reset: transmitter and receiver on, UART off.
const CR_RESET: u16 = 1 << 9 | 1 << 8;
/// Bits of CR that exist.
const CR_MASK: u16 = 0xFF87;
/// FR: CTS, DSR and DCD asserted, transmit FIFO empty. A peer is there and ready.
const FR_READY: u16 = 1 << 7 | 0b111;
/// FR.RXFE: receive FIFO empty.
const FR_RXFE: u16 = 1 << 4;
/// FR.RXFF: receive FIFO full.
const FR_RXFF: u16 = 1 << 6;
/// RSR.OE: a byte was lost.
const RSR_OE: u16 = 1 << 3;
/// DR.OE: bytes were lost before this one.
const DR_OE: u16 = 1 << 11;

/// The UART.
#[derive(Clone, Debug)]
pub struct Pl011 {
    /// Received bytes as DR gives them.
    fifo: heapless::Deque<u16, FIFO_DEPTH>,
    /// A byte was lost since the last one that went into the FIFO.
    lost: bool,
    overruns: u32,
    receive_status: u16,
    raw: Interrupts,
    mask: Interrupts,
    ilpr: u16,
    ibrd: u16,
    fbrd: u16,
    lcr_h: u16,
    cr: u16,
    ifls: u16,
    dmacr: u16,
}

impl Pl011 {
    /// A UART after reset.
    pub const fn new() -> Self {
        Self {
            fifo: heapless::Deque::new(),
            lost: false,
            overruns: 0,
            receive_status: 0,
            raw: Interrupts::empty(),
            mask: Interrupts::empty(),
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: 0b01_0010,
            dmacr: 0,
        }
    }

    /// The level of the interrupt line. It may change with every access and every [`Self::push`].
    #[inline]
    pub fn interrupt_line(&self) -> bool {
        self.raw.intersects(self.mask)
    }

    /// Whether a byte that arrives now would be kept.
    #[inline]
    pub fn wants_input(&self) -> bool {
        self.fifo.len() < self.depth()
    }

    /// A byte arrives. Returns false if it is lost because the FIFO is full, which the guest
    /// learns as an overrun. To lose none, ask [`Self::wants_input`] first.
    pub fn push(&mut self, byte: u8) -> bool {
        let lost = if self.lost { DR_OE } else { 0 };
        if !self.wants_input() || self.fifo.push_back(u16::from(byte) | lost).is_err() {
            self.lost = true;
            self.overruns = self.overruns.saturating_add(1);
            self.receive_status |= RSR_OE;
            self.raw |= Interrupts::OE;
            return false;
        }
        self.lost = false;
        self.raw |= Interrupts::RT;
        if self.fifo.len() >= self.level() {
            self.raw |= Interrupts::RX;
        }
        true
    }

    /// Bytes lost since reset; saturates.
    pub fn overruns(&self) -> u32 {
        self.overruns
    }

    /// A read. Registers are 16 bits wide at multiples of four; a read of other bytes, or of a
    /// register that is not there, gives zero.
    pub fn read(&mut self, offset: u64, width: Width) -> u64 {
        let value = match offset & !3 {
            // Only byte 0 takes from the FIFO.
            offset::DR if offset & 3 == 0 => self.pop(),
            offset::RSR_ECR => self.receive_status,
            offset::FR => self.flags(),
            offset::ILPR => self.ilpr,
            offset::IBRD => self.ibrd,
            offset::FBRD => self.fbrd,
            offset::LCR_H => self.lcr_h,
            offset::CR => self.cr,
            offset::IFLS => self.ifls,
            offset::IMSC => self.mask.bits(),
            offset::RIS => self.raw.bits(),
            offset::MIS => (self.raw & self.mask).bits(),
            offset::DMACR => self.dmacr,
            // Part 0x011, designer 0x41 (Arm), revision 3 (r1p5).
            offset::PERIPH_ID0 => 0x11,
            offset::PERIPH_ID1 => 0x10,
            offset::PERIPH_ID2 => 0x34,
            offset::PCELL_ID0 => 0x0D,
            offset::PCELL_ID1 => 0xF0,
            offset::PCELL_ID2 => 0x05,
            offset::PCELL_ID3 => 0xB1,
            _ => 0,
        };
        width.truncate(u64::from(value) >> (8 * (offset & 3)))
    }

    /// A write. Returns the byte to transmit, if it was a write to DR. A write that does not
    /// begin at a register, or that goes to one that cannot be written, has no effect.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Option<u8> {
        let value = width.truncate(value) as u16;
        match offset {
            offset::DR => return self.transmit(value as u8),
            offset::RSR_ECR => self.receive_status = 0,
            offset::ILPR => self.ilpr = value & 0xFF,
            offset::IBRD => self.ibrd = value,
            offset::FBRD => self.fbrd = value & 0x3F,
            offset::LCR_H => self.set_line_control(value & 0xFF),
            offset::CR => self.cr = value & CR_MASK,
            offset::IFLS => self.set_levels(value & 0x3F),
            offset::IMSC => self.mask = Interrupts::from_bits_truncate(value),
            offset::ICR => self.raw -= Interrupts::from_bits_truncate(value),
            offset::DMACR => self.dmacr = value & 0b111,
            _ => {}
        }
        None
    }

    /// The transmit FIFO fills and has emptied to its level before the guest can look, which is
    /// when its interrupt is raised: at the transition, so that ICR can clear it.
    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.raw |= Interrupts::TX;
        if self.cr & CR_LBE != 0 {
            self.push(byte);
            return None;
        }
        Some(byte)
    }

    /// Takes the oldest received byte; zero if there is none.
    fn pop(&mut self) -> u16 {
        let Some(entry) = self.fifo.pop_front() else {
            return 0;
        };
        self.receive_status = entry >> 8;
        if self.fifo.len() < self.level() {
            self.raw -= Interrupts::RX;
        }
        // Time passes between two reads: what is left has timed out again, even if the guest
        // had cleared that.
        self.raw.set(Interrupts::RT, !self.fifo.is_empty());
        entry
    }

    fn flags(&self) -> u16 {
        let mut flags = FR_READY;
        if self.fifo.is_empty() {
            flags |= FR_RXFE;
        }
        if !self.wants_input() {
            flags |= FR_RXFF;
        }
        flags
    }

    /// Bytes the receiver can hold.
    fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO_DEPTH } else { 1 }
    }

    /// Bytes in the receiver at which RX is raised: IFLS.RXIFLSEL.
    fn level(&self) -> usize {
        if self.lcr_h & LCR_H_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            3 => FIFO_DEPTH * 3 / 4,
            4 => FIFO_DEPTH * 7 / 8,
            // 2, and the reserved values.
            _ => FIFO_DEPTH / 2,
        }
    }

    /// Switching the FIFOs on or off empties them.
    fn set_line_control(&mut self, value: u16) {
        if (self.lcr_h ^ value) & LCR_H_FEN != 0 {
            self.fifo.clear();
            self.raw -= Interrupts::RX | Interrupts::RT;
        }
        self.lcr_h = value;
    }

    fn set_levels(&mut self, value: u16) {
        self.ifls = value;
        self.raw.set(Interrupts::RX, self.fifo.len() >= self.level());
    }
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}
