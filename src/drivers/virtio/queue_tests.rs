use proptest::prelude::*;

use super::*;
use crate::drivers::testing::FakeRam;

/// Registers of which only the ordering is used.
struct Order;

impl Registers for Order {
    fn read32(&self, _: usize) -> u32 {
        panic!("a queue reads no register")
    }
    fn write32(&self, _: usize, _: u32) {
        panic!("a queue writes no register")
    }
}

/// Lets the other side act at the moment of a barrier, where a race would have it.
struct Race<W: Fn(), A: Fn()> {
    at_write_barrier: W,
    at_full_barrier: A,
}

impl<W: Fn(), A: Fn()> Registers for Race<W, A> {
    fn read32(&self, _: usize) -> u32 {
        panic!("a queue reads no register")
    }
    fn write32(&self, _: usize, _: u32) {
        panic!("a queue writes no register")
    }
    fn order_dma_writes(&self) {
        (self.at_write_barrier)();
    }
    fn order_dma(&self) {
        (self.at_full_barrier)();
    }
}

const SIZE: u16 = 8;

/// The device's end of a queue of [`SIZE`] entries, as far as it is needed here.
struct Device<'m> {
    available: SharedSlice<'m>,
    used: SharedSlice<'m>,
    index: u16,
}

impl<'m> Device<'m> {
    fn new(queue: &SplitQueue<'m>) -> Self {
        Self { available: queue.available, used: queue.used, index: 0 }
    }

    /// Finishes `ids` as one batch; whether it would interrupt with EVENT_IDX.
    fn finish(&mut self, ids: &[u32]) -> bool {
        let old = self.index;
        for id in ids {
            self.used.store_u32(4 + usize::from(self.index % SIZE) * 8, *id).unwrap();
            self.index = self.index.wrapping_add(1);
        }
        self.used.store_u16(2, self.index).unwrap();
        let event = self.available.load_u16(4 + usize::from(SIZE) * 2).unwrap();
        (0..ids.len() as u16).any(|n| old.wrapping_add(n) == event)
    }

    /// Wants to be notified when avail.idx passes `index`.
    fn set_event(&self, index: u16) {
        self.used.store_u16(4 + usize::from(SIZE) * 8, index).unwrap();
    }
}

fn queue(ram: &FakeRam, event_index: bool) -> SplitQueue<'_> {
    SplitQueue::new(ram.allocate(4096), SIZE, event_index, false).unwrap()
}

#[test]
fn the_parts_are_aligned_and_apart() {
    let ram = FakeRam::new(8192);
    let queue = SplitQueue::new(ram.allocate(8192), 256, true, false).unwrap();
    let addresses = queue.addresses();
    let base = FakeRam::PA;
    assert_eq!(addresses.descriptors, Pa::new(base));
    assert_eq!(addresses.available, Pa::new(base + 4096));
    assert_eq!(addresses.used, Pa::new(base + 4096 + 576));
    assert_eq!(SplitQueue::bytes(256), 4096 + 576 + 6 + 256 * 8);
}

#[test]
fn impossible_sizes_and_short_memory_are_refused() {
    let ram = FakeRam::new(8192);
    let memory = ram.allocate(SplitQueue::bytes(8));
    for size in [0, 3, 7, 512] {
        assert!(SplitQueue::new(memory, size, true, false).is_none(), "{size}");
    }
    assert!(SplitQueue::new(memory, 8, true, false).is_some());
    assert!(SplitQueue::new(memory, 16, true, false).is_none());
    let crooked = ram.allocate(4096).subslice(8, 2048).unwrap();
    assert!(SplitQueue::new(crooked, 8, true, false).is_none());
}

#[test]
fn old_contents_of_the_memory_are_cleared() {
    let ram = FakeRam::new(4096);
    let memory = ram.allocate(4096);
    for offset in 0..4096 {
        memory.store_u8(offset, 0xff);
    }
    let mut queue = SplitQueue::new(memory, SIZE, false, true).unwrap();
    assert_eq!(queue.take_used(&Order), Ok(None));
    assert_eq!(queue.available.load_u16(0), Some(0));
}

#[test]
fn nothing_is_visible_before_it_is_published() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, false);
    queue.offer(5);
    queue.offer(2);
    assert_eq!(queue.available.load_u16(2), Some(0));
    assert!(queue.publish(&Order));
    assert_eq!(queue.available.load_u16(2), Some(2));
    assert_eq!(queue.available.load_u16(4), Some(5));
    assert_eq!(queue.available.load_u16(6), Some(2));
    assert!(!queue.publish(&Order), "nothing new");
}

#[test]
fn no_notify_is_honoured_without_event_index() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, false);
    queue.used.store_u16(0, 1);
    queue.offer(0);
    assert!(!queue.publish(&Order));
    queue.used.store_u16(0, 0);
    queue.offer(1);
    assert!(queue.publish(&Order));
}

