//! Waiting for buffers, resets, and what peers learn of them.

use super::*;
use crate::virtio::state::{StateReader, StateWriter};

/// Ticks until a receiver is given up.
fn patience() -> u64 {
    HERTZ.ticks(PATIENCE).0
}

#[test]
fn a_packet_waits_for_a_buffer_and_goes_on_where_it_stopped() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.idle(4, &[3]));
    b.bring_up(ALL);
    b.post(1, 144);
    let payload: Vec<u8> = (0..250).collect();
    a.put(packet(3, 4, op::RW, 250), &payload);
    a.send(packet(3, 4, op::SHUTDOWN, 0), &[]);
    assert_eq!(a.sent(), 0);
    assert_eq!(a.transport.next_poll(), NextPoll::At(Ticks(patience())));
    let mut pieces = b.received();
    // Nobody is woken before there is room.
    board.woken.take();
    a.transport.poll(Ticks(1));
    assert_eq!((a.sent(), board.woken.take()), (0, 0));
    b.post(1, 144);
    assert_eq!(board.woken.take(), 1 << 3);
    a.transport.poll(Ticks(2));
    assert_eq!(a.sent(), 0);
    pieces.extend(b.received());
    b.post(2, 144);
    a.transport.poll(Ticks(3));
    assert_eq!(a.sent(), 2);
    pieces.extend(b.received());
    assert_eq!(pieces.concat_payload(), payload);
    let operations: Vec<u16> = pieces.iter().map(|(header, _)| header.op.get()).collect();
    assert_eq!(operations, [op::RW, op::RW, op::RW, op::SHUTDOWN]);
    assert_eq!(a.transport.next_poll(), NextPoll::OnEvent);
    assert!(a.counter("waits") >= 2);
}

#[test]
fn who_posts_nothing_is_given_up_and_others_get_their_packets() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4, 5]), board.idle(4, &[3]));
    let mut c = board.guest(5, &[3]);
    b.bring_up(ALL);
    let to_b = packet(3, 4, op::RW, 5);
    a.put(to_b, b"hello");
    a.put(to_b, b"again");
    a.send(packet(3, 5, op::RW, 5), b"hello");
    assert_eq!(c.received(), []);
    a.transport.poll(Ticks(patience() - 1));
    assert_eq!(a.sent(), 0);
    a.transport.poll(Ticks(patience()));
    assert_eq!(a.sent(), 3);
    assert_eq!(a.received(), [(reset_of(to_b), vec![]), (reset_of(to_b), vec![])]);
    assert_eq!(c.received().concat_payload(), b"hello");
    // Later ones do not wait: nothing was posted since.
    a.send_at(to_b, b"hello", patience() + 100);
    assert_eq!(a.operations(), [op::RST]);
    b.post_at(1, 0x1000, patience() + 200);
    a.send_at(to_b, b"hello", patience() + 300);
    assert_eq!((a.received(), b.received().concat_payload()), (vec![], b"hello".to_vec()));
    // And from now on it has all the time again.
    a.send_at(to_b, b"hello", patience() + 400);
    assert_eq!(a.transport.next_poll(), NextPoll::At(Ticks(2 * patience() + 400)));
}

#[test]
fn an_answer_waits_for_a_buffer_of_the_driver_and_holds_up_nobody_else() {
    let board = Board::new();
    let (mut a, mut b) = (board.idle(3, &[4]), board.guest(4, &[3]));
    a.bring_up(ALL);
    for _ in 0..12 {
        a.put(packet(3, 99, op::REQUEST, 0), &[]);
    }
    a.put(packet(3, 4, op::RW, 5), b"hello");
    a.notify(1, 0);
    // A few are kept; then the driver waits for itself.
    assert_eq!(a.sent(), 8);
    assert_eq!(a.transport.next_poll(), NextPoll::OnEvent);
    a.transport.poll(Ticks(10 * patience()));
    assert_eq!((a.sent(), b.received()), (0, vec![]));
    a.post(13, 0x1000);
    assert_eq!(a.sent(), 5);
    assert_eq!(a.operations(), [op::RST; 12]);
    assert_eq!(b.received().concat_payload(), b"hello");
}

