//! Where frames wait that have found no buffer: in order, in memory of a fixed size.

use super::gather::{Gather, Outgoing};
use super::queue::{HEADER, Header};
use crate::memory::SharedSlice;

/// In front of each frame: its length, then its virtio_net_hdr.
const RECORD: usize = 4 + HEADER;
/// Records begin at multiples of this, so that copies are fast.
const ALIGN: usize = 16;

/// Frames of one pair of queues.
#[derive(Clone, Copy)]
pub(super) struct Backlog<'m> {
    memory: SharedSlice<'m>,
    /// Where the oldest record is.
    first: usize,
    /// Where the next one goes. As `first` if there is none, for it never catches up with it.
    next: usize,
    /// Where the records end before they go on at the beginning; `usize::MAX` if they do not.
    wrap: usize,
}

impl<'m> Backlog<'m> {
    /// With no frames, and room for what fits into `memory`.
    pub(super) const fn new(memory: SharedSlice<'m>) -> Self {
        Self { memory, first: 0, next: 0, wrap: usize::MAX }
    }

    /// Forgets all frames.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.memory);
    }

    /// Whether no frame waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// Appends a frame. `None` if there is no room.
    pub(super) fn push(&mut self, header: &Header, frame: Outgoing<'_, '_>) -> Option<()> {
        if self.is_empty() {
            self.clear();
        }
        let len = frame.len();
        let size = (RECORD + len).next_multiple_of(ALIGN);
        let wrapped = self.wrap != usize::MAX;
        let end = if wrapped { self.first } else { self.memory.len() };
        let at = if self.next + size <= end && (!wrapped || self.next + size < end) {
            self.next
        } else if !wrapped && size < self.first {
            self.wrap = self.next;
            0
        } else {
            return None;
        };
        let record = self.memory.subslice(at, RECORD + len)?;
        let mut head = [0; RECORD];
        let (length, rest) = head.split_at_mut_checked(RECORD - HEADER)?;
        length.copy_from_slice(&(len as u32).to_le_bytes());
        rest.copy_from_slice(header);
        record.write_bytes(0, &head)?;
        record.write_bytes(RECORD, frame.head)?;
        let mut place = RECORD + frame.head.len();
        let mut body = frame.body;
        while let Some(piece) = body.next(usize::MAX) {
            record.subslice(place, piece.len())?.copy_from(&piece)?;
            place += piece.len();
        }
        self.next = at + size;
        Some(())
    }

    /// The oldest frame: its header, and where its bytes are.
    pub(super) fn front(&self) -> Option<(Header, SharedSlice<'m>)> {
        if self.is_empty() {
            return None;
        }
        let mut head = [0; RECORD];
        self.memory.read_bytes(self.first, &mut head)?;
        let (length, header) = head.split_first_chunk::<4>()?;
        let frame =
            self.memory.subslice(self.first + RECORD, u32::from_le_bytes(*length) as usize)?;
        Some((*header.first_chunk::<HEADER>()?, frame))
    }

    /// Drops the oldest frame, which is `len` bytes long.
    pub(super) fn pop(&mut self, len: usize) {
        self.first += (RECORD + len).next_multiple_of(ALIGN);
        if self.first >= self.wrap {
            self.first = 0;
            self.wrap = usize::MAX;
        }
        if self.is_empty() {
            self.clear();
        }
    }
}

/// The whole of a frame that waits.
pub(super) fn whole<'a, 'm>(frame: &'a [SharedSlice<'m>; 1]) -> Outgoing<'a, 'm> {
    Outgoing { head: &[], body: Gather::all(frame) }
}
