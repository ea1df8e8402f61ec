//! What an operator changes while the guest uses the network: limits, and the link.

use super::*;
use crate::virtio::WriteOutcome;
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

fn frames(per_second: u32, burst: u32) -> Limits {
    Limits { bytes: None, requests: Some(Rate { per_second, burst }) }
}

fn bytes(per_second: u32, burst: u32) -> Limits {
    Limits { bytes: Some(Rate { per_second, burst }), requests: None }
}

fn limit(transport: &mut MmioTransport<'_, '_>, to: Direction, limits: Limits, now: u64) {
    assert_eq!(transport.adjust(Adjustment::Limit(to, limits), &At(now)), Ok(()));
    assert_eq!(transport.limits(to), limits);
}

fn awaited(transport: &MmioTransport<'_, '_>) -> Ticks {
    let NextPoll::At(time) = transport.next_poll() else { panic!("{:?}", transport.next_poll()) };
    time
}

#[test]
fn frames_sent_beyond_a_limit_wait_in_the_ring_until_their_time() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    limit(&mut transport, Direction::Out, frames(10, 1), 0);
    let heads: Vec<u32> = (0..3).map(|_| guest.send(&mut transport, 1, PLAIN, &[0; 60])).collect();
    assert_eq!((port.get().taken.len(), guest.used(1)), (1, Some((heads[0], 0))));
    let mut time = Ticks(0);
    for (sent, &head) in heads.iter().enumerate().skip(1) {
        let next = awaited(&transport);
        assert!((HERTZ / 10..=HERTZ / 10 + 1).contains(&(next.0 - time.0)), "{next:?}");
        transport.poll(Ticks(next.0 - 1));
        assert_eq!((port.get().taken.len(), awaited(&transport)), (sent, next));
        transport.poll(next);
        assert_eq!((port.get().taken.len(), guest.used(1)), (sent + 1, Some((head, 0))));
        time = next;
    }
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
}

#[test]
fn frames_received_beyond_a_limit_wait_whole_until_their_time() {
    let port = Port::new();
    guest!(port, V1 | MRG_RXBUF, 2, guest, transport);
    limit(&mut transport, Direction::In, frames(10, 1), 0);
    let heads: Vec<u32> = (0..4).map(|_| guest.post(&mut transport, 0, 100)).collect();
    for continues in [true, false, true, false] {
        port.fill(0, 100, continues);
    }
    transport.poll(Ticks(0));
    let first = [Some((heads[0], 100)), Some((heads[1], 100)), None];
    assert_eq!([guest.used(0), guest.used(0), guest.used(0)], first);
    let time = awaited(&transport);
    transport.poll(Ticks(time.0 - 1));
    assert_eq!(guest.used(0), None);
    transport.poll(time);
    assert_eq!([guest.used(0), guest.used(0)], [Some((heads[2], 100)), Some((heads[3], 100))]);
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
    assert_eq!(statistic(&transport, "rx_frames"), 2);
}

#[test]
fn an_idle_receiver_is_not_polled_for_its_limit() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    limit(&mut transport, Direction::In, frames(1, 1), 0);
    guest.post(&mut transport, 0, 100);
    guest.post(&mut transport, 0, 100);
    port.fill(0, 72, false);
    transport.poll(Ticks(0));
    assert!(guest.used(0).is_some());
    transport.poll(Ticks(1));
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
}

#[test]
fn a_port_that_does_something_by_itself_is_called_in_its_time_and_holds_nothing_up() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
    port.get().due = Some(Ticks(500));
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!((port.get().ticks.len(), transport.next_poll()), (1, NextPoll::At(Ticks(500))));
    // What it has brought goes to the driver at once.
    let head = guest.post(&mut transport, 0, 100);
    port.fill(0, 72, false);
    port.get().due = Some(Ticks(900));
    transport.poll(Ticks(500));
    assert_eq!((guest.used(0), awaited(&transport)), (Some((head, 72)), Ticks(900)));
    limit(&mut transport, Direction::Out, frames(1000, 1), 600);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!(awaited(&transport), Ticks(900), "before the limit's time");
    transport.poll(Ticks(5000));
    port.get().answer = Err(Busy);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    transport.poll(Ticks(100_000));
    assert_eq!(transport.next_poll(), NextPoll::Soon, "a frame could be sent at any time");
    port.get().answer = Ok(Sent::Done);
    port.get().due = None;
    transport.poll(Ticks(200_000));
    assert_eq!(transport.next_poll(), NextPoll::OnEvent);
}

