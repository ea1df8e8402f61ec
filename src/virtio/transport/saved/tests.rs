//! A device that is saved goes on elsewhere; a state that cannot be is refused.

use proptest::prelude::*;

use super::*;
use crate::memory::HostRam;
use crate::virtio::queue::{ChainBuffer, Head};
use crate::virtio::testing::packed::{DISABLE, PackedDriver};
use crate::virtio::testing::{BUFFERS, Driver, NOW, RAM, RAM_SIZE, Registers, guest_memory};
use crate::virtio::{Context, DeviceType, Progress, VirtioDevice, Width, WriteOutcome};

const V1: Features = Features::VERSION_1;
const PACKED: Features = V1.union(Features::RING_PACKED);

/// Fills a byte, when it is polled; its state is how often it did, at most [`MOST`].
#[derive(Default)]
struct Count<'m> {
    chain: ChainBuffer<'m>,
    held: Vec<Head>,
    done: u32,
    accepted: Option<Features>,
    silent: bool,
    stuck: bool,
}

const MOST: u32 = 1000;

impl<'m> VirtioDevice<'m> for Count<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.done.to_le_bytes().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(index) else { return };
        if self.silent {
            queue.set_notifications(false);
        }
        while let Some(chain) = queue.pop(&mut self.chain) {
            self.held.push(chain.head);
        }
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(0) else { return };
        if queue.has_leftover() {
            while let Some(chain) = queue.pop(&mut self.chain) {
                self.held.push(chain.head);
            }
        }
        for head in self.held.drain(..) {
            queue.complete(head, 1);
            self.done += 1;
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        self.held.clear();
        (self.done, self.accepted) = (0, None);
        if self.stuck { Progress::Pending } else { Progress::Done }
    }

    fn reset_queue(&mut self, _index: u16, _now: Ticks) -> Progress {
        self.held.clear();
        if self.stuck { Progress::Pending } else { Progress::Done }
    }

    fn save(&self, state: &mut StateWriter<'_>) -> Result<(), StateError> {
        state.write_object(&U32::new(self.done))
    }

    fn restore(
        &mut self,
        accepted: Features,
        state: &mut StateReader<'_>,
    ) -> Result<(), StateError> {
        let done = state.read_object::<U32>()?.get();
        if done > MOST {
            return Err(StateError::Invalid);
        }
        (self.done, self.accepted) = (done, Some(accepted));
        Ok(())
    }
}

/// Transport, two queues, and the device's counter.
const LEN: usize = 64 + 2 * 40 + 4;

fn state_of(transport: &MmioTransport<'_, '_>) -> Result<[u8; LEN], StateError> {
    let mut bytes = [0; LEN];
    let mut writer = StateWriter::new(&mut bytes);
    transport.save(&mut writer)?;
    assert_eq!(writer.written(), LEN);
    Ok(bytes)
}

/// Serves one request of a driver of a split ring.
fn serve(transport: &mut MmioTransport<'_, '_>, driver: &mut Driver<'_>) {
    let head = driver.available % driver.size;
    driver.chain(head, &[(BUFFERS, 1, true)]);
    driver.offer(head);
    transport.set(0x50, 0);
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((head.into(), 1)));
}

/// A good state: a device at work, three requests done, an interrupt pending.
fn good(ram: &HostRam) -> [u8; LEN] {
    let mut driver = Driver::new(guest_memory(ram), 8);
    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(ram));
    transport.bring_up(V1 | Features::RING_RESET, &driver);
    for _ in 0..3 {
        serve(&mut transport, &mut driver);
    }
    state_of(&transport).unwrap()
}

fn restored(ram: &HostRam, state: &[u8]) -> Result<(), StateError> {
    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(ram));
    let result = transport.restore(&mut StateReader::new(state), NOW);
    if result.is_err() {
        assert_eq!([0x70, 0x60, 0x44, 0x80].map(|offset| transport.get(offset)), [0; 4]);
        assert!(!transport.has_work_in_flight() && !transport.take_interrupt());
    }
    result
}

