//! Memory that another agent - a guest's core, a device's DMA engine, the table walker - may read
//! or change at any moment.
//!
//! This is one of the listed seams for `unsafe`. Everything outside sees bounds-checked copies and
//! single-copy-atomic loads and stores; there is never a `&[u8]` to such memory.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ptr::NonNull;

use super::Pa;
use crate::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

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

    /// The first `len` bytes, or as many as there are, and the rest.
    #[inline(always)]
    pub(crate) fn split_at(&self, len: usize) -> (SharedSlice<'m>, SharedSlice<'m>) {
        let len = len.min(self.len);
        // SAFETY: len <= self.len, so the pointer stays inside the owned range.
        let base = unsafe { self.base.add(len) };
        let pa = Pa::new(self.pa.raw() + len as u64);
        (SharedSlice { len, ..*self }, SharedSlice { base, pa, len: self.len - len, ..*self })
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

    /// The `len` bytes at `offset`, or `None` if there are none, or they do not lie wholly inside.
    ///
    /// As [`Self::subslice`], for hot paths: one check for an empty range and one that wraps.
    #[inline(always)]
    pub(crate) fn nonempty(&self, offset: u64, len: u32) -> Option<SharedSlice<'m>> {
        let last = offset.wrapping_add(len.into()).wrapping_sub(1);
        if last < offset || last >= self.len as u64 {
            return None;
        }
        // SAFETY: offset <= last < self.len, so the pointer stays inside the owned range.
        let base = unsafe { self.base.add(offset as usize) };
        let pa = Pa::new(self.pa.raw() + offset);
        Some(SharedSlice { base, pa, len: len as usize, memory: PhantomData })
    }

    /// Loads an entry at `offset`, each of its words single-copy atomic, relaxed.
    /// `None` if it does not lie in the slice or is not aligned to 8 bytes.
    #[inline(always)]
    pub fn load_entry(&self, offset: usize) -> Option<Entry> {
        let words = self.word::<[u64; 2]>(offset)?;
        // SAFETY: `word` checked bounds and alignment; the memory is live for 'm.
        let entry = unsafe { load_entry(words.cast()) };
        #[cfg(test)]
        super::testing::loaded(self, offset, size_of::<[u64; 2]>());
        Some(entry)
    }

    /// The slice as a table of entries. `None` if it is not aligned to 8 bytes, or ends in the
    /// middle of an entry.
    pub fn table(&self) -> Option<SharedTable<'m>> {
        let aligned = self.base.addr().get().is_multiple_of(align_of::<[u64; 2]>());
        let whole = self.len.is_multiple_of(size_of::<[u64; 2]>());
        (aligned && whole).then_some(SharedTable { slice: *self })
    }

    /// The `count` elements of type `T` at `offset`, to be accessed round and round. `None` if they
    /// do not lie in the slice, are not naturally aligned, or `count` is not a power of two.
    pub fn ring<T>(&self, offset: usize, count: usize) -> Option<SharedRing<'m, T>> {
        let slice = self.subslice(offset, count.checked_mul(size_of::<T>())?)?;
        let aligned = slice.base.addr().get().is_multiple_of(align_of::<T>());
        let mask = count.is_power_of_two().then(|| count - 1)?;
        aligned.then_some(SharedRing { slice, mask, element: PhantomData })
    }

    /// Copies the bytes at `offset` into `out`.
    /// `None`, and `out` unchanged, if they do not lie wholly in the slice.
    ///
    /// Bytes that another agent changes meanwhile arrive old or new; words whole only if the first
    /// byte is at a word's boundary.
    #[inline]
    pub fn read_bytes(&self, offset: usize, out: &mut [u8]) -> Option<()> {
        let source = self.subslice(offset, out.len())?;
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: `source` and `out` are `len` bytes each; `out` is nobody else's.
        unsafe {
            copy_bytes(NonNull::from(&mut *out).cast(), source.base, source.len);
        }
        #[cfg(not(all(target_arch = "aarch64", not(miri))))]
        source.read_by_atomics(out)?;
        #[cfg(test)]
        super::testing::loaded(self, offset, out.len());
        Some(())
    }

    /// Reads as many bytes as there are: a word at a time where the words of the slice begin.
    #[cfg(not(all(target_arch = "aarch64", not(miri))))]
    fn read_by_atomics(&self, out: &mut [u8]) -> Option<()> {
        let source = self;
        let mut at = source.bytes_before_word();
        let (head, rest) = out.split_at_mut_checked(at)?;
        for (index, byte) in head.iter_mut().enumerate() {
            // SAFETY: index < at <= source.len().
            *byte = unsafe { source.byte_at(index) }.load(Ordering::Relaxed);
        }
        let (words, tail) = rest.as_chunks_mut::<WORD>();
        for chunk in words {
            // SAFETY: the chunk at `at` is inside `source`, and `at` is at a word boundary.
            let word = unsafe { source.word_at(at) }.load(Ordering::Relaxed);
            *chunk = word.to_ne_bytes();
            at += WORD;
        }
        for (index, byte) in tail.iter_mut().enumerate() {
            // SAFETY: the remainder begins at `at` and ends with `source`.
            *byte = unsafe { source.byte_at(at + index) }.load(Ordering::Relaxed);
        }
        Some(())
    }

    /// Copies `bytes` to `offset`.
    /// `None`, and no effect, if the target does not lie wholly in the slice.
    #[inline]
    pub fn write_bytes(&self, offset: usize, bytes: &[u8]) -> Option<()> {
        let target = self.subslice(offset, bytes.len())?;
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: `target` and `bytes` are `len` bytes each.
        unsafe {
            copy_bytes(target.base, NonNull::from(bytes).cast(), target.len);
        }
        #[cfg(not(all(target_arch = "aarch64", not(miri))))]
        target.write_by_atomics(bytes)?;
        Some(())
    }

    /// Writes as many bytes as there are: a word at a time where the words of the slice begin.
    #[cfg(not(all(target_arch = "aarch64", not(miri))))]
    fn write_by_atomics(&self, bytes: &[u8]) -> Option<()> {
        let target = self;
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
    /// What arrives where the two overlap is not specified. Bytes that another agent changes
    /// meanwhile arrive old or new; words whole only if both slices begin at a word's boundary.
    #[inline]
    pub fn copy_from(&self, source: &SharedSlice<'_>) -> Option<()> {
        if self.len != source.len {
            return None;
        }
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        // SAFETY: both pointers are to `len` bytes, which `new` promised to be accessible.
        unsafe {
            copy_bytes(self.base, source.base, self.len);
        }
        #[cfg(not(all(target_arch = "aarch64", not(miri))))]
        self.copy_by_atomics(source);
        Some(())
    }

    /// Copies from a slice of the same length: a word at a time if both start at the same place
    /// within a word.
    #[cfg(not(all(target_arch = "aarch64", not(miri))))]
    fn copy_by_atomics(&self, source: &SharedSlice<'_>) {
        let len = self.len;
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
    }

    /// Copies one byte if it lies in both slices.
    #[cfg(not(all(target_arch = "aarch64", not(miri))))]
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

/// Copies forwards, 64 bytes a round, with pairs of general registers; what is long with pairs of
/// vector registers first, 256 bytes a round. At EL2 those are the guest's, and nothing of Rust lives
/// in them: their values are put aside meanwhile. Accesses need not be aligned, which Normal memory
/// allows, so that the phases of the two do not matter.
///
/// The interface is C's, and so is what is returned, `to`: at EL2 this is `memcpy` too.
///
/// # Safety
/// `len` bytes at `from` are readable and at `to` writable, as [`SharedSlice::new`] has it.
#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(never)]
pub(crate) unsafe extern "C" fn copy_bytes(
    to: NonNull<u8>,
    from: NonNull<u8>,
    len: usize,
) -> NonNull<u8> {
    let mut aside = core::mem::MaybeUninit::<[u128; 8]>::uninit();
    // SAFETY: each loop takes as many bytes a round as there are at least, each of the rest's bits what
    // it stands for, so that exactly `len` bytes are read and written. Shared memory is only ever
    // accessed by atomics or by code the compiler does not see into, as this. V0 to V7 are left as they
    // were; `aside` has room for them.
    unsafe {
        core::arch::asm!(
            ".arch_extension fp",
            "cmp {len}, #512",
            "b.lo 12f",
            "stp q0, q1, [{aside}]",
            "stp q2, q3, [{aside}, #32]",
            "stp q4, q5, [{aside}, #64]",
            "stp q6, q7, [{aside}, #96]",
            "sub {len}, {len}, #256",
            "11:",
            "ldp q0, q1, [{from}], #256",
            "ldp q2, q3, [{from}, #-224]",
            "ldp q4, q5, [{from}, #-192]",
            "ldp q6, q7, [{from}, #-160]",
            "stp q0, q1, [{to}], #256",
            "stp q2, q3, [{to}, #-224]",
            "stp q4, q5, [{to}, #-192]",
            "stp q6, q7, [{to}, #-160]",
            "ldp q0, q1, [{from}, #-128]",
            "ldp q2, q3, [{from}, #-96]",
            "ldp q4, q5, [{from}, #-64]",
            "ldp q6, q7, [{from}, #-32]",
            "subs {len}, {len}, #256",
            "stp q0, q1, [{to}, #-128]",
            "stp q2, q3, [{to}, #-96]",
            "stp q4, q5, [{to}, #-64]",
            "stp q6, q7, [{to}, #-32]",
            "b.hs 11b",
            "add {len}, {len}, #256",
            "ldp q0, q1, [{aside}]",
            "ldp q2, q3, [{aside}, #32]",
            "ldp q4, q5, [{aside}, #64]",
            "ldp q6, q7, [{aside}, #96]",
            "12:",
            "subs {len}, {len}, #64",
            "b.lo 3f",
            "2:",
            "ldp {a}, {b}, [{from}], #64",
            "ldp {c}, {d}, [{from}, #-48]",
            "ldp {e}, {f}, [{from}, #-32]",
            "ldp {g}, {h}, [{from}, #-16]",
            "subs {len}, {len}, #64",
            "stp {a}, {b}, [{to}], #64",
            "stp {c}, {d}, [{to}, #-48]",
            "stp {e}, {f}, [{to}, #-32]",
            "stp {g}, {h}, [{to}, #-16]",
            "b.hs 2b",
            // Of what is left, less 64, the lower bits are those of what is left.
            "3:",
            "tbz {len}, #5, 4f",
            "ldp {a}, {b}, [{from}], #32",
            "ldp {c}, {d}, [{from}, #-16]",
            "stp {a}, {b}, [{to}], #32",
            "stp {c}, {d}, [{to}, #-16]",
            "4:",
            "tbz {len}, #4, 5f",
            "ldp {a}, {b}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "5:",
            "tbz {len}, #3, 6f",
            "ldr {a}, [{from}], #8",
            "str {a}, [{to}], #8",
            "6:",
            "tbz {len}, #2, 7f",
            "ldr {a:w}, [{from}], #4",
            "str {a:w}, [{to}], #4",
            "7:",
            "tbz {len}, #1, 8f",
            "ldrh {a:w}, [{from}], #2",
            "strh {a:w}, [{to}], #2",
            "8:",
            "tbz {len}, #0, 9f",
            "ldrb {a:w}, [{from}]",
            "strb {a:w}, [{to}]",
            "9:",
            aside = in(reg) aside.as_mut_ptr(),
            len = inout(reg) len => _,
            from = inout(reg) from.as_ptr() => _,
            to = inout(reg) to.as_ptr() => _,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            e = out(reg) _,
            f = out(reg) _,
            g = out(reg) _,
            h = out(reg) _,
            options(nostack),
        );
    }
    to
}

/// Loads the words of an entry, each once.
///
/// # Safety
/// `words` points to 16 bytes that are valid for atomic access, aligned to 8.
#[inline(always)]
unsafe fn load_entry(words: *mut u64) -> Entry {
    // SAFETY: as the caller promises.
    let first = unsafe { AtomicU64::from_ptr(words) };
    let halves = words.wrapping_add(1).cast::<u32>();
    // SAFETY: as the caller promises; `wrapping_add` stayed inside the 16 bytes.
    let low = unsafe { AtomicU32::from_ptr(halves) };
    // SAFETY: as above.
    let high = unsafe { AtomicU32::from_ptr(halves.wrapping_add(1)) };
    Entry {
        first: u64::from_le(first.load(Ordering::Relaxed)),
        low: u32::from_le(low.load(Ordering::Relaxed)),
        high: u32::from_le(high.load(Ordering::Relaxed)),
    }
}

/// An entry of a [`SharedTable`], in this order: 16 bytes, as virtqueue descriptors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The word of 8 bytes.
    pub first: u64,
    /// The word of 4 bytes after it.
    pub low: u32,
    /// The last word of 4 bytes.
    pub high: u32,
}

