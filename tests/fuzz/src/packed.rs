//! Arbitrary contents of packed rings, before and while the device reads them.

use sparkler::virtio::devices::block::Block;
use sparkler::virtio::queue::QueueError;
use sparkler::virtio::{MmioTransport, Width};

use crate::disk::{Disk, Kind, Watch};
use crate::guest::{AREAS, BUFFERS, Bus, Guest, PACKED, RINGS, address, memories};
use crate::honest;
use crate::input::Input;
use crate::race;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const NEEDS_RESET: u32 = 0x40;
/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 150;

/// A driver that sets its packed queue up properly and then writes anything into descriptors, event
/// suppression structures and buffers: between the device's turns, at every call the device makes
/// to its disk, and from a second thread while the device reads.
pub fn packed_chains(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, disk) = memories();
    let kind = Kind::from_byte(input.u8());
    let (mut disk, watch) = Disk::new(kind, disk, &guest);
    watch.mood.set(u32::from(input.u8()));
    let mut block = Block::new(&mut disk);
    let mut transport = MmioTransport::new(&mut block, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let mut ring = Ring::start(&mut bus, &guest, input);

    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        let broken = bus.get(0x70) & NEEDS_RESET != 0;
        watch.submitted.set(0);
        let mut turns = 1;
        match input.below(12) {
            0 | 1 => {
                let (at, bytes) = ring.descriptor(input);
                guest.put(at, &bytes);
            }
            2..=4 => ring.request(&guest, input),
            5 => {
                let (at, bytes) = ring.scribble(input);
                guest.put(at, &bytes);
            }
            6 => {
                for _ in 0..input.below(8) {
                    watch.scribbles.borrow_mut().push_back(ring.scribble(input));
                }
            }
            7 | 8 => bus.set(0x50, 0),
            9 => {
                // With a place in the ring, right or wrong, if that was agreed to.
                let place = input.u16();
                let _ = bus.store(0x50, Width::Word, u64::from(place) << 16);
            }
            10 => {
                let scribbles: Vec<_> = (0..input.below(6)).map(|_| ring.scribble(input)).collect();
                let rounds = input.below(4);
                turns = 2 * (rounds + 1);
                race::while_writing(&guest, &scribbles, || {
                    for _ in 0..=rounds {
                        bus.set(0x50, 0);
                        bus.poll();
                    }
                });
            }
            _ => match input.below(8) {
                0 => ring = Ring::start(&mut bus, &guest, input),
                1 => {
                    bus.reset_queue();
                    guest.put(AREAS.descriptor, &[0; 0x1000]);
                    bus.configure_queue(ring.size, &AREAS);
                    (ring.index, ring.wrap) = (0, true);
                }
                2 => bus.set(0x44, 0),
                3 => {
                    overrun(&mut bus, &guest, &watch, input);
                    ring = Ring::start(&mut bus, &guest, input);
                }
                4 => {
                    // A table where none was agreed to.
                    let agreed = bus.bring_up(1 << 32 | PACKED, 1);
                    assert_eq!(agreed, 1 << 32 | PACKED);
                    let table = bytes(BUFFERS, length(input), 0, INDIRECT | AVAIL);
                    guest.put(AREAS.descriptor, &table);
                    bus.set(0x50, 0);
                    assert_eq!(bus.transport.fault(), Some(QueueError::Indirect));
                    ring = Ring::start(&mut bus, &guest, input);
                }
                _ => bus.poll(),
            },
        }
        let submitted = watch.submitted.get();
        assert!(submitted <= 2 * turns * usize::from(ring.size), "{submitted} requests");
        if bus.get(0x70) & NEEDS_RESET != 0 {
            assert!(!broken || submitted == 0, "a broken device goes on");
            assert_eq!(bus.get(0x60) & 2, 2, "nobody is told that the device broke");
            assert!(bus.transport.fault().is_some());
        }
    }
    honest::prove_packed(&mut bus, &guest, kind, &watch);
}

/// More than the ring has room for: a list that is made available where one in flight is, or that
/// runs into it.
fn overrun(bus: &mut Bus<'_, '_, '_>, guest: &Guest, watch: &Watch, input: &mut Input<'_>) {
    let into = u16::from(input.flag());
    bus.bring_up(1 << 32 | PACKED, 3 + into);
    guest.put(AREAS.descriptor, &[0; 0x1000]);
    watch.scribbles.borrow_mut().clear();
    let mut ring = Ring { size: 3 + into, index: 0, wrap: true };
    // A sector of the disk, not by an indirect table.
    ring.request(guest, &mut Input::new(&[0]));
    bus.set(0x50, 0);
    if watch.in_flight() == 0 {
        // A disk in no mood for it.
        return;
    }
    for by in 0..=into {
        let next = if by < into { NEXT } else { 0 };
        guest.put(ring.place(by), &bytes(BUFFERS, 16, 0, ring.available(by) | next));
    }
    bus.set(0x50, 0);
    let expected = [QueueError::AvailableIndex, QueueError::ChainTooLong][usize::from(into)];
    assert_eq!(bus.transport.fault(), Some(expected));
}

/// What the driver knows of its ring.
struct Ring {
    size: u16,
    /// Where the next list goes, and the lap.
    index: u16,
    wrap: bool,
}

