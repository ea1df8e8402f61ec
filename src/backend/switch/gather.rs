//! The bytes of a frame, where they are.

use crate::backend::net::Frame;
use crate::memory::{SharedSlice, copy};

/// A run of bytes in a list of segments.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a, 'm> {
    segments: &'a [SharedSlice<'m>],
    /// In the first segment.
    offset: usize,
    len: usize,
    /// The list may go on after the last byte.
    cut: bool,
}

impl<'a, 'm> Gather<'a, 'm> {
    /// All of a frame.
    #[inline]
    pub(super) fn of(frame: &Frame<'a, 'm>) -> Self {
        Self { segments: frame.segments, offset: 0, len: frame.len, cut: false }
    }

    /// All of one segment.
    pub(super) fn all(segment: &'a [SharedSlice<'m>; 1]) -> Self {
        let [only] = segment;
        Self { segments: segment, offset: 0, len: only.len(), cut: false }
    }

    /// Bytes that are left.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The next piece that lies in one segment, of at most `limit` bytes; then the rest is what comes
    /// after it. `None` when nothing is left.
    #[inline]
    pub(super) fn next(&mut self, limit: usize) -> Option<SharedSlice<'m>> {
        let (first, rest) = self.segments.split_first()?;
        let there = first.len().checked_sub(self.offset)?;
        let len = there.min(self.len).min(limit);
        if len == 0 {
            return None;
        }
        let piece = first.subslice(self.offset, len)?;
        self.len -= len;
        self.offset += len;
        if len == there {
            self.segments = rest;
            self.offset = 0;
        }
        Some(piece)
    }

    /// Takes the first `len` bytes, or as many as there are.
    #[inline]
    pub(super) fn split_to(&mut self, len: usize) -> Gather<'a, 'm> {
        let front = Gather { len: len.min(self.len), cut: true, ..*self };
        self.skip(len);
        front
    }

    /// Leaves out the first `len` bytes.
    #[inline]
    pub(super) fn skip(&mut self, mut len: usize) {
        while len > 0
            && let Some(piece) = self.next(len)
        {
            len -= piece.len();
        }
    }

    /// Copies the first bytes into `out`. `None` if there are fewer.
    #[inline]
    pub(super) fn read(&self, out: &mut [u8]) -> Option<()> {
        let mut rest = *self;
        let mut out = out;
        while !out.is_empty() {
            let piece = rest.next(out.len())?;
            let (now, later) = out.split_at_mut_checked(piece.len())?;
            piece.read_bytes(0, now)?;
            out = later;
        }
        Some(())
    }

    /// As a list of segments, if it is all of one.
    #[inline]
    pub(super) fn whole(&self) -> Option<&'a [SharedSlice<'m>]> {
        (self.offset == 0 && !self.cut).then_some(self.segments)
    }

    /// In how many segments the bytes are.
    pub(super) fn pieces(mut self) -> usize {
        let mut count = 0;
        while self.next(usize::MAX).is_some() {
            count += 1;
        }
        count
    }
}

/// A frame as it leaves the switch: bytes that were written for it, then bytes of the sender's.
#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a, 'm> {
    /// May be empty.
    pub(super) head: &'a [u8],
    /// The rest.
    pub(super) body: Gather<'a, 'm>,
}

impl<'a, 'm> Outgoing<'a, 'm> {
    /// In bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Copies the first bytes into `out`, or all if there are not so many; says how many.
    pub(super) fn read(&self, out: &mut [u8]) -> usize {
        let (mut at, len) = (self.head.len().min(out.len()), self.len().min(out.len()));
        if let (Some(place), Some(head)) = (out.get_mut(..at), self.head.get(..at)) {
            copy(place, head);
        }
        if let Some(rest) = out.get_mut(at..len)
            && self.body.read(rest).is_some()
        {
            at = len;
        }
        at
    }

    /// What comes after the first `len` bytes, which are at least those of `head`.
    pub(super) fn after(&self, len: usize) -> Option<Gather<'a, 'm>> {
        let mut rest = self.body;
        rest.skip(len.checked_sub(self.head.len())?);
        Some(rest)
    }
}
