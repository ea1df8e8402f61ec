//! Where in RAM the sectors are that have been written, in clusters of [`CLUSTER`] bytes.
//!
//! The memory begins with a table: a word for each cluster of the disk, whose upper 24 bits say where
//! in RAM it is, and whose lower 8 bits which of its sectors are there. The rest are places for clusters.
//! One that was given back has the number of the next such in its first word.

use crate::backend::block::SECTOR_SIZE;
use crate::memory::SharedSlice;

/// Bytes of a cluster: as much RAM as is taken at a time.
pub const CLUSTER: u32 = 4096;

const SECTORS: u64 = CLUSTER as u64 / SECTOR_SIZE;
/// All sectors of a cluster.
const ALL: u32 = (1 << SECTORS) - 1;
/// Where the mask of sectors ends in an entry.
const MASK_BITS: u32 = SECTORS as u32;
/// In the place of a place: what sectors are there read as zeros, and need no RAM.
const ZEROS: u32 = u32::MAX >> MASK_BITS;
/// No place.
const NONE: u32 = 0;

/// There is no room for any sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// Bytes that would do for the smallest write.
    pub least: u64,
}

impl core::fmt::Display for TooSmall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "it needs at least {} KiB of memory for a disk of this size", self.least / 1024)
    }
}

/// Bytes of memory that a disk of `sectors` sectors needs at least.
pub const fn least(sectors: u64) -> u64 {
    table_bytes(sectors).saturating_add(CLUSTER as u64)
}

const fn table_bytes(sectors: u64) -> u64 {
    let entries = sectors.div_ceil(SECTORS);
    entries.saturating_mul(4).next_multiple_of(CLUSTER as u64)
}

/// Where the next sectors are.
#[derive(Clone, Copy)]
pub(super) enum Run<'m> {
    /// On the disk below.
    Below,
    /// Here.
    Stored(SharedSlice<'m>),
    /// Nowhere: they read as zeros.
    Zeros,
}

pub(super) struct Store<'m> {
    table: SharedSlice<'m>,
    clusters: SharedSlice<'m>,
    /// Places, of which `fresh` have been in use at some time.
    places: u32,
    fresh: u32,
    /// The first place that was given back, and how many there are. Places count from 1.
    free: u32,
    free_count: u32,
}

impl<'m> Store<'m> {
    pub(super) fn new(memory: SharedSlice<'m>, sectors: u64) -> Result<Self, TooSmall> {
        let small = TooSmall { least: least(sectors) };
        if (memory.len() as u64) < small.least {
            return Err(small);
        }
        // It fits in the memory.
        let table_bytes = table_bytes(sectors) as usize;
        let table = memory.subslice(0, table_bytes).ok_or(small)?;
        let rest = memory.len() - table_bytes;
        let clusters = memory.subslice(table_bytes, rest).ok_or(small)?;
        let places = (rest / CLUSTER as usize).min(ZEROS as usize - 1) as u32;
        let mut store = Self { table, clusters, places, fresh: 0, free: NONE, free_count: 0 };
        store.clear();
        Ok(store)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        // In bounds.
        let _ = self.table.fill(0, self.table.len(), 0);
        (self.fresh, self.free, self.free_count) = (0, NONE, 0);
    }

    /// Bytes of sectors that it has room for.
    pub(super) fn capacity(&self) -> u64 {
        u64::from(self.places) * u64::from(CLUSTER)
    }

    /// The place of a cluster and the sectors that are there.
    fn entry(&self, cluster: u64) -> (u32, u32) {
        let entry = self.table.load_u32(cluster as usize * 4).unwrap_or(0);
        (entry >> MASK_BITS, entry & ALL)
    }

    fn set_entry(&mut self, cluster: u64, place: u32, mask: u32) {
        // In bounds: the cluster is one of the disk's.
        let _ = self.table.store_u32(cluster as usize * 4, place << MASK_BITS | mask & ALL);
    }

