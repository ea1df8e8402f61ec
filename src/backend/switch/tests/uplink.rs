//! The switch towards a network card.

use super::*;
use crate::backend::net::Segmentation;

fn to_world(from: u8, text: &str) -> Vec<u8> {
    plain(0x77, from, text)
}

#[test]
fn a_frame_goes_out_from_the_senders_memory_and_is_told_when_it_has_gone() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let [mut a, mut b, _c] = three(&net, Default::default());
    assert_eq!(a.send_as(8, &to_world(1, "out"), FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    card.with(|card| {
        assert_eq!(card.submitted.len(), 1);
        assert_eq!(card.submitted[0].bytes(), to_world(1, "out"));
        // Three pieces, none of which is a copy.
        assert_eq!(card.submitted[0].segments.len(), 3);
        assert_eq!(card.kicks, 0);
    });
    a.port.kick();
    assert_eq!(card.with(|card| card.kicks), 1);
    assert_eq!((a.port.in_flight(), a.port.poll_sent(Ticks(2))), (1, None));
    assert!(b.all().is_empty());
    card.transmit();
    // By the core with the card's interrupt.
    assert!(!net.switch.poll_uplink(Ticks(3)));
    assert_eq!(net.woken.take(a.index), 1);
    assert_eq!(a.port.poll_sent(Ticks(3)), Some(SendTag(8)));
    assert_eq!((a.port.in_flight(), a.port.poll_sent(Ticks(3))), (0, None));
    // Or by the sender's.
    a.send_as(9, &to_world(1, "out"), FrameInfo::PLAIN, 3).unwrap();
    card.transmit();
    assert_eq!(a.port.poll_sent(Ticks(3)), Some(SendTag(9)));
}

#[test]
fn frames_from_the_card_are_delivered_and_their_senders_learned() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let [mut a, mut b, _c] = three(&net, Default::default());
    let batch = 3 + super::super::BATCH * super::super::BATCHES;
    for number in 0..batch {
        let frame = plain(1, 0x77, &number.to_string());
        card.receive(&frame, FrameInfo { checksum: Checksum::Valid, gso: None });
    }
    assert!(net.switch.poll_uplink(Ticks(1)));
    assert!(!net.switch.poll_uplink(Ticks(1)));
    assert_eq!(net.woken.take(a.index), 2);
    let mut count = 0;
    while let Some(got) = a.receive() {
        assert_eq!((got.bytes, got.header[0]), (plain(1, 0x77, &count.to_string()), 2));
        a.post(0, 1, 2048);
        count += 1;
    }
    assert_eq!(count, batch);
    // What seems to come from a guest has gone in a circle.
    card.receive(&plain(1, 2, "b?"), FrameInfo::PLAIN);
    net.switch.poll_uplink(Ticks(2));
    assert!(a.all().is_empty());
    assert_eq!(net.switch.counter(None, Counter::DropSpoofed), 1);
    // The station is known: its frames go out and nowhere else.
    b.send_as(0, &plain(0x77, 2, "answer"), FrameInfo::PLAIN, 2).unwrap();
    assert_eq!(net.switch.counter(Some(b.index), Counter::Flooded), 0);
    assert_eq!(card.transmit().len(), 1);
}

#[test]
fn the_way_out_has_tags() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let mut a = net.open(1, Options { vlan: Some(9), ..Options::default() });
    let mut trunk = net.open(2, Options::default());
    let all = MacAddress::BROADCAST;
    a.send_as(2, &ethernet(all, mac(1), None, "nine"), FrameInfo::PLAIN, 1).unwrap();
    let mut tagged = ethernet(all, mac(1), Some(9), "nine");
    tagged.resize(64, 0);
    assert_eq!(card.transmit(), [tagged.clone()]);
    assert_eq!(trunk.all(), [tagged]);
    let back = ethernet(mac(1), mac(0x77), Some(9), "back");
    card.receive(&back, FrameInfo::PLAIN);
    card.receive(&ethernet(mac(1), mac(0x77), Some(8), "not for a"), FrameInfo::PLAIN);
    net.switch.poll_uplink(Ticks(1));
    let mut untagged = back;
    untagged.drain(12..16);
    assert_eq!(a.all(), [untagged]);
    trunk.send_as(1, &ethernet(all, mac(2), None, "native"), FrameInfo::PLAIN, 1).unwrap();
    assert_eq!(card.transmit(), [ethernet(all, mac(2), None, "native")]);
}

