//! What a device sees of a descriptor chain: a stream to read and a stream to write.
//!
//! How the driver cuts a request into descriptors means nothing (2.7.4): a header may end in the
//! middle of one buffer or span three. [`Reader`] and [`Writer`] hide the cuts, and give what is
//! left as segments for zero-copy.

use core::mem;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::SharedSlice;

/// Segments and a position: what [`Reader`] and [`Writer`] have in common.
struct Cursor<'a, 'm> {
    /// What is left; no segment is empty.
    segments: &'a mut [SharedSlice<'m>],
    /// Bytes left: the sum of the segments' lengths.
    remaining: usize,
}

impl<'a, 'm> Cursor<'a, 'm> {
    /// Takes the next piece: at most `wanted` bytes, all of one segment.
    #[inline(always)]
    fn next_piece(&mut self, wanted: usize) -> Option<SharedSlice<'m>> {
        let segment = *self.segments.first()?;
        if wanted < segment.len() {
            let piece = segment.subslice(0, wanted)?;
            let rest = segment.subslice(wanted, segment.len() - wanted)?;
            if let Some(first) = self.segments.first_mut() {
                *first = rest;
            }
            self.remaining -= wanted;
            return Some(piece);
        }
        let segments = mem::take(&mut self.segments);
        self.segments = segments.get_mut(1..).unwrap_or_default();
        self.remaining -= segment.len();
        Some(segment)
    }

    /// Hands `len` bytes piece by piece to `each` (offset in the stream, piece). `None`, and no
    /// effect, if fewer are left.
    #[inline(always)]
    fn take(&mut self, len: usize, mut each: impl FnMut(usize, SharedSlice<'m>)) -> Option<()> {
        if len > self.remaining {
            return None;
        }
        let mut done = 0;
        while done < len {
            let piece = self.next_piece(len - done)?;
            each(done, piece);
            done += piece.len();
        }
        Some(())
    }
}

/// The device-readable part of a chain.
pub struct Reader<'a, 'm>(Cursor<'a, 'm>);

impl<'a, 'm> Reader<'a, 'm> {
    /// `remaining` is the sum of the lengths of `segments`, none of which is empty.
    #[inline(always)]
    pub(super) fn new(segments: &'a mut [SharedSlice<'m>], remaining: usize) -> Self {
        Self(Cursor { segments, remaining })
    }

    /// Bytes not yet read.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Reads the next bytes, all of `out`. `None`, and nothing read, if there are not as many.
    #[inline]
    pub fn read_bytes(&mut self, out: &mut [u8]) -> Option<()> {
        self.0.take(out.len(), |at, piece| {
            if let Some(out) = out.get_mut(at..at + piece.len()) {
                // In bounds: the whole piece.
                let _ = piece.read_bytes(0, out);
            }
        })
    }

    /// Leaves the next `len` bytes out. `None`, and nothing left out, if there are not as many.
    pub fn skip(&mut self, len: usize) -> Option<()> {
        self.0.take(len, |_, _| ())
    }

    /// Reads the next bytes as a wire structure. `None`, and nothing read, if there are too few.
    #[inline]
    pub fn read_object<T: FromBytes + IntoBytes>(&mut self) -> Option<T> {
        let mut object = T::new_zeroed();
        self.read_bytes(object.as_mut_bytes())?;
        Some(object)
    }

    /// Copies the next bytes to all of `target`. `None`, and nothing read, if there are not as many.
    #[inline]
    pub fn copy_to(&mut self, target: &SharedSlice<'_>) -> Option<()> {
        self.0.take(target.len(), |at, piece| {
            if let Some(place) = target.subslice(at, piece.len()) {
                // As long as each other.
                let _ = place.copy_from(&piece);
            }
        })
    }

    /// What has not been read, for zero-copy. No segment is empty.
    #[inline]
    pub fn into_segments(self) -> &'a [SharedSlice<'m>] {
        self.0.segments
    }
}

/// The device-writable part of a chain.
pub struct Writer<'a, 'm> {
    cursor: Cursor<'a, 'm>,
    written: usize,
}

