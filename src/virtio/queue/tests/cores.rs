//! The rings with the driver on another core. Loom runs every test with each order of both sides'
//! accesses, and each value a load may return, that the memory model allows; so a fence that is
//! missing is found whatever the machine is that the test runs on.
//!
//! The device's side is the code that is shipped, in [`crate::sync::model`]'s words. The driver's is
//! the least that the specification asks of a driver (2.7.13, 2.7.14, 2.8.21, 2.8.22): a stronger
//! one could make up for what the device does not do.
//!
//! `every_fence_of_the_device_is_needed` takes the fences out of `split.rs` and `packed.rs`, one at a
//! time, and sees these tests fail.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use loom::sync::{Arc, Notify};
use loom::thread;

use super::*;
use crate::sync::atomic::{Ordering, fence};
use crate::sync::model::{SharedWords, fences, omit_fence};
use crate::virtio::testing::packed::PackedDriver;

/// Entries of the rings: fewer than there are requests, so that they wrap.
const SIZE: u16 = 2;
/// Requests that a test may make.
const REQUESTS: u16 = 4;
/// Bytes of a request's buffer, and from one to the next.
const BUFFER: u64 = 8;

/// What a device says it has written to the buffer of request `n`.
fn length(n: u16) -> u32 {
    u32::from(n) + 1
}

/// What request `n` asks, and what it is answered.
fn question(n: u16) -> u64 {
    100 + u64::from(n)
}

fn answer(n: u16) -> u64 {
    200 + u64::from(n)
}

/// Fails the test unless `holds`. Not by a panic: its hook needs more stack than loom's threads have.
fn check(holds: bool, else_: &'static str) {
    if !holds {
        eprintln!("{else_}");
        resume_unwind(Box::new(else_));
    }
}

/// A driver, which makes its requests one after the other and gets them back in that order. `n` is
/// the number of a request from 0; its buffer is read first and then written.
#[derive(Clone, Copy)]
struct Side {
    packed: bool,
    event_idx: bool,
    areas: [SharedSlice<'static>; 3],
    buffers: SharedSlice<'static>,
}

impl Side {
    /// Makes request `n` available. `true` if the device wants to be notified of it.
    fn offer(&self, n: u16) -> bool {
        let [ring, driver, device] = self.areas;
        let slot = usize::from(n % SIZE);
        let at = n * BUFFER as u16;
        self.buffers.store_u64(at.into(), question(n)).unwrap();
        ring.store_u64(16 * slot, BUFFERS + u64::from(at)).unwrap();
        if self.packed {
            let rest = BUFFER | u64::from(n) << 32 | u64::from(WRITE) << 48;
            let owner = u64::from(PackedDriver::available(wrap(n))) << 48;
            // The flags are a store of their own, after all else. Until then they are as they were.
            let before = ring.load_u64(16 * slot + 8).unwrap() & OWNER;
            ring.store_u64(16 * slot + 8, rest | before).unwrap();
            fence(Ordering::Release);
            ring.store_u64(16 * slot + 8, rest | owner).unwrap();
            fence(Ordering::SeqCst);
            let event = device.load_u32(0).unwrap();
            match event >> 16 {
                0 => true,
                1 => false,
                _ => event & 0xFFFF == place(n),
            }
        } else {
            ring.store_u64(16 * slot + 8, BUFFER | u64::from(WRITE) << 32).unwrap();
            driver.store_u16(4 + 2 * slot, slot as u16).unwrap();
            fence(Ordering::Release);
            driver.store_u16(2, n + 1).unwrap();
            fence(Ordering::SeqCst);
            if self.event_idx {
                device.load_u16(4 + 8 * usize::from(SIZE)).unwrap() == n
            } else {
                device.load_u16(0).unwrap() == 0
            }
        }
    }

    /// Wants no interrupts; with EVENT_IDX, none before one for request `n - 1` which was there.
    fn mute(&self, n: u16) {
        let driver = self.areas[1];
        match (self.packed, self.event_idx) {
            (true, true) => driver.store_u32(0, place(n.wrapping_sub(1)) | 2 << 16).unwrap(),
            (true, false) => driver.store_u32(0, 1 << 16).unwrap(),
            (false, true) => self.set_used_event(n.wrapping_sub(1)),
            (false, false) => driver.store_u16(0, 1).unwrap(),
        }
    }

