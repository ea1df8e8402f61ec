//! Stage 2: a guest's physical addresses to the board's.
//!
//! VMSAv8-64 tables with a 4 KiB granule. Ranges are mapped with the largest blocks (1 GiB, 2 MiB,
//! 4 KiB) both addresses allow. Every operation either succeeds or leaves all translations as they
//! were. A live entry is only ever changed through an invalid one (break-before-make), except where
//! the architecture does not ask for it: a change of permissions alone.
//!
//! While an entry is broken, another core of the same guest may take a translation fault on it.
//! Whoever handles such a fault must take the lock this tree is behind and look again, before it
//! blames the guest.

mod descriptor;
mod error;
mod geometry;
mod tlb;

pub use descriptor::{Access, Attributes, MemoryType};
use descriptor::{Descriptor, Kind};
pub use error::Stage2Error;
use geometry::{FIRST_BLOCK_LEVEL, shift, span};
pub use geometry::{Geometry, Vmid, VmidBits, pa_bits, vttbr};
pub use tlb::Tlb;

use super::{FramePool, Ipa, PAGE_SIZE, Pa, SharedSlice};

/// Entries in one table.
const ENTRIES: usize = 512;

/// The block or page that translates an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First guest address of the block.
    pub ipa: Ipa,
    /// First physical address of the block.
    pub pa: Pa,
    /// Size of the block in bytes: 4 KiB, 2 MiB or 1 GiB.
    pub size: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

impl Mapping {
    /// The physical address of `ipa`, if it is in this block.
    pub fn translate(&self, ipa: Ipa) -> Option<Pa> {
        let offset = ipa.raw().checked_sub(self.ipa.raw()).filter(|offset| *offset < self.size)?;
        self.pa.checked_add(offset)
    }

    /// Whether guest and physical address are the same. Guest RAM never should be: an unchecked
    /// guest address must not work by luck.
    pub fn is_identity(&self) -> bool {
        self.ipa.raw() == self.pa.raw()
    }
}

/// A guest's stage-2 tables. They live in frames of the pool they were made with, which every
/// operation is given again; [`Stage2::destroy`] gives the frames back, dropping does not.
pub struct Stage2<'m> {
    root: SharedSlice<'m>,
    geometry: Geometry,
    vmid: Vmid,
}

/// The entry a walk ended at: a leaf or an invalid one.
struct Slot<'m> {
    table: SharedSlice<'m>,
    offset: usize,
    level: u8,
    entry: Descriptor,
}

/// What a removal has taken out of the tree so far.
struct Removal {
    leaves: usize,
    first: u64,
    dead: Option<Pa>,
}