#[test]
fn every_register_is_the_same_after_it_at_every_status() {
    let ram = HostRam::new(RAM_SIZE);
    let features = V1 | Features::EVENT_IDX;
    for status in [0, 1, 3, 11, 15, 0x83, 0x8F, 0x4F, 0xCF] {
        let mut driver = Driver::new(guest_memory(&ram), 8);
        let mut device = Count::default();
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        if status & 4 != 0 {
            transport.bring_up(features, &driver);
            serve(&mut transport, &mut driver);
        }
        if status & 0x40 != 0 {
            driver.set_available(0x7000);
            transport.set(0x50, 0);
        }
        if status == 11 {
            assert!(transport.negotiate(features));
        }
        for (offset, value) in [(0x30, 1), (0xAC, 7), (0x14, 1), (0x24, 2), (0x38, 5), (0x84, 9)] {
            transport.set(offset, value);
        }
        if status != 0 {
            transport.set(0x70, status);
        }
        assert_eq!(transport.get(0x70), status);
        let state = state_of(&transport).unwrap();
        let mut other = Count::default();
        let mut other = MmioTransport::new(&mut other, guest_memory(&ram));
        let mut reader = StateReader::new(&state);
        assert_eq!(other.restore(&mut reader, NOW), Ok(()), "status {status:#x}");
        assert_eq!(reader.remaining(), 0);
        assert_eq!(state_of(&other), Ok(state));
        for queue in [1, 0, 2] {
            for offset in (0..0x108).step_by(4) {
                assert_eq!(other.get(offset), transport.get(offset), "{status:#x} {offset:#x}");
            }
            transport.set(0x30, queue);
            other.set(0x30, queue);
        }
        assert_eq!(other.take_interrupt(), transport.take_interrupt());
    }
}

#[test]
fn a_driver_goes_on_and_the_device_model_knows_what_was_agreed_and_done() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 8);
    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.bring_up(V1, &driver);
    for _ in 0..11 {
        serve(&mut transport, &mut driver);
    }
    let state = state_of(&transport).unwrap();
    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.restore(&mut StateReader::new(&state), NOW).unwrap();
    assert!(transport.take_interrupt());
    // Made available just before it was saved, and never notified.
    driver.chain(2, &[(BUFFERS, 1, true)]);
    driver.offer(2);
    assert!(transport.has_work_in_flight());
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((2, 1)));
    for _ in 0..20 {
        serve(&mut transport, &mut driver);
    }
    assert_eq!(transport.read(0x100, Width::Word), 32);
    drop(transport);
    assert_eq!(device.accepted, Some(V1));
}

#[test]
fn a_packed_ring_goes_on_in_the_same_lap_and_a_silent_one_stays_silent() {
    for silent in [false, true] {
        for count in 0..12 {
            let ram = HostRam::new(RAM_SIZE);
            let mut driver = PackedDriver::new(guest_memory(&ram), 5);
            let serve = |transport: &mut MmioTransport<'_, '_>, driver: &mut PackedDriver<'_>| {
                driver.offer(9, &[(BUFFERS, 1, true)]);
                transport.set(0x50, 0);
                transport.poll(NOW);
                assert_eq!(driver.used(), Some((9, 1, true)));
            };
            let mut device = Count { silent, ..Count::default() };
            let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
            assert!(transport.negotiate(PACKED));
            transport.configure_queue(0, 5, &driver.areas);
            transport.set(0x44, 1);
            transport.set(0x70, 15);
            for _ in 0..count {
                serve(&mut transport, &mut driver);
            }
            let state = state_of(&transport).unwrap();
            let before = driver.device_event();
            assert_eq!(before.0 == DISABLE, silent && count != 0);
            let mut device = Count::default();
            let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
            transport.restore(&mut StateReader::new(&state), NOW).unwrap();
            transport.poll(NOW);
            assert_eq!(driver.device_event(), before);
            for _ in 0..12 {
                serve(&mut transport, &mut driver);
            }
            // The queue still knows what it has asked for.
            assert_eq!(state_of(&transport).unwrap()[94] & 2 != 0, silent && count != 0);
        }
    }
}

