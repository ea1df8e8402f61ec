//! The descriptors of one request.

use super::layout::HEADER_BYTES;
use crate::drivers::virtio::queue::{
    DESC_BYTES, DESC_F_NEXT, DESC_F_WRITE, attributes, write_descriptor,
};
use crate::memory::{Pa, SharedSlice};

/// Place of the header's descriptor: the head.
const HEADER: u16 = 0;
/// Place of the status byte's descriptor. It ends every chain, wherever that ends, and so is
/// written once and for all.
const STATUS: u16 = 1;
/// Place of the first data descriptor; the others follow it.
const FIRST_DATA: u16 = 2;

/// A chain that is being written. Its data must be added before it is finished.
pub(super) struct Chain<'m> {
    /// The chain's own descriptors.
    table: SharedSlice<'m>,
    /// Number of the first one, as `next` counts.
    head: u16,
    /// Place of the next data descriptor.
    place: u16,
    /// Place past the last data descriptor there may be.
    end: u16,
    /// Most bytes in a data descriptor.
    longest: u64,
    /// Flag of data descriptors: 0 or [`DESC_F_WRITE`].
    direction: u16,
}

impl<'m> Chain<'m> {
    /// A chain without data in `table`, whose first descriptor is number `head`, for at most
    /// `segments` data descriptors of at most `longest` bytes.
    #[inline(always)]
    pub(super) fn new(
        table: SharedSlice<'m>,
        head: u16,
        segments: u16,
        longest: u64,
        direction: u16,
    ) -> Self {
        Self { table, head, place: FIRST_DATA, end: FIRST_DATA + segments, longest, direction }
    }

    /// Where it is.
    pub(super) fn table(&self) -> Pa {
        self.table.pa()
    }

    /// Writes what is the same for all requests: where header and status byte are.
    pub(super) fn write_envelope(&self, header: Pa, status: Pa) -> Option<()> {
        write_descriptor(&self.table, HEADER, header, 0)?;
        write_descriptor(&self.table, STATUS, status, attributes(1, DESC_F_WRITE, 0))
    }

    /// Adds `bytes` at `address` (none, if `bytes` is 0); more data will follow. `None` if that
    /// takes too many descriptors.
    #[inline(always)]
    pub(super) fn add(&mut self, address: u64, bytes: u64) -> Option<()> {
        let (mut address, mut bytes) = (address, bytes);
        while bytes != 0 {
            let length = bytes.min(self.longest);
            self.write_data(address, length as u32, self.place + 1)?;
            address += length;
            bytes -= length;
        }
        Some(())
    }

    /// Adds the last data and links header, data and status. The length of the descriptors used,
    /// in bytes. `None` if there are too many.
    #[inline(always)]
    pub(super) fn finish(&mut self, address: u64, bytes: u64) -> Option<u32> {
        let (mut address, mut bytes) = (address, bytes);
        while bytes > self.longest {
            self.write_data(address, self.longest as u32, self.place + 1)?;
            address += self.longest;
            bytes -= self.longest;
        }
        let mut first = STATUS;
        if bytes != 0 {
            self.write_data(address, bytes as u32, STATUS)?;
            first = FIRST_DATA;
        }
        let header = attributes(HEADER_BYTES, DESC_F_NEXT, self.head + first);
        self.table.store_u64(usize::from(HEADER) * DESC_BYTES + 8, header)?;
        Some(u32::from(self.place) * DESC_BYTES as u32)
    }

    /// Writes the data descriptor at `place` and links it to the one at `next`.
    #[inline(always)]
    fn write_data(&mut self, address: u64, length: u32, next: u16) -> Option<()> {
        if self.place >= self.end {
            return None;
        }
        let rest = attributes(length, self.direction | DESC_F_NEXT, self.head + next);
        write_descriptor(&self.table, self.place, Pa::new(address), rest)?;
        self.place += 1;
        Some(())
    }
}