/// Where an entry of a [`SharedTable`] is: bytes from the table's beginning, a multiple of 16.
///
/// Going from entry to entry needs no multiplication, and the table no check of the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryOffset(usize);

impl EntryOffset {
    /// The first entry.
    pub const START: EntryOffset = EntryOffset(0);
    /// From one entry to the next.
    pub const ONE: EntryOffset = EntryOffset(size_of::<[u64; 2]>());

    /// Of the entry at `index`.
    #[inline(always)]
    pub const fn of(index: u32) -> Self {
        EntryOffset((index as usize).wrapping_mul(Self::ONE.0))
    }

    /// The index of the entry.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        (self.0 / Self::ONE.0) as u32
    }

    /// `distance` on. Modulo a power of two, which leaves a multiple of 16 one.
    #[inline(always)]
    pub const fn plus(self, distance: EntryOffset) -> Self {
        EntryOffset(self.0.wrapping_add(distance.0))
    }

    /// `distance` back, in the same way.
    #[inline(always)]
    pub const fn minus(self, distance: EntryOffset) -> Self {
        EntryOffset(self.0.wrapping_sub(distance.0))
    }
}

/// Shared memory as a table of entries, whose alignment was checked once: an access checks only the
/// bounds.
#[derive(Clone, Copy)]
pub struct SharedTable<'m> {
    /// Aligned to 8 bytes; the length is a multiple of 16.
    slice: SharedSlice<'m>,
}

