//! The disk under random traffic by a driver of both rings: every combination of ring features, many
//! requests in flight, answered out of order, and resets at any moment. Every request is answered
//! once, and reads give what was written.
//!
//! The driver notifies when it is asked to, and looks at the ring when it is interrupted, and never
//! else; so a notification that is lost on either side shows as a request without an answer.
#![cfg(not(target_os = "none"))]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use proptest::prelude::*;
use sparkler::backend::clock::Ticks;
use sparkler::backend::ram::{CompletionOrder, RamDisk};
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa, SharedSlice};
use sparkler::virtio::devices::block::{Block, FLUSH};
use sparkler::virtio::{Features, MmioTransport, Width, WriteOutcome};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x4_0000;
/// Descriptors, driver area, device area.
const AREAS: [u64; 3] = [RAM, RAM + 0x1000, RAM + 0x2000];
/// Where requests are, a page for each.
const REQUESTS: u64 = RAM + 0x1_0000;
const DATA: u64 = 0x20;
const STATUS: u64 = 0x900;
const TABLE: u64 = 0xA00;
/// Requests at a time.
const PLACES: u16 = 24;

const SECTOR: usize = 512;
const SECTORS: usize = 32;
const NOW: Ticks = Ticks(0);

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

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

/// A request that is not answered.
struct Pending {
    place: u16,
    /// Split: its descriptors of the ring, the head first. Packed: only how many counts.
    descriptors: Vec<u16>,
    writes: bool,
    sector: usize,
    /// What is there before it, and what is there (or is read) after it.
    before: Vec<u8>,
    after: Vec<u8>,
}

struct Session<'d, 'm> {
    device: MmioTransport<'d, 'm>,
    memory: GuestMemory<'m>,
    disk: SharedSlice<'m>,
    /// What the disk holds when all that was offered is done: it is done in order.
    model: Vec<u8>,
    features: Features,
    size: u16,
    /// Descriptors that are free (split), and their number (both).
    free: Vec<u16>,
    places: Vec<u16>,
    pending: Vec<Pending>,
    /// Descriptors (packed) or chains (split) made available, notified, and seen used.
    put: u64,
    judged: u64,
    seen: u64,
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