#[test]
fn a_device_at_work_is_neither_saved_nor_restored() {
    let ram = HostRam::new(RAM_SIZE);
    let state = good(&ram);
    // What becomes of a save with a request at work, after `act`.
    let saved = |stuck, act: fn(&mut MmioTransport<'_, '_>)| {
        let mut driver = Driver::new(guest_memory(&ram), 8);
        let mut device = Count { stuck, ..Count::default() };
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        assert_eq!(transport.try_set(0x70, 1), WriteOutcome::Done);
        for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 0x101), (0x70, 11)] {
            transport.set(offset, value);
        }
        transport.configure_queue(0, 8, &driver.areas);
        transport.set(0x44, 1);
        transport.set(0x70, 15);
        driver.chain(0, &[(BUFFERS, 1, true)]);
        driver.offer(0);
        transport.set(0x50, 0);
        act(&mut transport);
        state_of(&transport)
    };
    assert_eq!(saved(false, |_| ()), Err(StateError::Busy));
    assert!(saved(false, |transport| transport.poll(NOW)).is_ok());
    // A queue that stops, and a reset, that are over and that are not.
    let stops: [fn(&mut MmioTransport<'_, '_>); 2] = [
        |transport| transport.set(0xC0, 1),
        |transport| {
            let _ = transport.try_set(0x70, 0);
        },
    ];
    for stop in stops {
        assert_eq!(saved(true, stop), Err(StateError::Busy));
        assert!(saved(false, stop).is_ok());
    }

    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    for offset in [0x70, 0x44] {
        transport.set(offset, 1);
        let result = transport.restore(&mut StateReader::new(&state), NOW);
        assert_eq!(result, Err(StateError::Busy));
        transport.set(offset, 0);
    }
    assert_eq!(transport.restore(&mut StateReader::new(&state), NOW), Ok(()));
    assert_eq!(transport.restore(&mut StateReader::new(&state), NOW), Err(StateError::Busy));
}

#[test]
fn a_state_needs_all_of_its_room() {
    let ram = HostRam::new(RAM_SIZE);
    let mut device = Count::default();
    let transport = MmioTransport::new(&mut device, guest_memory(&ram));
    for len in 0..LEN {
        let result = transport.save(&mut StateWriter::new(&mut [0; LEN][..len]));
        assert_eq!(result, Err(StateError::Length));
    }
    assert!(state_of(&transport).is_ok());
}

