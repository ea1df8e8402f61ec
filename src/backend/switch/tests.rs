//! The switch as stations see it.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use super::testing::*;
use super::*;
use crate::backend::net::{NetBackend, Reception};

mod model;
mod offload;
mod threads;
mod uplink;

const DONE: Result<Sent, Busy> = Ok(Sent::Done);

fn plain(to: u8, from: u8, text: &str) -> Vec<u8> {
    ethernet(mac(to), mac(from), None, text)
}

/// Three open stations with addresses 1, 2 and 3.
fn three(net: &Net, options: [Options; 3]) -> [Station; 3] {
    let [a, b, c] = options;
    [net.open(1, a), net.open(2, b), net.open(3, c)]
}

#[test]
fn a_frame_goes_to_the_port_with_its_address_and_no_other() {
    let net = Net::new();
    let [mut a, mut b, mut c] = three(&net, Default::default());
    a.send(&plain(2, 1, "to b"));
    assert_eq!(b.all(), [plain(2, 1, "to b")]);
    assert!(a.all().is_empty() && c.all().is_empty());
    assert_eq!(net.switch.counter(Some(a.index), Counter::SentFrames), 1);
    assert_eq!(net.switch.counter(Some(b.index), Counter::ReceivedBytes), 60);
}

#[test]
fn a_frame_that_is_delivered_at_a_port_reaches_its_driver_alone() {
    let net = Net::new();
    let [mut a, mut b, mut c] = three(&net, Default::default());
    let frame = plain(1, 9, "from nowhere");
    a.port.deliver(&frame);
    let got = a.receive().unwrap();
    assert_eq!((got.header[..10].to_vec(), got.bytes), (vec![0; 10], frame.clone()));
    assert!(b.all().is_empty() && c.all().is_empty());
    // Not if it does not want it, has no room, or its link is down.
    a.port.deliver(&plain(2, 9, "to another"));
    a.port.deliver(&[0; 5]);
    net.switch.set_link(a.index, false).unwrap();
    a.port.deliver(&frame);
    assert!(a.all().is_empty());
    net.switch.set_link(a.index, true).unwrap();
    // It waits for a buffer, as any other.
    a.port.withdraw(0);
    a.forget_posted();
    a.port.deliver(&frame);
    a.post(0, 1, 2048);
    assert_eq!(a.all(), [frame]);
}

#[test]
fn a_frame_to_all_goes_to_all_but_the_sender() {
    let net = Net::new();
    let [mut a, mut b, mut c] = three(&net, Default::default());
    let frame = ethernet(MacAddress::BROADCAST, mac(1), None, "who is there");
    a.send(&frame);
    assert_eq!((a.all(), b.all(), c.all()), (vec![], vec![frame.clone()], vec![frame]));
}

#[test]
fn frames_to_a_learned_address_are_not_flooded_until_it_is_too_old() {
    let net = Net::new();
    let [mut a, mut b, mut c] = three(&net, Default::default());
    let mut promiscuous = filter::default(mac(3));
    promiscuous.promiscuous = true;
    c.port.set_filter(&promiscuous);
    promiscuous.mac = mac(2);
    b.port.set_filter(&promiscuous);
    // A station behind b's port has another address.
    let age = u64::from(HERTZ) * 300;
    assert_eq!(b.send_as(0, &plain(1, 9, "here I am"), FrameInfo::PLAIN, 1), DONE);
    a.send_as(0, &plain(9, 1, "known"), FrameInfo::PLAIN, 1 + age).unwrap();
    assert_eq!((b.all().len(), c.all().len()), (1, 0));
    a.send_as(0, &plain(9, 1, "too old"), FrameInfo::PLAIN, 2 + age).unwrap();
    assert_eq!((b.all().len(), c.all().len()), (1, 1));
    assert_eq!(net.switch.counter(Some(a.index), Counter::Flooded), 1);
    // It has moved.
    c.send_as(0, &plain(1, 9, "now here"), FrameInfo::PLAIN, 3 + age).unwrap();
    a.send_as(0, &plain(9, 1, "moved"), FrameInfo::PLAIN, 3 + age).unwrap();
    assert_eq!((b.all().len(), c.all().len()), (0, 1));
}

