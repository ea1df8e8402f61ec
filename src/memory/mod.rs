//! Memory: address spaces, memory shared with guests and devices, frames, stage 2.

pub mod address;
pub mod guest;
pub mod shared;

pub use address::{Ipa, PAGE_SIZE, Pa};
pub use guest::{GuestMemory, GuestMemoryError};
pub use shared::SharedSlice;