#[test]
fn a_direction_is_not_held_up_by_the_limit_of_the_other() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    limit(&mut transport, Direction::In, frames(1, 1), 0);
    for _ in 0..2 {
        guest.post(&mut transport, 0, 100);
        port.fill(0, 72, false);
    }
    transport.poll(Ticks(0));
    assert!(guest.used(0).is_some() && guest.used(0).is_none());
    port.get().answer = Err(Busy);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!(transport.next_poll(), NextPoll::Soon, "the limit has nothing to do with it");
    port.get().answer = Ok(Sent::Done);
    transport.poll(Ticks(1));
    assert!(guest.used(1).is_some());
    awaited(&transport);
}

#[test]
fn a_limit_taken_away_lets_go_of_what_waited() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    for to in [Direction::In, Direction::Out] {
        limit(&mut transport, to, bytes(1, 1), 0);
    }
    for _ in 0..2 {
        guest.post(&mut transport, 0, 100);
        port.fill(0, 72, false);
        guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    }
    assert!(guest.used(0).is_some() && guest.used(0).is_none());
    assert_eq!(port.get().taken.len(), 1);
    for to in [Direction::In, Direction::Out] {
        limit(&mut transport, to, Limits::default(), 5);
    }
    assert!(guest.used(0).is_some());
    assert_eq!((port.get().taken.len(), transport.next_poll()), (2, NextPoll::OnEvent));
}

#[test]
fn a_reset_forgets_what_waited_but_not_the_limit() {
    let port = Port::new();
    guest!(port, V1, 2, guest, transport);
    limit(&mut transport, Direction::In, bytes(1, 1), 0);
    for _ in 0..2 {
        guest.post(&mut transport, 0, 100);
        port.fill(0, 72, false);
    }
    transport.poll(Ticks(0));
    awaited(&transport);
    transport.set(0x70, 0);
    assert_eq!(transport.next_poll(), NextPoll::Idle);
    let mut guest = Guest::new(&guest.0[0].memory);
    guest.bring_up(&mut transport, V1, 2);
    guest.post(&mut transport, 0, 100);
    transport.poll(Ticks(HERTZ * 1000));
    assert_eq!(guest.used(0), None, "nothing has come for this driver");
    assert_eq!(transport.limits(Direction::In), bytes(1, 1));
}

#[test]
fn in_the_long_run_frames_of_any_size_keep_their_limit_to_one_percent() {
    for (rate, burst, size, late) in [
        (1_000_000, 100_000, 1514, 0),
        (1_000_000, 4096, 1514, 30_000),
        (100_000, 1, 60, 50),
        (300_000, 1, 0x8000, 5_000),
        (3_000_000, 65_536, 0x8000, 0),
    ] {
        for to in [Direction::In, Direction::Out] {
            let port = Port::new();
            guest!(port, V1 | CSUM | HOST_TSO4, 2, guest, transport);
            limit(&mut transport, to, bytes(rate, burst), 0);
            let index = if to == Direction::In { 0 } else { 1 };
            let header = if size > 1514 { TSO } else { PLAIN };
            guest.0[1].put(FRAMES, &header);
            let (mut now, mut done) = (Ticks(0), 0);
            // Long enough for one frame to be less than a percent.
            let end = Ticks(60 * HERTZ + 100 * HERTZ * u64::from(burst) / u64::from(rate));
            while now < end {
                guest.offer(index, &[(FRAMES, size + 12, index == 0)]);
                let done_now = transport.write(0x50, Width::Word, index as u64, now);
                assert_eq!(done_now, WriteOutcome::Done);
                if to == Direction::In {
                    port.fill(0, size + 12, false);
                    transport.poll(now);
                }
                while guest.used(index).is_none() {
                    now = awaited(&transport).after(Ticks(late));
                    transport.poll(now);
                }
                port.get().taken.clear();
                done += u64::from(size);
            }
            let expected = u64::from(burst) + u64::from(rate) * now.0 / HERTZ;
            let error = done.abs_diff(expected) as f64 / expected as f64;
            assert!(error < 0.01, "{to:?} {rate} {burst} {size} {late}: {error}");
        }
    }
}

#[test]
fn an_operator_takes_the_link_down_and_up_and_the_driver_is_told() {
    let port = Port::new();
    guest!(port, V1 | STATUS, 2, guest, transport);
    for up in [false, true] {
        assert_eq!(transport.adjust(Adjustment::Link(up), &At(0)), Ok(()));
        assert!(transport.take_interrupt());
        assert_eq!(transport.get(0x60), 2);
        transport.set(0x64, 2);
        assert_eq!(config(&transport)[6] & 1, u8::from(up));
        assert_eq!(transport.adjust(Adjustment::Link(up), &At(0)), Ok(()));
        assert!(!transport.take_interrupt(), "nothing new");
    }
    port.get().has_link = false;
    for change in [Adjustment::Link(false), Adjustment::Capacity(1)] {
        assert_eq!(transport.adjust(change, &At(0)), Err(NotAdjusted::Unsupported));
    }
    assert_eq!(config(&transport)[6] & 1, 1);
}
