//! Fuzz targets. Each is a plain function of some bytes that panics if sparkler does what it must
//! not; `targets/` hands them to libFuzzer, `replay.rs` runs them over the corpus.
//!
//! Bytes become actions (a register write, a descriptor, an exit), so that every input means
//! something. The devices' targets end with [`honest::prove`]: whatever was done, a reset leads
//! back to a device that works. Guest memory is in several allocations at addresses that differ
//! for guest, host and bus, so that the address sanitizer sees any access that leaves it.

mod block_requests;
mod console;
mod decode;
mod disk;
mod fdt;
mod gpt;
mod guest;
mod guest_exits;
mod honest;
mod input;
mod kernel_image;
mod metadata;
mod monitor;
mod net;
mod packed;
mod race;
mod registers;
mod rng;
mod split;
mod state;
mod switch;
mod vms;
mod vsock;

pub use block_requests::block_requests;
pub use console::console;
pub use decode::decode;
pub use fdt::fdt;
pub use gpt::gpt;
pub use guest_exits::guest_exits;
pub use kernel_image::kernel_image;
pub use metadata::metadata;
pub use monitor::monitor;
pub use net::{net_control, net_frames};
pub use packed::packed_chains;
pub use registers::registers;
pub use rng::rng;
pub use split::{split_chains, split_race};
pub use state::state;
pub use switch::switch;
pub use vms::vms;
pub use vsock::vsock;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets. Each has a folder of its name in `corpus/`.
pub const TARGETS: [Target; 20] = [
    ("registers", registers),
    ("split_chains", split_chains),
    ("split_race", split_race),
    ("packed_chains", packed_chains),
    ("block_requests", block_requests),
    ("net_frames", net_frames),
    ("net_control", net_control),
    ("console", console),
    ("rng", rng),
    ("state", state),
    ("guest_exits", guest_exits),
    ("fdt", fdt),
    ("vms", vms),
    ("gpt", gpt),
    ("kernel_image", kernel_image),
    ("decode", decode),
    ("monitor", monitor),
    ("switch", switch),
    ("vsock", vsock),
    ("metadata", metadata),
];
