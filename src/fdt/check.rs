//! Checks a device tree blob from end to end before anything in it is believed.
//!
//! The reader ([`super::tree`]) finds nothing to refuse any more. Names are checked only so far as they are
//! text: real boards have property names of more than the 31 bytes that the specification allows
//! (`snps,quirk-frame-length-adjustment`).

use core::ops::Range;

use super::error::BoardError;
use super::tree::Tree;
use crate::memory::Pa;

/// Largest device tree that is read: the limit of the arm64 boot protocol.
pub const MAX_BLOB: usize = 2 << 20;

/// Bytes of the header.
pub const HEADER_LEN: usize = 40;

/// Deepest nesting that is read; trees of real boards stay below 10.
pub(super) const MAX_DEPTH: usize = 24;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
pub(super) const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
pub(super) const PROP: u32 = 3;
pub(super) const NOP: u32 = 4;
const END: u32 = 9;

/// The size of the tree at `address` by its header, of which `header` is at least
/// the first 8 bytes.
///
/// # Errors
/// [`BoardError::NotAnFdt`], [`Truncated`](BoardError::Truncated),
/// [`TooLarge`](BoardError::TooLarge).
pub fn blob_size(header: &[u8], address: Pa) -> Result<usize, BoardError<'static>> {
    let short = BoardError::Truncated { size: HEADER_LEN, have: header.len() };
    let magic = word(header, 0).ok_or(short)?;
    if magic != MAGIC {
        return Err(BoardError::NotAnFdt { address, magic });
    }
    let size = word(header, 4).ok_or(short)? as usize;
    if size < HEADER_LEN {
        return Err(BoardError::Truncated { size, have: size });
    }
    if size > MAX_BLOB {
        return Err(BoardError::TooLarge { size });
    }
    Ok(size)
}

/// The tree in `blob`, which is at `address` and may have bytes behind it.
pub(super) fn checked(blob: &[u8], address: Pa) -> Result<Tree<'_>, BoardError<'static>> {
    let size = blob_size(blob, address)?;
    let truncated = BoardError::Truncated { size, have: blob.len() };
    let blob = blob.get(..size).ok_or(truncated)?;
    let header = |offset| word(blob, offset).map(|word| word as usize).ok_or(truncated);
    let (version, compatible) = (header(20)? as u32, header(24)? as u32);
    if version < VERSION || compatible > VERSION {
        return Err(BoardError::Version(version));
    }
    let (structure, strings, reservations) = (header(8)?, header(12)?, header(16)?);
    let strings_end = strings.checked_add(header(32)?).filter(|end| *end <= size);
    let strings_end = strings_end.ok_or_else(|| malformed(12, "strings block past the end"))?;
    check_reservations(blob, reservations)?;
    if structure % 4 != 0 {
        return Err(malformed(8, "structure block not aligned"));
    }
    check_structure(blob, structure, strings..strings_end)?;
    Ok(Tree { blob, structure, strings, reservations })
}

fn malformed(offset: usize, reason: &'static str) -> BoardError<'static> {
    BoardError::Malformed { offset, reason }
}

pub(super) fn word(blob: &[u8], offset: usize) -> Option<u32> {
    let bytes = blob.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The list of reservations ends with an entry of zeroes.
fn check_reservations(blob: &[u8], start: usize) -> Result<(), BoardError<'static>> {
    let entries = blob.get(start..).unwrap_or_default();
    if entries.chunks_exact(16).any(|entry| entry.iter().all(|byte| *byte == 0)) {
        return Ok(());
    }
    Err(malformed(start, "memory reservations without an end"))
}

/// Length of the text at `range.start` that ends with a zero byte before `range.end`.
fn check_text(blob: &[u8], range: Range<usize>) -> Result<usize, BoardError<'static>> {
    let bytes = blob.get(range.clone()).unwrap_or_default();
    let len = bytes.iter().position(|byte| *byte == 0);
    let text = len.and_then(|len| bytes.get(..len));
    match text.map(core::str::from_utf8) {
        Some(Ok(text)) => Ok(text.len()),
        _ => Err(malformed(range.start, "a name is not text with an end")),
    }
}

