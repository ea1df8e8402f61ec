//! The way out of a switch: a physical network card, as the switch sees it.

use crate::backend::clock::Ticks;
use crate::backend::net::{Busy, Frame, FrameInfo, MacAddress, Offloads};
use crate::memory::SharedSlice;

/// The most bytes that [`UplinkFrame::header`] can have: Ethernet with a VLAN tag, IP and TCP, each
/// with the options that there may be, and some more.
pub const MAX_HEADER: usize = 192;

/// What a card is. Constant but for `link_up`, `mtu` and `speed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkInfo {
    /// Its own address.
    pub mac: MacAddress,
    /// The most bytes after the Ethernet header (and a VLAN tag) that it sends.
    pub mtu: u16,
    /// Whether anything can be reached. What is submitted without a link is sent or lost.
    pub link_up: bool,
    /// In Mbit/s, as far as known.
    pub speed: Option<u32>,
    /// What it does to frames that it is to send. The switch does the rest.
    pub takes: Offloads,
    /// What may be left to do about frames that it has received.
    pub gives: Offloads,
    /// The most segments that a frame can have besides its header; at least 1.
    pub max_segments: u16,
}

/// How much can be submitted just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Room {
    /// Frames.
    pub frames: usize,
    /// Segments of all of them together, headers not counted.
    pub segments: usize,
}

/// A frame to be sent: its bytes are those of `header`, then those of `segments`.
#[derive(Clone, Copy)]
pub struct UplinkFrame<'a, 'm> {
    /// What the card is to do about it: nothing that is not in [`UplinkInfo::takes`]. Offsets count
    /// from the first byte of `header`.
    pub info: FrameInfo,
    /// The beginning, which the switch has written or changed; may be empty, at most [`MAX_HEADER`]
    /// bytes. The card copies it before [`Uplink::submit`] returns.
    pub header: &'a [u8],
    /// The rest, read by the card itself until [`Uplink::poll_sent`] names the frame. None is empty.
    pub segments: &'a [SharedSlice<'m>],
}

/// Names a frame that is on its way out. The switch chooses it; frames that are pieces of one share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkTag(pub u16);

/// A network card that is polled. The switch has it behind a lock: whichever core holds it works on
/// it. Nothing here waits.
///
/// It receives all frames, whatever their address and VLAN: the ports of the switch have addresses of
/// their own. Tags are left where they are, in both directions.
pub trait Uplink<'m>: Send {
    /// What the card is.
    fn info(&self) -> UplinkInfo;

    /// What [`Self::submit`] takes for sure: so many frames, of so many segments together, each of at
    /// most `max_segments`. With nothing in flight it is all that the card can ever take.
    fn room(&self) -> Room;

    /// Takes a frame to be sent. It may start at once or at the next [`Self::kick`]; exactly one
    /// [`Self::poll_sent`] answers with `tag` for each that was taken.
    ///
    /// # Errors
    /// [`Busy`]: it was not taken, for there is no room, or the card is being reset.
    fn submit(
        &mut self,
        tag: UplinkTag,
        frame: UplinkFrame<'_, 'm>,
        now: Ticks,
    ) -> Result<(), Busy>;

    /// Starts what was submitted: one doorbell for a batch.
    fn kick(&mut self);

    /// A frame whose memory the card does not read any more. Those that outlive the time-out end here
    /// as well, after the card was reset and so kept from their memory.
    fn poll_sent(&mut self, now: Ticks) -> Option<UplinkTag>;

    /// The oldest frame that the card has received and that was not given back yet, where the card has
    /// put it: in memory of the driver. Segments are not empty, `len` is their sum, and the places that
    /// `info` tells lie in the frame. What is shorter than an Ethernet header does not come up here.
    fn poll_received(&mut self, now: Ticks) -> Option<Frame<'_, 'm>>;

    /// The frame that [`Self::poll_received`] gave last is not needed any more: its memory is the
    /// card's again, at once or at the next [`Self::kick`].
    fn release_received(&mut self);

    /// [`Self::info`] has changed: the link, the MTU or the speed. Once for each time.
    fn take_change(&mut self) -> bool;

    /// Counters, for diagnosis: `visit` gets a name and a value for each.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let _ = visit;
    }
}