#[test]
fn nobody_sends_with_the_address_of_another_or_of_a_group() {
    let net = Net::new();
    let unguarded = Options { guard: false, ..Options::default() };
    let [mut a, mut b, mut c] = three(&net, [Options::default(), Options::default(), unguarded]);
    a.send(&plain(2, 3, "I am c"));
    a.send(&ethernet(mac(2), MacAddress([3, 0, 0, 0, 0, 1]), None, "I am many"));
    assert!(b.all().is_empty());
    assert_eq!(net.switch.counter(Some(a.index), Counter::DropSpoofed), 2);
    // Where it is allowed, the address still stays where it is.
    c.send(&plain(2, 1, "I am a"));
    assert_eq!(b.all().len(), 1);
    b.send(&plain(1, 2, "to the real a"));
    assert_eq!((a.all().len(), c.all().len()), (1, 0));
}

#[test]
fn access_ports_have_no_tags_and_trunks_have_those_of_all_vlans() {
    let net = Net::new();
    let access = |number| Options { vlan: Some(number), ..Options::default() };
    let mut a = net.open(1, access(10));
    let mut b = net.open(2, access(10));
    let mut c = net.open(3, access(20));
    let mut trunk = net.open(4, Options::default());
    let all = MacAddress::BROADCAST;
    a.send(&ethernet(all, mac(1), None, "ten"));
    assert_eq!(b.all(), [ethernet(all, mac(1), None, "ten")]);
    assert!(c.all().is_empty());
    // Padded before the tag came in.
    let mut tagged = ethernet(all, mac(1), Some(10), "ten");
    tagged.resize(64, 0);
    assert_eq!(trunk.all(), [tagged]);
    // A trunk's tag decides; its priority goes with it where there are tags.
    trunk.send(&ethernet(all, mac(4), Some(20 | 5 << 13), "twenty"));
    let mut untagged = ethernet(all, mac(4), None, "twenty");
    untagged.truncate(56 + 4);
    untagged.truncate(60 - 4);
    assert_eq!(c.all(), [untagged]);
    assert!(a.all().is_empty() && b.all().is_empty());
    // Tags on an access port, and VLANs that do not exist.
    a.send(&ethernet(all, mac(1), Some(20), "hop"));
    trunk.send(&ethernet(all, mac(4), Some(0xFFF), "none"));
    assert!(b.all().is_empty() && c.all().is_empty());
    assert_eq!(net.switch.counter(Some(a.index), Counter::DropVlan), 1);
    assert_eq!(net.switch.counter(Some(trunk.index), Counter::DropMalformed), 1);
    // A tag that names no VLAN but a priority is a priority in the port's own.
    a.send(&ethernet(all, mac(1), Some(3 << 13), "urgent"));
    assert_eq!(b.all()[0][12..14], [0x88, 0xB5]);
    assert_eq!(trunk.all()[0][12..16], [0x81, 0, 3 << 5, 10]);
}

