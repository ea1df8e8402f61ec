//! A device's state as bytes, to be taken up by another one like it: the transport's, and behind it
//! the device model's ([`MmioTransport::save`](super::MmioTransport::save)).
//!
//! What the bytes of a device model mean is the device model's own affair; it writes wire structures, so that they
//! mean the same everywhere. What comes back may have been anywhere: it is checked as a guest's
//! values are.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why a state was not written or not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// There is no room for all of it, or not all of it is there.
    Length,
    /// It is not one this device can be in.
    Invalid,
    /// The device is at work. To save it, poll until it is not; to restore it, reset it.
    Busy,
}

/// Writes a state, piece after piece.
pub struct StateWriter<'a> {
    free: &'a mut [u8],
    written: usize,
}

impl<'a> StateWriter<'a> {
    /// Writes to `room`.
    pub fn new(room: &'a mut [u8]) -> Self {
        Self { free: room, written: 0 }
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Writes all of `bytes` next.
    ///
    /// # Errors
    /// If they do not fit; nothing is written then.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let free = core::mem::take(&mut self.free);
        match free.split_at_mut_checked(bytes.len()) {
            Some((room, rest)) => {
                crate::memory::copy(room, bytes);
                self.free = rest;
                self.written += bytes.len();
                Ok(())
            }
            // What is free was given up: nothing that follows can be written either.
            None => Err(StateError::Length),
        }
    }

    /// Writes a wire structure next.
    ///
    /// # Errors
    /// As [`Self::write_bytes`].
    pub fn write_object<T: IntoBytes + Immutable>(&mut self, object: &T) -> Result<(), StateError> {
        self.write_bytes(object.as_bytes())
    }
}

/// Reads a state, piece after piece.
pub struct StateReader<'a> {
    rest: &'a [u8],
}

impl<'a> StateReader<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads the next wire structure.
    ///
    /// # Errors
    /// If not as many bytes are left; none is read then.
    pub fn read_object<T: FromBytes>(&mut self) -> Result<T, StateError> {
        let (object, rest) = T::read_from_prefix(self.rest).map_err(|_| StateError::Length)?;
        self.rest = rest;
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_ends_where_it_ended() {
        let mut bytes = [0xFF; 9];
        let mut writer = StateWriter::new(&mut bytes);
        writer.write_object(&0x0102_0304_u32.to_be_bytes()).unwrap();
        writer.write_bytes(&[5, 6, 7]).unwrap();
        assert_eq!(writer.written(), 7);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 0xFF, 0xFF]);
        let mut reader = StateReader::new(&bytes[..7]);
        assert_eq!(reader.read_object(), Ok([1_u8, 2, 3, 4]));
        assert_eq!(reader.read_object::<[u8; 4]>(), Err(StateError::Length));
        assert_eq!(reader.read_object(), Ok([5_u8, 6, 7]));
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_so_is_all_that_follows() {
        let mut bytes = [0; 4];
        let mut writer = StateWriter::new(&mut bytes);
        writer.write_bytes(&[1, 2]).unwrap();
        assert_eq!(writer.write_bytes(&[3, 4, 5]), Err(StateError::Length));
        assert_eq!(writer.write_bytes(&[3]), Err(StateError::Length));
        assert_eq!(writer.written(), 2);
        assert_eq!(bytes, [1, 2, 0, 0]);
    }
}
