//! Buffers that a driver has posted, and how far they were filled.

use zerocopy::IntoBytes;

use super::header::{HEADER, Header, Kinds, flags};
use crate::backend::net::Busy;
use crate::memory::SharedSlice;

/// Buffers that are remembered, filled or not, and segments of those that are not.
pub(super) const BUFFERS: usize = 256;

/// The most of a packet that one buffer takes, however large it is: the time that a lock is held
/// for has a bound.
const MAX_PIECE: u32 = 0x1_0000;

#[derive(Clone, Copy)]
struct Buffer {
    /// Payload that it has room for.
    room: u32,
    segments: u16,
}

/// What is remembered of a queue to receive from.
pub(super) struct Buffers<'m> {
    segments: heapless::Deque<SharedSlice<'m>, BUFFERS>,
    empty: heapless::Deque<Buffer, BUFFERS>,
    /// Bytes in those that are filled.
    filled: heapless::Deque<u32, BUFFERS>,
}

impl<'m> Buffers<'m> {
    pub(super) const fn new() -> Self {
        Self {
            segments: heapless::Deque::new(),
            empty: heapless::Deque::new(),
            filled: heapless::Deque::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.empty.clear();
        self.filled.clear();
    }

    /// Whether there is none to be filled.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.empty.is_empty()
    }

    /// Adds a buffer of at least [`HEADER`] bytes.
    pub(super) fn post(&mut self, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        if self.empty.len() + self.filled.len() >= BUFFERS
            || segments.len() > BUFFERS - self.segments.len()
        {
            return Err(Busy);
        }
        let mut len = 0;
        for segment in segments {
            len += segment.len();
            // There is room, as was just seen.
            let _ = self.segments.push_back(*segment);
        }
        let room = len.saturating_sub(HEADER).min(MAX_PIECE as usize) as u32;
        let _ = self.empty.push_back(Buffer { room, segments: segments.len() as u16 });
        Ok(())
    }

    /// Puts a packet that has `left` bytes of payload to come into the next buffer, as far as it has
    /// room: `fill` is given the places, in order. How many bytes it was; `None` without a buffer.
    pub(super) fn put(
        &mut self,
        mut header: Header,
        left: u32,
        fill: &mut dyn FnMut(SharedSlice<'m>),
    ) -> Option<u32> {
        let buffer = self.empty.pop_front()?;
        let taken = left.min(buffer.room);
        header.len = taken.into();
        if taken < left && Kinds::of(&header) == Kinds::SEQPACKET {
            header.flags = (header.flags.get() & !flags::BOUNDARIES).into();
        }
        let mut head = header.as_bytes();
        let mut payload = taken as usize;
        for _ in 0..buffer.segments {
            let Some(segment) = self.segments.pop_front() else { break };
            let (now, later) = head.split_at(head.len().min(segment.len()));
            // In bounds, as all that follows.
            let _ = segment.write_bytes(0, now);
            head = later;
            let len = payload.min(segment.len() - now.len());
            if len != 0
                && let Some(place) = segment.subslice(now.len(), len)
            {
                fill(place);
                payload -= len;
            }
        }
        let _ = self.filled.push_back(HEADER as u32 + taken);
        Some(taken)
    }

    /// How many bytes are in the oldest buffer, if it is filled.
    #[inline]
    pub(super) fn pop_filled(&mut self) -> Option<u32> {
        self.filled.pop_front()
    }

    /// Whether one is filled.
    #[inline]
    pub(super) fn has_filled(&self) -> bool {
        !self.filled.is_empty()
    }
}
