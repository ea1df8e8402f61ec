//! Devices that are saved and restored, by states that are theirs and states that are not.

use sparkler::backend::clock::Ticks;
use sparkler::virtio::queue::{ChainBuffer, Head};
use sparkler::virtio::state::{StateError, StateReader, StateWriter};
use sparkler::virtio::{
    Context, DeviceType, Features, MmioTransport, Progress, VirtioDevice, Width,
};

use crate::guest::{BUFFERS, Bus, Guest, PACKED, areas, memories};
use crate::input::Input;

const IN_ORDER: u64 = 1 << 35;
const EVENT_IDX: u64 = 1 << 29;
const WRITE: u16 = 2;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Entries of the largest queue.
const MAX_SIZE: u16 = 1024;
/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 100;

/// Fills buffers, and finishes the newest first; with IN_ORDER it gives them back in order all the
/// same.
struct Filler<'m> {
    chain: ChainBuffer<'m>,
    held: Vec<(Head, bool)>,
}

impl<'m> Filler<'m> {
    fn new() -> Self {
        Self { chain: ChainBuffer::new(), held: vec![] }
    }
}

impl<'m> VirtioDevice<'m> for Filler<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[MAX_SIZE]
    }

    fn offered_features(&self) -> Features {
        Features::IN_ORDER
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(index) else { return };
        while let Some(mut chain) = queue.pop(&mut self.chain) {
            let _ = chain.writable.write_bytes(&[0x5A]);
            self.held.push((chain.head, false));
        }
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let in_order = context.features().contains(Features::IN_ORDER);
        let Some(mut queue) = context.queue(0) else { return };
        for _ in 0..3 {
            if let Some(newest) = self.held.iter_mut().rev().find(|held| !held.1) {
                newest.1 = true;
            }
            while let Some(at) = self.held.iter().position(|held| held.1) {
                if in_order && at != 0 {
                    break;
                }
                queue.complete(self.held.remove(at).0, 1);
            }
        }
        if queue.has_leftover() {
            self.queue_notified(0, context);
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        self.held.clear();
        Progress::Done
    }

    fn reset_queue(&mut self, _index: u16, now: Ticks) -> Progress {
        self.reset(now)
    }
}

/// A driver of either ring that keeps to the rules: one buffer a request.
struct Driver<'a> {
    guest: &'a Guest,
    agreed: u64,
    size: u16,
    put: u16,
    seen: u16,
    /// Requests in flight, in the order in which they were offered.
    waiting: Vec<u16>,
}

impl<'a> Driver<'a> {
    fn start(bus: &mut Bus<'_, '_, '_>, guest: &'a Guest, wanted: u64, size: u16) -> Self {
        let areas = areas(size);
        for (area, len) in [
            (areas.descriptor, 16 * usize::from(size)),
            (areas.driver, 6 + 2 * usize::from(size)),
            (areas.device, 6 + 8 * usize::from(size)),
        ] {
            guest.put(area, &vec![0; len]);
        }
        let agreed = bus.negotiate(wanted | 1 << 32);
        bus.configure_queue(size, &areas);
        bus.set(0x70, 15);
        assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
        Self { guest, agreed, size, put: 0, seen: 0, waiting: vec![] }
    }

    fn packed(&self) -> bool {
        self.agreed & PACKED != 0
    }

    /// Whether `count` is in a lap whose wrap counter is 1.
    fn wrap(&self, count: u16) -> bool {
        (count / self.size).is_multiple_of(2)
    }

    /// Offers a request. No more than indices of 16 bits count, so that laps are simple.
    fn offer(&mut self) {
        if self.waiting.len() == usize::from(self.size) || self.put == u16::MAX {
            return;
        }
        let (areas, count) = (areas(self.size), self.put);
        // In a split ring any descriptor that is free would do: with requests used out of order,
        // not the one at the index.
        let name = (0..self.size).find(|name| !self.waiting.contains(name)).unwrap();
        let index = if self.packed() { count % self.size } else { name };
        let address = BUFFERS + u64::from(name);
        if self.packed() {
            let flags = WRITE | if self.wrap(count) { AVAIL } else { USED };
            let place = areas.descriptor + 16 * u64::from(index);
            self.guest.descriptor(place, (address, 1, name, flags));
        } else {
            let place = areas.descriptor + 16 * u64::from(index);
            self.guest.descriptor(place, (address, 1, WRITE, 0));
            let slot = u64::from(count % self.size);
            self.guest.put_u16(areas.driver + 4 + 2 * slot, name);
            self.guest.put_u16(areas.driver + 2, count + 1);
        }
        self.waiting.push(name);
        self.put += 1;
    }

