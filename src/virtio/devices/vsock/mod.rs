//! Socket device (5.10) over a [`Port`] of the fabric between guests.
//!
//! Packets are judged here and carried there: a packet to be sent goes from the chain that it is in
//! straight to buffers of its receiver; buffers to receive into are posted to the port, which fills them
//! from any core, and are given to the driver when this device is polled. The first packet that its receiver
//! has no buffer for stays in the ring with all behind it, until there is one or the fabric gives up.
//!
//! What is no packet of this guest's is dropped: nobody could be told. What is its own, but is not
//! understood, not allowed or for nobody, is answered with VIRTIO_VSOCK_OP_RST.

use crate::backend::clock::{Frequency, Ticks};
use crate::backend::vsock::{HEADER, HOST_CID, Header, Kinds, Port, Sent, op};
use crate::virtio::device::{ActivateError, ActiveQueue, Context, DeviceType, NextPoll, Progress};
use crate::virtio::limiter::{Limits, Throttle};
use crate::virtio::queue::{Chain, ChainBuffer, Head, QueueError};
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::{Adjustment, Direction, Features, NotAdjusted, VirtioDevice};

/// VIRTIO_VSOCK_F_STREAM: there are stream sockets.
pub const STREAM: Features = Features::from_bits_retain(1 << 0);
/// VIRTIO_VSOCK_F_SEQPACKET: there are sockets for messages.
pub const SEQPACKET: Features = Features::from_bits_retain(1 << 1);
/// VIRTIO_VSOCK_F_NO_IMPLIED_STREAM: no stream sockets without STREAM.
pub const NO_IMPLIED_STREAM: Features = Features::from_bits_retain(1 << 2);

/// Largest size of the queues for packets.
pub const QUEUE_SIZE: u16 = 256;
/// And of that for events.
const EVENTS: u16 = 8;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// What [`VirtioDevice::statistics`] tells, besides the port's own.
#[derive(Default)]
struct Counters {
    sent: u64,
    sent_bytes: u64,
    malformed: u64,
    foreign: u64,
    refused: u64,
    waits: u64,
    events: u64,
}

/// What packets are sent by.
struct Sender<'d, 'm> {
    port: Port<'d, 'm>,
    /// Types of sockets that the driver has.
    kinds: Kinds,
    /// Bytes of the first packet to be sent that have been.
    done: u32,
    /// When the fabric gives the first packet up.
    deadline: Option<Ticks>,
    throttle: Throttle,
    counters: Counters,
}

/// A socket device.
pub struct Vsock<'d, 'm> {
    sender: Sender<'d, 'm>,
    /// The buffers that are posted, oldest first.
    posted: heapless::Deque<Head, { QUEUE_SIZE as usize }>,
    /// The first packet to be sent waits, for a buffer or for the limit.
    parked: bool,
    /// While a packet waits, there is something in the rings that does not.
    busy: bool,
    /// A command waits to be carried out, by whoever polls.
    asked: bool,
    chain: ChainBuffer<'m>,
    live: bool,
}

/// What is to be done with a chain.
enum Fate {
    /// It is done with.
    Over,
    /// It stays, for the next poll.
    Later,
    /// It stays, until there is news.
    Waits,
}

impl<'m> Sender<'_, 'm> {
    /// Sends a packet, or answers it.
    #[inline]
    fn send(&mut self, chain: &mut Chain<'_, 'm>, now: Ticks) -> Fate {
        let packet = &mut chain.readable;
        let Some(header) = packet.read_object::<Header>() else {
            self.counters.malformed += 1;
            return Fate::Over;
        };
        if header.src_cid.get() != u64::from(self.port.cid()) {
            self.counters.foreign += 1;
            return Fate::Over;
        }
        let len = header.len.get();
        if !is_sound(&header, packet.remaining()) || !self.kinds.has(&header) {
            return self.refuse(&header);
        }
        if header.dst_cid.get() == HOST_CID.into() {
            let mut read = |to: &mut [u8]| _ = packet.read_bytes(to);
            if !self.port.send_to_host(&header, &mut read) {
                return self.refuse(&header);
            }
            self.counters.sent += 1;
            self.counters.sent_bytes += u64::from(len);
            return Fate::Over;
        }
        // The driver may have made it shorter since.
        if self.done != 0 && packet.skip(self.done as usize).is_none() {
            return self.refuse(&header);
        }
        if self.done == 0 && !self.throttle.admit(Direction::Out, now) {
            return Fate::Waits;
        }
        // As much as is asked for is there.
        let mut fill = |place| _ = packet.copy_to(&place);
        match self.port.send(&header, self.done, &mut fill, now) {
            Sent::Done => {
                self.throttle.charge(Direction::Out, len);
                self.counters.sent += 1;
                self.counters.sent_bytes += u64::from(len);
                Fate::Over
            }
            Sent::Part(done) => {
                self.done = done;
                Fate::Later
            }
            Sent::Wait(done, until) => {
                (self.done, self.deadline) = (done, Some(until));
                Fate::Waits
            }
            Sent::Refused => self.refuse(&header),
        }
    }

    /// Answers a packet that is not brought.
    #[cold]
    fn refuse(&mut self, header: &Header) -> Fate {
        if self.port.refuse(header).is_err() {
            // Until the driver posts a buffer.
            return Fate::Waits;
        }
        self.counters.refused += 1;
        Fate::Over
    }
}

