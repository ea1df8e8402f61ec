//! Which of a core's vCPUs runs next: each gets time by its weight, and who waited comes first.
//!
//! A vCPU never leaves its core, so each core has a queue of its own, and no lock. The rule is that
//! of weighted fair queueing: time that was used, divided by the weight, is kept for each, and the
//! one with the least of it runs.

use crate::backend::clock::Ticks;
use crate::gic::MAX_VCPUS;

/// vCPUs a core can have.
pub const MAX_ENTITIES: usize = 8;

const _: () = assert!(MAX_ENTITIES >= MAX_VCPUS);

/// A share of a core's time, relative to the weights of the other vCPUs there: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    /// What a VM has that asks for nothing else.
    pub const DEFAULT: Self = Self(100);

    /// A weight, `None` if it is not from 1 to 1000.
    pub const fn new(weight: u32) -> Option<Self> {
        match weight {
            1..=1000 => Some(Self(weight as u16)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Used time a tick, for this weight.
    const fn per_tick(self) -> u64 {
        // Never 0; but the compiler is not told.
        match SCALE.checked_div(self.0 as u64) {
            Some(per_tick) => per_tick,
            None => SCALE,
        }
    }
}

/// Used time a tick at weight 1: for weights up to 1000 the quotient is exact to 0.1 %.
const SCALE: u64 = 1 << 20;
/// Used times are moved down together before they come near to overflow.
const HIGH: u64 = 1 << 62;

#[derive(Clone, Copy, Debug)]
struct Entity {
    per_tick: u64,
    used: u64,
    ready: bool,
}

/// The vCPUs of a core, by number.
#[derive(Debug, Default)]
pub struct RunQueue {
    entities: heapless::Vec<Entity, MAX_ENTITIES>,
    /// What whoever is ready has used at the least; it only grows.
    floor: u64,
}

impl RunQueue {
    /// Nobody.
    pub const fn new() -> Self {
        Self { entities: heapless::Vec::new(), floor: 0 }
    }

    /// Another vCPU, not ready; its number. `None` if there are [`MAX_ENTITIES`].
    pub fn add(&mut self, weight: Weight) -> Option<usize> {
        let number = self.entities.len();
        let entity = Entity { per_tick: weight.per_tick(), used: 0, ready: false };
        self.entities.push(entity).ok()?;
        Some(number)
    }

    /// Whether there is more than one: then whoever waits must give the core up.
    pub fn is_shared(&self) -> bool {
        self.entities.len() > 1
    }

    /// Whether `number` is ready.
    pub fn is_ready(&self, number: usize) -> bool {
        self.entities.get(number).is_some_and(|entity| entity.ready)
    }

    /// `number` can run. Who slept has no claim on the time that it did not use: it comes first once,
    /// and not for as long as it slept.
    pub fn wake(&mut self, number: usize) {
        if let Some(entity) = self.entities.get_mut(number)
            && !entity.ready
        {
            entity.ready = true;
            entity.used = entity.used.max(self.floor);
        }
    }

    /// `number` cannot run.
    pub fn sleep(&mut self, number: usize) {
        if let Some(entity) = self.entities.get_mut(number) {
            entity.ready = false;
        }
    }

    /// `number` has run for `time`.
    pub fn charge(&mut self, number: usize, time: Ticks) {
        if let Some(entity) = self.entities.get_mut(number) {
            entity.used = entity.used.saturating_add(time.0.saturating_mul(entity.per_tick));
            if entity.used > HIGH {
                self.rebase();
            }
        }
        let ready = self.entities.iter().filter(|entity| entity.ready);
        if let Some(least) = ready.map(|entity| entity.used).min() {
            self.floor = self.floor.max(least);
        }
    }

    /// The one to run: of those that are ready the one that used the least; of equals, the first
    /// after `last`, which ran last.
    pub fn pick(&self, last: usize) -> Option<usize> {
        let count = self.entities.len();
        let turn = |offset: usize| {
            let number = last + 1 + offset;
            if number >= count { number - count } else { number }
        };
        let mut best: Option<(u64, usize)> = None;
        for number in (0..count).map(turn) {
            let Some(entity) = self.entities.get(number).filter(|entity| entity.ready) else {
                continue;
            };
            if best.is_none_or(|(used, _)| entity.used < used) {
                best = Some((entity.used, number));
            }
        }
        best.map(|(_, number)| number)
    }

    /// Whether another vCPU than `running` is ready: then `running` may only have a slice.
    pub fn has_others(&self, running: usize) -> bool {
        self.entities.iter().enumerate().any(|(number, entity)| number != running && entity.ready)
    }

    fn rebase(&mut self) {
        let least = self.entities.iter().map(|entity| entity.used).min().unwrap_or(0);
        self.floor = self.floor.saturating_sub(least).min(HIGH / 2);
        for entity in &mut self.entities {
            // Who has used nearly nothing since is too far behind to be told apart anyway.
            entity.used = (entity.used - least).min(HIGH / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(weights: &[u32]) -> RunQueue {
        let mut queue = RunQueue::new();
        for (number, weight) in weights.iter().enumerate() {
            assert_eq!(queue.add(Weight::new(*weight).unwrap()), Some(number));
            queue.wake(number);
        }
        queue
    }

    /// Runs whoever is picked for `slice`, `turns` times; the time each got.
    fn run(queue: &mut RunQueue, turns: usize, slice: u64) -> Vec<u64> {
        let mut time = vec![0u64; queue.entities.len()];
        let mut last = 0;
        for _ in 0..turns {
            last = queue.pick(last).unwrap();
            queue.charge(last, Ticks(slice));
            time[last] = time[last].wrapping_add(slice);
        }
        time
    }

    #[test]
    fn weights_are_from_1_to_1000() {
        assert_eq!(Weight::new(0), None);
        assert_eq!(Weight::new(1001), None);
        assert!(Weight::new(1).is_some() && Weight::new(1000).is_some());
        assert_eq!(Weight::new(100), Some(Weight::DEFAULT));
    }

    #[test]
    fn a_core_has_room_for_eight() {
        let mut queue = queue(&[100; MAX_ENTITIES]);
        assert_eq!(queue.add(Weight::DEFAULT), None);
    }

    #[test]
    fn equals_take_turns() {
        let mut queue = queue(&[100, 100, 100]);
        let mut order = vec![];
        let mut last = 0;
        for _ in 0..6 {
            last = queue.pick(last).unwrap();
            order.push(last);
            queue.charge(last, Ticks(10));
        }
        assert_eq!(order, [1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn nobody_is_picked_when_nobody_is_ready() {
        let mut queue = queue(&[100, 100]);
        queue.sleep(0);
        assert_eq!(queue.pick(0), Some(1));
        assert!(!queue.has_others(1) && queue.has_others(0));
        queue.sleep(1);
        assert_eq!(queue.pick(0), None);
    }

    #[test]
    fn who_slept_comes_first_once_and_no_longer() {
        let mut queue = queue(&[100, 100]);
        queue.sleep(1);
        run(&mut queue, 1000, 50);
        queue.wake(1);
        // Equal to the other now: it is its turn, and then they alternate.
        assert_eq!(queue.pick(0), Some(1));
        let time = run(&mut queue, 100, 50);
        assert_eq!(time, [50 * 50, 50 * 50]);
    }

    #[test]
    fn waking_who_is_ready_takes_nothing_from_it() {
        let mut queue = queue(&[100, 100]);
        queue.charge(1, Ticks(1000));
        queue.wake(0);
        assert_eq!(queue.pick(1), Some(0));
        assert_eq!(run(&mut queue, 20, 50), [1000, 0]);
    }

    #[test]
    fn time_beyond_all_measure_does_not_upset_the_order() {
        let mut queue = queue(&[1, 1]);
        queue.charge(0, Ticks(u64::MAX));
        queue.charge(1, Ticks(100));
        assert_eq!(queue.pick(0), Some(1));
        run(&mut queue, 10, u64::MAX / 4);
        let mut other = RunQueue::new();
        assert_eq!(other.pick(3), None);
        other.charge(3, Ticks(1));
        other.wake(3);
    }

    proptest! {
        /// Slices differ in length; whoever is ready all the time gets its share to within a slice.
        #[test]
        fn everybody_gets_a_share_by_weight(
            weights in prop::collection::vec(1u32..=1000, 1..=MAX_ENTITIES),
            slices in prop::collection::vec(1u64..1000, 2000..3000),
        ) {
            let mut queue = queue(&weights);
            let mut time = vec![0u64; weights.len()];
            let mut last = 0;
            for slice in &slices {
                last = queue.pick(last).unwrap();
                queue.charge(last, Ticks(*slice));
                time[last] += slice;
            }
            for (a, wa) in time.iter().zip(&weights) {
                for (b, wb) in time.iter().zip(&weights) {
                    // Used time per weight differs by no more than one slice each, 0.2 % of rounding.
                    let (a, b) = (*a as f64 / f64::from(*wa), *b as f64 / f64::from(*wb));
                    let slack = 1000.0 / f64::from(*wa) + 1000.0 / f64::from(*wb);
                    prop_assert!((a - b).abs() <= slack + 0.002 * a.max(b), "{time:?} {weights:?}");
                }
            }
        }

        /// Sleepers and wakers at random: nobody who is ready waits for longer than all others
        /// together need for the lead they can have.
        #[test]
        fn nobody_who_is_ready_starves(
            events in prop::collection::vec((0usize..4, any::<bool>()), 1..500),
        ) {
            let mut queue = queue(&[100; 4]);
            let mut waited = [0u32; 4];
            let mut last = 0;
            for (number, awake) in events {
                if awake { queue.wake(number) } else { queue.sleep(number); waited[number] = 0; }
                let Some(next) = queue.pick(last) else { continue };
                last = next;
                queue.charge(last, Ticks(10));
                for (number, waited) in waited.iter_mut().enumerate() {
                    *waited = if queue.is_ready(number) && number != last { *waited + 1 } else { 0 };
                    prop_assert!(*waited <= 8, "vCPU {number} has waited {waited} slices");
                }
            }
        }
    }
}
