//! Tests of the transport, with a device that writes down what is asked of it.

use std::sync::RwLockWriteGuard;

use super::*;
use crate::memory::{GuestMemoryError, HostRam, Ipa};
use crate::sync::testing::Shared;
use crate::virtio::Width;
use crate::virtio::device::{ActivateError, DeviceType, SharedMemoryRegion};
use crate::virtio::queue::{Areas, ChainBuffer, Head};
use crate::virtio::testing::{BUFFERS, Driver, NOW, RAM, RAM_SIZE, Registers, guest_memory};

const OWN: Features = Features::from_bits_retain(1 << 3 | 1 << 50);
const COMMON: Features = Features::COMMON;
const V1: Features = Features::VERSION_1;

/// Holds every chain until it is told to let go.
#[derive(Default)]
struct Probe<'m> {
    chain: ChainBuffer<'m>,
    held: Vec<(u16, Head)>,
    /// Complete on poll.
    release: bool,
    /// Requests that a back end still holds.
    in_flight: usize,
    config: [u8; 12],
    config_writes: Vec<(usize, Vec<u8>)>,
    /// A write to configuration changes another field.
    echo_config: bool,
    change_config: bool,
    fail: bool,
    negotiated: Vec<Features>,
    enabled: Vec<u16>,
    next_poll: Option<NextPoll>,
    activated: Vec<Features>,
    refuse_activation: bool,
    refuse_features: Features,
    resets: usize,
    notified: Vec<u16>,
}

/// A probe that the test and the transport both hold.
#[derive(Clone, Default)]
struct SharedProbe<'m>(Shared<Probe<'m>>);

impl<'m> SharedProbe<'m> {
    fn get(&self) -> RwLockWriteGuard<'_, Probe<'m>> {
        self.0.borrow_mut()
    }
}

/// A guest's driver, and a probe behind a transport.
macro_rules! machine {
    ($ram:ident, $driver:ident, $probe:ident, $transport:ident) => {
        let $ram = HostRam::new(RAM_SIZE);
        #[allow(unused)]
        let mut $driver = Driver::new(guest_memory(&$ram), 8);
        let $probe = SharedProbe::default();
        let mut device = $probe.clone();
        #[allow(unused)]
        let mut $transport = MmioTransport::new(&mut device, guest_memory(&$ram));
    };
}

