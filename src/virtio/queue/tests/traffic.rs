//! The same random traffic through both rings, with every combination of ring features, from the
//! registers to the interrupt: every request is answered once, and not after a reset.
//!
//! The driver looks at the ring when it is interrupted and at no other time, and notifies when it is
//! asked to and at no other time; so a notification that is lost on either side shows as a request
//! that is never answered.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use crate::memory::{GuestMemory, HostRam, SharedSlice};
use crate::sync::testing::Shared;
use crate::virtio::queue::{Areas, ChainBuffer, Head};
use crate::virtio::state::{StateError, StateReader, StateWriter};
use crate::virtio::testing::packed::{self, DESC, DISABLE, ENABLE, PackedDriver};
use crate::virtio::testing::{
    BUFFERS, Driver, INDIRECT, NEXT, NOW, RAM_SIZE, Registers, WRITE, get, guest_memory, put,
};
use crate::virtio::{
    Context, DeviceType, Features, MmioTransport, Progress, VirtioDevice, WriteOutcome,
};

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

/// What the device is to do next.
#[derive(Default)]
struct Script {
    /// Chains to complete in the next poll.
    complete: usize,
    newest_first: bool,
    /// Chains to put back before any is taken.
    put_back: bool,
    /// Take nothing when notified, as if the device were busy until it is polled.
    lazy: bool,
}

/// Copies the request's number into the answer, when the script says so.
struct Echo<'m> {
    script: Shared<Script>,
    chain: ChainBuffer<'m>,
    held: Vec<Held<'m>>,
}

/// A chain on its way through the back end.
struct Held<'m> {
    head: Head,
    number: [u8; 4],
    room: Vec<SharedSlice<'m>>,
    /// The back end has done it; one that came before may not be.
    finished: bool,
}

impl<'m> Echo<'m> {
    fn new(script: &Shared<Script>) -> Self {
        Self { script: script.clone(), chain: ChainBuffer::new(), held: vec![] }
    }

    /// The back end finishes the oldest or the newest request it has.
    fn finish(&mut self, newest_first: bool) {
        let mut open = self.held.iter_mut().filter(|held| !held.finished);
        let Some(held) = (if newest_first { open.next_back() } else { open.next() }) else {
            return;
        };
        let bytes = held.room.iter().flat_map(|it| (0..it.len()).map(move |at| (it, at)));
        for ((segment, at), byte) in bytes.zip(held.number) {
            segment.store_u8(at, byte).unwrap();
        }
        held.finished = true;
    }

    /// The next request to give back: any that is finished, or with IN_ORDER the oldest only.
    fn next_finished(&mut self, in_order: bool) -> Option<Head> {
        let at = self.held.iter().position(|held| held.finished)?;
        (!in_order || at == 0).then(|| self.held.remove(at).head)
    }

    fn serve(&mut self, context: &mut Context<'_, 'm>) {
        let mut queue = context.queue(0).unwrap();
        if core::mem::take(&mut self.script.borrow_mut().put_back)
            && let Some(chain) = queue.pop(&mut self.chain)
        {
            queue.put_back(chain.head);
        }
        while let Some(mut chain) = queue.pop(&mut self.chain) {
            let number = chain.readable.read_object().unwrap();
            let room = chain.writable.into_segments().to_vec();
            self.held.push(Held { head: chain.head, number, room, finished: false });
        }
    }
}

