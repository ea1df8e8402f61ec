//! EL2's virtual address space, and the registers that define it. Physical and virtual addresses
//! never coincide, so that one used for the other faults at once.
//!
//! | virtual | what | attributes |
//! |---|---|---|
//! | `0x1000_0000_0000` + PA | RAM given to EL2 or to guests | normal, RW, never executable |
//! | `0x2000_0000_0000` + PA | device registers in use | Device-nGnRE, RW |
//! | `0x3000_0000_0000` | the image: text RX, rodata R, data RW; guard pages under the stacks | normal |

use crate::memory::Pa;

/// RAM at `LINEAR_BASE + pa`.
pub const LINEAR_BASE: usize = 0x1000_0000_0000;
/// Devices at `DEVICE_BASE + pa`.
pub const DEVICE_BASE: usize = 0x2000_0000_0000;
/// The image; `linker.ld` has the same number.
pub const IMAGE_BASE: usize = 0x3000_0000_0000;
/// Physical addresses the windows have room for.
pub const PA_LIMIT: u64 = 0x1000_0000_0000;

/// The PL011 that is spoken to when the device tree names no other: QEMU `virt`'s.
pub const DEFAULT_UART: u64 = 0x0900_0000;

/// Where EL2 sees RAM at `pa`, once [`super::mmu::map_ram`] has mapped it.
pub const fn linear(pa: Pa) -> usize {
    LINEAR_BASE + pa.raw() as usize
}

/// Where EL2 sees the device at `pa`, once [`super::mmu::map_device`] has mapped it.
pub const fn device(pa: Pa) -> usize {
    DEVICE_BASE + pa.raw() as usize
}

/// VMSAv8-64 stage 1 descriptor bits of the EL2 regime (Arm ARM D8.3).
pub mod descriptor {
    /// A valid table, or a valid page at level 3.
    pub const TABLE_OR_PAGE: u64 = 0b11;
    /// A valid block at level 1 or 2.
    pub const BLOCK: u64 = 0b01;
    const NORMAL: u64 = 1 << 2;
    const DEVICE: u64 = 0 << 2;
    /// AP\[1\], RES1 in a regime of one privilege level.
    const AP1: u64 = 1 << 6;
    const READ_ONLY: u64 = 1 << 7;
    const INNER_SHAREABLE: u64 = 3 << 8;
    const ACCESSED: u64 = 1 << 10;
    const EXECUTE_NEVER: u64 = 1 << 54;
    const COMMON: u64 = AP1 | ACCESSED | INNER_SHAREABLE;

    /// Text: read and execute.
    pub const TEXT: u64 = COMMON | NORMAL | READ_ONLY;
    /// Constants: read.
    pub const RODATA: u64 = COMMON | NORMAL | READ_ONLY | EXECUTE_NEVER;
    /// Data: read and write.
    pub const DATA: u64 = COMMON | NORMAL | EXECUTE_NEVER;
    /// Device registers: read and write, Device-nGnRE.
    pub const REGISTERS: u64 = COMMON | DEVICE | EXECUTE_NEVER;
    /// The output address of a descriptor.
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
}

/// MAIR_EL2: attribute 0 is Device-nGnRE, attribute 1 normal write-back.
pub const MAIR: u64 = 0xff04;
/// TCR_EL2 without PS, which `entry.S` takes from ID_AA64MMFR0_EL1: RES1 (31 and 23), TG0 = 4 KiB,
/// SH0 inner shareable, ORGN0 and IRGN0 write-back, T0SZ 16: 48 bits.
pub const TCR: u64 = (1 << 31) | (1 << 23) | (3 << 12) | (1 << 10) | (1 << 8) | 16;
/// SCTLR_EL2 with everything off: the RES1 bits (29, 28, 23, 22, 18, 16, 11, 5, 4).
pub const SCTLR_OFF: u64 = 0x30c5_0830;
/// SCTLR_EL2 of a running EL2: MMU (M), caches (C, I), stack alignment check (SA), and no execution
/// of writable memory (WXN).
pub const SCTLR_ON: u64 = SCTLR_OFF | (1 << 19) | (1 << 12) | (1 << 3) | (1 << 2) | 1;
