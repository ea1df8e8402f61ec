//! Tests of the rings against the naive driver of [`crate::virtio::testing`].
//!
//! Clean under Miri with `MIRIFLAGS=-Zmiri-disable-weak-memory-emulation` (see
//! `memory::shared`).

#[cfg(not(miri))]
mod cores;
mod once;
mod traffic;

use super::*;
use crate::memory::{HostRam, Pa};
use crate::virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, RAM, RAM_SIZE, WRITE, guest_memory};

const SPLIT: Features = Features::VERSION_1;

/// What a device has of a chain of a split ring.
fn named(id: u16) -> Head {
    Head::new(id, 1, true)
}

/// A started queue for what `driver` has laid out.
fn started<'m>(driver: &Driver<'m>, features: Features) -> Queue<'m> {
    let mut queue = Queue::new(256);
    queue.set_size(driver.size.into());
    queue.set_areas(|areas| *areas = driver.areas);
    queue.set_ready();
    queue.start(features, &driver.memory).unwrap();
    queue
}

/// Pops one chain as (head, readable, writable) with (offset in RAM, length) for every segment.
pub(super) type Popped = (u16, Vec<(u64, usize)>, Vec<(u64, usize)>);

pub(super) fn pop<'m>(
    ring: &mut Ring<'m>,
    memory: &GuestMemory<'m>,
) -> Result<Option<Popped>, QueueError> {
    let base = memory.regions()[0].1.pa().raw();
    let mut buffer = ChainBuffer::new();
    let Some(chain) = ring.pop(memory, &mut buffer)? else {
        return Ok(None);
    };
    let list = |segments: &[SharedSlice<'_>]| {
        segments.iter().map(|it| (it.pa().raw() - base, it.len())).collect()
    };
    let totals = (chain.readable.remaining(), chain.writable.remaining());
    let readable: Vec<_> = list(chain.readable.into_segments());
    let writable: Vec<_> = list(chain.writable.into_segments());
    let sum = |segments: &[(u64, usize)]| segments.iter().map(|it| it.1).sum::<usize>();
    assert_eq!(totals, (sum(&readable), sum(&writable)));
    Ok(Some((chain.head.id(), readable, writable)))
}

/// What comes of one chain that `lay_out` wrote at descriptor 0.
fn popped(
    features: Features,
    lay_out: impl FnOnce(&Driver<'_>),
) -> Result<Option<Popped>, QueueError> {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 8);
    lay_out(&driver);
    driver.offer(0);
    let mut queue = started(&driver, features);
    pop(queue.ring().unwrap(), &driver.memory)
}

#[test]
fn a_chain_comes_out_in_order_readable_before_writable() {
    let chain = popped(SPLIT, |driver| {
        driver.chain(0, &[(BUFFERS, 16, false), (BUFFERS + 32, 5, true), (BUFFERS, 1, true)]);
    });
    let expected = (0, vec![(0x4000, 16)], vec![(0x4020, 5), (0x4000, 1)]);
    assert_eq!(chain, Ok(Some(expected)));
}

#[test]
fn a_chain_as_long_as_the_queue_is_legal_and_one_more_is_not() {
    let full = popped(SPLIT, |driver| driver.chain(0, &[(BUFFERS, 1, false); 8]));
    assert_eq!(full.unwrap().unwrap().1.len(), 8);
    let looped = popped(SPLIT, |driver| {
        driver.chain(0, &[(BUFFERS, 1, false); 8]);
        driver.descriptor(7, (BUFFERS, 1, NEXT, 0));
    });
    assert_eq!(looped, Err(QueueError::ChainTooLong));
}

#[test]
fn a_loop_of_one_or_of_empty_buffers_ends() {
    let looped = popped(SPLIT, |driver| driver.descriptor(0, (BUFFERS, 1, NEXT, 0)));
    assert_eq!(looped, Err(QueueError::ChainTooLong));
    let empty = popped(SPLIT, |driver| driver.descriptor(0, (0, 0, NEXT, 0)));
    assert_eq!(empty, Err(QueueError::ChainTooLong));
}

#[test]
fn a_buffer_of_no_bytes_is_nothing() {
    let chain = popped(SPLIT, |driver| {
        driver.chain(0, &[(0, 0, false), (BUFFERS, 4, false), (1, 0, true), (BUFFERS, 8, true)]);
    });
    assert_eq!(chain, Ok(Some((0, vec![(0x4000, 4)], vec![(0x4000, 8)]))));
}

