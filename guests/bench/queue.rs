//! What a batch of block requests costs at EL2: a driver of its own for split and packed rings, with
//! EVENT_IDX, that offers a batch, notifies if the device wants that, and sleeps until all is done.
//!
//! It asks for an interrupt with the next used buffer, and again after it has looked, as Linux does;
//! what it can count itself it prints. The rest is in EL2's own counts: `qemu/bench` runs this with
//! two numbers of batches, and takes the difference.

use crate::board::Board;
use crate::exits;
use crate::gic;
use crate::racy::Racy;
use crate::report::{Verdict, check, expect};
use crate::ring::{Descriptor, FEATURES_OK, Header, IN, NEXT, Ring, UNANSWERED, VERSION_1, WRITE};
use crate::timer;
use core::sync::atomic::{Ordering, fence};

/// VIRTIO_F_EVENT_IDX.
const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_RING_PACKED.
const RING_PACKED: u64 = 1 << 34;

/// Batches measured, and how many more if asked for `more`.
const FEW: u64 = 200;
const MORE: u64 = 1_000;
/// Requests in a batch, if asked for `batched`; else one.
const BATCH: u16 = 32;
/// Descriptors of a request: header, data, status.
const CHAIN: u16 = 3;
/// Entries of the queue. Not a multiple of a batch, so that a packed ring wraps anywhere.
const SIZE: u16 = 128;
const DATA: usize = 4096;

/// A packed descriptor's AVAIL and USED (virtio 1.3, 2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// RING_EVENT_FLAGS_DESC: an event at the place given.
const AT_PLACE: u16 = 2;

/// What the device may touch. The areas of both layouts share their places.
#[repr(C, align(4096))]
struct Memory {
    table: [Descriptor; SIZE as usize],
    /// Split: flags, index, ring, used_event. Packed: place and flags of the event.
    driver: [u16; SIZE as usize + 4],
    /// Split: flags and index (a word), ring, avail_event. Packed: place and flags of the event.
    device: [[u32; 2]; SIZE as usize + 2],
    headers: [Header; BATCH as usize],
    status: [u8; BATCH as usize],
    data: [[u8; DATA]; BATCH as usize],
}

const NO_DESCRIPTOR: Descriptor = Descriptor { address: 0, length: 0, flags: 0, next: 0 };
const NO_HEADER: Header = Header { kind: 0, reserved: 0, sector: 0 };

static MEMORY: Racy<Memory> = Racy::new(Memory {
    table: [NO_DESCRIPTOR; SIZE as usize],
    driver: [0; SIZE as usize + 4],
    device: [[0; 2]; SIZE as usize + 2],
    headers: [NO_HEADER; BATCH as usize],
    status: [0; BATCH as usize],
    data: [[0; DATA]; BATCH as usize],
});

/// Loads what the device may be writing.
fn load<T: Copy>(place: *const T) -> T {
    // SAFETY: a field of `MEMORY`.
    unsafe { place.read_volatile() }
}

/// Stores what the device may be reading.
fn store<T>(place: *mut T, value: T) {
    // SAFETY: a field of `MEMORY`, on our side of the ring.
    unsafe { place.write_volatile(value) }
}

/// Addresses of fields: nothing is read or written.
macro_rules! at {
    ($($field:tt)*) => {{
        // SAFETY: inside of the static.
        unsafe { &raw mut (*MEMORY.get()).$($field)* }
    }};
}

/// Our side of the queue.
struct Queue {
    packed: bool,
    /// Split: avail.idx. Packed: the next place, and the wrap counter there.
    next: u16,
    wrap: bool,
    /// The same for used buffers.
    seen: u16,
    seen_wrap: bool,
}

impl Queue {
    /// The descriptors of request `n`: address, length, flags.
    fn chain(n: u16, sector: u64) -> [(u64, u32, u16); CHAIN as usize] {
        let index = usize::from(n);
        store(at!(headers[index]), Header { kind: IN, reserved: 0, sector });
        store(at!(status[index]), UNANSWERED);
        [
            (at!(headers[index]) as u64, 16, NEXT),
            (at!(data[index]) as u64, DATA as u32, NEXT | WRITE),
            (at!(status[index]) as u64, 1, WRITE),
        ]
    }

