use proptest::prelude::{ProptestConfig, prop, proptest};

use super::*;
use crate::backend::entropy::testing::{Script, seed};
use crate::backend::entropy::{EntropySource, RESEED_BYTES, Seed};
use crate::memory::HostRam;
use crate::virtio::limiter::Rate;
use crate::virtio::testing::{BUFFERS, Driver, RAM_SIZE, Registers, guest_memory};
use crate::virtio::{Features, MmioTransport, Status, WriteOutcome};

const SIZE: u16 = 64;
const HERTZ: Frequency = Frequency::new(1000).unwrap();

/// A source that always has something new.
struct Endless(u64);

impl EntropySource for Endless {
    fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
        for word in seed.as_chunks_mut().0 {
            self.0 += 1;
            *word = self.0.to_le_bytes();
        }
        Ok(())
    }
}

struct Setup<'s, 'd, 'm> {
    transport: &'s mut MmioTransport<'d, 'm>,
    driver: Driver<'m>,
}

/// A device over `source` and its driver, for a test.
fn with(source: &mut dyn EntropySource, test: impl FnOnce(&mut Setup<'_, '_, '_>)) {
    let ram = HostRam::new(RAM_SIZE);
    let source = SharedSource::new(source);
    let mut device = Rng::new(&source, HERTZ);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    let driver = Driver::new(guest_memory(&ram), SIZE);
    transport.bring_up(Features::VERSION_1, &driver);
    test(&mut Setup { transport: &mut transport, driver });
}

impl Setup<'_, '_, '_> {
    /// Offers chains of `buffers`, each at a descriptor of its own, and rings; the answers.
    fn ask(&mut self, chains: &[&[(u64, u32, bool)]]) -> Vec<(u32, u32)> {
        let mut head = 0;
        for buffers in chains {
            self.driver.chain(head, buffers);
            self.driver.offer(head);
            head += buffers.len() as u16;
        }
        self.kick(Ticks(0))
    }

    fn kick(&mut self, now: Ticks) -> Vec<(u32, u32)> {
        let outcome = self.transport.write(0x50, crate::virtio::Width::Word, 0, now);
        assert_eq!(outcome, WriteOutcome::Done);
        self.answers()
    }

    fn poll(&mut self, now: Ticks) -> Vec<(u32, u32)> {
        self.transport.poll(now);
        self.answers()
    }

    fn answers(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.used()).collect()
    }

    fn statistics(&self) -> [u64; 3] {
        let mut seen = Vec::new();
        self.transport.statistics(&mut |name, value| seen.push((name, value)));
        let names: Vec<_> = seen.iter().map(|it| it.0).collect();
        assert_eq!(names, ["requests", "errors", "bytes_read"]);
        [seen[0].1, seen[1].1, seen[2].1]
    }
}

#[test]
fn a_buffer_is_filled_with_bytes_and_nothing_behind_it() {
    with(&mut Endless(0), |setup| {
        setup.driver.put(BUFFERS, &[0; 600]);
        assert_eq!(setup.ask(&[&[(BUFFERS + 8, 300, true)]]), [(0, 300)]);
        let bytes: [u8; 600] = setup.driver.get(BUFFERS);
        let (before, rest) = bytes.split_at(8);
        let (random, after) = rest.split_at(300);
        assert!(before.iter().chain(after).all(|byte| *byte == 0));
        // Of 300 bytes about 206 values differ; 150 or fewer is beyond belief.
        let mut values: Vec<u8> = random.to_vec();
        values.sort_unstable();
        values.dedup();
        assert!(values.len() > 150, "{}", values.len());
        assert_eq!(setup.statistics(), [1, 0, 300]);
    });
}

#[test]
fn two_devices_and_two_requests_never_get_the_same_bytes() {
    let ram = [HostRam::new(RAM_SIZE), HostRam::new(RAM_SIZE)];
    let mut source = Endless(0);
    let source = SharedSource::new(&mut source);
    let mut pieces = std::collections::BTreeSet::new();
    for ram in &ram {
        let mut device = Rng::new(&source, HERTZ);
        let mut transport = MmioTransport::new(&mut device, guest_memory(ram));
        let driver = Driver::new(guest_memory(ram), SIZE);
        transport.bring_up(Features::VERSION_1, &driver);
        let mut setup = Setup { transport: &mut transport, driver };
        for _ in 0..4 {
            setup.ask(&[&[(BUFFERS, 1024, true)]]);
            let bytes: [u8; 1024] = setup.driver.get(BUFFERS);
            pieces.extend(bytes.chunks(16).map(<[u8]>::to_vec));
        }
    }
    assert_eq!(pieces.len(), 2 * 4 * 64);
}

