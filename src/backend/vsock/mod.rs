//! Sockets between guests: a port for each, and packets from one to the other.
//!
//! A packet goes from the sender's memory straight to buffers that the receiver has posted, by the
//! core that the sender runs on; one that is larger than a buffer is cut. EL2 holds none: a packet
//! that finds no buffer stays in the sender's queue, and is looked at again when the receiver posts
//! some. Nobody can use more than its own queues.
//!
//! # Credit
//! Is between the two ends of a connection: `buf_alloc` and `fwd_cnt` are carried as they are. Who
//! sends more than it was granted harms nobody but the connection.
//!
//! # Who waits for whom
//! A sender whose first packet has no buffer to go to waits with all that is behind it: order within
//! a connection is kept without looking at any. That has an end: a receiver that posts nothing for
//! [`PATIENCE`] is given up. The packet, and what else comes for it before it posts a buffer, is
//! dropped, and its connection reset, for a stream with a gap would be worse. Two guests that wait for each other
//! come free so as well.
//!
//! # Who is gone
//! Each guest's connections that it asked for or accepted are remembered, 64 of them. When the
//! other end's driver is reset, alone or with its machine, they are reset at once; a guest that had more with it
//! is sent VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, which ends all of its connections.
//!
//! # The host
//! CID 2 is sparkler itself, and has a port for each guest that is allowed to give the monitor commands:
//! a [`Desk`] of its own.
//!
//! # Who locks what
//! Each port has a lock. Nothing is taken while it is held, but for that of the guest's own [`Desk`].

mod buffers;
mod connections;
mod desk;
mod header;
mod port;

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use spin::Once;

use super::clock::{Frequency, Ticks};
use super::net::Busy;
use crate::memory::SharedSlice;
pub use desk::{ANSWER_LEN, CALLS, Desk, MONITOR_PORT};
pub use header::{HEADER, HOST_CID, Header, Kinds, flags, op};
pub use port::{MAX_PEERS, PortCell, PortConfig};

/// How long a packet waits for a buffer of its receiver's.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Ports that there can be.
pub const MAX_PORTS: usize = u8::BITS as usize;

/// The most of a packet that is brought in one call.
const MAX_BATCH: u32 = 0x1_0000;

/// What [`Fabric::attach`] says if there are [`MAX_PORTS`] ports, or the CID is reserved or another
/// port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAttached;

/// What has become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It has been brought.
    Done,
    /// So many bytes of its payload have been. The rest can be at once.
    Part(u32),
    /// So many bytes of its payload have been, and there is no buffer for more. The port is woken when
    /// there is; at this time it should give up.
    Wait(u32, Ticks),
    /// It is not brought: there is nobody who would take it, or may.
    Refused,
}

/// Where guests' sockets meet. Shared by all cores.
pub struct Fabric<'m> {
    ports: [Once<&'m PortCell<'m>>; MAX_PORTS],
    count: AtomicUsize,
    patience: Ticks,
}

impl<'m> Fabric<'m> {
    /// One without ports.
    #[inline]
    pub const fn new(frequency: Frequency) -> Self {
        Self {
            ports: [const { Once::new() }; MAX_PORTS],
            count: AtomicUsize::new(0),
            patience: frequency.ticks(PATIENCE),
        }
    }

    /// Adds a port, and gives the device's end of it. Ports come one at a time, from one core.
    ///
    /// # Errors
    /// [`NotAttached`].
    pub fn attach(&self, cell: &'m PortCell<'m>) -> Result<Port<'_, 'm>, NotAttached> {
        let cid = cell.config.cid;
        let index = self.count.load(Ordering::Relaxed);
        let place = self.ports.get(index).ok_or(NotAttached)?;
        if !is_valid(cid) || self.find(cid).is_some() {
            return Err(NotAttached);
        }
        place.call_once(|| cell);
        self.count.store(index + 1, Ordering::Release);
        Ok(Port { fabric: self, cell, index, woken: 0 })
    }

    #[inline]
    fn port(&self, index: usize) -> Option<&'m PortCell<'m>> {
        self.ports.get(index)?.get().copied()
    }

    fn ports(&self) -> impl Iterator<Item = (usize, &'m PortCell<'m>)> {
        self.ports.iter().map_while(|port| port.get().copied()).enumerate()
    }

