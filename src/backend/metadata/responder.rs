//! The service: connections, requests and answers.

use core::fmt::Write;

use smoltcp::iface::{Config, Interface, SocketSet, SocketStorage};
use smoltcp::socket::Socket;
use smoltcp::socket::tcp::{self, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address};

use super::archive::{self, Archive, Directory, Found};
use super::frame::{self, ADDRESS, Kind, MOST_IN, MOST_OUT, Wire};
use super::http::{self, Request, Status};
use crate::backend::clock::{Frequency, Ticks};
use crate::backend::net::Frame;

/// Connections at a time. Further ones are refused, by a reset.
pub(super) const CONNECTIONS: usize = 4;
/// Bytes of a request with its headers. It is what a client may send without being answered, too, so
/// that no segment is larger.
pub(super) const REQUEST: usize = 2048;
/// Bytes of an answer on their way.
const ANSWER: usize = 4096;
/// What a responder needs for frames and connections.
pub(super) const BUFFERS: usize = MOST_IN + MOST_OUT + CONNECTIONS * (REQUEST + ANSWER);

/// A connection on which nothing moves for so long is reset, in milliseconds.
const PATIENCE: i64 = 5000;
/// Segments of a connection that are sent at once, at the most.
const ROUNDS: usize = 8;
const PORT: u16 = 80;

/// What is handed out as a token. It protects nothing here, and nobody is asked for it: whoever can
/// reach the service may read.
const TOKEN: &str = "c3BhcmtsZXI=";
/// How long it is said to be good: as long as can be asked for.
const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";

/// What follows an answer's headers.
enum Body {
    Text(&'static str),
    File { at: usize, len: usize },
    Listing(Directory),
}

/// How far a connection is.
enum Phase {
    /// Nobody has asked yet, or not for all.
    Reading,
    /// The body is on its way: so much of it is in TCP's hands.
    Answering(Body, usize),
    /// All is in TCP's hands.
    Ending,
}

struct Connection {
    phase: Phase,
    /// When something last moved, in milliseconds.
    since: i64,
    /// Bytes that wait in either direction, and TCP's state, when last looked at.
    seen: (usize, usize, State),
}

/// Diagnosis.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) frames: u64,
    pub(super) dropped: u64,
    pub(super) requests: u64,
}

pub(super) struct Responder<'b, 'm> {
    archive: Archive<'m>,
    interface: Interface,
    sockets: SocketSet<'b>,
    connections: [Connection; CONNECTIONS],
    incoming: &'b mut [u8],
    outgoing: &'b mut [u8],
    peer: [u8; 6],
    mtu: u16,
    frequency: Frequency,
    /// In milliseconds; never goes back.
    now: i64,
    pub(super) counters: Counters,
}