#[test]
fn indices_outside_the_table_are_refused() {
    for next in [8, 9, 0x7FFF, 0xFFFF] {
        let chain = popped(SPLIT, |driver| driver.descriptor(0, (BUFFERS, 1, NEXT, next)));
        assert_eq!(chain, Err(QueueError::DescriptorIndex));
    }
    let ram = HostRam::new(RAM_SIZE);
    for head in [8, 0xFFFF] {
        let mut driver = Driver::new(guest_memory(&ram), 8);
        driver.offer(head);
        let mut queue = started(&driver, SPLIT);
        let chain = pop(queue.ring().unwrap(), &driver.memory);
        assert_eq!(chain, Err(QueueError::DescriptorIndex));
    }
}

#[test]
fn buffers_outside_ram_are_refused() {
    let end = RAM + RAM_SIZE as u64;
    for (address, len) in [
        (RAM - 1, 1),
        (end, 1),
        (end - 1, 2),
        (RAM, u32::MAX),
        (0x0900_0000, 4), // the UART
        (0x0F00_0000, 4), // our own registers
        (0, 16),
    ] {
        let chain = popped(SPLIT, |driver| driver.chain(0, &[(address, len, true)]));
        assert_eq!(chain, Err(QueueError::Buffer(GuestMemoryError::NotRam)), "{address:#x}");
    }
    for address in [u64::MAX, u64::MAX - 14] {
        let chain = popped(SPLIT, |driver| driver.chain(0, &[(address, 16, false)]));
        assert_eq!(chain, Err(QueueError::Buffer(GuestMemoryError::Wraps)), "{address:#x}");
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let chain = popped(SPLIT, |driver| {
        driver.chain(0, &[(BUFFERS, 1, false), (BUFFERS, 1, true), (BUFFERS, 1, false)]);
    });
    assert_eq!(chain, Err(QueueError::ReadableAfterWritable));
}

const TABLE: u64 = BUFFERS + 0x1000;
const WITH_INDIRECT: Features = SPLIT.union(Features::INDIRECT_DESC);

fn fill_table(driver: &Driver<'_>, table: u64, entries: u16) {
    for index in 0..entries {
        let flags = if index + 1 < entries { NEXT } else { 0 };
        driver.descriptor_at(table, index, (BUFFERS, 4, flags | WRITE, index + 1));
    }
}

#[test]
fn an_indirect_table_ends_a_chain_of_direct_descriptors() {
    for table in [TABLE, TABLE + 4, TABLE + 1] {
        let chain = popped(WITH_INDIRECT, |driver| {
            fill_table(driver, table, 3);
            driver.descriptor(0, (BUFFERS, 16, NEXT, 5));
            // The write flag of the referring descriptor means nothing.
            driver.descriptor(5, (table, 48, INDIRECT | WRITE, 0));
        });
        assert_eq!(chain, Ok(Some((0, vec![(0x4000, 16)], vec![(0x4000, 4); 3]))));
    }
}

#[test]
fn an_indirect_table_may_be_longer_than_the_queue_but_not_endless() {
    let chain = popped(WITH_INDIRECT, |driver| {
        fill_table(driver, TABLE, 256);
        driver.descriptor(0, (TABLE, 256 * 16, INDIRECT, 0));
    });
    assert_eq!(chain.unwrap().unwrap().2.len(), 256);
    let chain = popped(WITH_INDIRECT, |driver| {
        fill_table(driver, TABLE, 257);
        driver.descriptor(0, (TABLE, 257 * 16, INDIRECT, 0));
    });
    assert_eq!(chain, Err(QueueError::ChainTooLong));
    let chain = popped(WITH_INDIRECT, |driver| {
        fill_table(driver, TABLE, 256);
        driver.descriptor(0, (BUFFERS, 1, NEXT, 1));
        driver.descriptor(1, (TABLE, 256 * 16, INDIRECT, 0));
    });
    assert_eq!(chain, Err(QueueError::ChainTooLong));
    let looped = popped(WITH_INDIRECT, |driver| {
        driver.descriptor_at(TABLE, 0, (BUFFERS, 1, NEXT, 1));
        driver.descriptor_at(TABLE, 1, (BUFFERS, 1, NEXT, 0));
        driver.descriptor(0, (TABLE, 32, INDIRECT, 0));
    });
    assert_eq!(looped, Err(QueueError::ChainTooLong));
}

#[test]
fn an_indirect_table_must_be_negotiated_whole_flat_and_last() {
    let refused = |features, flags, len, inner: u16| {
        popped(features, |driver| {
            driver.descriptor_at(TABLE, 0, (BUFFERS, 4, inner, 0));
            driver.descriptor(0, (TABLE, len, flags, 0));
        })
    };
    assert!(refused(WITH_INDIRECT, INDIRECT, 16, 0).is_ok());
    assert_eq!(refused(SPLIT, INDIRECT, 16, 0), Err(QueueError::Indirect));
    assert_eq!(refused(WITH_INDIRECT, INDIRECT | NEXT, 16, 0), Err(QueueError::Indirect));
    assert_eq!(refused(WITH_INDIRECT, INDIRECT, 16, INDIRECT), Err(QueueError::Indirect));
    for len in [0, 1, 15, 17, 31] {
        assert_eq!(refused(WITH_INDIRECT, INDIRECT, len, 0), Err(QueueError::Indirect));
    }
    let outside = Err(QueueError::Buffer(GuestMemoryError::NotRam));
    assert_eq!(refused(WITH_INDIRECT, INDIRECT, 0xFFFF_FFF0, 0), outside);
    let beyond = popped(WITH_INDIRECT, |driver| {
        driver.descriptor_at(TABLE, 0, (BUFFERS, 4, NEXT, 1));
        driver.descriptor_at(TABLE, 1, (BUFFERS, 4, 0, 0));
        driver.descriptor(0, (TABLE, 16, INDIRECT, 0));
    });
    assert_eq!(beyond, Err(QueueError::DescriptorIndex).or(Err(QueueError::ChainTooLong)));
}

#[test]
fn a_chain_of_more_than_4_gib_is_refused() {
    // Lengths add up by naming the same memory often.
    let ram = HostRam::new(0x0200_0000);
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0))).is_ok());
    for (len, legal) in [(0x0100_0000, true), (0x0100_0001, false)] {
        let mut driver = Driver::new(memory.clone(), 256);
        driver.chain(0, &[(RAM, len, true); 256]);
        driver.offer(0);
        let mut queue = started(&driver, SPLIT);
        let mut buffer = ChainBuffer::new();
        let result = queue.ring().unwrap().pop(&driver.memory, &mut buffer);
        match result {
            Ok(chain) => assert!(legal && chain.is_some()),
            Err(error) => assert!(!legal && error == QueueError::ChainTooLong),
        }
    }
}

