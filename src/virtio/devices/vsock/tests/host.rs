//! CID 2: commands and their answers.

use super::*;
use crate::backend::vsock::{ANSWER_LEN, CALLS, MONITOR_PORT};

/// What a connection takes before it is looked at.
const INPUT: u32 = 256;

/// A guest that may give commands, and its desk.
fn operator() -> (Guest, &'static Desk) {
    let desk: &Desk = leak(Desk::new());
    let board = Board { desk: Some(desk), ..Board::new() };
    (board.guest(3, &[]), desk)
}

/// A packet to the monitor.
fn to_host(op: u16, len: u32) -> Header {
    Header { dst_port: MONITOR_PORT.into(), fwd_cnt: 0.into(), ..packet(3, 2, op, len) }
}

/// Answers every line with what was in it.
fn echo(desk: &Desk) {
    assert!(desk.is_asked());
    desk.serve(&mut |line, out| {
        let _ = write!(out, "<{}>", core::str::from_utf8(line).unwrap());
    });
}

impl Guest {
    fn call(&mut self) {
        self.send(to_host(op::REQUEST, 0), &[]);
        assert_eq!(self.operations(), [op::RESPONSE]);
    }

    fn say(&mut self, text: &str) {
        self.send(to_host(op::RW, text.len() as u32), text.as_bytes());
    }

    /// What the host says, as text; its control packets are left out.
    fn hear(&mut self) -> String {
        let packets = self.received();
        self.post(packets.len() as u16, 0x1000);
        String::from_utf8(packets.concat_payload()).unwrap()
    }
}

#[test]
fn a_line_is_carried_out_and_answered() {
    let (mut guest, desk) = operator();
    guest.send(to_host(op::REQUEST, 0), &[]);
    let answer =
        Header { buf_alloc: INPUT.into(), fwd_cnt: 0.into(), ..reverse(to_host(op::RESPONSE, 0)) };
    assert_eq!(guest.received(), [(answer, vec![])]);
    guest.say("v");
    assert!(!desk.is_asked());
    assert_eq!(guest.transport.next_poll(), NextPoll::OnEvent);
    guest.say("ms\r\nmem");
    assert_eq!(guest.transport.next_poll(), NextPoll::Soon);
    echo(desk);
    let heard = guest.received();
    let credit = Header { op: op::CREDIT_UPDATE.into(), fwd_cnt: 5.into(), ..answer };
    let text = Header { op: op::RW.into(), len: 5.into(), ..credit };
    assert_eq!(heard, [(credit, vec![]), (text, b"<vms>".to_vec())]);
    assert_eq!(guest.transport.next_poll(), NextPoll::OnEvent);
    guest.say("ory\n\n");
    echo(desk);
    assert_eq!(guest.hear(), "<memory>");
    echo(desk);
    assert_eq!(guest.hear(), "<>");
    assert!(!desk.is_asked());
}

#[test]
fn who_has_no_more_lines_gets_the_last_answer_and_the_end() {
    let (mut guest, desk) = operator();
    guest.call();
    guest.say("first\nlast");
    guest.send(Header { flags: flags::SEND.into(), ..to_host(op::SHUTDOWN, 0) }, &[]);
    echo(desk);
    assert_eq!(guest.hear(), "<first>");
    echo(desk);
    let heard = guest.received();
    assert_eq!(heard.concat_payload(), b"<last>");
    let (end, _) = heard.last().unwrap();
    assert_eq!((end.op.get(), end.flags.get()), (op::SHUTDOWN, flags::SEND | flags::RECEIVE));
    // It ends once, and the place is free when the guest agrees.
    guest.transport.poll(NOW);
    assert_eq!(guest.received(), []);
    guest.send(to_host(op::RST, 0), &[]);
    guest.call();
}