#[test]
fn isolated_ports_talk_to_the_uplink_and_to_ports_that_are_not() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let isolated = Options { isolated: true, ..Options::default() };
    let [mut a, mut b, mut c] = three(&net, [isolated, isolated, Options::default()]);
    let frame = ethernet(MacAddress::BROADCAST, mac(1), None, "anybody");
    assert_eq!(a.send_as(0, &frame, FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    assert_eq!((b.all().len(), c.all().len(), card.transmit().len()), (0, 1, 1));
    a.send(&plain(2, 1, "psst"));
    assert!(b.all().is_empty());
    assert_eq!(net.switch.counter(Some(a.index), Counter::DropNowhere), 1);
    c.send(&plain(2, 3, "hello"));
    assert_eq!(b.all().len(), 1);
    net.switch.set_isolated(a.index, false).unwrap();
    a.send(&plain(2, 1, "now"));
    assert_eq!(b.all().len(), 1);
}

#[test]
fn addresses_that_bridges_keep_to_themselves_are_not_forwarded() {
    let net = Net::new();
    let [mut a, mut b, _c] = three(&net, Default::default());
    let mut filter = filter::default(mac(2));
    filter.promiscuous = true;
    b.port.set_filter(&filter);
    a.send(&ethernet(MacAddress([1, 0x80, 0xC2, 0, 0, 0x0E]), mac(1), None, "LLDP"));
    assert!(b.all().is_empty());
    a.send(&ethernet(MacAddress([1, 0x80, 0xC2, 0, 0, 0x10]), mac(1), None, "not reserved"));
    assert_eq!(b.all().len(), 1);
}

#[test]
fn the_filter_decides_what_is_wanted() {
    let base = filter::default(mac(2));
    let group = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
    let check = |change: &dyn Fn(&mut crate::backend::net::Filter), expected: [bool; 4]| {
        let mut filter = base.clone();
        change(&mut filter);
        let wanted = [mac(2), mac(9), group, MacAddress::BROADCAST]
            .map(|to| filter::wants(&filter, to, None));
        assert_eq!(wanted, expected);
    };
    check(&|_| (), [true, false, false, true]);
    check(&|filter| filter.promiscuous = true, [true; 4]);
    check(&|filter| filter.all_unicast = true, [true, true, false, true]);
    check(&|filter| filter.all_multicast = true, [true, false, true, true]);
    check(&|filter| filter.no_unicast = true, [false, false, false, true]);
    check(&|filter| filter.no_broadcast = true, [true, false, false, false]);
    check(&|filter| filter.addresses.push(group).unwrap(), [true, false, true, true]);
    check(&|filter| filter.addresses.push(mac(9)).unwrap(), [true, true, false, true]);
    let strict = |filter: &mut crate::backend::net::Filter| {
        filter.addresses.push(group).unwrap();
        filter.no_multicast = true;
    };
    check(&strict, [true, false, false, true]);
    let mut vlans = base;
    let mut bits = [0; 64];
    bits[10 / 64] = 1 << 10;
    vlans.vlans = Some(bits);
    let wants = |vlan| filter::wants(&vlans, mac(2), vlan);
    assert_eq!([None, Some(10), Some(11), Some(4095)].map(wants), [true, true, false, false]);
}

#[test]
fn a_frame_goes_on_in_further_buffers_if_the_driver_agrees() {
    let net = Net::new();
    let mut a = net.open(1, Options { mtu: 9000, ..Options::default() });
    let mut b = net.station(2, Options { mtu: 9000, ..Options::default() });
    b.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    let frame = plain(2, 1, &"jumbo ".repeat(1330));
    // Of segments of all lengths, the first of which does not hold the header.
    for lengths in [&[5usize, 0, 995][..], &[1000], &[1, 999], &[2000, 2000], &[500, 500]] {
        let segments: Vec<_> = lengths.iter().map(|len| b.room(*len)).collect();
        b.post_segments(0, &segments).unwrap();
    }
    a.send(&frame);
    // Not enough: it waits until there is.
    assert!(b.receive().is_none());
    assert_eq!(net.switch.counter(Some(b.index), Counter::Waited), 1);
    b.post(0, 2, 100);
    let got = b.receive().unwrap();
    assert_eq!(got.bytes, frame);
    assert_eq!(got.header[10..], [6, 0]);
    // Without, the frame has to fit.
    b.port.close(Ticks(1));
    b.forget_posted();
    b.port.open(Reception { accepts: Offloads::all(), mergeable: false, pairs: 1 });
    b.post(0, 1, 1000);
    a.send(&frame);
    assert!(b.receive().is_none());
    assert_eq!(net.switch.counter(Some(b.index), Counter::DropSmallBuffer), 1);
    a.send(&plain(2, 1, "short"));
    assert_eq!(b.receive().unwrap().bytes, plain(2, 1, "short"));
}

#[test]
fn frames_without_buffers_wait_in_order_until_there_is_no_room() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.station(2, Options::default());
    b.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    let frame = |number: usize| plain(2, 1, &format!("{number} {}", "x".repeat(number % 700)));
    let (mut sent, mut expected) = (0, VecDeque::new());
    for round in 0..50 {
        for _ in 0..round {
            let dropped = net.switch.counter(Some(b.index), Counter::DropNoBuffer);
            a.send(&frame(sent));
            if net.switch.counter(Some(b.index), Counter::DropNoBuffer) == dropped {
                expected.push_back(frame(sent));
            }
            sent += 1;
        }
        for _ in 0..20 {
            b.post(0, 1, 800);
            let got = b.receive();
            let none = got.is_none();
            assert_eq!(got.map(|got| got.bytes), expected.pop_front());
            if none {
                // Leaves no buffer, so that all frames have to wait.
                b.port.withdraw(0);
                b.forget_posted();
                break;
            }
        }
    }
    assert!(net.switch.counter(Some(b.index), Counter::DropNoBuffer) > 0);
    assert!(net.switch.counter(Some(b.index), Counter::Waited) > 100);
}

