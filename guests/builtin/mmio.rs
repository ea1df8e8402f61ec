//! Device register accesses, each exactly the instruction named.
//!
//! Written in assembly because the compiler may choose a post-index form for a volatile access in a
//! loop, and a hypervisor is told nothing about those (ESR_EL2.ISS.ISV = 0).

use core::arch::asm;

/// Reads 32 bits.
#[inline]
pub(crate) fn read32(address: usize) -> u32 {
    let value: u32;
    // SAFETY: addresses are device registers from the device tree, or are caught by a fix-up.
    unsafe {
        asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 32 bits.
#[inline]
pub(crate) fn write32(address: usize, value: u32) {
    // SAFETY: as for `read32`.
    unsafe {
        asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Reads 8 bits, zero-extended.
pub(crate) fn read8(address: usize) -> u8 {
    let value: u32;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldrb {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value as u8
}

/// Writes 8 bits.
pub(crate) fn write8(address: usize, value: u8) {
    // SAFETY: as for `read32`.
    unsafe {
        asm!("strb {:w}, [{}]", in(reg) u32::from(value), in(reg) address,
            options(nostack, preserves_flags));
    }
}

/// Reads 16 bits, zero-extended.
pub(crate) fn read16(address: usize) -> u16 {
    let value: u32;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldrh {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value as u16
}

/// Writes 16 bits.
pub(crate) fn write16(address: usize, value: u16) {
    // SAFETY: as for `read32`.
    unsafe {
        asm!("strh {:w}, [{}]", in(reg) u32::from(value), in(reg) address,
            options(nostack, preserves_flags));
    }
}

/// Reads 64 bits.
pub(crate) fn read64(address: usize) -> u64 {
    let value: u64;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 64 bits.
pub(crate) fn write64(address: usize, value: u64) {
    // SAFETY: as for `read32`.
    unsafe {
        asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Reads 8 bits, sign-extended to 64.
pub(crate) fn read8_signed(address: usize) -> i64 {
    let value: i64;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldrsb {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Reads 32 bits with write-back of the address; returns the value and the address after.
pub(crate) fn read32_post_index(address: usize) -> (u32, usize) {
    let value: u32;
    let mut after = address;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldr {:w}, [{}], #4", out(reg) value, inout(reg) after,
            options(nostack, preserves_flags));
    }
    (value, after)
}

/// Writes 32 bits with write-back of the address; returns the address after.
pub(crate) fn write32_pre_index(address: usize, value: u32) -> usize {
    let mut after = address - 4;
    // SAFETY: as for `read32`.
    unsafe {
        asm!("str {:w}, [{}, #4]!", in(reg) value, inout(reg) after,
            options(nostack, preserves_flags));
    }
    after
}

/// Reads a pair of 32-bit registers with one instruction.
pub(crate) fn read32_pair(address: usize) -> (u32, u32) {
    let (first, second): (u32, u32);
    // SAFETY: as for `read32`.
    unsafe {
        asm!("ldp {:w}, {:w}, [{}]", out(reg) first, out(reg) second, in(reg) address,
            options(nostack, preserves_flags));
    }
    (first, second)
}

/// Writes zero from the zero register, which shares its number with the stack pointer.
pub(crate) fn write32_xzr(address: usize) {
    // SAFETY: as for `read32`.
    unsafe { asm!("str wzr, [{}]", in(reg) address, options(nostack, preserves_flags)) };
}