impl<'a, 'm> Writer<'a, 'm> {
    /// `remaining` is the sum of the lengths of `segments`, none of which is empty.
    #[inline(always)]
    pub(super) fn new(segments: &'a mut [SharedSlice<'m>], remaining: usize) -> Self {
        Self { cursor: Cursor { segments, remaining }, written: 0 }
    }

    /// Bytes that can still be written.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Bytes written so far: what a device that writes through this only reports as used length.
    #[inline]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Writes all of `bytes` next. `None`, and nothing written, if there is not enough room.
    #[inline]
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.cursor.take(bytes.len(), |at, piece| {
            if let Some(bytes) = bytes.get(at..at + piece.len()) {
                // In bounds: the whole piece.
                let _ = piece.write_bytes(0, bytes);
            }
        })?;
        self.written += bytes.len();
        Some(())
    }

    /// Writes a wire structure next. `None`, and nothing written, if there is not enough room.
    #[inline]
    pub fn write_object<T: IntoBytes + Immutable>(&mut self, object: &T) -> Option<()> {
        self.write_bytes(object.as_bytes())
    }

    /// Takes the very last byte off, where block devices and others put a status that is known
    /// only at the end. `None` if nothing is left.
    #[inline]
    pub fn split_last_byte(&mut self) -> Option<SharedSlice<'m>> {
        let last = self.cursor.segments.last_mut()?;
        let keep = last.len().checked_sub(1)?;
        let byte = last.subslice(keep, 1)?;
        if keep == 0 {
            let segments = mem::take(&mut self.cursor.segments);
            self.cursor.segments = segments.split_last_mut()?.1;
        } else {
            *last = last.subslice(0, keep)?;
        }
        self.cursor.remaining -= 1;
        Some(byte)
    }

    /// What has not been written, for zero-copy. No segment is empty.
    #[inline]
    pub fn into_segments(self) -> &'a [SharedSlice<'m>] {
        self.cursor.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HostRam, Pa};

    /// Segments of the given lengths, one after the other, over numbered bytes.
    fn cut<'m>(ram: &'m HostRam, lengths: &[usize]) -> (Vec<SharedSlice<'m>>, usize) {
        let memory = ram.slice(Pa::new(0));
        let total = lengths.iter().sum();
        for at in 0..total {
            memory.store_u8(at, at as u8).unwrap();
        }
        let mut at = 0;
        let mut segments = Vec::new();
        for len in lengths {
            segments.push(memory.subslice(at, *len).unwrap());
            at += len;
        }
        (segments, total)
    }

    #[test]
    fn reading_does_not_see_the_cuts() {
        let ram = HostRam::new(64);
        for lengths in [&[24][..], &[1; 24], &[5, 11, 8], &[16, 8], &[15, 1, 8], &[3, 21]] {
            let (mut segments, total) = cut(&ram, lengths);
            let mut reader = Reader::new(&mut segments, total);
            let header: [u8; 16] = reader.read_object().unwrap();
            assert_eq!(header, core::array::from_fn(|at| at as u8));
            assert_eq!(reader.remaining(), 8);
            assert!(reader.read_object::<[u8; 9]>().is_none());
            assert_eq!(reader.remaining(), 8);
            let rest = reader.into_segments();
            assert!(rest.iter().all(|segment| !segment.is_empty()));
            let bytes: Vec<u8> = rest
                .iter()
                .flat_map(|segment| (0..segment.len()).map(|at| segment.load_u8(at).unwrap()))
                .collect();
            assert_eq!(bytes, (16..24).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn what_is_left_out_is_not_read() {
        let ram = HostRam::new(64);
        for lengths in [&[10][..], &[1; 10], &[4, 6], &[9, 1]] {
            let (mut segments, total) = cut(&ram, lengths);
            let mut reader = Reader::new(&mut segments, total);
            assert_eq!((reader.skip(11), reader.remaining()), (None, 10));
            assert_eq!((reader.skip(7), reader.remaining()), (Some(()), 3));
            assert_eq!(reader.read_object(), Some([7_u8, 8, 9]));
            assert_eq!(reader.skip(0), Some(()));
        }
    }

    #[test]
    fn writing_does_not_see_the_cuts() {
        let ram = HostRam::new(64);
        for lengths in [&[10][..], &[1; 10], &[4, 6], &[9, 1], &[1, 9]] {
            let (mut segments, total) = cut(&ram, lengths);
            let mut writer = Writer::new(&mut segments, total);
            let status = writer.split_last_byte().unwrap();
            assert_eq!(writer.remaining(), 9);
            writer.write_object(&[0x80_u8; 4]).unwrap();
            assert!(writer.write_bytes(&[0; 6]).is_none());
            writer.write_bytes(&[0x81; 5]).unwrap();
            assert_eq!((writer.written(), writer.remaining()), (9, 0));
            assert!(writer.split_last_byte().is_none());
            assert!(writer.into_segments().is_empty());
            status.store_u8(0, 0x82).unwrap();
            let mut bytes = [0; 11];
            ram.slice(Pa::new(0)).read_bytes(0, &mut bytes).unwrap();
            assert_eq!(bytes, [128, 128, 128, 128, 129, 129, 129, 129, 129, 130, 0]);
        }
    }

    #[test]
    fn an_empty_stream_gives_nothing() {
        let mut reader = Reader::new(&mut [], 0);
        assert!(reader.read_bytes(&mut [0]).is_none());
        assert!(reader.read_bytes(&mut []).is_some());
        let mut writer = Writer::new(&mut [], 0);
        assert!(writer.write_bytes(&[0]).is_none());
        assert!(writer.split_last_byte().is_none());
    }
}