#[test]
fn an_available_index_that_jumps_or_goes_back_is_refused() {
    let ram = HostRam::new(RAM_SIZE);
    for (first, then) in [(9, 9), (5000, 5000), (0xFFFF, 0xFFFF), (8, 9), (4, 3), (4, 0), (8, 7)] {
        let mut driver = Driver::new(guest_memory(&ram), 8);
        driver.chain(0, &[(BUFFERS, 1, true)]);
        let mut queue = started(&driver, SPLIT);
        let ring = queue.ring().unwrap();
        driver.set_available(first);
        if first == then {
            assert_eq!(pop(ring, &driver.memory), Err(QueueError::AvailableIndex));
            continue;
        }
        for _ in 0..first {
            assert!(pop(ring, &driver.memory).unwrap().is_some());
        }
        ring.begin_batch();
        driver.set_available(then);
        assert_eq!(pop(ring, &driver.memory), Err(QueueError::AvailableIndex), "{first} {then}");
    }
}

#[test]
fn a_batch_takes_at_most_the_queues_size() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 4);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    let mut queue = started(&driver, SPLIT);
    let ring = queue.ring().unwrap();
    for _ in 0..4 {
        driver.offer(0);
    }
    // A driver on another core that refills as fast as the device completes.
    for _ in 0..4 {
        let (head, ..) = pop(ring, &driver.memory).unwrap().unwrap();
        ring.complete(named(head), 0);
        ring.publish();
        driver.offer(0);
    }
    assert_eq!(pop(ring, &driver.memory), Ok(None));
    assert!(ring.has_leftover());
    ring.begin_batch();
    for _ in 0..4 {
        assert!(pop(ring, &driver.memory).unwrap().is_some());
    }
    ring.begin_batch();
    assert_eq!(pop(ring, &driver.memory), Ok(None));
    assert!(!ring.has_leftover());
}

