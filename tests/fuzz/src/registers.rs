//! Arbitrary register traffic.

use sparkler::backend::clock::Ticks;
use sparkler::virtio::devices::block::Block;
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};

use crate::disk::{Disk, Kind};
use crate::guest::{BUFFERS, Bus, Guest, address, areas, memories};
use crate::honest;
use crate::input::Input;

/// The registers.
const OFFSETS: [u16; 32] = [
    0x000, 0x004, 0x008, 0x00C, 0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050,
    0x060, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0A0, 0x0A4, 0x0AC, 0x0B0, 0x0B4, 0x0B8,
    0x0BC, 0x0C0, 0x0FC, 0x100, 0x118, 0xFFC,
];
const STATUS: u16 = 0x70;
const QUEUE_READY: u16 = 0x44;
const CONFIG: u16 = 0x100;

/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 200;

/// Register reads and writes of any offset, width and value, between steps of a proper
/// initialisation, requests, polls and time.
pub fn registers(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, disk) = memories();
    // The first byte says, besides the disk, how large queues are and how long requests.
    let first = input.u8();
    let kind = Kind::from_byte(first);
    let shape = usize::from(first / 5);
    let max_size = [u16::MAX, 1024, 300, 64, 9, 8, 512, 257][shape % 8];
    let common = Features::from_bits_retain(input.u64());
    let (mut disk, watch) = Disk::new(kind, disk, &guest);
    watch.mood.set(u32::from(input.u8()));
    let mut block = Block::new(&mut disk);
    if shape >= 8 {
        block.limit_segments(shape as u16 / 8);
    }
    let mut transport = MmioTransport::new(&mut block, guest.memory.clone())
        .with_common_features(common)
        .with_max_queue_size(max_size);
    let mut bus = Bus::new(&mut transport);

    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        let before = bus.get(STATUS);
        watch.submitted.set(0);
        match input.below(8) {
            0 => {
                let (offset, width) = (place(input), width(input));
                read(&bus, offset, width);
            }
            1..=3 => {
                let (offset, width, value) = (place(input), width(input), value(input));
                write(&mut bus, offset, width, value);
            }
            4 => bus.poll(),
            5 => step(&mut bus, input),
            6 => offer(&guest, input),
            _ => match input.below(3) {
                0 => bus.now = bus.now.after(Ticks(input.u64())),
                1 => {
                    let outcome = bus.transport.reset_by_machine(bus.now);
                    assert!(outcome == WriteOutcome::Done || bus.transport.has_work_in_flight());
                }
                _ => bus.set(0x50, 0),
            },
        }
        check(&bus, before);
        // 1024 entries in a queue, and a flush more for each.
        assert!(watch.submitted.get() <= 2048, "one action, {} requests", watch.submitted.get());
    }
    honest::prove(&mut bus, &guest, kind, &watch);
}

fn place(input: &mut Input<'_>) -> u16 {
    match input.u8() {
        known @ 0..0xE0 => OFFSETS[usize::from(known) % OFFSETS.len()],
        0xE0..0xF0 => CONFIG + u16::from(input.u8()),
        // The region's end is the caller's to keep; the register file must bear more.
        _ => input.u16(),
    }
}

fn width(input: &mut Input<'_>) -> Width {
    match input.u8() {
        0xF0..0xF5 => Width::Byte,
        0xF5..0xFA => Width::Half,
        0xFA..=0xFF => Width::Double,
        _ => Width::Word,
    }
}

fn value(input: &mut Input<'_>) -> u64 {
    match input.below(8) {
        0..=2 => input.u8().into(),
        3 => 1 << (input.u8() & 31),
        4 => [0, 1, 3, 11, 15, 0x80, 0xFF, 0x100][input.below(8)],
        5 => address(input),
        6 => address(input) >> 32,
        _ => input.u64(),
    }
}

