//! Memory: address spaces, memory shared with guests and devices, frames, stage 2.

pub mod address;
pub mod guest;
#[cfg(not(target_os = "none"))]
pub mod host;
pub mod shared;

pub use address::{Ipa, PAGE_SIZE, Pa};
pub use guest::{GuestMemory, GuestMemoryError};
#[cfg(not(target_os = "none"))]
pub use host::HostRam;
pub use shared::SharedSlice;
