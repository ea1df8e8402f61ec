//! The board: its device tree and its console.
#![allow(unsafe_code)]

use sparkler::arch::boot::BootInfo;
use sparkler::arch::fault::{Probe, probe};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::{console, layout, mmu};
use sparkler::drivers::pl011::Pl011;
use sparkler::fdt::{Board, BoardError, HEADER_LEN, blob_size};
use sparkler::memory::{PAGE_SIZE, Pa, PaRange};

/// Bytes of PL011 registers.
const PL011_SIZE: usize = 0x1000;

/// Reads the device tree that x0 pointed to; with it, where it lies.
pub(super) fn read(boot: BootInfo) -> Result<(Board<'static>, PaRange), BoardError<'static>> {
    let address = boot.fdt;
    let none = BoardError::NotAnFdt { address, magic: 0 };
    // The boot protocol wants 8-byte alignment; anything else is another protocol's x0.
    if !address.is_aligned(8) {
        return Err(none);
    }
    let header = bytes(address, HEADER_LEN).ok_or(none)?;
    let size = blob_size(header, address)?;
    let blob = bytes(address, size).ok_or(BoardError::Truncated { size, have: 0 })?;
    Ok((Board::read(blob, address)?, PaRange::new(address.raw(), size as u64)))
}

/// `len` bytes of RAM at `pa`, if something answers there.
fn bytes(pa: Pa, len: usize) -> Option<&'static [u8]> {
    mmu::map_ram(pa, len as u64).ok()?;
    let start = layout::linear(pa);
    for page in (start & !3..start + len).step_by(PAGE_SIZE as usize) {
        // SAFETY: no guest runs, and a read of memory has no effect.
        unsafe { probe(Probe::Read, page) }.ok()?;
    }
    // SAFETY: mapped and answering. Nobody writes to it: the device tree's memory is never given to
    // a guest or to a device, and EL2 only reads it.
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, len) })
}

/// Opens the console the tree names; without a tree, or if it names none that is known, the
/// default one.
pub(super) fn open_console(board: Option<&Board<'_>>) {
    let named = board.and_then(|board| board.console).filter(|uart| uart.is_pl011());
    let pa = named.map_or(Pa::new(layout::DEFAULT_UART), |uart| uart.registers.base);
    // SAFETY: the tree, or the default board, has a PL011 there; a UART does no DMA.
    if let Ok(registers) = unsafe { Mmio::map(pa, PL011_SIZE) } {
        let uart = Pl011::new(registers);
        uart.enable();
        console::set(uart);
    }
}
