//! One test for each rule of section 2.8, against the naive driver of
//! [`crate::virtio::testing::packed`].

use super::*;
use crate::memory::HostRam;
use crate::virtio::queue::tests::{Popped, pop};
use crate::virtio::queue::{Queue, Ring};
use crate::virtio::testing::packed::{self as wire, DESC, DISABLE, ENABLE, PackedDriver};
use crate::virtio::testing::{self, BUFFERS, RAM, RAM_SIZE, guest_memory};

const PACKED: Features = Features::VERSION_1.union(Features::RING_PACKED);
const WITH_INDIRECT: Features = PACKED.union(Features::INDIRECT_DESC);
const WITH_EVENT_IDX: Features = PACKED.union(Features::EVENT_IDX);
const TABLE: u64 = BUFFERS + 0x1000;

const ONE: &[(u64, u32, bool)] = &[(BUFFERS, 1, true)];

fn started<'m>(driver: &PackedDriver<'m>, features: Features) -> Queue<'m> {
    let mut queue = Queue::new(1024);
    queue.set_size(driver.size.into());
    queue.set_areas(|areas| *areas = driver.areas);
    queue.set_ready();
    queue.start(features, &driver.memory).unwrap();
    queue
}

/// Takes and completes one list; its ID.
fn serve<'m>(ring: &mut Ring<'m>, memory: &GuestMemory<'m>, written: u32) -> Option<u16> {
    let mut buffer = ChainBuffer::new();
    let head = ring.pop(memory, &mut buffer).unwrap()?.head;
    ring.complete(head, written);
    Some(head.id())
}

fn head(id: u16, descriptors: u16) -> Head {
    Head::new(id, descriptors, true)
}

/// What comes of the first list `offer` makes available in a ring of 8.
fn popped(
    features: Features,
    offer: impl FnOnce(&mut PackedDriver<'_>),
) -> Result<Option<Popped>, QueueError> {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 8);
    offer(&mut driver);
    let mut queue = started(&driver, features);
    pop(queue.ring().unwrap(), &driver.memory)
}

#[test]
fn an_empty_ring_of_any_size_has_nothing() {
    // Zeros have AVAIL and USED equal (2.8.1).
    for size in [1, 2, 3, 7, 8, 100, 255] {
        let ram = HostRam::new(RAM_SIZE);
        let driver = PackedDriver::new(guest_memory(&ram), size);
        let mut queue = started(&driver, PACKED);
        assert_eq!(pop(queue.ring().unwrap(), &driver.memory), Ok(None));
    }
}

#[test]
fn a_size_need_not_be_a_power_of_two_but_is_bounded() {
    let ram = HostRam::new(0x9_0000);
    let driver = PackedDriver::new(guest_memory_of(&ram), 8);
    let areas = Areas { descriptor: RAM + 0x1000, driver: RAM, device: RAM + 4 };
    for (size, legal) in
        [(0, false), (1, true), (3, true), (32767, true), (32768, true), (32769, false)]
    {
        let mut queue = Queue::new(32768);
        queue.set_size(size);
        queue.set_areas(|it| *it = areas);
        queue.set_ready();
        let expected = if legal { Ok(()) } else { Err(QueueError::Size) };
        assert_eq!(queue.start(PACKED, &driver.memory), expected, "{size}");
    }
}

fn guest_memory_of(ram: &HostRam) -> GuestMemory<'_> {
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(crate::memory::Pa::new(0))).is_ok());
    memory
}

