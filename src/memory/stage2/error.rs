//! Why a stage-2 operation was refused.

use core::fmt;

use crate::memory::FrameError;

/// Why a stage-2 operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// The size of the guest's address space is not one this core can translate.
    IpaBits,
    /// No memory left for tables.
    OutOfFrames,
    /// An address or the length is not a multiple of 4 KiB, or the length is 0.
    Misaligned,
    /// The guest or the physical range passes the end of its address space.
    OutOfRange,
    /// Part of the range is mapped already.
    AlreadyMapped,
    /// Part of the range is not mapped.
    NotMapped,
    /// A table is not in the pool given: the wrong pool, or memory overwritten. EL2's own fault.
    Corrupt,
}

impl fmt::Display for Stage2Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpaBits => "stage 2: address space size not supported by this core",
            Self::OutOfFrames => "stage 2: no memory left for tables",
            Self::Misaligned => "stage 2: range not aligned to 4 KiB",
            Self::OutOfRange => "stage 2: range passes the end of the address space",
            Self::AlreadyMapped => "stage 2: range is mapped already",
            Self::NotMapped => "stage 2: range is not mapped",
            Self::Corrupt => "stage 2: a table lies outside the frame pool",
        })
    }
}

impl From<FrameError> for Stage2Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::NotAllocated => Self::Corrupt,
            _ => Self::OutOfFrames,
        }
    }
}
