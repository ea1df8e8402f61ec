use super::*;
use crate::backend::port::{PIPE_LEN, Pipe, PipeEnd};
use crate::memory::HostRam;
use crate::virtio::queue::Areas;
use crate::virtio::testing::{BUFFERS, Driver, NOW, RAM, RAM_SIZE, Registers, guest_memory};
use crate::virtio::{MmioTransport, Status, Width};

const SIZE: u16 = 16;

/// A driver's side of one queue: the rings of queue n are n KiB after the beginning of RAM.
fn queue<'m>(ram: &'m HostRam, index: u16) -> Driver<'m> {
    let at = RAM + 0x400 * u64::from(index);
    let areas = Areas { descriptor: at, driver: at + 0x100, device: at + 0x200 };
    let memory = guest_memory(ram);
    Driver { memory, areas, size: SIZE, available: 0, seen: 0 }
}

struct Setup<'s, 'd, 'm> {
    transport: &'s mut MmioTransport<'d, 'm>,
    queues: Vec<Driver<'m>>,
    heads: Vec<u16>,
}

/// A device with two ports, a console and one called "data", each with the far end of a pipe.
fn with(features: Features, test: impl FnOnce(&mut Setup<'_, '_, '_>, [&mut PipeEnd<'_>; 2])) {
    let ram = HostRam::new(RAM_SIZE);
    let pipes = [Pipe::new(), Pipe::new()];
    let [mut near, mut near2] = [pipes[0].end(false, None), pipes[1].end(false, None)];
    let [mut far, mut far2] = [pipes[0].end(true, None), pipes[1].end(true, None)];
    far.set_open(true);
    let mut device = Console::new();
    assert!(device.add_port(PortConfig { backend: &mut near, name: "", console: true }));
    assert!(device.add_port(PortConfig { backend: &mut near2, name: "data", console: false }));
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    let mut setup = Setup { transport: &mut transport, queues: vec![], heads: vec![] };
    setup.start(&ram, features);
    test(&mut setup, [&mut far, &mut far2]);
}

impl<'m> Setup<'_, '_, 'm> {
    fn start(&mut self, ram: &'m HostRam, features: Features) {
        guest_memory(ram).slice(crate::memory::Ipa::new(RAM), 0x4000).unwrap().fill(0, 0x4000, 0);
        assert!(self.transport.negotiate(Features::VERSION_1 | features));
        self.queues = (0..6).map(|index| queue(ram, index)).collect();
        self.heads = vec![0; 6];
        let count = if features.contains(MULTIPORT) { 6 } else { 2 };
        for index in 0..count {
            let areas = self.queues[index].areas;
            self.transport.configure_queue(index as u32, SIZE.into(), &areas);
            self.transport.set(0x44, 1);
        }
        self.transport.set(0x70, 15);
    }

    /// Offers a buffer of a queue, and rings.
    fn offer(&mut self, index: u16, address: u64, len: u32, writable: bool) {
        let queue = &mut self.queues[usize::from(index)];
        let head = &mut self.heads[usize::from(index)];
        queue.chain(*head, &[(address, len, writable)]);
        queue.offer(*head);
        *head = (*head + 1) % SIZE;
        self.transport.set(0x50, index.into());
    }

    fn send(&mut self, index: u16, bytes: &[u8]) -> Option<(u32, u32)> {
        self.queues[0].put(BUFFERS, bytes);
        self.offer(index, BUFFERS, bytes.len() as u32, false);
        self.queues[usize::from(index)].used()
    }

    fn control(&mut self, id: u32, event: u16, value: u16) {
        assert!(self.send(CONTROL_TRANSMIT, &wire::control(id, event, value)).is_some());
    }

    /// A message to the driver: port, event, value, what follows.
    fn told(&mut self) -> Option<(u32, u16, u16, Vec<u8>)> {
        let address = BUFFERS + 0x1000;
        self.offer(CONTROL_RECEIVE, address, 64, true);
        let (_, len) = self.queues[usize::from(CONTROL_RECEIVE)].used()?;
        let bytes: [u8; 64] = self.queues[0].get(address);
        let (id, event, value) = wire::parse(*bytes.first_chunk().unwrap());
        Some((id, event, value, bytes[wire::CONTROL_SIZE..len as usize].to_vec()))
    }

    fn statistic(&self, wanted: &str) -> u64 {
        let mut found = 0;
        self.transport.statistics(&mut |name, value| {
            if name == wanted {
                found = value;
            }
        });
        found
    }
}

fn read(end: &mut PipeEnd<'_>) -> Vec<u8> {
    let mut out = vec![0; PIPE_LEN];
    let count = end.read(&mut out);
    out.truncate(count);
    out
}