#[test]
fn a_chain_put_back_is_popped_again() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 4);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    driver.chain(2, &[(BUFFERS, 2, true)]);
    driver.offer(0);
    driver.offer(2);
    let mut queue = started(&driver, SPLIT);
    let ring = queue.ring().unwrap();
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 0);
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 2);
    ring.put_back(Head::new(2, 1, true));
    assert!(ring.has_leftover());
    assert_eq!(ring.outstanding(), 1);
    assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, 2);
    assert_eq!(pop(ring, &driver.memory), Ok(None));
}

#[test]
fn chains_are_put_back_one_by_one_and_a_parked_one_is_no_leftover() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 4);
    for head in 0..3 {
        driver.chain(head, &[(BUFFERS, 1, true)]);
        driver.offer(head);
    }
    let mut queue = started(&driver, SPLIT);
    let ring = queue.ring().unwrap();
    for _ in 0..2 {
        ring.begin_batch();
        for head in 0..3 {
            assert_eq!(pop(ring, &driver.memory).unwrap().unwrap().0, head);
        }
        for head in (0..3).rev() {
            ring.park(Head::new(head, 1, true));
        }
        assert_eq!((ring.outstanding(), ring.has_leftover()), (0, false));
    }
}

#[test]
fn completions_appear_together_when_published() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 4);
    driver.chain(1, &[(BUFFERS, 9, true)]);
    driver.chain(3, &[(BUFFERS, 9, true)]);
    driver.offer(3);
    driver.offer(1);
    let mut queue = started(&driver, SPLIT);
    let ring = queue.ring().unwrap();
    assert!(pop(ring, &driver.memory).unwrap().is_some());
    assert!(pop(ring, &driver.memory).unwrap().is_some());
    ring.complete(named(1), 7);
    ring.complete(named(3), 9);
    assert_eq!(driver.used(), None);
    assert!(ring.publish());
    assert_eq!([driver.used(), driver.used(), driver.used()], [Some((1, 7)), Some((3, 9)), None]);
    assert!(!ring.publish());
    // More completions than chains would overwrite what the driver has not seen.
    ring.complete(named(1), 7);
    assert!(!ring.publish());
    assert_eq!(driver.used(), None);
}

#[test]
fn no_interrupt_flag_counts_without_event_idx_only() {
    for (features, flags, interrupt) in [
        (SPLIT, 0, true),
        (SPLIT, 1, false),
        (SPLIT | Features::EVENT_IDX, 0, true),
        (SPLIT | Features::EVENT_IDX, 1, true),
    ] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = Driver::new(guest_memory(&ram), 4);
        driver.set_flags(flags);
        driver.chain(0, &[(BUFFERS, 1, true)]);
        driver.offer(0);
        let mut queue = started(&driver, features);
        let ring = queue.ring().unwrap();
        assert!(pop(ring, &driver.memory).unwrap().is_some());
        ring.complete(named(0), 0);
        assert_eq!(ring.publish(), interrupt);
    }
}

#[test]
fn an_event_is_passed_exactly_when_it_lies_between() {
    // Exhaustive over small distances around a wrap; the model counts in full.
    for old in [0_u16, 100, 0xFFFC] {
        for step in 0..6_u16 {
            for event in -8..8_i32 {
                let new = old.wrapping_add(step);
                let at = old.wrapping_add_signed(event as i16);
                let model = event >= 0 && event < i32::from(step);
                assert_eq!(passes(at, old, new), model, "{at} in {old}..{new}");
            }
        }
    }
}

#[test]
fn with_event_idx_the_interrupt_comes_when_used_event_is_passed() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 8);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    let mut queue = started(&driver, SPLIT | Features::EVENT_IDX);
    let ring = queue.ring().unwrap();
    driver.set_used_event(4);
    // Batches of 1, 2, 2, 3: indices 0; 1, 2; 3, 4; 5, 6, 7.
    for (batch, interrupt) in [(1, false), (2, false), (2, true), (3, false)] {
        for _ in 0..batch {
            driver.offer(0);
            assert!(pop(ring, &driver.memory).unwrap().is_some());
            ring.complete(named(0), 0);
        }
        ring.begin_batch();
        assert_eq!(ring.publish(), interrupt);
    }
}

