//! The driver against our own device models: an honest one and one that lies.

use std::sync::Arc;

use super::*;
use crate::backend::clock::Frequency;
use crate::backend::entropy::SharedSource;
use crate::backend::entropy::testing::{Script, seed};
use crate::drivers::testing::{CountedDelay, FakeRam};
use crate::memory::{GuestMemory, Ipa};
use crate::sync::Mutex;
use crate::sync::testing::Shared;
use crate::virtio::devices::rng::Rng;
use crate::virtio::queue::ChainBuffer;
use crate::virtio::{Context, DeviceType, MmioTransport, Progress, VirtioDevice, Width};

const TIMEOUT: Ticks = Ticks(100);

/// A device of the board's: its bus addresses are those of the RAM.
#[derive(Clone)]
struct Slot<'m>(Arc<Mutex<MmioTransport<'m, 'm>>>);

impl<'m> Slot<'m> {
    fn new(device: &'m mut dyn VirtioDevice<'m>, ram: &'m FakeRam) -> Self {
        let mut memory = GuestMemory::new();
        assert!(memory.add(Ipa::new(FakeRam::PA), ram.all()).is_ok());
        Self(Arc::new(Mutex::new(MmioTransport::new(device, memory))))
    }

    fn poll(&self, now: Ticks) {
        self.0.lock().poll(now);
    }
}

impl Registers for Slot<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.0.lock().read(offset as u16, Width::Word) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        // One that must be tried again: who resets looks until it is done.
        let _ = self.0.lock().write(offset as u16, Width::Word, value.into(), Ticks(0));
    }
}

fn ram() -> &'static FakeRam {
    Box::leak(Box::new(FakeRam::new(0x4000)))
}

type Driver = VirtioEntropy<'static, Slot<'static>>;

fn driver(slot: &Slot<'static>, ram: &'static FakeRam) -> Result<Driver, InitError> {
    let dma = ram.allocate(Driver::DMA_BYTES);
    Driver::new(slot.clone(), dma, TIMEOUT, Ticks(0), &mut CountedDelay::default())
}

/// What a device does with a request: the used length, and what it writes; or nothing.
type Answer = Option<(u32, Vec<u8>)>;

struct Scripted {
    answers: Shared<Vec<Answer>>,
    chain: ChainBuffer<'static>,
    stubborn: Shared<bool>,
}

impl VirtioDevice<'static> for Scripted {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[2]
    }
    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'static>) {
        let Some(mut queue) = context.queue(index) else { return };
        while let Some(mut chain) = queue.pop(&mut self.chain) {
            assert_eq!(chain.readable.remaining(), 0);
            let mut answers = self.answers.borrow_mut();
            let answer = if answers.is_empty() { None } else { answers.remove(0) };
            if let Some((used, bytes)) = answer {
                let fits = bytes.len().min(chain.writable.remaining());
                chain.writable.write_bytes(&bytes[..fits]).unwrap();
                queue.complete(chain.head, used);
            }
        }
    }
    fn reset(&mut self, _now: Ticks) -> Progress {
        if self.stubborn.get() { Progress::Pending } else { Progress::Done }
    }
}

/// A driver of a device that answers like this, in turn, and then no more.
fn scripted(answers: Vec<Answer>) -> (Driver, Slot<'static>, Shared<bool>) {
    let (ram, stubborn) = (ram(), Shared::default());
    let device = Scripted {
        answers: Shared::new(answers),
        chain: ChainBuffer::new(),
        stubborn: stubborn.clone(),
    };
    let slot = Slot::new(Box::leak(Box::new(device)), ram);
    (driver(&slot, ram).unwrap(), slot, stubborn)
}

fn whole(n: u8) -> Answer {
    Some((32, seed(n).to_vec()))
}

fn fill(driver: &mut Driver, now: u64) -> Result<Seed, NoEntropy> {
    let mut seed = [0; 32];
    driver.fill(&mut seed, Ticks(now)).map(|()| seed)
}

