//! Device registers: volatile accesses of one width, checked to lie in their mapped frame. An access
//! outside reads as zero and writes nothing.

use super::{barrier, layout, mmu};
use crate::drivers::registers::Registers;
use crate::memory::Pa;

/// A mapped register frame.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: usize,
    len: usize,
}

impl Mmio {
    /// Maps the `len` bytes of registers at `pa`.
    ///
    /// # Errors
    /// If EL2 cannot map them.
    ///
    /// # Safety
    /// `pa` holds device registers, not RAM, and nobody else writes them. Whoever gets the value may
    /// write any register: the device must do no DMA but into memory that was given to it.
    pub unsafe fn map(pa: Pa, len: usize) -> Result<Self, mmu::MapError> {
        mmu::map_device(pa, len as u64)?;
        Ok(Self { base: layout::device(pa), len })
    }

    /// The part of the frame from `offset` on.
    pub fn at(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        Self { base: self.base + offset, len: self.len - offset }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn register<T>(&self, offset: usize) -> Option<*mut T> {
        let inside = offset + size_of::<T>() <= self.len && offset & (size_of::<T>() - 1) == 0;
        inside.then_some((self.base + offset) as *mut T)
    }

    /// Reads without ordering against memory.
    #[inline(always)]
    pub fn read32_relaxed(&self, offset: usize) -> u32 {
        // SAFETY: the register lies in the mapped frame (checked) and is aligned.
        self.register::<u32>(offset).map_or(0, |register| unsafe { register.read_volatile() })
    }

    /// Writes without ordering against memory.
    #[inline(always)]
    pub fn write32_relaxed(&self, offset: usize, value: u32) {
        if let Some(register) = self.register::<u32>(offset) {
            // SAFETY: the register lies in the mapped frame (checked) and is aligned.
            unsafe { register.write_volatile(value) }
        }
    }

    /// Reads a 64-bit register without ordering against memory.
    #[inline(always)]
    pub fn read64_relaxed(&self, offset: usize) -> u64 {
        // SAFETY: the register lies in the mapped frame (checked) and is aligned.
        self.register::<u64>(offset).map_or(0, |register| unsafe { register.read_volatile() })
    }

    /// Writes a 64-bit register without ordering against memory.
    #[inline(always)]
    pub fn write64_relaxed(&self, offset: usize, value: u64) {
        if let Some(register) = self.register::<u64>(offset) {
            // SAFETY: the register lies in the mapped frame (checked) and is aligned.
            unsafe { register.write_volatile(value) }
        }
    }
}

impl Registers for Mmio {
    #[inline(always)]
    fn read32(&self, offset: usize) -> u32 {
        let value = self.read32_relaxed(offset);
        barrier::after_register_read();
        value
    }

    #[inline(always)]
    fn write32(&self, offset: usize, value: u32) {
        barrier::before_doorbell();
        self.write32_relaxed(offset, value);
    }

    fn read8(&self, offset: usize) -> u8 {
        // SAFETY: the register lies in the mapped frame (checked).
        let value = self.register::<u8>(offset).map_or(0, |it| unsafe { it.read_volatile() });
        barrier::after_register_read();
        value
    }

    fn read16(&self, offset: usize) -> u16 {
        // SAFETY: the register lies in the mapped frame (checked) and is aligned.
        let value = self.register::<u16>(offset).map_or(0, |it| unsafe { it.read_volatile() });
        barrier::after_register_read();
        value
    }

    fn write8(&self, offset: usize, value: u8) {
        barrier::before_doorbell();
        if let Some(register) = self.register::<u8>(offset) {
            // SAFETY: the register lies in the mapped frame (checked).
            unsafe { register.write_volatile(value) }
        }
    }

    // Devices are observers in the outer shareable domain.

    #[inline(always)]
    fn order_dma_reads(&self) {
        barrier::after_register_read();
    }

    #[inline(always)]
    fn order_dma_writes(&self) {
        barrier::before_doorbell();
    }

    #[inline(always)]
    fn order_dma(&self) {
        barrier::with_devices();
    }
}
