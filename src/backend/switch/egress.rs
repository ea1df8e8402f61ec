//! The side of the switch that is towards the uplink.

use super::MAX_PORTS;
use super::checksum::Completed;
use super::counters::{Counter, Counters};
use super::gather::{Gather, Outgoing};
use super::segment::{Headers, Segments};
use super::uplink::{Uplink, UplinkFrame, UplinkInfo, UplinkTag};
use crate::backend::clock::Ticks;
use crate::backend::net::{Busy, Checksum, FrameInfo, Offloads, SendTag, Sent};
use crate::memory::SharedSlice;

/// Frames of all ports that the uplink may have at a time.
const FLIGHTS: usize = 256;
/// Segments of a frame towards the card.
const MAX_PIECES: usize = 64;

/// A guest's frame that the card has, in one frame or more.
#[derive(Clone, Copy)]
struct Flight {
    port: u8,
    tag: SendTag,
    /// Frames of it that the card still has.
    left: u16,
}

/// The uplink, if there is one, and what it has been given.
pub(super) struct Egress<'m> {
    pub(super) card: Option<&'m mut (dyn Uplink<'m> + 'm)>,
    pub(super) info: Option<UplinkInfo>,
    flights: [Flight; FLIGHTS],
    free: heapless::Vec<u16, FLIGHTS>,
    /// Ports that have found no room, a bit each.
    pub(super) waiting: u32,
}

// A bit of `waiting` for each port.
const _: () = assert!(MAX_PORTS <= 32);

/// A frame that a port has for the card.
pub(super) struct Job<'a, 'm> {
    pub(super) port: u8,
    pub(super) tag: SendTag,
    pub(super) info: FrameInfo,
    pub(super) frame: Outgoing<'a, 'm>,
    /// Those of a frame that may have to be cut.
    pub(super) headers: Option<&'a Headers>,
}

/// How the card gets a frame.
enum Plan<'a> {
    AsIs,
    Complete { start: u16, offset: u16 },
    Cut { headers: &'a Headers, complete: bool },
}

/// What the card has to take for a frame with this to go as it is.
pub(super) fn needs(info: &FrameInfo) -> Offloads {
    use crate::backend::net::Segmentation::{TcpV4, TcpV6, Udp};
    let mut needs = match info.checksum {
        Checksum::Partial { .. } => Offloads::CSUM,
        Checksum::Unknown | Checksum::Valid => Offloads::empty(),
    };
    if let Some(gso) = info.gso {
        needs |= match gso.kind {
            TcpV4 => Offloads::TSO4,
            TcpV6 => Offloads::TSO6,
            Udp => Offloads::USO,
        };
        if gso.ecn {
            needs |= Offloads::ECN;
        }
    }
    needs
}

impl<'m> Egress<'m> {
    /// Without an uplink.
    pub(super) const fn new() -> Self {
        let none = Flight { port: 0, tag: SendTag(0), left: 0 };
        Self {
            card: None,
            info: None,
            flights: [none; FLIGHTS],
            free: heapless::Vec::new(),
            waiting: 0,
        }
    }

    /// Connects a card.
    pub(super) fn connect(&mut self, card: &'m mut (dyn Uplink<'m> + 'm)) {
        self.info = Some(card.info());
        self.card = Some(card);
        self.free.clear();
        for index in 0..FLIGHTS as u16 {
            // There is room for all of them.
            let _ = self.free.push(index);
        }
    }

    /// Gives a frame of `port` to the card. What cannot be sent at all is dropped and counted.
    ///
    /// # Errors
    /// [`Busy`]: nothing was done, and the port is woken when it is worth another try.
    pub(super) fn transmit(
        &mut self,
        job: &Job<'_, 'm>,
        counters: &Counters,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        let Some(is) = self.info else { return Ok(Sent::Done) };
        let missing = !needs(&job.info).difference(is.takes).is_empty();
        let plan = match (job.info.checksum, job.headers) {
            (_, Some(headers)) if missing => {
                // The checksums of the segments may be left to the card.
                Plan::Cut { headers, complete: !is.takes.contains(Offloads::CSUM) }
            }
            (Checksum::Partial { start, offset }, None) if missing => {
                Plan::Complete { start, offset }
            }
            _ => Plan::AsIs,
        };
        let result = self.fly(job, plan, is.max_segments, counters, now);
        if result.is_err() {
            self.waiting |= 1 << job.port;
        }
        result
    }