    fn data(&self, place: u32) -> Option<SharedSlice<'m>> {
        let offset = (place as usize).checked_sub(1)?.checked_mul(CLUSTER as usize)?;
        self.clusters.subslice(offset, CLUSTER as usize)
    }

    /// Where the sectors from `sector` on are, and how many of them to the end of their cluster.
    pub(super) fn run(&self, sector: u64) -> (Run<'m>, u64) {
        let (place, mask) = self.entry(sector / SECTORS);
        let within = sector % SECTORS;
        let here = mask >> within & 1 != 0;
        // Above the cluster the mask is the opposite, so that the run ends there.
        let mask = mask >> within | if here { 0 } else { ALL << (SECTORS - within) };
        let sectors = u64::from(if here { mask.trailing_ones() } else { mask.trailing_zeros() });
        let run = match place {
            _ if !here => Run::Below,
            ZEROS => Run::Zeros,
            _ => {
                let (at, len) = (within * SECTOR_SIZE, sectors * SECTOR_SIZE);
                let data = self.data(place).and_then(|it| it.subslice(at as usize, len as usize));
                data.map_or(Run::Below, Run::Stored)
            }
        };
        (run, sectors)
    }

    /// The sectors of the cluster of `sector` that are in `sector..end`, as a mask, and the first sector
    /// behind the cluster.
    fn mask_of(sector: u64, end: u64) -> (u32, u64) {
        let behind = (sector / SECTORS + 1) * SECTORS;
        let mask = ALL << (sector % SECTORS) & ALL >> behind.saturating_sub(end);
        (mask, behind)
    }

    /// Calls `visit` with every cluster that has sectors in `sector..end`: its number, its place, which
    /// sectors of it are in the store, and which are meant.
    fn each(&self, mut sector: u64, end: u64, mut visit: impl FnMut(u64, u32, u32, u32)) {
        while sector < end {
            let (wanted, behind) = Self::mask_of(sector, end);
            let (place, mask) = self.entry(sector / SECTORS);
            visit(sector / SECTORS, place, mask, wanted);
            sector = behind;
        }
    }

    /// The first and the last of these sectors that are not in the store, if there are any.
    pub(super) fn missing(&self, sector: u64, end: u64) -> Option<(u64, u64)> {
        let mut found = None;
        self.each(sector, end, |cluster, _, mask, wanted| {
            let missing = wanted & !mask;
            if missing != 0 {
                let first = cluster * SECTORS + u64::from(missing.trailing_zeros());
                let last = cluster * SECTORS + u64::from(missing.ilog2());
                found = Some((found.map_or(first, |(first, _)| first), last));
            }
        });
        found
    }

    /// Whether any of these sectors is in the store.
    pub(super) fn has_any(&self, sector: u64, end: u64) -> bool {
        let mut any = false;
        self.each(sector, end, |_, _, mask, wanted| any |= mask & wanted != 0);
        any
    }

    /// Whether these sectors can be placed.
    pub(super) fn has_room_for(&self, sector: u64, end: u64) -> bool {
        let mut needed = 0;
        self.each(sector, end, |_, place, _, _| {
            needed += u32::from(matches!(place, NONE | ZEROS));
        });
        needed <= self.places - self.fresh + self.free_count
    }

    /// Room for the sectors from `sector` on that are in its cluster and before `end`, which are in the
    /// store from now on; and how many they are. `None` if there is no room.
    pub(super) fn place(&mut self, sector: u64, end: u64) -> Option<(SharedSlice<'m>, u64)> {
        let (wanted, behind) = Self::mask_of(sector, end);
        let cluster = sector / SECTORS;
        let (mut place, mask) = self.entry(cluster);
        if matches!(place, NONE | ZEROS) {
            let zeros = place == ZEROS;
            place = self.take()?;
            if zeros {
                self.zero_sectors(place, mask & !wanted);
            }
        }
        self.set_entry(cluster, place, mask | wanted);
        let sectors = behind.min(end) - sector;
        let at = (sector % SECTORS * SECTOR_SIZE) as usize;
        let data = self.data(place)?.subslice(at, (sectors * SECTOR_SIZE) as usize)?;
        Some((data, sectors))
    }

    /// Has these sectors read as zeros. Clusters that are nothing else need no RAM any more.
    pub(super) fn zero(&mut self, mut sector: u64, end: u64) {
        while sector < end {
            let (wanted, behind) = Self::mask_of(sector, end);
            let cluster = sector / SECTORS;
            let (place, mask) = self.entry(cluster);
            if matches!(place, NONE | ZEROS) {
                self.set_entry(cluster, ZEROS, mask | wanted);
            } else if mask & !wanted == 0 {
                self.give_back(place);
                self.set_entry(cluster, ZEROS, wanted);
            } else {
                self.zero_sectors(place, wanted);
                self.set_entry(cluster, place, mask | wanted);
            }
            sector = behind;
        }
    }

    fn zero_sectors(&self, place: u32, mask: u32) {
        let Some(data) = self.data(place) else { return };
        for sector in (0..SECTORS as usize).filter(|sector| mask >> sector & 1 != 0) {
            // In bounds.
            let _ = data.fill(sector * SECTOR_SIZE as usize, SECTOR_SIZE as usize, 0);
        }
    }

    fn take(&mut self) -> Option<u32> {
        if self.free != NONE {
            let place = self.free;
            self.free = self.data(place)?.load_u32(0)?;
            self.free_count -= 1;
            return Some(place);
        }
        if self.fresh == self.places {
            return None;
        }
        self.fresh += 1;
        Some(self.fresh)
    }

    fn give_back(&mut self, place: u32) {
        if let Some(data) = self.data(place)
            && data.store_u32(0, self.free).is_some()
        {
            self.free = place;
            self.free_count += 1;
        }
    }
}
