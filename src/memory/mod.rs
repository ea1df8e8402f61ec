//! Memory: address spaces, memory shared with guests and devices, frames, stage 2.

pub mod address;
pub mod frames;
pub mod guest;
#[cfg(not(target_os = "none"))]
pub mod host;
pub mod ram;
pub mod shared;
pub mod stage2;
#[cfg(test)]
pub(crate) mod testing;

pub use address::{Ipa, PAGE_SIZE, Pa};
pub use frames::{FrameError, FramePool};
pub use guest::{GuestMemory, GuestMemoryError};
#[cfg(not(target_os = "none"))]
pub use host::HostRam;
pub use ram::{PaRange, RamMap};
pub use shared::{Entry, EntryOffset, SharedEntry, SharedRing, SharedSlice, SharedTable};

/// Copies `from` to the beginning of `to`, or as much as there is room for. Unlike the library's copy it
/// cannot panic, wherever it is compiled to.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
