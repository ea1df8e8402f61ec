//! The GUID partition table of a disk (UEFI 2.10, 5.3), read to find one partition in it.
//!
//! Nothing in the table is believed before its checksum is right, and no number in it leads out of the
//! disk. The table at the beginning of the disk counts; if it is damaged, its copy at the end. What
//! is undamaged and makes no sense - partitions over each other, or outside the space for them - is
//! refused: whose sectors are whose must not be guessed.
//!
//! The work is bounded: of each copy the header is read, and at most [`MAX_ENTRIES`] entries, once.

use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};

use super::Sectors;
use crate::backend::block::SECTOR_SIZE;

/// Entries that a table can have.
pub const MAX_ENTRIES: u32 = 1024;
/// Partitions that a table can have.
pub const MAX_PARTITIONS: usize = 128;
/// UTF-16 code units in a label.
pub const MAX_LABEL: usize = 36;

/// The checksum of headers and of the array of entries.
static CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// "EFI PART".
const SIGNATURE: u64 = 0x5452_4150_2049_4645;
/// The first half of the revision; the second may count up.
const REVISION: u16 = 1;
/// Bytes of a header that mean something.
const HEADER: usize = 92;
/// Bytes of the least entry.
const ENTRY: usize = 128;
/// Where the label is in an entry.
const LABEL: usize = 56;

/// A disk, as far as reading its table goes.
pub trait ReadBlocks {
    /// Bytes in a logical block: a power of two of at least [`SECTOR_SIZE`].
    fn block_size(&self) -> usize;

    /// Logical blocks on the disk.
    fn blocks(&self) -> u64;

    /// Reads a logical block: [`Self::block_size`] bytes. `None` if the disk cannot.
    fn read(&mut self, block: u64) -> Option<&[u8]>;
}

/// Which partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector<'a> {
    /// The one with this label.
    Label(&'a str),
    /// The one in this entry, of which the first is number 1.
    Number(u32),
}

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its sectors. They are on the disk.
    pub sectors: Sectors,
    /// Why the table at the end of the disk was used, if it was.
    pub primary: Option<Damage>,
}

/// What is wrong with one copy of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The disk has not the room for one.
    TooSmall,
    /// The disk could not be read.
    Unreadable,
    /// There is no signature.
    Absent,
    /// It has a revision that is not known.
    Revision,
    /// Its header's size is impossible.
    HeaderSize,
    /// The checksum of its header is wrong.
    HeaderChecksum,
    /// By its header it is somewhere else.
    Misplaced,
    /// The space for partitions is not on the disk.
    Space,
    /// The entries have a size, a number or a place that is impossible, or not supported.
    Array,
    /// The checksum of its entries is wrong.
    ArrayChecksum,
}

/// Why a partition is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptError {
    /// Neither copy of the table can be used.
    Damaged {
        /// What is wrong with that at the beginning.
        primary: Damage,
        /// What is wrong with that at the end.
        backup: Damage,
    },
    /// There are more than [`MAX_PARTITIONS`].
    TooMany,
    /// A partition is not in the space for partitions.
    Outside {
        /// Its number.
        number: u32,
    },
    /// Two partitions have sectors in common.
    Overlap {
        /// The numbers of both.
        numbers: (u32, u32),
    },
    /// There is no such partition.
    NotFound,
    /// Several have this label.
    Ambiguous,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooSmall => "the disk is too small for it",
            Self::Unreadable => "it cannot be read",
            Self::Absent => "there is none",
            Self::Revision => "its revision is not known",
            Self::HeaderSize => "the size of its header is impossible",
            Self::HeaderChecksum => "the checksum of its header is wrong",
            Self::Misplaced => "it belongs somewhere else",
            Self::Space => "its space for partitions is not on the disk",
            Self::Array => "its entries' size, number or place is impossible",
            Self::ArrayChecksum => "the checksum of its entries is wrong",
        })
    }
}

impl fmt::Display for GptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { primary, backup } => {
                write!(f, "the partition table cannot be used: {primary}; and its copy: {backup}")
            }
            Self::TooMany => write!(f, "there are more than {MAX_PARTITIONS} partitions"),
            Self::Outside { number } => {
                write!(f, "partition {number} is not where partitions can be")
            }
            Self::Overlap { numbers: (first, second) } => {
                write!(f, "partitions {first} and {second} overlap")
            }
            Self::NotFound => f.write_str("there is no such partition"),
            Self::Ambiguous => f.write_str("several partitions have this label"),
        }
    }
}

/// The partition `which` of `disk`.
///
/// # Errors
/// [`GptError`].
pub fn find(disk: &mut dyn ReadBlocks, which: Selector<'_>) -> Result<Found, GptError> {
    let last = disk.blocks().saturating_sub(1);
    let primary = match read_copy(disk, 1, which) {
        Ok(result) => return Ok(Found { sectors: result?, primary: None }),
        Err(damage) => damage,
    };
    match read_copy(disk, last, which) {
        Ok(result) => Ok(Found { sectors: result?, primary: Some(primary) }),
        Err(backup) => Err(GptError::Damaged { primary, backup }),
    }
}

/// A header that has been checked, all numbers in logical blocks of the disk.
struct Header {
    /// The first and the last block that partitions can have.
    usable: (u64, u64),
    array: u64,
    entries: u32,
    /// A power of two, of which a block has a whole number.
    entry_size: usize,
    array_checksum: u32,
}