impl<'m> VirtioDevice<'m> for SharedProbe<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn offered_features(&self) -> Features {
        // The last is not a device's to offer.
        OWN | Features::ACCESS_PLATFORM
    }

    fn check_features(&self, accepted: Features) -> bool {
        !accepted.intersects(self.get().refuse_features)
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = self.get().config.get(offset + at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8], context: &mut Context<'_, 'm>) {
        let mut probe = self.get();
        probe.config_writes.push((offset, data.to_vec()));
        if probe.echo_config {
            probe.config[11] = data[0];
            context.config_changed();
        }
        if probe.fail {
            context.fail();
        }
    }

    fn negotiated(&mut self, accepted: Features) {
        self.get().negotiated.push(accepted);
    }

    fn queue_enabled(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        assert!(context.queue(index).is_some());
        self.get().enabled.push(index);
    }

    fn next_poll(&self) -> NextPoll {
        let probe = self.get();
        let busy = if probe.in_flight == 0 { NextPoll::Idle } else { NextPoll::Soon };
        probe.next_poll.unwrap_or(busy)
    }

    fn statistics(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        visit("resets", self.get().resets as u64);
    }

    fn shared_memory(&self, id: u32) -> Option<SharedMemoryRegion> {
        let region = SharedMemoryRegion { base: Ipa::new(0x12_3456_7000), len: 0x1_0000_1000 };
        (id == 2).then_some(region)
    }

    fn activate(&mut self, accepted: Features) -> Result<(), ActivateError> {
        let mut probe = self.get();
        probe.activated.push(accepted);
        if probe.refuse_activation { Err(ActivateError) } else { Ok(()) }
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let probe = &mut *self.get();
        probe.notified.push(index);
        let Some(mut queue) = context.queue(index) else {
            return;
        };
        while let Some(chain) = queue.pop(&mut probe.chain) {
            probe.held.push((index, chain.head));
        }
    }

    fn poll(&mut self, context: &mut Context<'_, 'm>) {
        let mut probe = self.get();
        if probe.change_config {
            probe.config[0] += 1;
            context.config_changed();
        }
        if probe.release {
            for (index, head) in probe.held.drain(..) {
                context.queue(index).unwrap().complete(head, 1);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.get().in_flight
    }

    fn reset(&mut self, _now: Ticks) -> Progress {
        let mut probe = self.get();
        probe.resets += 1;
        probe.held.clear();
        if probe.in_flight == 0 { Progress::Done } else { Progress::Pending }
    }

    fn reset_queue(&mut self, index: u16, _now: Ticks) -> Progress {
        let mut probe = self.get();
        probe.held.retain(|held| held.0 != index);
        if probe.in_flight == 0 { Progress::Done } else { Progress::Pending }
    }
}

#[test]
fn identity_registers_read_as_specified() {
    machine!(ram, driver, probe, transport);
    assert_eq!(transport.get(0x00), u32::from_le_bytes(*b"virt"));
    assert_eq!(transport.get(0x04), 2);
    assert_eq!(transport.get(0x08), 3);
    assert_eq!(transport.get(0x70), 0);
    assert_eq!(transport.get(0x60), 0);
}

#[test]
fn feature_pages_offer_own_and_common_features_only() {
    machine!(ram, driver, probe, transport);
    let mut pages = vec![];
    for page in [0, 1, 2, 3, u32::MAX] {
        transport.set(0x14, page);
        pages.push(transport.get(0x10));
    }
    let offered = OWN | COMMON;
    assert_eq!(pages, [offered.page(0), offered.page(1), 0, 0, 0]);
}

#[test]
fn common_features_can_be_held_back_but_not_version_1() {
    let ram = HostRam::new(RAM_SIZE);
    let mut device = SharedProbe::default();
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram))
        .with_common_features(Features::EVENT_IDX | Features::ACCESS_PLATFORM);
    assert!(!transport.negotiate(V1 | Features::INDIRECT_DESC));
    assert!(!transport.negotiate(V1 | Features::RING_PACKED));
    assert!(!transport.negotiate(V1 | Features::ACCESS_PLATFORM));
    assert!(transport.negotiate(V1 | Features::EVENT_IDX));
}

#[test]
fn queue_sizes_can_be_held_down_and_stay_so() {
    let ram = HostRam::new(RAM_SIZE);
    let driver = Driver::new(guest_memory(&ram), 8);
    let mut device = SharedProbe::default();
    let before = MmioTransport::new(&mut device, guest_memory(&ram)).get(0x34);
    assert!(before > 4);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram)).with_max_queue_size(4);
    assert_eq!(transport.get(0x34), 4);
    transport.bring_up(V1, &driver);
    assert_eq!(transport.fault(), Some(QueueError::Size));
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x34), 4);
    drop(transport);
    let transport = MmioTransport::new(&mut device, guest_memory(&ram)).with_max_queue_size(32768);
    assert_eq!(transport.get(0x34), before);
}

#[test]
fn a_notification_with_data_names_the_queue_and_a_place_that_the_ring_has() {
    let data = V1 | Features::NOTIFICATION_DATA;
    for (features, value, notified, status) in [
        // Without the feature all bits are the index.
        (V1, 0x0003_0000_u32, false, 15),
        (data, 0x0000_0000, true, 15),
        // A split ring's index may be any; a packed ring's offset is less than its size.
        (data, 0xFFFF_0000, true, 15),
        (data | Features::RING_PACKED, 0x0007_0000, true, 15),
        (data | Features::RING_PACKED, 0x8007_0000, true, 15),
        (data | Features::RING_PACKED, 0x0008_0000, false, 79),
        (data | Features::RING_PACKED, 0xFFFF_0000, false, 79),
        // No such queue.
        (data | Features::RING_PACKED, 0x0008_0009, false, 15),
    ] {
        machine!(ram, driver, probe, transport);
        assert_eq!(driver.size, 8);
        transport.bring_up(features, &driver);
        transport.set(0x50, value);
        assert_eq!(!probe.get().notified.is_empty(), notified, "{value:#x}");
        assert_eq!(transport.get(0x70), status, "{value:#x}");
        let fault = (status == 79).then_some(QueueError::NotificationData);
        assert_eq!(transport.fault(), fault);
    }
}

