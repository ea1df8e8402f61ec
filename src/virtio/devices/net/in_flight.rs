//! Frames that hardware reads.

use crate::backend::net::SendTag;
use crate::virtio::queue::Head;

/// Frames that can be in flight to hardware. More wait in the ring.
pub const IN_FLIGHT: u16 = u64::BITS as u16;

/// What is kept of a frame that hardware reads.
#[derive(Clone, Copy)]
pub(super) struct InFlight {
    pub(super) pair: u16,
    pub(super) head: Head,
}

/// The frames that hardware reads, by tag.
pub(super) struct Transmitting {
    slots: [Option<InFlight>; IN_FLIGHT as usize],
    /// A bit for each slot that is free.
    free: u64,
    /// A bit for each slot whose frame has gone while its chain could not be completed.
    pub(super) gone: u64,
}

impl Transmitting {
    pub(super) const NONE: Transmitting =
        Transmitting { slots: [None; _], free: u64::MAX, gone: 0 };

    /// How many there are.
    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.free.count_zeros()
    }

    /// The tag of a slot that is free: the lowest.
    #[inline]
    pub(super) fn vacant(&self) -> Option<SendTag> {
        (self.free != 0).then(|| SendTag(self.free.trailing_zeros() as u16))
    }

    /// Fills the lowest slot that is free.
    #[inline]
    pub(super) fn insert(&mut self, tag: SendTag, frame: InFlight) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag.0)) {
            *slot = Some(frame);
            self.free &= self.free - 1;
        }
    }

    /// Empties a slot.
    #[inline]
    pub(super) fn remove(&mut self, tag: SendTag) -> Option<InFlight> {
        let frame = self.slots.get_mut(usize::from(tag.0))?.take()?;
        let bit = 1 << tag.0;
        self.free |= bit;
        self.gone &= !bit;
        Some(frame)
    }

    /// A frame has gone. If it is one of `pair`, it is forgotten; others wait to be completed.
    pub(super) fn note(&mut self, tag: SendTag, pair: u16) {
        match self.slots.get(usize::from(tag.0)) {
            Some(Some(frame)) if frame.pair != pair => self.gone |= 1 << tag.0,
            Some(Some(_)) => _ = self.remove(tag),
            _ => (),
        }
    }

    /// Whether one of `pair` is left.
    pub(super) fn has(&self, pair: u16) -> bool {
        self.slots.iter().flatten().any(|frame| frame.pair == pair)
    }
}