#[test]
fn with_event_idx_an_empty_ring_asks_for_the_next_addition() {
    let ram = HostRam::new(RAM_SIZE);
    let mut driver = Driver::new(guest_memory(&ram), 8);
    driver.chain(0, &[(BUFFERS, 1, true)]);
    let mut queue = started(&driver, SPLIT | Features::EVENT_IDX);
    let ring = queue.ring().unwrap();
    for expected in 1..20 {
        driver.offer(0);
        assert!(pop(ring, &driver.memory).unwrap().is_some());
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        assert_eq!(driver.available_event(), expected);
        ring.complete(named(0), 0);
        ring.publish();
        ring.begin_batch();
    }
}

#[test]
fn notifications_off_and_on_again_leave_nothing_unseen() {
    for features in [SPLIT, SPLIT | Features::EVENT_IDX] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = Driver::new(guest_memory(&ram), 8);
        driver.chain(0, &[(BUFFERS, 1, true)]);
        let mut queue = started(&driver, features);
        let ring = queue.ring().unwrap();
        let event_idx = features.contains(Features::EVENT_IDX);
        ring.set_notifications(false);
        assert_eq!(driver.used_flags(), if event_idx { 0 } else { 1 });
        driver.offer(0);
        assert!(pop(ring, &driver.memory).unwrap().is_some());
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        if event_idx {
            // The driver notifies when it passes this, and it has not been moved on.
            assert_eq!(driver.available_event(), 0);
        }
        // Added while the device did not want to hear of it: found when it wants to again.
        driver.offer(0);
        ring.set_notifications(true);
        assert_eq!(driver.used_flags(), 0);
        assert!(ring.has_leftover());
        assert!(pop(ring, &driver.memory).unwrap().is_some());
        assert_eq!(pop(ring, &driver.memory), Ok(None));
        if event_idx {
            assert_eq!(driver.available_event(), 2);
        }
    }
}

#[test]
fn a_bad_size_is_refused_not_rounded() {
    let ram = HostRam::new(RAM_SIZE);
    let driver = Driver::new(guest_memory(&ram), 8);
    for (size, expected) in [
        (0, Err(QueueError::Size)),
        (1, Ok(())),
        (3, Err(QueueError::Size)),
        (200, Err(QueueError::Size)),
        (256, Ok(())),
        (512, Err(QueueError::Size)),
        (0x1_0000, Err(QueueError::Size)),
        (0x1_0008, Err(QueueError::Size)),
        (u32::MAX, Err(QueueError::Size)),
    ] {
        let mut queue = Queue::new(256);
        queue.set_size(size);
        queue.set_areas(|areas| *areas = driver.areas);
        queue.set_ready();
        assert_eq!(queue.start(SPLIT, &driver.memory), expected, "{size:#x}");
        assert_eq!(queue.ring().is_some(), expected.is_ok());
    }
}

#[test]
fn areas_must_be_aligned_apart_and_in_ram() {
    let ram = HostRam::new(RAM_SIZE);
    let memory = guest_memory(&ram);
    let end = RAM + RAM_SIZE as u64;
    let (d, a, u) = (RAM, RAM + 0x1000, RAM + 0x2000);
    let not_ram = QueueError::Area(GuestMemoryError::NotRam);
    for (areas, expected) in [
        ((d, a, u), None),
        ((d + 16, a + 2, u + 4), None),
        ((d + 8, a, u), Some(QueueError::Alignment)),
        ((d, a + 1, u), Some(QueueError::Alignment)),
        ((d, a, u + 2), Some(QueueError::Alignment)),
        ((RAM - 16, a, u), Some(not_ram)),
        ((end - 8 * 16, a, u), None),
        ((end - 7 * 16, a, u), Some(not_ram)),
        ((d, end - 22, u), None),
        ((d, end - 20, u), Some(not_ram)),
        ((d, a, end - 72), None),
        ((d, a, end - 68), Some(not_ram)),
        ((0, a, u), Some(not_ram)),
        ((d, u64::MAX - 1, u), Some(QueueError::Area(GuestMemoryError::Wraps))),
        ((d, d + 128, d + 152), None),
        ((d, d + 126, u), Some(QueueError::Overlap)),
        ((d, a, a), Some(QueueError::Overlap)),
        ((d, a, d), Some(QueueError::Overlap)),
    ] {
        let mut queue = Queue::new(8);
        let (descriptor, driver, device) = areas;
        queue.set_areas(|areas| *areas = Areas { descriptor, driver, device });
        queue.set_ready();
        let result = queue.start(SPLIT | Features::EVENT_IDX, &memory);
        assert_eq!(result, expected.map_or(Ok(()), Err), "{areas:#x?}");
    }
}