#[test]
fn driver_features_are_replaced_not_accumulated() {
    machine!(ram, driver, probe, transport);
    transport.set(0x70, 3);
    transport.set(0x24, 1);
    transport.set(0x20, V1.page(1));
    transport.set(0x24, 0);
    transport.set(0x20, 1 << 7); // not offered
    transport.set(0x20, 1 << 3);
    transport.set(0x70, 11);
    assert_eq!(transport.get(0x70), 11);
    transport.set(0x70, 15);
    assert_eq!(probe.get().activated, [V1 | Features::from_bits_retain(1 << 3)]);
}

#[test]
fn features_are_frozen_by_features_ok() {
    machine!(ram, driver, probe, transport);
    assert!(transport.negotiate(V1));
    transport.set(0x24, 0);
    transport.set(0x20, 1 << 3);
    transport.set(0x24, 1);
    transport.set(0x20, 0);
    transport.set(0x70, 15);
    assert_eq!(probe.get().activated, [V1]);
}

#[test]
fn features_ok_is_refused_without_version_1_or_for_what_is_not_offered_or_not_possible() {
    machine!(ram, driver, probe, transport);
    assert!(!transport.negotiate(Features::empty()));
    assert!(!transport.negotiate(OWN));
    assert!(!transport.negotiate(V1 | Features::IN_ORDER));
    assert!(!transport.negotiate(V1 | Features::ACCESS_PLATFORM));
    assert!(!transport.negotiate(V1 | Features::ORDER_PLATFORM));
    assert!(transport.negotiate(V1 | OWN));
    probe.get().refuse_features = OWN;
    assert!(!transport.negotiate(V1 | OWN));
    assert!(transport.negotiate(V1));
}

#[test]
fn features_beyond_64_are_not_offered_refused_if_accepted_and_can_be_taken_back() {
    machine!(ram, driver, probe, transport);
    let accept = |transport: &mut MmioTransport<'_, '_>, page, bits| {
        transport.set(0x24, page);
        transport.set(0x20, bits);
        transport.set(0x70, 11);
        transport.get(0x70) == 11
    };
    for page in [2, 3, 4, 30, 31, 32, 33, u32::MAX] {
        assert!(transport.negotiate(V1));
        transport.set(0x14, page);
        assert_eq!(transport.get(0x10), 0);
        for bits in [1, 1 << 31, u32::MAX] {
            transport.set(0x70, 0);
            transport.set(0x70, 3);
            assert!(!accept(&mut transport, 1, 0));
            transport.set(0x20, V1.page(1));
            assert!(!accept(&mut transport, page, bits));
            assert_eq!(transport.get(0x70), 3);
            // Zeros on another page, even one of those kept together, take nothing back.
            for other in [0, 5, 6, 29, 40] {
                assert!(!accept(&mut transport, other, 0));
            }
            assert_eq!(accept(&mut transport, page, 0), page < 31, "page {page}");
        }
    }
    assert!(transport.negotiate(V1));
}

#[test]
fn a_driver_can_be_brought_up_in_one_status_write() {
    machine!(ram, driver, probe, transport);
    transport.set(0x24, 1);
    transport.set(0x20, V1.page(1));
    transport.set(0x70, 15);
    assert_eq!(transport.get(0x70), 15);
    assert_eq!(probe.get().activated.len(), 1);
    transport.set(0x70, 15);
    assert_eq!(probe.get().activated.len(), 1);
}