#[test]
fn what_no_driver_could_have_led_to_is_refused_and_leaves_a_reset_device() {
    let ram = HostRam::new(RAM_SIZE);
    let state = good(&ram);
    assert_eq!(restored(&ram, &state), Ok(()));
    for len in 0..LEN {
        assert_eq!(restored(&ram, &state[..len]), Err(StateError::Length), "{len} bytes");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut state = state;
        state[at..at + bytes.len()].copy_from_slice(bytes);
        restored(&ram, &state)
    };
    let word = |at, word: u32| with(at, &word.to_le_bytes());
    let long = |at, long: u64| with(at, &long.to_le_bytes());
    let invalid = Err(StateError::Invalid);
    assert_eq!(word(0, FORMAT + 1), invalid, "another format");
    assert_eq!(word(4, 2), invalid, "another device");
    assert_eq!(long(8, u64::MAX), invalid, "more was offered");
    assert_eq!(long(16, 0), invalid, "without VERSION_1");
    assert_eq!(long(16, V1.bits() | 1), invalid, "what is not offered");
    assert_eq!(word(24, 1 << 2), invalid, "features of another page");
    for status in [2, 7, 8, 12, 13, 14, 0x10, 0x1F, 0x10F] {
        assert_eq!(word(44, status), invalid, "status {status:#x}");
    }
    assert_eq!(word(44, 11), invalid, "a ring of a device that is not live");
    assert_eq!(word(48, 4), invalid, "another cause");
    assert_eq!(word(56, 2), invalid, "another flag");
    for queues in [0, 1, 3, u32::MAX] {
        assert_eq!(word(60, queues), invalid, "{queues} queues");
    }
    // Queue 0.
    for (area, misaligned) in [(64, 8), (72, 1), (80, 2)] {
        assert_eq!(long(area, 0), invalid, "outside RAM");
        assert_eq!(long(area, u64::MAX - 15), invalid, "wraps");
        assert_eq!(long(area, BUFFERS + misaligned), invalid, "misaligned");
    }
    assert_eq!(long(72, RAM), invalid, "overlaps");
    for size in [0, 3, 128, 0x1_0008, u32::MAX] {
        assert_eq!(word(88, size), invalid, "{size} entries");
    }
    assert_eq!(with(92, &[32, 0]), invalid, "another maximum");
    assert_eq!(with(94, &[0, 0]), invalid, "a place in no ring");
    assert_eq!(with(94, &[5, 0]), invalid, "another flag");
    for reserved in 98..104 {
        assert_eq!(with(reserved, &[1]), invalid);
    }
    // The device model's.
    assert_eq!(word(LEN - 4, MOST + 1), invalid);
    assert_eq!(word(LEN - 4, MOST), Ok(()));
    // A packed ring has places only below its size.
    for (place, result) in [(7, Ok(())), (8, invalid), (0x8007, Ok(())), (0x8008, invalid)] {
        let mut state = state;
        // The areas are those of a split ring, but aligned for either.
        state[16..24].copy_from_slice(&PACKED.bits().to_le_bytes());
        state[96..98].copy_from_slice(&u16::to_le_bytes(place));
        assert_eq!(restored(&ram, &state), result, "place {place:#x}");
    }
}

#[test]
fn a_position_that_the_ring_belies_breaks_the_device_until_a_reset() {
    let ram = HostRam::new(RAM_SIZE);
    let mut state = good(&ram);
    state[96..98].copy_from_slice(&0x4000_u16.to_le_bytes());
    let mut device = Count::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.restore(&mut StateReader::new(&state), NOW).unwrap();
    transport.poll(NOW);
    assert_eq!(transport.get(0x70), 0x4F);
    transport.bring_up(V1, &Driver::new(guest_memory(&ram), 8));
    assert_eq!(transport.get(0x70), 15);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Any state is taken on or refused; either way the device bears any traffic, and a reset heals.
    #[test]
    fn a_hostile_state_is_no_worse_than_a_hostile_driver(
        changes in proptest::collection::vec((0..LEN, any::<u8>()), 0..6),
        accesses in proptest::collection::vec((0..0x42_u16, 0..16_u32, any::<bool>()), 0..30),
    ) {
        let ram = HostRam::new(RAM_SIZE);
        let mut state = good(&ram);
        for (at, value) in changes {
            state[at] = value;
        }
        let mut device = Count::default();
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        if transport.restore(&mut StateReader::new(&state), NOW).is_ok() {
            // What was taken on is what is written down again, but the offer is this device's.
            let mut again = state_of(&transport).unwrap();
            again[8..16].copy_from_slice(&state[8..16]);
            prop_assert_eq!(again, state);
        } else {
            prop_assert_eq!(transport.get(0x70), 0);
        }
        transport.poll(NOW);
        for (register, value, poll) in accesses {
            let _ = transport.try_set(register * 4, value);
            if poll {
                transport.poll(NOW);
            }
        }
        let mut driver = Driver::new(guest_memory(&ram), 8);
        transport.bring_up(V1, &driver);
        let _ = transport.take_interrupt();
        serve(&mut transport, &mut driver);
        prop_assert!(transport.take_interrupt());
    }
}
