//! Changes of the port, resets, and states that are saved.

use super::*;
use crate::virtio::WriteOutcome;

#[test]
fn a_link_that_changes_interrupts_and_the_driver_reads_how_it_is() {
    let port = Port::new();
    guest!(port, V1 | STATUS, 2, guest, transport);
    let generation = transport.get(0xFC);
    port.change(|info| info.link_up = false);
    transport.poll(NOW);
    assert!(transport.take_interrupt());
    assert_eq!((transport.get(0x60), config(&transport)[6]), (2, 0));
    assert_ne!(transport.get(0xFC), generation);
    // Something that means nothing to the driver changes.
    let generation = transport.get(0xFC);
    port.change(|_| ());
    transport.poll(NOW);
    assert!(!transport.take_interrupt());
    assert_eq!(transport.get(0xFC), generation);
    // Without GUEST_ANNOUNCE it is not asked to announce itself.
    port.change(|info| info.link_up = true);
    transport.poll(NOW);
    assert_eq!(config(&transport)[6], 1);
}

#[test]
fn a_change_before_the_device_is_live_is_told_when_it_is() {
    let port = Port::new();
    let ram = HostRam::new(MEMORY);
    let guest = Guest::new(&guest_memory(&ram));
    let mut backend = port.clone();
    let mut device = Net::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    assert!(transport.negotiate(V1));
    port.change(|info| info.link_up = false);
    assert_eq!(config(&transport)[6], 1);
    guest.enable(&mut transport, 0);
    transport.set(0x70, 15);
    assert!(transport.take_interrupt());
    assert_eq!(config(&transport)[6], 0);
}

#[test]
fn mtu_and_speed_stay_what_the_driver_has_seen_while_it_can_count_on_them() {
    let port = Port::new();
    guest!(port, V1 | STATUS | MTU | SPEED_DUPLEX, 2, guest, transport);
    let seen = config(&transport);
    port.change(|info| (info.mtu, info.speed) = (9000, Some(1000)));
    transport.poll(NOW);
    assert_eq!(config(&transport), seen);
    assert!(!transport.take_interrupt());
    // A link that is down may have another speed, but the MTU is for good.
    port.change(|info| info.link_up = false);
    transport.poll(NOW);
    assert_eq!(config(&transport)[10..17], [0xDC, 5, 0xE8, 3, 0, 0, 1]);
    guest.send(&mut transport, 1, PLAIN, &[0; 1519]);
    assert_eq!(port.get().taken.len(), 0);
    transport.set(0x70, 0);
    assert_eq!(config(&transport)[10..12], [0x28, 0x23]);
}

#[test]
fn a_reset_waits_for_the_port_and_forgets_everything() {
    let port = Port::new();
    guest!(port, CONTROL | MAC | CTRL_RX | CTRL_MAC_ADDR, 3, guest, transport);
    port.get().answer = Ok(Sent::InFlight);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    guest.post(&mut transport, 0, 100);
    guest.command(&mut transport, 2, &[0, 0, 1]);
    guest.command(&mut transport, 2, &[1, 1, 2, 9, 9, 9, 9, 9]);
    port.get().closing = 3;
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
    transport.poll(NOW);
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
    assert_eq!(transport.get(0x70), 15);
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Done);
    assert_eq!(transport.next_poll(), NextPoll::Idle);
    assert_eq!(config(&transport)[..6], INFO.mac.0);
    (0..3).for_each(|index| renew(&mut guest, index));
    guest.bring_up(&mut transport, CONTROL | MAC | CTRL_RX, 3);
    assert!(!port.filter().promiscuous);
    assert_eq!(port.filter().mac, INFO.mac);
    port.get().gone.push_back(SendTag(0));
    transport.poll(NOW);
    assert_eq!((guest.used(0), guest.used(1), port.posted(0)), (None, None, vec![]));
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    assert_eq!(port.get().taken.last().unwrap().tag, 0);
}

const RESETS: Features = V1.union(Features::RING_RESET);

/// Resets queue `index`; whether it was at once.
fn reset_queue(transport: &mut MmioTransport<'_, '_>, index: u32) -> bool {
    transport.set(0x30, index);
    transport.set(0xC0, 1);
    transport.get(0xC0) == 0
}

/// The driver of queue `index` begins anew.
fn renew<'m>(guest: &mut Guest<'m>, index: usize) {
    let driver = &mut guest.0[index];
    driver.put(driver.areas.descriptor, &[0; RING as usize]);
    (driver.available, driver.seen) = (0, 0);
}