    fn set_used_event(&self, n: u16) {
        self.areas[1].store_u16(4 + 2 * usize::from(SIZE), n).unwrap();
    }

    /// Wants an interrupt when request `n` has been answered. `true` if it has been meanwhile.
    fn listen(&self, n: u16) -> bool {
        let driver = self.areas[1];
        match (self.packed, self.event_idx) {
            (true, true) => driver.store_u32(0, place(n) | 2 << 16).unwrap(),
            (true, false) => driver.store_u32(0, 0).unwrap(),
            (false, true) => self.set_used_event(n),
            (false, false) => driver.store_u16(0, 0).unwrap(),
        }
        fence(Ordering::SeqCst);
        self.is_used(n)
    }

    fn is_used(&self, n: u16) -> bool {
        let [ring, _, device] = self.areas;
        if self.packed {
            let rest = ring.load_u64(16 * usize::from(n % SIZE) + 8).unwrap();
            rest & OWNER == if wrap(n) { OWNER } else { 0 }
        } else {
            device.load_u16(2).unwrap().wrapping_sub(n + 1) < SIZE
        }
    }

    /// Takes the answer to request `n` and checks it. `false` if there is none yet.
    fn take(&self, n: u16) -> bool {
        let [ring, _, device] = self.areas;
        let slot = usize::from(n % SIZE);
        if !self.is_used(n) {
            return false;
        }
        fence(Ordering::Acquire);
        if self.packed {
            let rest = ring.load_u64(16 * slot + 8).unwrap();
            check((rest >> 32) as u16 == n, "another's ID");
            check(rest as u32 == length(n), "another's length");
        } else {
            check(device.load_u32(4 + 8 * slot) == Some(slot as u32), "another's head");
            check(device.load_u32(8 + 8 * slot) == Some(length(n)), "another's length");
        }
        let at = usize::from(n) * BUFFER as usize;
        check(self.buffers.load_u64(at) == Some(answer(n)), "used before it is written");
        true
    }
}

/// AVAIL and USED in the second word of a packed descriptor.
const OWNER: u64 = 1 << 55 | 1 << 63;

/// The wrap counter of request `n`.
fn wrap(n: u16) -> bool {
    (n / SIZE).is_multiple_of(2)
}

/// Where request `n` is, as an event suppression structure of a packed ring has it.
fn place(n: u16) -> u32 {
    let n = n % (2 * SIZE);
    u32::from(n % SIZE) | u32::from(wrap(n)) << 15
}

/// The device, and what of it is only in a test.
struct Device {
    queue: Queue<'static>,
    memory: GuestMemory<'static>,
    chain: Box<ChainBuffer<'static>>,
    buffers: SharedSlice<'static>,
    held: Vec<(Head, u16)>,
    served: u16,
}

impl Device {
    fn ring(&mut self) -> &mut Ring<'static> {
        self.queue.ring().unwrap()
    }

    /// Takes all that there is. Requests come in the order in which they were made, whole.
    fn drain(&mut self) {
        let ring = self.queue.ring().unwrap();
        ring.begin_batch();
        loop {
            let popped = ring.pop(&self.memory, &mut self.chain);
            check(popped.is_ok(), "a broken ring");
            let Ok(Some(chain)) = popped else { return };
            let n = self.served;
            self.served += 1;
            let at = usize::from(n) * BUFFER as usize;
            let expected = self.buffers.subslice(at, BUFFER as usize).unwrap();
            let segments = chain.writable.into_segments();
            let whole = matches!(segments, [it] if it.pa() == expected.pa() && it.len() == 8);
            check(whole, "an old descriptor");
            check(expected.load_u64(0) == Some(question(n)), "taken before it is written");
            self.held.push((chain.head, n));
        }
    }

    /// Answers the oldest request; the driver does not see it yet.
    fn answer(&mut self) {
        let (head, n) = self.held.remove(0);
        self.buffers.store_u64(usize::from(n) * BUFFER as usize, answer(n)).unwrap();
        self.ring().complete(head, length(n));
    }
}

