//! Frames that have come, in buffers of the driver's.

use super::header::{HEADER_BYTES, Header};
use super::layout::{Layout, MAX_BUFFERS, ReceiveGeometry};
use super::send::Nonsense;
use crate::backend::net::{Frame, FrameInfo, MAX_FRAME, MIN_FRAME, Offloads};
use crate::drivers::registers::Registers;
use crate::drivers::virtio::mmio::InitError;
use crate::drivers::virtio::queue::{DESC_F_WRITE, SplitQueue, attributes, write_descriptor};
use crate::memory::SharedSlice;

/// Buffers that a frame can take: one of 64 KiB in those of 2 KiB, with its header.
const MAX_PIECES: usize = (MAX_FRAME + HEADER_BYTES).div_ceil(2048) + 1;

/// What there is at the head of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Nothing.
    None,
    /// A frame: [`Receiver::frame`].
    Frame,
    /// A frame that could not be used, and is gone.
    Bad,
}

/// The ring of buffers to receive in. It knows nothing of the device's state.
pub(super) struct Receiver<'m> {
    queue: SplitQueue<'m>,
    buffers: SharedSlice<'m>,
    geometry: ReceiveGeometry,
    gives: Offloads,
    /// Buffers that the device has.
    posted: u128,
    /// Those of the frame that has not been given back.
    taken: heapless::Vec<u16, MAX_PIECES>,
    segments: heapless::Vec<SharedSlice<'m>, MAX_PIECES>,
    info: FrameInfo,
    len: usize,
}

impl<'m> Receiver<'m> {
    /// A ring with all buffers in it, not yet shown to the device.
    pub(super) fn new(
        layout: &Layout<'m>,
        geometry: ReceiveGeometry,
        gives: Offloads,
        event_index: bool,
    ) -> Result<Self, InitError> {
        let queue = SplitQueue::new(layout.receive_queue, geometry.ring, event_index, false);
        let mut receiver = Self {
            queue: queue.ok_or(InitError::DmaMemory)?,
            buffers: layout.buffers,
            geometry,
            gives,
            posted: 0,
            taken: heapless::Vec::new(),
            segments: heapless::Vec::new(),
            info: FrameInfo::PLAIN,
            len: 0,
        };
        for index in 0..geometry.ring {
            let buffer = receiver.buffer(index).ok_or(InitError::DmaMemory)?;
            let rest = attributes(buffer.len() as u32, DESC_F_WRITE, 0);
            write_descriptor(receiver.queue.descriptors(), index, buffer.pa(), rest)
                .ok_or(InitError::DmaMemory)?;
        }
        receiver.post_all();
        Ok(receiver)
    }

    /// Empties the ring of a device that has been reset, and puts all buffers into it. A frame that has
    /// not been given back is lost.
    pub(super) fn restart(&mut self) {
        self.queue.restart();
        self.forget();
        self.post_all();
    }

    fn post_all(&mut self) {
        self.posted = u128::MAX >> (MAX_BUFFERS - self.geometry.ring);
        for index in 0..self.geometry.ring {
            self.queue.offer(index);
        }
    }

    pub(super) fn queue(&self) -> &SplitQueue<'m> {
        &self.queue
    }

    /// Whether the device shall interrupt.
    pub(super) fn set_interrupts(&mut self, on: bool) {
        self.queue.set_interrupts(on);
    }

    #[inline(always)]
    fn buffer(&self, index: u16) -> Option<SharedSlice<'m>> {
        self.buffers.subslice(usize::from(index) * self.geometry.bytes, self.geometry.bytes)
    }

    /// Shows the device the buffers that are free again. Whether it wants to be notified of them.
    #[inline]
    pub(super) fn publish(&mut self, order: &impl Registers) -> bool {
        self.queue.publish(order)
    }

    /// The frame that has not been given back.
    #[inline(always)]
    pub(super) fn frame(&self) -> Option<Frame<'_, 'm>> {
        let segments = self.segments.as_slice();
        (!segments.is_empty()).then_some(Frame { info: self.info, segments, len: self.len })
    }

    /// Looks at the next frame; there must be none that has not been given back.
    #[inline]
    pub(super) fn next(&mut self, order: &impl Registers) -> Result<Arrival, Nonsense> {
        let Some((first, written)) = self.take_buffer(order)? else { return Ok(Arrival::None) };
        // It has a header, and the first piece behind it.
        let header = Header::read(&first).ok_or(Nonsense)?;
        let data = written.checked_sub(HEADER_BYTES).ok_or(Nonsense)?;
        self.len = data;
        self.add(first.subslice(HEADER_BYTES, data).ok_or(Nonsense)?)?;
        // Without the feature the device need not fill it in, and there is one.
        let pieces = if self.geometry.mergeable { header.buffers } else { 1 };
        if pieces == 0 {
            return Err(Nonsense);
        }
        for _ in 1..pieces {
            // They were put into the ring together.
            let (buffer, written) = self.take_buffer(order)?.ok_or(Nonsense)?;
            self.add(buffer.subslice(0, written).ok_or(Nonsense)?)?;
            self.len += written;
        }
        match header.info(self.len, self.gives) {
            Some(info) if (MIN_FRAME..=MAX_FRAME).contains(&self.len) => {
                self.info = info;
                Ok(Arrival::Frame)
            }
            _ => {
                self.release();
                Ok(Arrival::Bad)
            }
        }
    }

    #[inline(always)]
    fn add(&mut self, piece: SharedSlice<'m>) -> Result<(), Nonsense> {
        if piece.is_empty() {
            return Ok(());
        }
        self.segments.push(piece).map_err(|_| Nonsense)
    }

    /// The next buffer that the device has written to, and how much.
    #[inline(always)]
    fn take_buffer(
        &mut self,
        order: &impl Registers,
    ) -> Result<Option<(SharedSlice<'m>, usize)>, Nonsense> {
        let Some((id, written)) = self.queue.take_used_with_length(order)? else {
            return Ok(None);
        };
        if id >= u32::from(MAX_BUFFERS) || self.posted & (1 << id) == 0 {
            return Err(Nonsense);
        }
        self.posted &= !(1 << id);
        let index = id as u16;
        self.taken.push(index).map_err(|_| Nonsense)?;
        let buffer = self.buffer(index).ok_or(Nonsense)?;
        Ok(Some((buffer, written as usize)))
    }

    /// Gives the buffers of the frame back to the device, at the next [`Self::publish`].
    #[inline]
    pub(super) fn release(&mut self) {
        for index in &self.taken {
            self.posted |= 1 << *index;
            self.queue.offer(*index);
        }
        self.forget();
    }

    /// There is no frame.
    pub(super) fn forget(&mut self) {
        self.taken.clear();
        self.segments.clear();
    }
}