    #[inline]
    fn find(&self, cid: u32) -> Option<(usize, &'m PortCell<'m>)> {
        self.ports().find(|(_, port)| port.config.cid == cid)
    }

    fn wake(&self, mut ports: u8) {
        while ports != 0 {
            if let Some(port) = self.port(ports.trailing_zeros() as usize) {
                port.config.waker.wake();
            }
            ports &= ports - 1;
        }
    }

    fn cid(&self, port: u8) -> u32 {
        self.port(port.into()).map_or(0, |port| port.config.cid)
    }

    /// The guest at port `index` does not know of its connections any more: the other ends are told.
    fn disconnect(&self, index: usize) {
        // Whose connections are gone, and for whom that was seen to.
        let (mut gone, mut done) = (1u8 << index, 0u8);
        let mut woken = 0;
        while gone != 0 {
            let one = gone.trailing_zeros() as usize;
            done |= 1 << one;
            for (other, port) in self.ports().filter(|(other, _)| *other != one) {
                let mut state = port.state.lock();
                if state.connections.cut(one) {
                    // All of them go: which ones it has is not known.
                    state.connections.clear();
                    port.lost.store(true, Ordering::Relaxed);
                    gone |= 1 << other;
                }
                state.drain(port.config.cid, &|port| self.cid(port));
                port.show(&state);
                if port.is_ready() || port.lost.load(Ordering::Relaxed) {
                    woken |= 1 << other;
                }
            }
            gone &= !done;
        }
        self.wake(woken & !(1 << index));
    }
}

/// Whether a guest can have this CID (5.10.4).
pub const fn is_valid(cid: u32) -> bool {
    cid > HOST_CID && cid != u32::MAX
}

/// A port of a [`Fabric`], as a socket device has it.
pub struct Port<'f, 'm> {
    fabric: &'f Fabric<'m>,
    cell: &'m PortCell<'m>,
    index: usize,
    /// Ports that are to be woken at the next [`Self::kick`], a bit each.
    woken: u8,
}