#[test]
fn configuration_has_size_and_ports_and_an_emergency_byte_is_sent_at_any_time() {
    with(Features::empty(), |setup, [far, _]| {
        let word = |setup: &Setup<'_, '_, '_>, at: u16| setup.transport.get(0x100 + at);
        assert_eq!([word(setup, 0), word(setup, 4), word(setup, 8)], [24 << 16 | 80, 2, 0]);
        setup.transport.set(0x108, 0x1234_5641);
        setup.transport.set(0x70, 0);
        setup.transport.set(0x108, 0x42);
        let _ = setup.transport.write(0x108, Width::Byte, 0x43, NOW);
        assert_eq!(read(far), b"ABC");
        // Nothing else can be written.
        setup.transport.set(0x100, 7);
        assert_eq!(word(setup, 0), 24 << 16 | 80);
    });
}

#[test]
fn without_multiport_port_0_works_both_ways_and_no_other_queue_does() {
    with(Features::empty(), |setup, [far, far2]| {
        assert!(far.is_open() && !far2.is_open());
        assert_eq!(setup.send(1, b"hello"), Some((0, 0)));
        assert_eq!(read(far), b"hello");
        setup.offer(0, BUFFERS + 0x100, 3, true);
        assert_eq!(setup.queues[0].used(), None);
        far.write(b"input", Ticks(0));
        setup.transport.poll(NOW);
        assert_eq!(setup.queues[0].used(), Some((0, 3)));
        assert_eq!(setup.queues[0].get::<3>(BUFFERS + 0x100), *b"inp");
        setup.offer(0, BUFFERS + 0x100, 100, true);
        assert_eq!(setup.queues[0].used(), Some((1, 2)));
        assert_eq!(setup.statistic("bytes_read"), 5);
    });
}

#[test]
fn ports_are_announced_once_and_open_when_their_driver_and_the_other_end_are() {
    with(MULTIPORT, |setup, [far, far2]| {
        assert_eq!(setup.told(), None);
        setup.control(9, event::DEVICE_READY, 1);
        // The buffer from before.
        assert_eq!(setup.queues[2].used().map(|it| it.1), Some(8));
        assert_eq!(setup.told(), Some((1, event::DEVICE_ADD, 0, vec![])));
        setup.control(0, event::DEVICE_READY, 1);
        // That the other end of port 0 is there is of no interest before its driver is.
        assert_eq!(setup.told(), None);
        setup.control(1, event::PORT_READY, 1);
        assert_eq!(setup.queues[2].used().map(|it| it.1), Some(8 + 4));
        let name: [u8; 12] = setup.queues[0].get(BUFFERS + 0x1000);
        assert_eq!((&name[..8], &name[8..]), (&wire::control(1, 7, 1)[..], &b"data"[..]));
        assert_eq!(setup.told(), Some((1, event::PORT_OPEN, 0, vec![])));
        setup.control(0, event::PORT_READY, 1);
        assert_eq!(setup.told(), Some((0, event::CONSOLE_PORT, 1, vec![])));
        assert_eq!(setup.told(), Some((0, event::PORT_OPEN, 1, vec![])));
        assert_eq!(setup.told(), Some((0, event::RESIZE, 0, vec![80, 0, 24, 0])));
        assert!(!far.is_open());
        setup.control(0, event::PORT_OPEN, 1);
        setup.control(1, event::PORT_OPEN, 1);
        assert!(far.is_open() && far2.is_open());
        far2.set_open(true);
        setup.transport.poll(NOW);
        assert_eq!(setup.told(), Some((1, event::PORT_OPEN, 1, vec![])));
        assert_eq!(setup.send(5, b"to the other"), Some((0, 0)));
        assert_eq!(read(far2), b"to the other");
        setup.control(1, event::PORT_OPEN, 0);
        assert!(!far2.is_open());
        assert_eq!(setup.statistic("errors"), 0);
    });
}