    fn get_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address, 2).try_into().unwrap())
    }

    fn get_u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.get(address, 4).try_into().unwrap())
    }

    fn register(&self, offset: u16) -> u32 {
        self.device.read(offset, Width::Word) as u32
    }

    /// A store, executed until it is done.
    fn set(&mut self, offset: u16, value: u32) {
        for _ in 0..100 {
            match self.device.write(offset, Width::Word, value.into(), NOW) {
                WriteOutcome::Done => return,
                WriteOutcome::Retry => self.device.poll(NOW),
            }
        }
        panic!("the store to {offset:#x} never ends");
    }

    fn packed(&self) -> bool {
        self.features.contains(Features::RING_PACKED)
    }

    fn event_idx(&self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }

    /// From reset to DRIVER_OK.
    fn start(&mut self, random: &mut Random) {
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
        self.enable_queue(random);
        self.set(0x70, 15);
        assert_eq!(self.register(0x70), 15, "{:?}", self.device.fault());
    }

    /// An empty ring of any legal size.
    fn enable_queue(&mut self, random: &mut Random) {
        self.size = if self.packed() { 4 + random.below(80) as u16 } else { 4 << random.below(5) };
        self.free = (0..self.size).collect();
        self.places = (0..PLACES).collect();
        (self.put, self.judged, self.seen) = (0, 0, 0);
        self.put(RAM, &[0; 0x3000]);
        self.set(0x30, 0);
        self.set(0x38, self.size.into());
        for (low, area) in [0x80, 0x90, 0xA0].into_iter().zip(AREAS) {
            self.set(low, area as u32);
            self.set(low + 4, 0);
        }
        self.want_interrupt();
        let _ = self.device.take_interrupt();
        self.set(0x64, 3);
        self.set(0x44, 1);
    }

    /// Status = 0, the machine's reset, or QueueReset. Nothing is answered after it.
    fn reset(&mut self, random: &mut Random) {
        let queue_only = self.features.contains(Features::RING_RESET) && random.one_in(2);
        if queue_only {
            self.set(0x30, 0);
            self.set(0xC0, 1);
            for _ in 0..100 {
                if self.register(0xC0) == 0 {
                    break;
                }
                self.device.poll(NOW);
            }
            assert_eq!((self.register(0xC0), self.register(0x44)), (0, 0));
        } else if random.one_in(2) {
            while self.device.reset_by_machine(NOW) == WriteOutcome::Retry {
                self.device.poll(NOW);
            }
        } else {
            self.set(0x70, 0);
        }
        assert!(!self.device.has_work_in_flight());
        self.settle();
        if queue_only { self.enable_queue(random) } else { self.start(random) }
    }

    /// What was not answered was done or not; the disk must be as after one or the other.
    fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for sector in 0..SECTORS {
            let mut now = vec![0; SECTOR];
            self.disk.read_bytes(sector * SECTOR, &mut now).unwrap();
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let as_after = |request: &Pending| {
                let Some(at) = sector.checked_sub(request.sector) else { return false };
                let part = |data: &[u8]| data.get(at * SECTOR..(at + 1) * SECTOR) == Some(&now);
                request.writes && (part(&request.before) || part(&request.after))
            };
            assert!(self.model[range.clone()] == now || pending.iter().any(as_after));
            self.model[range].copy_from_slice(&now);
        }
    }

    /// Where descriptor `count` of a packed ring is: its index, and the wrap counter there.
    fn place(&self, count: u64) -> (u16, bool) {
        let size = u64::from(self.size);
        ((count % size) as u16, (count / size).is_multiple_of(2))
    }

    fn event(&self, count: u64) -> u16 {
        let (index, wrap) = self.place(count);
        index | u16::from(wrap) << 15
    }

    /// Offers a random request. `false` if there is no room.
    fn offer(&mut self, random: &mut Random) -> bool {
        let Some(place) = self.places.pop() else { return false };
        let base = REQUESTS + u64::from(place) * 0x1000;
        let (writes, count) = (random.one_in(2), 1 + random.below(4));
        let sector = random.below(SECTORS - count + 1);
        let range = sector * SECTOR..(sector + count) * SECTOR;
        let before = self.model[range.clone()].to_vec();
        let stamp = random.below(256) as u8;
        let after = if writes {
            (0..count * SECTOR).map(|at| stamp ^ at as u8 ^ (at >> 8) as u8).collect()
        } else {
            before.clone()
        };
        let mut header = [0; 16];
        (header[0], header[8]) = (u8::from(writes), sector as u8);
        self.put(base, &header);
        self.put(base + DATA, &if writes { after.clone() } else { vec![0xEE; before.len()] });
        self.put(base + STATUS, &[0xFF]);
        // Header, data and status, the data in one piece or two.
        let len = before.len() as u32;
        let cut = if random.one_in(2) { 1 + random.below(before.len() - 1) as u32 } else { len };
        let flag = if writes { 0 } else { WRITE };
        let mut buffers = vec![(base, 16, 0), (base + DATA, cut, flag)];
        if cut != len {
            buffers.push((base + DATA + u64::from(cut), len - cut, flag));
        }
        buffers.push((base + STATUS, 1, WRITE));
        let indirect = self.features.contains(Features::INDIRECT_DESC) && random.one_in(2);
        let needed = if indirect { 1 } else { buffers.len() };
        if self.free.len() < needed {
            self.places.push(place);
            return false;
        }
        let descriptors = self.free.split_off(self.free.len() - needed);
        if indirect {
            for (at, (address, len, flags)) in (0..).zip(&buffers) {
                let last = usize::from(at) + 1 == buffers.len();
                let rest = if self.packed() {
                    // Neither ID nor NEXT mean anything in a table (2.8.7).
                    (0x7777, *flags)
                } else {
                    (flags | if last { 0 } else { NEXT }, at + 1)
                };
                self.descriptor(base + TABLE + 16 * u64::from(at), (*address, *len, rest));
            }
            buffers = vec![(base + TABLE, 16 * buffers.len() as u32, INDIRECT)];
        }
        if self.packed() {
            self.offer_packed(place, &buffers);
        } else {
            self.offer_split(&descriptors, &buffers);
        }
        self.model[range].copy_from_slice(&after);
        self.pending.push(Pending { place, descriptors, writes, sector, before, after });
        true
    }

    /// Writes a descriptor of either ring; its last two fields as they lie there.
    fn descriptor(&self, at: u64, (address, len, rest): (u64, u32, (u16, u16))) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &rest.0.to_le_bytes());
        self.put(at + 14, &rest.1.to_le_bytes());
    }

    fn offer_split(&mut self, descriptors: &[u16], buffers: &[(u64, u32, u16)]) {
        for (at, (address, len, flags)) in buffers.iter().enumerate() {
            let next = descriptors.get(at + 1);
            let rest = (flags | next.map_or(0, |_| NEXT), next.copied().unwrap_or(0xDEAD));
            let place = AREAS[0] + 16 * u64::from(descriptors[at]);
            self.descriptor(place, (*address, *len, rest));
        }
        let slot = self.put % u64::from(self.size);
        self.put(AREAS[1] + 4 + 2 * slot, &descriptors[0].to_le_bytes());
        self.put += 1;
        self.put(AREAS[1] + 2, &(self.put as u16).to_le_bytes());
    }

    /// The first descriptor last; the request's place is its ID.
    fn offer_packed(&mut self, id: u16, buffers: &[(u64, u32, u16)]) {
        for (at, (address, len, flags)) in buffers.iter().enumerate().rev() {
            let (index, wrap) = self.place(self.put + at as u64);
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            let flags = flags | more | if wrap { AVAIL } else { USED };
            let place = AREAS[0] + 16 * u64::from(index);
            self.descriptor(place, (*address, *len, (id, flags)));
        }
        self.put += buffers.len() as u64;
    }

    /// Notifies, if the device wants to hear of what was offered.
    fn kick(&mut self) {
        let judged = std::mem::replace(&mut self.judged, self.put);
        let wanted = if self.packed() {
            let (event, flags) = (self.get_u16(AREAS[2]), self.get_u16(AREAS[2] + 2));
            match flags {
                0 => judged != self.put,
                2 => (judged..self.put).any(|count| self.event(count) == event),
                _ => false,
            }
        } else if self.event_idx() {
            let event = self.get_u16(AREAS[2] + 4 + 8 * u64::from(self.size));
            (judged..self.put).any(|count| count as u16 == event)
        } else {
            judged != self.put && self.get_u16(AREAS[2]) & 1 == 0
        };
        if wanted {
            self.set(0x50, 0);
        }
    }

    /// Asks for an interrupt at the next answer.
    fn want_interrupt(&self) {
        if self.packed() {
            self.put(AREAS[1], &self.event(self.seen).to_le_bytes());
            self.put(AREAS[1] + 2, &(if self.event_idx() { 2_u16 } else { 0 }).to_le_bytes());
        } else if self.event_idx() {
            let at = AREAS[1] + 4 + 2 * u64::from(self.size);
            self.put(at, &(self.seen as u16).to_le_bytes());
        }
    }

    /// The name and used length of the next answer: the head of a split chain, or the buffer ID.
    fn used(&self) -> Option<(u16, u32)> {
        if self.packed() {
            let (index, wrap) = self.place(self.seen);
            let at = AREAS[0] + 16 * u64::from(index);
            let owner = self.get_u16(at + 14) & (AVAIL | USED);
            let used = owner == if wrap { AVAIL | USED } else { 0 } && self.seen != self.put;
            return used.then(|| (self.get_u16(at + 12), self.get_u32(at + 8)));
        }
        let at = AREAS[2] + 4 + 8 * (self.seen % u64::from(self.size));
        let used = self.get_u16(AREAS[2] + 2) != self.seen as u16;
        used.then(|| (self.get_u32(at) as u16, self.get_u32(at + 4)))
    }

    /// The interrupt handler, if there is an interrupt.
    fn interrupt(&mut self) {
        if !self.device.take_interrupt() {
            return;
        }
        assert_eq!(self.register(0x60), 1);
        self.set(0x64, 1);
        while let Some((name, len)) = self.used() {
            let packed = self.packed();
            let named =
                |it: &Pending| if packed { it.place == name } else { it.descriptors[0] == name };
            let at = self.pending.iter().position(named).expect("answered twice, or never asked");
            let request = self.pending.remove(at);
            self.seen += if packed { request.descriptors.len() as u64 } else { 1 };
            let base = REQUESTS + u64::from(request.place) * 0x1000;
            assert_eq!(self.get(base + STATUS, 1), [0]);
            let read = if request.writes { 0 } else { request.after.len() as u32 };
            assert_eq!(len, read + 1);
            assert!(self.get(base + DATA, request.after.len()) == request.after, "other data");
            self.free.extend(request.descriptors);
            self.places.push(request.place);
            self.answered += 1;
        }
        self.want_interrupt();
    }

    /// Everything must be answered, without anything new from the driver.
    fn drain(&mut self) {
        for _ in 0..200 {
            self.device.poll(NOW);
            self.interrupt();
        }
        assert_eq!(self.pending.len(), 0, "requests were never answered");
        assert_eq!((self.register(0x70), self.device.fault()), (15, None));
        self.settle();
    }
}

