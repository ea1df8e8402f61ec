//! The socket device against a driver that knows nothing of us: two of the `virtio-drivers` crate, which talk with
//! each other.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

mod host_support;

use host_support::{GuestHal, Machine};
use sparkler::backend::clock::Frequency;
use sparkler::backend::vsock::{Desk, Fabric, MONITOR_PORT, PortCell, PortConfig};
use sparkler::backend::wake::{Wake, Waker};
use sparkler::virtio::Features;
use sparkler::virtio::devices::vsock::Vsock;
use virtio_drivers::device::socket::{
    DisconnectReason, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};

const EVENT_IDX: Features = Features::EVENT_IDX;
const INDIRECT: Features = Features::INDIRECT_DESC;
const COMBINATIONS: [Features; 4] =
    [Features::empty(), EVENT_IDX, INDIRECT, EVENT_IDX.union(INDIRECT)];

/// Nobody sleeps: devices are polled all the time.
struct Nobody;

impl Wake for Nobody {
    fn wake(&self, _: u8) {}
}

/// A guest: its machine, and its driver.
struct Guest {
    machine: Machine,
    driver: VsockConnectionManager<GuestHal, Machine>,
}

impl Guest {
    fn new(
        fabric: &'static Fabric<'static>,
        cid: u32,
        peer: u32,
        desk: Option<&'static Desk>,
        common: Features,
    ) -> Self {
        let peers = [peer].into_iter().collect();
        let config = PortConfig { cid, peers, desk, waker: Waker::new(&Nobody, 0) };
        let cell = Box::leak(Box::new(PortCell::new(config)));
        let machine = Machine::new(Vsock::new(fabric.attach(cell).unwrap()), common);
        let driver = VirtIOSocket::new(machine.clone()).unwrap();
        Self { machine, driver: VsockConnectionManager::new(driver) }
    }

    fn event(&mut self) -> Option<VsockEventType> {
        self.machine.poll();
        self.driver.poll().unwrap().map(|event| event.event_type)
    }
}

fn fabric() -> &'static Fabric<'static> {
    Box::leak(Box::new(Fabric::new(Frequency::new(1000).unwrap())))
}

/// A byte that depends on its place.
fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Sends `total` bytes by a connection, and compares what arrives.
fn transfer(from: &mut Guest, to: &mut Guest, [there, back]: [(VsockAddr, u32); 2], total: usize) {
    let (mut sent, mut got, mut size) = (0, 0, 1);
    let mut buffer = [0; 700];
    while got < total {
        size = size * 7 % 997 + 1;
        let piece: Vec<u8> = (sent..total.min(sent + size)).map(byte).collect();
        // As long as the other has room.
        if !piece.is_empty() && from.driver.send(there.0, there.1, &piece).is_ok() {
            sent += piece.len();
        }
        while to.event().is_some() {}
        let count = to.driver.recv(back.0, back.1, &mut buffer).unwrap();
        assert_eq!(buffer[..count], (got..got + count).map(byte).collect::<Vec<_>>());
        got += count;
        to.driver.update_credit(back.0, back.1).unwrap();
        while from.event().is_some() {}
    }
}

#[test]
fn two_drivers_connect_and_what_they_send_arrives_with_every_combination_of_ring_features() {
    for common in COMBINATIONS {
        let fabric = fabric();
        let mut a = Guest::new(fabric, 3, 4, None, common);
        let mut b = Guest::new(fabric, 4, 3, None, common);
        assert_eq!((a.driver.guest_cid(), b.driver.guest_cid()), (3, 4));
        let (at_a, at_b) = (VsockAddr { cid: 3, port: 1000 }, VsockAddr { cid: 4, port: 80 });
        b.driver.listen(80);
        a.driver.connect(at_b, 1000).unwrap();
        assert_eq!(b.event(), Some(VsockEventType::ConnectionRequest));
        assert_eq!(a.event(), Some(VsockEventType::Connected));
        transfer(&mut a, &mut b, [(at_b, 1000), (at_a, 80)], 200_000);
        transfer(&mut b, &mut a, [(at_a, 80), (at_b, 1000)], 200_000);
        a.driver.shutdown(at_b, 1000).unwrap();
        let reason = DisconnectReason::Shutdown;
        assert_eq!(b.event(), Some(VsockEventType::Disconnected { reason }));
        let reason = DisconnectReason::Reset;
        assert_eq!(a.event(), Some(VsockEventType::Disconnected { reason }));
        assert_eq!((a.machine.get(0x70), b.machine.get(0x70)), (15, 15));
    }
}

#[test]
fn a_driver_is_refused_by_ports_nobody_listens_at_and_learns_that_its_peer_is_gone() {
    let fabric = fabric();
    let mut a = Guest::new(fabric, 3, 4, None, Features::COMMON);
    let mut b = Guest::new(fabric, 4, 3, None, Features::COMMON);
    let reset = Some(VsockEventType::Disconnected { reason: DisconnectReason::Reset });
    for (cid, port) in [(4, 81), (5, 80), (2, MONITOR_PORT)] {
        a.driver.connect(VsockAddr { cid, port }, 1000).unwrap();
        assert_eq!(b.event(), None);
        assert_eq!(a.event(), reset);
    }
    b.driver.listen(80);
    a.driver.connect(VsockAddr { cid: 4, port: 80 }, 1000).unwrap();
    assert_eq!(b.event(), Some(VsockEventType::ConnectionRequest));
    assert_eq!(a.event(), Some(VsockEventType::Connected));
    b.machine.set(0x70, 0);
    assert_eq!(a.event(), reset);
}

#[test]
fn a_driver_gives_commands_and_reads_long_answers_piece_by_piece() {
    let desk: &Desk = Box::leak(Box::new(Desk::new()));
    let mut a = Guest::new(fabric(), 3, 4, Some(desk), Features::COMMON);
    // It is polled until a command is carried out, which is done here.
    a.machine.0.eager.set(false);
    let host = VsockAddr { cid: 2, port: MONITOR_PORT };
    a.driver.connect(host, 1000).unwrap();
    assert_eq!(a.event(), Some(VsockEventType::Connected));
    for turn in 0..50 {
        a.driver.send(host, 1000, format!("command {turn}\n").as_bytes()).unwrap();
        let answer: String = (0..300).map(|at| format!("{turn:02}.{at:03}    ")).collect();
        assert!(desk.is_asked());
        desk.serve(&mut |line, out| {
            assert_eq!(line, format!("command {turn}").as_bytes());
            out.write_str(&answer).unwrap();
        });
        let (mut heard, mut buffer) = (Vec::new(), [0; 300]);
        while heard.len() < answer.len() {
            while a.event().is_some() {}
            let count = a.driver.recv(host, 1000, &mut buffer).unwrap();
            heard.extend_from_slice(&buffer[..count]);
            a.driver.update_credit(host, 1000).unwrap();
        }
        assert_eq!(heard, answer.as_bytes());
    }
}
