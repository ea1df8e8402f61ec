//! Connections of a guest, as far as it has to be told when the other end is gone.

use super::header::Header;

/// Connections that are remembered. A guest that has more loses all of them, and is told so, when the
/// other end of one that found no place here is gone.
pub(super) const CONNECTIONS: usize = 64;

/// A connection, as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) own_port: u32,
    pub(super) peer_port: u32,
    /// Number of the other end's port of the fabric.
    pub(super) peer: u8,
    pub(super) kind: u16,
    /// The other end is gone, and the guest has not been told.
    gone: bool,
}

/// What a guest has asked for or accepted. Only its own packets add to this, so that nobody else can
/// use it up.
pub(super) struct Connections {
    known: heapless::Vec<Connection, CONNECTIONS>,
    /// Peers of which there are connections that found no place here, a bit each.
    unknown: u8,
    /// Some are gone.
    some_gone: bool,
}

impl Connections {
    pub(super) const fn new() -> Self {
        Self { known: heapless::Vec::new(), unknown: 0, some_gone: false }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        (self.unknown, self.some_gone) = (0, false);
    }

    /// The guest asks `peer` for a connection by `header`, or accepts one.
    pub(super) fn add(&mut self, header: &Header, peer: usize) {
        let (own_port, peer_port) = (header.src_port.get(), header.dst_port.get());
        if self.find([own_port, peer_port], peer).is_some() {
            return;
        }
        let kind = header.kind.get();
        let connection = Connection { own_port, peer_port, peer: peer as u8, kind, gone: false };
        if self.known.push(connection).is_err() {
            self.unknown |= bit(peer);
        }
    }

    /// It is over: between these two ports, of the guest and of `peer`.
    pub(super) fn remove(&mut self, ports: [u32; 2], peer: usize) {
        if let Some(at) = self.find(ports, peer) {
            let _ = self.take(at);
        }
    }

    /// As [`Self::remove`], but the guest is to be told. Whether there was one.
    pub(super) fn reset(&mut self, ports: [u32; 2], peer: usize) -> bool {
        let found = self.find(ports, peer).and_then(|at| self.known.get_mut(at));
        let known = found.is_some();
        if let Some(it) = found {
            it.gone = true;
            self.some_gone = true;
        }
        known
    }

    fn find(&self, ports: [u32; 2], peer: usize) -> Option<usize> {
        let same = |it: &Connection| ([it.own_port, it.peer_port], it.peer) == (ports, peer as u8);
        self.known.iter().position(same)
    }

    /// `peer` is gone. Whether there were connections with it that are not remembered.
    pub(super) fn cut(&mut self, peer: usize) -> bool {
        for it in self.known.iter_mut().filter(|it| usize::from(it.peer) == peer) {
            it.gone = true;
            self.some_gone = true;
        }
        let unknown = self.unknown & bit(peer) != 0;
        self.unknown &= !bit(peer);
        unknown
    }

    /// The next connection that the guest is to be told is gone; it is forgotten.
    pub(super) fn pop_gone(&mut self) -> Option<Connection> {
        if !self.some_gone {
            return None;
        }
        let at = self.known.iter().position(|it| it.gone);
        self.some_gone = at.is_some();
        at.and_then(|at| self.take(at))
    }

    /// Takes the one at `at` out, by which the last comes to its place. The library's way panics.
    fn take(&mut self, at: usize) -> Option<Connection> {
        let last = self.known.pop()?;
        Some(self.known.get_mut(at).map_or(last, |it| core::mem::replace(it, last)))
    }
}

fn bit(peer: usize) -> u8 {
    1 << (peer & 7)
}
