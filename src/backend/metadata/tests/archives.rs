//! What is served, and what is not.

use super::*;

fn open(bytes: &[u8]) -> Result<Archive<'static>, ArchiveError> {
    Archive::new(memory(bytes))
}

fn listing(archive: &Archive<'_>, path: &[u8]) -> String {
    let mut text = Vec::new();
    let Some(archive::Found::Directory(directory)) = archive.find(path) else { panic!() };
    archive.list(directory, &mut |piece| text.extend_from_slice(piece));
    String::from_utf8(text).unwrap()
}

fn error(bytes: &[u8]) -> Option<ArchiveError> {
    open(bytes).err()
}

#[test]
fn an_archive_may_end_as_it_likes() {
    let file = entry("a", b'0', b"text");
    for end in [vec![], vec![0; 512], vec![0; 1024], vec![0; 10240]] {
        let archive = open(&[file.clone(), end].concat()).unwrap();
        assert_eq!(listing(&archive, b""), "a\n");
    }
    // Without the zeros behind the last file.
    let archive = open(&file[..516]).unwrap();
    assert_eq!(archive.find(b"a"), Some(archive::Found::File { at: 512, len: 4 }));
    assert_eq!(error(&file[..515]), Some(ArchiveError::Truncated));
    assert_eq!(error(&file[..511]), Some(ArchiveError::Truncated));
}

#[test]
fn links_devices_and_headers_of_other_formats_are_passed_over() {
    let entries = [
        entry("pax_global_header", b'g', b"52 comment=0123456789012345678901234567890123456789\n"),
        entry("a", b'0', b"text"),
        entry("link", b'2', b""),
        entry("pipe", b'6', b""),
        entry("b", 0, b""),
    ];
    let archive = open(&entries.concat()).unwrap();
    assert_eq!(listing(&archive, b""), "a\nb\n");
    assert_eq!(archive.find(b"link"), None);
}

#[test]
fn long_paths_have_a_prefix() {
    let (directory, name) = ("d".repeat(150), "n".repeat(100));
    let mut long = entry(&name, b'0', b"text");
    long[345..345 + 150].copy_from_slice(directory.as_bytes());
    let sum = 150 * u32::from(b'd')
        + u32::from_str_radix(std::str::from_utf8(&long[148..154]).unwrap(), 8).unwrap();
    long[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let archive = open(&long).unwrap();
    let path = format!("{directory}/{name}");
    assert_eq!(archive.find(path.as_bytes()), Some(archive::Found::File { at: 512, len: 4 }));
}

#[test]
fn what_is_no_archive_is_refused() {
    assert_eq!(error(&[b'x'; 2048]), Some(ArchiveError::Malformed));
    let mut damaged = entry("a", b'0', b"text");
    damaged[1] = b'b';
    assert_eq!(error(&damaged), Some(ArchiveError::Malformed));
    let many: Vec<_> = (0..=MAX_ENTRIES).map(|n| entry(&n.to_string(), b'0', b"")).collect();
    assert_eq!(error(&many.concat()), Some(ArchiveError::TooMany));
    assert!(open(&many[1..].concat()).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_damaged_archive_is_refused_or_read(
        changes in prop::collection::vec((0usize..2048, any::<u8>()), 0..8),
        len in 0usize..=2048,
        mend in any::<bool>(),
    ) {
        let mut bytes =
            [entry("d/", b'5', b""), entry("d/a", b'0', &[1; 600]), vec![0; 512]].concat();
        bytes.truncate(len.max(1));
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if mend && let Some(header) = bytes.first_chunk_mut::<512>() {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        if let Ok(archive) = open(&bytes) {
            if let Some(archive::Found::File { at, len }) = archive.find(b"d/a") {
                prop_assert!(archive.read(at, &mut vec![0; len]).is_some());
            }
            listing(&archive, b"");
        }
    }
}
