//! What an instruction set means to a hypervisor: syndromes, MMIO accesses, PSCI, system registers.
//!
//! Portable and pure: nothing here touches hardware. `arch` hands in what the registers said at an
//! exit, and carries out what comes back.

pub mod abort;
pub mod decode;
pub mod mmio;
pub mod psci;
pub mod pstate;
pub mod registers;
pub mod syndrome;
pub mod sysreg;

pub use mmio::{LoadTarget, MmioAccess, MmioKind, Width};
pub use pstate::Pstate;
pub use registers::{GuestRegisters, Register};
pub use syndrome::{DataAbort, InstructionAbort, InstructionLength, Syndrome};