/// A load, and that it changes nothing.
fn read(bus: &Bus<'_, '_, '_>, offset: u16, width: Width) {
    let image = |bus: &Bus<'_, '_, '_>| OFFSETS.map(|offset| bus.get(offset));
    let before = image(bus);
    let value = bus.transport.read(offset, width);
    assert_eq!(bus.transport.read(offset, width), value);
    assert_eq!(image(bus), before);
    assert_eq!(value.checked_shr(8 * width.bytes() as u32).unwrap_or(0), 0, "wider than asked");
    let register = offset < CONFIG && width == Width::Word && offset & 3 == 0;
    let config = offset >= CONFIG && usize::from(offset) + width.bytes() <= 0x1000;
    assert!(value == 0 || register || config, "{offset:#x} {width:?} reads as {value:#x}");
}

/// A store, and that only those that may be retried are.
fn write(bus: &mut Bus<'_, '_, '_>, offset: u16, width: Width, value: u64) {
    if bus.store(offset, width, value) == WriteOutcome::Retry {
        assert!(matches!(offset, STATUS | QUEUE_READY) && value as u32 == 0);
        assert!(width == Width::Word && bus.transport.has_work_in_flight());
    }
}

/// One step of what a driver does to start a device, or to stop a queue.
fn step(bus: &mut Bus<'_, '_, '_>, input: &mut Input<'_>) {
    let mut store = |offset, value: u32| bus.store(offset, Width::Word, value.into());
    let _ = match input.below(10) {
        0 => store(STATUS, 0),
        1 => store(STATUS, 3),
        2 => {
            let _ = store(0x24, 1);
            store(0x20, 1 | u32::from(input.u8()) << 1)
        }
        3 => {
            let _ = store(0x24, 0);
            store(0x20, (u32::from(input.u8()) & 3) << 28 | 1 << 9)
        }
        4 => store(STATUS, 11),
        5 => {
            let size: u16 = 1 << input.below(11);
            let areas = areas(size);
            for (low, address) in
                [(0x80, areas.descriptor), (0x90, areas.driver), (0xA0, areas.device)]
            {
                let _ = store(low, address as u32);
            }
            store(0x38, size.into())
        }
        6 => store(QUEUE_READY, 1),
        7 => store(STATUS, 15),
        8 => store(QUEUE_READY, 0),
        _ => store(0xC0, 1),
    };
}

/// Makes a request available in the rings of a queue that was set up properly.
fn offer(guest: &Guest, input: &mut Input<'_>) {
    let (size_log, request_type, sector) = (input.below(11), input.u8(), input.u8());
    let areas = areas(1 << size_log);
    let idx = guest.get_u16(areas.driver + 2);
    let head = (idx * 3) & ((1 << size_log) - 1);
    let next = (head + 1) & ((1 << size_log) - 1);
    let mut header = [0; 16];
    (header[0], header[8]) = (request_type & 15, sector & 31);
    guest.put(BUFFERS, &header);
    // A sector to the disk behind the header, or from it before the status.
    let (readable, writable) = if request_type & 1 == 0 { (16, 513) } else { (528, 1) };
    let place = |index: u16| areas.descriptor + 16 * u64::from(index);
    guest.descriptor(place(head), (BUFFERS, readable, 1, next));
    guest.descriptor(place(next), (BUFFERS + 0x800, writable, 2, 0));
    guest.put_u16(areas.driver + 4 + 2 * u64::from(idx & ((1 << size_log) - 1)), head);
    guest.put_u16(areas.driver + 2, idx.wrapping_add(1));
}

/// What holds whatever the driver does.
fn check(bus: &Bus<'_, '_, '_>, before: u32) {
    let status = bus.get(STATUS);
    assert_eq!(bus.get(0), 0x7472_6976);
    assert_eq!(status & !0xCF, 0, "undefined bits");
    // Each step presupposes the one before (3.1.1).
    for (step, predecessor) in [(2, 1), (8, 2), (4, 8)] {
        assert!(status & step == 0 || status & predecessor != 0, "status {status:#x}");
    }
    let broke = status & !before & 0x40 != 0;
    if broke && status & 4 != 0 {
        assert_eq!(bus.get(0x60) & 2, 2, "nobody is told that the device broke");
        assert!(bus.interrupts > 0);
    }
    assert_eq!(bus.transport.interrupt_asserted(), bus.get(0x60) != 0);
}
