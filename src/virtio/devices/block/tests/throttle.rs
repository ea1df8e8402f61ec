//! What an operator changes while the guest uses the disk: limits, and the capacity.

use super::*;
use crate::backend::null::NullDisk;
use crate::virtio::limiter::Rate;

struct At(u64);

impl Clock for At {
    fn now(&self) -> Ticks {
        Ticks(self.0)
    }

    fn frequency(&self) -> Frequency {
        Frequency::new(HERTZ as u32).unwrap()
    }
}

const HERTZ: u64 = 1_000_000;

fn requests(per_second: u32, burst: u32) -> Limits {
    Limits { bytes: None, requests: Some(Rate { per_second, burst }) }
}

fn bytes(per_second: u32, burst: u32) -> Limits {
    Limits { bytes: Some(Rate { per_second, burst }), requests: None }
}

#[test]
fn what_exceeds_a_limit_waits_in_the_ring_until_its_time() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    let limit = Adjustment::Limit(Direction::In, requests(10, 1));
    assert_eq!(transport.adjust(limit, &At(0)), Ok(()));
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(Ticks(0));
    assert_eq!(driver.used(), Some((0, 513)));
    assert_eq!(transport.next_poll(), NextPoll::Idle);

    request(&mut driver, &mut transport, (IN, 1), &[(DATA, 512, true)]);
    assert_eq!(disk.get().submitted.len(), 1);
    let NextPoll::At(time) = transport.next_poll() else { panic!("{:?}", transport.next_poll()) };
    assert!((HERTZ / 10..=HERTZ / 10 + 1).contains(&time.0), "{time:?}");
    transport.poll(Ticks(time.0 - 1));
    assert_eq!(disk.get().submitted.len(), 1);
    assert_eq!(transport.next_poll(), NextPoll::At(time));
    transport.poll(time);
    assert_eq!(disk.get().submitted.len(), 2);
    assert_eq!(transport.next_poll(), NextPoll::Soon);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(time);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 513)), 0));
}

#[test]
fn what_a_limit_has_held_up_is_answered_in_its_time_by_a_disk_that_answers_at_once() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 16);
    let mut disk = NullDisk::new(64);
    let mut device = Block::new(&mut disk);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.bring_up(V1, &driver);
    transport.adjust(Adjustment::Limit(Direction::In, requests(10, 1)), &At(0)).unwrap();
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    transport.poll(Ticks(0));
    assert_eq!(driver.used(), Some((0, 513)));
    request(&mut driver, &mut transport, (IN, 1), &[(DATA, 512, true)]);
    let NextPoll::At(time) = transport.next_poll() else { panic!("{:?}", transport.next_poll()) };
    // The guest is idle: nobody polls again before something else happens.
    transport.poll(time);
    assert_eq!(driver.used(), Some((0, 513)));
    assert_eq!(transport.next_poll(), NextPoll::Idle);
}

#[test]
fn a_direction_is_not_held_up_by_the_limit_of_the_other() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    transport.adjust(Adjustment::Limit(Direction::In, bytes(1, 1)), &At(0)).unwrap();
    for (kind, sector) in [(IN, 0), (OUT, 0), (OUT, 1), (FLUSH_REQUEST, 0)] {
        let data = [(DATA, 512, kind == IN)];
        request(
            &mut driver,
            &mut transport,
            (kind, sector),
            if kind == FLUSH_REQUEST { &[] } else { &data },
        );
        disk.finish(0, BlockStatus::Ok);
        transport.poll(NOW);
        assert!(driver.used().is_some(), "{kind} {sector}");
    }
    let none = Limits::default();
    assert_eq!(transport.limits(Direction::In), bytes(1, 1));
    assert_eq!(transport.limits(Direction::Out), none);
}

#[test]
fn a_limit_taken_away_lets_go_of_what_waited() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    transport.adjust(Adjustment::Limit(Direction::Out, bytes(1, 1)), &At(0)).unwrap();
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 4096, false)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert!(driver.used().is_some());
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 4096, false)]);
    assert_eq!(disk.get().submitted.len(), 1);
    transport.adjust(Adjustment::Limit(Direction::Out, Limits::default()), &At(5)).unwrap();
    assert_eq!(disk.get().submitted.len(), 2);
}

