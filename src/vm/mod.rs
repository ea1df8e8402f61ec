//! Virtual machines: what one is made of, how its exits are served, how it is loaded.
//!
//! Portable: the core that runs a guest is behind [`host::Host`], so all of it is tested on a host.

pub mod boot_timer;
pub mod bus;
pub mod config;
pub mod describe;
pub mod exit;
pub mod host;
pub mod image;
pub mod layout;
pub mod lifecycle;
pub mod loader;
pub mod machine;
pub mod options;
pub mod pl011;
pub mod pl031;
pub mod run_queue;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod trap;
pub mod vcpus;
pub mod watchdog;

pub use boot_timer::Milestones;
pub use config::{ConfigError, Configuration, Refusal, VmConfig};
pub use host::Host;
pub use machine::{Vcpu, Vm};
pub use stats::ExitCounts;
