//! The device side of virtio (OASIS Virtual I/O Device, version 1.3).
//!
//! ```text
//!   guest's load or store            QueueNotify / poll
//!            |                               |
//!   transport::MmioTransport  ---->  device::VirtioDevice  ---->  backend::*
//!     registers, status machine        one per file in devices/
//!            |                               |
//!      queue::Queue  <---- pop, complete ----+
//!     rings, chains: checked once, then typed buffers
//! ```
//!
//! - [`features`], [`status`]: what driver and device agree on, and the order in which they do.
//! - [`transport`]: the MMIO register file (4.2.2), and the only owner of status and queues.
//! - [`queue`]: virtqueues. A chain is validated whole before a device sees any of it.
//! - [`buffer`]: what a device sees of a chain: [`buffer::Reader`] and [`buffer::Writer`].
//! - [`device`]: the contract a device model implements.
//! - [`devices`]: the device models.
//! - [`state`]: how a device model writes its state down.
//!
//! Everything here is safe code, waits for nothing and allocates nothing. Section numbers in
//! comments are those of version 1.3.

pub mod buffer;
pub mod device;
pub mod devices;
pub mod features;
pub mod histogram;
pub mod limiter;
pub mod queue;
pub mod state;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;

pub use device::{
    Adjustment, Context, DeviceType, Direction, NextPoll, NotAdjusted, Progress, VirtioDevice,
};
pub use features::Features;
pub use status::Status;
pub use transport::{MmioTransport, WriteOutcome};

/// Width of an access to a register or to configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Width {
    /// The width in bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> usize {
        match self {
            Width::Byte => 1,
            Width::Half => 2,
            Width::Word => 4,
            Width::Double => 8,
        }
    }
}
