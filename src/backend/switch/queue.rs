//! Buffers that a driver has posted, and what has been written to them.

use super::gather::Outgoing;
use crate::backend::net::{Busy, MAX_FRAME, Received};
use crate::memory::SharedSlice;

/// Buffers of one pair that a port remembers, filled or not. A power of two.
pub(super) const BUFFERS: usize = 256;
/// Segments of the ones that are not filled. A power of two.
pub(super) const SEGMENTS: usize = 256;
/// virtio_net_hdr, with num_buffers.
pub(super) const HEADER: usize = 12;
/// Where num_buffers is in it.
const NUM_BUFFERS: usize = 10;

/// The header that goes in front of a frame; num_buffers is not yet in it.
pub(super) type Header = [u8; HEADER];

#[derive(Clone, Copy)]
struct Buffer {
    len: u32,
    segments: u32,
}

/// Why a frame was not written. Nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotWritten {
    /// There are not enough buffers.
    NoBuffer,
    /// It does not fit into the next buffer, and may not go on in others.
    SmallBuffer,
}

/// What a port remembers of one pair of queues: memory that whoever sets up the port provides.
pub struct PairQueue<'m> {
    /// Of the buffers that are not filled, in order; a ring.
    segments: [SharedSlice<'m>; SEGMENTS],
    first_segment: usize,
    segment_count: usize,
    /// Those that are not filled; a ring.
    buffers: [Buffer; BUFFERS],
    first_buffer: usize,
    buffer_count: usize,
    /// Bytes of all of them.
    room: usize,
    /// Those that are filled; a ring.
    received: [Received; BUFFERS],
    first_received: usize,
    received_count: usize,
}

impl<'m> PairQueue<'m> {
    /// With no buffers.
    pub const fn new() -> Self {
        Self {
            segments: [SharedSlice::empty(); SEGMENTS],
            first_segment: 0,
            segment_count: 0,
            buffers: [Buffer { len: 0, segments: 0 }; BUFFERS],
            first_buffer: 0,
            buffer_count: 0,
            room: 0,
            received: [Received { written: 0, continues: false }; BUFFERS],
            first_received: 0,
            received_count: 0,
        }
    }

    /// Forgets all buffers.
    pub(super) fn clear(&mut self) {
        self.segment_count = 0;
        self.buffer_count = 0;
        self.room = 0;
        self.received_count = 0;
    }

    /// Adds a buffer.
    pub(super) fn post(&mut self, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        if self.buffer_count + self.received_count >= BUFFERS
            || segments.len() > SEGMENTS - self.segment_count
        {
            return Err(Busy);
        }
        let mut len = 0usize;
        for (segment, at) in segments.iter().zip(self.first_segment + self.segment_count..) {
            if let Some(place) = self.segments.get_mut(at & (SEGMENTS - 1)) {
                *place = *segment;
            }
            len += segment.len();
        }
        let place = (self.first_buffer + self.buffer_count) & (BUFFERS - 1);
        if let Some(buffer) = self.buffers.get_mut(place) {
            *buffer = Buffer {
                // No frame fills more.
                len: len.min(MAX_FRAME + 2 * HEADER) as u32,
                segments: segments.len() as u32,
            };
        }
        self.segment_count += segments.len();
        self.buffer_count += 1;
        self.room += len.min(MAX_FRAME + 2 * HEADER);
        Ok(())
    }

    /// Takes the oldest buffers that are filled, as many as `out` has room for; says how many.
    pub(super) fn take_received(&mut self, out: &mut [Received]) -> usize {
        let mut count = 0;
        for (place, from) in out.iter_mut().take(self.received_count).zip(self.first_received..) {
            if let Some(received) = self.received.get(from & (BUFFERS - 1)) {
                *place = *received;
            }
            count += 1;
        }
        self.first_received += count;
        self.received_count -= count;
        count
    }

    /// Whether the oldest buffer is filled.
    #[inline]
    pub(super) fn has_received(&self) -> bool {
        self.received_count != 0
    }

