use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum as Sums, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address};

use super::*;
use crate::backend::net::{Checksum, FrameInfo, Gso, MacAddress, Offloads, Segmentation};
use crate::memory::testing::ram;

mod archives;
mod hostile;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The port behind the service.
#[derive(Default)]
struct Network {
    /// What was sent to the network.
    sent: Vec<Vec<u8>>,
    /// What the device has received.
    delivered: VecDeque<Vec<u8>>,
}

struct Behind(Arc<Mutex<Network>>, u16);

impl NetBackend<'static> for Behind {
    fn info(&self) -> NetInfo {
        NetInfo {
            mac: MacAddress(GUEST),
            mtu: self.1,
            link_up: true,
            speed: None,
            takes: Offloads::all(),
            gives: Offloads::all(),
            pairs: 1,
        }
    }
    fn open(&mut self, _: Reception) {}
    fn set_filter(&mut self, _: &Filter) {}
    fn send(
        &mut self,
        _: u16,
        _: SendTag,
        frame: Frame<'_, 'static>,
        _: Ticks,
    ) -> Result<Sent, Busy> {
        let mut bytes = vec![0; frame.len];
        frame::copy(&frame, &mut bytes);
        self.0.lock().unwrap().sent.push(bytes);
        Ok(Sent::Done)
    }
    fn kick(&mut self) {}
    fn poll_sent(&mut self, _: Ticks) -> Option<SendTag> {
        None
    }
    fn post(&mut self, _: u16, _: &[SharedSlice<'static>]) -> Result<(), Busy> {
        Ok(())
    }
    fn poll_received(&mut self, _: u16) -> Option<Received> {
        None
    }
    fn withdraw(&mut self, _: u16) {}
    fn close(&mut self, _: Ticks) -> bool {
        true
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn take_change(&mut self) -> bool {
        false
    }
    fn deliver(&mut self, frame: &[u8]) {
        self.0.lock().unwrap().delivered.push_back(frame.to_vec());
    }
}

/// A header of the archive, and what follows.
fn entry(name: &str, kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = [&header, contents].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn memory(bytes: &[u8]) -> SharedSlice<'static> {
    let memory = ram(0x4000_0000, bytes.len()).subslice(0, bytes.len()).unwrap();
    memory.write_bytes(0, bytes).unwrap();
    memory
}

const LARGE: usize = 100_000;

fn large() -> Vec<u8> {
    (0..LARGE).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn sample() -> Archive<'static> {
    let entries = [
        entry("./", b'5', b""),
        entry("./latest/", b'5', b""),
        entry("./latest/meta-data/", b'5', b""),
        entry("./latest/meta-data/hostname", b'0', b"alice"),
        entry("./latest/meta-data/placement/", b'5', b""),
        entry("./latest/meta-data/placement/zone", b'0', b"here"),
        entry("./latest/user-data", b'0', &large()),
        entry("./empty", b'0', b""),
        vec![0; 1024],
    ];
    Archive::new(memory(&entries.concat())).unwrap()
}

/// A guest, as far as it takes to talk to the service.
struct Guest {
    service: Metadata<'static, 'static>,
    network: Arc<Mutex<Network>>,
    /// In milliseconds.
    now: u64,
    due: Option<Ticks>,
}

impl Guest {
    fn new(mtu: u16) -> Self {
        let network = Arc::new(Mutex::new(Network::default()));
        let port = Box::leak(Box::new(Behind(network.clone(), mtu)));
        let connections: Vec<_> = (0..Memory::CONNECTIONS).map(|_| Memory::NO_CONNECTION).collect();
        let connections = connections.leak();
        let buffers = vec![0; Memory::BUFFERS].leak();
        let memory = Memory { connections, buffers };
        let frequency = Frequency::new(1000).unwrap();
        let service = Metadata::new(port, sample(), 1, frequency, memory).unwrap();
        Self { service, network, now: 0, due: None }
    }

    /// Sends a frame, cut into segments.
    fn send(&mut self, bytes: &[u8], info: FrameInfo) {
        let segments: Vec<_> = bytes.chunks(33).map(memory).collect();
        let frame = Frame { info, segments: &segments, len: bytes.len() };
        assert_eq!(self.service.send(0, SendTag(0), frame, Ticks(self.now)), Ok(Sent::Done));
    }

    fn tick(&mut self) {
        self.service.kick();
        self.due = self.service.tick(Ticks(self.now));
    }

    fn delivered(&self) -> Vec<Vec<u8>> {
        self.network.lock().unwrap().delivered.drain(..).collect()
    }

    fn passed(&self) -> Vec<Vec<u8>> {
        core::mem::take(&mut self.network.lock().unwrap().sent)
    }

    fn counter(&self, wanted: &str) -> u64 {
        let mut found = None;
        self.service.statistics(&mut |name, value| {
            if name == wanted {
                found = Some(value);
            }
        });
        found.unwrap()
    }
}

/// The wire of the client's TCP.
struct Line {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
    mtu: usize,
    sums: bool,
}

struct Packet(Vec<u8>);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Room<'t>(&'t mut Vec<Vec<u8>>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push(bytes);
        result
    }
}

