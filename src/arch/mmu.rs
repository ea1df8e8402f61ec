//! EL2's own stage 1 (TTBR0_EL2, VMSAv8-64): the boot code has mapped the image, this maps RAM and
//! devices into the windows of [`super::layout`].
//!
//! All cores share the tables. Mappings are only ever added, by one core at a time; nothing is changed
//! while it is live, so no break-before-make and no TLB maintenance is needed.

use core::sync::atomic::{AtomicU64, Ordering};

use super::layout::{self, descriptor};
use crate::memory::{PAGE_SIZE, Pa};
use crate::sync::Mutex;

/// Tables besides the boot code's. RAM takes one per 512 GiB and two per ragged edge, devices one
/// per 2 MiB they are in.
const TABLES: usize = 24;
const ENTRIES: usize = 512;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

static POOL: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; TABLES];
/// How many of them are in use; locked while a mapping is added.
static TAKEN: Mutex<usize> = Mutex::new(0);
/// Physical address of the image, to turn the address of a static into a physical one.
static IMAGE: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __boot_tables: Table;
}

/// Why EL2 cannot map something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The physical address is beyond the windows ([`layout::PA_LIMIT`]).
    OutOfRange,
    /// The board has more ranges than there are tables for.
    OutOfTables,
}

/// Remembers where the image is.
///
/// # Safety
/// `image` is where the image lies; called once, before anything is mapped.
pub unsafe fn init(image: Pa) {
    IMAGE.store(image.raw(), Ordering::Relaxed);
}

/// The physical address of something in the image.
pub fn image_pa(va: usize) -> Pa {
    Pa::new(IMAGE.load(Ordering::Relaxed) + (va - layout::IMAGE_BASE) as u64)
}

/// The image's address of a table's physical address.
fn table_at(pa: u64) -> *const Table {
    let va = (pa - IMAGE.load(Ordering::Relaxed)) as usize + layout::IMAGE_BASE;
    va as *const Table
}

/// The table that `entry` points to; a new one if it points to none.
fn next_table(entry: &AtomicU64, taken: &mut usize) -> Result<&'static Table, MapError> {
    let present = entry.load(Ordering::Relaxed);
    if present & 1 != 0 {
        // SAFETY: valid non-leaf entries of this tree hold the address of a table of the pool or of
        // the boot tables, all of them statics in the image.
        return Ok(unsafe { &*table_at(present & descriptor::ADDRESS) });
    }
    let table = POOL.get(*taken).ok_or(MapError::OutOfTables)?;
    *taken += 1;
    let pa = image_pa(core::ptr::from_ref(table).addr()).raw();
    entry.store(pa | descriptor::TABLE_OR_PAGE, Ordering::Relaxed);
    Ok(table)
}

/// Maps `pa..pa + len`, widened to whole pages, at `window + pa`. What is mapped already stays.
fn map(window: usize, pa: Pa, len: u64, attributes: u64) -> Result<(), MapError> {
    let end = pa.raw().checked_add(len).filter(|end| *end <= layout::PA_LIMIT);
    let end = end.ok_or(MapError::OutOfRange)?.next_multiple_of(PAGE_SIZE);
    let mut at = pa.raw() & !(PAGE_SIZE - 1);
    // SAFETY: the boot tables live for ever and are only accessed as atomics.
    let root = unsafe { &__boot_tables };
    let mut taken = TAKEN.lock();
    while at < end {
        let va = window as u64 + at;
        let mut table = root;
        for level in 0..=3u32 {
            let shift = 39 - 9 * level;
            let size = 1u64 << shift;
            let index = (va >> shift) as usize & (ENTRIES - 1);
            let Some(entry) = table.0.get(index) else { return Err(MapError::OutOfRange) };
            let fits = at & (size - 1) == 0 && end - at >= size;
            let present = entry.load(Ordering::Relaxed);
            let leaf_here = level == 3 || (present & 0b11) == descriptor::BLOCK;
            if leaf_here || (level > 0 && fits && present == 0) {
                if present == 0 {
                    let kind =
                        if level == 3 { descriptor::TABLE_OR_PAGE } else { descriptor::BLOCK };
                    entry.store(at | attributes | kind, Ordering::Relaxed);
                }
                at = (at & !(size - 1)) + size;
                break;
            }
            table = next_table(entry, &mut taken)?;
        }
    }
    super::barrier::tables_written();
    Ok(())
}

/// Maps RAM read-write; [`layout::linear`] is where it then is.
///
/// # Errors
/// See [`MapError`]; what was mapped before the error stays.
pub fn map_ram(pa: Pa, len: u64) -> Result<(), MapError> {
    map(layout::LINEAR_BASE, pa, len, descriptor::DATA)
}

/// Maps device registers; [`layout::device`] is where they then are.
///
/// # Errors
/// See [`MapError`]; what was mapped before the error stays.
pub fn map_device(pa: Pa, len: u64) -> Result<(), MapError> {
    map(layout::DEVICE_BASE, pa, len, descriptor::REGISTERS)
}

/// Maps a part of the image that the boot code has left out: `len` bytes from `va` on.
///
/// # Errors
/// See [`MapError`].
pub(super) fn map_image(va: usize, len: usize) -> Result<(), MapError> {
    let image = IMAGE.load(Ordering::Relaxed) as usize;
    map(layout::IMAGE_BASE - image, image_pa(va), len as u64, descriptor::DATA)
}
