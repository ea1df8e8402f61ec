//! The register seam: how portable drivers reach a device.

use core::sync::atomic::{Ordering, fence};

/// The 32-bit registers of one device, and the order of register accesses relative to memory that
/// the device reads and writes by itself (DMA).
///
/// Offsets are in bytes from the device's base, multiples of the access's width, inside its register
/// window; a driver only ever uses the offsets of its device's register map.
///
/// # Ordering
/// The contract drivers are written against, as strong as Linux's `readl` and `writel`:
/// - [`write32`](Self::write32) is ordered after every earlier memory write by this core, so that
///   a device told to look finds what was written (`dmb oshst` before the store);
/// - [`read32`](Self::read32) (and each shorter read) is ordered before every later memory read by this core, so that
///   what a register announces is there to be read (`dmb oshld` after the load);
/// - register accesses of one core to one device happen in program order (Device memory,
///   nGnRE).
///
/// The three `order_dma*` methods order accesses to shared memory among themselves. Their defaults
/// cover devices in the inner shareable domain; an implementation for hardware should widen them
/// to the outer shareable domain (`dmb oshld`, `dmb oshst`, `dmb osh`).
pub trait Registers {
    /// Reads the register at `offset`.
    fn read32(&self, offset: usize) -> u32;

    /// Writes the register at `offset`.
    fn write32(&self, offset: usize, value: u32);

    /// Reads the register of a byte at `offset`. By default a part of the word it is in.
    fn read8(&self, offset: usize) -> u8 {
        (self.read32(offset & !3) >> ((offset & 3) * 8)) as u8
    }

    /// Reads the register of two bytes at `offset`. By default a part of the word it is in.
    fn read16(&self, offset: usize) -> u16 {
        (self.read32(offset & !3) >> ((offset & 2) * 8)) as u16
    }

    /// Writes the register of a byte at `offset`. By default with what else is in its word, as read.
    fn write8(&self, offset: usize, value: u8) {
        let (word, shift) = (offset & !3, (offset & 3) * 8);
        let others = self.read32(word) & !(0xff << shift);
        self.write32(word, others | u32::from(value) << shift);
    }

    /// Orders earlier reads of shared memory before later reads and writes.
    #[inline(always)]
    fn order_dma_reads(&self) {
        fence(Ordering::Acquire);
    }

    /// Orders earlier writes to shared memory before later writes.
    #[inline(always)]
    fn order_dma_writes(&self) {
        fence(Ordering::Release);
    }

    /// Orders all earlier accesses to shared memory before all later ones; the only one that
    /// keeps a write before a later read.
    #[inline(always)]
    fn order_dma(&self) {
        fence(Ordering::SeqCst);
    }
}

impl<R: Registers + ?Sized> Registers for &R {
    #[inline(always)]
    fn read32(&self, offset: usize) -> u32 {
        (**self).read32(offset)
    }

    #[inline(always)]
    fn write32(&self, offset: usize, value: u32) {
        (**self).write32(offset, value);
    }

    fn read8(&self, offset: usize) -> u8 {
        (**self).read8(offset)
    }

    fn read16(&self, offset: usize) -> u16 {
        (**self).read16(offset)
    }

    fn write8(&self, offset: usize, value: u8) {
        (**self).write8(offset, value);
    }

    #[inline(always)]
    fn order_dma_reads(&self) {
        (**self).order_dma_reads();
    }

    #[inline(always)]
    fn order_dma_writes(&self) {
        (**self).order_dma_writes();
    }

    #[inline(always)]
    fn order_dma(&self) {
        (**self).order_dma();
    }
}