    #[inline]
    fn buffer(&self, index: usize) -> Option<Buffer> {
        let place = (self.first_buffer + index) & (BUFFERS - 1);
        if index < self.buffer_count { self.buffers.get(place).copied() } else { None }
    }

    /// Writes a frame, with its header in front, to the next buffer, or to as many as it takes.
    pub(super) fn write(
        &mut self,
        mut header: Header,
        frame: Outgoing<'_, '_>,
        mergeable: bool,
    ) -> Result<(), NotWritten> {
        let total = HEADER + frame.len();
        let Some(first) = self.buffer(0) else { return Err(NotWritten::NoBuffer) };
        let mut count = 1;
        if (first.len as usize) < total {
            if !mergeable {
                return Err(NotWritten::SmallBuffer);
            }
            if self.room < total {
                return Err(NotWritten::NoBuffer);
            }
            let mut room = first.len as usize;
            while room < total
                && let Some(buffer) = self.buffer(count)
            {
                room += buffer.len as usize;
                count += 1;
            }
        }
        if let Some(place) = header.last_chunk_mut::<{ HEADER - NUM_BUFFERS }>() {
            *place = (count as u16).to_le_bytes();
        }
        // All buffers but the last are filled, so that their segments are one run.
        let mut sink = Sink { queue: self, segment: 0, rest: SharedSlice::empty() };
        sink.write(&header);
        sink.write(frame.head);
        let mut body = frame.body;
        while let Some(piece) = body.next(usize::MAX) {
            sink.copy(piece);
        }
        self.consume(count, total);
        Ok(())
    }

    /// Of the first `count` buffers `total` bytes are filled.
    fn consume(&mut self, count: usize, total: usize) {
        let (mut left, mut segments, mut room) = (total, 0, 0);
        let into = self.first_received + self.received_count;
        for (index, place) in (0..count).zip(into..) {
            let Some(buffer) = self.buffers.get((self.first_buffer + index) & (BUFFERS - 1)) else {
                return;
            };
            let len = buffer.len as usize;
            segments += buffer.segments as usize;
            room += len;
            let written = left.min(len);
            left -= written;
            if let Some(place) = self.received.get_mut(place & (BUFFERS - 1)) {
                *place = Received { written: written as u32, continues: index + 1 < count };
            }
        }
        self.received_count += count;
        self.first_buffer += count;
        self.buffer_count -= count;
        self.room -= room;
        self.first_segment += segments;
        self.segment_count -= segments;
    }
}

impl Default for PairQueue<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Goes through the segments of the posted buffers.
struct Sink<'q, 'm> {
    queue: &'q PairQueue<'m>,
    /// The next one, from the first.
    segment: usize,
    /// What is left of the one before.
    rest: SharedSlice<'m>,
}

impl<'m> Sink<'_, 'm> {
    /// The next place, of at most `limit` bytes, which is not 0.
    #[inline(always)]
    fn next(&mut self, limit: usize) -> Option<SharedSlice<'m>> {
        // Segments without bytes are passed over.
        while self.rest.is_empty() {
            if self.segment >= self.queue.segment_count {
                return None;
            }
            let place = (self.queue.first_segment + self.segment) & (SEGMENTS - 1);
            self.rest = *self.queue.segments.get(place)?;
            self.segment += 1;
        }
        let (piece, rest) = self.rest.split_at(limit);
        self.rest = rest;
        Some(piece)
    }

    #[inline]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(place) = self.next(bytes.len())
            && let Some((now, later)) = bytes.split_at_checked(place.len())
        {
            // As long as each other.
            let _ = place.write_bytes(0, now);
            bytes = later;
        }
    }

    #[inline]
    fn copy(&mut self, mut source: SharedSlice<'_>) {
        while !source.is_empty()
            && let Some(place) = self.next(source.len())
        {
            let (piece, rest) = source.split_at(place.len());
            // As long as each other.
            let _ = place.copy_from(&piece);
            source = rest;
        }
    }
}