/// What the two sides do.
#[derive(Clone, Copy)]
struct Scenario {
    /// What no other core sees.
    before: fn(&Side, &mut Device),
    /// The model: the driver's part is on a thread of its own.
    model: fn(Side, &mut Device),
    /// How often loom may take the core from a thread that could go on. Two are enough for a race
    /// of two accesses on each side.
    preemptions: usize,
}

impl Scenario {
    /// Runs it in every way there is, for both rings, with and without EVENT_IDX.
    fn explore(self) {
        for (packed, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
            // One for all runs, which end one by one.
            let ram: &'static HostRam = Box::leak(Box::new(HostRam::new(RAM_SIZE)));
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(self.preemptions);
            builder.check(move || self.run(ram, packed, event_idx));
        }
    }

    fn run(self, ram: &'static HostRam, packed: bool, event_idx: bool) {
        let (side, mut device) = set_up(ram, packed, event_idx);
        (self.before)(&side, &mut device);
        let words = share(ram, &side);
        (self.model)(side, &mut device);
        drop(words);
    }
}

fn set_up(ram: &'static HostRam, packed: bool, event_idx: bool) -> (Side, Device) {
    let memory = guest_memory(ram);
    let mut features = Features::VERSION_1;
    features.set(Features::EVENT_IDX, event_idx);
    features.set(Features::RING_PACKED, packed);
    let (areas, lengths) = if packed {
        (PackedDriver::new(memory.clone(), SIZE).areas, [32, 4, 4])
    } else {
        (Driver::new(memory.clone(), SIZE).areas, [32, 10, 22])
    };
    let mut queue = Queue::new(256);
    queue.set_size(SIZE.into());
    queue.set_areas(|registers| *registers = areas);
    queue.set_ready();
    queue.start(features, &memory).unwrap();
    let slice = |address: u64, len: usize| memory.slice(Ipa::new(address), len).unwrap();
    let addresses = [areas.descriptor, areas.driver, areas.device];
    let areas = [0, 1, 2].map(|at| slice(addresses[at], lengths[at]));
    let buffers = slice(BUFFERS, usize::from(REQUESTS) * BUFFER as usize);
    let side = Side { packed, event_idx, areas, buffers };
    let chain = Box::new(ChainBuffer::new());
    (side, Device { queue, memory, chain, buffers, held: Vec::new(), served: 0 })
}

/// Makes the words that both sides access loom's, as they are.
fn share(ram: &HostRam, side: &Side) -> SharedWords {
    let all = guest_memory(ram).regions()[0].1;
    let mut words = Vec::new();
    let mut share = |area: &SharedSlice<'_>, sizes: &[usize]| {
        let mut at = (area.pa().raw() - all.pa().raw()) as usize;
        for size in sizes {
            let value = match size {
                2 => all.load_u16(at).unwrap().into(),
                4 => all.load_u32(at).unwrap().into(),
                _ => all.load_u64(at).unwrap(),
            };
            words.push((ram.pointer().addr().get() + at, *size, value));
            at += size;
        }
    };
    let [descriptors, driver, device] = &side.areas;
    share(descriptors, &[8; 2 * SIZE as usize]);
    share(&side.buffers, &[8; REQUESTS as usize]);
    if side.packed {
        share(driver, &[4]);
        share(device, &[4]);
    } else {
        share(driver, &[2; 3 + SIZE as usize]);
        share(device, &[2, 2, 4, 4, 4, 4, 2]);
    }
    SharedWords::new(words)
}

/// The device works until nothing is left, and sleeps. The driver makes a request meanwhile.
const SLEEPING_DEVICE: Scenario = Scenario {
    before: |driver, device| {
        driver.offer(0);
        device.ring().set_notifications(false);
    },
    model: |driver, device| {
        let other = thread::spawn(move || driver.offer(1));
        device.drain();
        device.ring().set_notifications(true);
        device.drain();
        // Asked for before: the device need not ask again.
        device.drain();
        if other.join().unwrap() {
            device.drain();
        }
        check(device.served == 2, "a kick is lost");
    },
    preemptions: 3,
};

#[test]
fn a_request_made_while_the_device_goes_to_sleep_is_found_or_announced() {
    SLEEPING_DEVICE.explore();
}