#[test]
fn driver_ok_with_a_bad_queue_needs_reset() {
    machine!(ram, driver, probe, transport);
    let good = driver.areas;
    for (size, areas) in [
        (7, good),
        (0, good),
        (128, good),
        (8, Areas { device: 0x0F00_0000, ..good }),
        (8, Areas { descriptor: RAM + 8, ..good }),
        (8, Areas { driver: u64::MAX - 1, ..good }),
    ] {
        assert!(transport.negotiate(V1));
        transport.configure_queue(0, size, &areas);
        transport.set(0x44, 1);
        assert_eq!(transport.get(0x44), 1);
        transport.set(0x70, 15);
        assert_eq!(transport.get(0x70), 15 | 64);
        assert_eq!(transport.get(0x60), CONFIG_CHANGE);
        assert!(transport.take_interrupt());
        assert!(transport.fault().is_some());
    }
    assert!(probe.get().activated.is_empty());
    transport.bring_up(V1, &driver);
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn a_device_that_refuses_activation_needs_reset() {
    machine!(ram, driver, probe, transport);
    probe.get().refuse_activation = true;
    transport.bring_up(V1, &driver);
    assert_eq!(transport.get(0x70), 79);
    assert!(transport.take_interrupt());
    probe.get().refuse_activation = false;
    transport.bring_up(V1, &driver);
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn fewer_queues_than_offered_may_be_used() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    transport.set(0x50, 1);
    assert!(probe.get().notified.is_empty());
    transport.set(0x50, 0);
    assert_eq!(probe.get().notified, [0]);
}

#[test]
fn queue_registers_are_of_the_selected_queue_and_zero_for_none() {
    machine!(ram, driver, probe, transport);
    for (queue, max) in [(0, 64), (1, 16), (2, 0), (7, 0), (u32::MAX, 0)] {
        transport.set(0x30, queue);
        assert_eq!(transport.get(0x34), max);
        transport.set(0x44, 1);
        assert_eq!(transport.get(0x44), u32::from(max != 0));
        transport.set(0x44, 0);
        assert_eq!(transport.get(0x44), 0);
        assert_eq!(transport.get(0xC0), 0);
        transport.set(0xC0, 1);
    }
}

#[test]
fn notifications_of_missing_disabled_or_not_yet_live_queues_do_nothing() {
    machine!(ram, driver, probe, transport);
    assert!(transport.negotiate(V1));
    transport.configure_queue(0, 8, &driver.areas);
    transport.set(0x50, 0);
    transport.set(0x44, 1);
    transport.set(0x50, 0);
    transport.set(0x70, 15);
    for index in [1, 2, 8, 0xFFFF, 0x1_0000, u32::MAX] {
        transport.set(0x50, index);
    }
    assert!(probe.get().notified.is_empty());
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn registers_answer_aligned_words_only() {
    machine!(ram, driver, probe, transport);
    for width in [Width::Byte, Width::Half, Width::Double] {
        assert_eq!(transport.read(0x00, width), 0);
        assert_eq!(transport.write(0x70, width, 3, NOW), WriteOutcome::Done);
    }
    for offset in [0x01, 0x02, 0x03, 0x71, 0x72, 0x73] {
        assert_eq!(transport.get(offset), 0);
        transport.set(offset, 1);
    }
    assert_eq!(transport.get(0x70), 0);
    transport.set(0x70, 1);
    assert_eq!(transport.get(0x70), 1);
}

#[test]
fn no_register_read_changes_anything() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().release = true;
    transport.poll(NOW);
    let snapshot = |transport: &MmioTransport<'_, '_>| {
        (0..0x120).map(|offset| transport.get(offset)).collect::<Vec<_>>()
    };
    let first = snapshot(&transport);
    assert_eq!(first[0x60], 1);
    assert_eq!(first, snapshot(&transport));
    assert!(transport.take_interrupt());
}

#[test]
fn write_only_and_unknown_registers_read_zero() {
    machine!(ram, driver, probe, transport);
    transport.configure_queue(0, 8, &driver.areas);
    let readable =
        [0x00, 0x04, 0x08, 0x0C, 0x10, 0x34, 0x44, 0x60, 0x70, 0xB0, 0xB4, 0xB8, 0xBC, 0xC0, 0xFC];
    for offset in (0..0x100).step_by(4).filter(|offset| !readable.contains(offset)) {
        assert_eq!(transport.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn shared_memory_that_does_not_exist_reads_all_ones() {
    machine!(ram, driver, probe, transport);
    let mut registers = |id| {
        transport.set(0xAC, id);
        [0xB0, 0xB4, 0xB8, 0xBC].map(|offset| transport.get(offset))
    };
    assert_eq!(registers(0), [u32::MAX; 4]);
    assert_eq!(registers(2), [0x1000, 1, 0x3456_7000, 0x12]);
    assert_eq!(registers(u32::MAX), [u32::MAX; 4]);
}

#[test]
fn configuration_space_has_every_width_and_an_end() {
    machine!(ram, driver, probe, transport);
    probe.get().config = core::array::from_fn(|at| at as u8 + 1);
    assert_eq!(transport.read(0x100, Width::Byte), 1);
    assert_eq!(transport.read(0x101, Width::Byte), 2);
    assert_eq!(transport.read(0x102, Width::Half), 0x0403);
    assert_eq!(transport.read(0x104, Width::Word), 0x0807_0605);
    assert_eq!(transport.read(0x100, Width::Double), 0x0807_0605_0403_0201);
    assert_eq!(transport.read(0x108, Width::Double), 0x0C0B_0A09);
    assert_eq!(transport.read(0xFFF, Width::Byte), 0);
    assert_eq!(transport.read(0xFFF, Width::Word), 0);
    assert_eq!(transport.read(u16::MAX, Width::Double), 0);
    let _ = transport.write(0x104, Width::Half, 0xAABB_CCDD, NOW);
    let _ = transport.write(0xFFE, Width::Word, 1, NOW);
    let _ = transport.write(u16::MAX, Width::Word, 1, NOW);
    transport.bring_up(V1, &driver);
    let _ = transport.write(0x100, Width::Byte, 7, NOW);
    let expected = [(4, vec![0xDD, 0xCC]), (0, vec![7])];
    assert_eq!(probe.get().config_writes, expected);
}

#[test]
fn a_configuration_change_moves_the_generation_and_interrupts() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    let before = transport.get(0xFC);
    transport.poll(NOW);
    assert_eq!((transport.get(0xFC), transport.take_interrupt()), (before, false));
    probe.get().change_config = true;
    transport.poll(NOW);
    assert_ne!(transport.get(0xFC), before);
    assert_eq!(transport.get(0x60), CONFIG_CHANGE);
    assert!(transport.take_interrupt());
    transport.set(0x64, CONFIG_CHANGE);
    assert_eq!(transport.get(0x60), 0);
}

#[test]
fn a_write_to_configuration_can_change_it_elsewhere() {
    machine!(ram, driver, probe, transport);
    probe.get().echo_config = true;
    let write = |transport: &mut MmioTransport<'_, '_>, value| {
        assert_eq!(transport.write(0x100, Width::Byte, value, NOW), WriteOutcome::Done);
    };
    // Before DRIVER_OK the generation tells; there is nobody to interrupt.
    let before = transport.get(0xFC);
    write(&mut transport, 1);
    assert_ne!(transport.get(0xFC), before);
    assert_eq!((transport.get(0x60), transport.take_interrupt()), (0, false));
    transport.bring_up(V1, &driver);
    let before = transport.get(0xFC);
    write(&mut transport, 7);
    assert_eq!(transport.read(0x10B, Width::Byte), 7);
    assert_ne!(transport.get(0xFC), before);
    assert_eq!((transport.get(0x60), transport.take_interrupt()), (CONFIG_CHANGE, true));
}

#[test]
fn a_device_that_fails_by_itself_needs_reset() {
    machine!(ram, driver, probe, transport);
    probe.get().fail = true;
    let _ = transport.write(0x100, Width::Byte, 0, NOW);
    assert_eq!((transport.get(0x70), transport.take_interrupt()), (64, false));
    transport.bring_up(V1, &driver);
    let _ = transport.write(0x100, Width::Byte, 0, NOW);
    assert_eq!((transport.get(0x70), transport.take_interrupt()), (79, true));
    assert_eq!(transport.fault(), None);
}

#[test]
fn a_device_is_told_what_was_agreed_and_which_queues_there_are() {
    machine!(ram, driver, probe, transport);
    assert!(!transport.negotiate(V1 | Features::ACCESS_PLATFORM));
    assert!(probe.get().negotiated.is_empty());
    transport.bring_up(V1 | Features::RING_RESET, &driver);
    assert_eq!(probe.get().negotiated, [V1 | Features::RING_RESET]);
    assert_eq!(probe.get().enabled, [0]);
    // Again after a reset of the queue, and another one later.
    transport.set(0xC0, 1);
    transport.configure_queue(0, 8, &driver.areas);
    transport.set(0x44, 1);
    transport.set(0x44, 1);
    transport.configure_queue(1, 8, &driver.areas);
    transport.set(0x44, 1);
    assert_eq!(probe.get().enabled, [0, 0, 1]);
}

#[test]
fn a_device_that_waits_for_an_event_or_a_time_is_polled_while_it_is_live() {
    machine!(ram, driver, probe, transport);
    for wish in [NextPoll::OnEvent, NextPoll::At(Ticks(7)), NextPoll::Soon] {
        probe.get().next_poll = Some(wish);
        transport.set(0x70, 0);
        assert_eq!(
            (transport.next_poll(), transport.has_work_in_flight()),
            (NextPoll::Idle, false)
        );
        transport.bring_up(V1, &driver);
        assert_eq!((transport.next_poll(), transport.has_work_in_flight()), (wish, true));
    }
    probe.get().next_poll = Some(NextPoll::Idle);
    assert!(!transport.has_work_in_flight());
}

#[test]
fn counters_of_the_device_can_be_read() {
    machine!(ram, driver, probe, transport);
    transport.set(0x70, 0);
    transport.set(0x70, 0);
    let mut seen = vec![];
    transport.statistics(&mut |name, value| seen.push((name, value)));
    assert_eq!(seen, [("resets", 2)]);
}

#[test]
fn acknowledging_clears_the_bits_written_only() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().release = true;
    probe.get().change_config = true;
    transport.poll(NOW);
    assert_eq!(transport.get(0x60), 3);
    transport.set(0x64, 0xFFFF_FFFC);
    assert_eq!(transport.get(0x60), 3);
    transport.set(0x64, 1);
    assert_eq!(transport.get(0x60), 2);
    assert!(transport.interrupt_asserted());
    transport.set(0x64, 2);
    assert!(!transport.interrupt_asserted());
}

#[test]
fn each_event_is_one_edge_even_if_the_last_is_not_acknowledged() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    probe.get().release = true;
    driver.chain(0, &[(BUFFERS, 1, true)]);
    for _ in 0..3 {
        driver.offer(0);
        transport.set(0x50, 0);
        assert!(!transport.take_interrupt());
        transport.poll(NOW);
        assert!(transport.take_interrupt());
        assert!(!transport.take_interrupt());
    }
    assert_eq!(driver.used_idx(), 3);
}

#[test]
fn a_batch_of_completions_is_one_edge() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    for head in 0..8 {
        driver.chain(head, &[(BUFFERS, 1, true)]);
        driver.offer(head);
    }
    transport.set(0x50, 0);
    assert_eq!(driver.used_idx(), 0);
    probe.get().release = true;
    transport.poll(NOW);
    assert_eq!(driver.used_idx(), 8);
    assert!(transport.take_interrupt());
    transport.poll(NOW);
    assert!(!transport.take_interrupt());
}