impl Ring {
    /// Resets the device and sets it up.
    fn start(bus: &mut Bus<'_, '_, '_>, guest: &Guest, input: &mut Input<'_>) -> Self {
        let (features, size) = (input.u8(), input.u8().max(1).into());
        bus.set(0x70, 0);
        guest.put(AREAS.descriptor, &[0; 0x1000]);
        guest.put(AREAS.driver, &[0; RINGS]);
        let flags = u64::from(features & 3) << 28 | u64::from(features >> 2 & 1) << 9;
        let notification_data = u64::from(features >> 3 & 1) << 38;
        let agreed = bus.bring_up(1 << 32 | PACKED | 1 << 40 | flags | notification_data, size);
        assert_eq!(agreed & PACKED, PACKED);
        Self { size, index: 0, wrap: true }
    }

    /// The flags that make a descriptor `by` places on available.
    fn available(&self, by: u16) -> u16 {
        if (self.index + by >= self.size) ^ self.wrap { AVAIL } else { USED }
    }

    fn place(&self, by: u16) -> u64 {
        AREAS.descriptor + 16 * u64::from((self.index + by) % self.size)
    }

    fn advance(&mut self, by: u16) {
        self.index += by;
        if self.index >= self.size {
            self.index %= self.size;
            self.wrap = !self.wrap;
        }
    }

    /// Any descriptor near the next place, or anywhere; where and what.
    fn descriptor(&mut self, input: &mut Input<'_>) -> (u64, Vec<u8>) {
        let by = u16::from(input.u8() & 15) % self.size;
        let flags = match input.u8() {
            proper @ 0..0xC0 => self.available(by) | u16::from(proper & 7),
            other => u16::from(other & 7) | u16::from(input.u8()) << 8 & USED | AVAIL,
        };
        let address = match input.below(4) {
            0 => address(input),
            1 => BUFFERS + 0x1000,
            _ => BUFFERS + u64::from(input.u16() & 0xFFF),
        };
        let (len, id) = (length(input), u16::from(input.u8()));
        let at = if input.u8() < 0xF0 { self.place(by) } else { AREAS.descriptor + by as u64 };
        if input.flag() {
            self.advance(1);
        }
        (at, bytes(address, len, id, flags))
    }

    /// A proper request, made available; what comes before and after may spoil it.
    fn request(&mut self, guest: &Guest, input: &mut Input<'_>) {
        let (request_type, sector, indirect) = (input.u8(), input.u8(), input.flag());
        let at = BUFFERS + 0x40 * u64::from(self.index & 15);
        let mut header = [0; 16];
        (header[0], header[8]) = (request_type & 15, sector & 15);
        guest.put(at, &header);
        let write = if request_type & 1 == 0 { WRITE } else { 0 };
        let data = BUFFERS + 0x2000;
        let buffers = [(at, 16, NEXT), (data, 512, NEXT | write), (at + 0x20, 1, WRITE)];
        let id = input.u16();
        if indirect {
            let table = BUFFERS + 0x1000;
            for (index, (address, len, flags)) in (0..).zip(buffers) {
                guest.put(table + 16 * index, &bytes(address, len, id, flags));
            }
            let flags = INDIRECT | self.available(0);
            guest.put(self.place(0), &bytes(table, 48, id, flags));
            self.advance(1);
        } else {
            for (by, (address, len, flags)) in (0..).zip(buffers) {
                let flags = flags | self.available(by);
                guest.put(self.place(by), &bytes(address, len, id, flags));
            }
            self.advance(3);
        }
    }

    /// A write by the driver: where, and what.
    fn scribble(&mut self, input: &mut Input<'_>) -> (u64, Vec<u8>) {
        match input.below(8) {
            0 | 1 => self.descriptor(input),
            // The flags of a descriptor alone, its length, its address.
            2 => {
                let by = u16::from(input.u8()) % self.size;
                let flags = self.available(by) ^ u16::from(input.u8() & 7);
                (self.place(by) + 14, flags.to_le_bytes().to_vec())
            }
            3 => {
                let by = u16::from(input.u8()) % self.size;
                (self.place(by) + 8, length(input).to_le_bytes().to_vec())
            }
            4 => {
                let by = u16::from(input.u8()) % self.size;
                (self.place(by), address(input).to_le_bytes().to_vec())
            }
            // The driver's event suppression structure, and the device's, which it has not to write.
            5 => {
                let area = if input.u8() < 0xC0 { AREAS.driver } else { AREAS.device };
                (area, input.u32().to_le_bytes().to_vec())
            }
            // An indirect table.
            6 => {
                let place = BUFFERS + 0x1000 + u64::from(input.u8());
                (place, input.u64().to_le_bytes().to_vec())
            }
            _ => (BUFFERS + u64::from(input.u8()), vec![input.u8()]),
        }
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    match input.below(6) {
        0 => input.u32(),
        1 => 16,
        2 => 512,
        3 => 16 * u32::from(input.u8()),
        4 => 512 * u32::from(input.u8()),
        _ => input.u8().into(),
    }
}

fn bytes(address: u64, len: u32, id: u16, flags: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(id.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}
