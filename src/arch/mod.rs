//! EL2 only: what runs on the bare core. Nothing outside this folder, the image (`main.rs`,
//! `bringup/`) and the EL2 tests may name it; on a host it does not exist. All of it may be unsafe,
//! and everything here that can be portable is elsewhere.
//!
//! | step | module |
//! |---|---|
//! | Reset to Rust | [`boot`], with the assembly in `boot/` |
//! | The other cores | [`smp`]: started, and told apart |
//! | EL2's own address space | [`layout`]: where EL2 sees what, and its registers; [`mmu`]: RAM and devices mapped |
//! | Caches and ordering | [`cache`]: maintenance and bulk zeroing; [`barrier`]: barriers by name |
//! | A guest on this core | [`guest`]: started, run, ended; [`el1`]: its EL1 registers and its traps; [`context`]: its EL1 state while another runs; [`stage2`]: its address space |
//! | Exits | [`exception`]: vectors in, the vCPU to resume out; [`core`]: this core as the portable exit handling sees it |
//! | Interrupts | [`interrupts`]: physical ones served; [`gic`]: the physical GICv2 or GICv3, and the list registers it lends the virtual one; [`wake`]: other cores made to poll |
//! | Time | [`timer`]: the counter and EL2's timer; [`pmu`]: instructions counted |
//! | Registers by name | [`registers`], [`id_registers`]; the rest is in the `aarch64-cpu` crate |
//! | The board | [`mmio`]: device registers; [`console`]: its serial line, shared by guests, log and monitor; [`operator`]: its machines, as the monitor sees them; [`firmware`]: PSCI by SMC; [`entropy`]: random bits of the cores and of the firmware |
//! | EL2's own faults | [`fault`]: a dump and a reset; and probes, which may fault |
//!
//! Names are those of the Arm Architecture Reference Manual (DDI 0487, "Arm ARM") and of the GIC
//! architecture (IHI 0069). A register is cited by its name, which every issue of them keeps.
#![allow(unsafe_code)]

pub mod barrier;
pub mod boot;
pub mod cache;
pub mod console;
pub mod context;
pub mod core;
pub mod el1;
pub mod entropy;
pub mod exception;
pub mod fault;
pub mod firmware;
pub mod gic;
pub mod guest;
pub mod id_registers;
pub mod interrupts;
pub mod layout;
pub mod mmio;
pub mod mmu;
pub mod operator;
pub mod pmu;
pub mod registers;
pub mod smp;
pub mod stage2;
pub mod timer;
pub mod wake;
