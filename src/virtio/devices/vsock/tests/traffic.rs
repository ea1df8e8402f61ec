//! Random traffic between several guests, and on several cores.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const CIDS: [u32; 3] = [3, 4, 5];

/// What a guest can do.
#[derive(Clone, Debug)]
enum Step {
    Send { from: usize, to: usize, len: usize },
    Post { guest: usize, count: u16, len: u32 },
    Poll { guest: usize },
    Wait { ticks: u64 },
    Reset { guest: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 0..3usize, 0..9000usize)
            .prop_map(|(from, to, len)| Step::Send { from, to, len }),
        6 => (0..3usize, 1..12u16, 44..4096u32)
            .prop_map(|(guest, count, len)| Step::Post { guest, count, len }),
        6 => (0..3usize).prop_map(|guest| Step::Poll { guest }),
        1 => (0..600u64).prop_map(|ticks| Step::Wait { ticks }),
        1 => (0..3usize).prop_map(|guest| Step::Reset { guest }),
    ]
}

/// A stream from one guest to another: what went in, and what came out, since it was reset.
#[derive(Default)]
struct Stream {
    sent: Vec<u8>,
    received: usize,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn streams_arrive_whole_and_in_order_or_are_reset(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let board = Board::new();
        let all = |own: u32| CIDS.into_iter().filter(|cid| *cid != own).collect::<Vec<_>>();
        let mut guests = CIDS.map(|cid| board.guest(cid, &all(cid)));
        let mut posted = [16u16; 3];
        let mut on_the_way = [0usize; 3];
        // By sender, receiver, and a port for each life of a stream.
        let mut streams: HashMap<(usize, usize, u32), Stream> = HashMap::new();
        let mut port = [[1000u32; 3]; 3];
        let mut byte = 0u8;
        let mut now = 0;
        for step in steps {
            match step {
                Step::Send { from, to, len } if from != to && on_the_way[from] < 16 => {
                    let payload: Vec<u8> = (0..len).map(|_| { byte = byte.wrapping_add(7); byte }).collect();
                    let life = port[from][to];
                    streams.entry((from, to, life)).or_default().sent.extend(&payload);
                    let header = Header {
                        src_port: life.into(),
                        ..packet(CIDS[from], CIDS[to], op::RW, len as u32)
                    };
                    guests[from].send_at(header, &payload, now);
                    on_the_way[from] += 1;
                }
                Step::Post { guest, count, len } => {
                    let count = count.min(SIZE - posted[guest]);
                    posted[guest] += count;
                    guests[guest].post_at(count, len, now);
                }
                Step::Poll { guest } => guests[guest].transport.poll(Ticks(now)),
                Step::Wait { ticks } => now += ticks,
                Step::Reset { guest } => {
                    guests[guest].bring_up(ALL);
                    (posted[guest], on_the_way[guest]) = (0, 0);
                    // What it had sent is over, and it does not know what was sent to it.
                    port[guest].iter_mut().for_each(|stream| *stream += 1);
                    port.iter_mut().for_each(|of_other| of_other[guest] += 1);
                }
                Step::Send { .. } => (),
            }
            for own in 0..3 {
                on_the_way[own] -= guests[own].sent();
                for (header, payload) in guests[own].seen() {
                    posted[own] -= 1;
                    let peer = CIDS.iter().position(|cid| u64::from(*cid) == header.src_cid.get());
                    let peer = peer.unwrap();
                    prop_assert_eq!(header.dst_cid.get(), u64::from(CIDS[own]));
                    if header.op.get() == op::RST {
                        // A stream of its own has ended: what is sent from now on is another.
                        if port[own][peer] == header.dst_port.get() {
                            port[own][peer] += 1;
                        }
                        continue;
                    }
                    let key = (peer, own, header.src_port.get());
                    let stream = streams.get_mut(&key).unwrap();
                    if port[peer][own] != header.src_port.get() {
                        // Reset meanwhile; nothing is promised of it.
                        continue;
                    }
                    let end = stream.received + payload.len();
                    prop_assert_eq!(&stream.sent[stream.received..end], &payload[..]);
                    stream.received = end;
                }
            }
        }
    }
}

#[test]
fn counters_of_credit_that_wrap_are_carried_as_they_are() {
    let board = Board::new();
    let (mut a, mut b) = (board.guest(3, &[4]), board.guest(4, &[3]));
    let mut fwd_cnt = 0u32;
    // Past 4 GiB, in steps as large as a connection's buffer.
    for _ in 0..20 {
        fwd_cnt = fwd_cnt.wrapping_add(0x1000_0000);
        let header = Header { fwd_cnt: fwd_cnt.into(), ..packet(3, 4, op::CREDIT_UPDATE, 0) };
        a.send(header, &[]);
        assert_eq!(b.received(), [(header, vec![])]);
        b.post(1, 0x1000);
    }
}

#[test]
fn guests_on_two_cores_flood_each_other_and_nothing_gets_lost() {
    const PACKETS: u32 = 400;
    let board = Board::new();
    let guests = [board.guest(3, &[4]), board.guest(4, &[3])];
    std::thread::scope(|scope| {
        for mut guest in guests {
            scope.spawn(move || {
                let other = 7 - guest.cid;
                let (mut next, mut expected, mut free) = (0u32, 0u32, 16);
                while next < PACKETS || expected < PACKETS || free < 16 {
                    if next < PACKETS && free > 0 {
                        let mut payload = vec![next as u8; 6000];
                        payload[..4].copy_from_slice(&next.to_le_bytes());
                        guest.send(packet(guest.cid, other, op::RW, 6000), &payload);
                        (next, free) = (next + 1, free - 1);
                    }
                    let packets = guest.received();
                    guest.post(packets.len() as u16, 0x1000);
                    for (header, payload) in packets {
                        assert_eq!(header.op.get(), op::RW);
                        if header.len.get() == 4052 {
                            assert_eq!(payload[..4], expected.to_le_bytes());
                        } else {
                            assert_eq!(payload, vec![expected as u8; 1948]);
                            expected += 1;
                        }
                    }
                    free += guest.sent();
                    std::thread::yield_now();
                }
            });
        }
    });
}
