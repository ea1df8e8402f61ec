//! Polled drivers of the board's own devices: portable and safe, over two seams.
//!
//! - [`registers::Registers`]: a device's registers, with the ordering a DMA engine needs.
//! - [`crate::memory::SharedSlice`]: memory a device reads and writes, at a known physical address.
//!
//! A driver waits only while it is being brought up, through [`embedded_hal::delay::DelayNs`] and
//! for a bounded time; afterwards it is polled and never waits.

pub mod pl011;
pub mod registers;
pub mod virtio;

#[cfg(test)]
pub(crate) mod testing;