#[test]
fn a_port_remembers_as_many_buffers_as_it_says_and_gives_them_back_in_order() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.station(2, Options::default());
    b.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    for _ in 0..3 {
        b.post(0, queue::BUFFERS, 100);
        let room = b.room(100);
        assert_eq!(b.post_segments(0, &[room]), Err(Busy));
        for number in 0..queue::BUFFERS {
            a.send(&plain(2, 1, &number.to_string()));
        }
        assert_eq!(b.post_segments(0, &[room]), Err(Busy));
        for number in 0..queue::BUFFERS {
            assert_eq!(b.receive().unwrap().bytes, plain(2, 1, &number.to_string()));
        }
    }
    assert_eq!(b.port.post(1, &[]), Err(Busy));
}

#[test]
fn receivers_are_woken_once_for_a_batch() {
    let net = Net::new();
    let [mut a, b, c] = three(&net, Default::default());
    for _ in 0..5 {
        assert_eq!(a.send_as(0, &plain(2, 1, "x"), FrameInfo::PLAIN, 1), DONE);
    }
    assert_eq!(net.woken.take(b.index), 0);
    a.port.kick();
    a.port.kick();
    assert_eq!([a.index, b.index, c.index].map(|index| net.woken.take(index)), [0, 1, 0]);
}

#[test]
fn what_is_known_of_a_frame_is_carried_to_who_accepts_it() {
    let net = Net::new();
    let [mut a, mut b, _c] = three(&net, Default::default());
    let partial = FrameInfo { checksum: Checksum::Partial { start: 34, offset: 16 }, gso: None };
    a.send_as(0, &plain(2, 1, "sum me up"), partial, 1).unwrap();
    let got = b.receive().unwrap();
    assert_eq!(got.header, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
    assert_eq!(got.bytes, plain(2, 1, "sum me up"));
    let valid = FrameInfo { checksum: Checksum::Valid, gso: None };
    a.send_as(0, &plain(2, 1, "right"), valid, 1).unwrap();
    assert_eq!(b.receive().unwrap().header[..2], [2, 0]);
}

#[test]
fn offsets_move_with_the_tag() {
    let net = Net::new();
    let mut access = net.open(1, Options { vlan: Some(7), ..Options::default() });
    let mut trunk = net.open(2, Options::default());
    let partial = |start| FrameInfo { checksum: Checksum::Partial { start, offset: 6 }, gso: None };
    access.send_as(0, &plain(2, 1, "in"), partial(34), 1).unwrap();
    assert_eq!(trunk.receive().unwrap().header[6..10], [38, 0, 6, 0]);
    let back = ethernet(mac(1), mac(2), Some(7), "out");
    trunk.send_as(0, &back, partial(38), 1).unwrap();
    assert_eq!(access.receive().unwrap().header[6..10], [34, 0, 6, 0]);
    trunk.send_as(0, &back, partial(3), 1).unwrap();
    assert_eq!(net.switch.counter(Some(access.index), Counter::DropMalformed), 1);
}

#[test]
fn no_frames_come_while_a_port_is_closed_or_its_link_is_down() {
    let net = Net::new();
    let [mut a, mut b, _c] = three(&net, Default::default());
    net.switch.set_link(b.index, false).unwrap();
    assert!(!b.port.info().link_up);
    assert!(b.port.take_change());
    assert!(!b.port.take_change());
    a.send(&plain(2, 1, "nobody hears"));
    b.send(&plain(1, 2, "nobody hears"));
    assert!(a.all().is_empty() && b.all().is_empty());
    assert_eq!(net.switch.counter(Some(b.index), Counter::DropLinkDown), 2);
    net.switch.set_link(b.index, true).unwrap();
    assert!(b.port.take_change());
    a.send(&plain(2, 1, "back"));
    assert_eq!(b.all().len(), 1);
    assert!(b.port.close(Ticks(2)));
    a.send(&plain(2, 1, "closed"));
    assert_eq!(b.port.poll_received(0), None);
    net.switch.set_mtu(b.index, 9000).unwrap();
    assert!(b.port.take_change());
    assert_eq!(b.port.info().mtu, 9000);
    // Of the VLAN a guest sees nothing.
    net.switch.set_vlan(b.index, Some(5)).unwrap();
    assert!(!b.port.take_change());
    assert_eq!(net.switch.set_vlan(b.index, Some(4095)), None);
    assert_eq!(net.switch.set_link(3, false), None);
}

#[test]
fn a_closed_port_forgets_buffers_frames_and_the_filter() {
    let net = Net::new();
    let [mut a, mut b, _c] = three(&net, Default::default());
    for number in 0..20 {
        a.send(&plain(2, 1, &number.to_string()));
    }
    b.port.close(Ticks(1));
    b.forget_posted();
    b.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    b.post(0, 4, 2048);
    assert!(b.receive().is_none());
    a.send(&plain(2, 1, "new"));
    assert_eq!(b.receive().unwrap().bytes, plain(2, 1, "new"));
}

#[test]
fn a_driver_that_wants_to_receive_in_another_way_keeps_its_buffers() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.open(2, Options::default());
    a.send(&plain(2, 1, "one"));
    b.port.open(Reception { accepts: Offloads::empty(), mergeable: false, pairs: 1 });
    a.send(&plain(2, 1, "two"));
    assert_eq!(b.all(), [plain(2, 1, "one"), plain(2, 1, "two")]);
}

