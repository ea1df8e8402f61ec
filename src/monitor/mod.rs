//! The monitor: a small shell for whoever is in charge of the machine.
//!
//! - [`command`]: what is typed becomes a [`Command`].
//! - [`operator`]: what a command may look at and do ([`Operator`]), as snapshots and actions; the
//!   image implements it over its VMs.
//! - [`answer`](run): commands are carried out, and answered in tables of one line an item.
//! - [`hypercall`]: the same commands for a guest that is the operator.
//!
//! Commands and their output are described in `docs/monitor.md`; programs read them.

mod adjust;
mod answer;
pub mod command;
pub mod hypercall;
pub mod operator;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use answer::run;
pub use command::{Action, Command, ParseError};
pub use operator::{ActionError, CoreInfo, DeviceInfo, MemoryInfo, Operator, VmInfo, VmState};