impl<'b, 'm> Responder<'b, 'm> {
    /// `sockets` and `buffers` are at least [`CONNECTIONS`] and [`BUFFERS`] long.
    pub(super) fn new(
        archive: Archive<'m>,
        mtu: u16,
        seed: u64,
        frequency: Frequency,
        sockets: &'b mut [SocketStorage<'b>],
        buffers: &'b mut [u8],
    ) -> Option<Self> {
        let (incoming, buffers) = buffers.split_at_mut_checked(MOST_IN)?;
        let (outgoing, mut buffers) = buffers.split_at_mut_checked(MOST_OUT)?;
        let mtu = mtu.min((MOST_OUT - frame::HEADER) as u16);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire = Wire { incoming: &[], outgoing, peer: [0; 6], deliver: &mut |_| (), mtu };
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        // Whatever address the guest has is on this wire.
        let [a, b, c, d] = ADDRESS;
        let everywhere = IpCidr::new(Ipv4Address::new(a, b, c, d).into(), 0);
        interface.update_ip_addrs(|addresses| _ = addresses.push(everywhere));
        if sockets.len() < CONNECTIONS {
            return None;
        }
        let mut set = SocketSet::new(sockets);
        for _ in 0..CONNECTIONS {
            let (request, rest) = buffers.split_at_mut_checked(REQUEST)?;
            let (answer, rest) = rest.split_at_mut_checked(ANSWER)?;
            let mut socket =
                tcp::Socket::new(SocketBuffer::new(request), SocketBuffer::new(answer));
            // What there is is all there will be for now.
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            set.add(socket);
            buffers = rest;
        }
        let mut responder = Self {
            archive,
            interface,
            sockets: set,
            connections: [const { Connection::NEW }; CONNECTIONS],
            incoming,
            outgoing,
            peer: [0; 6],
            mtu,
            frequency,
            now: 0,
            counters: Counters::default(),
        };
        responder.reset();
        Some(responder)
    }

    /// Forgets all connections.
    pub(super) fn reset(&mut self) {
        for (socket, connection) in each(&mut self.sockets, &mut self.connections) {
            socket.abort();
            connection.listen(socket);
        }
    }

    /// Takes a frame of this kind; what it causes at once goes to `deliver`.
    pub(super) fn take(
        &mut self,
        kind: Kind,
        frame: &Frame<'_, '_>,
        now: Ticks,
        deliver: &mut dyn FnMut(&[u8]),
    ) {
        self.counters.frames += 1;
        let len = frame::copy(frame, self.incoming);
        let bytes = self.incoming.get(..len).unwrap_or_default();
        if len != frame.len {
            // Larger than any that TCP was told there is room for.
            self.counters.dropped += 1;
            return;
        }
        match kind {
            Kind::Arp => {
                if let Some(reply) = frame::arp_reply(bytes) {
                    deliver(&reply);
                }
            }
            Kind::Ipv4 if frame::is_tcp(frame, bytes) => {
                if let Some(source) = bytes.get(6..).and_then(|rest| rest.first_chunk()) {
                    self.peer = *source;
                }
                let now = self.at(now);
                let mut wire = Wire {
                    incoming: self.incoming.get(frame::HEADER..len).unwrap_or_default(),
                    outgoing: self.outgoing,
                    peer: self.peer,
                    deliver,
                    mtu: self.mtu,
                };
                self.interface.poll_ingress_single(now, &mut wire, &mut self.sockets);
            }
            Kind::Ipv4 => self.counters.dropped += 1,
        }
    }

    /// Answers requests and sends what can be sent. When to be called again.
    pub(super) fn tick(&mut self, now: Ticks, deliver: &mut dyn FnMut(&[u8])) -> Option<Ticks> {
        let called = now;
        let now = self.at(now);
        for _ in 0..ROUNDS {
            self.serve();
            let mut wire = Wire {
                incoming: &[],
                outgoing: self.outgoing,
                peer: self.peer,
                deliver,
                mtu: self.mtu,
            };
            let sent = self.interface.poll_egress(now, &mut wire, &mut self.sockets);
            if sent == smoltcp::iface::PollResult::None {
                break;
            }
        }
        let tcp = self.interface.poll_at(now, &self.sockets).map(|at| at.total_millis());
        let patience =
            self.connections.iter().filter(|connection| connection.seen.2 != State::Listen);
        let patience = patience.map(|connection| connection.since + PATIENCE).min();
        let first = tcp.into_iter().chain(patience).min()?;
        // Rounded up: not before it is due. And what is due at once was done as far as is done at once.
        let wait = (first - self.now).max(0) as u64 + 1;
        Some(called.after(self.frequency.ticks(core::time::Duration::from_millis(wait))))
    }

    /// The time, for TCP.
    fn at(&mut self, now: Ticks) -> Instant {
        let hertz = u64::from(self.frequency.hertz());
        let (seconds, rest) = (now.0 / hertz, now.0 % hertz);
        let millis = seconds.saturating_mul(1000).saturating_add(rest * 1000 / hertz);
        // 36000 years.
        self.now = self.now.max(millis.min(1 << 50) as i64);
        Instant::from_millis(self.now)
    }

    /// Goes on with every connection.
    fn serve(&mut self) {
        for (socket, connection) in each(&mut self.sockets, &mut self.connections) {
            let seen = (socket.recv_queue(), socket.send_queue(), socket.state());
            let moves = seen != connection.seen;
            if moves {
                connection.seen = seen;
                connection.since = self.now;
            }
            match seen.2 {
                State::Listen => continue,
                State::Closed => {
                    connection.listen(socket);
                    continue;
                }
                // Both have said that they have all. The client is told first that this was heard.
                State::TimeWait if moves => continue,
                State::TimeWait => {
                    connection.listen(socket);
                    continue;
                }
                _ if connection.since + PATIENCE <= self.now => {
                    // Says so to the client; then it is closed.
                    socket.abort();
                    continue;
                }
                _ => (),
            }
            connection.go_on(socket, &self.archive, &mut self.counters);
        }
    }
}