    fn fly(
        &mut self,
        job: &Job<'_, 'm>,
        plan: Plan<'_>,
        max_segments: u16,
        counters: &Counters,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        let &Job { port, tag, mut info, frame, .. } = job;
        let Some(card) = self.card.as_deref_mut() else { return Ok(Sent::Done) };
        let index = self.free.last().copied().ok_or(Busy)?;
        let Some(flight) = self.flights.get_mut(usize::from(index)) else { return Err(Busy) };
        let max_segments = usize::from(max_segments).min(MAX_PIECES);
        let name = UplinkTag(index);
        if info.checksum == Checksum::Valid {
            info.checksum = Checksum::Unknown;
        }
        let mut left = 0;
        match plan {
            Plan::AsIs => {
                match frame.body.whole().filter(|all| all.len() <= max_segments) {
                    Some(segments) => {
                        card.submit(name, UplinkFrame { info, header: frame.head, segments }, now)?;
                    }
                    None if frame.body.pieces() > max_segments => {
                        counters.add(Counter::DropUnfit, 1);
                        return Ok(Sent::Done);
                    }
                    None => submit(card, name, info, frame, now)?,
                }
                left = 1;
            }
            Plan::Complete { start, offset } => {
                let completed = Completed::new(&frame, start, offset);
                let Some(whole) = completed.as_ref().and_then(|it| it.outgoing(&frame)) else {
                    counters.add(Counter::DropMalformed, 1);
                    return Ok(Sent::Done);
                };
                if whole.body.pieces() > max_segments {
                    counters.add(Counter::DropUnfit, 1);
                    return Ok(Sent::Done);
                }
                submit(card, name, FrameInfo::PLAIN, whole, now)?;
                counters.add(Counter::Checksums, 1);
                left = 1;
            }
            Plan::Cut { headers, complete } => {
                let room = card.room();
                let frames = headers.segments(&frame);
                // A segment has at most a piece more than borders of segments it lies across.
                let pieces = frame.body.pieces() + frames;
                if frames > room.frames || pieces > room.segments {
                    if self.free.len() == FLIGHTS {
                        // The card has nothing: there will never be more room.
                        counters.add(Counter::DropUnfit, 1);
                        return Ok(Sent::Done);
                    }
                    return Err(Busy);
                }
                let Some(mut segments) = Segments::new(*headers, &frame, complete) else {
                    counters.add(Counter::DropMalformed, 1);
                    return Ok(Sent::Done);
                };
                while let Some((info, segment)) = segments.next() {
                    // There is room, as was asked. What is in too many pieces is lost, as on a wire.
                    if segment.body.pieces() > max_segments
                        || submit(card, name, info, segment, now).is_err()
                    {
                        counters.add(Counter::DropUnfit, 1);
                    } else {
                        left += 1;
                    }
                }
                counters.add(Counter::Segmented, 1);
            }
        }
        if left == 0 {
            return Ok(Sent::Done);
        }
        *flight = Flight { port, tag, left };
        self.free.pop();
        counters.add(Counter::ReceivedFrames, u64::from(left));
        counters.add(Counter::ReceivedBytes, frame.len() as u64);
        Ok(Sent::InFlight)
    }

    /// A guest's frame that the card has sent, all of it: its port and its tag.
    pub(super) fn poll_sent(&mut self, now: Ticks) -> Option<(usize, SendTag)> {
        let card = self.card.as_deref_mut()?;
        loop {
            // Ends: the card has a bounded number of frames, and none is submitted here.
            let UplinkTag(index) = card.poll_sent(now)?;
            let Some(flight) = self.flights.get_mut(usize::from(index)) else { continue };
            if flight.left == 0 {
                continue;
            }
            flight.left -= 1;
            if flight.left == 0 {
                let _ = self.free.push(index);
                return Some((usize::from(flight.port), flight.tag));
            }
        }
    }
}

/// Submits a frame whose body is part of a list of segments, of at most [`MAX_PIECES`].
fn submit<'m>(
    card: &mut (dyn Uplink<'m> + 'm),
    tag: UplinkTag,
    info: FrameInfo,
    frame: Outgoing<'_, 'm>,
    now: Ticks,
) -> Result<(), Busy> {
    let segments = list(frame.body);
    card.submit(tag, UplinkFrame { info, header: frame.head, segments: &segments }, now)
}

fn list<'m>(mut body: Gather<'_, 'm>) -> heapless::Vec<SharedSlice<'m>, MAX_PIECES> {
    let mut segments = heapless::Vec::new();
    while let Some(piece) = body.next(usize::MAX) {
        if segments.push(piece).is_err() {
            break;
        }
    }
    segments
}