    /// Offers request `n`; the device is not yet told that there is anything.
    fn offer(&mut self, n: u16, sector: u64) {
        let chain = Self::chain(n, sector);
        if self.packed {
            let (mut first, mut first_flags) = (0, 0);
            for (at, (address, length, flags)) in chain.into_iter().enumerate() {
                let flags = flags | if self.wrap { AVAIL } else { USED };
                let place = usize::from(self.next);
                // `length` and `flags` are where a split ring has them, but for the buffer ID.
                let descriptor = Descriptor { address, length, flags: n, next: flags };
                if at == 0 {
                    (first, first_flags) = (place, flags);
                    // The device owns what comes after it once it owns this one.
                    store(at!(table[place].address), address);
                    store(at!(table[place].length), length);
                } else {
                    store(at!(table[place]), descriptor);
                }
                (self.next, self.wrap) = after(self.next, self.wrap, 1);
            }
            fence(Ordering::SeqCst);
            store(at!(table[first].next), first_flags);
        } else {
            for (at, (address, length, flags)) in (n * CHAIN..).zip(chain) {
                let descriptor = Descriptor { address, length, flags, next: at + 1 };
                store(at!(table[usize::from(at)]), descriptor);
            }
            store(at!(driver[2 + usize::from(self.next % SIZE)]), n * CHAIN);
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Tells the device that `count` requests more were offered; whether it wants a notification.
    fn publish(&mut self, count: u16) -> bool {
        if self.packed {
            fence(Ordering::SeqCst);
            let [place, flags] = load(at!(device[0]).cast::<[u16; 2]>());
            // An event of the lap before lies below 0.
            let lap = if (place >> 15 == 1) == self.wrap { 0 } else { SIZE };
            let event = (place & 0x7fff).wrapping_sub(lap);
            match flags {
                AT_PLACE => passed(event, self.next, count * CHAIN),
                flags => flags == 0,
            }
        } else {
            fence(Ordering::SeqCst);
            store(at!(driver[1]), self.next);
            fence(Ordering::SeqCst);
            // After the ring, which a word precedes.
            let event = at!(device).cast::<u16>().wrapping_add(2 + 4 * usize::from(SIZE));
            passed(load(event), self.next, count)
        }
    }

    /// Whether the device has used a request.
    fn has_used(&self) -> bool {
        if self.packed {
            let flags = load(at!(table[usize::from(self.seen)].next));
            flags & (AVAIL | USED) == if self.seen_wrap { AVAIL | USED } else { 0 }
        } else {
            load(at!(device).cast::<u16>().wrapping_add(1)) != self.seen
        }
    }

    /// The next used request, if there is one.
    fn used(&mut self) -> Option<u16> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::SeqCst);
        if self.packed {
            let place = usize::from(self.seen);
            (self.seen, self.seen_wrap) = after(self.seen, self.seen_wrap, CHAIN);
            Some(load(at!(table[place].flags)))
        } else {
            let area = at!(device).cast::<u16>();
            let element = area.wrapping_add(2 + 4 * usize::from(self.seen % SIZE));
            self.seen = self.seen.wrapping_add(1);
            Some(load(element) / CHAIN)
        }
    }

    /// Asks for an interrupt when the next request is used.
    fn want_interrupt(&self) {
        if self.packed {
            let place = self.seen | u16::from(self.seen_wrap) << 15;
            store(at!(driver[0]), place);
            store(at!(driver[1]), AT_PLACE);
        } else {
            store(at!(driver[2 + usize::from(SIZE)]), self.seen);
        }
        fence(Ordering::SeqCst);
    }
}

/// `count` places on in a packed ring.
fn after(place: u16, wrap: bool, count: u16) -> (u16, bool) {
    if place + count < SIZE { (place + count, wrap) } else { (place + count - SIZE, !wrap) }
}

