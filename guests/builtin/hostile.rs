//! Checks of the block device with a driver that breaks the rules.
//!
//! After each the device must say DEVICE_NEEDS_RESET and raise a configuration interrupt, a reset
//! must bring it back, and it must have touched nothing.

use crate::board::Board;
use crate::gic;
use crate::mmio::{read32, write32};
use crate::report::{Failed, Verdict, check, expect};
use crate::ring::*;
use crate::timer;

/// InterruptStatus: used buffer.
const USED_BUFFER: u32 = 1;
/// InterruptStatus: configuration change.
const CONFIG_CHANGE: u32 = 2;
/// VIRTIO_BLK_S_OK, _IOERR, _UNSUPP.
const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;

/// A broken rule of the split ring (virtio 1.2, 2.7.5 and 2.7.6).
struct Offence {
    name: &'static str,
    /// QEMU's own device lets it pass, or reads on until something else stops it.
    ours_only: bool,
    /// Breaks it, on a started device.
    commit: fn(&mut Ring, &Board),
}

const fn offence(name: &'static str, commit: fn(&mut Ring, &Board)) -> Offence {
    Offence { name, ours_only: false, commit }
}

const fn offence_of_ours(name: &'static str, commit: fn(&mut Ring, &Board)) -> Offence {
    Offence { name, ours_only: true, commit }
}

const OFFENCES: [Offence; 12] = [
    offence("hostile: head out of range", |ring, _| {
        ring.put_request(IN, 0, 512);
        ring.publish(SIZE, 0);
    }),
    offence("hostile: next out of range", |ring, _| {
        ring.put_request(IN, 0, 512);
        let header = header(ring, NEXT, 0x7fff);
        ring.put(0, header);
        ring.publish(0, 0);
    }),
    offence("hostile: a chain that loops", |ring, _| {
        ring.put_request(IN, 0, 512);
        let header = header(ring, NEXT, 0);
        ring.put(0, header);
        ring.publish(0, 0);
    }),
    offence_of_ours("hostile: a length that wraps", |ring, _| data(ring, u64::MAX - 255, 512)),
    offence_of_ours("hostile: a length beyond memory", |ring, board| {
        data(ring, (board.memory.base + board.memory.size - 4096) as u64, 0xffff_fe00);
    }),
    offence_of_ours("hostile: an address below memory", |ring, _| data(ring, 0x1000, 512)),
    offence_of_ours("hostile: an address past memory", |ring, board| {
        data(ring, (board.memory.base + board.memory.size) as u64, 512);
    }),
    offence_of_ours("hostile: an address on the distributor", |ring, board| {
        data(ring, board.gicd as u64, 512);
    }),
    offence_of_ours("hostile: an address on the device itself", |ring, _| {
        data(ring, ring.base as u64, 512);
    }),
    offence_of_ours("hostile: avail.idx jumping past the ring", |ring, _| {
        ring.put_request(IN, 0, 512);
        ring.publish(0, SIZE + 5);
    }),
    offence("hostile: an indirect table of half an entry", |ring, _| indirect(ring, 24, 0)),
    offence("hostile: an indirect table in an indirect table", |ring, _| {
        indirect(ring, 16, INDIRECT);
    }),
];

