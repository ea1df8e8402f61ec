//! The network device against a driver that knows nothing of us: the `virtio-drivers` crate.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

mod host_support;

use host_support::{GuestHal, Machine};
use sparkler::backend::loopback::{Completion, Loopback};
use sparkler::backend::net::MacAddress;
use sparkler::virtio::Features;
use sparkler::virtio::devices::net::Net;
use virtio_drivers::Error;
use virtio_drivers::device::net::{TxBuffer, VirtIONet, VirtIONetRaw};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const EVENT_IDX: Features = Features::EVENT_IDX;
const INDIRECT: Features = Features::INDIRECT_DESC;
const COMBINATIONS: [Features; 4] =
    [Features::empty(), EVENT_IDX, INDIRECT, EVENT_IDX.union(INDIRECT)];
/// Entries of a queue.
const SIZE: usize = 16;
/// Length of a receive buffer.
const BUFFER: usize = 2048;

type Driver = VirtIONet<GuestHal, Machine, SIZE>;

fn machine(completion: Completion, common: Features) -> Machine {
    let port = Loopback::new(MacAddress(MAC), 1500).with_completion(completion);
    Machine::new(Net::new(Box::leak(Box::new(port))), common)
}

fn statistic(machine: &Machine, wanted: &str) -> u64 {
    let mut found = None;
    machine.0.transport.borrow().statistics(&mut |name, value| {
        if name == wanted {
            found = Some(value);
        }
    });
    found.unwrap()
}

/// A frame of `len` bytes that tells which it is.
fn frame(stamp: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (stamp.wrapping_mul(31) ^ at ^ (at >> 8)) as u8).collect()
}

/// Sends frames of all lengths, and takes them back.
fn traffic(driver: &mut Driver, machine: &Machine, frames: usize) {
    for stamp in 0..frames {
        let sent = frame(stamp, 14 + stamp * 7 % 1501);
        driver.send(TxBuffer::from(&sent)).unwrap();
        machine.poll();
        let received = driver.receive().unwrap();
        assert!(received.packet() == sent, "frame {stamp} came back as another");
        driver.recycle_rx_buffer(received).unwrap();
    }
    assert!(matches!(driver.receive(), Err(Error::NotReady)));
}

#[test]
fn the_driver_finds_the_port_as_it_is() {
    let machine = machine(Completion::AtOnce, Features::COMMON);
    let driver = Driver::new(machine.clone(), BUFFER).unwrap();
    assert_eq!(driver.mac_address(), MAC);
    assert!(driver.can_send() && !driver.can_recv());
    assert_eq!(machine.get(0x70), 15);
}

#[test]
fn what_is_sent_comes_back_with_every_combination_of_ring_features() {
    for features in COMBINATIONS {
        for completion in [Completion::AtOnce, Completion::Later] {
            let machine = machine(completion, features);
            let mut driver = Driver::new(machine.clone(), BUFFER).unwrap();
            traffic(&mut driver, &machine, 500);
        }
    }
}

#[test]
fn the_rings_work_past_the_wrap_of_their_indices() {
    for features in COMBINATIONS {
        let machine = machine(Completion::AtOnce, features);
        let mut driver = Driver::new(machine.clone(), BUFFER).unwrap();
        traffic(&mut driver, &machine, 66_000);
        assert_eq!(statistic(&machine, "rx_frames"), 66_000);
        assert_eq!(machine.get(0x70), 15);
    }
}

#[test]
fn frames_that_are_none_are_dropped_and_those_after_them_are_not() {
    let machine = machine(Completion::AtOnce, Features::COMMON);
    let mut driver = Driver::new(machine.clone(), BUFFER).unwrap();
    for len in [0, 1, 13, 1519, 1600, 0xFFFF] {
        driver.send(TxBuffer::from(&vec![0; len])).unwrap();
    }
    assert_eq!(statistic(&machine, "tx_bad_length"), 6);
    traffic(&mut driver, &machine, 20);
}

#[test]
fn frames_that_find_no_buffer_are_lost_and_counted() {
    let machine = machine(Completion::AtOnce, Features::COMMON);
    let mut driver = Driver::new(machine.clone(), BUFFER).unwrap();
    for stamp in 0..SIZE + 5 {
        driver.send(TxBuffer::from(&frame(stamp, 60))).unwrap();
    }
    machine.poll();
    assert_eq!(statistic(&machine, "rx_no_buffer"), 5);
    for stamp in 0..SIZE {
        let received = driver.receive().unwrap();
        assert!(received.packet() == frame(stamp, 60));
        driver.recycle_rx_buffer(received).unwrap();
    }
    traffic(&mut driver, &machine, 20);
}

#[test]
fn many_frames_in_flight_complete_out_of_order() {
    for features in COMBINATIONS {
        let machine = machine(Completion::LaterReversed, features);
        let mut driver = VirtIONetRaw::<GuestHal, Machine, SIZE>::new(machine.clone()).unwrap();
        machine.0.eager.set(false);
        for round in 0..50 {
            let mut frames: Vec<(u16, Vec<u8>)> = (0..SIZE)
                .map(|at| {
                    let mut buffer = vec![0; 12];
                    buffer.extend(frame(round * SIZE + at, 100));
                    // SAFETY: the bytes stay where they are, untouched, until it is sent.
                    let token = unsafe { driver.transmit_begin(&buffer) }.unwrap();
                    (token, buffer)
                })
                .collect();
            assert!(driver.poll_transmit().is_none());
            let mut order = vec![];
            for _ in 0..4 {
                machine.poll();
                while let Some(token) = driver.poll_transmit() {
                    let at = frames.iter().position(|(it, _)| *it == token).unwrap();
                    let (_, buffer) = frames.remove(at);
                    // SAFETY: it is the one that was sent with this token.
                    assert_eq!(unsafe { driver.transmit_complete(token, &buffer) }, Ok(0));
                    order.push(token);
                }
            }
            assert!(frames.is_empty());
            assert!(order.len() == SIZE && !order.is_sorted());
        }
    }
}

#[test]
fn a_driver_that_leaves_with_frames_in_flight_does_not_disturb_the_next() {
    let machine = machine(Completion::Later, Features::COMMON);
    for _ in 0..3 {
        let mut driver = Driver::new(machine.clone(), BUFFER).unwrap();
        traffic(&mut driver, &machine, 20);
        // Stops both queues; buffers are posted, and frames come back to none.
        drop(driver);
        machine.set(0x70, 0);
        let mut raw = VirtIONetRaw::<GuestHal, Machine, SIZE>::new(machine.clone()).unwrap();
        machine.0.eager.set(false);
        let buffers: Vec<Vec<u8>> = (0..5).map(|_| vec![0; 72]).collect();
        for buffer in &buffers {
            // SAFETY: they live until after the reset.
            unsafe { raw.transmit_begin(buffer) }.unwrap();
        }
        assert!(machine.is_busy());
        drop(raw);
        machine.set(0x70, 0);
        machine.0.eager.set(true);
    }
}