#[test]
fn areas_must_be_aligned_apart_and_in_ram() {
    let ram = HostRam::new(RAM_SIZE);
    let memory = guest_memory(&ram);
    let end = RAM + RAM_SIZE as u64;
    let (d, a, u) = (RAM, RAM + 0x1000, RAM + 0x2000);
    let not_ram = QueueError::Area(crate::memory::GuestMemoryError::NotRam);
    for (areas, expected) in [
        ((d, a, u), Ok(())),
        ((d + 16, a + 4, u + 4), Ok(())),
        ((d + 8, a, u), Err(QueueError::Alignment)),
        ((d, a + 2, u), Err(QueueError::Alignment)),
        ((d, a, u + 2), Err(QueueError::Alignment)),
        ((end - 7 * 16, a, u), Ok(())),
        ((end - 6 * 16, a, u), Err(not_ram)),
        ((d, end - 4, u), Ok(())),
        ((d, end, u), Err(not_ram)),
        ((d, a, end - 4), Ok(())),
        ((d, a, end), Err(not_ram)),
        ((d, d + 112, d + 116), Ok(())),
        ((d, d + 108, u), Err(QueueError::Overlap)),
        ((d, a, a), Err(QueueError::Overlap)),
    ] {
        let mut queue = Queue::new(8);
        let (descriptor, driver, device) = areas;
        queue.set_size(7);
        queue.set_areas(|areas| *areas = Areas { descriptor, driver, device });
        queue.set_ready();
        assert_eq!(queue.start(PACKED, &memory), expected, "{areas:#x?}");
    }
}

#[test]
fn a_list_comes_out_in_order_with_the_id_of_its_last_descriptor() {
    let list = popped(PACKED, |driver| {
        driver.offer(0xBEEF, &[(BUFFERS, 16, false), (BUFFERS + 32, 5, true), (BUFFERS, 1, true)]);
    });
    let expected = (0xBEEF, vec![(0x4000, 16)], vec![(0x4020, 5), (0x4000, 1)]);
    assert_eq!(list, Ok(Some(expected)));
}

#[test]
fn a_descriptor_is_available_when_its_flags_differ_and_avail_is_the_wrap_counter() {
    for (flags, available) in
        [(0, false), (wire::AVAIL, true), (wire::USED, false), (wire::AVAIL | wire::USED, false)]
    {
        let list = popped(PACKED, |driver| driver.descriptor(0, (BUFFERS, 1, 3, flags)));
        assert_eq!(list.unwrap().is_some(), available, "{flags:#x}");
    }
    // In the second lap, the other way round.
    for (flags, available) in
        [(0, false), (wire::AVAIL, false), (wire::USED, true), (wire::AVAIL | wire::USED, false)]
    {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), 1);
        let mut queue = started(&driver, PACKED);
        let ring = queue.ring().unwrap();
        driver.offer(9, ONE);
        assert_eq!(serve(ring, &driver.memory, 0), Some(9));
        ring.publish();
        ring.begin_batch();
        driver.descriptor(0, (BUFFERS, 1, 3, flags));
        assert_eq!(pop(ring, &driver.memory).unwrap().is_some(), available, "{flags:#x}");
    }
}

#[test]
fn the_used_descriptor_has_both_flags_as_the_wrap_counter_and_lies_where_the_last_ended() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 5);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    let used_at = |index: u64| -> [u8; 16] { testing::get(&guest_memory(&ram), RAM + index * 16) };
    let expected = |len: u32, id: u16, flags: u16| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..6].copy_from_slice(&id.to_le_bytes());
        bytes[6..].copy_from_slice(&flags.to_le_bytes());
        bytes
    };
    let pair = &[(BUFFERS, 1, false), (BUFFERS, 4, true)];
    driver.offer(7, pair);
    driver.offer(1, pair);
    let memory = guest_memory(&ram);
    let [first, second] = [(), ()].map(|()| pop(ring, &memory).unwrap().unwrap().0);
    assert_eq!([first, second], [7, 1]);
    // The second is complete first, and takes the first place.
    ring.complete(head(1, 2), 4);
    ring.publish();
    assert_eq!(used_at(0)[8..], expected(4, 1, 1 << 7 | 1 << 15 | 2));
    ring.complete(head(7, 2), 3);
    ring.publish();
    assert_eq!(used_at(2)[8..], expected(3, 7, 1 << 7 | 1 << 15 | 2));
    // Over the end: the list is at 4 and 0, the used descriptor at 4, and the one after it at 1,
    // in the second lap.
    assert_eq!([driver.used(), driver.used()], [Some((1, 4, true)), Some((7, 3, true))]);
    ring.begin_batch();
    driver.offer(2, pair);
    driver.offer(3, ONE);
    assert_eq!(serve(ring, &memory, 1), Some(2));
    assert_eq!(serve(ring, &memory, 1), Some(3));
    ring.publish();
    assert_eq!(used_at(4)[8..], expected(1, 2, 1 << 7 | 1 << 15 | 2));
    assert_eq!(used_at(1)[8..], expected(1, 3, 2));
    assert_eq!(driver.used(), Some((2, 1, true)));
    assert_eq!(driver.used(), Some((3, 1, true)));
    assert_eq!(driver.used(), None);
}