#[test]
fn a_full_card_makes_senders_wait_until_there_is_room() {
    let net = Net::new();
    let card = net.uplink(CARD);
    card.with(|card| card.room.frames = 2);
    let [mut a, mut b, _c] = three(&net, Default::default());
    let frame = ethernet(MacAddress::BROADCAST, mac(1), None, "all");
    for tag in 0..2 {
        assert_eq!(a.send_as(tag, &frame, FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    }
    assert_eq!(b.all().len(), 2);
    assert_eq!(a.send_as(2, &frame, FrameInfo::PLAIN, 1), Err(Busy));
    // Nothing was done, not even for those for whom there was room.
    assert!(b.all().is_empty());
    net.woken.take(a.index);
    card.transmit();
    net.switch.poll_uplink(Ticks(2));
    assert_eq!(net.woken.take(a.index), 1);
    assert_eq!(a.send_as(2, &frame, FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    // A card that had nothing but was busy: it was reset.
    card.transmit();
    while a.port.poll_sent(Ticks(2)).is_some() {}
    card.with(|card| card.room.frames = 0);
    assert_eq!(a.send_as(2, &frame, FrameInfo::PLAIN, 1), Err(Busy));
    net.switch.poll_uplink(Ticks(2));
    assert_eq!(net.woken.take(a.index), 0);
    card.with(|card| card.room.frames = 9);
    net.switch.poll_uplink(Ticks(2));
    assert_eq!(net.woken.take(a.index), 1);
}

#[test]
fn no_port_has_all_of_the_card() {
    let net = Net::new();
    let card = net.uplink(CARD);
    card.with(|card| card.room = Room { frames: 1000, segments: 1000 });
    let [mut a, mut b, _c] = three(&net, Default::default());
    let mut sent = 0;
    while a.send_as(sent, &to_world(1, "x"), FrameInfo::PLAIN, 1) == Ok(Sent::InFlight) {
        sent += 1;
    }
    assert_eq!(usize::from(sent), PORT_FLIGHTS);
    assert_eq!(b.send_as(0, &to_world(2, "y"), FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    card.transmit();
    net.switch.poll_uplink(Ticks(1));
    for tag in 0..sent {
        assert_eq!(a.port.poll_sent(Ticks(1)), Some(SendTag(tag)));
    }
}

#[test]
fn a_port_is_closed_when_the_card_has_let_go_of_its_memory() {
    let net = Net::new();
    let card = net.uplink(CARD);
    let [mut a, _b, _c] = three(&net, Default::default());
    a.send_as(0, &to_world(1, "1"), FrameInfo::PLAIN, 1).unwrap();
    a.send_as(1, &to_world(1, "2"), FrameInfo::PLAIN, 1).unwrap();
    card.transmit();
    net.switch.poll_uplink(Ticks(1));
    a.send_as(2, &to_world(1, "3"), FrameInfo::PLAIN, 1).unwrap();
    assert!(!a.port.close(Ticks(1)));
    assert!(!a.port.close(Ticks(1)));
    card.transmit();
    assert!(a.port.close(Ticks(1)));
    a.port.open(Reception { accepts: Offloads::all(), mergeable: true, pairs: 1 });
    assert_eq!(a.port.poll_sent(Ticks(1)), None);
}

#[test]
fn the_link_of_the_card_is_followed() {
    let net = Net::new();
    let card = net.uplink(UplinkInfo { link_up: false, ..CARD });
    let [mut a, _b, _c] = three(&net, Default::default());
    assert_eq!(a.send_as(0, &to_world(1, "x"), FrameInfo::PLAIN, 1), DONE);
    card.with(|card| (card.info.link_up, card.changed) = (true, true));
    net.switch.poll_uplink(Ticks(1));
    assert_eq!(a.send_as(0, &to_world(1, "x"), FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    card.with(|card| (card.info.mtu, card.changed) = (100, true));
    net.switch.poll_uplink(Ticks(1));
    let long = to_world(1, &"x".repeat(101));
    assert_eq!(a.send_as(0, &long, FrameInfo::PLAIN, 1), DONE);
    assert_eq!(net.switch.counter(None, Counter::DropTooLong), 1);
}

#[test]
fn what_the_card_takes_it_gets_as_it_is() {
    let net = Net::new();
    let card = net.uplink(UplinkInfo { takes: Offloads::CSUM | Offloads::TSO4, ..CARD });
    let [mut a, _b, _c] = three(&net, Default::default());
    let frame = offload::tcp4(mac(0x77), mac(1), None, 5000);
    let info = gso(Segmentation::TcpV4, 1000, 34);
    assert_eq!(a.send_as(2, &frame, info, 1), Ok(Sent::InFlight));
    card.with(|card| assert_eq!(card.submitted[0].info, info));
    assert_eq!(card.transmit(), [frame]);
}

#[test]
fn a_frame_in_more_pieces_than_the_card_takes_is_dropped() {
    let net = Net::new();
    net.uplink(UplinkInfo { max_segments: 2, ..CARD });
    let [mut a, _b, _c] = three(&net, Default::default());
    assert_eq!(a.send_as(2, &to_world(1, "x"), FrameInfo::PLAIN, 1), DONE);
    assert_eq!(a.send_as(1, &to_world(1, "x"), FrameInfo::PLAIN, 1), Ok(Sent::InFlight));
    assert_eq!(net.switch.counter(None, Counter::DropUnfit), 1);
}