#[test]
fn a_transmit_queue_is_reset_when_hardware_has_let_go_of_its_frames() {
    let port = Port::new();
    port.get().info.pairs = 2;
    guest!(port, RESETS | CTRL_VQ | MQ, 5, guest, transport);
    port.get().answer = Ok(Sent::InFlight);
    let other = guest.send(&mut transport, 3, PLAIN, &[0; 60]);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    let kicks = port.get().kicks;
    // A frame of the other pair goes first, and one of two of this.
    port.get().gone.extend([SendTag(0), SendTag(2)]);
    assert!(!reset_queue(&mut transport, 1));
    assert_eq!(port.get().kicks, kicks + 1);
    assert_eq!(guest.used(3), None);
    transport.poll(NOW);
    assert_eq!((guest.used(3), transport.get(0xC0)), (Some((other, 0)), 1));
    port.get().gone.push_back(SendTag(1));
    transport.poll(NOW);
    assert_eq!((guest.used(1), transport.get(0xC0), transport.get(0x44)), (None, 0, 0));
    renew(&mut guest, 1);
    guest.enable(&mut transport, 1);
    guest.send(&mut transport, 1, PLAIN, &[0; 60]);
    port.get().gone.push_back(SendTag(0));
    transport.poll(NOW);
    assert_eq!(guest.used(1), Some((0, 0)));
}

#[test]
fn a_receive_queue_is_reset_at_once_and_posts_anew() {
    let port = Port::new();
    guest!(port, RESETS, 2, guest, transport);
    guest.post(&mut transport, 0, 100);
    guest.post(&mut transport, 0, 101);
    port.fill(0, 72, false);
    assert!(reset_queue(&mut transport, 0));
    assert_eq!(port.posted(0), []);
    transport.poll(NOW);
    assert_eq!(guest.used(0), None);
    renew(&mut guest, 0);
    // What is available when the queue is enabled is posted without a notification.
    guest.offer(0, &[(BUFFERS, 102, true)]);
    guest.enable(&mut transport, 0);
    assert_eq!(port.posted(0), [102]);
    port.fill(0, 72, false);
    transport.poll(NOW);
    assert_eq!(guest.used(0), Some((0, 72)));
}

#[test]
fn a_control_queue_can_be_reset_and_what_was_asked_for_stays() {
    let port = Port::new();
    guest!(port, RESETS | CTRL_VQ | CTRL_RX, 3, guest, transport);
    guest.command(&mut transport, 2, &[0, 1, 1]);
    assert!(reset_queue(&mut transport, 2));
    renew(&mut guest, 2);
    guest.enable(&mut transport, 2);
    guest.command(&mut transport, 2, &[0, 0, 1]);
    let filter = port.filter();
    assert!(filter.promiscuous && filter.all_multicast);
}

#[test]
fn queues_that_a_driver_does_not_enable_are_not_used() {
    let port = Port::new();
    guest!(port, V1, 0, guest, transport);
    port.get().gone.push_back(SendTag(0));
    for index in 0..4 {
        transport.set(0x50, index);
    }
    transport.poll(NOW);
    assert_eq!((port.posted(0), transport.get(0x70)), (vec![], 15));
}

const SAVED: Features = CONTROL
    .union(MAC)
    .union(CTRL_RX)
    .union(CTRL_VLAN)
    .union(CTRL_MAC_ADDR)
    .union(GUEST_ANNOUNCE)
    .union(GUEST_CSUM)
    .union(CTRL_GUEST_OFFLOADS)
    .union(MQ);

fn save(transport: &mut MmioTransport<'_, '_>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    transport.prepare_save(NOW);
    let mut writer = StateWriter::new(&mut bytes);
    transport.save(&mut writer).unwrap();
    let len = writer.written();
    bytes.truncate(len);
    bytes
}

