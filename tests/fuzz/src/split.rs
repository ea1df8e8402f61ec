//! Arbitrary contents of split rings and descriptors, before and while the device reads them.

use sparkler::virtio::MmioTransport;
use sparkler::virtio::devices::block::Block;
use sparkler::virtio::queue::QueueError;

use crate::disk::{Disk, Kind, Watch};
use crate::guest::{AREAS, BUFFERS, Bus, Guest, RINGS, address, memories};
use crate::honest;
use crate::input::Input;
use crate::race;

const NEEDS_RESET: u32 = 0x40;
/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 150;

/// A driver that sets its queue up properly and then writes anything into rings, descriptors and
/// buffers: between the device's turns, and at every call the device makes to its disk.
pub fn split_chains(data: &[u8]) {
    run(&mut Input::new(data), |_, _, turns| turns());
}

/// The same, with another core that writes while the device reads. What it writes depends on the
/// input alone, when it does so on chance.
pub fn split_race(data: &[u8]) {
    run(&mut Input::new(data), |guest, scribbles, turns| {
        race::while_writing(guest, scribbles, turns);
    });
}

type Scribbles = [(u64, Vec<u8>)];

/// `race` has the device take its turns, while it does what it likes.
fn run(input: &mut Input<'_>, race: impl Fn(&Guest, &Scribbles, &mut dyn FnMut())) {
    let (_guard, guest, disk) = memories();
    let kind = Kind::from_byte(input.u8());
    let (mut disk, watch) = Disk::new(kind, disk, &guest);
    watch.mood.set(u32::from(input.u8()));
    let mut block = Block::new(&mut disk);
    let mut transport = MmioTransport::new(&mut block, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let mut size = start(&mut bus, &guest, input);

    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        match input.below(12) {
            0 | 1 => descriptor(&guest, input, size),
            2 => {
                // An entry, and one more announced.
                let idx = guest.get_u16(AREAS.driver + 2);
                let head = entry(input, size);
                guest.put_u16(AREAS.driver + 4 + 2 * u64::from(idx & (size - 1)), head);
                guest.put_u16(AREAS.driver + 2, idx.wrapping_add(1));
            }
            3 => {
                let idx = guest.get_u16(AREAS.driver + 2);
                let by = if input.flag() { input.u16() } else { input.u8().into() };
                guest.put_u16(AREAS.driver + 2, idx.wrapping_add(by));
            }
            4 | 5 => request(&guest, input, size),
            6 => {
                let (address, bytes) = scribble(input, size);
                guest.put(address, &bytes);
            }
            7 => {
                for _ in 0..input.below(8) {
                    watch.scribbles.borrow_mut().push_back(scribble(input, size));
                }
            }
            8 | 9 => turn(&mut bus, &guest, &watch, size, |bus| bus.set(0x50, 0)),
            10 => {
                let scribbles: Vec<_> =
                    (0..input.below(6)).map(|_| scribble(input, size)).collect();
                let rounds = input.below(4);
                race(&guest, &scribbles, &mut || {
                    for _ in 0..=rounds {
                        bus.set(0x50, 0);
                        bus.poll();
                    }
                });
                turn(&mut bus, &guest, &watch, size, |bus| bus.poll());
            }
            _ => match input.below(8) {
                0 => size = start(&mut bus, &guest, input),
                1 => {
                    bus.reset_queue();
                    guest.put(AREAS.driver, &[0; 4]);
                    bus.configure_queue(size, &AREAS);
                }
                2 => bus.set(0x44, 0),
                3 => {
                    // More than a ring holds.
                    size = start(&mut bus, &guest, input);
                    let jump = input.u16().max(size + 1);
                    guest.put_u16(AREAS.driver + 2, jump);
                    bus.set(0x50, 0);
                    assert_eq!(bus.transport.fault(), Some(QueueError::AvailableIndex));
                    assert_eq!(bus.get(0x70), 15 | NEEDS_RESET);
                }
                4 => {
                    // A table where none was agreed to.
                    let (agreed, length) = (bus.bring_up(1 << 32, 1), length(input));
                    guest.put(AREAS.driver, &[0; RINGS]);
                    assert_eq!(agreed, 1 << 32);
                    guest.descriptor(AREAS.descriptor, (BUFFERS, length, 4, 0));
                    guest.put_u16(AREAS.driver + 2, 1);
                    bus.set(0x50, 0);
                    assert_eq!(bus.transport.fault(), Some(QueueError::Indirect));
                    size = start(&mut bus, &guest, input);
                }
                _ => turn(&mut bus, &guest, &watch, size, |bus| bus.poll()),
            },
        }
    }
    honest::prove(&mut bus, &guest, kind, &watch);
}

/// Resets the device and sets it up; the queue's size.
fn start(bus: &mut Bus<'_, '_, '_>, guest: &Guest, input: &mut Input<'_>) -> u16 {
    let (features, size) = (input.u8(), 1 << input.below(9));
    bus.set(0x70, 0);
    guest.put(AREAS.driver, &[0; RINGS]);
    let wanted =
        1 << 32 | 1 << 40 | u64::from(features & 3) << 28 | u64::from(features >> 2 & 1) << 9;
    bus.bring_up(wanted, size);
    size
}