/// Runs them all, on the first disk.
pub(crate) fn run(board: &Board) {
    let Some(slot) = board.disk() else {
        return;
    };
    let base = slot.registers.base;
    let mut ring = Ring::new(base);
    gic::serve_device(board, base, slot.intid);
    check("ring: features need VERSION_1 and must be offered", || {
        let offered = ring.offered();
        expect(offered & VERSION_1 != 0, "offered", offered)?;
        if board.is_sparkler {
            let status = ring.negotiate(0)?;
            expect(status & FEATURES_OK == 0, "without VERSION_1, Status", status)?;
            let status = ring.negotiate(VERSION_1 | 1 << 63)?;
            expect(status & FEATURES_OK == 0, "feature 63, Status", status)?;
        }
        let status = ring.negotiate(VERSION_1)?;
        expect(status & FEATURES_OK != 0, "VERSION_1, Status", status)
    });
    check("ring: a completion interrupts, and is acknowledged", || interrupts(&mut ring));
    check("ring: a header and data in several odd pieces", || framing(&mut ring));
    check("ring: an indirect chain", || {
        ring.start(VERSION_1 | INDIRECT_DESC)?;
        ring.put_request(IN, 0, 512);
        let memory = ring.memory();
        for n in 0..3 {
            // SAFETY: our memory; nothing is in flight.
            unsafe { (*memory).indirect[n] = (*memory).table[n] };
        }
        // SAFETY: an address only.
        let table = unsafe { &raw const (*memory).indirect };
        ring.put(0, Descriptor::of(table, 48, INDIRECT, 0));
        let length = ring.run()?;
        expect(ring.answer() == OK && length == 513, "length written", length)
    });
    check("ring: an unknown request is UNSUPP", || {
        ring.start(VERSION_1)?;
        ring.put_request(0x77, 0, 512);
        ring.run()?;
        expect(ring.answer() == UNSUPPORTED, "status", ring.answer())
    });
    check("ring: FLUSH is answered", || {
        let features = ring.offered() & BLK_FLUSH | VERSION_1;
        ring.start(features)?;
        ring.put_request(FLUSH, 0, 0);
        ring.run()?;
        let wanted = if features & BLK_FLUSH != 0 { OK } else { ring.answer() };
        expect(ring.answer() == wanted, "status", ring.answer())
    });
    for offence in &OFFENCES {
        if board.is_sparkler || !offence.ours_only {
            check(offence.name, || punished(&mut ring, board, offence));
        }
    }
    check("hostile: an empty descriptor is survived", || {
        ring.start(VERSION_1)?;
        let here = ring.memory() as u64;
        data(&mut ring, here, 0);
        ring.notify();
        // Nothing forbids one, and a device may still refuse it.
        timer::wait(200, || ring.next_used().is_some());
        reads(&mut ring)
    });
    check("hostile: a queue where no memory is", || misplaced(&mut ring, board));
    check("hostile: notify before the queue is ready", || {
        ring.negotiate(VERSION_1)?;
        ring.notify();
        write32(base + QUEUE_NOTIFY, 0xffff_ffff);
        reads(&mut ring)
    });
    // Left as it was found: reset, with nothing pending.
    write32(base + STATUS, 0);
}

/// The device noticed, told the driver, did nothing else, and comes back.
fn punished(ring: &mut Ring, board: &Board, offence: &Offence) -> Verdict {
    ring.start(ring.offered() & INDIRECT_DESC | VERSION_1)?;
    gic::forget();
    (offence.commit)(ring, board);
    ring.notify();
    ring.needs_reset()?;
    let told = timer::wait(1000, || gic::device_causes() & CONFIG_CHANGE != 0);
    expect(told, "no configuration interrupt, causes", gic::device_causes())?;
    if let Some((head, _)) = ring.next_used() {
        return Err(Failed::seeing("the chain was used, head", head.into()));
    }
    expect(ring.answer() == UNANSWERED, "the request was answered", ring.answer())?;
    reads(ring)
}

/// A reset brings the device back: one sector is read.
fn reads(ring: &mut Ring) -> Verdict {
    ring.start(VERSION_1)?;
    ring.put_request(IN, 0, 512);
    let length = ring.run()?;
    expect(ring.answer() == OK, "status after reset", ring.answer())?;
    expect(length == 513, "length after reset", length)
}