#[test]
fn an_answer_goes_as_far_as_the_guest_grants_and_the_counters_wrap() {
    let (mut guest, desk) = operator();
    let start = u32::MAX - 9;
    let granted = |end: u32| Header { buf_alloc: end.into(), ..to_host(op::CREDIT_UPDATE, 0) };
    guest.send(Header { buf_alloc: 0.into(), ..to_host(op::REQUEST, 0) }, &[]);
    guest.hear();
    // As after 4 GiB of answers, but for ten bytes.
    desk.pretend_sent(start);
    let (mut sent, longest) = (start, ANSWER_LEN as u32);
    let update = |sent: u32, more: u32| Header {
        fwd_cnt: sent.into(),
        buf_alloc: more.into(),
        ..to_host(op::RW, 5)
    };
    for _ in 0..4 {
        guest.send(update(sent, 100), b"long\n");
        desk.serve(&mut |_, out| while out.write_str("0123456789").is_ok() {});
        assert_eq!(guest.hear().len(), 100);
        // Nothing more before more is granted, and no other line.
        guest.transport.poll(NOW);
        assert_eq!(guest.hear(), "");
        sent = sent.wrapping_add(100);
        // One that takes back what it granted gets nothing.
        guest.send(Header { fwd_cnt: sent.wrapping_add(1).into(), ..granted(100) }, &[]);
        assert_eq!(guest.hear(), "");
        guest.send(Header { fwd_cnt: sent.into(), ..granted(0x4_0000) }, &[]);
        assert_eq!(guest.hear().len(), ANSWER_LEN - 100);
        sent = sent.wrapping_add(longest - 100);
        assert!(!desk.is_asked());
    }
}

#[test]
fn what_is_not_granted_or_not_understood_ends_the_connection() {
    let too_much = vec![b'x'; INPUT as usize + 1];
    let bad: [(Header, &[u8]); 6] = [
        (to_host(op::RW, INPUT + 1), &too_much),
        (to_host(op::REQUEST, 0), &[]),
        (to_host(op::RESPONSE, 0), &[]),
        (Header { flags: 3.into(), ..to_host(op::SHUTDOWN, 0) }, &[]),
        (to_host(9, 0), &[]),
        (to_host(op::RW, INPUT + 2), &too_much),
    ];
    for (header, payload) in bad {
        let (mut guest, desk) = operator();
        guest.call();
        guest.send(header, payload);
        assert_eq!(guest.received(), [(reset_of(header), vec![])]);
        assert!(!desk.is_asked());
    }
    // Other ports, other types, and what has no connection.
    let (mut guest, _) = operator();
    for header in [
        Header { dst_port: 80.into(), ..to_host(op::REQUEST, 0) },
        Header { kind: 2.into(), ..to_host(op::REQUEST, 0) },
        to_host(op::CREDIT_REQUEST, 0),
    ] {
        guest.send(header, &[]);
        assert_eq!(guest.received(), [(reset_of(header), vec![])]);
    }
    // A line that is too long is looked at as far as there is room.
    let (mut guest, desk) = operator();
    guest.call();
    guest.send(to_host(op::RW, INPUT), &too_much[..INPUT as usize]);
    echo(desk);
    assert_eq!(guest.hear().len() as u32, INPUT + 2);
}

#[test]
fn there_are_a_few_connections_and_each_gets_its_own_answers() {
    let (mut guest, desk) = operator();
    let from = |port: u32, header: Header| Header { src_port: port.into(), ..header };
    for port in 0..CALLS as u32 {
        guest.send(from(port, to_host(op::REQUEST, 0)), &[]);
    }
    assert_eq!(guest.operations(), vec![op::RESPONSE; CALLS]);
    guest.send(from(9, to_host(op::REQUEST, 0)), &[]);
    assert_eq!(guest.operations(), [op::RST]);
    guest.send(from(0, to_host(op::RW, 2)), b"a\n");
    guest.send(from(1, to_host(op::RW, 2)), b"b\n");
    echo(desk);
    // The one whose answer it is goes away: the next is not given it.
    guest.send(from(0, to_host(op::RST, 0)), &[]);
    guest.send(from(7, to_host(op::REQUEST, 0)), &[]);
    let heard = guest.received();
    assert!(heard.iter().all(|(header, _)| header.dst_port.get() != 7 || header.len.get() == 0));
    echo(desk);
    let heard = guest.received();
    let (last, text) = heard.last().unwrap();
    assert_eq!((last.dst_port.get(), &text[..]), (1, &b"<b>"[..]));
}

#[test]
fn a_reset_of_the_device_ends_what_was_asked() {
    let (mut guest, desk) = operator();
    guest.call();
    guest.say("vms\n");
    assert!(desk.is_asked());
    guest.bring_up(ALL);
    guest.post(16, 0x1000);
    assert!(!desk.is_asked());
    desk.serve(&mut |_, _| panic!("nothing is asked"));
    guest.call();
    guest.say("vms\n");
    echo(desk);
    assert_eq!(guest.hear(), "<vms>");
}

#[test]
fn who_is_no_operator_has_nobody_at_the_host() {
    let board = Board::new();
    let mut guest = board.guest(3, &[]);
    guest.send(to_host(op::REQUEST, 0), &[]);
    assert_eq!(guest.operations(), [op::RST]);
}
