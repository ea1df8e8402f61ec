//! The control queue (5.1.6.5).

use super::*;
use crate::backend::net::MAX_FILTER;

const MODES: Features = CONTROL.union(CTRL_RX).union(CTRL_RX_EXTRA).union(MAC);

/// A filter that wants what it must.
fn default_filter() -> Filter {
    Filter {
        mac: INFO.mac,
        promiscuous: false,
        all_multicast: false,
        all_unicast: false,
        no_multicast: false,
        no_unicast: false,
        no_broadcast: false,
        addresses: heapless::Vec::new(),
        vlans: None,
    }
}

#[test]
fn a_driver_that_cannot_say_what_it_wants_gets_more() {
    let port = Port::new();
    for (features, promiscuous, all_multicast, vlans) in [
        (V1, true, true, None),
        (V1 | MAC, false, true, None),
        (MODES, false, false, None),
        (MODES | CTRL_VLAN, false, false, Some([0; 64])),
    ] {
        guest!(port, features, 3, guest, transport);
        let expected = Filter { promiscuous, all_multicast, vlans, ..default_filter() };
        assert_eq!(port.filter(), expected, "{features:?}");
    }
}

#[test]
fn receive_modes_are_turned_on_and_off_one_by_one() {
    let port = Port::new();
    guest!(port, MODES, 3, guest, transport);
    type Mode = fn(&mut Filter) -> &mut bool;
    let modes: [Mode; 6] = [
        |filter| &mut filter.promiscuous,
        |filter| &mut filter.all_multicast,
        |filter| &mut filter.all_unicast,
        |filter| &mut filter.no_multicast,
        |filter| &mut filter.no_unicast,
        |filter| &mut filter.no_broadcast,
    ];
    let mut expected = default_filter();
    for on in [1, 0] {
        for (command, mode) in modes.iter().enumerate() {
            assert_eq!(guest.command(&mut transport, 2, &[0, command as u8, on]), 0);
            *mode(&mut expected) = on == 1;
            assert_eq!(port.filter(), expected);
        }
    }
}

/// A table of addresses: `unicast` single stations, `multicast` groups.
fn table(unicast: u8, multicast: u8) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    for (entries, first) in [(unicast, 2), (multicast, 3)] {
        bytes.extend([entries, 0, 0, 0]);
        for at in 0..entries {
            bytes.extend([first, 0, 0, 0, 0, at]);
        }
    }
    bytes
}

#[test]
fn the_address_table_is_replaced_whole_and_more_come_where_it_is_too_long() {
    let port = Port::new();
    guest!(port, MODES, 3, guest, transport);
    let max = MAX_FILTER as u8;
    for (unicast, multicast, all) in [
        (1, 2, (false, false)),
        (0, 0, (false, false)),
        (max, 0, (false, false)),
        (max + 1, 2, (true, false)),
        (3, max - 3, (false, false)),
        (3, max - 2, (false, true)),
        (200, 200, (true, true)),
        (0, 1, (false, false)),
    ] {
        assert_eq!(guest.command(&mut transport, 2, &table(unicast, multicast)), 0);
        let filter = port.filter();
        let count = |first| filter.addresses.iter().filter(|address| address.0[0] == first).count();
        assert_eq!((filter.all_unicast, filter.all_multicast), all, "{unicast} {multicast}");
        assert_eq!(count(2), if all.0 { 0 } else { unicast.into() });
        assert_eq!(count(3), if all.1 { 0 } else { multicast.into() });
    }
}

#[test]
fn an_address_is_in_force_and_in_configuration_before_the_answer() {
    let port = Port::new();
    guest!(port, MODES | CTRL_MAC_ADDR, 3, guest, transport);
    let generation = transport.get(0xFC);
    let address = [0x52, 0x54, 0, 1, 2, 3];
    assert_eq!(guest.command(&mut transport, 2, &[&[1, 1][..], &address].concat()), 0);
    assert_eq!(port.filter().mac, MacAddress(address));
    assert_eq!(config(&transport)[..6], address);
    assert_ne!(transport.get(0xFC), generation);
    transport.set(0x70, 0);
    assert_eq!(config(&transport)[..6], INFO.mac.0);
}