#[test]
fn messages_that_make_no_sense_are_counted_and_change_nothing() {
    with(MULTIPORT, |setup, [far, far2]| {
        // Before the device is ready there are no ports.
        setup.control(0, event::PORT_OPEN, 1);
        setup.control(0, event::DEVICE_READY, 0);
        setup.control(0, event::PORT_READY, 1);
        assert_eq!(setup.statistic("errors"), 2);
        setup.control(0, event::DEVICE_READY, 1);
        for id in [2, 3, 0x1_0000, u32::MAX] {
            setup.control(id, event::PORT_OPEN, 1);
            setup.control(id, event::PORT_READY, 1);
        }
        for event in [1, 2, 4, 5, 7, 8, u16::MAX] {
            setup.control(0, event, 1);
        }
        assert_eq!(setup.statistic("errors"), 2 + 8 + 7);
        for len in [1, 7, 9, 100] {
            let message = wire::control(0, event::PORT_OPEN, 1).repeat(13);
            assert!(setup.send(CONTROL_TRANSMIT, &message[..len]).is_some());
        }
        assert_eq!(setup.statistic("errors"), 2 + 8 + 7 + 4);
        assert!(!far.is_open() && !far2.is_open());
        // A buffer with no room for the message loses it.
        setup.offer(CONTROL_RECEIVE, BUFFERS, 7, true);
        assert_eq!(setup.queues[2].used(), Some((0, 0)));
        assert_eq!(setup.told(), Some((1, event::DEVICE_ADD, 0, vec![])));
        assert!(!setup.transport.status().contains(Status::DEVICE_NEEDS_RESET));
    });
}

#[test]
fn what_the_other_end_has_no_room_for_waits_and_arrives_once_and_in_order() {
    with(Features::empty(), |setup, [far, _]| {
        let bytes: Vec<u8> = (0..10_000).map(|at: u32| (at ^ at >> 8) as u8).collect();
        assert_eq!(setup.send(1, &bytes), None);
        let mut heard = read(far);
        assert_eq!((heard.len(), setup.transport.next_poll()), (PIPE_LEN, NextPoll::OnEvent));
        for _ in 0..10 {
            setup.transport.poll(NOW);
            heard.extend(read(far));
        }
        assert!(heard == bytes);
        assert_eq!(setup.queues[1].used(), Some((0, 0)));
        assert_eq!(setup.send(1, b"next"), Some((1, 0)));
        assert_eq!(read(far), b"next");
    });
}

#[test]
fn a_reset_closes_the_ports_and_forgets_what_was_half_sent() {
    let ram = HostRam::new(RAM_SIZE);
    let pipe = Pipe::new();
    let (mut near, mut far) = (pipe.end(false, None), pipe.end(true, None));
    far.set_open(true);
    let mut device = Console::new();
    assert!(device.add_port(PortConfig { backend: &mut near, name: "", console: true }));
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    let mut setup = Setup { transport: &mut transport, queues: vec![], heads: vec![] };
    setup.start(&ram, Features::empty());
    assert_eq!(setup.send(1, &[1; 5000]), None);
    setup.transport.set(0x70, 0);
    assert!(!far.is_open());
    read(&mut far);
    setup.start(&ram, Features::empty());
    assert!(far.is_open());
    assert_eq!(setup.send(1, b"whole"), Some((0, 0)));
    assert_eq!(read(&mut far), b"whole");
}

#[test]
fn a_terminal_of_another_size_is_told_of_in_both_ways() {
    struct Clock;
    impl crate::backend::clock::Clock for Clock {
        fn now(&self) -> Ticks {
            NOW
        }
        fn frequency(&self) -> Frequency {
            Frequency::new(1).unwrap()
        }
    }
    with(MULTIPORT, |setup, _| {
        setup.control(0, event::DEVICE_READY, 1);
        setup.control(0, event::PORT_READY, 1);
        while setup.told().is_some() {}
        setup.queues[2].seen = setup.queues[2].used_idx();
        let generation = setup.transport.get(0xFC);
        assert_eq!(setup.transport.adjust(Adjustment::Size([132, 43]), &Clock), Ok(()));
        assert_eq!(setup.transport.get(0x100), 43 << 16 | 132);
        assert_ne!(setup.transport.get(0xFC), generation);
        assert_eq!(setup.queues[2].used().map(|it| it.1), Some(12));
        let unsupported = Err(NotAdjusted::Unsupported);
        assert_eq!(setup.transport.adjust(Adjustment::Link(true), &Clock), unsupported);
    });
}

#[test]
fn a_device_has_so_many_ports_and_no_more() {
    let pipes = [const { Pipe::new() }; MAX_PORTS + 1];
    let mut ends: Vec<_> = pipes.iter().map(|pipe| pipe.end(false, None)).collect();
    let mut device = Console::new();
    for (count, end) in ends.iter_mut().enumerate() {
        let added = device.add_port(PortConfig { backend: end, name: "", console: false });
        assert_eq!(added, count < MAX_PORTS);
    }
    assert_eq!(device.queue_max_sizes().len(), 2 * (MAX_PORTS + 1));
    for port in 0..MAX_PORTS {
        for index in queues(port) {
            assert!((index != CONTROL_RECEIVE) && (index != CONTROL_TRANSMIT));
        }
    }
}