impl<'d, 'm> Vsock<'d, 'm> {
    /// A socket device at `port`, which must be closed.
    #[inline]
    pub fn new(port: Port<'d, 'm>) -> Self {
        Self {
            sender: Sender {
                port,
                kinds: Kinds::empty(),
                done: 0,
                deadline: None,
                throttle: Throttle::UNLIMITED,
                counters: Counters::default(),
            },
            posted: heapless::Deque::new(),
            parked: false,
            busy: false,
            asked: false,
            chain: ChainBuffer::new(),
            live: false,
        }
    }

    /// The driver can use the device.
    fn open(&mut self, accepted: Features) {
        self.sender.kinds = kinds(accepted);
        self.sender.port.open(self.sender.kinds);
        self.live = true;
    }

    /// Sends what is available, as far as there is room for it.
    fn transmit(&mut self, context: &mut Context<'_, 'm>) {
        let now = context.now();
        (self.parked, self.sender.deadline) = (false, None);
        self.sender.throttle.unpark();
        let Some(mut queue) = context.queue(TRANSMIT) else { return };
        while let Some(mut chain) = queue.pop(&mut self.chain) {
            match self.sender.send(&mut chain, now) {
                Fate::Over => {
                    self.sender.done = 0;
                    complete(&mut queue, chain.head, 0);
                    continue;
                }
                Fate::Later => leave(&mut queue, chain.head, true),
                Fate::Waits => {
                    self.parked = true;
                    self.sender.counters.waits += 1;
                    leave(&mut queue, chain.head, false);
                }
            }
            break;
        }
        self.sender.port.kick();
    }

    /// Posts what buffers are available, until the queue is empty or the port has enough.
    fn post(&mut self, queue: &mut ActiveQueue<'_, 'm>) {
        while !self.posted.is_full()
            && let Some(Chain { head, writable, .. }) = queue.pop(&mut self.chain)
        {
            if writable.remaining() < HEADER {
                queue.fail(QueueError::NoRoomForStatus);
                break;
            }
            if self.sender.port.post(writable.into_segments()).is_err() {
                // There will be room when something is received, which the port tells.
                leave(queue, head, false);
                break;
            }
            // There is room, as was just seen.
            let _ = self.posted.push_back(head);
        }
    }

    /// Gives the driver what has been received, and takes new buffers.
    fn receive(&mut self, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(RECEIVE) else { return };
        let mut some = false;
        while let Some(written) = self.sender.port.poll_received() {
            let Some(head) = self.posted.pop_front() else { break };
            complete(&mut queue, head, written);
            some = true;
        }
        if some {
            self.post(&mut queue);
        }
    }

    /// Tells the driver that its connections are gone.
    fn tell(&mut self, context: &mut Context<'_, 'm>) {
        if !self.sender.port.has_lost_connections() {
            return;
        }
        if let Some(mut queue) = context.queue(EVENT)
            && let Some(Chain { head, mut writable, .. }) = queue.pop(&mut self.chain)
        {
            if writable.write_bytes(&TRANSPORT_RESET).is_none() {
                queue.fail(QueueError::NoRoomForStatus);
                return;
            }
            complete(&mut queue, head, TRANSPORT_RESET.len() as u32);
            self.sender.counters.events += 1;
            self.sender.port.told_of_loss();
        }
    }

    /// While a packet waits: finds out whether there is more to do than that.
    fn finish(&mut self, context: &mut Context<'_, 'm>) {
        self.sender.port.kick();
        self.busy = self.parked
            && [RECEIVE, TRANSMIT, EVENT]
                .into_iter()
                .any(|index| context.queue(index).is_some_and(|queue| queue.has_leftover()));
    }

    fn forget(&mut self) {
        self.posted.clear();
        (self.sender.done, self.parked, self.sender.deadline) = (0, false, None);
        self.sender.throttle.reset();
        (self.busy, self.asked) = (false, false);
        self.live = false;
    }
}

/// As [`ActiveQueue::complete`], once: both kinds of ring are in it.
#[inline(never)]
fn complete(queue: &mut ActiveQueue<'_, '_>, head: Head, written: u32) {
    queue.complete(head, written);
}

/// Leaves a chain in its queue, for news or, if it `is_leftover`, for the next poll.
#[inline(never)]
fn leave(queue: &mut ActiveQueue<'_, '_>, head: Head, is_leftover: bool) {
    if is_leftover { queue.put_back(head) } else { queue.park(head) }
}