#[test]
fn the_write_flag_says_whether_there_was_something_to_write() {
    for (buffers, written, used) in [
        (&[(BUFFERS, 8, true)][..], 8, (4, 8, true)),
        // A status behind a gap is written, but not counted.
        (&[(BUFFERS, 8, true)], 0, (4, 0, true)),
        (&[(BUFFERS, 8, false)], 0, (4, 0, false)),
        // A device that says nonsense of what it cannot write: the length is reserved then.
        (&[(BUFFERS, 8, false)], 5, (4, 5, false)),
    ] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), 8);
        let mut queue = started(&driver, PACKED);
        driver.offer(4, buffers);
        serve(queue.ring().unwrap(), &driver.memory, written);
        queue.ring().unwrap().publish();
        assert_eq!(driver.used(), Some(used));
    }
}

#[test]
fn a_list_as_long_as_the_queue_is_legal_and_a_longer_one_is_not() {
    let full = popped(PACKED, |driver| driver.offer(0, &[(BUFFERS, 1, false); 8]));
    assert_eq!(full.unwrap().unwrap().1.len(), 8);
    for last in [0, testing::WRITE] {
        let endless = popped(PACKED, |driver| {
            driver.offer(0, &[(BUFFERS, 1, false); 8]);
            driver.descriptor(7, (BUFFERS, 1, 0, testing::NEXT | wire::AVAIL | last));
        });
        assert_eq!(endless, Err(QueueError::ChainTooLong));
    }
    let empty = popped(PACKED, |driver| {
        for index in 0..8 {
            driver.descriptor(index, (0, 0, 0, testing::NEXT | wire::AVAIL));
        }
    });
    assert_eq!(empty, Err(QueueError::ChainTooLong));
}

#[test]
fn a_list_in_flight_is_not_taken_again_after_an_interrupt_decision_at_the_end_of_the_ring() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 2);
    driver.set_event(DESC, (0, true));
    let mut queue = started(&driver, PACKED.union(Features::EVENT_IDX));
    let ring = queue.ring().unwrap();
    driver.offer(0, ONE);
    driver.offer(1, ONE);
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 0);
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 1);
    ring.complete(head(0, 1), 1);
    assert!(ring.publish());
    assert_eq!(driver.used(), Some((0, 1, true)));
    ring.begin_batch();
    driver.offer(2, ONE);
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 2);
    // The place of list 1, which is at work.
    driver.descriptor(1, (BUFFERS, 1, 0, wire::USED));
    assert_eq!(pop(ring, &driver.memory), Err(QueueError::AvailableIndex));
}

#[test]
fn a_list_may_not_reach_into_lists_in_flight() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 4);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    driver.offer(0, &[(BUFFERS, 1, false); 3]);
    assert!(pop(ring, &driver.memory).unwrap().is_some());
    // One place is left, and the list goes on into the first.
    driver.descriptor(3, (BUFFERS, 1, 0, testing::NEXT | wire::AVAIL));
    driver.descriptor(0, (BUFFERS, 1, 0, wire::USED));
    assert_eq!(pop(ring, &driver.memory), Err(QueueError::ChainTooLong));

    // No place is left at all.
    let mut driver = PackedDriver::new(guest_memory(&ram), 1);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    driver.offer(0, ONE);
    assert!(pop(ring, &driver.memory).unwrap().is_some());
    driver.descriptor(0, (BUFFERS, 1, 0, wire::USED));
    ring.begin_batch();
    assert_eq!(pop(ring, &driver.memory), Err(QueueError::AvailableIndex));
}

