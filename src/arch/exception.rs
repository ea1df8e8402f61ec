//! Where a guest's exits enter Rust, and leave it.
//!
//! `boot/vectors.S` has saved the registers to the seat in TPIDR_EL2, and calls one of these with it.
//! The guest goes on with the registers of the seat that is returned, which is always the same one: the
//! vectors leave TPIDR_EL2 as it is. Whose registers are in it may have changed.

use super::guest::Seat;
use super::interrupts;
use crate::vm::exit;

/// A synchronous exception of the guest (lower EL, AArch64 or AArch32).
///
/// In a section of its own, because nothing is outlined from there.
// SAFETY: the linker script has it among the other code.
#[unsafe(link_section = ".text.exit")]
pub(super) extern "C" fn on_sync(seat: &'static mut Seat) -> &'static mut Seat {
    let next = exit::synchronous(&mut seat.vcpu, &mut seat.core);
    if next != exit::Next::Resume {
        return seat.leave(next);
    }
    if seat.core.look { seat.look() } else { seat }
}

/// A physical IRQ or FIQ while the guest ran.
// SAFETY: as above.
#[unsafe(link_section = ".text.exit")]
pub(super) extern "C" fn on_irq(seat: &'static mut Seat) -> &'static mut Seat {
    seat.vcpu.exits.interrupts += 1;
    interrupts::serve(seat);
    if seat.core.look { seat.look() } else { seat }
}

/// An SError while the guest ran: hardware reports an error that belongs to no instruction. It may
/// be anyone's, so the guest is not trusted to go on.
pub(super) extern "C" fn on_serror(seat: &'static mut Seat) -> &'static mut Seat {
    seat.leave(exit::Next::Stop(&"SError"))
}