impl<'m> VirtioDevice<'m> for Echo<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }

    fn offered_features(&self) -> Features {
        Features::IN_ORDER
    }

    fn queue_notified(&mut self, _index: u16, context: &mut Context<'_, 'm>) {
        if self.script.borrow().lazy {
            // As a busy back end: one chain is seen, and left.
            let mut queue = context.queue(0).unwrap();
            if let Some(chain) = queue.pop(&mut self.chain) {
                queue.put_back(chain.head);
            }
            return;
        }
        self.serve(context);
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let (complete, newest_first) = {
            let script = self.script.borrow();
            (script.complete, script.newest_first)
        };
        let in_order = context.features().contains(Features::IN_ORDER);
        for _ in 0..complete {
            self.finish(newest_first);
            while let Some(head) = self.next_finished(in_order) {
                context.queue(0).unwrap().complete(head, 4);
            }
        }
        if context.queue(0).unwrap().has_leftover() {
            self.serve(context);
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reset(&mut self, _now: crate::backend::clock::Ticks) -> Progress {
        self.held.clear();
        Progress::Done
    }

    fn reset_queue(&mut self, _index: u16, now: crate::backend::clock::Ticks) -> Progress {
        self.reset(now)
    }
}

/// The driver's side of either ring.
enum AnyDriver<'m> {
    Split { driver: Driver<'m>, free: Vec<u16>, chains: HashMap<u16, Vec<u16>>, judged: u16 },
    Packed { driver: PackedDriver<'m>, room: u16, lists: HashMap<u16, u16>, judged: (u16, bool) },
}

impl<'m> AnyDriver<'m> {
    fn new(memory: GuestMemory<'m>, size: u16, features: Features) -> Self {
        if features.contains(Features::RING_PACKED) {
            let driver = PackedDriver::new(memory, size);
            let judged = driver.next;
            Self::Packed { driver, room: size, lists: HashMap::new(), judged }
        } else {
            let driver = Driver::new(memory, size);
            Self::Split { driver, free: (0..size).collect(), chains: HashMap::new(), judged: 0 }
        }
    }

    fn memory(&self) -> &GuestMemory<'m> {
        match self {
            Self::Split { driver, .. } => &driver.memory,
            Self::Packed { driver, .. } => &driver.memory,
        }
    }

    fn areas(&self) -> (u16, Areas) {
        match self {
            Self::Split { driver, .. } => (driver.size, driver.areas),
            Self::Packed { driver, .. } => (driver.size, driver.areas),
        }
    }

    /// Makes a request for place `place` of the buffers available. `false` if there is no room.
    fn offer(&mut self, place: u16, buffers: &[(u64, u32, bool)], table: Option<u64>) -> bool {
        match self {
            Self::Split { driver, free, chains, .. } => {
                let needed = if table.is_some() { 1 } else { buffers.len() };
                if free.len() < needed {
                    return false;
                }
                let indices = free.split_off(free.len() - needed);
                let head = indices[0];
                for (at, (address, len, writable)) in buffers.iter().enumerate() {
                    let more = if at + 1 < buffers.len() { NEXT } else { 0 };
                    let flags = if *writable { WRITE } else { 0 } | more;
                    let next = |indices: &[u16]| indices.get(at + 1).copied().unwrap_or(0xDEAD);
                    match table {
                        Some(table) => {
                            let next = at as u16 + 1;
                            driver.descriptor_at(table, at as u16, (*address, *len, flags, next));
                        }
                        None => {
                            driver.descriptor(indices[at], (*address, *len, flags, next(&indices)));
                        }
                    }
                }
                if let Some(table) = table {
                    driver.descriptor(head, (table, 16 * buffers.len() as u32, INDIRECT, 0xDEAD));
                }
                driver.offer(head);
                // The name of the chain is its head; the book has the place beside it.
                chains.insert(head, [&[place], &indices[..]].concat());
                true
            }
            Self::Packed { driver, room, lists, .. } => {
                let needed = if table.is_some() { 1 } else { buffers.len() as u16 };
                if *room < needed {
                    return false;
                }
                *room -= needed;
                lists.insert(place, needed);
                match table {
                    Some(table) => driver.offer_indirect(place, table, buffers),
                    None => driver.offer(place, buffers),
                }
                true
            }
        }
    }

    /// The place and length of the next answer.
    fn used(&mut self) -> Option<(u16, u32)> {
        match self {
            Self::Split { driver, free, chains, .. } => {
                let (head, len) = driver.used()?;
                let chain = chains.remove(&(head as u16)).expect("a head that is not in flight");
                free.extend(&chain[1..]);
                Some((chain[0], len))
            }
            Self::Packed { driver, room, lists, .. } => {
                let (place, len, written) = driver.used()?;
                assert!(written);
                *room += lists.remove(&place).expect("an ID that is not in flight");
                Some((place, len))
            }
        }
    }

    /// Whether the device wants to hear of what was offered since the last time.
    fn wants_kick(&mut self, event_idx: bool) -> bool {
        match self {
            Self::Split { driver, judged, .. } => {
                let (old, new) = (*judged, driver.available);
                *judged = new;
                if !event_idx {
                    return driver.used_flags() & 1 == 0;
                }
                let event = driver.available_event();
                event.wrapping_sub(old) < new.wrapping_sub(old)
            }
            Self::Packed { driver, judged, .. } => {
                // Places count from the start of an even lap.
                let size = i32::from(driver.size);
                let linear = |(index, wrap)| i32::from(index) + if wrap { 0 } else { size };
                let distance = |to, from| (linear(to) - linear(from)).rem_euclid(2 * size);
                let added = distance(driver.next, *judged);
                let (flags, place) = driver.device_event();
                let wants = match flags {
                    ENABLE => added != 0,
                    DISABLE => false,
                    DESC => {
                        assert!(event_idx);
                        distance(place, *judged) < added
                    }
                    _ => panic!("reserved"),
                };
                *judged = driver.next;
                wants
            }
        }
    }

    /// Asks for an interrupt for the next answer, or for none.
    fn set_interrupts(&self, wanted: bool, event_idx: bool) {
        match self {
            Self::Split { driver, .. } if event_idx => {
                let place = if wanted { driver.seen } else { driver.seen.wrapping_sub(1) };
                driver.set_used_event(place);
            }
            Self::Split { driver, .. } => driver.set_flags(u16::from(!wanted)),
            Self::Packed { driver, .. } => {
                let flags = match (wanted, event_idx) {
                    (false, _) => DISABLE,
                    (true, true) => DESC,
                    (true, false) => ENABLE,
                };
                driver.set_event(flags, driver.seen);
            }
        }
    }

    /// What a notification carries with NOTIFICATION_DATA (2.9).
    fn notification_data(&self) -> u32 {
        match self {
            Self::Split { driver, .. } => u32::from(driver.available) << 16,
            Self::Packed { driver, .. } => {
                u32::from(driver.next.0) << 16 | u32::from(driver.next.1) << 31
            }
        }
    }
}

/// One driver, one device, and the book of what is in flight: number by place.
struct Session<'d, 'm> {
    transport: MmioTransport<'d, 'm>,
    driver: AnyDriver<'m>,
    features: Features,
    script: Shared<Script>,
    book: HashMap<u16, u32>,
    /// The places in flight, in the order in which they were offered.
    order: VecDeque<u16>,
    places: Vec<u16>,
    number: u32,
    answered: usize,
}

impl<'d, 'm> Session<'d, 'm> {
    fn event_idx(&self) -> bool {
        self.features.contains(Features::EVENT_IDX)
    }

    /// Offers one random request. `false` if there is no room.
    fn offer(&mut self, random: &mut Random) -> bool {
        let Some(place) = self.places.pop() else {
            return false;
        };
        let base = BUFFERS + u64::from(place) * 0x100;
        self.number += 1;
        put(self.driver.memory(), base, &self.number.to_le_bytes());
        put(self.driver.memory(), base + 8, &[0; 4]);
        // The number and the answer, each cut somewhere or not.
        let mut buffers = vec![];
        for (at, writable) in [(base, false), (base + 8, true)] {
            match random.below(5) as u32 {
                cut @ 1..4 => {
                    buffers.push((at, cut, writable));
                    buffers.push((at + u64::from(cut), 4 - cut, writable));
                }
                _ => buffers.push((at, 4, writable)),
            }
        }
        let indirect = self.features.contains(Features::INDIRECT_DESC) && random.one_in(2);
        let table = indirect.then_some(base + 0x10 + random.below(2) as u64 * 8);
        if !self.driver.offer(place, &buffers, table) {
            self.places.push(place);
            return false;
        }
        assert!(self.book.insert(place, self.number).is_none());
        self.order.push_back(place);
        true
    }

    fn kick(&mut self) {
        if self.driver.wants_kick(self.event_idx()) {
            let data = if self.features.contains(Features::NOTIFICATION_DATA) {
                self.driver.notification_data()
            } else {
                0
            };
            self.transport.set(0x50, data);
        }
    }

    /// The interrupt handler, if there is an interrupt.
    fn interrupt(&mut self) {
        if !self.transport.take_interrupt() {
            return;
        }
        let causes = self.transport.get(0x60);
        assert_eq!(causes, 1);
        self.transport.set(0x64, causes);
        self.driver.set_interrupts(false, self.event_idx());
        while let Some((place, len)) = self.driver.used() {
            let number = self.book.remove(&place).expect("answered twice");
            let turn = self.order.iter().position(|it| *it == place).unwrap();
            assert!(turn == 0 || !self.features.contains(Features::IN_ORDER), "not in order");
            self.order.remove(turn);
            let base = BUFFERS + u64::from(place) * 0x100;
            assert_eq!(len, 4);
            assert_eq!(u32::from_le_bytes(get(self.driver.memory(), base + 8)), number);
            self.places.push(place);
            self.answered += 1;
        }
        // Nothing runs beside this: what a driver would look for again cannot have come.
        self.driver.set_interrupts(true, self.event_idx());
    }

    /// From reset to DRIVER_OK with an empty ring.
    fn start(&mut self, features: Features, size: u16) {
        self.features = features;
        self.driver = AnyDriver::new(self.driver.memory().clone(), size, features);
        self.driver.set_interrupts(true, self.event_idx());
        assert!(self.transport.negotiate(features));
        self.enable_queue();
        self.transport.set(0x70, 15);
        self.forget();
    }

    fn enable_queue(&mut self) {
        let (size, areas) = self.driver.areas();
        self.transport.configure_queue(0, size.into(), &areas);
        self.transport.set(0x44, 1);
    }

    /// QueueReset, and the queue enabled again.
    fn reset_queue(&mut self, size: u16) {
        self.transport.set(0x30, 0);
        self.transport.set(0xC0, 1);
        assert_eq!(self.transport.get(0xC0), 0);
        self.driver = AnyDriver::new(self.driver.memory().clone(), size, self.features);
        self.driver.set_interrupts(true, self.event_idx());
        self.enable_queue();
        self.forget();
    }

    fn forget(&mut self) {
        let _ = self.transport.take_interrupt();
        self.book.clear();
        self.order.clear();
        self.places = (0..64).collect();
    }

    /// The guest stands still, and goes on with another device, which must be where this one was.
    fn move_to(&mut self, device: &'d mut Echo<'m>) {
        let mut state = [0; 256];
        let written = (0..80).find_map(|_| {
            let mut writer = StateWriter::new(&mut state);
            match self.transport.save(&mut writer) {
                Ok(()) => return Some(writer.written()),
                Err(error) => assert_eq!(error, StateError::Busy),
            }
            *self.script.borrow_mut() = Script { complete: 3, ..Script::default() };
            self.transport.poll(NOW);
            None
        });
        let mut other = MmioTransport::new(device, self.driver.memory().clone());
        let mut reader = StateReader::new(&state[..written.expect("never at rest")]);
        assert_eq!(other.restore(&mut reader, NOW), Ok(()));
        assert_eq!(reader.remaining(), 0);
        for offset in (0..0x100).step_by(4) {
            assert_eq!(other.get(offset), self.transport.get(offset), "{offset:#x}");
        }
        self.transport = other;
        self.transport.poll(NOW);
    }

    /// Everything still in flight must be answered, without anything new from the driver.
    fn drain(&mut self) {
        *self.script.borrow_mut() = Script { complete: 3, ..Script::default() };
        for _ in 0..80 {
            self.transport.poll(NOW);
            self.interrupt();
        }
        assert_eq!(self.book.len(), 0, "requests were never answered");
        assert_eq!(self.transport.get(0x70), 15);
        assert_eq!(self.transport.fault(), None);
    }
}

/// The most devices a run has, one after the other.
const DEVICES: usize = 8;

/// `steps` steps of random traffic; with resets and changes of the device or without. Requests that
/// were answered.
fn run(seed: u64, features: Features, size: u16, steps: usize, resets: bool) -> usize {
    let ram = HostRam::new(RAM_SIZE);
    let script = Shared::new(Script::default());
    let mut devices: Vec<_> = (0..DEVICES).map(|_| Echo::new(&script)).collect();
    let mut devices = devices.iter_mut();
    let mut session = Session {
        transport: MmioTransport::new(devices.next().unwrap(), guest_memory(&ram)),
        driver: AnyDriver::new(guest_memory(&ram), size, features),
        features,
        script,
        book: HashMap::new(),
        order: VecDeque::new(),
        places: vec![],
        number: 0,
        answered: 0,
    };
    let mut random = Random(seed | 1);
    session.start(features, size);
    for _ in 0..steps {
        let offered = random.below(5);
        for _ in 0..offered {
            if !session.offer(&mut random) {
                break;
            }
            if random.one_in(2) {
                session.kick();
            }
        }
        *session.script.borrow_mut() = Script {
            complete: random.below(5),
            newest_first: random.one_in(2),
            put_back: random.one_in(4),
            lazy: random.one_in(4),
        };
        session.kick();
        if random.one_in(2) {
            session.interrupt();
        }
        session.transport.poll(NOW);
        session.interrupt();
        if resets
            && random.one_in(30)
            && let Some(device) = devices.next()
        {
            session.move_to(device);
            session.interrupt();
        }
        if resets && random.one_in(40) {
            let size = if features.contains(Features::RING_PACKED) {
                random.below(40) as u16 + 4
            } else {
                4 << random.below(4)
            };
            if random.one_in(2) {
                session.reset_queue(size);
            } else {
                assert_eq!(session.transport.try_set(0x70, 0), WriteOutcome::Done);
                session.start(features, size);
            }
        }
    }
    session.drain();
    session.answered
}

/// Every combination of ring features.
fn combinations() -> impl Iterator<Item = Features> {
    const BITS: [Features; 5] = [
        Features::RING_PACKED,
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::NOTIFICATION_DATA,
        Features::IN_ORDER,
    ];
    (0..1 << BITS.len()).map(|mask: u32| {
        let chosen = BITS.iter().enumerate().filter(|(at, _)| mask >> at & 1 != 0);
        chosen.fold(Features::VERSION_1 | Features::RING_RESET, |set, (_, bit)| set | *bit)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 12 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_request_is_answered_once_whatever_is_negotiated_reset_and_restored(seed: u64) {
        for features in combinations() {
            let steps = if cfg!(miri) { 20 } else { 300 };
            run(seed, features, 8, steps, true);
        }
    }

    #[test]
    fn a_packed_ring_of_any_size_answers_every_request_once(seed: u64, size in 4..65_u16) {
        for features in combinations().filter(|it| it.contains(Features::RING_PACKED)) {
            run(seed, features, size, if cfg!(miri) { 20 } else { 200 }, false);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn traffic_goes_on_past_the_wrap_of_every_index() {
    const OTHERS: Features = Features::NOTIFICATION_DATA.union(Features::IN_ORDER);
    for features in combinations().filter(|it| !it.intersects(OTHERS)) {
        let answered = run(0x5EED, features, 16, 50_000, false);
        assert!(answered > 66_000, "{answered}");
    }
}

#[test]
fn with_in_order_what_a_back_end_finishes_out_of_order_is_used_in_order() {
    const V1: Features = Features::VERSION_1;
    for ring in [V1, V1 | Features::RING_PACKED] {
        for features in [ring, ring | Features::IN_ORDER] {
            let ram = HostRam::new(RAM_SIZE);
            let script = Shared::new(Script::default());
            let mut device = Echo::new(&script);
            let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
            assert!(transport.negotiate(features));
            let mut driver = AnyDriver::new(guest_memory(&ram), 16, features);
            let (size, areas) = driver.areas();
            transport.configure_queue(0, size.into(), &areas);
            transport.set(0x44, 1);
            transport.set(0x70, 15);
            let used = |driver: &mut AnyDriver<'_>| {
                std::iter::from_fn(|| driver.used()).map(|(place, _)| place).collect::<Vec<_>>()
            };
            for place in 0..4 {
                let base = BUFFERS + u64::from(place) * 0x10;
                assert!(driver.offer(place, &[(base, 4, false), (base + 8, 4, true)], None));
            }
            transport.set(0x50, 0);
            // Three are finished, the last first; the first is not.
            *script.borrow_mut() = Script { complete: 3, newest_first: true, ..Script::default() };
            transport.poll(NOW);
            if features.contains(Features::IN_ORDER) {
                assert_eq!(used(&mut driver), []);
                assert!(!transport.take_interrupt());
            } else {
                assert_eq!(used(&mut driver), [3, 2, 1]);
            }
            transport.poll(NOW);
            let rest: &[u16] =
                if features.contains(Features::IN_ORDER) { &[0, 1, 2, 3] } else { &[0] };
            assert_eq!(used(&mut driver), rest);
            assert!(transport.take_interrupt());
            assert_eq!(transport.fault(), None);
        }
    }
}

/// Whatever is in a packed ring and its tables, popping ends, and what comes out is RAM.
mod hostile {
    use super::super::pop;
    use super::*;
    use crate::virtio::queue::Queue;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn a_hostile_packed_ring_is_refused_or_resolved_never_followed_out_of_ram(
            words in proptest::collection::vec(any::<(u16, u16, u16, u8)>(), 26),
            size in 1..14_u16,
            skip in 0..14_u16,
        ) {
            let ram = HostRam::new(RAM_SIZE);
            let mut driver = PackedDriver::new(guest_memory(&ram), size);
            let features = Features::VERSION_1 | Features::RING_PACKED | Features::INDIRECT_DESC;
            let mut queue = Queue::new(64);
            queue.set_size(size.into());
            queue.set_areas(|areas| *areas = driver.areas);
            queue.set_ready();
            queue.start(features, &driver.memory).unwrap();
            let ring = queue.ring().unwrap();
            // Somewhere in the ring, in either lap.
            for _ in 0..skip {
                driver.offer(0, &[(BUFFERS, 1, true)]);
                let popped = pop(ring, &driver.memory);
                prop_assert!(popped.unwrap().is_some());
                ring.complete(Head::new(0, 1, true), 1);
                ring.publish();
                ring.begin_batch();
                prop_assert!(driver.used().is_some());
            }
            let table = BUFFERS + 0x800;
            for (at, (address, len, id, flags)) in words.iter().enumerate() {
                let index = at as u16 % 13;
                let (place, wrap) = driver.after(driver.next, index);
                let mut flags = u16::from(*flags) & (NEXT | WRITE | INDIRECT);
                if at >= 13 {
                    let address = crate::virtio::testing::RAM + u64::from(*address);
                    let descriptor = (address, u32::from(*len) & 0x3FF, *id, flags);
                    driver.descriptor_at(table, index, descriptor);
                    continue;
                }
                // Mostly available.
                flags |= if id % 8 == 0 { *len } else { PackedDriver::available(wrap) }
                    & (packed::AVAIL | packed::USED);
                let (address, len) = if flags & INDIRECT != 0 {
                    (table, 16 * (u32::from(*len) % 14))
                } else {
                    let address = crate::virtio::testing::RAM + u64::from(*address);
                    (address, u32::from(*len) & 0x3FF)
                };
                if index < size {
                    driver.descriptor(place, (address, len, *id, flags));
                }
            }
            for _ in 0..=size {
                match pop(ring, &driver.memory) {
                    Ok(Some((_, readable, writable))) => {
                        for (offset, len) in readable.into_iter().chain(writable) {
                            prop_assert!(len > 0 && offset + len as u64 <= RAM_SIZE as u64);
                        }
                    }
                    Ok(None) | Err(_) => break,
                }
            }
            prop_assert!(ring.outstanding() <= size);
        }
    }
}
