//! Which of the board's RAM is free: its memory ranges less everything that is reserved.
//!
//! Pure arithmetic over ranges; nothing here touches memory.

use core::fmt;

use super::Pa;

/// Free ranges a [`RamMap`] can hold. Each reserved range adds at most one.
pub const MAX_FREE_RANGES: usize = 64;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaRange {
    /// First byte.
    pub base: Pa,
    /// Length in bytes.
    pub len: u64,
}

impl PaRange {
    /// The `len` bytes at `base`.
    pub const fn new(base: u64, len: u64) -> Self {
        Self { base: Pa::new(base), len }
    }

    /// The address after the last byte; capped at the last address if the range wraps.
    pub const fn end(self) -> u64 {
        self.base.raw().saturating_add(self.len)
    }

    /// Whether the range has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether all of `other` lies inside. An empty `other` does if its address does.
    pub const fn contains(self, other: PaRange) -> bool {
        match other.base.raw().checked_add(other.len) {
            Some(end) => other.base.raw() >= self.base.raw() && end <= self.end(),
            None => false,
        }
    }

    /// Whether the two have a byte in common.
    pub const fn overlaps(self, other: PaRange) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && self.base.raw() < other.end()
            && other.base.raw() < self.end()
    }

    /// The largest part whose both ends are multiples of `align` (a power of two), if there is any.
    pub const fn aligned_inside(self, align: u64) -> Option<PaRange> {
        let Some(base) = align_up(self.base.raw(), align) else {
            return None;
        };
        let end = self.end() & !(align - 1);
        if base >= end {
            return None;
        }
        Some(PaRange::new(base, end - base))
    }
}

impl fmt::Display for PaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base.raw(), self.end())
    }
}

/// The smallest multiple of `align` (a power of two) not below `value`; `None` past the end.
pub(crate) const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(bumped) => Some(bumped & !(align - 1)),
        None => None,
    }
}

/// The board has more separate pieces of RAM than a [`RamMap`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyRanges;

impl fmt::Display for TooManyRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RAM is in more than {MAX_FREE_RANGES} separate pieces")
    }
}

/// The board's free RAM: disjoint ranges in ascending order.
#[derive(Clone, Debug, Default)]
pub struct RamMap {
    free: heapless::Vec<PaRange, MAX_FREE_RANGES>,
}

impl RamMap {
    /// A map without RAM.
    pub const fn new() -> Self {
        Self { free: heapless::Vec::new() }
    }

    /// All of `memory` that is not in `reserved`. Ranges may overlap and come in any order.
    ///
    /// # Errors
    /// If the free RAM is in more than [`MAX_FREE_RANGES`] pieces.
    pub fn from_ranges(memory: &[PaRange], reserved: &[PaRange]) -> Result<Self, TooManyRanges> {
        let mut map = Self::new();
        for range in memory {
            map.add(*range)?;
        }
        for range in reserved {
            map.reserve(*range)?;
        }
        Ok(map)
    }

    /// The free ranges, in ascending order, none empty, none touching another.
    pub fn free(&self) -> &[PaRange] {
        &self.free
    }

    /// Adds RAM, joining what it overlaps or touches.
    ///
    /// # Errors
    /// If the map is full; then it is unchanged.
    pub fn add(&mut self, range: PaRange) -> Result<(), TooManyRanges> {
        if range.is_empty() {
            return Ok(());
        }
        let (mut base, mut end) = (range.base.raw(), range.end());
        let mut joined = heapless::Vec::new();
        for old in &self.free {
            if old.base.raw() <= end && base <= old.end() {
                base = base.min(old.base.raw());
                end = end.max(old.end());
            } else {
                joined.push(*old).map_err(|_| TooManyRanges)?;
            }
        }
        let place = joined.iter().filter(|old| old.base.raw() < base).count();
        joined.insert(place, PaRange::new(base, end - base)).map_err(|_| TooManyRanges)?;
        self.free = joined;
        Ok(())
    }

    /// Takes `range` out of the map; parts that are not free do not matter.
    ///
    /// # Errors
    /// If the map is full; then it is unchanged.
    pub fn reserve(&mut self, range: PaRange) -> Result<(), TooManyRanges> {
        let mut rest = heapless::Vec::new();
        for old in &self.free {
            if !old.overlaps(range) {
                rest.push(*old).map_err(|_| TooManyRanges)?;
                continue;
            }
            let (base, end) = (old.base.raw(), old.end());
            if base < range.base.raw() {
                let head = PaRange::new(base, range.base.raw() - base);
                rest.push(head).map_err(|_| TooManyRanges)?;
            }
            if range.end() < end {
                let tail = PaRange::new(range.end(), end - range.end());
                rest.push(tail).map_err(|_| TooManyRanges)?;
            }
        }
        self.free = rest;
        Ok(())
    }

