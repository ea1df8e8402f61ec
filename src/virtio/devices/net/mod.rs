//! Network device (5.1) over a [`NetBackend`]: a port of a network.
//!
//! - `wire`: the structures and numbers of section 5.1.
//! - `transmit`: what the header of a frame to be sent says, judged completely before any effect.
//! - `control`: what the driver asks for on the control queue.
//! - `frames`: frames on their way to the port, and from it; `in_flight`: those that hardware reads.
//! - this file: the device as its driver sees it.
//!
//! Frames are not touched here. Those to be sent go to the port as the segments they are in; buffers
//! to receive into are posted to the port, which fills them from any core, and are given to the
//! driver when this device is polled. A port without room leaves the rest in the rings; a limit that is
//! reached leaves frames to be sent there, and those received at the port, which drops what it has no
//! room for.
//!
//! # Queues (5.1.2)
//! Receive and transmit queues alternate, in pairs. The control queue follows the last pair that
//! there can be: the first, unless VIRTIO_NET_F_MQ was accepted.

mod control;
mod frames;
mod in_flight;
mod transmit;
mod wire;

use crate::backend::clock::{Clock, Frequency, Ticks};
use crate::backend::net::{MAX_PAIRS, NetBackend, NetInfo, Received};
use crate::virtio::device::{ActivateError, Context, DeviceType, NextPoll, Progress};
use crate::virtio::limiter::{Limits, Throttle};
use crate::virtio::queue::{Chain, ChainBuffer, Head, QueueError};
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::{Adjustment, Direction, Features, NotAdjusted, VirtioDevice};
use control::{Change, Command, Control};
pub use in_flight::IN_FLIGHT;
use in_flight::Transmitting;
use transmit::Rules;
use wire::{Ack, HEADER};
pub use wire::{
    CSUM, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ,
    GUEST_ANNOUNCE, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6,
    HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO, MAC, MQ, MRG_RXBUF, MTU, SPEED_DUPLEX, STATUS,
};

/// Largest size of every queue.
pub const QUEUE_SIZE: u16 = 256;

/// Receive and transmit queues, and the control queue.
const MAX_QUEUES: usize = 2 * MAX_PAIRS + 1;

/// Whether there are ports that do something by themselves: the metadata service, which is optional.
const PORTS_TICK: bool = cfg!(any(test, feature = "metadata"));

/// Which queue is meant by an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
    /// Nobody's, without VIRTIO_NET_F_MQ.
    None,
}

/// What [`VirtioDevice::statistics`] tells, besides the port's own.
#[derive(Default)]
struct Counters {
    sent: u64,
    sent_bytes: u64,
    bad_header: u64,
    bad_length: u64,
    received: u64,
    received_buffers: u64,
    received_bytes: u64,
    commands: u64,
    commands_refused: u64,
}

/// A network device.
pub struct Net<'d, 'm> {
    port: &'d mut (dyn NetBackend<'m> + 'd),
    /// What the driver is told of the port.
    info: NetInfo,
    /// What the driver has accepted.
    features: Features,
    rules: Rules,
    control: Control,
    /// By pair, the buffers that are posted, oldest first.
    posted: [heapless::Deque<Head, { QUEUE_SIZE as usize }>; MAX_PAIRS],
    /// By pair, a buffer that is filled and that the limit keeps from the driver.
    held: [Option<Received>; MAX_PAIRS],
    transmitting: Transmitting,
    throttle: Throttle,
    /// Pairs with frames to be sent that the limit keeps in the ring: a bit each.
    parked: u8,
    /// There is something in the rings to be done at once, besides what waits for its time.
    busy: bool,
    /// When the port has something to do by itself.
    due: Option<Ticks>,
    chain: ChainBuffer<'m>,
    live: bool,
    /// The driver is to look at configuration space.
    changed: bool,
    counters: Counters,
}