/// pitfall Q1, from the driver's side.
#[test]
fn the_wish_for_a_notification_is_read_after_the_index_is_written() {
    for event_index in [false, true] {
        let ram = FakeRam::new(4096);
        let mut queue = queue(&ram, event_index);
        let device = Device::new(&queue);
        queue.used.store_u16(0, 1);
        device.set_event(0x8000);
        queue.offer(3);
        let race = Race {
            at_write_barrier: || {
                assert_eq!(device.available.load_u16(4), Some(3), "the entry first");
                assert_eq!(device.available.load_u16(2), Some(0), "then the index");
            },
            // The device finds nothing and goes to sleep, just before the index is written.
            at_full_barrier: || {
                assert_eq!(device.available.load_u16(2), Some(1), "then the device's wish");
                device.used.store_u16(0, 0);
                device.set_event(0);
            },
        };
        assert!(queue.publish(&race));
    }
}

#[test]
fn a_completion_that_came_before_the_wish_for_an_interrupt_is_found() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, true);
    queue.offer(3);
    queue.publish(&Order);
    queue.set_interrupts(true);
    let device = std::cell::RefCell::new(Device::new(&queue));
    let race = Race {
        at_write_barrier: || (),
        at_full_barrier: || {
            device.borrow_mut().finish(&[3]);
        },
    };
    assert_eq!(queue.take_used(&race), Ok(Some(3)));
}

#[test]
fn an_index_that_moves_past_what_is_outstanding_is_a_violation() {
    for jump in [2, 9, 0x8000, 0xffff] {
        let ram = FakeRam::new(4096);
        let mut queue = queue(&ram, true);
        queue.offer(0);
        queue.publish(&Order);
        queue.offer(1); // not published: not the device's to finish
        queue.used.store_u16(2, jump);
        assert_eq!(queue.take_used(&Order), Err(RingViolation), "{jump}");
    }
}

#[test]
fn one_interrupt_comes_for_the_next_completion_after_all_were_taken() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, true);
    let mut device = Device::new(&queue);
    queue.set_interrupts(true);
    for id in 0..4 {
        queue.offer(id);
    }
    queue.publish(&Order);
    assert!(device.finish(&[0]));
    assert!(!device.finish(&[1]), "not yet taken");
    assert_eq!(queue.take_used(&Order), Ok(Some(0)));
    assert_eq!(queue.take_used(&Order), Ok(Some(1)));
    assert!(device.finish(&[2]), "all were taken, although None was not seen");
    assert_eq!(queue.take_used(&Order), Ok(Some(2)));
    assert_eq!(queue.take_used(&Order), Ok(None));
    assert!(device.finish(&[3]));
}

#[test]
fn a_batch_half_taken_does_not_interrupt_again() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, true);
    let mut device = Device::new(&queue);
    queue.set_interrupts(true);
    for id in 0..4 {
        queue.offer(id);
    }
    queue.publish(&Order);
    assert!(device.finish(&[0, 1]));
    assert_eq!(queue.take_used(&Order), Ok(Some(0)));
    assert!(!device.finish(&[2]));
    assert_eq!(queue.take_used(&Order), Ok(Some(1)));
    assert_eq!(queue.take_used(&Order), Ok(Some(2)));
    assert_eq!(queue.take_used(&Order), Ok(None));
    assert!(device.finish(&[3]));
}

#[test]
#[cfg_attr(miri, ignore = "70,000 rounds")]
fn interrupts_that_are_off_stay_off_past_the_index_wrap() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, true);
    let mut device = Device::new(&queue);
    for round in 0..70_000u32 {
        queue.offer((round % 8) as u16);
        queue.publish(&Order);
        assert!(!device.finish(&[round % 8]), "round {round}");
        assert_eq!(queue.take_used(&Order), Ok(Some(round % 8)));
    }
}

#[test]
fn without_event_index_a_flag_turns_interrupts_off() {
    let ram = FakeRam::new(4096);
    let mut queue = queue(&ram, false);
    assert_eq!(queue.available.load_u16(0), Some(1));
    queue.set_interrupts(true);
    assert_eq!(queue.available.load_u16(0), Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 64 }))]

    /// Whatever the batches, an index is notified exactly when it passes the event, and what
    /// is finished comes out once and in the order it was finished in; past the index wrap.
    #[test]
    fn batches_are_notified_and_finished(
        start in prop::sample::select(vec![0u16, 0x7ff0, 0xfff0]),
        batches in prop::collection::vec((1u16..=SIZE, 0u16..12), 1..40),
    ) {
        let ram = FakeRam::new(4096);
        let mut queue = queue(&ram, true);
        let mut device = Device::new(&queue);
        (queue.next_available, queue.published) = (start, start);
        (queue.last_used, queue.seen_used, device.index) = (start, start, start);
        queue.used.store_u16(2, start);
        for (count, ahead) in batches {
            let event = queue.published.wrapping_add(ahead);
            device.set_event(event);
            let mut heads: Vec<u32> = (0..u32::from(count)).collect();
            for head in &heads {
                queue.offer(*head as u16);
            }
            prop_assert_eq!(queue.publish(&Order), ahead < count);
            prop_assert_eq!(queue.take_used(&Order), Ok(None));
            heads.reverse();
            device.finish(&heads);
            for head in heads {
                prop_assert_eq!(queue.take_used(&Order), Ok(Some(head)));
            }
            prop_assert_eq!(queue.take_used(&Order), Ok(None));
        }
    }
}
