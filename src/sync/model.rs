//! The atomics and fences of [`super::atomic`] in unit tests: what a test declares is loom's, so
//! that loom can run the test with every outcome the memory model allows; all else is the machine's.
//!
//! Not loom's own types in place of the machine's, because those are not where a pointer says, and
//! shared memory is nothing but pointers. Here a word is looked up by its address.
//!
//! This is one of the listed seams for `unsafe`; it is in unit tests only.
#![allow(unsafe_code)]

use core::cell::{Cell, RefCell};
use core::panic::Location;
use core::sync::atomic::Ordering;
use std::collections::BTreeSet;
use std::rc::Rc;

std::thread_local! {
    /// The words of the model that runs on this thread: loom's threads are all on one.
    static WORDS: RefCell<Option<Rc<[Word]>>> = const { RefCell::new(None) };
    /// Where fences were passed while there were such words.
    static FENCES: RefCell<BTreeSet<Location<'static>>> = const { RefCell::new(BTreeSet::new()) };
    static OMITTED: Cell<Option<Location<'static>>> = const { Cell::new(None) };
}

/// A word that the cores of a model share.
struct Word {
    address: usize,
    size: usize,
    value: loom::sync::atomic::AtomicU64,
}

/// Makes words loom's for as long as it lives.
pub(crate) struct SharedWords(());

impl SharedWords {
    /// Words by address, size in bytes and value; to be called in a model, before its threads start.
    pub(crate) fn new(words: impl IntoIterator<Item = (usize, usize, u64)>) -> Self {
        let words = words.into_iter().map(|(address, size, value)| Word {
            address,
            size,
            value: loom::sync::atomic::AtomicU64::new(value),
        });
        WORDS.set(Some(words.collect()));
        Self(())
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        WORDS.set(None);
    }
}

/// Does `access` to the word at `address` if it is loom's. No borrow is held meanwhile: loom runs
/// other threads.
///
/// # Panics
/// If more than the word is accessed.
fn modelled<T>(address: usize, size: usize, access: impl FnOnce(&Word, usize) -> T) -> Option<T> {
    let words = WORDS.with_borrow(Clone::clone)?;
    let word =
        words.iter().find(|it| it.address < address + size && address < it.address + it.size)?;
    let within = address >= word.address && address + size <= word.address + word.size;
    assert!(within, "an access that is not to one word");
    Some(access(word, address - word.address))
}

/// The fences that models on this thread have passed, by their place in the source.
pub(crate) fn fences() -> Vec<Location<'static>> {
    FENCES.with_borrow(|fences| fences.iter().copied().collect())
}

/// Makes models on this thread do without the fence at `place`.
pub(crate) fn omit_fence(place: Option<Location<'static>>) {
    OMITTED.set(place);
}

/// As [`core::sync::atomic::fence`].
#[track_caller]
pub(crate) fn fence(order: Ordering) {
    if WORDS.with_borrow(Option::is_some) {
        let place = *Location::caller();
        FENCES.with_borrow_mut(|fences| fences.insert(place));
        if OMITTED.get() != Some(place) {
            loom::sync::atomic::fence(order);
        }
    } else {
        core::sync::atomic::fence(order);
    }
}

macro_rules! atomic {
    ($name:ident, $int:ty) => {
        /// As core's of this name.
        #[repr(transparent)]
        pub(crate) struct $name(core::sync::atomic::$name);

        impl $name {
            /// As core's.
            ///
            /// # Safety
            /// As core's.
            pub(crate) const unsafe fn from_ptr<'a>(pointer: *mut $int) -> &'a Self {
                // SAFETY: transparent, so what the caller promises for core's holds for this.
                unsafe { &*pointer.cast::<Self>() }
            }

            pub(crate) fn load(&self, order: Ordering) -> $int {
                let address = core::ptr::from_ref(self).addr();
                // Of a part of a word: what the whole had at some time it may be seen at.
                let value = modelled(address, size_of::<$int>(), |word, from| {
                    (word.value.load(order) >> (8 * from)) as $int
                });
                value.unwrap_or_else(|| self.0.load(order))
            }

            pub(crate) fn store(&self, value: $int, order: Ordering) {
                let address = core::ptr::from_ref(self).addr();
                let store = |word: &Word, _: usize| {
                    // loom has no stores of mixed size.
                    assert_eq!(word.size, size_of::<$int>(), "a store to a part of a word");
                    word.value.store(value.into(), order);
                };
                if modelled(address, size_of::<$int>(), store).is_none() {
                    self.0.store(value, order);
                }
            }
        }
    };
}

atomic!(AtomicU8, u8);
atomic!(AtomicU16, u16);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
