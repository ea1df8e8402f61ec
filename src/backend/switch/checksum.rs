//! The Internet's checksum (RFC 1071).

use super::gather::{Gather, Outgoing};
use super::uplink::MAX_HEADER;

/// Bytes that are read at a time.
const BLOCK: usize = 128;

/// A sum of 16-bit words in one's complement. Of the bytes in the order they are in memory: the sum
/// does not depend on the order, if the result is put back in the same.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    value: u64,
    /// An odd number of bytes has been added.
    odd: bool,
}

impl Sum {
    /// Adds bytes after those that were added before.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_le_bytes(*word))).sum();
        let mut last = [0; 4];
        for (place, byte) in last.iter_mut().zip(rest) {
            *place = *byte;
        }
        sum += u64::from(u32::from_le_bytes(last));
        let folded = fold(sum);
        self.value += u64::from(if self.odd { folded.swap_bytes() } else { folded });
        self.odd ^= bytes.len() & 1 != 0;
    }

    /// Adds bytes in shared memory.
    pub(super) fn add_gather(&mut self, mut bytes: Gather<'_, '_>) {
        let mut block = [0; BLOCK];
        while let Some(piece) = bytes.next(BLOCK) {
            if let Some(block) = block.get_mut(..piece.len())
                && piece.read_bytes(0, block).is_some()
            {
                self.add(block);
            }
        }
    }

    /// The sum, as the bytes of its field.
    pub(super) fn bytes(self) -> [u8; 2] {
        fold(self.value).to_le_bytes()
    }

    /// Its complement, as the bytes of a checksum field.
    pub(super) fn complement(self) -> [u8; 2] {
        (!fold(self.value)).to_le_bytes()
    }
}

/// A sum of words with its carries added to it.
fn fold(mut sum: u64) -> u16 {
    sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
    sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum as u16
}

/// Where UDP has its checksum: 0 there says that there is none.
const UDP_CHECKSUM: u16 = 6;

/// A checksum as it is put at `offset` of the header that it is for.
pub(super) fn for_field(checksum: [u8; 2], offset: u16) -> [u8; 2] {
    if checksum == [0, 0] && offset == UDP_CHECKSUM { [0xFF, 0xFF] } else { checksum }
}

/// The beginning of a frame, up to and with its checksum, completed.
pub(super) struct Completed {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Completed {
    /// Sums up `frame` from `start` to its end, the sum of the pseudo header included, which is
    /// `offset` bytes after `start`. `None` if that is not in the frame, or too far from its beginning.
    pub(super) fn new(frame: &Outgoing<'_, '_>, start: u16, offset: u16) -> Option<Completed> {
        let field = usize::from(start) + usize::from(offset);
        let len = field + 2;
        let mut bytes = [0; MAX_HEADER];
        if frame.read(bytes.get_mut(..len)?) < len || len < frame.head.len() {
            return None;
        }
        let mut sum = Sum::default();
        sum.add(bytes.get(usize::from(start)..len)?);
        sum.add_gather(frame.after(len)?);
        let checksum = for_field(sum.complement(), offset);
        bytes.get_mut(field..len)?.copy_from_slice(&checksum);
        Some(Completed { bytes, len })
    }

    /// The frame with what was completed.
    pub(super) fn outgoing<'a, 'm>(&'a self, frame: &Outgoing<'a, 'm>) -> Option<Outgoing<'a, 'm>> {
        Some(Outgoing { head: self.bytes.get(..self.len)?, body: frame.after(self.len)? })
    }
}