    /// The largest free range with both ends multiples of `align` (a power of two); of equals,
    /// the lowest.
    pub fn largest(&self, align: u64) -> Option<PaRange> {
        let mut best: Option<PaRange> = None;
        for range in self.free.iter().filter_map(|range| range.aligned_inside(align)) {
            if best.is_none_or(|best| range.len > best.len) {
                best = Some(range);
            }
        }
        best
    }

    /// The lowest free `len` bytes whose address is `residue` modulo `align` (a power of two).
    ///
    /// With `align` 1 GiB and `residue` the guest address modulo 1 GiB, stage 2 can map the range
    /// with 1 GiB blocks.
    pub fn find(&self, len: u64, align: u64, residue: u64) -> Option<PaRange> {
        let residue = residue & (align - 1);
        self.free.iter().find_map(|range| {
            let low = range.base.raw();
            let ahead = residue.wrapping_sub(low) & (align - 1);
            let found = PaRange { base: range.base.checked_add(ahead)?, len };
            range.contains(found).then_some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Units of the naive map: one bool each.
    const UNITS: usize = 96;

    fn ranges() -> impl Strategy<Value = Vec<PaRange>> {
        prop::collection::vec((0..UNITS as u64, 0u64..24), 0..8).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|(base, len)| PaRange::new(base, len.min(UNITS as u64 - base)))
                .collect()
        })
    }

    fn naive(memory: &[PaRange], reserved: &[PaRange]) -> [bool; UNITS] {
        core::array::from_fn(|at| {
            let here = PaRange::new(at as u64, 1);
            memory.iter().any(|range| range.contains(here))
                && !reserved.iter().any(|range| range.contains(here))
        })
    }

    fn all_free(naive: &[bool; UNITS], base: u64, len: u64) -> bool {
        base + len <= UNITS as u64 && naive[base as usize..(base + len) as usize].iter().all(|f| *f)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

        #[test]
        fn the_free_ranges_are_those_of_a_naive_bitmap(memory in ranges(), reserved in ranges()) {
            let map = RamMap::from_ranges(&memory, &reserved).unwrap();
            let naive = naive(&memory, &reserved);
            for (at, free) in naive.into_iter().enumerate() {
                let unit = PaRange::new(at as u64, 1);
                let hits = map.free().iter().filter(|range| range.contains(unit)).count();
                prop_assert_eq!(hits, usize::from(free));
            }
            for pair in map.free().windows(2) {
                prop_assert!(pair[0].end() < pair[1].base.raw());
            }
        }

        #[test]
        fn the_largest_range_is_the_naive_largest(
            memory in ranges(), reserved in ranges(), shift in 0u32..5,
        ) {
            let align = 1 << shift;
            let map = RamMap::from_ranges(&memory, &reserved).unwrap();
            let naive = naive(&memory, &reserved);
            let mut best = None;
            for base in (0..UNITS as u64).step_by(align as usize) {
                for len in (align..=UNITS as u64).step_by(align as usize) {
                    if all_free(&naive, base, len)
                        && best.is_none_or(|best: PaRange| len > best.len)
                    {
                        best = Some(PaRange::new(base, len));
                    }
                }
            }
            prop_assert_eq!(map.largest(align), best);
        }

        #[test]
        fn a_found_range_is_the_naive_lowest(
            memory in ranges(), reserved in ranges(), len in 1u64..20, shift in 0u32..5,
            residue in 0u64..16,
        ) {
            let align = 1 << shift;
            let map = RamMap::from_ranges(&memory, &reserved).unwrap();
            let naive = naive(&memory, &reserved);
            let lowest = (0..UNITS as u64)
                .filter(|base| base % align == residue % align)
                .find(|base| all_free(&naive, *base, len))
                .map(|base| PaRange::new(base, len));
            prop_assert_eq!(map.find(len, align, residue), lowest);
        }
    }

    #[test]
    fn a_full_map_is_refused_and_unchanged() {
        let mut map = RamMap::new();
        map.add(PaRange::new(0, 1000)).unwrap();
        for hole in 1..MAX_FREE_RANGES as u64 {
            map.reserve(PaRange::new(hole * 10, 1)).unwrap();
        }
        assert_eq!(map.reserve(PaRange::new(805, 1)), Err(TooManyRanges));
        assert_eq!(map.add(PaRange::new(2000, 1)), Err(TooManyRanges));
        assert_eq!(map.free().len(), MAX_FREE_RANGES);
        assert!(map.free().iter().any(|range| range.contains(PaRange::new(805, 1))));
    }

    #[test]
    fn ranges_at_the_end_of_the_address_space_do_not_wrap() {
        let mut map = RamMap::new();
        map.add(PaRange::new(u64::MAX - 0x1fff, 0x1000_0000)).unwrap();
        assert_eq!(map.find(0x1000, 0x1000, 0), Some(PaRange::new(u64::MAX - 0x1fff, 0x1000)));
        assert_eq!(map.find(u64::MAX, 0x1000, 0), None);
        map.reserve(PaRange::new(u64::MAX - 0xfff, u64::MAX)).unwrap();
        assert_eq!(map.free(), [PaRange::new(u64::MAX - 0x1fff, 0x1000)]);
    }
}