#[test]
fn a_call_gives_so_many_bytes_and_the_rest_comes_later() {
    with(&mut Endless(0), |setup| {
        let whole = MOST_AT_ONCE as u32;
        let chains: [&[_]; 4] = [
            &[(BUFFERS, 100, true)],
            // More than one call gives: cut short, which it may be.
            &[(BUFFERS, whole, true)],
            &[(BUFFERS, whole + 1, true)],
            &[(BUFFERS, 1, true)],
        ];
        assert_eq!(setup.ask(&chains), [(0, 100), (1, whole - 100)]);
        assert_eq!(setup.transport.next_poll(), NextPoll::Soon);
        assert_eq!(setup.poll(Ticks(0)), [(2, whole)]);
        assert_eq!(setup.poll(Ticks(0)), [(3, 1)]);
        assert_eq!(setup.transport.next_poll(), NextPoll::Idle);
    });
}

#[test]
fn requests_wait_while_the_source_has_nothing_and_are_answered_when_it_has() {
    let mut script = Script::new([Err(NoEntropy::NotYet), Err(NoEntropy::NotYet), Ok(seed(1))]);
    with(&mut script, |setup| {
        assert_eq!(setup.ask(&[&[(BUFFERS, 8, true)], &[(BUFFERS, 9, true)]]), []);
        assert_eq!(setup.transport.next_poll(), NextPoll::At(Ticks(1)));
        assert_eq!(setup.poll(Ticks(1)), []);
        assert_eq!(setup.transport.next_poll(), NextPoll::At(Ticks(2)));
        assert_eq!(setup.poll(Ticks(2)), [(0, 8), (1, 9)]);
        assert_eq!(setup.transport.next_poll(), NextPoll::Idle);
        assert_eq!(setup.statistics(), [2, 0, 17]);
    });
}

#[test]
fn a_failed_source_gives_the_guest_nothing_and_the_device_goes_on_when_it_is_back() {
    let stuck = Ok([0x55; 32]);
    let mut script = Script::new([Err(NoEntropy::Failed), stuck, Ok(seed(2))]);
    with(&mut script, |setup| {
        setup.driver.put(BUFFERS, &[0xAA; 8]);
        assert_eq!(setup.ask(&[&[(BUFFERS, 8, true)]]), []);
        assert_eq!(setup.transport.next_poll(), NextPoll::At(Ticks(1000)));
        // Kicks do not make it answer.
        assert_eq!(setup.kick(Ticks(1)), []);
        assert_eq!(setup.driver.get::<8>(BUFFERS), [0xAA; 8]);
        assert_eq!(setup.statistics(), [0, 2, 0]);
        assert!(!setup.transport.status().contains(Status::DEVICE_NEEDS_RESET));
        assert_eq!(setup.poll(Ticks(1001)), [(0, 8)]);
        assert_ne!(setup.driver.get::<8>(BUFFERS), [0xAA; 8]);
    });
}

#[test]
fn without_a_new_seed_in_time_there_are_no_more_bytes() {
    let mut script = Script::new([Ok(seed(1)), Err(NoEntropy::Failed)]);
    with(&mut script, |setup| {
        let mut given = 0;
        for _ in 0..1000 {
            let answers = setup.ask(&[&[(BUFFERS, 8192, true)]]);
            given += answers.iter().map(|it| u64::from(it.1)).sum::<u64>();
            if answers.is_empty() {
                break;
            }
        }
        // The key that each call ends with is not the guest's.
        assert!(given <= RESEED_BYTES && given > RESEED_BYTES * 9 / 10, "{given}");
    });
    let mut script = Script::new([Ok(seed(1)), Err(NoEntropy::Failed)]);
    with(&mut script, |setup| {
        assert_eq!(setup.ask(&[&[(BUFFERS, 8, true)]]).len(), 1);
        setup.driver.offer(0);
        assert_eq!(setup.kick(Ticks(59_999)).len(), 1);
        setup.driver.offer(0);
        assert_eq!(setup.kick(Ticks(60_000)), []);
    });
}

