//! What is served: a tape archive in the format ustar (POSIX.1, "ustar Interchange Format"), or
//! GNU tar's, read where it is.

use core::fmt;

use crate::memory::SharedSlice;

/// Headers and contents begin at multiples of this.
const BLOCK: usize = 512;
/// Entries of an archive: a request looks at all of them, twice at the most.
pub const MAX_ENTRIES: usize = 1024;
/// The longest path that the format has: a prefix of 155 bytes, a slash, a name of 100.
const MAX_PATH: usize = 256;

/// A path in an archive, without slashes at its ends; empty for the archive's root.
pub(super) type Path = heapless::Vec<u8, MAX_PATH>;

/// Why an archive is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// It is no tape archive of this kind, or damaged.
    Malformed,
    /// It ends within an entry.
    Truncated,
    /// It has more than [`MAX_ENTRIES`].
    TooMany,
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl ArchiveError {
    /// For people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "its metadata is no tar archive (ustar), or damaged",
            Self::Truncated => "its metadata is a tar archive that ends too early",
            Self::TooMany => "its metadata has more than 1024 entries",
        }
    }
}

/// An archive that was looked through: every entry's header is whole, and its contents are there.
#[derive(Clone, Copy)]
pub struct Archive<'m> {
    bytes: SharedSlice<'m>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    /// Links, devices, extended headers: not served.
    Other,
}

struct Entry {
    kind: Kind,
    path: Path,
    /// Where the contents are.
    at: usize,
    len: usize,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A file: where its contents are, and how long they are.
    File { at: usize, len: usize },
    /// A directory.
    Directory(Directory),
}

/// A directory: where its header is; `None`: the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Directory(Option<usize>);

impl<'m> Archive<'m> {
    /// Looks through an archive, which nobody changes any more.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn new(bytes: SharedSlice<'m>) -> Result<Self, ArchiveError> {
        let archive = Self { bytes };
        let mut at = 0;
        for _ in 0..=MAX_ENTRIES {
            match archive.entry(at)? {
                Some((_, next)) => at = next,
                None => return Ok(archive),
            }
        }
        Err(ArchiveError::TooMany)
    }

    /// The entry whose header is at `at`, and where the next one is; `None` at the end.
    fn entry(&self, at: usize) -> Result<Option<(Entry, usize)>, ArchiveError> {
        let mut header = [0; BLOCK];
        if at == self.bytes.len() {
            return Ok(None);
        }
        self.bytes.read_bytes(at, &mut header).ok_or(ArchiveError::Truncated)?;
        // The end is two blocks of zeros, of which there may be one, or none.
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let parsed = parse(&header).ok_or(ArchiveError::Malformed)?;
        let (kind, path, len) = parsed;
        let start = at + BLOCK;
        let next = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(BLOCK));
        // Zeros that fill the last block may be missing.
        let next = next.filter(|_| start + len <= self.bytes.len());
        let next = next.ok_or(ArchiveError::Truncated)?.min(self.bytes.len());
        Ok(Some((Entry { kind, path, at: start, len }, next)))
    }

    /// Entries that are served, in order.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut at = 0;
        // Ends: each step goes a block on at least. What was found sound does not change.
        core::iter::from_fn(move || {
            let (entry, next) = self.entry(at).ok()??;
            at = next;
            Some(entry)
        })
        .filter(|entry| entry.kind != Kind::Other)
    }

    /// What a path without slashes at its ends names: the first entry that has it.
    pub(super) fn find(&self, path: &[u8]) -> Option<Found> {
        if path.is_empty() {
            return Some(Found::Directory(Directory(None)));
        }
        self.entries().find(|entry| entry.path == path).map(|entry| match entry.kind {
            Kind::File => Found::File { at: entry.at, len: entry.len },
            _ => Found::Directory(Directory(entry.at.checked_sub(BLOCK))),
        })
    }

    /// Calls `visit` with the pieces of a directory's listing: a line for each entry in it, with a
    /// slash behind the names of directories.
    pub(super) fn list(&self, Directory(header): Directory, visit: &mut dyn FnMut(&[u8])) {
        let entry = header.and_then(|at| self.entry(at).ok()?);
        let directory = entry.map_or(Path::new(), |(entry, _)| entry.path);
        for entry in self.entries() {
            let rest = entry.path.strip_prefix(directory.as_slice());
            let name = match rest {
                Some(rest) if directory.is_empty() => Some(rest),
                Some([b'/', name @ ..]) => Some(name),
                _ => None,
            };
            if let Some(name) = name.filter(|name| !name.is_empty() && !name.contains(&b'/')) {
                visit(name);
                visit(if entry.kind == Kind::Directory { b"/\n" } else { b"\n" });
            }
        }
    }

    /// Copies contents from `at` on. `None`, and no effect, if they do not lie in the archive.
    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> Option<()> {
        self.bytes.read_bytes(at, out)
    }
}

/// What a header says: `None` if it is none.
fn parse(header: &[u8; BLOCK]) -> Option<(Kind, Path, usize)> {
    let field = |from: usize, to: usize| header.get(from..to);
    let sum = octal(field(148, 156)?)?;
    // The sum is over the header with spaces in its own place.
    let own: usize = field(148, 156)?.iter().map(|byte| usize::from(*byte)).sum();
    let all: usize = header.iter().map(|byte| usize::from(*byte)).sum();
    if all - own + 8 * usize::from(b' ') != sum || field(257, 262)? != b"ustar" {
        return None;
    }
    let kind = match header.get(156)? {
        b'0' | 0 => Kind::File,
        b'5' => Kind::Directory,
        _ => Kind::Other,
    };
    let mut path = Path::new();
    // In GNU's format something else is there.
    let prefix = if field(262, 263)? == b"\0" { text(field(345, 500)?) } else { b"" };
    if !prefix.is_empty() {
        path.extend_from_slice(prefix).ok()?;
        path.push(b'/').ok()?;
    }
    path.extend_from_slice(text(field(0, 100)?)).ok()?;
    let len = if kind == Kind::Directory { 0 } else { octal(field(124, 136)?)? };
    Some((kind, Path::from_slice(trim(&path)).ok()?, len))
}

/// A path without `./` before it and slashes around it.
pub(super) fn trim(mut path: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] | [b'.', b'/', rest @ ..] | [rest @ .., b'/'] = path {
        path = rest;
    }
    if path == b"." { b"" } else { path }
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number with spaces or zeros around it.
fn octal(field: &[u8]) -> Option<usize> {
    let mut value: usize = 0;
    let digits = field.trim_ascii_start();
    let digits = digits.split(|byte| matches!(byte, 0 | b' ')).next()?;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(digit.into())?;
    }
    (!digits.is_empty()).then_some(value)
}
