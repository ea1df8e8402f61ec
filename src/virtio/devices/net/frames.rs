//! Frames on their way from the driver to the port, and back.

use super::Net;
use super::in_flight::InFlight;
use super::transmit::Refusal;
use super::wire::HEADER;
use crate::backend::clock::Ticks;
use crate::backend::net::{Frame, SendTag, Sent};
use crate::virtio::Direction;
use crate::virtio::device::{ActiveQueue, Context};
use crate::virtio::queue::{Chain, QueueError};

impl<'m> Net<'_, 'm> {
    /// Sends what is available of `pair`, until the queue is empty, the port has no room, or the limit
    /// is reached.
    #[inline]
    pub(super) fn transmit(&mut self, pair: u16, queue: &mut ActiveQueue<'_, 'm>, now: Ticks) {
        let mut kick = false;
        while let Some(Chain { head, mut readable, .. }) = queue.pop(&mut self.chain) {
            let info = match self.rules.judge(&mut readable) {
                Ok(info) => info,
                Err(refusal) => {
                    self.counters.bad_header += u64::from(refusal == Refusal::Header);
                    self.counters.bad_length += u64::from(refusal == Refusal::Length);
                    queue.complete(head, 0);
                    continue;
                }
            };
            let len = readable.remaining();
            let frame = Frame { info, segments: readable.into_segments(), len };
            let Some(tag) = self.transmitting.vacant() else {
                queue.put_back(head);
                break;
            };
            if !self.throttle.admit(Direction::Out, now) {
                // It is no leftover: nobody is to look for it before its time.
                self.parked |= 1 << pair;
                queue.park(head);
                break;
            }
            match self.port.send(pair, tag, frame, now) {
                Ok(Sent::Done) => queue.complete(head, 0),
                Ok(Sent::InFlight) => self.transmitting.insert(tag, InFlight { pair, head }),
                Err(_) => {
                    queue.put_back(head);
                    break;
                }
            }
            self.throttle.charge(Direction::Out, len as u32);
            self.counters.sent += 1;
            self.counters.sent_bytes += len as u64;
            kick = true;
        }
        if kick {
            self.port.kick();
            self.tick(now);
        }
    }

    /// Completes frames that hardware does not read any more.
    #[inline]
    pub(super) fn finish(&mut self, context: &mut Context<'_, 'm>) {
        let now = context.now();
        // As many as can be in flight: hardware that is done at once cannot hold us here.
        for _ in 0..self.transmitting.count() {
            let gone = self.transmitting.gone;
            let tag = if gone != 0 {
                SendTag(gone.trailing_zeros() as u16)
            } else if let Some(tag) = self.port.poll_sent(now) {
                tag
            } else {
                break;
            };
            if let Some(frame) = self.transmitting.remove(tag)
                && let Some(mut queue) = context.queue(2 * frame.pair + 1)
            {
                queue.complete(frame.head, 0);
            }
        }
    }

    /// Posts what buffers of `pair` are available, until the queue is empty or the port has enough.
    #[inline]
    pub(super) fn post(&mut self, pair: u16, queue: &mut ActiveQueue<'_, 'm>) {
        let Some(posted) = self.posted.get_mut(usize::from(pair)) else {
            return;
        };
        while !posted.is_full() {
            let Some(Chain { head, writable, .. }) = queue.pop_inline(&mut self.chain) else {
                return;
            };
            if writable.remaining() < HEADER {
                queue.fail(QueueError::NoRoomForStatus);
                return;
            }
            match self.port.post(pair, writable.into_segments()) {
                // There is room, as was just seen.
                Ok(()) => _ = posted.push_back(head),
                Err(_) => {
                    // There will be room when something is received, which the port tells.
                    queue.park(head);
                    return;
                }
            }
        }
    }

    /// Gives the driver what has been received, of all pairs. Whole frames: the port has them whole,
    /// and no more than were posted. `limited`: as far as the limit allows.
    #[inline]
    pub(super) fn receive(&mut self, limited: bool, context: &mut Context<'_, 'm>) {
        let now = context.now();
        for pair in 0..self.pairs() {
            let index = usize::from(pair);
            let (Some(posted), Some(held)) = (self.posted.get_mut(index), self.held.get_mut(index))
            else {
                return;
            };
            if posted.is_empty() {
                continue;
            }
            let Some(mut queue) = context.queue(2 * pair) else {
                continue;
            };
            let (mut frames, mut buffers, mut bytes) = (0, 0, 0);
            // What of a frame the driver has been given.
            let mut given = 0;
            let mut next = held.take();
            while let Some(received) = next.take().or_else(|| self.port.poll_received(pair)) {
                if limited && given == 0 && !self.throttle.admit(Direction::In, now) {
                    *held = Some(received);
                    break;
                }
                // There is one, as the port fills none that was not posted.
                let Some(head) = posted.pop_front() else { break };
                queue.complete(head, received.written);
                given += received.written;
                buffers += 1;
                if !received.continues {
                    self.throttle.charge(Direction::In, given.saturating_sub(HEADER as u32));
                    frames += 1;
                    bytes += u64::from(given);
                    given = 0;
                }
            }
            let some = buffers != 0;
            self.counters.received += frames;
            self.counters.received_buffers += buffers;
            self.counters.received_bytes += bytes;
            if some {
                self.post(pair, &mut queue);
            }
        }
    }
}