impl<'m> SharedTable<'m> {
    /// The table up to the entry at `end`. `None` if it is not that long.
    #[inline(always)]
    pub fn up_to(&self, end: EntryOffset) -> Option<SharedTable<'m>> {
        // As long as a multiple of 16 says.
        self.slice.subslice(0, end.0).map(|slice| SharedTable { slice })
    }

    /// The entry at `offset`, if it is in the table.
    #[inline(always)]
    pub fn entry(&self, offset: EntryOffset) -> Option<SharedEntry<'m>> {
        let offset = offset.0;
        if offset >= self.slice.len {
            return None;
        }
        // SAFETY: offset < len, so the pointer stays inside the owned range; both are multiples of
        // 16, so all of the entry is in it, and as aligned as the table.
        let words = unsafe { self.slice.base.add(offset) }.cast();
        Some(SharedEntry {
            words,
            #[cfg(test)]
            slice: self.slice.subslice(offset, size_of::<[u64; 2]>())?,
            memory: PhantomData,
        })
    }
}

/// An entry of a [`SharedTable`] that is known to be there. Its words are accessed single-copy
/// atomic, relaxed.
pub struct SharedEntry<'m> {
    /// 16 bytes in a table, aligned to 8.
    words: NonNull<u64>,
    #[cfg(test)]
    slice: SharedSlice<'m>,
    memory: PhantomData<&'m AtomicU8>,
}