#[test]
fn an_enabled_queue_cannot_be_reconfigured() {
    let ram = HostRam::new(RAM_SIZE);
    let driver = Driver::new(guest_memory(&ram), 8);
    let mut queue = started(&driver, SPLIT);
    queue.set_size(4);
    queue.set_areas(|areas| *areas = Areas::default());
    assert_eq!((queue.size, queue.areas), (8, driver.areas));
    queue.reset();
    assert_eq!((queue.size, queue.areas), (256, Areas::default()));
    assert!(queue.ring().is_none());
}

/// Random traffic against a model.
mod properties {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u16 = 16;

    /// What the driver offers: buffers of a chain (length, writable), indirect or not; and how the
    /// device behaves: whether it completes the oldest or the newest, how many, and publishes.
    #[derive(Debug, Clone)]
    struct Step {
        buffers: Vec<(u16, bool)>,
        indirect: bool,
        newest_first: bool,
        complete: usize,
        put_back: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        let buffers = proptest::collection::vec((1..64_u16, any::<bool>()), 1..6);
        (buffers, any::<bool>(), any::<bool>(), 0..4_usize, any::<bool>()).prop_map(
            |(buffers, indirect, newest_first, complete, put_back)| Step {
                buffers,
                indirect,
                newest_first,
                complete,
                put_back,
            },
        )
    }

    /// The driver's book: which descriptors are free, and what each head stands for.
    #[derive(Default)]
    struct Book {
        free: Vec<u16>,
        held: Vec<(u16, Vec<u16>, Popped)>,
    }