#[test]
fn a_broken_queue_needs_reset_once_and_a_reset_heals_it() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.set_available(5000);
    transport.set(0x50, 0);
    assert_eq!(transport.get(0x70), 79);
    assert_eq!(transport.fault(), Some(QueueError::AvailableIndex));
    assert_eq!(transport.get(0x60), CONFIG_CHANGE);
    assert!(transport.take_interrupt());
    // Nothing more is done for it, and nothing more is heard of it.
    let notified = probe.get().notified.len();
    transport.set(0x50, 0);
    transport.poll(NOW);
    assert_eq!(probe.get().notified.len(), notified);
    assert!(!transport.take_interrupt());
    assert!(!transport.has_work_in_flight());

    let mut driver = Driver::new(guest_memory(&ram), 8);
    transport.bring_up(V1, &driver);
    driver.chain(3, &[(BUFFERS, 1, true)]);
    driver.offer(3);
    transport.set(0x50, 0);
    probe.get().release = true;
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((3, 1)));
    assert_eq!(transport.get(0x70), 15);
}

#[test]
fn chains_popped_before_a_bad_one_are_not_completed_after_it() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    driver.offer(9);
    transport.set(0x50, 0);
    assert_eq!(transport.fault(), Some(QueueError::DescriptorIndex));
    probe.get().release = true;
    transport.poll(NOW);
    assert_eq!(driver.used_idx(), 0);
}

