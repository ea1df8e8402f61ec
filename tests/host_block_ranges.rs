//! The disk with every request it has, in several queues, its cache turned on and off meanwhile:
//! random traffic against a model of what is on the disk, and of what is durable.
//!
//! Requests in flight never overlap, so that what each of them reads or leaves behind is known
//! whatever the order in which the disk does them.
#![cfg(not(target_os = "none"))]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use sparkler::backend::block::{
    BlockBackend, BlockInfo, BlockOp, BlockRequest, BlockStatus, SubmitError, Tag,
};
use sparkler::backend::clock::Ticks;
use sparkler::backend::ram::{CompletionOrder, RamDisk};
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa, SharedSlice};
use sparkler::virtio::devices::block::{
    Block, CONFIG_WCE, DISCARD, FLUSH, MQ, SIZE_MAX, TOPOLOGY, WRITE_ZEROES,
};
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x8_0000;
/// Rings, 0x1000 a queue: descriptors, driver area at 0x400, device area at 0x800.
const QUEUE_BYTES: u64 = 0x1000;
/// Requests, a page each.
const REQUESTS: u64 = RAM + 0x1_0000;
const DATA: u64 = 0x20;
const STATUS: u64 = 0xFF0;
const QUEUE_SIZE: u16 = 16;

const SECTOR: usize = 512;
const SECTORS: usize = 64;
const WRITEBACK: u16 = 0x120;
const NOW: Ticks = Ticks(0);

/// A small generator, so that a seed says all.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// What the platter has: the contents at the last flush that was completed.
type Durable = Arc<Mutex<Vec<u8>>>;

/// A RAM disk whose cache is volatile, and which is sometimes busy.
struct Cached<'m> {
    disk: RamDisk<'m>,
    cache: SharedSlice<'m>,
    durable: Durable,
    /// What a flush makes durable, by tag, when it is over.
    flushes: Vec<(Tag, Vec<u8>)>,
    room: usize,
}

impl<'m> BlockBackend<'m> for Cached<'m> {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        if self.disk.in_flight() >= self.room {
            return Err(SubmitError::Busy);
        }
        assert!(request.sector + request.sectors() <= SECTORS as u64);
        self.disk.submit(request, now)?;
        if request.op == BlockOp::Flush {
            let mut contents = vec![0; SECTORS * SECTOR];
            self.cache.read_bytes(0, &mut contents).unwrap();
            self.flushes.push((request.tag, contents));
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.disk.kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        let (tag, status) = self.disk.poll(now)?;
        if let Some(at) = self.flushes.iter().position(|it| it.0 == tag) {
            // Flushes may end in another order than they began: each makes durable what it saw, and
            // that is what is asked of it here.
            *self.durable.lock().unwrap() = self.flushes.remove(at).1;
        }
        Some((tag, status))
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    Zero,
    /// A range that must be refused, and with which status.
    Bad(u8),
}

struct Pending {
    queue: usize,
    head: u16,
    kind: Kind,
    range: std::ops::Range<usize>,
    /// What was written.
    data: Vec<u8>,
    /// The cache was off when it was offered, and has been since.
    through: bool,
    /// For a flush: what had been completed when it was offered.
    before: Vec<u8>,
    known: Vec<bool>,
    changes: Vec<usize>,
}

/// The driver's side of a queue: every request has three descriptors of its own.
#[derive(Clone)]
struct Side {
    available: u16,
    seen: u16,
    free: Vec<u16>,
}

impl Side {
    fn new() -> Self {
        Self { available: 0, seen: 0, free: (0..QUEUE_SIZE / 3).map(|at| at * 3).collect() }
    }
}

struct Session<'d, 'm> {
    device: MmioTransport<'d, 'm>,
    memory: GuestMemory<'m>,
    sides: Vec<Side>,
    pending: Vec<Pending>,
    /// Contents after all completed requests, and which sectors they say (not after a discard).
    model: Vec<u8>,
    known: Vec<bool>,
    /// How often each sector has changed: what it holds may be what it once held.
    changes: Vec<usize>,
    durable: Durable,
    features: Features,
    through: bool,
    answered: usize,
}