impl<'m> Port<'_, 'm> {
    /// The guest's context ID.
    pub fn cid(&self) -> u32 {
        self.cell.config.cid
    }

    /// The driver is ready, and has these types of sockets.
    pub fn open(&mut self, kinds: Kinds) {
        let mut state = self.cell.state.lock();
        state.forget();
        (state.open, state.kinds) = (true, kinds);
        self.cell.show(&state);
    }

    /// No driver uses the port any more: nothing given to it is touched. The guest's peers are told.
    pub fn close(&mut self) {
        let mut state = self.cell.state.lock();
        let was_open = core::mem::take(&mut state.open);
        state.forget();
        self.woken |= core::mem::take(&mut state.waiting);
        self.cell.show(&state);
        drop(state);
        if let Some(desk) = self.cell.config.desk {
            desk.reset();
        }
        self.cell.lost.store(false, Ordering::Relaxed);
        if was_open {
            self.fabric.disconnect(self.index);
        }
        self.kick();
    }

    /// The guest's connections are gone though its driver does not know it yet.
    pub fn lose_connections(&mut self) {
        if let Some(desk) = self.cell.config.desk {
            desk.reset();
        }
        self.cell.state.lock().connections.clear();
        self.cell.lost.store(true, Ordering::Relaxed);
        self.fabric.disconnect(self.index);
    }

    /// Whether the driver is to be told that its connections are gone.
    #[inline]
    pub fn has_lost_connections(&self) -> bool {
        self.cell.lost.load(Ordering::Relaxed)
    }

    /// It has been.
    pub fn told_of_loss(&mut self) {
        self.cell.lost.store(false, Ordering::Relaxed);
    }

    /// Brings a packet of the guest's, of whose payload `done` bytes have been brought before, to
    /// whom it is for. `fill` is given the places, in order, that the rest goes to. The header is the
    /// guest's own: the source is right, and `op` and `len` are.
    pub fn send(
        &mut self,
        header: &Header,
        done: u32,
        fill: &mut dyn FnMut(SharedSlice<'m>),
        now: Ticks,
    ) -> Sent {
        let to = header.destination().and_then(|cid| self.fabric.find(cid));
        let Some((index, to)) = to.filter(|(_, to)| self.cell.may_talk(to)) else {
            return Sent::Refused;
        };
        let operation = header.op.get();
        let ports = [header.src_port.get(), header.dst_port.get()];
        match operation {
            // Before it is brought: a peer that goes away between has it ended.
            op::REQUEST | op::RESPONSE => self.cell.state.lock().connections.add(header, index),
            op::RST => self.cell.state.lock().connections.remove(ports, index),
            _ => (),
        }
        let mut state = to.state.lock();
        if !state.open || !state.kinds.has(header) {
            return Sent::Refused;
        }
        let len = header.len.get();
        let mut done = done.min(len);
        let end = done.saturating_add(MAX_BATCH).min(len);
        let [own, others] = ports;
        if operation == op::RST && state.buffers.is_empty() {
            // It needs no buffer, if it means anything: the connection itself keeps it.
            if state.connections.reset([others, own], self.index) {
                return Sent::Done;
            }
        } else if operation == op::RST {
            state.connections.remove([others, own], self.index);
        }
        let sent = loop {
            let Some(taken) = state.buffers.put(*header, len - done, fill) else {
                let until = state.starved.get_or_insert(now).after(self.fabric.patience);
                if now >= until {
                    break Sent::Refused;
                }
                state.waiting |= 1 << self.index;
                break Sent::Wait(done, until);
            };
            to.count(taken);
            done += taken;
            self.woken |= 1 << index;
            if done >= len {
                break Sent::Done;
            }
            if done >= end {
                break Sent::Part(done);
            }
        };
        to.show(&state);
        sent
    }

    /// Takes a packet of the guest's to [`HOST_CID`], whose payload `read` copies. `false`: it is to be
    /// refused.
    pub fn send_to_host(&mut self, header: &Header, read: &mut dyn FnMut(&mut [u8])) -> bool {
        self.cell.config.desk.is_some_and(|desk| desk.receive(header, read))
    }

    /// Has the guest get what it is owed by [`HOST_CID`], as far as it can. Whether a command waits to be
    /// carried out.
    pub fn attend(&mut self) -> bool {
        let Some(desk) = self.cell.config.desk else { return false };
        let mut state = self.cell.state.lock();
        if state.open && desk.send(self.cid(), &mut state) {
            self.cell.show(&state);
        }
        desk.is_asked()
    }

    /// Resets the connection that a packet of the guest's, which is not brought, belongs to.
    ///
    /// # Errors
    /// [`Busy`] if the guest has too few buffers for what it is to be told.
    pub fn refuse(&mut self, header: &Header) -> Result<(), Busy> {
        if header.op.get() == op::RST {
            return Ok(());
        }
        let peer = header.destination().and_then(|cid| self.fabric.find(cid));
        let mut state = self.cell.state.lock();
        state.answer(header.answer(op::RST))?;
        if let Some((peer, _)) = peer {
            state.connections.remove([header.src_port.get(), header.dst_port.get()], peer);
        }
        self.cell.count(0);
        self.cell.show(&state);
        Ok(())
    }

    /// Wakes those that something has come for, or that can go on.
    #[inline]
    pub fn kick(&mut self) {
        if self.woken != 0 {
            self.fabric.wake(core::mem::take(&mut self.woken));
        }
    }

    /// Posts a buffer of at least [`HEADER`] bytes to receive into.
    ///
    /// # Errors
    /// [`Busy`] if there is no room for more before some are filled.
    pub fn post(&mut self, segments: &[SharedSlice<'m>]) -> Result<(), Busy> {
        let mut state = self.cell.state.lock();
        state.buffers.post(segments)?;
        state.drain(self.cid(), &|port| self.fabric.cid(port));
        state.starved = None;
        self.woken |= core::mem::take(&mut state.waiting);
        self.cell.show(&state);
        Ok(())
    }

    /// The bytes in the oldest buffer, if it is filled.
    #[inline]
    pub fn poll_received(&mut self) -> Option<u32> {
        if !self.cell.is_ready() {
            return None;
        }
        let mut state = self.cell.state.lock();
        let filled = state.buffers.pop_filled();
        self.cell.show(&state);
        filled
    }

    /// Forgets the buffers that were posted.
    pub fn withdraw(&mut self) {
        let mut state = self.cell.state.lock();
        state.buffers.clear();
        self.cell.show(&state);
    }

    /// Packets that went to the guest, and their bytes without headers.
    pub fn received(&self) -> [u64; 2] {
        let cell = self.cell;
        [cell.received.load(Ordering::Relaxed), cell.received_bytes.load(Ordering::Relaxed)]
    }
}
