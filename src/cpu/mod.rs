//! What an instruction set means to a hypervisor: syndromes, MMIO accesses, PSCI, system registers.
//!
//! Portable and pure: nothing here touches hardware. `arch` hands in what the registers said at an
//! exit, and carries out what comes back.

pub mod sysreg;