/// Every connection with its socket.
fn each<'s, 'b>(
    sockets: &'s mut SocketSet<'b>,
    connections: &'s mut [Connection; CONNECTIONS],
) -> impl Iterator<Item = (&'s mut tcp::Socket<'b>, &'s mut Connection)> {
    let sockets = sockets.iter_mut().map(|(_, socket)| {
        let Socket::Tcp(socket) = socket;
        socket
    });
    sockets.zip(connections)
}

impl Connection {
    const NEW: Connection =
        Connection { phase: Phase::Reading, since: 0, seen: (0, 0, State::Listen) };

    /// Waits for the next client.
    fn listen(&mut self, socket: &mut tcp::Socket<'_>) {
        *self = Self::NEW;
        if socket.state() == State::TimeWait {
            socket.abort();
        }
        // It is closed, and the port is one.
        let _ = socket.listen(PORT);
    }

    fn go_on(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        archive: &Archive<'_>,
        counters: &mut Counters,
    ) {
        if let Phase::Reading = self.phase {
            let full = socket.recv_queue() == REQUEST;
            // From the first byte on: nothing was taken out so far, so that it lies in one piece.
            let request = http::parse(socket.peek(REQUEST).unwrap_or_default(), full);
            let (status, body) = match request {
                Request::Incomplete => {
                    if socket.state() == State::CloseWait {
                        // There will be no more.
                        socket.close();
                    }
                    return;
                }
                Request::Refused(status) => (status, Body::Text("")),
                Request::Token => (Status::Ok, Body::Text(TOKEN)),
                Request::Get(path) => find(archive, path),
            };
            counters.requests += 1;
            let more = if request == Request::Token { TOKEN_HEADER } else { "" };
            let more = if status == Status::MethodNotAllowed { "Allow: GET\r\n" } else { more };
            let head = head(status, body.len(archive), more);
            // There is room for it: nothing was sent so far.
            let _ = socket.send_slice(head.as_bytes());
            self.phase = Phase::Answering(body, 0);
        }
        // Whatever else the client has to say.
        let _ = socket.recv(|bytes| (bytes.len(), ()));
        if let Phase::Answering(body, sent) = &mut self.phase {
            *sent += body.send(*sent, archive, socket);
            if *sent >= body.len(archive) {
                self.phase = Phase::Ending;
                socket.close();
            }
        }
    }
}

fn find(archive: &Archive<'_>, path: &[u8]) -> (Status, Body) {
    match archive.find(archive::trim(path)) {
        Some(Found::File { at, len }) => (Status::Ok, Body::File { at, len }),
        Some(Found::Directory(directory)) => (Status::Ok, Body::Listing(directory)),
        None => (Status::NotFound, Body::Text("")),
    }
}

fn head(status: Status, len: usize, more: &str) -> heapless::String<256> {
    let mut head = heapless::String::new();
    // It fits: statuses and further lines are known.
    let _ = write!(
        head,
        "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\nConnection: close\r\n{more}\r\n",
        status.text(),
    );
    head
}

impl Body {
    fn len(&self, archive: &Archive<'_>) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::File { len, .. } => *len,
            Self::Listing(directory) => {
                let mut len = 0;
                archive.list(*directory, &mut |piece| len += piece.len());
                len
            }
        }
    }

    /// Gives TCP what comes after the first `from` bytes, as much as it takes; how much it was.
    fn send(&self, from: usize, archive: &Archive<'_>, socket: &mut tcp::Socket<'_>) -> usize {
        let text = |text: &[u8], socket: &mut tcp::Socket<'_>| {
            socket.send_slice(text.get(from..).unwrap_or_default()).unwrap_or(0)
        };
        match self {
            Self::Text(bytes) => text(bytes.as_bytes(), socket),
            Self::File { at, len } => {
                let left = len.saturating_sub(from);
                let sent = socket.send(|room| {
                    let len = room.len().min(left);
                    let place = room.get_mut(..len).unwrap_or_default();
                    match archive.read(at + from, place) {
                        Some(()) => (len, len),
                        None => (0, 0),
                    }
                });
                sent.unwrap_or(0)
            }
            Self::Listing(directory) => {
                let (mut sent, mut skip) = (0, from);
                archive.list(*directory, &mut |piece| {
                    let rest = piece.get(skip..).unwrap_or_default();
                    skip = skip.saturating_sub(piece.len());
                    let taken = socket.send_slice(rest).unwrap_or(0);
                    sent += taken;
                    if taken < rest.len() {
                        // The rest another time, from there on.
                        skip = usize::MAX;
                    }
                });
                sent
            }
        }
    }
}
