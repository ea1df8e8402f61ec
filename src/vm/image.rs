//! What a guest's kernel file says of itself: the arm64 Image header (Linux, "booting.rst"), or
//! nothing, for a raw binary.

use crate::memory::SharedSlice;

/// Length of an arm64 Image header.
const HEADER: usize = 64;
/// Where the header has its magic number.
const MAGIC_OFFSET: usize = 0x38;
const MAGIC: u32 = u32::from_le_bytes(*b"ARM\x64");
/// Where a raw binary, or an Image of before Linux 3.17, is loaded above a 2 MiB boundary.
const LEGACY_OFFSET: u64 = 0x8_0000;
/// Flags: the kernel is big-endian.
const BIG_ENDIAN: u64 = 1;
/// No kernel asks for more memory than this, nor to be loaded further on.
const MAX_BYTES: u64 = 1 << 40;
/// Length of an A64 instruction: nothing can be entered at less aligned an address.
const INSTRUCTION: u64 = 4;
/// What a gzip file begins with: its magic number, and the only method there is.
const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];
/// What a compressed EFI image of Linux has behind "MZ" and two zeros.
const ZBOOT: u32 = u32::from_le_bytes(*b"zimg");
/// PE sections looked at: kernels have two or three.
const MAX_SECTIONS: u64 = 16;
/// Length of a PE section header.
const SECTION_HEADER: u64 = 40;

/// A kernel file's demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// Where to load and to enter it, in bytes above a 2 MiB boundary. At most 1 TiB, and a
    /// multiple of 4.
    pub offset: u64,
    /// Bytes of memory it takes from there on: at least its own length; else at most 1 TiB.
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
    /// The file is compressed: a boot loader has to unpack it first.
    Compressed,
    /// The header asks for big-endian, for an entry that no instruction can have, or for more
    /// memory than there are addresses.
    Unsupported,
}

impl KernelImage {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`ImageError`], from the header's own claims; the code is not looked at.
    pub fn parse(file: SharedSlice<'_>) -> Result<Self, ImageError> {
        let len = file.len() as u64;
        if len < INSTRUCTION {
            return Err(ImageError::Empty);
        }
        if bytes(file, 0) == Some(GZIP) || word(file, 4) == Some(ZBOOT) && is_pe(file) {
            return Err(ImageError::Compressed);
        }
        if file.len() < HEADER || word(file, MAGIC_OFFSET as u64) != Some(MAGIC) {
            return Ok(Self { offset: LEGACY_OFFSET, memory: len });
        }
        let field = |offset| bytes(file, offset).map_or(0, u64::from_le_bytes);
        let (text_offset, image_size, flags) = (field(8), field(16), field(24));
        // Such an old kernel does not say how large it is, and its offset is what it was then.
        let offset = if image_size == 0 { LEGACY_OFFSET } else { text_offset };
        let misplaced = offset > MAX_BYTES || !offset.is_multiple_of(INSTRUCTION);
        if flags & BIG_ENDIAN != 0 || misplaced || image_size > MAX_BYTES {
            return Err(ImageError::Unsupported);
        }
        if let Some(expected) = pe_file_size(file).filter(|expected| *expected > len) {
            return Err(ImageError::Truncated { expected });
        }
        Ok(Self { offset, memory: image_size.max(len) })
    }
}

/// The `N` bytes at `offset`, at whatever address the file lies.
fn bytes<const N: usize>(file: SharedSlice<'_>, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_bytes(usize::try_from(offset).ok()?, &mut bytes)?;
    Some(bytes)
}

fn half(file: SharedSlice<'_>, offset: u64) -> Option<u16> {
    bytes(file, offset).map(u16::from_le_bytes)
}

fn word(file: SharedSlice<'_>, offset: u64) -> Option<u32> {
    bytes(file, offset).map(u32::from_le_bytes)
}

fn is_pe(file: SharedSlice<'_>) -> bool {
    bytes(file, 0) == Some(*b"MZ")
}