    /// Takes the answers there are.
    fn collect(&mut self) {
        let areas = areas(self.size);
        loop {
            let index = u64::from(self.seen % self.size);
            let name = if self.packed() {
                let place = areas.descriptor + 16 * index;
                let owner = self.guest.get_u16(place + 14) & (AVAIL | USED);
                let used = if self.wrap(self.seen) { AVAIL | USED } else { 0 };
                if self.seen == self.put || owner != used {
                    return;
                }
                self.guest.get_u16(place + 12)
            } else {
                if self.guest.get_u16(areas.device + 2) == self.seen {
                    return;
                }
                self.guest.get_u16(areas.device + 4 + 8 * index)
            };
            let at = self.waiting.iter().position(|it| *it == name).expect("answered twice");
            assert!(at == 0 || self.agreed & IN_ORDER == 0, "not in order");
            self.waiting.remove(at);
            self.seen += 1;
        }
    }

    fn drain(&mut self, bus: &mut Bus<'_, '_, '_>) {
        bus.set(0x50, 0);
        for _ in 0..2 * u32::from(MAX_SIZE) {
            if !bus.transport.has_work_in_flight() {
                break;
            }
            bus.poll();
        }
        self.collect();
        assert!(self.waiting.is_empty(), "requests {:?} are forgotten", self.waiting);
        assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
    }
}

/// Requests to a device that is saved and goes on as another one; then a state that was changed on
/// its way, and traffic on what that made of the device; then a reset and requests again.
pub fn state(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, _) = memories();
    let (features, size) = (input.u8(), 1 + input.u16() % MAX_SIZE);
    let mut wanted = if features & 1 != 0 { PACKED } else { 0 };
    wanted |= if features & 2 != 0 { IN_ORDER } else { 0 };
    wanted |= if features & 4 != 0 { EVENT_IDX } else { 0 };
    let size = if wanted & PACKED != 0 { size } else { size.next_power_of_two().min(MAX_SIZE) };
    let max = if features & 8 != 0 { size } else { u16::MAX };

    let mut device = Filler::new();
    let mut transport =
        MmioTransport::new(&mut device, guest.memory.clone()).with_max_queue_size(max);
    let mut bus = Bus::new(&mut transport);
    let mut driver = Driver::start(&mut bus, &guest, wanted, size);
    traffic(&mut bus, &mut driver, input);
    let mut state = [0; 256];
    let len = save(&mut bus, &mut state);

    let mut device = Filler::new();
    let mut transport =
        MmioTransport::new(&mut device, guest.memory.clone()).with_max_queue_size(max);
    assert_eq!(transport.restore(&mut StateReader::new(&state[..len]), Ticks(0)), Ok(()));
    let mut bus = Bus::new(&mut transport);
    bus.poll();
    traffic(&mut bus, &mut driver, input);
    driver.drain(&mut bus);
    let len = save(&mut bus, &mut state);

    for _ in 0..input.below(8) {
        let at = input.below(len);
        state[at] = input.u8();
    }
    let len = len - input.below(4) * input.below(4);
    let mut device = Filler::new();
    let mut transport =
        MmioTransport::new(&mut device, guest.memory.clone()).with_max_queue_size(max);
    let result = transport.restore(&mut StateReader::new(&state[..len]), Ticks(0));
    let mut bus = Bus::new(&mut transport);
    if result.is_err() {
        assert_eq!([0x70, 0x60, 0x44].map(|offset| bus.get(offset)), [0; 3]);
    }
    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        let (offset, value) = (input.u8(), input.u8());
        let _ = bus.store(u16::from(offset) & 0xFC, Width::Word, value.into());
        bus.poll();
    }
    let mut driver = Driver::start(&mut bus, &guest, wanted, size);
    for _ in 0..size.min(40) {
        driver.offer();
    }
    driver.drain(&mut bus);
}

/// Requests, notifications, polls.
fn traffic(bus: &mut Bus<'_, '_, '_>, driver: &mut Driver<'_>, input: &mut Input<'_>) {
    for _ in 0..input.below(MAX_ACTIONS) {
        match input.below(8) {
            0..=3 => driver.offer(),
            4 => (0..input.u8()).for_each(|_| driver.offer()),
            5 => bus.set(0x50, 0),
            6 => bus.poll(),
            _ => driver.collect(),
        }
    }
}

/// The device comes to rest and is saved.
fn save(bus: &mut Bus<'_, '_, '_>, state: &mut [u8]) -> usize {
    for _ in 0..2 * u32::from(MAX_SIZE) {
        let mut writer = StateWriter::new(state);
        match bus.transport.save(&mut writer) {
            Ok(()) => return writer.written(),
            Err(error) => assert_eq!(error, StateError::Busy),
        }
        bus.poll();
    }
    panic!("the device never comes to rest");
}
