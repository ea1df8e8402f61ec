use proptest::prelude::*;

use super::*;

/// A disk in memory. `bad` blocks cannot be read.
struct Image {
    bytes: Vec<u8>,
    block_size: usize,
    bad: Vec<u64>,
    reads: usize,
}

impl ReadBlocks for Image {
    fn block_size(&self) -> usize {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        (self.bytes.len() / self.block_size) as u64
    }

    fn read(&mut self, block: u64) -> Option<&[u8]> {
        self.reads += 1;
        if self.bad.contains(&block) {
            return None;
        }
        let at = usize::try_from(block).ok()?.checked_mul(self.block_size)?;
        self.bytes.get(at..at + self.block_size)
    }
}

/// A disk of 16 MiB that `sfdisk` has partitioned in 512-byte blocks, as far as it is not zero: "alice"
/// and "bob", and one that has the entry 7 and no label. The first is the head of the disk to the eighth
/// entry, the second as many entries of the copy and its header, which is the last block.
const SFDISK: (&[u8], &[u8]) = (
    include_bytes!("../../../tests/data/gpt-sfdisk-head.bin"),
    include_bytes!("../../../tests/data/gpt-sfdisk-tail.bin"),
);
/// The same by `sgdisk`: "system" and "Grüße, Übung", in other places.
const SGDISK: (&[u8], &[u8]) = (
    include_bytes!("../../../tests/data/gpt-sgdisk-head.bin"),
    include_bytes!("../../../tests/data/gpt-sgdisk-tail.bin"),
);
const MIB: usize = 0x10_0000;

fn image((head, tail): (&[u8], &[u8])) -> Image {
    let mut bytes = vec![0; 16 * MIB];
    let len = bytes.len();
    bytes[..head.len()].copy_from_slice(head);
    let (entries, header) = tail.split_at(tail.len().saturating_sub(512));
    bytes[len - 33 * 512..][..entries.len()].copy_from_slice(entries);
    bytes[len - 512..][..header.len()].copy_from_slice(header);
    Image { bytes, block_size: 512, bad: Vec::new(), reads: 0 }
}

fn sectors(first: u64, count: u64) -> Sectors {
    Sectors::new(first, count).unwrap()
}

fn label(image: &mut Image, text: &str) -> Result<Found, GptError> {
    find(image, Selector::Label(text))
}

fn number(image: &mut Image, number: u32) -> Result<Found, GptError> {
    find(image, Selector::Number(number))
}

/// Makes the checksums of the header in `block` right, after whatever was done to it or the entries.
fn seal(image: &mut Image, block: usize) {
    let at = block * image.block_size;
    let (array, entries, size) = {
        let header = &image.bytes[at..];
        (u64_at(header, 72) as usize, u32_at(header, 80) as usize, u32_at(header, 84) as usize)
    };
    let start = array.saturating_mul(image.block_size);
    if let Some(entries) =
        image.bytes.get(start..start.saturating_add(entries.saturating_mul(size)))
    {
        let checksum = CRC.checksum(entries);
        image.bytes[at + 88..at + 92].copy_from_slice(&checksum.to_le_bytes());
    }
    image.bytes[at + 16..at + 20].fill(0);
    let size = u32_at(&image.bytes[at..], 12) as usize;
    let checksum = CRC.checksum(&image.bytes[at..at + size.clamp(20, image.block_size)]);
    image.bytes[at + 16..at + 20].copy_from_slice(&checksum.to_le_bytes());
}

/// Changes the primary header, and makes its checksums right.
fn with_header(offset: usize, value: &[u8]) -> Image {
    let mut image = image(SFDISK);
    image.bytes[512 + offset..512 + offset + value.len()].copy_from_slice(value);
    seal(&mut image, 1);
    image
}

/// Where entry `number` is in the primary table of a disk with 512-byte blocks.
const fn entry(number: usize) -> usize {
    1024 + (number - 1) * ENTRY
}

#[test]
fn partitions_made_by_sfdisk_are_found_by_label_and_number() {
    let mut disk = image(SFDISK);
    let alice = Found { sectors: sectors(2048, 8192), primary: None };
    let bob = Found { sectors: sectors(10240, 12288), primary: None };
    let nameless = Found { sectors: sectors(24576, 100), primary: None };
    assert_eq!(label(&mut disk, "alice"), Ok(alice));
    assert_eq!(label(&mut disk, "bob"), Ok(bob));
    assert_eq!(number(&mut disk, 1), Ok(alice));
    assert_eq!(number(&mut disk, 2), Ok(bob));
    assert_eq!(number(&mut disk, 7), Ok(nameless));
    for missing in [0, 3, 128, 129, u32::MAX] {
        assert_eq!(number(&mut disk, missing), Err(GptError::NotFound));
    }
    for missing in ["", "Alice", "alic", "alice2"] {
        assert_eq!(label(&mut disk, missing), Err(GptError::NotFound));
    }
}