/// The device was woken by a request, for which it had asked by name. The driver makes the next.
const WOKEN_DEVICE: Scenario = Scenario {
    before: |driver, device| {
        device.drain();
        driver.offer(0);
    },
    model: |driver, device| {
        let other = thread::spawn(move || driver.offer(1));
        device.drain();
        if other.join().unwrap() {
            device.drain();
        }
        check(device.served == 2, "a kick is lost");
    },
    preemptions: 3,
};

#[test]
fn a_request_made_while_the_device_asks_for_it_is_found_or_announced() {
    WOKEN_DEVICE.explore();
}

/// The driver has seen all there was, and sleeps. The device answers a request meanwhile.
const SLEEPING_DRIVER: Scenario = Scenario {
    before: |driver, device| {
        driver.mute(0);
        driver.offer(0);
        driver.offer(1);
        device.drain();
        device.answer();
        device.ring().publish();
        assert!(driver.take(0));
        driver.mute(1);
    },
    model: |driver, device| {
        let other = thread::spawn(move || driver.listen(1) && driver.take(1));
        device.answer();
        let interrupt = device.ring().publish();
        if !other.join().unwrap() {
            check(interrupt, "an interrupt is lost");
            check(driver.take(1), "an answer is lost");
        }
    },
    preemptions: 3,
};

#[test]
fn an_answer_given_while_the_driver_goes_to_sleep_is_found_or_announced() {
    SLEEPING_DRIVER.explore();
}

/// A batch is shown whole: who sees its first answer sees all of it.
const BATCH: Scenario = Scenario {
    before: |driver, device| {
        driver.offer(0);
        driver.offer(1);
        device.drain();
    },
    model: |driver, device| {
        let other = thread::spawn(move || {
            if driver.take(0) {
                check(driver.take(1), "half a batch");
            }
        });
        device.answer();
        device.answer();
        device.ring().publish();
        other.join().unwrap();
    },
    preemptions: 3,
};

#[test]
fn answers_published_together_are_seen_together() {
    BATCH.explore();
}

/// Both sides at once, past the end of the ring: each sleeps whenever it finds nothing to do. An
/// event that is lost is a deadlock, which loom reports.
const THERE_AND_BACK: Scenario = Scenario {
    before: |_, _| {},
    model: |driver, device| {
        const MADE: u16 = SIZE + 1;
        let (kick, interrupt) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (kicked, interrupted) = (kick.clone(), interrupt.clone());
        let other = thread::spawn(move || {
            for n in 0..MADE {
                if driver.offer(n) {
                    kick.notify();
                }
                while !driver.take(n) {
                    if !driver.listen(n) {
                        interrupted.wait();
                    }
                }
                driver.mute(n + 1);
            }
        });
        while device.served < MADE {
            device.drain();
            if device.held.is_empty() {
                kicked.wait();
            } else {
                device.answer();
                if device.ring().publish() {
                    interrupt.notify();
                }
            }
        }
        other.join().unwrap();
    },
    preemptions: 2,
};

#[test]
fn requests_go_there_and_back_though_both_sides_sleep() {
    THERE_AND_BACK.explore();
}

#[test]
fn every_fence_of_the_device_is_needed() {
    let scenarios = [SLEEPING_DEVICE, WOKEN_DEVICE, SLEEPING_DRIVER, BATCH]
        .map(|scenario| Scenario { preemptions: 2, ..scenario });
    scenarios.into_iter().for_each(Scenario::explore);
    let of_the_device = |file: &str| file.ends_with("split.rs") || file.ends_with("packed.rs");
    let fences: Vec<_> = fences().into_iter().filter(|it| of_the_device(it.file())).collect();
    for file in ["split.rs", "packed.rs"] {
        assert!(fences.iter().any(|it| it.file().ends_with(file)), "no fence of {file} is passed");
    }
    for fence in fences {
        omit_fence(Some(fence));
        let fails =
            |scenario: Scenario| catch_unwind(AssertUnwindSafe(|| scenario.explore())).is_err();
        assert!(scenarios.into_iter().any(fails), "nothing fails without the fence at {fence}");
    }
}