    fn lay_out(driver: &Driver<'_>, book: &mut Book, step: &Step) -> Option<u16> {
        let mut buffers = step.buffers.clone();
        buffers.sort_by_key(|(_, writable)| *writable);
        let needed = if step.indirect { 1 } else { buffers.len() };
        if book.free.len() < needed {
            return None;
        }
        let at = book.free.len() - needed;
        let indices = book.free.split_off(at);
        let head = indices[0];
        let table = BUFFERS + 0x2000 + u64::from(head) * 256;
        let mut popped = (head, vec![], vec![]);
        for (at, (len, writable)) in buffers.iter().enumerate() {
            let address = BUFFERS + u64::from(head) * 512 + at as u64 * 64;
            let more = at + 1 < buffers.len();
            let flags = if *writable { WRITE } else { 0 } | if more { NEXT } else { 0 };
            let (place, index, next) = if step.indirect {
                (table, at as u16, at as u16 + 1)
            } else {
                let next = indices.get(at + 1).copied().unwrap_or(0xDEAD);
                (driver.areas.descriptor, indices[at], next)
            };
            driver.descriptor_at(place, index, (address, (*len).into(), flags, next));
            let list = if *writable { &mut popped.2 } else { &mut popped.1 };
            list.push((address - RAM, usize::from(*len)));
        }
        if step.indirect {
            driver.descriptor(head, (table, 16 * buffers.len() as u32, INDIRECT, 0xDEAD));
        }
        book.held.push((head, indices, popped));
        Some(head)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 64 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Every chain comes out once, in the order offered, as the driver wrote it, and goes back
        /// once, in whatever order; indices wrap wherever they start.
        #[test]
        fn every_chain_comes_out_once_and_goes_back_once(
            steps in proptest::collection::vec(step(), 1..(if cfg!(miri) { 12 } else { 200 })),
            event_idx: bool,
        ) {
            let ram = HostRam::new(RAM_SIZE);
            let mut driver = Driver::new(guest_memory(&ram), SIZE);
            let mut features = WITH_INDIRECT;
            features.set(Features::EVENT_IDX, event_idx);
            let mut queue = started(&driver, features);
            let ring = queue.ring().unwrap();
            let mut book = Book { free: (0..SIZE).collect(), held: vec![] };
            let mut taken: Vec<u16> = vec![];
            for (round, step) in steps.iter().enumerate() {
                if let Some(head) = lay_out(&driver, &mut book, step) {
                    driver.offer(head);
                    let expected = book.held.last().unwrap().2.clone();
                    if step.put_back {
                        prop_assert_eq!(pop(ring, &driver.memory), Ok(Some(expected.clone())));
                        ring.put_back(Head::new(head, 1, true));
                    }
                    prop_assert_eq!(pop(ring, &driver.memory), Ok(Some(expected)));
                    taken.push(head);
                }
                ring.begin_batch();
                prop_assert_eq!(pop(ring, &driver.memory), Ok(None));
                let mut done = vec![];
                for _ in 0..step.complete.min(taken.len()) {
                    let at = if step.newest_first { taken.len() - 1 } else { 0 };
                    let head = taken.remove(at);
                    ring.complete(named(head), round as u32);
                    done.push((u32::from(head), round as u32));
                }
                ring.publish();
                for expected in done {
                    prop_assert_eq!(driver.used(), Some(expected));
                    let at = book.held.iter().position(|it| u32::from(it.0) == expected.0);
                    let (_, indices, _) = book.held.remove(at.unwrap());
                    book.free.extend(indices);
                }
                prop_assert_eq!(driver.used(), None);
            }
        }

        /// Whatever is in the rings and tables, popping ends, and what comes out is RAM.
        #[test]
        fn hostile_memory_is_refused_or_resolved_never_followed_out_of_ram(
            words in proptest::collection::vec(any::<(u16, u16, u16, u16)>(), SIZE as usize * 2),
            heads in proptest::collection::vec(0..SIZE + 2, SIZE as usize),
            available in 0..SIZE + 2,
        ) {
            let ram = HostRam::new(RAM_SIZE);
            let mut driver = Driver::new(guest_memory(&ram), SIZE);
            for (index, (address, len, flags, next)) in words.iter().enumerate() {
                // Mostly plausible: near RAM, small flags, small indices.
                let address = RAM + u64::from(*address);
                let descriptor = (address, u32::from(*len) & 0x3FF, flags & 7, next % (SIZE + 1));
                let table = if index < usize::from(SIZE) { RAM } else { TABLE };
                driver.descriptor_at(table, index as u16 % SIZE, descriptor);
            }
            driver.descriptor(3, (TABLE, 16 * u32::from(SIZE), INDIRECT, 0));
            for head in &heads {
                driver.offer(*head);
            }
            driver.set_available(available);
            let mut queue = started(&driver, WITH_INDIRECT);
            let ring = queue.ring().unwrap();
            for _ in 0..=SIZE {
                match pop(ring, &driver.memory) {
                    Ok(Some((head, readable, writable))) => {
                        prop_assert!(head < SIZE);
                        for (offset, len) in readable.into_iter().chain(writable) {
                            prop_assert!(len > 0 && offset + len as u64 <= RAM_SIZE as u64);
                        }
                    }
                    Ok(None) | Err(_) => break,
                }
            }
            prop_assert!(ring.outstanding() <= SIZE);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "slow")]
    fn indices_wrap_past_65536_for_every_small_size() {
        for size in [1, 2, 4, 64] {
            for event_idx in [false, true] {
                let ram = HostRam::new(RAM_SIZE);
                let mut driver = Driver::new(guest_memory(&ram), size);
                let mut features = SPLIT;
                features.set(Features::EVENT_IDX, event_idx);
                let mut queue = started(&driver, features);
                let ring = queue.ring().unwrap();
                let mut done = 0_u32;
                while done < 70_000 {
                    let batch = (done % u32::from(size)) as u16 + 1;
                    for at in 0..batch {
                        driver.chain(at, &[(BUFFERS + u64::from(at), 1, true)]);
                        driver.offer(at);
                    }
                    driver.set_used_event(driver.used_idx().wrapping_add(batch - 1));
                    for at in 0..batch {
                        let chain = pop(ring, &driver.memory).unwrap().unwrap();
                        assert_eq!(chain, (at, vec![], vec![(0x4000 + u64::from(at), 1)]));
                        ring.complete(named(at), done);
                    }
                    assert!(ring.publish(), "the driver waits for the last of a batch");
                    for at in 0..batch {
                        assert_eq!(driver.used(), Some((at.into(), done)));
                    }
                    assert_eq!(driver.used(), None);
                    ring.begin_batch();
                    done += u32::from(batch);
                }
            }
        }
    }
}
