//! A serial line.

/// A polled serial port.
pub trait Serial {
    /// Takes one byte for transmission. A port that cannot take it after a bounded wait drops it.
    fn write_byte(&mut self, byte: u8);
    /// A received byte, if one is waiting.
    fn read_byte(&mut self) -> Option<u8>;
}