/// A request's completion arrives as the device's interrupt, once.
fn interrupts(ring: &mut Ring) -> Verdict {
    ring.start(VERSION_1)?;
    gic::forget();
    ring.put_request(IN, 0, 512);
    ring.publish(0, 0);
    ring.notify();
    timer::bounded(5_000, || gic::sleep_until(|| gic::device_causes() != 0));
    let causes = gic::device_causes();
    expect(causes == USED_BUFFER, "InterruptStatus", causes)?;
    let left = read32(ring.base + INTERRUPT_STATUS);
    expect(left == 0, "after InterruptACK", left)?;
    let used = ring.next_used().map_or(0, |(_, length)| length);
    expect(used == 513 && ring.answer() == OK, "length written", used)
}

/// Header in two, data in three, status after them (2.7.4.2: no assumption on framing).
fn framing(ring: &mut Ring) -> Verdict {
    ring.start(VERSION_1)?;
    ring.put_request(IN, 0, 1024);
    ring.run()?;
    expect(ring.answer() == OK, "status", ring.answer())?;
    let memory = ring.memory();
    let mut whole = [0u8; 1024];
    // SAFETY: our memory; nothing is in flight.
    whole.copy_from_slice(unsafe { &(&(*memory).data)[..1024] });
    // SAFETY: as above.
    unsafe { (*memory).data.fill(0xaa) };
    ring.fill_header(IN, 0);
    // SAFETY: addresses only.
    let (header, data, status) = unsafe {
        (
            &raw const (*memory).header as u64,
            &raw const (*memory).data as u64,
            &raw const (*memory).status as u64,
        )
    };
    let pieces = [
        (header, 7, 0),
        (header + 7, 9, 0),
        (data, 100, WRITE),
        (data + 100, 412 + 300, WRITE),
        (data + 812, 212, WRITE),
        (status, 1, WRITE),
    ];
    for (n, (address, length, flags)) in pieces.into_iter().enumerate() {
        let more = if n + 1 < pieces.len() { NEXT } else { 0 };
        ring.put(n, Descriptor { address, length, flags: flags | more, next: n as u16 + 1 });
    }
    let length = ring.run()?;
    expect(ring.answer() == OK, "status", ring.answer())?;
    expect(length == 1025, "length written", length)?;
    // SAFETY: as above.
    let same = whole.iter().eq(unsafe { &(*memory).data }.iter().take(1024));
    // SAFETY: as above.
    let after = unsafe { (*memory).data[1024] };
    expect(same && after == 0xaa, "data differs; byte after", after)
}

fn misplaced(ring: &mut Ring, board: &Board) -> Verdict {
    let past = (board.memory.base + board.memory.size) as u64;
    let here = ring.memory() as u64;
    for (table, avail, used) in [
        (past, past, past),
        (here, here + 0x400, u64::MAX - 7),
        (0, 0, 0),
        (here + 1, here + 3, here + 5),
    ] {
        ring.negotiate(VERSION_1)?;
        ring.place_queue(SIZE, table, avail, used);
        ring.driver_ok();
        ring.notify();
    }
    // Refused at QueueReady or at the first use; either way a reset mends it.
    reads(ring)
}

fn header(ring: &Ring, flags: u16, next: u16) -> Descriptor {
    // SAFETY: an address only.
    Descriptor::of(unsafe { &raw const (*ring.memory()).header }, 16, flags, next)
}

/// A read whose data buffer is `length` bytes at `address`.
fn data(ring: &mut Ring, address: u64, length: u32) {
    ring.put_request(IN, 0, 512);
    ring.put(1, Descriptor { address, length, flags: WRITE | NEXT, next: 2 });
    ring.publish(0, 0);
}

/// An indirect descriptor of `length` bytes whose first entry has `flags`.
fn indirect(ring: &mut Ring, length: u32, flags: u16) {
    ring.fill_header(IN, 0);
    let memory = ring.memory();
    let entry = header(ring, flags, 0);
    // SAFETY: our memory; nothing is in flight.
    unsafe { (*memory).indirect[0] = entry };
    // SAFETY: an address only.
    let table = unsafe { &raw const (*memory).indirect };
    ring.put(0, Descriptor::of(table, length, INDIRECT, 0));
    ring.publish(0, 0);
}