#[test]
fn a_device_goes_on_elsewhere_with_what_was_asked_for_and_posted() {
    let port = Port::new();
    port.get().info.pairs = 2;
    guest!(port, SAVED, 5, guest, transport);
    guest.command(&mut transport, 4, &[0, 1, 1]);
    guest.command(&mut transport, 4, &[1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]);
    guest.command(&mut transport, 4, &[1, 1, 2, 3, 4, 5, 6, 7]);
    guest.command(&mut transport, 4, &[2, 0, 9, 0]);
    guest.command(&mut transport, 4, &[4, 0, 2, 0]);
    guest.command(&mut transport, 4, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let heads: Vec<u32> = (0..3).map(|at| guest.post(&mut transport, 0, 100 + at)).collect();
    guest.post(&mut transport, 2, 200);
    port.fill(0, 72, false);
    // Buffers are at work.
    let mut none = [0; 4096];
    let mut writer = StateWriter::new(&mut none);
    assert_eq!(transport.save(&mut writer), Err(StateError::Busy));
    let state = save(&mut transport);
    assert_eq!(guest.used(0), Some((heads[0], 72)));
    assert_eq!((port.posted(0), port.posted(1)), (vec![], vec![]));
    // The one that was saved can go on as well.
    transport.poll(NOW);
    assert_eq!((port.posted(0), port.posted(1)), (vec![101, 102], vec![200]));
    let (filter, reception) = (port.filter(), port.reception());

    let other = Port::new();
    other.get().info.pairs = 2;
    other.get().info.link_up = false;
    other.get().info.mac = MacAddress([6, 6, 6, 6, 6, 6]);
    let mut backend = other.clone();
    let mut device = Net::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest.0[0].memory.clone());
    transport.restore(&mut StateReader::new(&state), NOW).unwrap();
    transport.poll(NOW);
    assert_eq!((other.filter(), other.reception()), (filter, reception));
    assert_eq!((other.posted(0), other.posted(1)), (vec![101, 102], vec![200]));
    // It is somewhere else now: asked to announce itself, with no link.
    assert!(transport.take_interrupt());
    assert_eq!(config(&transport)[..8], [2, 3, 4, 5, 6, 7, 2, 0]);
    other.fill(0, 80, false);
    transport.poll(NOW);
    assert_eq!(guest.used(0), Some((heads[1], 80)));
    guest.send(&mut transport, 3, PLAIN, &[0; 60]);
    assert_eq!(other.get().taken.len(), 1);
    assert_eq!(guest.command(&mut transport, 4, &[3, 0]), 0);
    assert_eq!(config(&transport)[6], 0);
}

#[test]
fn a_device_that_is_not_live_is_saved_and_restored_so() {
    for agreed in [false, true] {
        let port = Port::new();
        let ram = HostRam::new(MEMORY);
        let guest = Guest::new(&guest_memory(&ram));
        let mut backend = port.clone();
        let mut device = Net::new(&mut backend);
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        if agreed {
            assert!(transport.negotiate(V1 | MAC));
        }
        let state = save(&mut transport);
        let mut backend = port.clone();
        let mut device = Net::new(&mut backend);
        let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
        transport.restore(&mut StateReader::new(&state), NOW).unwrap();
        assert_eq!(transport.next_poll(), NextPoll::Idle);
        assert!(port.get().receptions.is_empty());
        if agreed {
            guest.enable(&mut transport, 0);
            transport.set(0x70, 15);
            assert!(!port.filter().promiscuous);
        }
    }
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let port = Port::new();
    port.get().info.pairs = 2;
    guest!(port, SAVED, 5, guest, transport);
    let good = save(&mut transport);
    let restored = |state: &[u8]| {
        let mut backend = port.clone();
        let mut device = Net::new(&mut backend);
        let mut transport = MmioTransport::new(&mut device, guest.0[0].memory.clone());
        let result = transport.restore(&mut StateReader::new(state), NOW);
        assert!(result.is_ok() || transport.next_poll() == NextPoll::Idle);
        result
    };
    assert_eq!(restored(&good), Ok(()));
    for len in 0..good.len() {
        assert!(restored(&good[..len]).is_err(), "{len}");
    }
    // Our own part is at the end: what the port is like, whether it is live, and what was asked for.
    let control = good.len() - 728;
    let ours = control - 1 - wire::CONFIG_SIZE;
    let change = |at: usize, value: u8| {
        let mut state = good.clone();
        state[at] = value;
        restored(&state)
    };
    let invalid = Err(StateError::Invalid);
    // Pairs, MTU, live; offloads not agreed; a group's address; pairs; table; announcement.
    for (at, value) in [
        (ours + 8, 3),
        (ours + 10, 0),
        (control - 1, 2),
        (control, 0x80),
        (control + 712, 1),
        (control + 718, 0),
        (control + 718, 3),
        (control + 721, 33),
        (control + 722, 2),
    ] {
        assert_eq!(change(at, value), invalid, "{}", at - ours);
    }
    for at in ours..good.len() {
        for value in [1, 0x7F, 0xFF] {
            let _ = change(at, value);
        }
    }
    // Another MTU is another device.
    port.get().info.mtu = 9000;
    assert_eq!(restored(&good), invalid);
}