/// Looks into the copy of the table whose header is in `block`: either it is damaged, or it says
/// what there is to know.
fn read_copy(
    disk: &mut dyn ReadBlocks,
    block: u64,
    which: Selector<'_>,
) -> Result<Result<Sectors, GptError>, Damage> {
    let header = read_header(disk, block)?;
    let per_block = disk.block_size() as u64 / SECTOR_SIZE;
    let mut seen = Seen::new(which);
    let mut checksum = CRC.digest();
    let (mut number, mut at) = (0, header.array);
    while number < header.entries {
        let data = disk.read(at).ok_or(Damage::Unreadable)?;
        for entry in data.chunks_exact(header.entry_size) {
            if number == header.entries {
                break;
            }
            number += 1;
            checksum.update(entry);
            seen.look(number, entry, header.usable);
        }
        at += 1;
    }
    if checksum.finalize() != header.array_checksum {
        return Err(Damage::ArrayChecksum);
    }
    Ok(seen.result(per_block))
}

fn read_header(disk: &mut dyn ReadBlocks, block: u64) -> Result<Header, Damage> {
    let (blocks, block_size) = (disk.blocks(), disk.block_size());
    // A protective MBR, and header and entries twice.
    if blocks < 5 || !block_size.is_power_of_two() {
        return Err(Damage::TooSmall);
    }
    let data = disk.read(block).ok_or(Damage::Unreadable)?;
    if u64_at(data, 0) != SIGNATURE {
        return Err(Damage::Absent);
    }
    if u32_at(data, 8) >> 16 != u32::from(REVISION) {
        return Err(Damage::Revision);
    }
    let size = u32_at(data, 12) as usize;
    let parts = (data.get(..16), data.get(20..size));
    let (Some(before), Some(after), true) = (parts.0, parts.1, size >= HEADER) else {
        return Err(Damage::HeaderSize);
    };
    // With zeros where the checksum itself is.
    let mut checksum = CRC.digest();
    checksum.update(before);
    checksum.update(&[0; 4]);
    checksum.update(after);
    if checksum.finalize() != u32_at(data, 16) {
        return Err(Damage::HeaderChecksum);
    }
    if u64_at(data, 24) != block {
        return Err(Damage::Misplaced);
    }
    let header = Header {
        usable: (u64_at(data, 40), u64_at(data, 48)),
        array: u64_at(data, 72),
        entries: u32_at(data, 80),
        entry_size: u32_at(data, 84) as usize,
        array_checksum: u32_at(data, 88),
    };
    let (first, last) = header.usable;
    if first < 2 || first > last || last >= blocks - 1 {
        return Err(Damage::Space);
    }
    let size = header.entry_size;
    if !(ENTRY..=block_size).contains(&size)
        || !size.is_power_of_two()
        || !(1..=MAX_ENTRIES).contains(&header.entries)
    {
        return Err(Damage::Array);
    }
    // Not too large to be multiplied.
    let len = (header.entries as usize * size).div_ceil(block_size) as u64;
    let end = header.array.checked_add(len).filter(|end| header.array > 1 && *end <= blocks);
    let end = end.ok_or(Damage::Array)?;
    let over_partitions = header.array <= last && first < end;
    if over_partitions || (header.array..end).contains(&block) {
        return Err(Damage::Array);
    }
    Ok(header)
}

/// What has been seen of the entries.
struct Seen<'s> {
    which: Selector<'s>,
    /// The first and the last block of each partition, and its number.
    partitions: heapless::Vec<(u64, u64, u32), MAX_PARTITIONS>,
    /// Which of the partitions it is.
    found: Option<usize>,
    error: Option<GptError>,
}

impl<'s> Seen<'s> {
    fn new(which: Selector<'s>) -> Self {
        Self { which, partitions: heapless::Vec::new(), found: None, error: None }
    }

    /// The first mistake counts, but none does before all are seen and the checksum is right.
    fn look(&mut self, number: u32, entry: &[u8], usable: (u64, u64)) {
        // The type of an entry that is not used is zero.
        if self.error.is_some() || u64_at(entry, 0) | u64_at(entry, 8) == 0 {
            return;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        self.error = self.judge(number, entry, (first, last), usable).err();
    }

    fn judge(
        &mut self,
        number: u32,
        entry: &[u8],
        (first, last): (u64, u64),
        usable: (u64, u64),
    ) -> Result<(), GptError> {
        if first > last || first < usable.0 || last > usable.1 {
            return Err(GptError::Outside { number });
        }
        if let Some(other) = self.partitions.iter().find(|it| it.0 <= last && first <= it.1) {
            return Err(GptError::Overlap { numbers: (other.2, number) });
        }
        let is_it = match self.which {
            Selector::Number(wanted) => wanted == number,
            Selector::Label(text) => has_label(entry, text),
        };
        if is_it && self.found.replace(self.partitions.len()).is_some() {
            return Err(GptError::Ambiguous);
        }
        self.partitions.push((first, last, number)).map_err(|_| GptError::TooMany)
    }

    fn result(self, per_block: u64) -> Result<Sectors, GptError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let found = self.found.and_then(|index| self.partitions.get(index));
        let &(first, last, number) = found.ok_or(GptError::NotFound)?;
        // In the usable space, and thus on the disk; but a disk of more sectors than can be numbered
        // is one nobody has.
        let start = first.checked_mul(per_block);
        let count = (last - first).checked_add(1).and_then(|len| len.checked_mul(per_block));
        let sectors = start.zip(count).and_then(|(first, count)| Sectors::new(first, count));
        sectors.ok_or(GptError::Outside { number })
    }
}

fn has_label(entry: &[u8], text: &str) -> bool {
    let label = entry.get(LABEL..LABEL + 2 * MAX_LABEL).unwrap_or_default();
    let (units, _) = label.as_chunks();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    !text.is_empty() && units.eq(text.encode_utf16())
}

/// The little-endian number at `offset`; 0 if the bytes end before.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
mod tests;
