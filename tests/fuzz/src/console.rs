//! A console with two ports, its driver, and whoever is at the other ends.

use sparkler::backend::clock::Ticks;
use sparkler::backend::port::{PIPE_LEN, Pipe, PortBackend};
use sparkler::virtio::MmioTransport;
use sparkler::virtio::devices::console::{Console, PortConfig};
use sparkler::virtio::queue::Areas;

use crate::guest::{BUFFERS, Bus, Guest, RAM, memories};
use crate::input::Input;

const WRITE: u16 = 2;
/// Entries of every queue.
const SIZE: u16 = 16;
const QUEUES: u16 = 6;
const CONTROL: u16 = 3;
/// Room of a chain's buffer, of which each head of a queue has its own.
const ROOM: u64 = 0x80;
const MAX_ACTIONS: usize = 200;

struct Queue {
    areas: Areas,
    available: u16,
    seen: u16,
    pending: [Option<u32>; SIZE as usize],
}

impl Queue {
    fn new(index: u16) -> Self {
        let at = RAM + 0x400 * u64::from(index);
        let areas = Areas { descriptor: at, driver: at + 0x100, device: at + 0x200 };
        Self { areas, available: 0, seen: 0, pending: [None; SIZE as usize] }
    }

    fn offer(&mut self, guest: &Guest, head: u16, address: u64, len: u32, writable: bool) {
        let flags = if writable { WRITE } else { 0 };
        let at = self.areas.descriptor + 16 * u64::from(head);
        guest.descriptor(at, (address, len, flags, 0));
        self.pending[usize::from(head)] = Some(if writable { len } else { 0 });
        guest.put_u16(self.areas.driver + 4 + 2 * u64::from(self.available % SIZE), head);
        self.available = self.available.wrapping_add(1);
        guest.put_u16(self.areas.driver + 2, self.available);
    }

    fn used(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        if guest.get_u16(self.areas.device + 2) == self.seen {
            return None;
        }
        let at = self.areas.device + 4 + 8 * u64::from(self.seen % SIZE);
        let [head, len] = [0, 4].map(|offset| u32::from_le_bytes(guest.get(at + offset)));
        self.seen = self.seen.wrapping_add(1);
        let room = self.pending[head as usize].take().expect("answered twice, or never asked");
        assert!(len <= room, "{len} bytes written of {room}");
        Some((head as u16, len))
    }
}

/// The buffer of a head of a queue.
fn buffer(index: u16, head: u16) -> u64 {
    BUFFERS + u64::from(index * SIZE + head) * ROOM
}