#[test]
fn a_failed_driver_gets_nothing_any_more() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    transport.set(0x70, 15 | 128);
    assert_eq!(transport.get(0x70), 143);
    probe.get().release = true;
    transport.poll(NOW);
    transport.set(0x50, 0);
    assert_eq!(driver.used_idx(), 0);
    assert!(!transport.take_interrupt());
}

#[test]
fn a_reset_clears_everything_a_driver_can_see() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().release = true;
    transport.poll(NOW);
    transport.set(0x14, 1);
    transport.set(0xAC, 2);
    assert_eq!(transport.get(0x60), 1);
    let generation = transport.get(0xFC);
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x70), 0);
    assert_eq!(transport.get(0x60), 0);
    assert!(!transport.take_interrupt());
    assert_eq!(transport.get(0x44), 0);
    assert_eq!(transport.get(0x10), (OWN | COMMON).page(0));
    assert_eq!(transport.get(0xB0), u32::MAX);
    assert_ne!(transport.get(0xFC), generation);
    assert!(probe.get().resets > 0);
    // The old features are not remembered.
    transport.set(0x70, 3);
    transport.set(0x70, 11);
    assert_eq!(transport.get(0x70), 3);
}

#[test]
fn a_reset_with_requests_in_flight_is_retried_until_they_are_over() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().in_flight = 1;
    assert!(transport.has_work_in_flight());
    for _ in 0..3 {
        assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Retry);
        transport.poll(NOW);
        assert_eq!(transport.get(0x70), 15);
        // What else the guest does meanwhile has no effect.
        transport.set(0x50, 0);
        transport.set(0x70, 15 | 128);
        transport.set(0x44, 0);
        let _ = transport.write(0x100, Width::Byte, 1, NOW);
        assert!(transport.has_work_in_flight());
    }
    assert_eq!(probe.get().notified, [0]);
    assert!(probe.get().config_writes.is_empty());
    probe.get().in_flight = 0;
    probe.get().release = true;
    assert_eq!(transport.try_set(0x70, 0), WriteOutcome::Done);
    assert_eq!(transport.get(0x70), 0);
    assert_eq!(driver.used_idx(), 0);
    assert!(!transport.take_interrupt());
    assert!(!transport.has_work_in_flight());
    transport.bring_up(V1 | OWN, &driver);
    assert_eq!(probe.get().activated, [V1, V1 | OWN]);
}