impl Device for Line {
    type RxToken<'t> = Packet;
    type TxToken<'t> = Room<'t>;

    fn receive(&mut self, _: Instant) -> Option<(Packet, Room<'_>)> {
        Some((Packet(self.incoming.pop_front()?), Room(&mut self.outgoing)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        Some(Room(&mut self.outgoing))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = if self.sums { Sums::Both } else { Sums::Rx };
        capabilities
    }
}

/// A client of its own TCP on the guest's wire.
struct Client {
    line: Line,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Frames of the service to be lost, by their order.
    lost: Vec<usize>,
    seen: usize,
}

impl Client {
    fn new(mtu: usize, sums: bool, port: u16) -> Self {
        let mut line = Line { incoming: VecDeque::new(), outgoing: Vec::new(), mtu, sums };
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut line, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(Ipv4Address::new(10, 0, 2, 15).into(), 0)).unwrap();
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 8192].leak());
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY].leak());
        let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
        let [a, b, c, d] = ADDRESS;
        let server = (Ipv4Address::new(a, b, c, d), 80);
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(interface.context(), server, port).unwrap();
        Self { line, interface, sockets, handle, lost: Vec::new(), seen: 0 }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Everything moves for a millisecond.
    fn step(&mut self, guest: &mut Guest) {
        guest.now += 1;
        for frame in guest.delivered() {
            assert_eq!(frame[..12], [GUEST, STATION].concat());
            self.seen += 1;
            if !self.lost.contains(&self.seen) {
                self.line.incoming.push_back(frame[14..].to_vec());
            }
        }
        let now = Instant::from_millis(guest.now as i64);
        self.interface.poll(now, &mut self.line, &mut self.sockets);
        for packet in core::mem::take(&mut self.line.outgoing) {
            let info = self.info(packet.len());
            guest.send(&[&OTHER, &GUEST, [8, 0].as_slice(), &packet].concat(), info);
        }
        guest.tick();
    }

    fn info(&self, len: usize) -> FrameInfo {
        let checksum = if self.line.sums {
            Checksum::Unknown
        } else {
            Checksum::Partial { start: 34, offset: 16 }
        };
        let gso = (len > 1500).then_some(Gso {
            kind: Segmentation::TcpV4,
            size: 1460,
            header_len: 54,
            ecn: false,
        });
        FrameInfo { checksum, gso }
    }

    /// Sends a request and closes when the service does: the answer.
    fn ask(&mut self, guest: &mut Guest, request: &[u8]) -> Vec<u8> {
        let (mut rest, mut answer) = (request, Vec::new());
        for _ in 0..60_000 {
            self.step(guest);
            let socket = self.socket();
            if socket.can_send() && !rest.is_empty() {
                let sent = socket.send_slice(rest).unwrap();
                rest = &rest[sent..];
            }
            if socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            }
            if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
                socket.close();
            }
            if socket.state() == tcp::State::Closed {
                break;
            }
        }
        answer
    }
}