#[test]
fn vlans_come_and_go() {
    let port = Port::new();
    guest!(port, MODES | CTRL_VLAN, 3, guest, transport);
    for (command, vlan, ok) in
        [(0, 5, true), (0, 4095, true), (0, 64, true), (1, 5, true), (1, 6, true), (0, 4096, false)]
    {
        let [low, high] = u16::to_le_bytes(vlan);
        let ack = guest.command(&mut transport, 2, &[2, command, low, high]);
        assert_eq!(ack == 0, ok, "{vlan}");
    }
    let mut vlans = [0; 64];
    vlans[63] = 1 << 63;
    vlans[1] = 1;
    assert_eq!(port.filter().vlans, Some(vlans));
}

#[test]
fn offloads_are_changed_within_what_was_agreed() {
    let port = Port::new();
    let some = GUEST_CSUM | GUEST_TSO4 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    guest!(port, CONTROL | some | CTRL_GUEST_OFFLOADS | MRG_RXBUF, 3, guest, transport);
    let all = Offloads::CSUM | Offloads::TSO4 | Offloads::ECN | Offloads::USO;
    assert_eq!(port.reception(), Reception { accepts: all, mergeable: true, pairs: 1 });
    for (set, accepts) in [
        (GUEST_CSUM, Some(Offloads::CSUM)),
        (Features::empty(), Some(Offloads::empty())),
        // Not without the checksum, nor pieces of UDP over one IP only.
        (GUEST_TSO4, Some(Offloads::empty())),
        (GUEST_CSUM | GUEST_ECN, Some(Offloads::CSUM)),
        (GUEST_CSUM | GUEST_USO4, Some(Offloads::CSUM)),
        (some, Some(all)),
        (GUEST_CSUM | GUEST_TSO6, None),
        (CSUM, None),
        (Features::from_bits_retain(1 << 62), None),
    ] {
        let opened = port.get().receptions.len();
        let command = [&[5, 0][..], &set.bits().to_le_bytes()].concat();
        let ack = guest.command(&mut transport, 2, &command);
        match accepts {
            Some(accepts) => assert_eq!((ack, port.reception().accepts), (0, accepts), "{set:?}"),
            None => assert_eq!((ack, port.get().receptions.len()), (1, opened), "{set:?}"),
        }
        // The filter has been set again.
        let told = port.get();
        assert_eq!(told.filters.len(), told.receptions.len());
    }
}

#[test]
fn without_multiqueue_the_control_queue_follows_the_first_pair() {
    let port = Port::new();
    port.get().info.pairs = 4;
    guest!(port, MODES, 9, guest, transport);
    assert_eq!(guest.command(&mut transport, 2, &[0, 0, 1]), 0);
    // No other queue is of any use.
    for index in 3..9 {
        guest.offer(index, &[(FRAMES, 72, false)]);
        transport.set(0x50, index as u32);
        transport.poll(NOW);
        assert_eq!(guest.used(index), None, "{index}");
    }
    assert_eq!((port.get().taken.len(), transport.get(0x70)), (0, 15));
}

#[test]
fn with_multiqueue_it_follows_the_last_pair_and_pairs_are_put_to_use() {
    let port = Port::new();
    port.get().info.pairs = 3;
    guest!(port, CONTROL | MQ, 7, guest, transport);
    assert_eq!(port.reception().pairs, 1);
    for pair in 0..3 {
        guest.post(&mut transport, 2 * pair, 100);
        guest.send(&mut transport, 2 * pair + 1, PLAIN, &[0; 60]);
        assert_eq!(port.posted(pair), [100]);
        assert_eq!(port.get().taken[pair].pair, pair as u16);
    }
    for (pairs, ok) in [(0, false), (4, false), (0xFFFF, false), (3, true), (1, true), (2, true)] {
        let [low, high] = u16::to_le_bytes(pairs);
        assert_eq!(guest.command(&mut transport, 6, &[4, 0, low, high]) == 0, ok, "{pairs}");
        assert_eq!(port.reception().pairs == pairs, ok);
    }
    // What came for a pair is there before it is known to be out of use.
    port.fill(1, 72, false);
    assert_eq!(guest.command(&mut transport, 6, &[4, 0, 1, 0]), 0);
    assert_eq!(guest.used(2), Some((0, 72)));
}