#[test]
fn what_is_longer_than_the_mtu_is_dropped() {
    let net = Net::new();
    let [mut a, mut b, _c] = three(&net, Default::default());
    let frame = |len| ethernet(mac(2), mac(1), None, &"x".repeat(len));
    a.send(&frame(1500));
    a.send(&frame(1501));
    assert_eq!(b.all().len(), 1);
    assert_eq!(net.switch.counter(Some(b.index), Counter::DropTooLong), 1);
    let tagged = ethernet(mac(2), mac(1), Some(3), &"x".repeat(1500));
    a.send(&tagged);
    assert_eq!(b.all(), [tagged]);
}

#[test]
fn two_ports_with_the_same_address_are_in_different_vlans() {
    let net = Net::new();
    let access = |number| Options { vlan: Some(number), ..Options::default() };
    let mut a = net.open(1, access(1));
    let mut twin = net.open(1, access(2));
    let mut b = net.open(2, access(2));
    b.send(&plain(1, 2, "hello"));
    assert_eq!((a.all().len(), twin.all().len()), (0, 1));
    assert_eq!(net.switch.set_vlan(a.index, Some(2)), None);
    assert_eq!(net.switch.set_vlan(a.index, None), None);
    // It is where it was.
    b.send(&plain(1, 2, "hello"));
    assert_eq!((a.all().len(), twin.all().len()), (0, 1));
    net.switch.set_vlan(b.index, Some(1)).unwrap();
    b.send(&plain(1, 2, "hello"));
    assert_eq!((a.all().len(), twin.all().len()), (1, 0));
}

#[test]
fn a_flow_comes_back_on_the_pair_that_it_was_sent_by() {
    let net = Net::new();
    let mut a = net.open(1, Options::default());
    let mut b = net.open(2, Options { pairs: 4, ..Options::default() });
    let udp = |to: u8, from: u8, ports: [u16; 2]| {
        let mut frame = [mac(to).0, mac(from).0].concat();
        frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from]);
        frame.extend([10, 0, 0, to]);
        frame.extend([ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat());
        frame.resize(60, 0);
        frame
    };
    for pair in 0..4 {
        let port = 1000 + pair;
        let out = udp(1, 2, [port, 80]);
        let segments = b.segments(&out, 2);
        let frame = Frame { info: FrameInfo::PLAIN, segments: &segments, len: out.len() };
        assert_eq!(b.port.send(pair, SendTag(0), frame, Ticks(1)), DONE);
        a.send(&udp(2, 1, [80, port]));
        for other in 0..4 {
            assert_eq!(b.receive_on(other).is_some(), other == pair);
        }
    }
    // Flows that were never sent are spread.
    let mut used = [0; 4];
    for port in 0..40 {
        a.send(&udp(2, 1, [80, 2000 + port]));
        for pair in 0..4 {
            if b.receive_on(pair).is_some() {
                used[usize::from(pair)] += 1;
                b.post(pair, 1, 2048);
            }
        }
    }
    assert!(used.iter().all(|count| *count > 2), "{used:?}");
}