#[test]
fn a_pending_reset_ends_at_a_poll_too() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    probe.get().in_flight = 1;
    assert_eq!(transport.reset_by_machine(NOW), WriteOutcome::Retry);
    probe.get().in_flight = 0;
    transport.poll(NOW);
    assert_eq!(transport.get(0x70), 0);
    assert_eq!(transport.reset_by_machine(NOW), WriteOutcome::Done);
}

#[test]
fn a_queue_stops_only_when_its_requests_are_over() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().in_flight = 1;
    transport.set(0x30, 0);
    assert_eq!(transport.try_set(0x44, 0), WriteOutcome::Retry);
    assert_eq!(transport.get(0x44), 1);
    // The ring is out of the device's reach already.
    driver.offer(0);
    transport.set(0x50, 0);
    assert_eq!(probe.get().notified, [0]);
    assert!(transport.has_work_in_flight());
    probe.get().in_flight = 0;
    assert_eq!(transport.try_set(0x44, 0), WriteOutcome::Done);
    assert_eq!(transport.get(0x44), 0);
    assert_eq!(driver.used_idx(), 0);
}

#[test]
fn queue_reset_shows_its_progress_and_the_queue_can_be_used_again() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1 | Features::RING_RESET, &driver);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.offer(0);
    transport.set(0x50, 0);
    probe.get().in_flight = 1;
    transport.set(0xC0, 1);
    transport.poll(NOW);
    assert_eq!((transport.get(0xC0), transport.get(0x44)), (1, 1));
    probe.get().in_flight = 0;
    transport.poll(NOW);
    assert_eq!((transport.get(0xC0), transport.get(0x44)), (0, 0));
    assert!(!transport.has_work_in_flight());

    let mut driver = Driver::new(guest_memory(&ram), 4);
    transport.configure_queue(0, 4, &driver.areas);
    transport.set(0x44, 1);
    assert_eq!((transport.get(0xC0), transport.get(0x44)), (0, 1));
    driver.chain(2, &[(BUFFERS, 1, true)]);
    driver.offer(2);
    transport.set(0x50, 0);
    probe.get().release = true;
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((2, 1)));
}

