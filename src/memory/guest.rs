//! A guest's RAM, as the devices see it: an address is an allegation until [`GuestMemory::slice`]
//! has checked it.

use super::{Ipa, SharedSlice};

/// Regions of RAM one guest can have.
pub const MAX_REGIONS: usize = 4;

/// Why a guest range was refused; always the guest's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMemoryError {
    /// The range wraps around the end of the address space.
    Wraps,
    /// The range is not wholly inside one region of the guest's RAM.
    NotRam,
}

/// All of a guest's RAM.
#[derive(Clone)]
pub struct GuestMemory<'m> {
    regions: heapless::Vec<(Ipa, SharedSlice<'m>), MAX_REGIONS>,
    /// The first of them again, or one of no bytes: where most ranges are.
    first: (Ipa, SharedSlice<'m>),
}

impl<'m> GuestMemory<'m> {
    /// A guest without RAM.
    pub const fn new() -> Self {
        Self { regions: heapless::Vec::new(), first: (Ipa::new(0), SharedSlice::empty()) }
    }

    /// Adds `memory` at `ipa`. Gives the region back if the table is full, the region is empty,
    /// wraps, or overlaps one that is there.
    pub fn add(&mut self, ipa: Ipa, memory: SharedSlice<'m>) -> Result<(), SharedSlice<'m>> {
        let Some(end) = ipa.checked_add(memory.len() as u64) else {
            return Err(memory);
        };
        let overlaps = self.regions.iter().any(|(base, region)| {
            ipa.raw() < base.raw() + region.len() as u64 && base.raw() < end.raw()
        });
        if overlaps || memory.is_empty() {
            return Err(memory);
        }
        self.regions.push((ipa, memory)).map_err(|(_, memory)| memory)?;
        self.first = self.regions.first().copied().unwrap_or(self.first);
        Ok(())
    }

    /// The regions: guest address and memory.
    pub fn regions(&self) -> &[(Ipa, SharedSlice<'m>)] {
        &self.regions
    }

    /// The `len` bytes of RAM at `ipa`.
    ///
    /// # Errors
    /// If any of it is not RAM, or the range wraps. An empty range must lie in RAM too.
    pub fn slice(&self, ipa: Ipa, len: usize) -> Result<SharedSlice<'m>, GuestMemoryError> {
        if ipa.checked_add(len as u64).is_none() {
            return Err(GuestMemoryError::Wraps);
        }
        let slice = self.regions.iter().find_map(|region| slice_of(region, ipa, len));
        slice.ok_or(GuestMemoryError::NotRam)
    }

    /// The `len` bytes at `ipa` if there are any and they lie in the first region, for hot paths:
    /// for all else, [`Self::slice`] says what it is.
    #[inline(always)]
    pub(crate) fn slice_of_first(&self, ipa: Ipa, len: u32) -> Option<SharedSlice<'m>> {
        let (base, region) = &self.first;
        // Below the base this is more than any region has.
        region.nonempty(ipa.raw().wrapping_sub(base.raw()), len)
    }
}

/// The `len` bytes at `ipa` if they are wholly in `region` and begin before its end.
fn slice_of<'m>(
    (base, region): &(Ipa, SharedSlice<'m>),
    ipa: Ipa,
    len: usize,
) -> Option<SharedSlice<'m>> {
    // Below the base this is more than any region has.
    let offset = ipa.raw().wrapping_sub(base.raw());
    if offset >= region.len() as u64 {
        return None;
    }
    region.subslice(offset as usize, len)
}

impl Default for GuestMemory<'_> {
    fn default() -> Self {
        Self::new()
    }
}