impl<'m> Stage2<'m> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`Stage2Error::OutOfFrames`].
    pub fn new(
        pool: &mut FramePool<'m>,
        geometry: Geometry,
        vmid: Vmid,
    ) -> Result<Self, Stage2Error> {
        let tables = geometry.root_tables();
        let root = pool.alloc_run(tables, tables as u64 * PAGE_SIZE)?;
        Ok(Self { root, geometry, vmid })
    }

    /// The shape of the tree; [`Geometry::vtcr`] has the register value.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The guest's VMID.
    pub fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// The value of `VTTBR_EL2` while the guest runs.
    pub fn vttbr(&self) -> u64 {
        vttbr(self.root.pa(), self.vmid)
    }

    /// Maps `len` bytes at `ipa` to `pa`.
    ///
    /// # Errors
    /// [`Stage2Error::Misaligned`], [`OutOfRange`](Stage2Error::OutOfRange),
    /// [`AlreadyMapped`](Stage2Error::AlreadyMapped) if any page of the range is,
    /// [`OutOfFrames`](Stage2Error::OutOfFrames). Then nothing is mapped.
    pub fn map(
        &mut self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        ipa: Ipa,
        pa: Pa,
        len: u64,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        let end = self.check(ipa, len)?;
        if !pa.is_aligned(PAGE_SIZE) {
            return Err(Stage2Error::Misaligned);
        }
        if pa.checked_add(len).is_none_or(|end| end.raw() > self.geometry.pa_end()) {
            return Err(Stage2Error::OutOfRange);
        }
        self.for_each_slot(pool, ipa.raw(), end, |slot| match slot.entry.kind(slot.level) {
            Kind::Invalid => Ok(()),
            _ => Err(Stage2Error::AlreadyMapped),
        })?;
        let mut done = 0;
        while done < len {
            let (ipa_now, pa_now) = (ipa.raw() + done, pa.raw() + done);
            match self.map_one(pool, tlb, ipa_now, pa_now, len - done, attributes) {
                Ok(size) => done += size,
                Err(error) => {
                    self.remove(pool, tlb, ipa.raw(), end)?;
                    return Err(error);
                }
            }
        }
        tlb.publish();
        Ok(())
    }

    /// Unmaps `len` bytes at `ipa`; holes in the range do not matter. Tables left empty are freed.
    /// No core can reach the memory behind the range through this tree when it returns.
    ///
    /// # Errors
    /// [`Stage2Error::Misaligned`], [`OutOfRange`](Stage2Error::OutOfRange);
    /// [`OutOfFrames`](Stage2Error::OutOfFrames) if a block is only partly in the range and cannot
    /// be split. Then nothing is unmapped.
    pub fn unmap(
        &mut self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        ipa: Ipa,
        len: u64,
    ) -> Result<(), Stage2Error> {
        let end = self.check(ipa, len)?;
        self.split_at(pool, tlb, ipa.raw())?;
        self.split_at(pool, tlb, end)?;
        self.remove(pool, tlb, ipa.raw(), end)
    }

    /// Gives `len` bytes at `ipa` new attributes. Blocks split for it are not joined again.
    ///
    /// # Errors
    /// [`Stage2Error::Misaligned`], [`OutOfRange`](Stage2Error::OutOfRange),
    /// [`NotMapped`](Stage2Error::NotMapped) if any page of the range is not,
    /// [`OutOfFrames`](Stage2Error::OutOfFrames) if a block is only partly in the range and cannot
    /// be split. Then nothing changes.
    pub fn protect(
        &mut self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        ipa: Ipa,
        len: u64,
        attributes: Attributes,
    ) -> Result<(), Stage2Error> {
        let end = self.check(ipa, len)?;
        self.for_each_slot(pool, ipa.raw(), end, |slot| match slot.entry.kind(slot.level) {
            Kind::Leaf(_) => Ok(()),
            _ => Err(Stage2Error::NotMapped),
        })?;
        self.split_at(pool, tlb, ipa.raw())?;
        self.split_at(pool, tlb, end)?;
        let (mut stale, mut first) = (0, 0);
        let mut at = ipa.raw();
        while at < end {
            let slot = self.walk(pool, at)?;
            let new = slot.entry.with_attributes(attributes, slot.level);
            if new == slot.entry {
                // Nothing to change.
            } else if new.differs_in_permission_only(slot.entry) {
                store(slot.table, slot.offset, new)?;
                if stale == 0 {
                    first = at;
                }
                stale += 1;
            } else {
                self.break_entry(tlb, &slot, at)?;
                store(slot.table, slot.offset, new)?;
            }
            at += span(slot.level);
        }
        tlb.publish();
        self.invalidate(tlb, stale, first);
        Ok(())
    }

    /// The block or page that maps `ipa`.
    pub fn lookup(&self, pool: &FramePool<'m>, ipa: Ipa) -> Option<Mapping> {
        if ipa.raw() >= self.geometry.ipa_end() {
            return None;
        }
        let slot = self.walk(pool, ipa.raw()).ok()?;
        let Kind::Leaf(pa) = slot.entry.kind(slot.level) else {
            return None;
        };
        let size = span(slot.level);
        Some(Mapping { ipa: ipa.align_down(size), pa, size, attributes: slot.entry.attributes() })
    }

    /// Unmaps everything and gives all tables back. No core may use the tree again.
    ///
    /// # Errors
    /// [`Stage2Error::Corrupt`]; then frames are lost, but none is used twice.
    pub fn destroy(self, pool: &mut FramePool<'m>, tlb: &impl Tlb) -> Result<(), Stage2Error> {
        self.remove(pool, tlb, 0, self.geometry.ipa_end())?;
        // Nothing may outlive the tree: the VMID can be given to another guest.
        tlb.invalidate_vmid(self.vmid);
        Ok(pool.free(self.root.pa(), self.geometry.root_tables())?)
    }

    /// The end of a guest range that is aligned and inside the address space.
    fn check(&self, ipa: Ipa, len: u64) -> Result<u64, Stage2Error> {
        if len == 0 || !ipa.is_aligned(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Stage2Error::Misaligned);
        }
        match ipa.checked_add(len) {
            Some(end) if end.raw() <= self.geometry.ipa_end() => Ok(end.raw()),
            _ => Err(Stage2Error::OutOfRange),
        }
    }

    /// Where the entry for `ipa` is in a table of `level`. The root has more than 512 entries if it
    /// is concatenated; `ipa` is inside the address space.
    fn offset(&self, ipa: u64, level: u8) -> usize {
        let index = (ipa >> shift(level)) as usize;
        let mask = if level == self.geometry.start_level() { usize::MAX } else { ENTRIES - 1 };
        (index & mask) * 8
    }

    /// Walks down to the leaf or the invalid entry for `ipa`: four loads at most.
    fn walk(&self, pool: &FramePool<'m>, ipa: u64) -> Result<Slot<'m>, Stage2Error> {
        let mut table = self.root;
        let mut level = self.geometry.start_level();
        loop {
            let offset = self.offset(ipa, level);
            let entry = load(table, offset)?;
            let Kind::Table(next) = entry.kind(level) else {
                return Ok(Slot { table, offset, level, entry });
            };
            table = table_at(pool, next)?;
            level += 1;
        }
    }

    /// Calls `visit` for every leaf and every invalid entry in a range, until it fails.
    fn for_each_slot(
        &self,
        pool: &FramePool<'m>,
        from: u64,
        end: u64,
        mut visit: impl FnMut(Slot<'m>) -> Result<(), Stage2Error>,
    ) -> Result<(), Stage2Error> {
        let mut at = from;
        while at < end {
            let slot = self.walk(pool, at)?;
            let size = span(slot.level);
            visit(slot)?;
            at = (at & !(size - 1)) + size;
        }
        Ok(())
    }

    /// Writes the one largest leaf that fits at `ipa`, with tables on the way down to it, and says
    /// how many bytes it maps. Entries that were invalid need no invalidation: the architecture
    /// never caches them.
    fn map_one(
        &mut self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        ipa: u64,
        pa: u64,
        len: u64,
        attributes: Attributes,
    ) -> Result<u64, Stage2Error> {
        let mut table = self.root;
        let mut level = self.geometry.start_level();
        loop {
            let offset = self.offset(ipa, level);
            let size = span(level);
            table = match load(table, offset)?.kind(level) {
                Kind::Table(next) => table_at(pool, next)?,
                Kind::Leaf(_) => return Err(Stage2Error::AlreadyMapped),
                Kind::Invalid => {
                    let fits = (ipa | pa) & (size - 1) == 0 && size <= len;
                    if level >= FIRST_BLOCK_LEVEL && fits {
                        store(table, offset, Descriptor::leaf(Pa::new(pa), attributes, level))?;
                        return Ok(size);
                    }
                    let next = pool.alloc()?;
                    // The walker must not see the table before its zeroes.
                    tlb.publish();
                    store(table, offset, Descriptor::table(next.pa()))?;
                    next
                }
            };
            level += 1;
        }
    }

    /// Splits the blocks that have `at` inside, so that one starts there: two at most.
    fn split_at(
        &mut self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        at: u64,
    ) -> Result<(), Stage2Error> {
        while at < self.geometry.ipa_end() {
            let slot = self.walk(pool, at)?;
            let leaf = matches!(slot.entry.kind(slot.level), Kind::Leaf(_));
            if !leaf || at & (span(slot.level) - 1) == 0 {
                break;
            }
            let table = pool.alloc()?;
            for index in 0..ENTRIES {
                store(table, index * 8, slot.entry.piece(index, slot.level + 1))?;
            }
            self.break_entry(tlb, &slot, at)?;
            store(slot.table, slot.offset, Descriptor::table(table.pa()))?;
            tlb.publish();
        }
        Ok(())
    }

    /// The break of break-before-make: the live entry for `ipa` becomes invalid everywhere.
    fn break_entry(&self, tlb: &impl Tlb, slot: &Slot<'m>, ipa: u64) -> Result<(), Stage2Error> {
        store(slot.table, slot.offset, Descriptor::INVALID)?;
        tlb.publish();
        tlb.invalidate_ipa(self.vmid, Ipa::new(ipa));
        Ok(())
    }

    /// Invalidates what was cached of `stale` entries, the first of which is for `first`.
    fn invalidate(&self, tlb: &impl Tlb, stale: usize, first: u64) {
        match stale {
            0 => {}
            1 => tlb.invalidate_ipa(self.vmid, Ipa::new(first)),
            _ => tlb.invalidate_vmid(self.vmid),
        }
    }

    /// Takes all leaves in a range out, and the tables that leaves empty; no leaf may be only
    /// partly in the range. Frames go back only after the invalidation, because until then a core
    /// may still walk them.
    fn remove(
        &self,
        pool: &mut FramePool<'m>,
        tlb: &impl Tlb,
        from: u64,
        end: u64,
    ) -> Result<(), Stage2Error> {
        let mut removal = Removal { leaves: 0, first: from, dead: None };
        let level = self.geometry.start_level();
        let cleared = clear(pool, self.root, level, 0, (from, end), &mut removal);
        tlb.publish();
        if removal.dead.is_some() {
            // Pointers to tables are cached too, for any address below them.
            tlb.invalidate_vmid(self.vmid);
        } else {
            self.invalidate(tlb, removal.leaves, removal.first);
        }
        while let Some(pa) = removal.dead {
            removal.dead = load(table_at(pool, pa)?, 0)?.linked();
            pool.free(pa, 1)?;
        }
        cleared.map(|_| ())
    }
}

/// Clears the leaves of `table`, whose first entry is for guest address `base`, that are in
/// `from..end`; unlinks the tables below that are then empty and puts them on the removal's list.
/// Says whether `table` itself is empty. Recurses once a level: four deep at most.
fn clear<'m>(
    pool: &FramePool<'m>,
    table: SharedSlice<'m>,
    level: u8,
    base: u64,
    (from, end): (u64, u64),
    removal: &mut Removal,
) -> Result<bool, Stage2Error> {
    let size = span(level);
    let limit = end.min(base + (table.len() as u64 / 8) * size);
    let mut at = from.max(base);
    while at < limit {
        let start = at & !(size - 1);
        let offset = ((start - base) >> shift(level)) as usize * 8;
        match load(table, offset)?.kind(level) {
            Kind::Invalid => {}
            Kind::Leaf(_) => {
                store(table, offset, Descriptor::INVALID)?;
                if removal.leaves == 0 {
                    removal.first = start;
                }
                removal.leaves += 1;
            }
            Kind::Table(next) => {
                let child = table_at(pool, next)?;
                if clear(pool, child, level + 1, start, (from, end), removal)? {
                    store(table, offset, Descriptor::INVALID)?;
                    store(child, 0, Descriptor::link(removal.dead))?;
                    removal.dead = Some(next);
                }
            }
        }
        at = start + size;
    }
    for offset in (0..table.len()).step_by(8) {
        if load(table, offset)? != Descriptor::INVALID {
            return Ok(false);
        }
    }
    Ok(true)
}

fn table_at<'m>(pool: &FramePool<'m>, pa: Pa) -> Result<SharedSlice<'m>, Stage2Error> {
    pool.slice_at(pa, ENTRIES * 8).ok_or(Stage2Error::Corrupt)
}

fn load(table: SharedSlice<'_>, offset: usize) -> Result<Descriptor, Stage2Error> {
    table.load_u64(offset).map(Descriptor).ok_or(Stage2Error::Corrupt)
}

fn store(table: SharedSlice<'_>, offset: usize, entry: Descriptor) -> Result<(), Stage2Error> {
    table.store_u64(offset, entry.0).ok_or(Stage2Error::Corrupt)
}

#[cfg(test)]
mod tests;