#[test]
fn after_a_queue_reset_nothing_of_it_is_worked_on_and_its_state_is_the_default() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1 | Features::RING_RESET, &driver);
    for head in 0..3 {
        driver.chain(head, &[(BUFFERS, 1, true)]);
        driver.offer(head);
    }
    transport.set(0x50, 0);
    transport.set(0xC0, 1);
    assert_eq!((transport.get(0xC0), transport.get(0x44)), (0, 0));
    probe.get().release = true;
    driver.offer(3);
    transport.set(0x50, 0);
    transport.poll(NOW);
    assert_eq!((driver.used_idx(), transport.take_interrupt()), (0, false));
    assert_eq!(probe.get().notified, [0]);
    // Enabled without another word, the queue is the largest at address 0, which is not RAM.
    transport.set(0x44, 1);
    assert_eq!(transport.fault(), Some(QueueError::Area(GuestMemoryError::NotRam)));
    // Set up again, it begins at the first entry, and without what was in flight.
    let mut driver = Driver::new(guest_memory(&ram), 8);
    transport.bring_up(V1 | Features::RING_RESET, &driver);
    driver.chain(4, &[(BUFFERS, 1, true)]);
    driver.offer(4);
    transport.set(0x50, 0);
    transport.set(0xC0, 1);
    let mut driver = Driver::new(guest_memory(&ram), 8);
    transport.configure_queue(0, 8, &driver.areas);
    transport.set(0x44, 1);
    driver.chain(5, &[(BUFFERS, 1, true)]);
    driver.offer(5);
    transport.set(0x50, 0);
    transport.poll(NOW);
    assert_eq!([driver.used(), driver.used()], [Some((5, 1)), None]);
}

#[test]
fn queue_reset_needs_its_feature() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    transport.set(0xC0, 1);
    assert_eq!((transport.get(0xC0), transport.get(0x44)), (0, 1));
}

#[test]
fn a_bad_queue_enabled_while_live_needs_reset() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    transport.configure_queue(1, 3, &driver.areas);
    transport.set(0x44, 1);
    assert_eq!(transport.get(0x70), 79);
    assert_eq!(transport.fault(), Some(QueueError::Size));
}

#[test]
fn a_broken_device_lets_go_in_its_own_time() {
    machine!(ram, driver, probe, transport);
    transport.bring_up(V1, &driver);
    probe.get().in_flight = 1;
    driver.offer(9);
    transport.set(0x50, 0);
    assert_eq!(transport.get(0x70), 79);
    assert!(transport.has_work_in_flight());
    assert_eq!(transport.try_set(0x44, 0), WriteOutcome::Retry);
    transport.poll(NOW);
    probe.get().in_flight = 0;
    transport.poll(NOW);
    assert!(!transport.has_work_in_flight());
    assert_eq!(transport.try_set(0x44, 0), WriteOutcome::Done);
    assert_eq!(transport.get(0x70), 79);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 256,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Any register traffic whatever leaves a device that a reset brings back.
        #[test]
        #[cfg_attr(miri, ignore = "slow")]
        fn any_traffic_is_survived_and_a_reset_heals(
            accesses in proptest::collection::vec(
                (0..0x42_u16, prop_oneof![0..16_u64, any::<u64>()], 0..8_u8), 1..200),
        ) {
            machine!(ram, driver, probe, transport);
            for (register, value, action) in accesses {
                let offset = register * 4;
                match action {
                    0 => transport.poll(NOW),
                    1 => { let _ = transport.read(offset + 1, Width::Half); }
                    2 => { let _ = transport.write(offset, Width::Double, value, NOW); }
                    3 => probe.get().in_flight = (value & 1) as usize,
                    _ => { let _ = transport.write(offset, Width::Word, value, NOW); }
                }
                prop_assert_eq!(transport.get(0x00), u32::from_le_bytes(*b"virt"));
            }
            probe.get().in_flight = 0;
            let mut driver = Driver::new(guest_memory(&ram), 8);
            transport.bring_up(V1, &driver);
            prop_assert_eq!(transport.get(0x70), 15);
            driver.chain(0, &[(BUFFERS, 1, true)]);
            driver.offer(0);
            transport.set(0x50, 0);
            probe.get().release = true;
            transport.poll(NOW);
            prop_assert_eq!(driver.used(), Some((0, 1)));
            prop_assert!(transport.take_interrupt());
        }
    }
}