#[test]
fn a_reset_forgets_who_waited_but_not_the_limit() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    transport.adjust(Adjustment::Limit(Direction::In, requests(1, 1)), &At(0)).unwrap();
    for _ in 0..2 {
        request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    }
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert!(matches!(transport.next_poll(), NextPoll::At(_)));
    transport.set(0x70, 0);
    assert_eq!(transport.next_poll(), NextPoll::Idle);
    let mut driver = Driver::new(driver.memory.clone(), 16);
    transport.bring_up(V1, &driver);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    assert_eq!(disk.get().submitted.len(), 1);
}

#[test]
fn in_the_long_run_requests_of_any_size_keep_their_limit_to_one_percent() {
    for (rate, burst, sectors, late) in [
        (1_000_000, 100_000, 8, 0),
        (1_000_000, 4096, 8, 30_000),
        (1_000_000, 1, 1, 99_000),
        (300_000, 1, 32, 5_000),
        (300_000, 65_536, 32, 0),
    ] {
        let disk = Disk::new();
        guest!(disk, V1, driver, transport);
        transport.adjust(Adjustment::Limit(Direction::In, bytes(rate, burst)), &At(0)).unwrap();
        let (mut now, mut done) = (Ticks(0), 0);
        let end = Ticks(60 * HERTZ + 100 * HERTZ * u64::from(burst) / u64::from(rate));
        header(&driver, HEADER, IN, 0);
        driver.chain(0, &[(HEADER, 16, false), (DATA, sectors * 512, true), (STATUS, 1, true)]);
        driver.offer(0);
        assert_eq!(transport.write(0x50, Width::Word, 0, now), WriteOutcome::Done);
        while now < end {
            if disk.get().held > 0 {
                disk.finish(0, BlockStatus::Ok);
                transport.poll(now);
                assert!(driver.used().is_some());
                done += u64::from(sectors) * 512;
                driver.offer(0);
                assert_eq!(transport.write(0x50, Width::Word, 0, now), WriteOutcome::Done);
            } else {
                let NextPoll::At(time) = transport.next_poll() else { panic!() };
                now = time.after(Ticks(late));
                transport.poll(now);
            }
        }
        let expected = u64::from(rate) * now.0 / HERTZ;
        let error = done.abs_diff(expected) as f64 / expected as f64;
        assert!(error < 0.012, "{rate} {burst} {sectors} {late}: {error}");
    }
}

#[test]
fn a_disk_grows_up_to_what_is_behind_it_and_the_driver_is_told() {
    let ram = HostRam::new(RAM_SIZE);
    let driver = Driver::new(guest_memory(&ram), 16);
    let mut disk = Disk::new();
    let mut device = Block::new(&mut disk);
    device.limit_capacity(16);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    transport.bring_up(V1, &driver);
    assert_eq!(transport.get(0x100), 16);
    let generation = transport.get(0xFC);
    assert_eq!(transport.adjust(Adjustment::Capacity(32), &At(0)), Ok(()));
    assert_eq!(transport.get(0x100), 32);
    assert_ne!(transport.get(0xFC), generation);
    assert!(transport.take_interrupt());
    assert_eq!(transport.get(0x60), 2);
    for wrong in [0, 16, 65, u64::MAX] {
        let refused = transport.adjust(Adjustment::Capacity(wrong), &At(0));
        assert_eq!(refused, Err(NotAdjusted::OutOfRange), "{wrong}");
    }
    assert_eq!(transport.get(0x100), 32);
    let link = transport.adjust(Adjustment::Link(true), &At(0));
    assert_eq!(link, Err(NotAdjusted::Unsupported));
    // For good.
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x100), 32);
}

#[test]
fn latencies_are_counted_by_powers_of_two() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    for taken in [3, 100, 120] {
        request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
        disk.finish(0, BlockStatus::Ok);
        transport.poll(Ticks(taken));
    }
    let buckets: Vec<_> = transport.latencies().unwrap().buckets().collect();
    assert_eq!(buckets, [(Some(4), 1), (Some(128), 2)]);
}