#[test]
fn two_that_wait_for_each_other_come_free() {
    let board = Board::new();
    let (mut a, mut b) = (board.idle(3, &[4]), board.idle(4, &[3]));
    a.bring_up(ALL);
    b.bring_up(ALL);
    for _ in 0..8 {
        a.put(packet(3, 4, op::RW, 5), b"hello");
        b.put(packet(4, 3, op::RW, 5), b"hello");
    }
    a.notify(1, 0);
    b.notify(1, 0);
    assert_eq!((a.sent(), b.sent()), (0, 0));
    a.transport.poll(Ticks(patience()));
    b.transport.poll(Ticks(patience()));
    assert_eq!((a.sent(), b.sent()), (8, 8));
    a.post(8, 0x1000);
    b.post(8, 0x1000);
    assert_eq!((a.operations(), b.operations()), (vec![op::RST; 8], vec![op::RST; 8]));
}

#[test]
fn a_reset_that_finds_no_buffer_is_kept_by_its_connection() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    a.connect(&mut b);
    for _ in 0..15 {
        a.send(packet(3, 4, op::CREDIT_UPDATE, 0), &[]);
    }
    assert_eq!(b.received().len(), 15);
    a.send(packet(3, 4, op::RST, 0), &[]);
    assert_eq!(a.sent(), 17);
    b.post(1, 0x1000);
    let expected = Header { buf_alloc: 0.into(), fwd_cnt: 0.into(), ..packet(3, 4, op::RST, 0) };
    assert_eq!(b.received(), [(expected, vec![])]);
}

#[test]
fn peers_of_a_guest_that_is_reset_have_their_connections_reset() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4, 5]), board.guest(4, &[3]));
    let mut c = board.guest(5, &[3]);
    // One that it asked for, one that it accepted, one with somebody else.
    a.connect(&mut b);
    let other = Header { src_port: 7.into(), ..packet(4, 3, op::REQUEST, 0) };
    b.send(other, &[]);
    a.received();
    a.send(Header { op: op::RESPONSE.into(), ..reverse(other) }, &[]);
    b.received();
    a.connect(&mut c);
    // And one that is over.
    let third = Header { src_port: 8.into(), ..packet(3, 4, op::REQUEST, 0) };
    a.send(third, &[]);
    a.send(Header { op: op::RST.into(), ..third }, &[]);
    b.received();
    board.woken.take();
    b.transport.set(0x70, 0);
    assert_eq!(board.woken.take(), 1 << 3);
    let gone = a.received();
    assert_eq!(gone.len(), 2);
    assert!(gone.contains(&(reset_of(packet(3, 4, op::REQUEST, 0)), vec![])));
    assert!(gone.contains(&(reset_of(reverse(other)), vec![])));
    assert_eq!(c.received(), []);
    // It does not happen again.
    b.bring_up(ALL);
    b.transport.set(0x70, 0);
    assert_eq!((a.received(), a.counter("events")), (vec![], 0));
}

#[test]
fn resets_of_connections_wait_for_buffers() {
    let board = Board::new();
    let (mut a, mut b) = (board.idle(3, &[4]), board.guest(4, &[3]));
    a.bring_up(ALL);
    for port in 0..5 {
        a.send(Header { src_port: port.into(), ..packet(3, 4, op::REQUEST, 0) }, &[]);
    }
    b.transport.set(0x70, 0);
    b.bring_up(ALL);
    b.post(16, 0x1000);
    a.post(3, 0x1000);
    assert_eq!(a.operations(), [op::RST; 3]);
    a.post(3, 0x1000);
    assert_eq!(a.operations(), [op::RST; 2]);
    // What comes after is not cut short.
    a.connect(&mut b);
}

