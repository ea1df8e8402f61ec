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

/// Bytes moved at a time by the bulk operations.
const WORD: usize = size_of::<u64>();

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
            let value = <$int>::from_le(atomic.load(Ordering::Relaxed));
            #[cfg(test)]
            super::testing::loaded(self, offset, size_of::<$int>());
            Some(value)
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

    /// No memory at all: a value for places that are not in use.
    pub const fn empty() -> Self {
        Self { base: NonNull::dangling(), pa: Pa::new(0), len: 0, memory: PhantomData }
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
        if len > self.len.checked_sub(offset)? {
            return None;
        }
        // SAFETY: offset <= self.len, so the pointer stays inside the owned range.
        let base = unsafe { self.base.add(offset) };
        Some(SharedSlice {
            base,
            pa: Pa::new(self.pa.raw() + offset as u64),
            len,
            memory: PhantomData,
        })
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

    /// Loads two consecutive little-endian words at `offset`, each single-copy atomic, relaxed.
    /// `None` if they do not lie in the slice or are not naturally aligned.
    ///
    /// Half the checks of two [`Self::load_u64`]; a virtqueue descriptor is such a pair.
    #[inline(always)]
    pub fn load_u64_pair(&self, offset: usize) -> Option<(u64, u64)> {
        let words = self.word::<[u64; 2]>(offset)?.cast::<u64>();
        // SAFETY: `word` checked bounds and alignment of both; the memory is live for 'm.
        let first = unsafe { AtomicU64::from_ptr(words) };
        let second = words.wrapping_add(1);
        // SAFETY: as above; `wrapping_add` stayed inside the checked pair.
        let second = unsafe { AtomicU64::from_ptr(second) };
        let load = |word: &AtomicU64| u64::from_le(word.load(Ordering::Relaxed));
        let pair = (load(first), load(second));
        #[cfg(test)]
        super::testing::loaded(self, offset, size_of::<[u64; 2]>());
        Some(pair)
    }

    /// Stores two consecutive little-endian words at `offset`, each single-copy atomic, relaxed,
    /// in no particular order. `None`, and no effect, if they do not lie in the slice or are not
    /// naturally aligned.
    ///
    /// Half the checks of two [`Self::store_u32`]; a used element is such a pair.
    #[inline(always)]
    pub fn store_u32_pair(&self, offset: usize, values: (u32, u32)) -> Option<()> {
        let words = self.word::<[u32; 2]>(offset)?.cast::<u32>();
        // SAFETY: `word` checked bounds and alignment of both; the memory is live for 'm.
        let first = unsafe { AtomicU32::from_ptr(words) };
        let second = words.wrapping_add(1);
        // SAFETY: as above; `wrapping_add` stayed inside the checked pair.
        let second = unsafe { AtomicU32::from_ptr(second) };
        first.store(values.0.to_le(), Ordering::Relaxed);
        second.store(values.1.to_le(), Ordering::Relaxed);
        Some(())
    }

    /// Copies the bytes at `offset` into `out`.
    /// `None`, and `out` unchanged, if they do not lie wholly in the slice.
    ///
    /// Bytes that another agent changes meanwhile arrive old or new, aligned words whole.
    #[inline]
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Option<()> {
        let source = self.subslice(offset, out.len())?;
        let mut at = source.bytes_before_word();
        let (head, rest) = out.split_at_mut_checked(at)?;
        for (index, byte) in head.iter_mut().enumerate() {
            // SAFETY: index < at <= source.len().
            *byte = unsafe { source.byte_at(index) }.load(Ordering::Relaxed);
        }
        let mut words = rest.chunks_exact_mut(WORD);
        for chunk in &mut words {
            // SAFETY: the chunk at `at` is inside `source`, and `at` is at a word boundary.
            let word = unsafe { source.word_at(at) }.load(Ordering::Relaxed);
            chunk.copy_from_slice(&word.to_ne_bytes());
            at += WORD;
        }
        for (index, byte) in words.into_remainder().iter_mut().enumerate() {
            // SAFETY: the remainder begins at `at` and ends with `source`.
            *byte = unsafe { source.byte_at(at + index) }.load(Ordering::Relaxed);
        }
        #[cfg(test)]
        super::testing::loaded(self, offset, out.len());
        Some(())
    }

    /// Copies `bytes` to `offset`.
    /// `None`, and no effect, if the target does not lie wholly in the slice.
    #[inline]
    pub fn write_bytes(&self, offset: usize, bytes: &[u8]) -> Option<()> {
        let target = self.subslice(offset, bytes.len())?;
        let mut at = target.bytes_before_word();
        let (head, rest) = bytes.split_at_checked(at)?;
        for (index, byte) in head.iter().enumerate() {
            // SAFETY: index < at <= target.len().
            unsafe { target.byte_at(index) }.store(*byte, Ordering::Relaxed);
        }
        let (words, tail) = rest.as_chunks::<WORD>();
        for word in words {
            // SAFETY: the chunk at `at` is inside `target`, and `at` is at a word boundary.
            let place = unsafe { target.word_at(at) };
            place.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
            at += WORD;
        }
        for (index, byte) in tail.iter().enumerate() {
            // SAFETY: the tail begins at `at` and ends with `target`.
            unsafe { target.byte_at(at + index) }.store(*byte, Ordering::Relaxed);
        }
        Some(())
    }

    /// Sets the `len` bytes at `offset` to `value`.
    /// `None`, and no effect, if they do not lie wholly in the slice.
    #[inline(never)]
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Option<()> {
        let target = self.subslice(offset, len)?;
        let word = u64::from_ne_bytes([value; WORD]);
        let mut at = 0;
        while at < target.bytes_before_word() {
            // SAFETY: at < bytes_before_word() <= len.
            unsafe { target.byte_at(at) }.store(value, Ordering::Relaxed);
            at += 1;
        }
        while len - at >= WORD {
            // SAFETY: the word at `at` is inside `target`, and `at` is at a word boundary.
            unsafe { target.word_at(at) }.store(word, Ordering::Relaxed);
            at += WORD;
        }
        while at < len {
            // SAFETY: at < len.
            unsafe { target.byte_at(at) }.store(value, Ordering::Relaxed);
            at += 1;
        }
        Some(())
    }

    /// Copies all of `source` over this slice. `None`, and no effect, if the lengths differ.
    ///
    /// Copies forwards: where the two overlap with `source` the lower one, bytes repeat. Fast
    /// (a word at a time) if both start at the same place within a word.
    #[inline]
    pub fn copy_from(&self, source: &SharedSlice<'_>) -> Option<()> {
        let len = self.len;
        if len != source.len {
            return None;
        }
        let same_phase = (self.base.addr().get() ^ source.base.addr().get()) & (WORD - 1) == 0;
        let head = if same_phase { self.bytes_before_word() } else { len };
        let mut at = 0;
        while at < head {
            self.copy_byte(source, at);
            at += 1;
        }
        while len - at >= WORD {
            // SAFETY: the word at `at` is inside both slices and aligned in both.
            let word = unsafe { source.word_at(at) }.load(Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.word_at(at) }.store(word, Ordering::Relaxed);
            at += WORD;
        }
        while at < len {
            self.copy_byte(source, at);
            at += 1;
        }
        Some(())
    }

    /// Copies one byte if it lies in both slices.
    #[inline(always)]
    fn copy_byte(&self, source: &SharedSlice<'_>, at: usize) {
        if let Some(byte) = source.load_u8(at) {
            // In bounds: the caller has equal lengths.
            let _ = self.store_u8(at, byte);
        }
    }

    /// Bytes from the start to the first word boundary, at most the whole slice.
    #[inline(always)]
    fn bytes_before_word(&self) -> usize {
        (self.base.addr().get().wrapping_neg() & (WORD - 1)).min(self.len)
    }

    /// The byte at `offset`.
    ///
    /// # Safety
    /// `offset < self.len`.
    #[inline(always)]
    unsafe fn byte_at(&self, offset: usize) -> &'m AtomicU8 {
        // SAFETY: the caller keeps the offset inside the range.
        let byte = unsafe { self.base.add(offset) };
        // SAFETY: `new` promised memory that is valid for atomics for 'm.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    /// The word at `offset`, in host byte order.
    ///
    /// # Safety
    /// `offset + WORD <= self.len`, and `self.base + offset` is a multiple of [`WORD`].
    #[inline(always)]
    unsafe fn word_at(&self, offset: usize) -> &'m AtomicU64 {
        // SAFETY: the caller keeps the offset inside the range.
        let word = unsafe { self.base.add(offset) };
        // SAFETY: `new` promised memory that is valid for atomics for 'm; the caller, alignment.
        unsafe { AtomicU64::from_ptr(word.as_ptr().cast::<u64>()) }
    }
}

#[cfg(test)]
mod tests;
