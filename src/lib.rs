//! sparkler: virtio devices served from inside EL2.
#![cfg_attr(not(test), no_std)]

#[cfg(target_os = "none")]
pub mod arch;
pub mod backend;
pub mod cpu;
pub mod drivers;
pub mod fdt;
pub mod gic;
pub mod memory;
pub mod rate_limit;
pub mod sync;
pub mod virtio;
pub mod vm;
