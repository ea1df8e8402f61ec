//! The metadata service: a guest asks `http://169.254.169.254/` for its configuration data, as it would
//! of a cloud.
//!
//! It is between a network device and its port. Frames to that address end here, and never reach the
//! network; answers go to the device, and to nobody else. So a guest has its own service, whatever
//! network it is in, or in none.
//!
//! - `frame`: which frames these are, and ARP; the wire towards TCP.
//! - `responder`: connections and their time-outs, over smoltcp's TCP.
//! - `http`: requests.
//! - `archive`: what is served.
//!
//! All is bounded, and allocated before the guest runs: four connections, a request of 2 KiB, 4 KiB on
//! their way to each. A frame is dealt with when it is sent, so that none waits; what is larger than
//! a client may send is dropped, and what the device has no room for gets lost. TCP sends again.
//!
//! Only where the crate has the feature `metadata`.

mod archive;
mod frame;
mod http;
mod responder;

use smoltcp::iface::SocketStorage;

use super::clock::{Frequency, Ticks};
use super::net::{Busy, Filter, Frame, NetBackend, NetInfo, Received, Reception, SendTag, Sent};
use crate::memory::SharedSlice;
pub use archive::{Archive, ArchiveError, MAX_ENTRIES};
pub use frame::{ADDRESS, STATION};
use responder::{BUFFERS, CONNECTIONS, Responder};

/// What a service remembers of one connection.
pub type ConnectionMemory<'b> = SocketStorage<'b>;

/// Memory for one service. It lives as long as the service does.
pub struct Memory<'b> {
    /// [`Memory::CONNECTIONS`] of them.
    pub connections: &'b mut [ConnectionMemory<'b>],
    /// [`Memory::BUFFERS`] bytes.
    pub buffers: &'b mut [u8],
}

impl Memory<'_> {
    /// Connections at a time.
    pub const CONNECTIONS: usize = CONNECTIONS;
    /// Bytes for frames, requests and answers.
    pub const BUFFERS: usize = BUFFERS;
    /// A connection that there is not.
    pub const NO_CONNECTION: ConnectionMemory<'static> = SocketStorage::EMPTY;
}

/// A port with a metadata service in front of it.
pub struct Metadata<'d, 'm> {
    port: &'d mut (dyn NetBackend<'m> + 'd),
    responder: Responder<'d, 'm>,
}

impl<'d, 'm> Metadata<'d, 'm> {
    /// Puts a service of `archive` in front of `port`. `seed` makes its sequence numbers unlike those
    /// of another start. `None` if there is less memory than it takes.
    pub fn new(
        port: &'d mut (dyn NetBackend<'m> + 'd),
        archive: Archive<'m>,
        seed: u64,
        frequency: Frequency,
        memory: Memory<'d>,
    ) -> Option<Self> {
        let Memory { connections, buffers } = memory;
        let mtu = port.info().mtu;
        let responder = Responder::new(archive, mtu, seed, frequency, connections, buffers)?;
        Some(Self { port, responder })
    }
}

impl<'m> NetBackend<'m> for Metadata<'_, 'm> {
    fn info(&self) -> NetInfo {
        self.port.info()
    }

    fn open(&mut self, reception: Reception) {
        self.port.open(reception);
    }

    fn set_filter(&mut self, filter: &Filter) {
        self.port.set_filter(filter);
    }

    fn send(
        &mut self,
        pair: u16,
        tag: SendTag,
        frame: Frame<'_, 'm>,
        now: Ticks,
    ) -> Result<Sent, Busy> {
        let Some(kind) = frame::classify(&frame) else {
            return self.port.send(pair, tag, frame, now);
        };
        let port = &mut *self.port;
        self.responder.take(kind, &frame, now, &mut |frame| port.deliver(frame));
        Ok(Sent::Done)
    }

    fn kick(&mut self) {
        self.port.kick();
    }

    fn poll_sent(&mut self, now: Ticks) -> Option<SendTag> {
        self.port.poll_sent(now)
    }

    fn post(&mut self, pair: u16, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        self.port.post(pair, segments)
    }

    fn poll_received(&mut self, pair: u16) -> Option<Received> {
        self.port.poll_received(pair)
    }

    fn withdraw(&mut self, pair: u16) {
        self.port.withdraw(pair);
    }

    fn close(&mut self, now: Ticks) -> bool {
        self.responder.reset();
        self.port.close(now)
    }

    fn in_flight(&self) -> usize {
        self.port.in_flight()
    }

    fn take_change(&mut self) -> bool {
        self.port.take_change()
    }

    fn deliver(&mut self, frame: &[u8]) {
        self.port.deliver(frame);
    }

    fn tick(&mut self, now: Ticks) -> Option<Ticks> {
        let port = &mut *self.port;
        let own = self.responder.tick(now, &mut |frame| port.deliver(frame));
        [own, self.port.tick(now)].into_iter().flatten().min()
    }

    fn set_link(&mut self, up: bool) -> bool {
        self.port.set_link(up)
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.responder.counters;
        visit("metadata_frames", counters.frames);
        visit("metadata_dropped", counters.dropped);
        visit("metadata_requests", counters.requests);
        self.port.statistics(visit);
    }
}

#[cfg(test)]
mod tests;