impl<'d, 'm> Net<'d, 'm> {
    /// A network device at `port`, which must be closed.
    pub fn new(port: &'d mut (dyn NetBackend<'m> + 'd)) -> Self {
        let info = sound(port.info());
        Self {
            port,
            info,
            features: Features::empty(),
            rules: Rules::new(Features::empty(), info.mtu),
            control: Control::new(Features::empty(), &info),
            posted: [const { heapless::Deque::new() }; MAX_PAIRS],
            held: [None; _],
            transmitting: Transmitting::NONE,
            throttle: Throttle::UNLIMITED,
            parked: 0,
            busy: false,
            due: None,
            chain: ChainBuffer::new(),
            live: false,
            changed: false,
            counters: Counters::default(),
        }
    }

    /// Asks the driver to tell the network where it is, if it can (5.1.6.5.4): after the device, or
    /// what its port is connected to, has moved.
    pub fn announce(&mut self) {
        if self.features.contains(GUEST_ANNOUNCE) {
            self.control.ask_to_announce();
            self.changed = true;
        }
    }

    /// Holds the device to `limits` in a direction.
    pub fn limit_rate(&mut self, to: Direction, limits: Limits, clock: &impl Clock) {
        self.throttle.set(to, limits, clock.frequency(), clock.now());
    }

    /// Pairs of queues that there are for the driver.
    fn pairs(&self) -> u16 {
        if self.features.contains(MQ) { self.info.pairs } else { 1 }
    }

    /// What queue `index` is for.
    #[inline]
    fn role(&self, index: u16) -> Role {
        let pair = index / 2;
        if pair < self.pairs() {
            if index & 1 == 0 { Role::Receive(pair) } else { Role::Transmit(pair) }
        } else if index == 2 * self.pairs() && self.features.contains(CTRL_VQ) {
            Role::Control
        } else {
            Role::None
        }
    }

    /// The driver has accepted `features`, or none yet.
    fn begin(&mut self, features: Features) {
        self.features = features;
        self.rules = Rules::new(features, self.info.mtu);
        self.control = Control::new(features, &self.info);
    }

    /// Has the port know how and what the driver wants to receive.
    fn open(&mut self) {
        self.port.open(self.control.reception());
        self.port.set_filter(&self.control.filter());
    }

    /// Has the port do what is due of its own, if this image has ports that do such things.
    #[inline]
    fn tick(&mut self, now: Ticks) {
        if PORTS_TICK {
            self.due = self.port.tick(now);
        }
    }

    /// Carries out what is on the control queue.
    fn control(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        // One at a time, as they may need the other queues.
        while let Some(mut queue) = context.queue(index)
            && let Some(chain) = queue.pop(&mut self.chain)
        {
            let Chain { head, mut readable, mut writable } = chain;
            if writable.remaining() == 0 {
                queue.fail(QueueError::NoRoomForStatus);
                return;
            }
            let command = Command::parse(&mut readable, self.features, &self.info);
            let ack = if command.is_some() { Ack::Ok } else { Ack::Error };
            // There is room for it, as was just seen.
            let _ = writable.write_bytes(&[ack as u8]);
            self.counters.commands += 1;
            match command.map(|command| self.control.carry_out(command)) {
                Some(Change::Filter) => self.port.set_filter(&self.control.filter()),
                Some(Change::Address) => {
                    self.port.set_filter(&self.control.filter());
                    context.config_changed();
                }
                Some(Change::Reception) => {
                    self.open();
                    // What came the old way is there before the answer is.
                    self.receive(false, context);
                }
                Some(Change::Config) => context.config_changed(),
                None => self.counters.commands_refused += 1,
            }
            if let Some(mut queue) = context.queue(index) {
                queue.complete(head, 1);
            }
        }
    }

    /// When the port has something to do by itself.
    #[inline]
    fn due(&self) -> Option<Ticks> {
        if PORTS_TICK { self.due } else { None }
    }