#[test]
fn a_request_without_room_for_a_byte_breaks_the_queue_and_a_reset_heals_it() {
    with(&mut Endless(0), |setup| {
        assert_eq!(setup.ask(&[&[(BUFFERS, 8, true)], &[(BUFFERS, 8, false)]]), [(0, 8)]);
        assert!(setup.transport.status().contains(Status::DEVICE_NEEDS_RESET));
        let memory = setup.driver.memory.clone();
        setup.driver = Driver::new(memory, SIZE);
        setup.transport.bring_up(Features::VERSION_1, &setup.driver);
        // What is readable before the room is of no interest.
        let buffers = [(BUFFERS, 8, false), (BUFFERS, 7, true)];
        assert_eq!(setup.ask(&[&buffers]), [(0, 7)]);
    });
}

#[test]
fn there_are_no_features_and_no_configuration() {
    with(&mut Endless(0), |setup| {
        setup.transport.set(0x14, 0);
        assert_eq!(setup.transport.get(0x10) & 0x00FF_FFFF, 0);
        assert_eq!(setup.transport.get(0x08), 4);
        assert_eq!(setup.transport.get(0x100), 0);
        setup.transport.set(0x30, 1);
        assert_eq!(setup.transport.get(0x34), 0);
    });
}

#[test]
fn a_limit_holds_requests_back_until_an_operator_lifts_it() {
    struct Clock;
    impl crate::backend::clock::Clock for Clock {
        fn now(&self) -> Ticks {
            Ticks(0)
        }
        fn frequency(&self) -> Frequency {
            HERTZ
        }
    }
    with(&mut Endless(0), |setup| {
        let bytes = Some(Rate { per_second: 100, burst: 10 });
        let limits = Limits { bytes, requests: None };
        let change = |direction, limits| Adjustment::Limit(direction, limits);
        assert_eq!(setup.transport.adjust(change(Direction::In, limits), &Clock), Ok(()));
        assert_eq!(setup.transport.limits(Direction::In), limits);
        let unsupported = Err(NotAdjusted::Unsupported);
        assert_eq!(setup.transport.adjust(change(Direction::Out, limits), &Clock), unsupported);
        assert_eq!(setup.transport.adjust(Adjustment::Link(true), &Clock), unsupported);
        let chain: &[_] = &[(BUFFERS, 30, true)];
        assert_eq!(setup.ask(&[chain, &[(BUFFERS, 5, true)]]), [(0, 30)]);
        // 20 bytes of debt, and one of credit, at 0.1 a tick.
        assert_eq!(setup.transport.next_poll(), NextPoll::At(Ticks(210)));
        assert_eq!(setup.poll(Ticks(209)), []);
        assert_eq!(setup.poll(Ticks(210)), [(1, 5)]);
        setup.driver.offer(0);
        assert_eq!(setup.kick(Ticks(210)), []);
        let none = change(Direction::In, Limits::default());
        assert_eq!(setup.transport.adjust(none, &Clock), Ok(()));
        assert_eq!(setup.answers(), [(0, 30)]);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_request_is_answered_once_with_one_byte_or_more(
        lens in prop::collection::vec(1u32..20_000, 1..40),
    ) {
        with(&mut Endless(0), |setup| {
            let buffers: Vec<_> = lens.iter().map(|len| [(BUFFERS, *len, true)]).collect();
            let chains: Vec<&[_]> = buffers.iter().map(<[_; 1]>::as_slice).collect();
            let mut answers = setup.ask(&chains);
            let mut calls = 1;
            while setup.transport.next_poll() == NextPoll::Soon {
                let more = setup.poll(Ticks(0));
                assert!(more.iter().map(|it| it.1).sum::<u32>() <= MOST_AT_ONCE as u32);
                answers.extend(more);
                calls += 1;
                assert!(calls < 1000);
            }
            let heads: Vec<u32> = answers.iter().map(|it| it.0).collect();
            assert_eq!(heads, (0..lens.len() as u32).collect::<Vec<_>>());
            for ((_, used), len) in answers.iter().zip(&lens) {
                assert!((1..=*len).contains(used));
            }
        });
    }
}