#[test]
fn all_descriptors_of_a_list_must_be_available() {
    // 2.8.6: all flags must be right in all descriptors.
    for owner in [0, wire::USED, wire::AVAIL | wire::USED] {
        for writable in [0, testing::WRITE] {
            let list = popped(PACKED, |driver| {
                driver.offer(0, &[(BUFFERS, 1, writable != 0); 2]);
                driver.descriptor(1, (BUFFERS, 1, 0, owner | writable));
            });
            assert_eq!(list, Err(QueueError::NotAvailable));
        }
    }
    // A lap later it is the other flag.
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 4);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    driver.offer(0, &[(BUFFERS, 1, true); 3]);
    serve(ring, &driver.memory, 0);
    ring.publish();
    assert!(driver.used().is_some());
    driver.offer(0, &[(BUFFERS, 1, true); 2]);
    driver.descriptor(0, (BUFFERS, 1, 0, wire::AVAIL | testing::WRITE));
    assert_eq!(pop(ring, &driver.memory), Err(QueueError::NotAvailable));
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let list = popped(PACKED, |driver| {
        driver.offer(0, &[(BUFFERS, 1, false), (BUFFERS, 1, true), (BUFFERS, 1, false)]);
    });
    assert_eq!(list, Err(QueueError::ReadableAfterWritable));
    let list = popped(WITH_INDIRECT, |driver| {
        driver.offer_indirect(0, TABLE, &[(BUFFERS, 1, true), (BUFFERS, 1, false)]);
    });
    assert_eq!(list, Err(QueueError::ReadableAfterWritable));
}

#[test]
fn buffers_outside_ram_are_refused_with_nothing_taken() {
    let ram = HostRam::new(RAM_SIZE);
    let end = RAM + RAM_SIZE as u64;
    for (address, len) in [(RAM - 1, 1), (end, 1), (end - 1, 2), (0, 16), (u64::MAX, 2)] {
        let mut driver = PackedDriver::new(guest_memory(&ram), 8);
        driver.offer(0, &[(BUFFERS, 4, false), (address, len, true)]);
        let mut queue = started(&driver, PACKED);
        let ring = queue.ring().unwrap();
        let error = pop(ring, &driver.memory).unwrap_err();
        assert!(matches!(error, QueueError::Buffer(_)), "{address:#x}");
        assert_eq!(ring.outstanding(), 0);
        assert_eq!(driver.used(), None);
    }
}

#[test]
fn an_indirect_table_is_read_in_order_and_only_its_write_flags_mean_something() {
    for table in [TABLE, TABLE + 4, TABLE + 1] {
        let list = popped(WITH_INDIRECT, |driver| {
            let buffers = [(BUFFERS, 16, false), (BUFFERS + 32, 4, true), (BUFFERS, 1, true)];
            driver.offer_indirect(0x1234, table, &buffers);
        });
        let expected = (0x1234, vec![(0x4000, 16)], vec![(0x4020, 4), (0x4000, 1)]);
        assert_eq!(list, Ok(Some(expected)));
    }
}

#[test]
fn an_indirect_table_takes_one_descriptor_of_the_ring() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, WITH_INDIRECT);
    let ring = queue.ring().unwrap();
    for id in 0..10 {
        driver.offer_indirect(id, TABLE, &[(BUFFERS, 1, false), (BUFFERS, 1, true)]);
        driver.offer(id + 100, ONE);
        assert_eq!(serve(ring, &driver.memory, 1), Some(id));
        assert_eq!(serve(ring, &driver.memory, 1), Some(id + 100));
        ring.publish();
        ring.begin_batch();
        assert_eq!(driver.used(), Some((id, 1, true)));
        assert_eq!(driver.used(), Some((id + 100, 1, true)));
    }
}

