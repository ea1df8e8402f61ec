//! The driver side of virtio over MMIO, for the board's own virtio devices (on QEMU, all of them).
//!
//! Source: "Virtual I/O Device (VIRTIO) Version 1.2", cited as "virtio" with the section. Only
//! the modern register layout (version 2) and split virtqueues are spoken.

pub mod block;
mod device;
pub mod entropy;
#[cfg(test)]
mod fake;
pub mod mmio;
pub mod net;
pub mod queue;

pub use block::VirtioBlk;
pub use entropy::VirtioEntropy;
pub use mmio::{DeviceKind, InitError, InterruptCauses, ProbeError, probe};
pub use net::VirtioNet;
