//! The entropy device against a driver that knows nothing of us: the `virtio-drivers` crate.
#![cfg(not(target_os = "none"))]
#![allow(unsafe_code)]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unimplemented, clippy::unwrap_used)]

mod host_support;

use std::collections::BTreeSet;

use host_support::{GuestHal, Machine};
use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::entropy::{EntropySource, NoEntropy, Seed, SharedSource};
use sparkler::virtio::Features;
use sparkler::virtio::devices::rng::{MOST_AT_ONCE, Rng};
use virtio_drivers::device::rng::VirtIORng;

/// A source that always has something new.
struct Counter(u64);

impl EntropySource for Counter {
    fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
        for word in seed.as_chunks_mut().0 {
            self.0 += 1;
            *word = self.0.to_le_bytes();
        }
        Ok(())
    }
}

#[test]
fn every_request_gets_other_bytes_with_every_combination_of_ring_features() {
    let (event, indirect) = (Features::EVENT_IDX, Features::INDIRECT_DESC);
    for features in [Features::empty(), event, indirect, event | indirect] {
        let source = Box::leak(Box::new(SharedSource::new(Box::leak(Box::new(Counter(0))))));
        let device = Rng::new(source, Frequency::new(1000).unwrap());
        let machine = Machine::new(device, features);
        let mut driver = VirtIORng::<GuestHal, Machine>::new(machine.clone()).unwrap();
        let mut seen = BTreeSet::new();
        // Past the wrap of the ring's indices.
        for _ in 0..66_000 {
            let mut bytes = [0; 16];
            assert_eq!(driver.request_entropy(&mut bytes), Ok(16));
            assert!(seen.insert(bytes));
        }
        let mut much = vec![0; MOST_AT_ONCE + 100];
        assert_eq!(driver.request_entropy(&mut much), Ok(MOST_AT_ONCE));
        assert!(much[MOST_AT_ONCE..].iter().all(|byte| *byte == 0));
        assert!(much[..MOST_AT_ONCE].chunks(16).all(|piece| !seen.contains(piece)));
        assert_eq!(machine.get(0x70), 15);
    }
}