#[test]
fn an_indirect_table_must_be_negotiated_whole_alone_and_of_a_legal_length() {
    let refused = |features, len, flags| {
        popped(features, |driver| {
            driver.descriptor_at(TABLE, 0, (BUFFERS, 4, 0, 0));
            driver.offer_one(0, (TABLE, len), testing::INDIRECT | flags);
        })
    };
    assert!(refused(WITH_INDIRECT, 16, 0).is_ok());
    assert_eq!(refused(PACKED, 16, 0), Err(QueueError::Indirect));
    assert_eq!(refused(WITH_INDIRECT, 16, testing::NEXT), Err(QueueError::Indirect));
    for len in [0, 1, 15, 17, 31] {
        assert_eq!(refused(WITH_INDIRECT, len, 0), Err(QueueError::Indirect));
    }
    let too_long = Err(QueueError::ChainTooLong);
    assert_eq!(refused(WITH_INDIRECT, 16 * (MAX_SEGMENTS as u32 + 1), 0), too_long);
    assert_eq!(refused(WITH_INDIRECT, 0xFFFF_FFF0, 0), too_long);
    let list = popped(WITH_INDIRECT, |driver| {
        let end = RAM + RAM_SIZE as u64;
        driver.offer_one(0, (end - 16, 32), testing::INDIRECT);
    });
    assert!(matches!(list, Err(QueueError::Buffer(_))));
    // Nor in a list, readable or writable.
    for writable in [false, true] {
        let list = popped(WITH_INDIRECT, |driver| {
            driver.offer(0, &[(BUFFERS, 1, writable); 2]);
            let flags = testing::INDIRECT | wire::AVAIL;
            driver.descriptor(1, (TABLE, 16, 0, flags));
        });
        assert_eq!(list, Err(QueueError::Indirect));
    }
}

#[test]
fn completions_of_a_batch_appear_together_when_published() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    for round in 0..5 {
        for id in 0..3 {
            driver.offer(id, ONE);
            assert_eq!(serve(ring, &driver.memory, round), Some(id));
            assert_eq!(driver.used(), None);
        }
        assert!(ring.publish());
        for id in 0..3 {
            assert_eq!(driver.used(), Some((id, round, true)));
        }
        assert_eq!(driver.used(), None);
        assert!(!ring.publish());
        ring.begin_batch();
    }
    // More completions than lists would overwrite what is the driver's.
    ring.complete(head(0, 1), 1);
    assert!(!ring.publish());
}

#[test]
fn a_completion_never_skips_more_than_was_taken() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 4);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    driver.offer(0, ONE);
    assert!(pop(ring, &driver.memory).unwrap().is_some());
    ring.complete(head(0, 4), 1);
    ring.publish();
    driver.offer(1, ONE);
    assert_eq!(serve(ring, &driver.memory, 1), Some(1));
    ring.publish();
    assert_eq!([driver.used(), driver.used()], [Some((0, 1, true)), Some((1, 1, true))]);
}

#[test]
fn a_list_put_back_is_popped_again_across_the_end_of_the_ring() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    for id in 0..12 {
        driver.offer(id, &[(BUFFERS, 1, true); 2]);
        for _ in 0..2 {
            assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, id);
            assert_eq!(ring.outstanding(), 2);
            ring.put_back(Head::new(id, 2, true));
            assert!(ring.has_leftover());
            assert_eq!(ring.outstanding(), 0);
        }
        // Once is enough: nothing more comes back.
        ring.put_back(Head::new(id, 2, true));
        ring.begin_batch();
        assert_eq!(serve(ring, &driver.memory, 1), Some(id));
        ring.publish();
        assert_eq!(driver.used(), Some((id, 1, true)));
    }
}

#[test]
fn lists_are_put_back_one_by_one_and_a_parked_one_is_no_leftover() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 7);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    // Across the end of the ring, again and again.
    for id in 0..20 {
        let ids = [3 * id, 3 * id + 1, 3 * id + 2];
        ids.iter().for_each(|id| driver.offer(*id, &[(BUFFERS, 1, true); 2]));
        for _ in 0..2 {
            ring.begin_batch();
            for id in ids {
                assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, id);
            }
            for id in ids.into_iter().rev() {
                ring.park(Head::new(id, 2, true));
            }
            assert_eq!((ring.outstanding(), ring.has_leftover()), (0, false));
        }
        ring.begin_batch();
        for id in ids {
            assert_eq!(serve(ring, &driver.memory, 1), Some(id));
            ring.publish();
            assert_eq!(driver.used(), Some((id, 1, true)));
        }
    }
}