/// `steps` steps of random traffic; requests that were answered.
fn run(seed: u64, features: Features, steps: usize) -> usize {
    let mut random = Random(seed | 1);
    let (ram, disk) = (HostRam::new(RAM_SIZE), HostRam::new(SECTORS * SECTOR));
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x8_0000_0000))).is_ok());
    let disk = disk.slice(Pa::new(0));
    let order = if random.one_in(2) { CompletionOrder::Reversed } else { CompletionOrder::InOrder };
    let mut backend = RamDisk::new(disk, [7; 20]).with_order(order);
    let mut block = Block::new(&mut backend);
    let mut session = Session {
        device: MmioTransport::new(&mut block, memory.clone()),
        memory,
        disk,
        model: vec![0; SECTORS * SECTOR],
        features: features
            | Features::VERSION_1
            | if random.one_in(4) { Features::empty() } else { FLUSH },
        size: 0,
        free: vec![],
        places: vec![],
        pending: vec![],
        put: 0,
        judged: 0,
        seen: 0,
        answered: 0,
    };
    session.start(&mut random);
    for _ in 0..steps {
        for _ in 0..random.below(6) {
            if !session.offer(&mut random) {
                break;
            }
            if random.one_in(2) {
                session.kick();
            }
        }
        if random.one_in(25) {
            session.reset(&mut random);
            continue;
        }
        session.kick();
        for _ in 0..random.below(3) {
            session.device.poll(NOW);
            session.interrupt();
        }
    }
    session.kick();
    session.drain();
    session.answered
}

/// Every combination of the ring features that the disk is offered with.
fn combinations() -> impl Iterator<Item = Features> {
    const BITS: [Features; 4] =
        [Features::RING_PACKED, Features::INDIRECT_DESC, Features::EVENT_IDX, Features::RING_RESET];
    (0..1 << BITS.len()).map(|mask: u32| {
        let chosen = BITS.iter().enumerate().filter(|(at, _)| mask >> at & 1 != 0);
        chosen.fold(Features::empty(), |set, (_, bit)| set | *bit)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_is_answered_once_and_reads_give_what_was_written(seed: u64) {
        for features in combinations() {
            prop_assert!(run(seed, features, 200) > 50);
        }
    }
}