#[test]
fn our_own_device_gives_seeds_as_fast_as_they_are_taken() {
    let ram = ram();
    let script = Box::leak(Box::new(Script::new([Ok(seed(1))])));
    let source = Box::leak(Box::new(SharedSource::new(script)));
    let device = Box::leak(Box::new(Rng::new(source, Frequency::new(1000).unwrap())));
    let slot = Slot::new(device, ram);
    let mut driver = driver(&slot, ram).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        assert!(seen.insert(fill(&mut driver, 0).unwrap()));
    }
    // Nothing of a seed stays in memory that the device can read.
    let bytes = crate::drivers::testing::dump(ram.all());
    let last = seen.last().unwrap();
    assert!(bytes.windows(8).all(|bytes| *bytes != last[..8]));
}

#[test]
fn a_seed_is_put_together_of_short_answers() {
    let seed = seed(3);
    let pieces = [&seed[..1], &seed[1..20], &seed[20..32]];
    let answers = pieces.map(|bytes| Some((bytes.len() as u32, bytes.to_vec())));
    let (mut driver, ..) = scripted(answers.to_vec());
    assert_eq!(fill(&mut driver, 0), Err(NoEntropy::NotYet));
    assert_eq!(fill(&mut driver, 0), Err(NoEntropy::NotYet));
    assert_eq!(fill(&mut driver, 0), Ok(seed));
    assert_eq!(fill(&mut driver, 0), Err(NoEntropy::NotYet));
}

#[test]
fn a_device_that_answers_nonsense_is_reset_and_comes_back() {
    for used in [0, 33, u32::MAX] {
        let (mut driver, slot, _) = scripted(vec![Some((used, vec![1; 32])), whole(1)]);
        assert_eq!(fill(&mut driver, 0), Err(NoEntropy::Failed), "{used}");
        assert_eq!(slot.read32(0x70), 0);
        assert_eq!(fill(&mut driver, 0), Err(NoEntropy::NotYet));
        assert_eq!(fill(&mut driver, 0), Ok(seed(1)));
    }
}

#[test]
fn a_device_that_does_not_answer_in_time_has_failed_until_it_is_back() {
    let (mut driver, slot, stubborn) = scripted(vec![None, whole(2)]);
    stubborn.set(true);
    assert_eq!(fill(&mut driver, 99), Err(NoEntropy::NotYet));
    assert_eq!(fill(&mut driver, 100), Err(NoEntropy::Failed));
    // Nothing is read while it has not completed its reset.
    assert_eq!(fill(&mut driver, 1000), Err(NoEntropy::Failed));
    stubborn.set(false);
    slot.poll(Ticks(1000));
    assert_eq!(fill(&mut driver, 1000), Err(NoEntropy::NotYet));
    assert_eq!(fill(&mut driver, 1000), Ok(seed(2)));
}

#[test]
fn an_answer_that_was_there_in_time_may_be_looked_for_late() {
    let (mut driver, ..) = scripted(vec![whole(4)]);
    assert_eq!(fill(&mut driver, 1_000_000), Ok(seed(4)));
}

#[test]
fn a_device_without_a_queue_or_memory_is_not_used() {
    struct Bare;
    impl VirtioDevice<'static> for Bare {
        fn device_type(&self) -> DeviceType {
            DeviceType::ENTROPY
        }
        fn queue_max_sizes(&self) -> &[u16] {
            &[0]
        }
        fn queue_notified(&mut self, _index: u16, _context: &mut Context<'_, 'static>) {}
    }
    let ram = ram();
    let slot = Slot::new(Box::leak(Box::new(Bare)), ram);
    assert_eq!(driver(&slot, ram).err(), Some(InitError::NoQueue));
    let dma = ram.allocate(16);
    let failed = Driver::new(slot, dma, TIMEOUT, Ticks(0), &mut CountedDelay::default());
    assert_eq!(failed.err(), Some(InitError::DmaMemory));
}