#[test]
fn partitions_made_by_sgdisk_have_labels_beyond_ascii() {
    let mut disk = image(SGDISK);
    let system = Found { sectors: sectors(4096, 4096), primary: None };
    assert_eq!(label(&mut disk, "system"), Ok(system));
    let greeting = Found { sectors: sectors(10240, 20000), primary: None };
    assert_eq!(label(&mut disk, "Grüße, Übung"), Ok(greeting));
    assert_eq!(number(&mut disk, 5), Ok(greeting));
}

#[test]
fn a_label_may_have_all_36_units() {
    let mut disk = image(SFDISK);
    let text = "a".repeat(MAX_LABEL);
    for unit in 0..MAX_LABEL {
        disk.bytes[entry(1) + LABEL + 2 * unit] = b'a';
        disk.bytes[entry(1) + LABEL + 2 * unit + 1] = 0;
    }
    seal(&mut disk, 1);
    assert!(label(&mut disk, &text).is_ok());
    assert_eq!(label(&mut disk, text.get(1..).unwrap()), Err(GptError::NotFound));
    assert_eq!(label(&mut disk, &format!("{text}a")), Err(GptError::NotFound));
}

#[test]
fn larger_blocks_are_counted_in_sectors() {
    let mut disk = image(SFDISK);
    // The same table, spread over blocks of 4 KiB.
    let (header, entries) =
        (disk.bytes[512..1024].to_vec(), disk.bytes[1024..1024 + 16384].to_vec());
    disk.bytes = vec![0; 4096 * 5000];
    disk.block_size = 4096;
    disk.bytes[4096..4608].copy_from_slice(&header);
    disk.bytes[8192..8192 + 16384].copy_from_slice(&entries);
    for (entry, (first, last)) in [(1, (10u64, 19u64)), (2, (20, 20)), (7, (4000, 4990))] {
        let at = 8192 + (entry - 1) * ENTRY;
        disk.bytes[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        disk.bytes[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
    }
    disk.bytes[4096 + 40..4096 + 48].copy_from_slice(&6u64.to_le_bytes());
    disk.bytes[4096 + 48..4096 + 56].copy_from_slice(&4994u64.to_le_bytes());
    seal(&mut disk, 1);
    assert_eq!(label(&mut disk, "alice").unwrap().sectors, sectors(80, 80));
    assert_eq!(label(&mut disk, "bob").unwrap().sectors, sectors(160, 8));
}

#[test]
fn a_damaged_table_is_replaced_by_its_copy_and_the_reason_is_told() {
    let sound = label(&mut image(SFDISK), "bob").unwrap().sectors;
    let damage = |at: usize, damage: Damage| {
        let mut disk = image(SFDISK);
        disk.bytes[at] ^= 0x10;
        assert_eq!(label(&mut disk, "bob"), Ok(Found { sectors: sound, primary: Some(damage) }));
        // Without the copy it is refused, for both reasons.
        let last = disk.bytes.len() - 512;
        disk.bytes[last] ^= 1;
        let both = GptError::Damaged { primary: damage, backup: Damage::Absent };
        assert_eq!(label(&mut disk, "bob"), Err(both));
    };
    damage(512, Damage::Absent);
    damage(512 + 10, Damage::Revision);
    damage(512 + 56, Damage::HeaderChecksum);
    damage(512 + 13, Damage::HeaderSize);
    damage(entry(1) + 40, Damage::ArrayChecksum);
    damage(entry(128) + 127, Damage::ArrayChecksum);
    for block in [1, 2, 33] {
        let mut disk = image(SFDISK);
        disk.bad.push(block);
        let found = label(&mut disk, "bob").unwrap();
        assert_eq!(found, Found { sectors: sound, primary: Some(Damage::Unreadable) });
    }
}

#[test]
fn a_header_that_is_sealed_and_impossible_is_damaged_too() {
    for (offset, value, damage) in [
        (24, &2u64.to_le_bytes()[..], Damage::Misplaced),
        (40, &1u64.to_le_bytes(), Damage::Space),
        (48, &32767u64.to_le_bytes(), Damage::Space),
        (48, &u64::MAX.to_le_bytes(), Damage::Space),
        (48, &33u64.to_le_bytes(), Damage::Space),
        (72, &0u64.to_le_bytes(), Damage::Array),
        (72, &1u64.to_le_bytes(), Damage::Array),
        (72, &3u64.to_le_bytes(), Damage::Array),
        (72, &32760u64.to_le_bytes(), Damage::Array),
        (72, &u64::MAX.to_le_bytes(), Damage::Array),
        (80, &0u32.to_le_bytes(), Damage::Array),
        (80, &1025u32.to_le_bytes(), Damage::Array),
        (80, &u32::MAX.to_le_bytes(), Damage::Array),
        (84, &0u32.to_le_bytes(), Damage::Array),
        (84, &64u32.to_le_bytes(), Damage::Array),
        (84, &192u32.to_le_bytes(), Damage::Array),
        (84, &1024u32.to_le_bytes(), Damage::Array),
        (84, &u32::MAX.to_le_bytes(), Damage::Array),
    ] {
        let found = label(&mut with_header(offset, value), "alice");
        assert_eq!(found.map(|found| found.primary), Ok(Some(damage)), "{offset} {value:?}");
    }
}

#[test]
fn overlapping_and_misplaced_partitions_are_refused_whole() {
    let with = |number: usize, first: u64, last: u64| {
        let mut disk = image(SFDISK);
        let at = entry(number);
        disk.bytes[at] = 1;
        disk.bytes[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        disk.bytes[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        seal(&mut disk, 1);
        // Even for another that is sound.
        label(&mut disk, "alice")
    };
    assert!(with(3, 22528, 22528).is_ok());
    assert_eq!(with(3, 22527, 23000), Err(GptError::Overlap { numbers: (2, 3) }));
    assert_eq!(with(3, 0x900, 0x900), Err(GptError::Overlap { numbers: (1, 3) }));
    assert_eq!(with(3, 34, 40000), Err(GptError::Outside { number: 3 }));
    assert_eq!(with(3, 33, 33), Err(GptError::Outside { number: 3 }));
    assert_eq!(with(3, 23001, 23000), Err(GptError::Outside { number: 3 }));
    assert_eq!(with(3, 23001, u64::MAX), Err(GptError::Outside { number: 3 }));
}

#[test]
fn a_label_that_two_have_names_neither() {
    let mut disk = image(SFDISK);
    let (from, to) = (entry(1) + LABEL, entry(7) + LABEL);
    disk.bytes.copy_within(from..from + 72, to);
    seal(&mut disk, 1);
    assert_eq!(label(&mut disk, "alice"), Err(GptError::Ambiguous));
    assert!(label(&mut disk, "bob").is_ok() && number(&mut disk, 1).is_ok());
}

#[test]
fn the_129th_partition_is_too_many() {
    let mut disk = image(SFDISK);
    // 256 entries: the array begins where it did, the space behind it.
    disk.bytes[512 + 80..512 + 84].copy_from_slice(&256u32.to_le_bytes());
    disk.bytes[512 + 40..512 + 48].copy_from_slice(&66u64.to_le_bytes());
    for used in [128, 129] {
        for number in 1..=used {
            let (at, block) = (entry(number), 100 + number as u64);
            disk.bytes[at] = 1;
            disk.bytes[at + 32..at + 40].copy_from_slice(&block.to_le_bytes());
            disk.bytes[at + 40..at + 48].copy_from_slice(&block.to_le_bytes());
        }
        seal(&mut disk, 1);
        let wanted = if used == 128 { Ok(sectors(228, 1)) } else { Err(GptError::TooMany) };
        assert_eq!(number(&mut disk, 128).map(|found| found.sectors), wanted);
    }
}

#[test]
fn a_disk_without_a_table_and_one_without_room_are_refused() {
    let mut disk = image((&[], &[]));
    let (primary, backup) = (Damage::Absent, Damage::Absent);
    assert_eq!(number(&mut disk, 1), Err(GptError::Damaged { primary, backup }));
    let text = GptError::Damaged { primary, backup }.to_string();
    assert_eq!(
        text,
        "the partition table cannot be used: there is none; and its copy: there is none"
    );
    for len in 0..5 {
        disk.bytes.truncate(len * 512);
        let (primary, backup) = (Damage::TooSmall, Damage::TooSmall);
        assert_eq!(number(&mut disk, 1), Err(GptError::Damaged { primary, backup }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is changed, and sealed again or not: what is found is on the disk, and the work is
    /// bounded.
    #[test]
    fn a_table_with_anything_changed_is_read_or_refused(
        changes in prop::collection::vec((prop::sample::select(vec![512usize, 16 * MIB - 512, 1024, 1152, 1792]), 0usize..128, any::<u8>()), 0..8),
        seals in any::<(bool, bool)>(),
        which in 0u32..9,
    ) {
        let mut disk = image(SFDISK);
        for (base, offset, value) in changes {
            disk.bytes[base + offset] = value;
        }
        if seals.0 {
            seal(&mut disk, 1);
        }
        if seals.1 {
            let last = disk.blocks() as usize - 1;
            seal(&mut disk, last);
        }
        let found = match which {
            8 => label(&mut disk, "bob"),
            number => self::number(&mut disk, number),
        };
        if let Ok(found) = found {
            prop_assert!(found.sectors.end() <= disk.blocks() && found.sectors.first() >= 2);
        }
        prop_assert!(disk.reads <= 2 * (1 + MAX_ENTRIES as usize));
    }
}