#[test]
fn a_batch_takes_at_most_as_many_lists_as_the_queue_has_descriptors() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 4);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    // A driver on another core that refills as fast as the device completes.
    for id in 0..4 {
        driver.offer(id, ONE);
        assert_eq!(serve(ring, &driver.memory, 1), Some(id));
        ring.publish();
        assert!(driver.used().is_some());
    }
    driver.offer(4, ONE);
    assert_eq!(pop(ring, &driver.memory), Ok(None));
    assert!(ring.has_leftover());
    ring.begin_batch();
    assert_eq!(serve(ring, &driver.memory, 1), Some(4));
    assert_eq!(pop(ring, &driver.memory), Ok(None));
    assert!(!ring.has_leftover());
}

#[test]
fn the_drivers_event_flags_enable_or_disable_interrupts() {
    let start = (0, true);
    for (features, flags, interrupt) in [
        (PACKED, ENABLE, true),
        (PACKED, DISABLE, false),
        // Only valid with EVENT_IDX, and reserved: an interrupt too many does no harm.
        (PACKED, DESC, true),
        (PACKED, 3, true),
        (WITH_EVENT_IDX, ENABLE, true),
        (WITH_EVENT_IDX, DISABLE, false),
        (WITH_EVENT_IDX, 3, true),
        // The bits above are reserved.
        (WITH_EVENT_IDX, DISABLE | 0xFFF0, false),
    ] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), 8);
        driver.set_event(flags, (5, start.1));
        let mut queue = started(&driver, features);
        let ring = queue.ring().unwrap();
        driver.offer(0, ONE);
        serve(ring, &driver.memory, 1);
        assert_eq!(ring.publish(), interrupt, "{flags:#x}");
    }
}

#[test]
fn with_event_idx_the_interrupt_comes_when_the_place_is_used_and_in_its_lap_only() {
    // Exhaustive: every place of three laps as event, batches of every size from every place.
    for size in [1_u16, 3, 4] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), size);
        let mut queue = started(&driver, WITH_EVENT_IDX);
        let ring = queue.ring().unwrap();
        let mut total = 0;
        for round in 0..200_u16 {
            let batch = round % size + 1;
            let ahead = round / 7 % (2 * size);
            // The event is `ahead` places after the next to be used.
            driver.set_event(DESC, driver.after(driver.next, ahead));
            for id in 0..batch {
                driver.offer(id, ONE);
                assert_eq!(serve(ring, &driver.memory, 1), Some(id));
            }
            assert_eq!(ring.publish(), ahead < batch, "{size}: {batch} from {total}, {ahead}");
            for id in 0..batch {
                assert_eq!(driver.used(), Some((id, 1, true)));
            }
            ring.begin_batch();
            total += batch;
        }
    }
}

#[test]
fn an_event_in_the_middle_of_a_list_counts() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 8);
    let mut queue = started(&driver, WITH_EVENT_IDX);
    let ring = queue.ring().unwrap();
    driver.set_event(DESC, (2, true));
    driver.offer(0, &[(BUFFERS, 1, true); 4]);
    serve(ring, &driver.memory, 1);
    assert!(ring.publish());
}

#[test]
fn with_event_idx_an_empty_ring_asks_for_the_next_addition() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, WITH_EVENT_IDX);
    let ring = queue.ring().unwrap();
    assert_eq!(driver.device_event(), (ENABLE, (0, false)));
    for id in 0..20 {
        driver.offer(id, ONE);
        assert_eq!(serve(ring, &driver.memory, 1), Some(id));
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        assert_eq!(driver.device_event(), (DESC, driver.next));
        ring.publish();
        assert!(driver.used().is_some());
        ring.begin_batch();
    }
}

#[test]
fn notifications_off_and_on_again_leave_nothing_unseen() {
    for features in [PACKED, WITH_EVENT_IDX] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), 8);
        let mut queue = started(&driver, features);
        let ring = queue.ring().unwrap();
        ring.set_notifications(false);
        assert_eq!(driver.device_event().0, DISABLE);
        driver.offer(0, ONE);
        assert_eq!(serve(ring, &driver.memory, 1), Some(0));
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        assert_eq!(driver.device_event().0, DISABLE);
        driver.offer(1, ONE);
        ring.set_notifications(true);
        assert_eq!(driver.device_event().0, ENABLE);
        assert!(ring.has_leftover());
        assert_eq!(serve(ring, &driver.memory, 1), Some(1));
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        let event_idx = features.contains(Features::EVENT_IDX);
        let expected = if event_idx { (DESC, (2, true)) } else { (ENABLE, (0, false)) };
        assert_eq!(driver.device_event(), expected);
    }
}