impl SharedEntry<'_> {
    /// Loads all of it.
    #[inline(always)]
    pub fn load(&self) -> Entry {
        // SAFETY: `words` is as the field says, and the memory is live for 'm.
        let entry = unsafe { load_entry(self.words.as_ptr()) };
        #[cfg(test)]
        super::testing::loaded(&self.slice, 0, 16);
        entry
    }

    /// Loads the last word only.
    #[inline(always)]
    pub fn load_high(&self) -> u32 {
        let high = self.words.as_ptr().cast::<u32>().wrapping_add(3);
        // SAFETY: as in `load`; the word is the last of the 16 bytes.
        let high = unsafe { AtomicU32::from_ptr(high) };
        let high = u32::from_le(high.load(Ordering::Relaxed));
        #[cfg(test)]
        super::testing::loaded(&self.slice, 12, 4);
        high
    }

    /// Loads all but the last word.
    #[inline(always)]
    pub fn load_first_and_low(&self) -> (u64, u32) {
        let words = self.words.as_ptr();
        // SAFETY: as in `load`.
        let first = unsafe { AtomicU64::from_ptr(words) };
        // SAFETY: as in `load`; the word is inside the 16 bytes.
        let low = unsafe { AtomicU32::from_ptr(words.wrapping_add(1).cast()) };
        let first = u64::from_le(first.load(Ordering::Relaxed));
        let low = u32::from_le(low.load(Ordering::Relaxed));
        #[cfg(test)]
        super::testing::loaded(&self.slice, 0, 12);
        (first, low)
    }

    /// Stores the last two words as one: `low` is its lower half.
    #[inline(always)]
    pub fn store_low_and_high(&self, value: u64) {
        let second = self.words.as_ptr().wrapping_add(1);
        // SAFETY: as in `load`; the word is the second of the two.
        let second = unsafe { AtomicU64::from_ptr(second) };
        second.store(value.to_le(), Ordering::Relaxed);
    }
}

