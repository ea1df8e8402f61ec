//! An entropy device, its driver, and a source that is not always good.

use std::collections::BTreeSet;

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::entropy::{EntropySource, NoEntropy, Seed, SharedSource};
use sparkler::virtio::devices::rng::{MOST_AT_ONCE, Rng};
use sparkler::virtio::{MmioTransport, NextPoll};

use crate::guest::{AREAS, BUFFERS, Bus, memories};
use crate::input::Input;

const WRITE: u16 = 2;
const SIZE: u16 = 16;
const MAX_ACTIONS: usize = 200;

/// Gives what the input says, in turn: a new seed, the same again, nothing yet, a failure.
struct Moody {
    moods: Vec<u8>,
    seeds: u64,
}

impl EntropySource for Moody {
    fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
        match self.moods.pop().unwrap_or(0) & 7 {
            5 => return Err(NoEntropy::NotYet),
            6 => return Err(NoEntropy::Failed),
            7 => {}
            _ => self.seeds += 1,
        }
        for (at, word) in (0..).zip(seed.as_chunks_mut().0) {
            *word = (self.seeds << 2 | at).to_le_bytes();
        }
        Ok(())
    }
}

/// Requests with any room, answered by a source of any mood: each once, with bytes of their own.
pub fn rng(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, _) = memories();
    let mut source = Moody { moods: input.bytes(16).to_vec(), seeds: 1 };
    let source = SharedSource::new(&mut source);
    let mut device = Rng::new(&source, Frequency::new(1000).unwrap());
    let mut transport = MmioTransport::new(&mut device, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let (mut available, mut seen) = (0_u16, 0_u16);
    let mut pending = [None; SIZE as usize];
    let mut pieces = BTreeSet::new();
    let begin = |bus: &mut Bus<'_, '_, '_>| {
        guest.put(AREAS.descriptor, &[0; 0x1000]);
        guest.put(AREAS.driver, &[0; 0x1000]);
        bus.negotiate(1 << 32);
        bus.configure_queue(SIZE, &AREAS);
        bus.set(0x70, 15);
    };
    begin(&mut bus);
    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        match input.below(8) {
            0..=3 => {
                let Some(head) = pending.iter().position(Option::is_none) else { continue };
                let len = match input.below(4) {
                    0 => 1 + u32::from(input.u8()),
                    1 => MOST_AT_ONCE as u32 - 2 + u32::from(input.u8()) % 4,
                    _ => 1 + u32::from(input.u16()) % 0x6000,
                };
                // All at one place: what is compared is what was written last.
                let at = AREAS.descriptor + 16 * head as u64;
                guest.descriptor(at, (BUFFERS, len, WRITE, 0));
                pending[head] = Some(len);
                guest.put_u16(AREAS.driver + 4 + 2 * u64::from(available % SIZE), head as u16);
                available = available.wrapping_add(1);
                guest.put_u16(AREAS.driver + 2, available);
            }
            4 | 5 => bus.set(0x50, 0),
            6 => {
                bus.now = bus.now.after(Ticks(u64::from(input.u16())));
                bus.poll();
            }
            _ => {
                begin(&mut bus);
                (available, seen, pending) = (0, 0, [None; SIZE as usize]);
            }
        }
        let mut given = 0;
        let mut last = None;
        while guest.get_u16(AREAS.device + 2) != seen {
            let at = AREAS.device + 4 + 8 * u64::from(seen % SIZE);
            let [head, len] = [0, 4].map(|offset| u32::from_le_bytes(guest.get(at + offset)));
            seen = seen.wrapping_add(1);
            let room = pending[head as usize].take().expect("answered twice, or never asked");
            assert!((1..=room).contains(&len), "{len} bytes of {room}");
            given += len as usize;
            last = Some(len);
        }
        assert!(given <= MOST_AT_ONCE, "{given} bytes at once");
        if last.is_some_and(|len| len >= 16) {
            assert!(pieces.insert(guest.get::<16>(BUFFERS)), "bytes that were given before");
        }
    }
    // The source is good from here on, once its moods are over.
    for _ in 0..1000 {
        match bus.transport.next_poll() {
            NextPoll::At(time) => bus.now = bus.now.max(time),
            NextPoll::Idle => break,
            _ => {}
        }
        bus.poll();
    }
    bus.set(0x50, 0);
    for _ in 0..100 {
        bus.now = bus.now.after(Ticks(2000));
        bus.poll();
    }
    assert_eq!(bus.transport.next_poll(), NextPoll::Idle);
    assert_eq!(guest.get_u16(AREAS.device + 2), available, "a request without an answer");
    assert_eq!(bus.get(0x70), 15, "{:?}", bus.transport.fault());
}