/// Asks for a path with a client of its own.
fn get(guest: &mut Guest, port: u16, path: &str) -> (String, Vec<u8>) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n");
    split(&Client::new(1500, true, port).ask(guest, request.as_bytes()))
}

/// Status line and body, whose length is as the headers say.
fn split(answer: &[u8]) -> (String, Vec<u8>) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("no headers");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let body = answer[end + 4..].to_vec();
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(len.parse(), Ok(body.len()));
    (head.lines().next().unwrap().to_string(), body)
}

#[test]
fn files_and_listings_are_served() {
    let mut guest = Guest::new(1500);
    let found = [
        ("/latest/meta-data/hostname", "alice"),
        ("/latest/meta-data/", "hostname\nplacement/\n"),
        ("/latest/meta-data", "hostname\nplacement/\n"),
        ("/latest/meta-data/placement/zone?x=y", "here"),
        ("/", "latest/\nempty\n"),
        ("/empty", ""),
    ];
    // More than there are connections: each is free again.
    for (port, (path, contents)) in (5000..).zip(found) {
        let (status, body) = get(&mut guest, port, path);
        assert_eq!((status.as_str(), body.as_slice()), ("HTTP/1.1 200 OK", contents.as_bytes()));
    }
    assert_eq!(get(&mut guest, 6000, "/latest/user-data").1, large());
    for (port, path) in (7000..).zip(["/nothing", "/latest/meta", "/..", "/latest//meta-data"]) {
        assert_eq!(get(&mut guest, port, path).0, "HTTP/1.1 404 Not Found", "{path}");
    }
    assert_eq!(guest.passed(), Vec::<Vec<u8>>::new());
    assert_eq!(guest.counter("metadata_requests"), 11);
    // Nobody is left, so there is nothing to wait for.
    assert_eq!(guest.due, None);
}

#[test]
fn other_methods_junk_and_long_requests_are_refused() {
    let mut guest = Guest::new(1500);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(3000));
    let headers = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(3000));
    let requests = [
        ("POST / HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (&long, "HTTP/1.1 414 URI Too Long"),
        (&headers, "HTTP/1.1 431 Request Header Fields Too Large"),
    ];
    for (port, (request, status)) in (5000..).zip(requests) {
        let answer = Client::new(1500, true, port).ask(&mut guest, request.as_bytes());
        assert_eq!(split(&answer).0, status);
    }
}

#[test]
fn a_token_is_handed_out_and_not_asked_for() {
    let mut guest = Guest::new(1500);
    let request =
        b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let (status, token) = split(&Client::new(1500, true, 5000).ask(&mut guest, request));
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(!token.is_empty());
    let (status, _) = get(&mut guest, 5001, "/latest/meta-data/hostname");
    assert_eq!(status, "HTTP/1.1 200 OK");
}

#[test]
fn checksums_may_be_left_undone_and_a_request_may_come_uncut() {
    let mut guest = Guest::new(1500);
    let request = format!("GET /empty HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(1900));
    let mut client = Client::new(9000, false, 5000);
    // As with TSO: what the MSS of the service forbids on a wire comes in one piece here.
    client.line.mtu = 9000;
    let answer = client.ask(&mut guest, request.as_bytes());
    assert_eq!(split(&answer).0, "HTTP/1.1 200 OK");
}

#[test]
fn what_gets_lost_on_the_way_to_the_guest_is_sent_again_in_time() {
    let mut guest = Guest::new(1500);
    let mut client = Client::new(1500, true, 5000);
    client.lost = vec![1, 3, 4, 9, 30, 31, 32, 60];
    let answer = client.ask(&mut guest, b"GET /latest/user-data HTTP/1.1\r\n\r\n");
    assert_eq!(split(&answer).1, large());
}

#[test]
fn who_asks_for_the_station_is_told_whatever_its_own_address_is() {
    let mut guest = Guest::new(1500);
    let asked = |operation: u8, target: [u8; 4]| {
        let mut frame = [[0xff; 6], GUEST].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(GUEST);
        frame.extend([10, 0, 2, 15]);
        frame.extend([0; 6]);
        frame.extend(target);
        frame.resize(60, 0);
        frame
    };
    guest.send(&asked(1, ADDRESS), FrameInfo::PLAIN);
    let mut reply = [GUEST, STATION].concat();
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(STATION);
    reply.extend(ADDRESS);
    reply.extend(GUEST);
    reply.extend([10, 0, 2, 15]);
    assert_eq!(guest.delivered(), [reply]);
    // An answer, or an announcement of somebody who has taken the address, is for nobody.
    guest.send(&asked(2, ADDRESS), FrameInfo::PLAIN);
    assert!(guest.delivered().is_empty() && guest.passed().is_empty());
    // The others' are the network's.
    let other = asked(1, [10, 0, 2, 2]);
    guest.send(&other, FrameInfo::PLAIN);
    assert_eq!(guest.passed(), [other]);
}

#[test]
fn frames_to_others_go_to_the_network_as_they_are() {
    let mut guest = Guest::new(1500);
    let mut ipv4 = [OTHER, GUEST].concat();
    ipv4.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 169, 254, 169, 253]);
    let mut tagged = [OTHER, GUEST].concat();
    tagged.extend([0x81, 0, 0, 5, 8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15]);
    tagged.extend(ADDRESS);
    let short = [&OTHER, &GUEST, [8, 0].as_slice()].concat();
    for frame in [ipv4, tagged, short] {
        guest.send(&frame, FrameInfo::PLAIN);
        assert_eq!(guest.passed(), [frame]);
    }
    assert_eq!(guest.counter("metadata_frames"), 0);
}

