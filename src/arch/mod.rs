//! EL2 only: what runs on the bare core. Nothing outside this folder, `main.rs` and the EL2 tests
//! may name it.
//!
//! - [`boot`]: from the Image header to Rust; [`layout`]: where EL2 sees what
//! - [`barrier`]: barriers by name; [`mmu`]: EL2's own stage 1; [`cache`]: cache maintenance and bulk zeroing
//! - [`exception`]: vectors in, the vCPU to resume out; [`interrupts`]: physical interrupts;
//!   [`fault`]: EL2's own faults
//! - [`guest`]: a guest on this core, started, run, ended; [`el1`]: its EL1 registers and its traps;
//!   [`stage2`]: its address space; [`core`]: this core as the portable exit handling sees it
//! - [`gic`]: the physical GICv3; [`list_registers`]: what it lends the virtual one;
//!   [`timer`]: the counter and EL2's timer; [`id_registers`], [`registers`]: by name
//! - [`console`]: the log's way out; [`mmio`]: device registers; [`firmware`]: PSCI by SMC
#![allow(unsafe_code)]

pub mod barrier;
pub mod boot;
pub mod cache;
pub mod console;
pub mod core;
pub mod el1;
pub mod exception;
pub mod fault;
pub mod firmware;
pub mod gic;
pub mod guest;
pub mod id_registers;
pub mod interrupts;
pub mod layout;
pub mod list_registers;
pub mod mmio;
pub mod mmu;
pub mod pmu;
pub mod registers;
pub mod stage2;
pub mod timer;
