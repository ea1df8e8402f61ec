//! A place at the fabric: a guest's.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::buffers::Buffers;
use super::connections::Connections;
use super::desk::Desk;
use super::header::{Header, Kinds, op};
use crate::backend::clock::Ticks;
use crate::backend::net::Busy;
use crate::backend::wake::Waker;
use crate::sync::Mutex;

/// Peers that a guest can have.
pub const MAX_PEERS: usize = 8;

/// Packets of our own that wait for a buffer of the guest's.
const ANSWERS: usize = 8;

/// What a port is.
pub struct PortConfig<'m> {
    /// The guest's context ID: none of those that are reserved (5.10.4).
    pub cid: u32,
    /// Those of the guests that it may talk with, if they may with it.
    pub peers: heapless::Vec<u32, MAX_PEERS>,
    /// Its place at the monitor, if it may give commands.
    pub desk: Option<&'m Desk>,
    /// Whom to tell that something has come.
    pub waker: Waker<'m>,
}

/// A port that is in use.
pub(super) struct State<'m> {
    /// The driver is ready.
    pub(super) open: bool,
    /// Types of sockets that it has.
    pub(super) kinds: Kinds,
    pub(super) buffers: Buffers<'m>,
    answers: heapless::Deque<Header, ANSWERS>,
    pub(super) connections: Connections,
    /// Ports whose packets wait for a buffer here, a bit each.
    pub(super) waiting: u8,
    /// Since when one has.
    pub(super) starved: Option<Ticks>,
}

/// A port's memory: placed by whoever sets up the fabric.
pub struct PortCell<'m> {
    pub(super) config: PortConfig<'m>,
    /// The guest is to be told that its connections are gone.
    pub(super) lost: AtomicBool,
    /// Something has been received.
    ready: AtomicBool,
    pub(super) received: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) state: Mutex<State<'m>>,
}

impl<'m> PortCell<'m> {
    /// A port that no driver uses yet.
    #[inline]
    pub fn new(config: PortConfig<'m>) -> Self {
        Self {
            config,
            lost: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            state: Mutex::new(State {
                open: false,
                kinds: Kinds::empty(),
                buffers: Buffers::new(),
                answers: heapless::Deque::new(),
                connections: Connections::new(),
                waiting: 0,
                starved: None,
            }),
        }
    }

    /// Whether its guest may talk with `other`'s: both have to name each other.
    pub(super) fn may_talk(&self, other: &PortCell<'_>) -> bool {
        let names = |own: &PortConfig<'_>, cid| own.peers.contains(&cid) && own.cid != cid;
        names(&self.config, other.config.cid) && names(&other.config, self.config.cid)
    }

    /// Something is in the buffers. Written with the lock held only.
    #[inline]
    pub(super) fn show(&self, state: &State<'m>) {
        self.ready.store(state.buffers.has_filled(), Ordering::Relaxed);
    }

    /// Whether something may have been received: who fills a buffer later wakes the port.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Counts a packet that goes to the guest.
    #[inline]
    pub(super) fn count(&self, bytes: u32) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes.into(), Ordering::Relaxed);
    }
}

impl State<'_> {
    /// Sends the guest a packet of our own, now or when it has a buffer.
    pub(super) fn answer(&mut self, answer: Header) -> Result<(), Busy> {
        if self.buffers.is_empty() {
            return self.answers.push_back(answer).map_err(|_| Busy);
        }
        self.buffers.put(answer, 0, &mut |_| ());
        Ok(())
    }

    /// Writes what has waited, as far as there are buffers; `name` says whose CID a port's is, and
    /// `own` is the guest's. While there are buffers, nothing waits here.
    pub(super) fn drain(&mut self, own: u32, name: &dyn Fn(u8) -> u32) {
        while !self.buffers.is_empty() {
            let next = self.answers.pop_front().or_else(|| {
                let gone = self.connections.pop_gone()?;
                Some(Header {
                    src_cid: u64::from(name(gone.peer)).into(),
                    dst_cid: u64::from(own).into(),
                    src_port: gone.peer_port.into(),
                    dst_port: gone.own_port.into(),
                    kind: gone.kind.into(),
                    op: op::RST.into(),
                    ..Header::default()
                })
            });
            let Some(next) = next else { return };
            self.buffers.put(next, 0, &mut |_| ());
        }
    }

    /// Forgets all that a driver has given and asked for.
    pub(super) fn forget(&mut self) {
        self.buffers.clear();
        self.answers.clear();
        self.connections.clear();
        self.starved = None;
    }
}