#[test]
fn who_has_too_many_connections_is_told_that_all_are_gone() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4, 5]), board.guest(4, &[3]));
    let mut c = board.guest(5, &[3]);
    c.connect(&mut a);
    for port in 0..64u32 {
        a.send(Header { src_port: port.into(), ..packet(3, 4, op::REQUEST, 0) }, &[]);
        b.received();
        b.post(1, 0x1000);
    }
    board.woken.take();
    b.transport.set(0x70, 0);
    assert_eq!(board.woken.take(), 1 << 3 | 1 << 5);
    // Those with others too, of which they learn.
    assert_eq!(c.operations(), [op::RST]);
    assert_eq!((a.received(), a.counter("events")), (vec![], 0));
    a.post_event(4);
    assert_eq!(a.rings[2].used(), Some((0, 4)));
    assert_eq!(get::<4>(&a.memory, IN - 16), [0; 4]);
    a.post_event(4);
    assert_eq!(a.rings[2].used(), None);
    assert_eq!(a.counter("events"), 1);
}

#[test]
fn an_event_that_has_a_buffer_is_told_at_once_and_one_without_room_breaks_the_queue() {
    for (len, status) in [(4, 15), (8, 15), (3, 15 | 0x40)] {
        let board = Board::new();
        let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
        a.post_event(len);
        for port in 0..65u32 {
            a.send(Header { src_port: port.into(), ..packet(3, 4, op::REQUEST, 0) }, &[]);
            b.received();
            b.post(1, 0x1000);
        }
        b.transport.set(0x70, 0);
        a.transport.poll(NOW);
        assert_eq!(a.transport.get(0x70), status);
        assert_eq!(a.rings[2].used().is_some(), status == 15);
    }
}

#[test]
fn a_reset_device_touches_nothing_and_forgets_what_waited() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.idle(4, &[3]));
    b.bring_up(ALL);
    a.send(packet(3, 4, op::RW, 5), b"hello");
    a.transport.set(0x70, 0);
    b.post(1, 0x1000);
    assert_eq!(b.received(), []);
    b.send(packet(4, 3, op::RW, 5), b"hello");
    assert_eq!((b.operations(), a.seen()), (vec![op::RST], vec![]));
    a.bring_up(ALL);
    a.transport.poll(NOW);
    assert_eq!(b.received(), []);
}

#[test]
fn a_queue_that_is_reset_alone_starts_over() {
    let board = Board::new();
    let (mut a, mut b) = (board.idle(3, &[4]), board.guest(4, &[3]));
    a.bring_up(ALL | Features::RING_RESET);
    a.post(4, 0x1000);
    a.transport.set(0x30, 0);
    a.transport.set(0xC0, 1);
    assert_eq!(a.transport.get(0xC0), 0);
    b.send(packet(4, 3, op::RW, 5), b"hello");
    assert_eq!((b.sent(), a.seen()), (0, vec![]));
    let ring = &mut a.rings[0];
    (ring.available, ring.seen) = (0, 0);
    put(&a.memory, ring.areas.driver, &[0; 0xC00 - 4]);
    a.transport.configure_queue(0, SIZE.into(), &a.rings[0].areas);
    a.transport.set(0x44, 1);
    a.post(1, 0x1000);
    b.transport.poll(NOW);
    assert_eq!((b.sent(), a.received().concat_payload()), (1, b"hello".to_vec()));
}

#[test]
fn a_saved_guest_goes_on_without_its_connections() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    a.connect(&mut b);
    let mut bytes = [0; 0x1000];
    a.transport.prepare_save(NOW);
    let mut state = StateWriter::new(&mut bytes);
    a.transport.save(&mut state).unwrap();
    let len = state.written();
    // It goes on meanwhile, with the same buffers.
    a.transport.poll(NOW);
    a.transport.set(0x70, 0);
    assert_eq!(b.operations(), [op::RST]);
    a.transport.restore(&mut StateReader::new(&bytes[..len]), NOW).unwrap();
    a.transport.poll(NOW);
    a.post_event(4);
    assert_eq!(a.rings[2].used(), Some((0, 4)));
    b.send(packet(4, 3, op::RW, 5), b"hello");
    assert_eq!(a.received().concat_payload(), b"hello");
    // The last bytes are the device's own: its CID, and whether it is live.
    for (at, byte) in [(len - 1, 2), (len - 5, 9)] {
        let mut bad = bytes;
        bad[at] = byte;
        a.transport.set(0x70, 0);
        assert!(a.transport.restore(&mut StateReader::new(&bad[..len]), NOW).is_err());
        assert_eq!(a.transport.get(0x70), 0);
    }
}
