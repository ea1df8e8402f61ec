//! Guests that send what no TCP would.

use super::*;

/// What is done to the service.
#[derive(Clone, Debug)]
enum Step {
    /// A TCP segment, whose numbers are near those that the service has sent last.
    Segment {
        port: u8,
        flags: u8,
        seq: i32,
        ack: i32,
        window: u16,
        options: Vec<u8>,
        len: usize,
    },
    /// Any bytes behind an Ethernet header and the first of an IPv4 header.
    Junk(Vec<u8>),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let near = prop_oneof![4 => Just(0), 3 => -3..4i32, 2 => -5000..5000i32, 1 => any::<i32>()];
    let flags = prop_oneof![
        4 => Just(0x10u8), 2 => Just(0x18u8), 2 => Just(0x02u8), 2 => Just(0x11u8), 1 => any::<u8>()
    ];
    let window = prop_oneof![3 => Just(0xffffu16), 1 => 0..100u16, 1 => any::<u16>()];
    let known = prop_oneof![
        Just(vec![]),
        Just(vec![2, 4, 0, 1]),
        Just(vec![2, 4, 5, 0xb4, 3, 3, 14, 0]),
        Just(vec![4, 2, 1, 1]),
        prop::collection::vec(any::<u8>(), 0..40)
    ];
    let segment = (0..3u8, flags, near.clone(), near, window, known, 0usize..1500).prop_map(
        |(port, flags, seq, ack, window, options, len)| {
            let len = if len < 700 { 0 } else { len - 699 };
            Step::Segment { port, flags, seq, ack, window, options, len }
        },
    );
    let step = prop_oneof![
        20 => segment,
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Junk),
        2 => prop_oneof![0..20u16, any::<u16>()].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..60)
}

const REQUEST: &[u8] = b"GET /latest/user-data HTTP/1.1\r\nHost: a\r\n\r\n";

/// The numbers of the other side, by port, as the service sent them last.
type Seen = [(u32, u32); 3];

/// Notes the numbers of a frame that the service has sent, which is sound.
fn note(frame: &[u8], seen: &mut Seen) {
    assert!(frame.len() <= 1514 && frame[..14] == [&GUEST, &STATION, [8, 0].as_slice()].concat());
    let ip = &frame[14..];
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
    assert_eq!((ip[9], &ip[12..16]), (6, ADDRESS.as_slice()));
    let port = u16::from_be_bytes([ip[22], ip[23]]);
    let word = |at: usize| u32::from_be_bytes(ip[at..at + 4].try_into().unwrap());
    let header = 4 * usize::from(ip[32] >> 4);
    let flags = ip[33];
    let len = ip.len() - 20 - header + usize::from(flags & 1 != 0) + usize::from(flags & 2 != 0);
    if let Some(seen) = seen.get_mut(usize::from(port.wrapping_sub(5000))) {
        *seen = (word(24).wrapping_add(len as u32), word(28));
    }
}

fn segment(step: &Step, seen: &Seen) -> Vec<u8> {
    let Step::Segment { port, flags, seq, ack, window, options, len } = step else { panic!() };
    let (next, expected) = seen[usize::from(*port)];
    let mut options = options.clone();
    options.truncate(40);
    options.resize(options.len().next_multiple_of(4), 0);
    let payload: Vec<u8> = REQUEST.iter().copied().cycle().take(*len).collect();
    let total = 20 + 20 + options.len() + payload.len();
    let mut frame = [&OTHER, &GUEST, [8, 0, 0x45, 0].as_slice()].concat();
    frame.extend((total as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15]);
    frame.extend(ADDRESS);
    let sum: u32 =
        frame[14..].chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend((5000 + u16::from(*port)).to_be_bytes());
    frame.extend([0, 80]);
    frame.extend(expected.wrapping_add_signed(*seq).to_be_bytes());
    frame.extend(next.wrapping_add_signed(*ack).to_be_bytes());
    frame.extend([((20 + options.len()) as u8 / 4) << 4, *flags]);
    frame.extend(window.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(options);
    frame.extend(payload);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_a_guest_sends_is_survived_and_a_client_is_served_afterwards(steps in steps()) {
        let mut guest = Guest::new(1500);
        let mut seen = [(0, 0x1000); 3];
        for step in &steps {
            match step {
                Step::Segment { .. } => {
                    let info = FrameInfo {
                        checksum: Checksum::Partial { start: 34, offset: 16 },
                        gso: None,
                    };
                    guest.send(&segment(step, &seen), info);
                }
                Step::Junk(bytes) => {
                    let mut frame = [&OTHER, &GUEST, [8, 0, 0x45, 0].as_slice()].concat();
                    frame.extend(bytes);
                    frame.resize(frame.len().max(34), 0);
                    frame[30..34].copy_from_slice(&ADDRESS);
                    guest.send(&frame, FrameInfo::PLAIN);
                }
                Step::Wait(millis) => guest.now += u64::from(*millis),
            }
            guest.tick();
            let frames = guest.delivered();
            // A call's work is bounded.
            prop_assert!(frames.len() <= 40, "{} frames at once", frames.len());
            frames.iter().for_each(|frame| note(frame, &mut seen));
            prop_assert!(guest.due.is_none_or(|due| due.0 > guest.now));
        }
        prop_assert!(guest.passed().is_empty());
        // Who was there has gone when they have said nothing for a while.
        for _ in 0..4 {
            guest.now += 5001;
            guest.tick();
            guest.delivered();
        }
        prop_assert_eq!(guest.due, None);
        let (status, body) = get(&mut guest, 6000, "/latest/user-data");
        prop_assert_eq!(status, "HTTP/1.1 200 OK");
        prop_assert_eq!(body, large());
    }
}

#[test]
fn fragments_other_protocols_and_what_is_too_large_are_dropped() {
    let mut guest = Guest::new(1500);
    let step =
        Step::Segment { port: 0, flags: 2, seq: 0, ack: 0, window: 1000, options: vec![], len: 0 };
    let syn = segment(&step, &[(0, 0); 3]);
    let changed = |at: usize, value: u8| {
        let mut frame = syn.clone();
        frame[at] = value;
        (frame, FrameInfo::PLAIN)
    };
    let large = segment(&step, &[(0, 0); 3]).into_iter().chain([0; 4000]).collect();
    let gso = Gso { kind: Segmentation::Udp, size: 100, header_len: 54, ecn: false };
    let cut = FrameInfo { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: Some(gso) };
    let dropped = [
        changed(20, 0x20),
        changed(21, 1),
        changed(23, 17),
        changed(14, 0x65),
        (large, FrameInfo::PLAIN),
        (syn.clone(), cut),
    ];
    for (count, (frame, info)) in (1..).zip(dropped) {
        guest.send(&frame, info);
        guest.tick();
        assert_eq!((guest.counter("metadata_dropped"), guest.delivered().len()), (count, 0));
    }
    guest.send(&syn, FrameInfo::PLAIN);
    guest.tick();
    assert_eq!((guest.passed().len(), guest.delivered().len()), (0, 1));
}