    /// Tells the driver of changes of the port.
    fn look_at_port(&mut self, context: &mut Context<'_, 'm>) {
        if self.port.take_change() {
            let new = sound(self.port.info());
            let came_up = new.link_up && !self.info.link_up;
            // What a driver has seen stays while the link is up (5.1.4.1).
            if came_up || !new.link_up {
                self.info.speed = new.speed;
            }
            self.changed |= self.info.link_up != new.link_up;
            self.info.link_up = new.link_up;
            if came_up {
                // It may be another network than before.
                self.announce();
            }
        }
        if core::mem::take(&mut self.changed) {
            context.config_changed();
        }
    }

    /// While there is something to be done in its time: finds out whether there is more to do than that.
    #[inline]
    fn look_for_leftovers(&mut self, context: &mut Context<'_, 'm>) {
        if self.throttle.parked().is_some() || self.due().is_some() {
            self.search_leftovers(context);
        }
    }

    #[cold]
    #[inline(never)]
    fn search_leftovers(&mut self, context: &mut Context<'_, 'm>) {
        self.busy = (0..MAX_QUEUES as u16)
            .any(|index| context.queue(index).is_some_and(|queue| queue.has_leftover()));
    }

    /// Nothing of what the driver wants is known, nor of what it sent.
    fn forget(&mut self) {
        for posted in &mut self.posted {
            posted.clear();
        }
        self.held = [None; _];
        self.transmitting = Transmitting::NONE;
        self.throttle.reset();
        self.parked = 0;
        self.due = None;
        self.live = false;
        self.changed = false;
        self.info = sound(self.port.info());
        self.begin(Features::empty());
    }
}

/// What a port says, within the bounds that it is to keep.
fn sound(mut info: NetInfo) -> NetInfo {
    info.pairs = info.pairs.clamp(1, MAX_PAIRS as u16);
    info
}

impl<'m> VirtioDevice<'m> for Net<'_, 'm> {
    fn device_type(&self) -> DeviceType {
        DeviceType::NETWORK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        const SIZES: [u16; MAX_QUEUES] = [QUEUE_SIZE; MAX_QUEUES];
        let queues = 2 * usize::from(self.info.pairs) + 1;
        SIZES.get(..queues).unwrap_or(&SIZES)
    }

    fn offered_features(&self) -> Features {
        wire::features(&self.info)
    }

    fn check_features(&self, accepted: Features) -> bool {
        wire::is_complete(accepted)
    }

