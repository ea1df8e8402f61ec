//! What has been counted at a port.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Something that is counted at a port. "Sent" and "received" are the guest's view; at the
        /// uplink they are the card's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// All of them, with their names.
            pub const ALL: &'static [(Counter, &'static str)] = &[$((Counter::$name, $text),)*];
        }
    };
}

counters! {
    /// Frames that came in from this port and were not dropped.
    SentFrames = "sent frames",
    /// Their bytes.
    SentBytes = "sent bytes",
    /// Of them, frames that went to all because nobody knew where the station is.
    Flooded = "flooded",
    /// Of them, frames to groups or all.
    Multicast = "multicast",
    /// Addresses learned, or found to have come from another port.
    Learned = "learned",
    /// Frames delivered to this port.
    ReceivedFrames = "received frames",
    /// Their bytes.
    ReceivedBytes = "received bytes",
    /// Of them, frames that had to wait for a buffer.
    Waited = "waited for a buffer",
    /// Frames whose checksum was completed for this port.
    Checksums = "checksums completed",
    /// Frames that were cut for this port.
    Segmented = "segmented",
    /// Not sent: the source is a group, or belongs to another port.
    DropSpoofed = "dropped: source address",
    /// Not sent: no proper frame, or not as its header says.
    DropMalformed = "dropped: malformed",
    /// Not sent: a VLAN that the port is not in.
    DropVlan = "dropped: VLAN",
    /// Not sent or not received: the link is down.
    DropLinkDown = "dropped: link down",
    /// Not sent: it goes where it comes from, or nowhere (IEEE 802.1Q, 8.6.3).
    DropNowhere = "dropped: nowhere to go",
    /// Not received: the filter does not want it.
    DropFiltered = "dropped: filtered",
    /// Not received: larger than the MTU.
    DropTooLong = "dropped: too long",
    /// Not received: no buffer, and no room to wait.
    DropNoBuffer = "dropped: no buffer",
    /// Not received: larger than the buffer it would have gone to.
    DropSmallBuffer = "dropped: buffer too small",
    /// Not received: in too many pieces, or more than the card can ever take.
    DropUnfit = "dropped: too many pieces",
}

/// Values of all counters.
pub(super) struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }

    #[inline]
    pub(super) fn add(&self, counter: Counter, count: u64) {
        if let Some(place) = self.0.get(counter as usize) {
            place.fetch_add(count, Relaxed);
        }
    }

    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).map_or(0, |place| place.load(Relaxed))
    }

    pub(super) fn visit(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        for &(counter, name) in Counter::ALL {
            visit(name, self.get(counter));
        }
    }
}