#[test]
fn a_client_that_says_nothing_is_reset_and_its_place_is_free() {
    let mut guest = Guest::new(1500);
    let mut silent: Vec<_> = (5000..5004).map(|port| Client::new(1500, true, port)).collect();
    for client in &mut silent {
        for _ in 0..5 {
            client.step(&mut guest);
        }
        assert_eq!(client.socket().state(), tcp::State::Established);
    }
    // There is no place for a fifth.
    let mut fifth = Client::new(1500, true, 6000);
    for _ in 0..5 {
        fifth.step(&mut guest);
    }
    assert_eq!(fifth.socket().state(), tcp::State::Closed);
    let due = guest.due.unwrap().0;
    assert!((guest.now..guest.now + 5002).contains(&due), "due at {due}");
    guest.now = due + 5000;
    guest.tick();
    assert_eq!(guest.delivered().len(), 4, "a reset for each");
    assert_eq!(guest.due, None);
    assert_eq!(get(&mut guest, 7000, "/empty").0, "HTTP/1.1 200 OK");
}

#[test]
fn a_client_that_stops_reading_is_reset() {
    let mut guest = Guest::new(1500);
    let mut client = Client::new(1500, true, 5000);
    for _ in 0..100 {
        client.step(&mut guest);
        if client.socket().can_send() && client.seen < 3 {
            client.socket().send_slice(b"GET /latest/user-data HTTP/1.1\r\n\r\n").unwrap();
        }
    }
    assert_eq!(client.socket().recv_queue(), 8192);
    for _ in 0..12_000 {
        client.step(&mut guest);
    }
    assert_eq!(client.socket().state(), tcp::State::Closed);
    assert_eq!(get(&mut guest, 7000, "/empty").0, "HTTP/1.1 200 OK");
}

#[test]
fn a_reset_of_the_device_forgets_connections() {
    let mut guest = Guest::new(1500);
    let mut client = Client::new(1500, true, 5000);
    for _ in 0..5 {
        client.step(&mut guest);
    }
    assert!(guest.service.close(Ticks(guest.now)));
    guest.tick();
    assert_eq!(guest.due, None);
    assert!(guest.delivered().is_empty());
    assert_eq!(get(&mut guest, 5000, "/empty").0, "HTTP/1.1 200 OK");
}

#[test]
fn answers_fit_the_smallest_mtu_that_a_port_can_have() {
    for mtu in [68, 576] {
        let mut guest = Guest::new(mtu);
        let request = b"GET /latest/user-data HTTP/1.1\r\n\r\n";
        let mut client = Client::new(mtu.into(), true, 5000);
        assert_eq!(split(&client.ask(&mut guest, request)).1, large());
    }
}
