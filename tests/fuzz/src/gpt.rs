//! A disk's partition table.

use sparkler::backend::block::BlockInfo;
use sparkler::backend::partition::gpt::{
    Damage, GptError, MAX_ENTRIES, ReadBlocks, Selector, find,
};
use sparkler::backend::partition::{Sectors, check};

use crate::input::Input;

/// A table as `sfdisk` makes it: the first blocks of a disk, to be changed.
const HEAD: &[u8] = include_bytes!("../../data/gpt-sfdisk-head.bin");
const TAIL: &[u8] = include_bytes!("../../data/gpt-sfdisk-tail.bin");
const BLOCKS: usize = 32768;

/// Blocks that are not zero, by number; all of 512 bytes.
struct Sparse {
    head: Vec<u8>,
    tail: Vec<u8>,
    bad: u64,
    zero: [u8; 512],
    reads: u32,
}

impl ReadBlocks for Sparse {
    fn block_size(&self) -> usize {
        512
    }

    fn blocks(&self) -> u64 {
        BLOCKS as u64
    }

    fn read(&mut self, block: u64) -> Option<&[u8]> {
        self.reads += 1;
        assert!(block < self.blocks(), "a read behind the end of the disk");
        if block == self.bad {
            return None;
        }
        let (block, tail) = (block as usize, BLOCKS - 33);
        let bytes = if block >= tail {
            self.tail.get((block - tail) * 512..)
        } else {
            self.head.get(block * 512..)
        };
        Some(bytes.and_then(|bytes| bytes.get(..512)).unwrap_or(&self.zero))
    }
}

/// Bytes of a table, and its checksums, are changed; partitions are looked for.
pub fn gpt(data: &[u8]) {
    let mut input = Input::new(data);
    let mut disk = Sparse {
        head: HEAD.to_vec(),
        tail: vec![0; 33 * 512],
        bad: u64::MAX,
        zero: [0; 512],
        reads: 0,
    };
    let (entries, header) = TAIL.split_at(TAIL.len() - 512);
    disk.tail[..entries.len()].copy_from_slice(entries);
    disk.tail[32 * 512..].copy_from_slice(header);
    let (seals, bad) = (input.u8(), input.u8());
    if bad < 64 {
        disk.bad = bad.into();
    }
    let which = input.u8();
    while input.more() {
        let at = usize::from(input.u16());
        let value = input.u8();
        let side = if at & 0x8000 == 0 { &mut disk.head } else { &mut disk.tail };
        // Mostly in the header and the first entries.
        let at = match (at & 0x8000, at & 0x4000) {
            (0, 0) => 512 + at % 128,
            (0, _) => 1024 + at % 1024,
            (_, 0) => 32 * 512 + at % 128,
            (..) => at % 1024,
        };
        side[at] = value;
    }
    if seals & 1 != 0 {
        let entries = [disk.head[1024..].to_vec(), vec![0; 30 * 512]].concat();
        seal(&mut disk.head[512..1024], &entries);
    }
    if seals & 2 != 0 {
        let (entries, header) = disk.tail.split_at_mut(32 * 512);
        seal(header, entries);
    }
    let which = match which {
        0 => Selector::Label("bob"),
        1 => Selector::Label("alice"),
        number => Selector::Number(u32::from(number) - 2),
    };
    let found = find(&mut disk, which);
    assert!(disk.reads <= 2 * (1 + MAX_ENTRIES));
    match found {
        Ok(found) => {
            assert!(found.sectors.first() >= 2);
            assert_eq!(check(&BlockInfo::new(BLOCKS as u64), found.sectors), Ok(()));
            assert_eq!(
                found.sectors,
                Sectors::new(found.sectors.first(), found.sectors.count()).unwrap()
            );
            // Nothing that was changed passes for sound by chance.
            assert!(found.primary.is_none_or(|damage| damage != Damage::TooSmall));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(seals != 0 || matches!(error, GptError::Damaged { .. } | GptError::NotFound));
        }
    }
}

/// Makes the checksums right, as far as the header says where what is.
fn seal(header: &mut [u8], entries: &[u8]) {
    let word = |header: &[u8], at: usize| {
        u32::from_le_bytes(header[at..at + 4].try_into().unwrap()) as usize
    };
    let len = word(header, 80).saturating_mul(word(header, 84));
    if let Some(entries) = entries.get(..len) {
        header[88..92].copy_from_slice(&crc(entries).to_le_bytes());
    }
    header[16..20].fill(0);
    let size = word(header, 12);
    if let Some(bytes) = header.get(..size) {
        let sum = crc(bytes).to_le_bytes();
        header[16..20].copy_from_slice(&sum);
    }
}

/// CRC-32, one bit after the other.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    })
}
