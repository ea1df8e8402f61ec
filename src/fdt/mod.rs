//! Device trees: the board's is read, the guest's is written.

pub mod board;
mod check;
pub mod error;
pub mod guest;
pub mod modules;
mod node;
pub mod writer;

pub use board::{Board, Conduit, Cpu, CpuEnable, Gic, Timer, Uart, VirtioSlot};
pub use check::{HEADER_LEN, MAX_BLOB, blob_size};
pub use error::{BoardError, NodePath};
pub use guest::{GuestGic, GuestSlot, GuestTree};
pub use modules::{GuestImages, Module, ModuleKind};
pub use node::{Interrupt, StringList, Trigger};
pub use writer::{FdtWriter, WriteError};