/// The device has a turn while the driver does nothing else.
fn turn(
    bus: &mut Bus<'_, '_, '_>,
    guest: &Guest,
    watch: &Watch,
    size: u16,
    act: impl FnOnce(&mut Bus<'_, '_, '_>),
) {
    // Nobody but the device may write the used index, neither the driver nor a disk for which a
    // buffer lies over the ring.
    let quiet = watch.scribbles.borrow().is_empty() && watch.in_flight() == 0;
    let used = guest.get_u16(AREAS.device + 2);
    let broken = bus.get(0x70) & NEEDS_RESET != 0;
    watch.submitted.set(0);
    act(bus);
    assert!(watch.submitted.get() <= 2 * usize::from(size), "{} requests", watch.submitted.get());
    let answered = guest.get_u16(AREAS.device + 2).wrapping_sub(used);
    assert!(!(quiet && broken) || answered == 0, "a broken device uses buffers");
    if bus.get(0x70) & NEEDS_RESET != 0 {
        assert_eq!(bus.get(0x60) & 2, 2, "nobody is told that the device broke");
        assert!(bus.transport.fault().is_some());
    }
}

/// The index of a descriptor; mostly one there is.
fn entry(input: &mut Input<'_>, size: u16) -> u16 {
    let index = u16::from(input.u8());
    if index < 0xF0 { index & (size - 1) } else { input.u16() }
}

fn length(input: &mut Input<'_>) -> u32 {
    match input.below(8) {
        0 => input.u32(),
        1 => 16,
        2 => 512,
        3 => 1,
        4 => 16 * u32::from(input.u8()),
        5 => 512 * u32::from(input.u8()),
        _ => input.u8().into(),
    }
}

/// Any descriptor, in the queue's table or in one that may be used as an indirect table.
fn descriptor(guest: &Guest, input: &mut Input<'_>, size: u16) {
    let index = entry(input, size) & 0xFF;
    let table = match input.below(4) {
        0 => BUFFERS + 0x1000,
        1 => BUFFERS + 0x1000 + u64::from(input.u8()),
        _ => AREAS.descriptor,
    };
    let address = match input.below(4) {
        0 => address(input),
        1 => BUFFERS + 0x1000,
        _ => BUFFERS + u64::from(input.u16() & 0xFFF),
    };
    let (len, flags) = (length(input), u16::from(input.u8() & 7));
    let next = entry(input, size);
    guest.descriptor(table + 16 * u64::from(index), (address, len, flags, next));
}

/// A proper request, made available; what comes before and after may spoil it.
fn request(guest: &Guest, input: &mut Input<'_>, size: u16) {
    let (request_type, sector, indirect) = (input.u8(), input.u8(), input.flag());
    let head = entry(input, size);
    let idx = guest.get_u16(AREAS.driver + 2);
    let mask = size - 1;
    let at = BUFFERS + 0x40 * u64::from(idx & 15);
    let mut header = [0; 16];
    (header[0], header[8]) = (request_type & 15, sector & 15);
    guest.put(at, &header);
    let write = u16::from(request_type & 1 == 0) * 2;
    let (table, first) =
        if indirect { (BUFFERS + 0x1000, 0) } else { (AREAS.descriptor, head & mask) };
    let next = |by: u16| if indirect { by } else { first.wrapping_add(by) & mask };
    let place = |by: u16| table + 16 * u64::from(next(by));
    guest.descriptor(place(0), (at, 16, 1, next(1)));
    guest.descriptor(place(1), (BUFFERS + 0x2000, 512, 1 | write, next(2)));
    guest.descriptor(place(2), (at + 0x20, 1, 2, 0));
    if indirect {
        let place = AREAS.descriptor + 16 * u64::from(head & mask);
        guest.descriptor(place, (table, 48, 4, 0));
    }
    guest.put_u16(AREAS.driver + 4 + 2 * u64::from(idx & mask), head);
    guest.put_u16(AREAS.driver + 2, idx.wrapping_add(1));
}

/// A write by the driver: where, and what.
fn scribble(input: &mut Input<'_>, size: u16) -> (u64, Vec<u8>) {
    match input.below(8) {
        // avail.idx.
        0 => (AREAS.driver + 2, input.u16().to_le_bytes().to_vec()),
        1 => (AREAS.driver + 2, u16::from(input.u8()).to_le_bytes().to_vec()),
        // An entry of the available ring.
        2 => {
            let slot = u64::from(input.u8());
            (AREAS.driver + 4 + 2 * slot, entry(input, size).to_le_bytes().to_vec())
        }
        // A descriptor's length, flags and next; its address; or one of them alone.
        3 => {
            let index = u64::from(input.u8());
            let mut bytes = length(input).to_le_bytes().to_vec();
            bytes.extend(u16::from(input.u8() & 7).to_le_bytes());
            bytes.extend(entry(input, size).to_le_bytes());
            (AREAS.descriptor + 16 * index + 8, bytes)
        }
        4 => {
            let index = u64::from(input.u8());
            (AREAS.descriptor + 16 * index, address(input).to_le_bytes().to_vec())
        }
        // The same in an indirect table.
        5 => {
            let place = BUFFERS + 0x1000 + u64::from(input.u8());
            (place, input.u64().to_le_bytes().to_vec())
        }
        // A header.
        6 => (BUFFERS + u64::from(input.u8()), input.u8().to_le_bytes().to_vec()),
        _ => {
            let address = address(input);
            let len = 1 + input.below(16);
            (address, input.bytes(len).to_vec())
        }
    }
}