/// Control messages, buffers and bytes of any kind, both ways: what arrives is what was said.
pub fn console(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, _) = memories();
    let pipes = [Pipe::new(), Pipe::new()];
    let [mut near, mut near2] = [&pipes[0], &pipes[1]].map(|pipe| pipe.end(false, None));
    let mut far = [&pipes[0], &pipes[1]].map(|pipe| pipe.end(true, None));
    let mut device = Console::new();
    assert!(device.add_port(PortConfig { backend: &mut near, name: "", console: true }));
    assert!(device.add_port(PortConfig { backend: &mut near2, name: "data", console: false }));
    let mut transport = MmioTransport::new(&mut device, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let mut queues: Vec<Queue> = (0..QUEUES).map(Queue::new).collect();
    let multiport = input.flag();
    // Numbers of the bytes said and heard: to the far ends, and from them.
    let (mut said, mut heard, mut lost) = ([0_u8; 2], [0_u8; 2], [false; 2]);
    let begin = |bus: &mut Bus<'_, '_, '_>, queues: &mut Vec<Queue>| {
        guest.put(RAM, &[0; 0x1800]);
        bus.negotiate(1 << 32 | u64::from(multiport) << 1);
        *queues = (0..QUEUES).map(Queue::new).collect();
        for index in 0..if multiport { QUEUES } else { 2 } {
            bus.set(0x30, index.into());
            bus.set(0x38, SIZE.into());
            let areas = &queues[usize::from(index)].areas;
            for (low, address) in
                [(0x80, areas.descriptor), (0x90, areas.driver), (0xA0, areas.device)]
            {
                bus.set(low, address as u32);
                bus.set(low + 4, 0);
            }
            bus.set(0x44, 1);
        }
        bus.set(0x70, 15);
    };
    begin(&mut bus, &mut queues);
    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        match input.below(10) {
            action @ 0..=4 => {
                let index = if action == 0 { CONTROL } else { input.below(6) as u16 };
                let queue = &mut queues[usize::from(index)];
                let Some(head) = queue.pending.iter().position(Option::is_none) else { continue };
                let (head, at) = (head as u16, buffer(index, head as u16));
                let writable = index & 1 == 0;
                let mut len = 1 + u32::from(input.u8()) % ROOM as u32;
                if index == CONTROL {
                    let mut message = [input.u8() & 3, 0, 0, 0, input.u8() & 7, 0, 1, 0];
                    if input.below(4) == 0 {
                        message = input.u64().to_le_bytes();
                    } else {
                        message[6] = input.u8() & 1;
                        len = 8;
                    }
                    guest.put(at, &message);
                    // It may close a port, and what is on its way to it is lost.
                    lost = [true; 2];
                } else if !writable {
                    let bytes: Vec<u8> = (0..len).map(|_| input.u8()).collect();
                    guest.put(at, &bytes);
                }
                queue.offer(&guest, head, at, len, writable);
                bus.set(0x50, index.into());
            }
            5 => {
                let port = input.below(2);
                far[port].set_open(input.flag());
            }
            6 => {
                let (port, count) = (input.below(2), input.below(200));
                let bytes: Vec<u8> = (0..count)
                    .map(|_| {
                        said[port] = said[port].wrapping_add(1);
                        said[port]
                    })
                    .collect();
                if far[port].room() >= count && far[port].is_open() {
                    far[port].write(&bytes, Ticks(0));
                } else {
                    said[port] = said[port].wrapping_sub(count as u8);
                }
            }
            7 => {
                let mut out = [0; 300];
                far[input.below(2)].read(&mut out);
            }
            8 => bus.poll(),
            _ => {
                begin(&mut bus, &mut queues);
                lost = [true; 2];
            }
        }
        for (port, index) in [(0, 0), (1, 4)] {
            while let Some((head, len)) = queues[usize::from(index)].used(&guest) {
                for byte in guest.get_vec(buffer(index, head), len as usize) {
                    // In order, but for what a port that was closed has lost.
                    let next = heard[port].wrapping_add(1);
                    assert!(byte == next || lost[port], "{byte} after {}", heard[port]);
                    (heard[port], lost[port]) = (byte, false);
                }
            }
        }
        for index in [1, 2, 3, 5] {
            while queues[index].used(&guest).is_some() {}
        }
        for end in &mut far {
            assert!(end.available() <= PIPE_LEN);
        }
        assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
    }
    // What was said without anybody closing anything arrives as it is.
    begin(&mut bus, &mut queues);
    if !multiport {
        far[0].set_open(false);
        far[0].set_open(true);
        guest.put(buffer(1, 0), b"the end");
        queues[1].offer(&guest, 0, buffer(1, 0), 7, false);
        bus.set(0x50, 1);
        assert_eq!(queues[1].used(&guest), Some((0, 0)));
        let mut out = [0; 300];
        let count = far[0].read(&mut out);
        assert_eq!(out[..count], *b"the end");
        far[0].write(b"answer", Ticks(0));
        queues[0].offer(&guest, 0, buffer(0, 0), 100, true);
        bus.set(0x50, 0);
        assert_eq!(queues[0].used(&guest), Some((0, 6)));
        assert_eq!(guest.get_vec(buffer(0, 0), 6), b"answer");
    }
}