/// Whether the last `count` steps to `new` went over `event` (2.7.7.2).
fn passed(event: u16, new: u16, count: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < count
}

/// What the batches took.
#[derive(Default)]
struct Counts {
    requests: u64,
    kicks: u64,
    interrupts: u64,
    /// The most that one batch raised.
    most_interrupts: u64,
    /// Kicks that were over before the disk answered, and their ticks.
    alone: u64,
    ticks: u64,
}

/// Prints `bench NAME VALUE` for what the batches took.
pub(crate) fn run(board: &Board) {
    if !check("bench: virtual time counts instructions", exits::calibrate) {
        return;
    }
    gic::start(board);
    let mut counts = Counts::default();
    if check("bench: batches of reads, each answered once", || batches(board, &mut counts)) {
        exits::show("requests", counts.requests);
        exits::show("kicks", counts.kicks);
        exits::show("interrupts", counts.interrupts);
        exits::show("most_interrupts", counts.most_interrupts);
        exits::show("alone", counts.alone);
        if counts.alone != 0 {
            exits::report("kick", counts.ticks, counts.alone);
        }
    }
}

fn batches(board: &Board, counts: &mut Counts) -> Verdict {
    let slot = board.disk();
    expect(slot.is_some(), "disks", 0u32)?;
    let Some(slot) = slot else { return Ok(()) };
    let packed = board.has_argument("packed");
    let batch = if board.has_argument("batched") { BATCH } else { 1 };
    let rounds = FEW + if board.has_argument("more") { MORE } else { 0 };

    let mut ring = Ring::new(slot.registers.base);
    gic::serve_device(board, slot.registers.base, slot.intid);
    let features = VERSION_1 | EVENT_IDX | if packed { RING_PACKED } else { 0 };
    expect(ring.offered() & features == features, "not offered; offered are", ring.offered())?;
    let status = ring.negotiate(features)?;
    expect(status & FEATURES_OK != 0, "FEATURES_OK refused, Status", status)?;
    let (table, driver, device) = (at!(table), at!(driver), at!(device));
    let ready = ring.place_queue(SIZE, table as u64, driver as u64, device as u64);
    expect(ready == 1, "QueueReady", ready)?;
    let mut queue = Queue { packed, next: 0, wrap: true, seen: 0, seen_wrap: true };
    queue.want_interrupt();
    ring.driver_ok();

    let sectors = exits::capacity(slot) / 8;
    expect(sectors != 0, "sectors", sectors)?;
    // Knuth's MMIX constants; the same places every time.
    let mut random = 1u64;
    for _ in 0..rounds {
        for n in 0..batch {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            queue.offer(n, (random >> 16) % sectors * 8);
        }
        gic::forget();
        let mut missing = u32::MAX >> (32 - batch);
        let wanted = queue.publish(batch);
        // With a bound, because a disk that completes outside virtual time may never do so here.
        timer::bounded(10_000, || {
            if wanted {
                let from = timer::now();
                ring.notify();
                let taken = timer::now() - from;
                counts.kicks += 1;
                // If the disk has answered by now, there is more in it than the kick.
                if !queue.has_used() {
                    counts.ticks += taken;
                    counts.alone += 1;
                }
            }
            gic::sleep_until(|| {
                while let Some(n) = queue.used() {
                    let bit = 1u32.unbounded_shl(n.into());
                    // One that was not in flight, or is used twice, is never called done.
                    missing = if missing & bit != 0 { missing & !bit } else { u32::MAX };
                    queue.want_interrupt();
                }
                missing == 0
            });
        });
        let seen = u64::from(gic::taken());
        counts.requests += u64::from(batch);
        counts.interrupts += seen;
        counts.most_interrupts = counts.most_interrupts.max(seen);
        for n in 0..usize::from(batch) {
            expect(load(at!(status[n])) == 0, "status", load(at!(status[n])))?;
        }
    }
    Ok(())
}