    fn negotiated(&mut self, accepted: Features) {
        self.begin(accepted);
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = wire::config(&self.info, self.control.mac(), self.control.announce());
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset + at).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, _accepted: Features) -> Result<(), ActivateError> {
        self.live = true;
        self.open();
        Ok(())
    }

    fn queue_enabled(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        self.queue_notified(index, context);
        self.look_at_port(context);
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        match self.role(index) {
            Role::Receive(pair) => {
                if let Some(mut queue) = context.queue(index) {
                    self.post(pair, &mut queue);
                }
            }
            Role::Transmit(pair) => {
                let now = context.now();
                if let Some(mut queue) = context.queue(index) {
                    self.transmit(pair, &mut queue, now);
                }
                // The driver has left the guest for us: what has come meanwhile goes back with it.
                self.receive(true, context);
            }
            Role::Control => self.control(index, context),
            Role::None => (),
        }
        self.look_for_leftovers(context);
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        self.tick(context.now());
        self.look_at_port(context);
        self.finish(context);
        self.throttle.unpark();
        let parked = core::mem::take(&mut self.parked);
        for index in 0..MAX_QUEUES as u16 {
            let waits = index & 1 != 0 && parked >> (index / 2) & 1 != 0;
            if waits || context.queue(index).is_some_and(|queue| queue.has_leftover()) {
                self.queue_notified(index, context);
            }
        }
        self.receive(true, context);
        self.look_for_leftovers(context);
    }

    fn in_flight(&self) -> usize {
        self.transmitting.count() as usize
    }

    fn next_poll(&self) -> NextPoll {
        if self.transmitting.count() != 0 {
            NextPoll::Soon
        } else if !self.live {
            NextPoll::Idle
        } else {
            match (self.throttle.parked(), self.due()) {
                _ if self.busy => NextPoll::OnEvent,
                (Some(first), Some(second)) => NextPoll::At(first.min(second)),
                (Some(time), None) | (None, Some(time)) => NextPoll::At(time),
                (None, None) => NextPoll::OnEvent,
            }
        }
    }

    fn adjust(
        &mut self,
        change: Adjustment,
        frequency: Frequency,
        context: &mut Context<'_, 'm>,
    ) -> Result<(), NotAdjusted> {
        match change {
            Adjustment::Limit(direction, limits) => {
                self.throttle.set(direction, limits, frequency, context.now());
                // What waited for the old limit goes by the new one.
                self.poll(context);
            }
            Adjustment::Link(up) => {
                if !self.port.set_link(up) {
                    return Err(NotAdjusted::Unsupported);
                }
                self.look_at_port(context);
            }
            _ => return Err(NotAdjusted::Unsupported),
        }
        Ok(())
    }

    fn limits(&self, direction: Direction) -> Limits {
        self.throttle.limits(direction)
    }

    fn reset(&mut self, now: Ticks) -> Progress {
        if !self.port.close(now) {
            return Progress::Pending;
        }
        self.forget();
        Progress::Done
    }

    fn reset_queue(&mut self, index: u16, now: Ticks) -> Progress {
        match self.role(index) {
            Role::Receive(pair) => {
                self.port.withdraw(pair);
                if let Some(held) = self.held.get_mut(usize::from(pair)) {
                    *held = None;
                }
                if let Some(posted) = self.posted.get_mut(usize::from(pair)) {
                    posted.clear();
                }
            }
            Role::Transmit(pair) => {
                // What was sent may still wait for the doorbell, and would never come back.
                self.port.kick();
                for _ in 0..IN_FLIGHT {
                    let Some(tag) = self.port.poll_sent(now) else {
                        break;
                    };
                    self.transmitting.note(tag, pair);
                }
                if self.transmitting.has(pair) {
                    return Progress::Pending;
                }
            }
            Role::Control | Role::None => (),
        }
        Progress::Done
    }

    /// Frames and bytes from the Ethernet header on; what the port took, and what it brought.
    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.counters;
        visit("tx_frames", counters.sent);
        visit("tx_bytes", counters.sent_bytes);
        visit("tx_bad_header", counters.bad_header);
        visit("tx_bad_length", counters.bad_length);
        visit("rx_frames", counters.received);
        visit("rx_buffers", counters.received_buffers);
        let headers = counters.received.wrapping_mul(HEADER as u64);
        visit("rx_bytes", counters.received_bytes.wrapping_sub(headers));
        visit("commands", counters.commands);
        visit("commands_refused", counters.commands_refused);
        self.port.statistics(visit);
    }

    fn put_back_waiting(&mut self, context: &mut Context<'_, 'm>) {
        // Whatever the limit: what has come would get lost.
        self.receive(false, context);
        for (pair, posted) in self.posted.iter_mut().enumerate() {
            let pair = pair as u16;
            let Some(mut queue) = context.queue(2 * pair) else {
                continue;
            };
            self.port.withdraw(pair);
            while let Some(head) = posted.pop_back() {
                queue.put_back(head);
            }
        }
    }

    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        // The driver has read what the port is like, but for the address, which is its own.
        let info = NetInfo { link_up: false, speed: None, ..self.info };
        state.write_bytes(&wire::config(&info, Default::default(), false))?;
        state.write_bytes(&[self.live.into()])?;
        self.control.save(state)
    }

    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        let info = NetInfo { link_up: false, speed: None, ..self.info };
        let config = wire::config(&info, Default::default(), false);
        if state.read_object::<[u8; wire::CONFIG_SIZE]>()? != config {
            return Err(StateError::Invalid);
        }
        let [live] = state.read_object::<[u8; 1]>()?;
        let control = Control::restore(accepted, &self.info, state)?;
        if live > 1 {
            return Err(StateError::Invalid);
        }
        self.begin(accepted);
        self.control = control;
        if live == 1 {
            self.live = true;
            self.open();
            self.changed = true;
            self.announce();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