#[test]
fn the_driver_is_asked_to_announce_itself_until_it_answers() {
    let port = Port::new();
    guest!(port, CONTROL | GUEST_ANNOUNCE, 3, guest, transport);
    port.change(|info| info.link_up = false);
    transport.poll(NOW);
    assert!(transport.take_interrupt());
    assert_eq!((config(&transport)[6], transport.get(0x60)), (0, 2));
    port.change(|info| info.link_up = true);
    transport.poll(NOW);
    assert!(transport.take_interrupt());
    assert_eq!(config(&transport)[6], 3);
    let generation = transport.get(0xFC);
    assert_eq!(guest.command(&mut transport, 2, &[3, 0]), 0);
    assert_eq!(config(&transport)[6], 1);
    assert_ne!(transport.get(0xFC), generation);
}

#[test]
fn what_is_no_command_is_answered_so_and_changes_nothing() {
    let port = Port::new();
    guest!(port, MODES | CTRL_MAC_ADDR | CTRL_VLAN, 3, guest, transport);
    let filters = port.get().filters.len();
    let receptions = port.get().receptions.len();
    let mut bad: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0, 0],
        vec![0, 0, 2],
        vec![0, 0, 1, 0],
        vec![0, 6, 1],
        vec![1, 0],
        vec![1, 0, 0, 0, 0, 0],
        vec![1, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 0, 0, 0, 0],
        [vec![1, 0, 255, 255, 255, 255], vec![0; 1000]].concat(),
        [vec![1, 0, 0, 0, 0, 0, 255, 255, 255, 255], vec![0; 1000]].concat(),
        vec![1, 1, 2, 0, 0, 0, 0],
        vec![1, 1, 3, 0, 0, 0, 0, 1],
        vec![1, 1, 0, 0, 0, 0, 0, 0],
        vec![1, 1, 2, 0, 0, 0, 0, 1, 0],
        vec![1, 2, 2, 0, 0, 0, 0, 1],
        vec![2, 0, 1],
        vec![2, 0, 0, 16],
        vec![2, 2, 1, 0],
        // Of features that were not accepted.
        vec![3, 0],
        vec![4, 0, 1, 0],
        vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    bad.extend((3..=255).map(|class| vec![class, 0, 0]));
    // 64 KiB of a good command, and then some.
    bad.push([vec![0, 0, 1], vec![0; 0x1_0000]].concat());
    for command in &bad {
        let ack = guest.command(&mut transport, 2, command);
        assert_eq!(ack, 1, "{:?}", &command[..command.len().min(12)]);
    }
    assert_eq!(statistic(&transport, "commands_refused"), bad.len() as u64);
    assert_eq!(port.get().filters.len(), filters);
    assert_eq!((port.get().receptions.len(), transport.get(0x70)), (receptions, 15));
    assert_eq!(guest.command(&mut transport, 2, &[0, 0, 1]), 0);
}

#[test]
fn a_command_and_its_answer_may_be_cut_anywhere() {
    let port = Port::new();
    guest!(port, MODES, 3, guest, transport);
    guest.0[2].put(FRAMES, &[0, 0, 1]);
    guest.0[2].put(BUFFERS, &[0xFF; 4]);
    let command = [(FRAMES, 1, false), (FRAMES + 1, 1, false), (FRAMES + 2, 1, false)];
    let answer = [(BUFFERS, 1, true), (BUFFERS + 1, 3, true)];
    guest.offer(2, &[&command[..], &answer].concat());
    transport.set(0x50, 2);
    assert_eq!(guest.used(2), Some((0, 1)));
    assert_eq!(guest.0[2].get(BUFFERS), [0, 0xFF, 0xFF, 0xFF]);
    assert!(port.filter().promiscuous);
}

#[test]
fn a_command_without_room_for_its_answer_needs_a_reset_and_has_no_effect() {
    let port = Port::new();
    guest!(port, MODES, 3, guest, transport);
    let filters = port.get().filters.len();
    guest.0[2].put(FRAMES, &[0, 0, 1]);
    guest.offer(2, &[(FRAMES, 3, false)]);
    transport.set(0x50, 2);
    assert_eq!(transport.get(0x70), 15 | 64);
    assert_eq!((guest.used(2), port.get().filters.len()), (None, filters));
}

#[test]
fn commands_are_refused_without_the_features_they_belong_to() {
    let port = Port::new();
    guest!(port, CONTROL, 3, guest, transport);
    for command in [
        &[0, 0, 1][..],
        &[0, 2, 1],
        &table(1, 1),
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(guest.command(&mut transport, 2, command), 1, "{command:?}");
    }
}