/// Shared memory as a ring of 2^n elements of type `T`, whose bounds and alignment were checked
/// once: any index is one of the ring, modulo its size.
#[derive(Clone, Copy)]
pub struct SharedRing<'m, T> {
    /// Exactly the elements, naturally aligned.
    slice: SharedSlice<'m>,
    /// The number of elements, a power of two, less 1.
    mask: usize,
    element: PhantomData<T>,
}

impl<T> SharedRing<'_, T> {
    #[inline(always)]
    fn element(&self, index: u16) -> *mut T {
        let elements = self.slice.base.as_ptr().cast::<T>();
        // SAFETY: a masked index is at most the last element's.
        unsafe { elements.add(usize::from(index) & self.mask) }
    }
}

impl SharedRing<'_, u16> {
    /// Loads the element at `index`, single-copy atomic, relaxed.
    #[inline(always)]
    pub fn load(&self, index: u16) -> u16 {
        // SAFETY: an element is in bounds and aligned; the memory is live for 'm.
        let element = unsafe { AtomicU16::from_ptr(self.element(index)) };
        let element = u16::from_le(element.load(Ordering::Relaxed));
        #[cfg(test)]
        super::testing::loaded(&self.slice, 2 * (usize::from(index) & self.mask), 2);
        element
    }
}

impl SharedRing<'_, [u32; 2]> {
    /// Stores both words of the element at `index`, each single-copy atomic, relaxed, in no
    /// particular order.
    #[inline(always)]
    pub fn store(&self, index: u16, [first, second]: [u32; 2]) {
        let words = self.element(index).cast::<u32>();
        // SAFETY: an element is in bounds and aligned; the memory is live for 'm.
        unsafe { AtomicU32::from_ptr(words) }.store(first.to_le(), Ordering::Relaxed);
        // SAFETY: as above; the word is the second of the two.
        let place = unsafe { AtomicU32::from_ptr(words.wrapping_add(1)) };
        place.store(second.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