impl Session<'_, '_> {
    fn put(&self, address: u64, bytes: &[u8]) {
        let slice = self.memory.slice(Ipa::new(address), bytes.len()).unwrap();
        slice.write_bytes(0, bytes).unwrap();
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let slice = self.memory.slice(Ipa::new(address), len).unwrap();
        slice.read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    fn set(&mut self, offset: u16, value: u32) {
        let outcome = self.device.write(offset, Width::Word, value.into(), NOW);
        assert_eq!(outcome, WriteOutcome::Done);
    }

    fn register(&self, offset: u16) -> u32 {
        self.device.read(offset, Width::Word) as u32
    }

    fn start(&mut self) {
        for status in [0, 1, 3] {
            self.set(0x70, status);
        }
        for page in 0..2 {
            self.set(0x14, page);
            assert_eq!(self.register(0x10) & self.features.page(page), self.features.page(page));
            self.set(0x24, page);
            self.set(0x20, self.features.page(page));
        }
        self.set(0x70, 11);
        assert_eq!(self.register(0x70), 11);
        for queue in 0..self.sides.len() {
            self.enable(queue);
        }
        self.set(0x70, 15);
        assert_eq!(self.register(0x70), 15);
        self.through = !self.features.contains(FLUSH);
    }

    fn enable(&mut self, queue: usize) {
        let base = RAM + QUEUE_BYTES * queue as u64;
        self.sides[queue] = Side::new();
        self.put(base, &[0; QUEUE_BYTES as usize]);
        self.set(0x30, queue as u32);
        self.set(0x38, QUEUE_SIZE.into());
        for (low, at) in [(0x80, base), (0x90, base + 0x400), (0xA0, base + 0x800)] {
            self.set(low, at as u32);
            self.set(low + 4, 0);
        }
        self.set(0x44, 1);
    }

    /// Resets one queue: what it had is done or not.
    fn reset_queue(&mut self, queue: usize) {
        self.set(0x30, queue as u32);
        self.set(0xC0, 1);
        for _ in 0..100 {
            if self.register(0xC0) == 0 {
                break;
            }
            self.device.poll(NOW);
        }
        assert_eq!(self.register(0xC0), 0);
        let (gone, left) =
            std::mem::take(&mut self.pending).into_iter().partition(|it| it.queue == queue);
        self.pending = left;
        for request in gone as Vec<Pending> {
            if request.kind != Kind::Read {
                for sector in request.range {
                    self.known[sector] = false;
                    self.changes[sector] += 1;
                }
            }
        }
        self.enable(queue);
    }

    /// Offers a random request in a random queue, if there is room.
    fn offer(&mut self, random: &mut Random) {
        let queue = random.below(self.sides.len());
        let Some(head) = self.sides[queue].free.pop() else { return };
        let (mut first, mut count) = (random.below(SECTORS), 1 + random.below(6));
        count = count.min(SECTORS - first);
        let kind = match random.below(12) {
            0..4 => Kind::Read,
            4..7 => Kind::Write,
            7 => Kind::Flush,
            8 => Kind::Discard,
            9 | 10 => Kind::Zero,
            _ => Kind::Bad(1 + random.below(2) as u8),
        };
        if matches!(kind, Kind::Flush | Kind::Bad(_)) {
            (first, count) = (0, 0);
        }
        let range = first..first + count;
        let overlaps = |it: &Pending| it.range.start < range.end && range.start < it.range.end;
        if self.pending.iter().any(overlaps) {
            self.sides[queue].free.push(head);
            return;
        }
        let place = REQUESTS + 0x1000 * (queue as u64 * 8 + u64::from(head / 3));
        let bytes = count * SECTOR;
        let segment = |sector: u64, sectors: u32, flags: u32| {
            let mut segment = sector.to_le_bytes().to_vec();
            segment.extend(sectors.to_le_bytes());
            segment.extend(flags.to_le_bytes());
            segment
        };
        let unmap = u32::from(random.one_in(2));
        let stamp = random.below(255) as u8 + 1;
        let (number, data) = match kind {
            Kind::Read => (0_u32, vec![0xEE; bytes]),
            Kind::Write => (1, (0..bytes).map(|at| stamp ^ (at as u8 & 0x7F)).collect()),
            Kind::Flush => (4, vec![]),
            Kind::Discard => (11, segment(first as u64, count as u32, 0)),
            Kind::Zero => (13, segment(first as u64, count as u32, unmap)),
            Kind::Bad(1) => (13, segment(SECTORS as u64 - 1, 2, unmap)),
            Kind::Bad(_) => (11, segment(0, 2, 1)),
        };
        let mut header = number.to_le_bytes().to_vec();
        header.extend([0; 4]);
        let sector = if matches!(kind, Kind::Read | Kind::Write) { first as u64 } else { 0 };
        header.extend(sector.to_le_bytes());
        self.put(place, &header);
        self.put(place + DATA, &data);
        self.put(place + STATUS, &[0xFF]);
        let mut buffers = vec![(place, 16_u32, 0_u16)];
        if !data.is_empty() {
            buffers.push((place + DATA, data.len() as u32, if number == 0 { 2 } else { 0 }));
        }
        buffers.push((place + STATUS, 1, 2));
        let base = RAM + QUEUE_BYTES * queue as u64;
        for (at, (address, len, flags)) in (0_u16..).zip(&buffers) {
            let more = usize::from(at) + 1 < buffers.len();
            let to = base + 16 * u64::from(head + at);
            self.put(to, &address.to_le_bytes());
            self.put(to + 8, &len.to_le_bytes());
            self.put(to + 12, &(flags | u16::from(more)).to_le_bytes());
            self.put(to + 14, &(head + at + 1).to_le_bytes());
        }
        let side = &mut self.sides[queue];
        let slot = u64::from(side.available % QUEUE_SIZE);
        side.available = side.available.wrapping_add(1);
        let index = side.available;
        self.put(base + 0x404 + 2 * slot, &head.to_le_bytes());
        self.put(base + 0x402, &index.to_le_bytes());
        let before = if kind == Kind::Flush { self.model.clone() } else { vec![] };
        let known = if kind == Kind::Flush { self.known.clone() } else { vec![] };
        let changes = if kind == Kind::Flush { self.changes.clone() } else { vec![] };
        let through = self.through;
        self.pending.push(Pending {
            queue,
            head,
            kind,
            range,
            data,
            through,
            before,
            known,
            changes,
        });
    }

    fn kick(&mut self, queue: usize) {
        self.set(0x50, queue as u32);
    }

    /// Looks for answers in all queues.
    fn collect(&mut self) {
        for queue in 0..self.sides.len() {
            let base = RAM + QUEUE_BYTES * queue as u64;
            loop {
                let index = u16::from_le_bytes(self.get(base + 0x802, 2).try_into().unwrap());
                let seen = self.sides[queue].seen;
                if index == seen {
                    break;
                }
                let element = self.get(base + 0x804 + 8 * u64::from(seen % QUEUE_SIZE), 8);
                self.sides[queue].seen = seen.wrapping_add(1);
                let head = u16::from_le_bytes([element[0], element[1]]);
                let used = u32::from_le_bytes(element[4..].try_into().unwrap());
                let named = |it: &Pending| it.queue == queue && it.head == head;
                let at = self.pending.iter().position(named).expect("never asked in this queue");
                let request = self.pending.remove(at);
                self.sides[queue].free.push(head);
                self.finish(&request, used);
            }
        }
    }

    fn finish(&mut self, request: &Pending, used: u32) {
        let place = REQUESTS + 0x1000 * (request.queue as u64 * 8 + u64::from(request.head / 3));
        let status = self.get(place + STATUS, 1)[0];
        let expected = if let Kind::Bad(status) = request.kind { status } else { 0 };
        assert_eq!(status, expected, "{:?}", request.kind);
        let read = if request.kind == Kind::Read { request.range.len() * SECTOR } else { 0 };
        assert_eq!(used as usize, read + 1);
        let bytes = request.range.start * SECTOR..request.range.end * SECTOR;
        let mut is_stable = request.through;
        match request.kind {
            Kind::Read => {
                let data = self.get(place + DATA, read);
                for (at, sector) in request.range.clone().enumerate() {
                    let data = &data[at * SECTOR..(at + 1) * SECTOR];
                    let there = &mut self.model[sector * SECTOR..(sector + 1) * SECTOR];
                    if self.known[sector] {
                        assert!(data == there, "sector {sector}");
                    }
                }
                return;
            }
            Kind::Write => self.model[bytes].copy_from_slice(&request.data),
            Kind::Zero => self.model[bytes].fill(0),
            Kind::Discard => is_stable = false,
            Kind::Bad(_) => return,
            Kind::Flush => {
                // What was complete when it was offered is on the platter now, unless somebody has
                // been at work on it since.
                let durable = self.durable.lock().unwrap();
                for sector in 0..SECTORS {
                    let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                    let at_work = |it: &Pending| it.range.contains(&sector);
                    let same = request.changes[sector] == self.changes[sector];
                    if request.known[sector]
                        && self.known[sector]
                        && same
                        && !self.pending.iter().any(at_work)
                    {
                        assert!(durable[bytes.clone()] == request.before[bytes], "not flushed");
                    }
                }
                return;
            }
        }
        for sector in request.range.clone() {
            self.known[sector] = request.kind != Kind::Discard;
            self.changes[sector] += 1;
        }
        self.answered += 1;
        if is_stable {
            let durable = self.durable.lock().unwrap();
            let bytes = request.range.start * SECTOR..request.range.end * SECTOR;
            assert!(durable[bytes.clone()] == self.model[bytes], "complete but not durable");
        }
    }

    fn toggle(&mut self, random: &mut Random) {
        let value = random.below(2) as u64;
        let outcome = self.device.write(WRITEBACK, Width::Byte, value, NOW);
        assert_eq!(outcome, WriteOutcome::Done);
        self.through = value == 0;
        if !self.through {
            for request in &mut self.pending {
                request.through = false;
            }
        }
        assert_eq!(self.device.read(WRITEBACK, Width::Byte), value);
    }
}

/// `steps` steps of random traffic in `queues` queues; requests that changed the disk.
fn run(seed: u64, queues: usize, features: Features, steps: usize) -> usize {
    let mut random = Random(seed | 1);
    let (ram, disk) = (HostRam::new(RAM_SIZE), HostRam::new(SECTORS * SECTOR));
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x8_0000_0000))).is_ok());
    let cache = disk.slice(Pa::new(0));
    let durable = Arc::new(Mutex::new(vec![0; SECTORS * SECTOR]));
    // In order: what is durable after several flushes is then that of the last.
    let ram_disk = RamDisk::new(cache, [7; 20]).with_order(CompletionOrder::InOrder);
    let room = 1 + random.below(12);
    let mut backend =
        Cached { disk: ram_disk, cache, durable: durable.clone(), flushes: vec![], room };
    let mut block = Block::new(&mut backend);
    block.set_queues(queues);
    let mut session = Session {
        device: MmioTransport::new(&mut block, memory.clone()),
        memory,
        sides: vec![Side::new(); queues],
        pending: vec![],
        model: vec![0; SECTORS * SECTOR],
        known: vec![true; SECTORS],
        changes: vec![0; SECTORS],
        durable,
        features,
        through: false,
        answered: 0,
    };
    session.start();
    for _ in 0..steps {
        for _ in 0..random.below(6) {
            session.offer(&mut random);
        }
        if random.one_in(8) && features.contains(CONFIG_WCE) {
            session.toggle(&mut random);
        }
        if random.one_in(40) && features.contains(Features::RING_RESET) {
            session.reset_queue(random.below(queues));
        }
        for queue in 0..queues {
            if !random.one_in(3) {
                session.kick(queue);
            }
        }
        for _ in 0..random.below(3) {
            session.device.poll(NOW);
            session.collect();
        }
    }
    for _ in 0..200 {
        for queue in 0..queues {
            session.kick(queue);
        }
        session.device.poll(NOW);
        session.collect();
    }
    assert_eq!(session.pending.len(), 0, "requests were never answered");
    assert_eq!((session.register(0x70), session.device.fault()), (15, None));
    session.answered
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_read_gives_what_was_written_zeroed_or_discarded_last(seed: u64) {
        let always = Features::VERSION_1 | DISCARD | WRITE_ZEROES | SIZE_MAX | TOPOLOGY;
        for queues in [1, 2, 8] {
            let always = if queues > 1 { always | MQ } else { always };
            for modes in [Features::empty(), FLUSH, CONFIG_WCE, FLUSH | CONFIG_WCE] {
                for reset in [Features::empty(), Features::RING_RESET] {
                    prop_assert!(run(seed, queues, always | modes | reset, 150) > 30);
                }
            }
        }
    }
}
