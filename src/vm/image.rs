//! What a guest's kernel file says of itself: the arm64 Image header (Linux, "booting.rst"), or
//! nothing, for a raw binary.

use crate::memory::SharedSlice;

const MAGIC: u32 = u32::from_le_bytes(*b"ARM\x64");
const HEADER: usize = 64;
/// Where a raw binary, or an Image of before Linux 3.17, is loaded above a 2 MiB boundary.
const LEGACY_OFFSET: u64 = 0x8_0000;
/// Bytes of the PE headers looked at, at the most: sections of a kernel.
const MAX_SECTIONS: usize = 16;

/// A kernel file's demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// Where to load it, above a 2 MiB boundary.
    pub offset: u64,
    /// Memory it takes from there on, at least its own length.
    pub memory: u64,
}

/// Why a file is no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// No instruction fits.
    Empty,
    /// The file is shorter than its own headers say it is.
    Truncated {
        /// Bytes the headers tell of.
        expected: u64,
    },
    /// The header asks for big-endian, or more memory than there are addresses.
    Unsupported,
}

impl KernelImage {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`ImageError`], from the header's own claims; the code is not looked at.
    pub fn parse(file: SharedSlice<'_>) -> Result<Self, ImageError> {
        let len = file.len() as u64;
        if len < 4 {
            return Err(ImageError::Empty);
        }
        if file.len() < HEADER || file.load_u32(0x38) != Some(MAGIC) {
            return Ok(Self { offset: LEGACY_OFFSET, memory: len });
        }
        let word = |offset| file.load_u64(offset).unwrap_or(0);
        let (text_offset, image_size, flags) = (word(8), word(16), word(24));
        if flags & 1 != 0 || image_size > 1 << 40 || text_offset > 1 << 40 {
            return Err(ImageError::Unsupported);
        }
        if let Some(expected) = pe_file_size(file).filter(|expected| *expected > len) {
            return Err(ImageError::Truncated { expected });
        }
        let offset = if image_size == 0 { LEGACY_OFFSET } else { text_offset };
        Ok(Self { offset, memory: image_size.max(len) })
    }
}

/// The length of the file by its PE section table; kernels with an EFI stub have one.
fn pe_file_size(file: SharedSlice<'_>) -> Option<u64> {
    if file.load_u16(0)? != u16::from_le_bytes(*b"MZ") {
        return None;
    }
    let pe = file.load_u32(0x3c)? as usize;
    let at = |offset: usize| pe.checked_add(offset);
    if file.load_u32(pe)? != u32::from_le_bytes(*b"PE\0\0") {
        return None;
    }
    let sections = usize::from(file.load_u16(at(6)?)?).min(MAX_SECTIONS);
    let table = at(24)?.checked_add(usize::from(file.load_u16(at(20)?)?))?;
    let mut end = 0;
    for section in 0..sections {
        let header = table.checked_add(section * 40)?;
        let size = u64::from(file.load_u32(header.checked_add(16)?)?);
        let start = u64::from(file.load_u32(header.checked_add(20)?)?);
        end = end.max(start + size);
    }
    Some(end)
}