/// One root node, nodes nested and closed, properties before subnodes, an end.
fn check_structure(
    blob: &[u8],
    start: usize,
    strings: Range<usize>,
) -> Result<(), BoardError<'static>> {
    let mut offset = start;
    let mut depth = 0;
    let mut properties_allowed = false;
    loop {
        let here = offset;
        let token = word(blob, here).ok_or_else(|| malformed(here, "structure block cut off"))?;
        offset += 4;
        match token {
            BEGIN_NODE => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(malformed(here, "nodes nested too deeply"));
                }
                offset += check_text(blob, offset..blob.len())? + 1;
                properties_allowed = true;
            }
            PROP if properties_allowed => {
                let cut_off = malformed(here, "property cut off");
                let len = word(blob, offset).ok_or(cut_off)? as usize;
                let name = word(blob, offset + 4).ok_or(cut_off)? as usize;
                let name = strings.start + name;
                if name >= strings.end {
                    return Err(malformed(here, "property name outside the strings block"));
                }
                check_text(blob, name..strings.end)?;
                offset += 8 + len;
                if offset > blob.len() {
                    return Err(cut_off);
                }
            }
            PROP => return Err(malformed(here, "property behind a subnode")),
            END_NODE if depth > 0 => {
                depth -= 1;
                properties_allowed = false;
                if depth == 0 {
                    break;
                }
            }
            NOP if depth > 0 => {}
            _ => return Err(malformed(here, "unexpected token")),
        }
        offset = offset.next_multiple_of(4);
    }
    match word(blob, offset) {
        Some(END) => Ok(()),
        _ => Err(malformed(offset, "no end behind the root node")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &[u8] = include_bytes!("../../tests/data/virt-gicv3.dtb");

    fn with_word(offset: usize, value: u32) -> Vec<u8> {
        let mut blob = TREE.to_vec();
        blob[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        blob
    }

    fn error(blob: &[u8]) -> BoardError<'static> {
        checked(blob, Pa::new(0x4800_0000)).err().unwrap()
    }

    #[test]
    fn a_tree_with_bytes_behind_it_is_read() {
        let mut blob = TREE.to_vec();
        blob.extend([0xff; 100]);
        let fdt = checked(&blob, Pa::new(0)).unwrap();
        assert_eq!(fdt.blob.len(), TREE.len());
    }

    #[test]
    fn something_else_is_named_with_its_address() {
        let error = error(&with_word(0, 0x5441_0001));
        let expected = "no FDT at 0x48000000: it starts with 0x54410001, not 0xd00dfeed";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn every_cut_is_noticed() {
        for len in 0..TREE.len() {
            assert!(matches!(error(&TREE[..len]), BoardError::Truncated { .. }), "{len}");
            if len >= HEADER_LEN {
                // Even if the header agrees with the cut.
                let mut blob = with_word(4, len as u32);
                blob.truncate(len);
                assert!(checked(&blob, Pa::new(0)).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn sizes_and_versions_that_cannot_be_are_refused() {
        assert!(matches!(error(&with_word(4, 39)), BoardError::Truncated { size: 39, .. }));
        let size = MAX_BLOB + 1;
        assert_eq!(error(&with_word(4, size as u32)), BoardError::TooLarge { size });
        assert_eq!(error(&with_word(20, 16)), BoardError::Version(16));
        assert_eq!(error(&with_word(24, 18)), BoardError::Version(17));
        for offset in [8, 12, 16, 32] {
            for value in [u32::MAX, TREE.len() as u32, TREE.len() as u32 - 3] {
                let blob = with_word(offset, value);
                let refused = matches!(error(&blob), BoardError::Malformed { .. });
                assert!(refused, "{offset}: {value:#x}");
            }
        }
    }

    #[test]
    fn a_tree_nested_too_deeply_is_refused() {
        let mut blob = TREE[..HEADER_LEN].to_vec();
        blob.extend([0; 16]);
        for _ in 0..=MAX_DEPTH {
            blob.extend([0, 0, 0, 1, b'n', 0, 0, 0]);
        }
        let size = blob.len() as u32;
        for (offset, value) in [(4, size), (8, 56), (12, size), (16, 40), (32, 0)] {
            blob[offset..offset + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        let expected = malformed(56 + 8 * MAX_DEPTH, "nodes nested too deeply");
        assert_eq!(error(&blob), expected);
    }
}