/// Whether a packet with this header and so many bytes behind it is one at all.
#[inline]
fn is_sound(header: &Header, there: usize) -> bool {
    let len = header.len.get();
    match header.op.get() {
        op::RW => len as usize <= there,
        op::REQUEST..=op::CREDIT_REQUEST => len == 0,
        _ => false,
    }
}

/// The types of sockets that a driver has which accepted these features.
fn kinds(accepted: Features) -> Kinds {
    let mut kinds = Kinds::empty();
    let implied = !accepted.contains(NO_IMPLIED_STREAM);
    kinds.set(Kinds::STREAM, implied || accepted.contains(STREAM));
    kinds.set(Kinds::SEQPACKET, accepted.contains(SEQPACKET));
    kinds
}

impl<'m> VirtioDevice<'m> for Vsock<'_, 'm> {
    fn device_type(&self) -> DeviceType {
        DeviceType::SOCKET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, EVENTS]
    }

    fn offered_features(&self) -> Features {
        STREAM | SEQPACKET | NO_IMPLIED_STREAM
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = u64::from(self.sender.port.cid()).to_le_bytes();
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset + at).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, accepted: Features) -> Result<(), ActivateError> {
        self.open(accepted);
        Ok(())
    }

    fn queue_enabled(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        self.queue_notified(index, context);
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        match index {
            RECEIVE => {
                if let Some(mut queue) = context.queue(RECEIVE) {
                    self.post(&mut queue);
                }
                // An answer may have waited for a buffer.
                if self.parked {
                    self.transmit(context);
                }
            }
            TRANSMIT => self.transmit(context),
            _ => self.tell(context),
        }
        self.asked = self.sender.port.attend();
        // The driver has left the guest for us: what has come meanwhile goes back with it.
        self.receive(context);
        self.finish(context);
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        self.tell(context);
        self.asked = self.sender.port.attend();
        self.receive(context);
        let left = |context: &mut Context<'_, 'm>, index| {
            context.queue(index).is_some_and(|queue| queue.has_leftover())
        };
        if left(context, RECEIVE)
            && let Some(mut queue) = context.queue(RECEIVE)
        {
            self.post(&mut queue);
        }
        if self.parked || left(context, TRANSMIT) {
            self.transmit(context);
        }
        self.finish(context);
    }

    fn next_poll(&self) -> NextPoll {
        let first =
            [self.sender.deadline, self.sender.throttle.parked()].into_iter().flatten().min();
        match first {
            _ if !self.live => NextPoll::Idle,
            _ if self.asked => NextPoll::Soon,
            Some(time) if self.parked && !self.busy => NextPoll::At(time),
            _ => NextPoll::OnEvent,
        }
    }

    fn adjust(
        &mut self,
        change: Adjustment,
        frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        let Adjustment::Limit(Direction::Out, limits) = change else {
            return Err(NotAdjusted::Unsupported);
        };
        self.sender.throttle.set(Direction::Out, limits, frequency, context.now());
        // What waited for the old limit goes by the new one.
        self.poll(context);
        Ok(())
    }

    fn limits(&self, direction: Direction) -> Limits {
        self.sender.throttle.limits(direction)
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        self.sender.port.close();
        self.forget();
        Progress::Done
    }

    fn reset_queue(&mut self, index: u16, _now: Ticks) -> Progress {
        match index {
            RECEIVE => {
                self.sender.port.withdraw();
                self.posted.clear();
            }
            TRANSMIT => (self.sender.done, self.parked, self.sender.deadline) = (0, false, None),
            _ => (),
        }
        Progress::Done
    }

    /// Bytes without headers; what the fabric took, and what it brought.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.sender.counters;
        let [received, received_bytes] = self.sender.port.received();
        visit("tx_packets", counters.sent);
        visit("tx_bytes", counters.sent_bytes);
        visit("rx_packets", received);
        visit("rx_bytes", received_bytes);
        visit("dropped: malformed", counters.malformed);
        visit("dropped: source CID", counters.foreign);
        visit("refused", counters.refused);
        visit("waits", counters.waits);
        visit("events", counters.events);
    }

    fn put_back_waiting(&mut self, context: &mut Context<'_, 'm>) {
        self.receive(context);
        let Some(mut queue) = context.queue(RECEIVE) else { return };
        self.sender.port.withdraw();
        while let Some(head) = self.posted.pop_back() {
            leave(&mut queue, head, true);
        }
    }

    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        state.write_object(&u32::to_le_bytes(self.sender.port.cid()))?;
        state.write_bytes(&[self.live.into()])
    }

    /// Peers have lost it, wherever it was: its connections are reset on both sides.
    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        let cid = state.read_object::<[u8; 4]>()?;
        let [live] = state.read_object::<[u8; 1]>()?;
        if live > 1 || u32::from_le_bytes(cid) != self.sender.port.cid() {
            return Err(StateError::Invalid);
        }
        if live == 1 {
            self.open(accepted);
            self.sender.port.lose_connections();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