#[test]
fn flags_that_flip_after_the_first_look_change_nothing() {
    // The list is judged as it was read: completing it does not look at the ring again.
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 8);
    let mut queue = started(&driver, PACKED);
    let ring = queue.ring().unwrap();
    driver.offer(3, &[(BUFFERS, 1, false), (BUFFERS, 1, true)]);
    let mut buffer = ChainBuffer::new();
    let chain = ring.pop(&driver.memory, &mut buffer).unwrap().unwrap();
    for index in 0..8 {
        driver.descriptor(index, (u64::MAX, u32::MAX, 0xFFFF, 0xFFFF));
    }
    assert_eq!((chain.readable.remaining(), chain.writable.remaining()), (1, 1));
    ring.complete(chain.head, 1);
    ring.publish();
    assert_eq!(driver.used(), Some((3, 1, true)));
}

#[test]
fn an_indirect_table_is_bounded_by_its_entries_even_if_they_are_empty() {
    // Buffers of no bytes take no segment: only the length of the table says that it is too long.
    let with = |entries: u32| {
        popped(WITH_INDIRECT, |driver| {
            driver.descriptor_at(TABLE, 0, (BUFFERS, 4, 0, 0));
            driver.offer_one(7, (TABLE, 16 * entries), testing::INDIRECT);
        })
    };
    let most = MAX_SEGMENTS as u32;
    for entries in [1, most - 1, most] {
        assert_eq!(with(entries), Ok(Some((7, vec![(0x4000, 4)], vec![]))));
    }
    for entries in [most + 1, most + 2, 2 * most, 1000] {
        assert_eq!(with(entries), Err(QueueError::ChainTooLong));
    }
}

#[test]
#[cfg_attr(miri, ignore = "slow")]
fn a_ring_of_32768_wraps() {
    let ram = HostRam::new(0x9_0000);
    let mut driver = PackedDriver::new(guest_memory_of(&ram), 0x8000);
    driver.areas = Areas { descriptor: RAM + 0x1_0000, driver: RAM, device: RAM + 4 };
    let mut queue = Queue::new(0x8000);
    queue.set_areas(|it| *it = driver.areas);
    queue.set_ready();
    queue.start(WITH_EVENT_IDX, &driver.memory).unwrap();
    let ring = queue.ring().unwrap();
    for round in 0..70_u32 {
        for id in 0..1000 {
            driver.offer(id, ONE);
        }
        driver.set_event(DESC, driver.after(driver.next, 0x7FFF));
        for id in 0..1000 {
            assert_eq!(serve(ring, &driver.memory, round), Some(id));
        }
        assert!(!ring.publish());
        for id in 0..1000 {
            assert_eq!(driver.used(), Some((id, round, true)));
        }
        assert_eq!(driver.used(), None);
        ring.begin_batch();
    }
    // The whole ring in one list is more than a chain may have, and is refused.
    let list = vec![(BUFFERS, 1, true); 0x8000];
    driver.offer(0, &list);
    assert_eq!(pop(ring, &driver.memory), Err(QueueError::ChainTooLong));
}

#[test]
fn a_queue_that_is_reset_starts_anew() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, PACKED);
    driver.offer(0, &[(BUFFERS, 1, true); 2]);
    assert!(pop(queue.ring().unwrap(), &driver.memory).unwrap().is_some());
    queue.reset();
    assert!(queue.ring().is_none());
    let mut driver = PackedDriver::new(guest_memory(&ram), 3);
    let mut queue = started(&driver, PACKED);
    driver.offer(5, &[(BUFFERS, 1, true); 3]);
    assert_eq!(serve(queue.ring().unwrap(), &driver.memory, 2), Some(5));
    queue.ring().unwrap().publish();
    assert_eq!(driver.used(), Some((5, 2, true)));
}
