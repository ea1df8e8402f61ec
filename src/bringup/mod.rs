//! From the boot code's hand-over to the guest: one step after the other, each of which may end it
//! with a line that says why.

mod arena;
mod board;
mod consoles;
mod cores;
mod devices;
mod disks;
mod entropy;
mod machines;
mod metadata;
mod network;
mod sockets;

use core::fmt;

use sparkler::arch::boot::BootInfo;
use sparkler::arch::{console, firmware};
use sparkler::fdt::Conduit;
use sparkler::vm::options;

/// The program.
pub(crate) fn run(boot: BootInfo) -> ! {
    console::init_log(log::LevelFilter::Info);
    let tree = board::read(boot);
    board::open_console(tree.as_ref().ok().map(|(board, _)| board));
    log::info!("sparkler {} at {}", env!("CARGO_PKG_VERSION"), boot.image);
    match tree {
        Ok((board, tree)) => {
            if board.psci != Some(Conduit::Smc) {
                log::warn!("no PSCI by SMC: the board can be neither turned off nor reset");
                firmware::set_absent();
            }
            if let Some(level) = options::log_level(board.bootargs) {
                log::set_max_level(level);
            }
            if let Err(word) = console::configure(board.bootargs) {
                stop(format_args!("\"{word}\" means nothing"));
            }
            machines::run(boot, board, tree)
        }
        Err(error) => stop(format_args!("the board's device tree cannot be used: {error}")),
    }
}

/// Ends everything, for a reason.
fn stop(reason: fmt::Arguments<'_>) -> ! {
    log::error!("{reason}");
    log::info!("nothing to run: turning the board off");
    firmware::power_off();
    firmware::park()
}