/// The length of the file by its PE section table; kernels with an EFI stub have one.
fn pe_file_size(file: SharedSlice<'_>) -> Option<u64> {
    if !is_pe(file) {
        return None;
    }
    // No sum overflows: every field has at most 32 bits.
    let pe = u64::from(word(file, 0x3c)?);
    if bytes(file, pe)? != *b"PE\0\0" {
        return None;
    }
    let sections = u64::from(half(file, pe + 6)?).min(MAX_SECTIONS);
    let table = pe + 24 + u64::from(half(file, pe + 20)?);
    let mut end = 0;
    for section in 0..sections {
        let header = table + section * SECTION_HEADER;
        let size = u64::from(word(file, header + 16)?);
        let start = u64::from(word(file, header + 20)?);
        end = end.max(start + size);
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::{HostRam, Pa};

    /// What `parse` says of a file with these contents, wherever in a word it begins.
    fn parse(contents: &[u8]) -> Result<KernelImage, ImageError> {
        let ram = HostRam::new(contents.len() + 8);
        let at = |phase| {
            let file = ram.slice(Pa::new(0)).subslice(phase, contents.len()).unwrap();
            file.write_bytes(0, contents).unwrap();
            KernelImage::parse(file)
        };
        let aligned = at(0);
        for phase in 1..8 {
            assert_eq!(at(phase), aligned, "{phase} bytes into a word");
        }
        aligned
    }

    fn put(file: &mut [u8], offset: usize, value: &[u8]) {
        file[offset..offset + value.len()].copy_from_slice(value);
    }

    /// A file of `len` bytes with an Image header.
    fn image(len: usize, text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut file = vec![0; len];
        put(&mut file, 8, &text_offset.to_le_bytes());
        put(&mut file, 16, &image_size.to_le_bytes());
        put(&mut file, 24, &flags.to_le_bytes());
        put(&mut file, MAGIC_OFFSET, b"ARM\x64");
        file
    }

    /// The same with an EFI stub's PE headers at 0x40, and sections of these (start, size).
    fn with_sections(len: usize, sections: &[(u32, u32)]) -> Vec<u8> {
        let mut file = image(len, 0, len as u64, 0);
        put(&mut file, 0, b"MZ");
        put(&mut file, 0x3c, &0x40u32.to_le_bytes());
        put(&mut file, 0x40, b"PE\0\0");
        put(&mut file, 0x46, &(sections.len() as u16).to_le_bytes());
        put(&mut file, 0x54, &0xa0u16.to_le_bytes());
        for (n, (start, size)) in sections.iter().enumerate() {
            let header = 0x40 + 24 + 0xa0 + n * 40;
            put(&mut file, header + 16, &size.to_le_bytes());
            put(&mut file, header + 20, &start.to_le_bytes());
        }
        file
    }

    #[test]
    fn an_image_is_loaded_where_it_asks_with_room_for_its_bss() {
        let expected = KernelImage { offset: 0, memory: 0x20_0000 };
        assert_eq!(parse(&image(4096, 0, 0x20_0000, 0b1010)), Ok(expected));
        let expected = KernelImage { offset: 0x8_0000, memory: 4096 };
        assert_eq!(parse(&image(4096, 0x8_0000, 100, 0)), Ok(expected));
    }

    #[test]
    fn an_image_of_unknown_size_is_an_old_one_whatever_offset_it_has() {
        for text_offset in [0, 0x8_0000, 0x0800, u64::MAX] {
            let expected = KernelImage { offset: LEGACY_OFFSET, memory: 4096 };
            assert_eq!(parse(&image(4096, text_offset, 0, 0)), Ok(expected));
        }
    }

    #[test]
    fn a_file_without_the_header_is_a_raw_binary() {
        for len in [4, 63, 64, 4096] {
            let expected = KernelImage { offset: LEGACY_OFFSET, memory: len as u64 };
            assert_eq!(parse(&vec![0x55; len]), Ok(expected));
        }
        // The magic number in a file that is shorter than a header.
        let expected = KernelImage { offset: LEGACY_OFFSET, memory: 63 };
        assert_eq!(parse(&image(64, 0, 0x1000, 0)[..63]), Ok(expected));
    }

    #[test]
    fn a_file_without_an_instruction_is_empty() {
        for len in 0..4 {
            assert_eq!(parse(&vec![0; len]), Err(ImageError::Empty));
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        let unsupported = Err(ImageError::Unsupported);
        assert_eq!(parse(&image(4096, 0, 4096, 0b1011)), unsupported, "big-endian");
        assert_eq!(parse(&image(4096, 0, MAX_BYTES + 1, 0)), unsupported);
        assert_eq!(parse(&image(4096, MAX_BYTES + 4, 4096, 0)), unsupported);
        assert_eq!(parse(&image(4096, u64::MAX, u64::MAX, 0)), unsupported);
        assert_eq!(parse(&image(4096, 0x8_0002, 4096, 0)), unsupported, "no instruction's address");
    }

    #[test]
    fn a_compressed_kernel_is_named_as_such() {
        let mut gzip = vec![0; 4096];
        put(&mut gzip, 0, &[0x1f, 0x8b, 0x08, 0]);
        assert_eq!(parse(&gzip), Err(ImageError::Compressed));
        let mut zboot = vec![0; 4096];
        put(&mut zboot, 0, b"MZ\0\0zimg");
        assert_eq!(parse(&zboot), Err(ImageError::Compressed));
        // A plain Image with an EFI stub begins with "MZ" too.
        assert!(parse(&with_sections(4096, &[(0x1000, 0)])).is_ok());
    }

    #[test]
    fn a_truncated_kernel_is_told_by_its_section_table() {
        let sections = [(0x1000, 0x800), (0x1800, 0x600), (0, 0)];
        let whole = with_sections(0x1e00, &sections);
        assert_eq!(parse(&whole), Ok(KernelImage { offset: 0, memory: 0x1e00 }));
        for len in [0x200, 0x1000, 0x1dff] {
            let expected = ImageError::Truncated { expected: 0x1e00 };
            assert_eq!(parse(&whole[..len]), Err(expected), "{len:#x}");
        }
        let far = with_sections(0x1000, &[(u32::MAX, u32::MAX)]);
        let expected = 2 * u64::from(u32::MAX);
        assert_eq!(parse(&far), Err(ImageError::Truncated { expected }));
    }

    #[test]
    fn a_section_table_that_makes_no_sense_is_not_believed() {
        let whole = with_sections(0x1000, &[(0x800, 0x900)]);
        let without = |offset: usize, value: &[u8]| {
            let mut file = whole.clone();
            put(&mut file, offset, value);
            parse(&file)
        };
        assert!(without(0x3c, &u32::MAX.to_le_bytes()).is_ok());
        assert!(without(0x3c, &0xfffu32.to_le_bytes()).is_ok());
        assert!(without(0x40, b"NE").is_ok());
        assert!(without(0x54, &u16::MAX.to_le_bytes()).is_ok());
        assert!(without(0x00, b"ZM").is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_within_bounds(
            mut file in prop::collection::vec(any::<u8>(), 0..600),
            marks in prop::collection::vec(
                prop::sample::select(vec![
                    (0, &b"MZ"[..]), (0x38, b"ARM\x64"), (0x3c, &[0x40, 0, 0, 0]), (0x40, b"PE\0\0"),
                    (0x46, &[3, 0]), (0x54, &[8, 0]), (12, &[0; 4]), (20, &[0; 4]), (24, &[0; 1]),
                ]),
                0..9,
            ),
        ) {
            for (offset, value) in marks {
                if offset + value.len() <= file.len() {
                    put(&mut file, offset, value);
                }
            }
            match parse(&file) {
                Ok(KernelImage { offset, memory }) => {
                    prop_assert!(offset <= MAX_BYTES && offset % 4 == 0);
                    prop_assert!(memory >= file.len() as u64);
                    prop_assert!(memory <= MAX_BYTES.max(file.len() as u64));
                }
                Err(ImageError::Truncated { expected }) => {
                    prop_assert!(expected > file.len() as u64);
                }
                Err(ImageError::Empty) => prop_assert!(file.len() < 4),
                Err(ImageError::Compressed | ImageError::Unsupported) => {
                    prop_assert!(file.len() >= 4);
                }
            }
        }
    }
}
