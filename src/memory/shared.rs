//! Memory that another agent - a guest's core, a device's DMA engine, the table walker - may read
//! or change at any moment.
//!
//! This is one of the listed seams for `unsafe`. Everything outside sees bounds-checked copies and
//! single-copy-atomic loads and stores; there is never a `&[u8]` to such memory.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Pa;

/// A range of shared memory: where EL2 sees it, and where the bus sees it.
///
/// Copies of a `SharedSlice` alias; that is sound because all access is atomic (byte-wise relaxed
/// for bulk copies) and no reference to the bytes is ever formed.
#[derive(Clone, Copy)]
pub struct SharedSlice<'m> {
    base: NonNull<u8>,
    pa: Pa,
    len: usize,
    memory: PhantomData<&'m AtomicU8>,
}

// SAFETY: all access goes through atomics; a `SharedSlice` grants nothing that `&[AtomicU8]`,
// which is Send and Sync, would not.
unsafe impl Send for SharedSlice<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for SharedSlice<'_> {}

macro_rules! word_access {
    ($load:ident, $store:ident, $int:ty, $atomic:ty) => {
        /// Loads a little-endian word at `offset`, single-copy atomic, relaxed.
        /// `None` if it does not lie in the slice or is not naturally aligned.
        #[inline(always)]
        pub fn $load(&self, offset: usize) -> Option<$int> {
            let word = self.word::<$int>(offset)?;
            // SAFETY: `word` checked bounds and alignment; the memory is live for 'm.
            let atomic = unsafe { <$atomic>::from_ptr(word) };
            Some(<$int>::from_le(atomic.load(Ordering::Relaxed)))
        }

        /// Stores a little-endian word at `offset`, single-copy atomic, relaxed.
        /// `None`, and no effect, if it does not lie in the slice or is not naturally aligned.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $int) -> Option<()> {
            let word = self.word::<$int>(offset)?;
            // SAFETY: `word` checked bounds and alignment; the memory is live for 'm.
            let atomic = unsafe { <$atomic>::from_ptr(word) };
            atomic.store(value.to_le(), Ordering::Relaxed);
            Some(())
        }
    };
}

impl<'m> SharedSlice<'m> {
    /// Takes charge of `len` bytes at `base`, which the bus sees at `pa`.
    ///
    /// # Safety
    /// For all of `'m`, `base..base + len` must be mapped, readable and writable, valid for atomic
    /// access, and no Rust reference to any of it may exist.
    pub const unsafe fn new(base: NonNull<u8>, pa: Pa, len: usize) -> Self {
        Self { base, pa, len, memory: PhantomData }
    }

    /// Length in bytes.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no bytes.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Physical address of the first byte, for DMA descriptors and table entries.
    #[inline(always)]
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// The `len` bytes at `offset`, or `None` if they do not lie wholly inside.
    #[inline(always)]
    pub fn subslice(&self, offset: usize, len: usize) -> Option<SharedSlice<'m>> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= end <= self.len, so the pointer stays inside the owned range.
        let base = unsafe { self.base.add(offset) };
        Some(SharedSlice { base, pa: Pa::new(self.pa.raw() + offset as u64), len, memory: PhantomData })
    }

    /// Pointer to the aligned word of type `T` at `offset`.
    #[inline(always)]
    fn word<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset < end <= self.len, so the pointer stays inside the owned range.
        let pointer = unsafe { self.base.as_ptr().add(offset) };
        if pointer.addr() & (align_of::<T>() - 1) != 0 {
            return None;
        }
        Some(pointer.cast::<T>())
    }

    word_access!(load_u8, store_u8, u8, AtomicU8);
    word_access!(load_u16, store_u16, u16, AtomicU16);
    word_access!(load_u32, store_u32, u32, AtomicU32);
    word_access!(load_u64, store_u64, u64, AtomicU64);
}
