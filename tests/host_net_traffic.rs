//! The network device under random traffic by a driver of both rings, over a loopback: frames in
//! flight and out of order, buffers of all lengths, merged and not, resets of the device and of single
//! queues, and saves that put the buffers back. What comes back was sent, whole and in order.
#![cfg(not(target_os = "none"))]
// Lints for code that serves guests; a test may fail loudly.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::collections::VecDeque;

use sparkler::backend::clock::Ticks;
use sparkler::backend::loopback::{Completion, Loopback};
use sparkler::backend::net::MacAddress;
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa};
use sparkler::virtio::devices::net::{MRG_RXBUF, Net};
use sparkler::virtio::{Features, MmioTransport, NextPoll, Width, WriteOutcome};

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x10_0000;
/// A page for every chain, of either queue.
const BUFFERS: u64 = RAM + 0x1_0000;
const SIZE: u16 = 32;
const NOW: Ticks = Ticks(0);

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A small generator, so that a seed says all.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// The driver's side of one queue, of single and double buffers.
struct Ring<'m> {
    memory: GuestMemory<'m>,
    index: u16,
    packed: bool,
    /// Descriptors (packed) or chains (split) made available, and seen used.
    put: u64,
    seen: u64,
    /// By name: descriptors of its chain, if it is in use. Names are even.
    chains: [Option<u16>; SIZE as usize],
}

impl<'m> Ring<'m> {
    fn new(memory: &GuestMemory<'m>, index: u16, packed: bool) -> Self {
        let ring =
            Self { memory: memory.clone(), index, packed, put: 0, seen: 0, chains: [None; 32] };
        ring.write(ring.area(0), &[0; 0x1000]);
        ring
    }

    fn area(&self, which: u64) -> u64 {
        RAM + 0x1000 * u64::from(self.index) + 0x400 * which
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.slice(Ipa::new(address), bytes.len()).unwrap().write_bytes(0, bytes).unwrap();
    }

    fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(Ipa::new(address), len).unwrap().read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    fn word(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    fn enable(&self, device: &mut MmioTransport<'_, '_>) {
        set(device, 0x30, self.index.into());
        set(device, 0x38, SIZE.into());
        for (low, which) in [(0x80, 0), (0x90, 1), (0xA0, 2)] {
            set(device, low, self.area(which) as u32);
            set(device, low + 4, 0);
        }
        set(device, 0x44, 1);
    }

    /// Where the buffers of a chain are.
    fn page(&self, name: u16) -> u64 {
        BUFFERS + 0x1000 * u64::from(self.index * SIZE + name)
    }

    fn vacant(&self) -> Option<u16> {
        (0..SIZE).step_by(2).find(|name| self.chains[usize::from(*name)].is_none())
    }

    fn owner(&self, count: u64) -> (u64, bool) {
        let size = u64::from(SIZE);
        (self.area(0) + count % size * 16, (count / size).is_multiple_of(2))
    }

    /// Makes `len` bytes of the page of `name` available, in two buffers if `cut` is not 0.
    fn offer(&mut self, name: u16, len: u32, cut: u32, writable: bool) {
        let base = self.page(name);
        let cut = if cut < len { cut } else { 0 };
        let parts: &[(u64, u32)] = if cut == 0 {
            &[(base, len)]
        } else {
            &[(base, cut), (base + u64::from(cut), len - cut)]
        };
        let write = if writable { 2 } else { 0 };
        for (at, (address, len)) in parts.iter().enumerate().rev() {
            let more = u16::from(at + 1 < parts.len());
            let (place, rest) = if self.packed {
                let (place, wrap) = self.owner(self.put + at as u64);
                (place, [name, write | more | if wrap { AVAIL } else { USED }])
            } else {
                let index = name + at as u16;
                (self.area(0) + 16 * u64::from(index), [write | more, index + 1])
            };
            self.write(place, &address.to_le_bytes());
            self.write(place + 8, &len.to_le_bytes());
            self.write(place + 12, &rest[0].to_le_bytes());
            self.write(place + 14, &rest[1].to_le_bytes());
        }
        self.chains[usize::from(name)] = Some(parts.len() as u16);
        if self.packed {
            self.put += parts.len() as u64;
        } else {
            let slot = self.put % u64::from(SIZE);
            self.write(self.area(1) + 4 + 2 * slot, &name.to_le_bytes());
            self.put += 1;
            self.write(self.area(1) + 2, &(self.put as u16).to_le_bytes());
        }
    }

    fn used(&mut self) -> Option<(u16, usize)> {
        let (name, len) = if self.packed {
            let (place, wrap) = self.owner(self.seen);
            let owned =
                self.word(place + 14) & (AVAIL | USED) == if wrap { AVAIL | USED } else { 0 };
            if !owned || self.seen == self.put {
                return None;
            }
            (self.word(place + 12), place + 8)
        } else {
            if self.word(self.area(2) + 2) == self.seen as u16 {
                return None;
            }
            let place = self.area(2) + 4 + 8 * (self.seen % u64::from(SIZE));
            (self.word(place), place + 4)
        };
        let len = u32::from_le_bytes(self.read(len, 4).try_into().unwrap());
        let chain = self.chains[usize::from(name)].take().expect("answered twice, or never asked");
        self.seen += if self.packed { chain.into() } else { 1 };
        Some((name, len as usize))
    }
}

fn set(device: &mut MmioTransport<'_, '_>, offset: u16, value: u32) {
    for _ in 0..100 {
        if device.write(offset, Width::Word, value.into(), NOW) == WriteOutcome::Done {
            return;
        }
        device.poll(NOW);
    }
    panic!("the store to {offset:#x} never ends");
}

fn start(device: &mut MmioTransport<'_, '_>, features: Features, rings: &[Ring<'_>]) {
    for status in [0, 1, 3] {
        set(device, 0x70, status);
    }
    for page in 0..2 {
        set(device, 0x24, page);
        set(device, 0x20, features.page(page));
    }
    set(device, 0x70, 11);
    rings.iter().for_each(|ring| ring.enable(device));
    set(device, 0x70, 15);
    assert_eq!(device.read(0x70, Width::Word), 15, "{:?}", device.fault());
}

/// Frames that came back.
fn run(seed: u64, features: Features, completion: Completion, steps: usize) -> usize {
    let mut random = Random(seed | 1);
    let ram = HostRam::new(RAM_SIZE);
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), ram.slice(Pa::new(0x8_0000_0000))).is_ok());
    let mut port = Loopback::new(MacAddress([2; 6]), 1500).with_completion(completion);
    let mut net = Net::new(&mut port);
    let mut device = MmioTransport::new(&mut net, memory.clone());
    let packed = features.contains(Features::RING_PACKED);
    let new = |index| Ring::new(&memory, index, packed);
    let mut rings = [new(0), new(1)];
    start(&mut device, features, &rings);
    let mut sent: VecDeque<Vec<u8>> = VecDeque::new();
    let (mut stamp, mut came) = (0_usize, 0);
    for _ in 0..steps {
        let [receive, transmit] = &mut rings;
        match random.below(40) {
            0..14 => {
                let Some(name) = receive.vacant() else { continue };
                let len = if random.below(2) == 0 { 1526 } else { 12 + random.below(2000) as u32 };
                receive.offer(name, len, random.below(60) as u32, true);
                set(&mut device, 0x50, 0);
            }
            14..28 => {
                let Some(name) = transmit.vacant() else { continue };
                stamp += 1;
                let len = 14 + random.below(1501);
                let frame: Vec<u8> =
                    (0..len).map(|at| ((stamp * 31) ^ at ^ (at >> 8)) as u8).collect();
                transmit.write(transmit.page(name), &[0; 12]);
                transmit.write(transmit.page(name) + 12, &frame);
                transmit.offer(name, 12 + len as u32, random.below(60) as u32, false);
                sent.push_back(frame);
                set(&mut device, 0x50, 1);
            }
            28..36 => device.poll(NOW),
            36 => {
                device.prepare_save(NOW);
                if random.below(2) == 0 {
                    device.poll(NOW);
                }
            }
            37 if features.contains(Features::RING_RESET) => {
                let index = random.below(2) as u16;
                set(&mut device, 0x30, index.into());
                set(&mut device, 0xC0, 1);
                for _ in 0..100 {
                    if device.read(0xC0, Width::Word) == 0 {
                        break;
                    }
                    device.poll(NOW);
                }
                assert_eq!(device.read(0x44, Width::Word), 0);
                rings[usize::from(index)] = new(index);
                rings[usize::from(index)].enable(&mut device);
            }
            38 if random.below(4) == 0 => {
                set(&mut device, 0x70, 0);
                rings = [new(0), new(1)];
                start(&mut device, features, &rings);
            }
            _ => {
                while let Some((_, len)) = transmit.used() {
                    assert_eq!(len, 0);
                }
                while let Some((name, len)) = receive.used() {
                    let mut frame = receive.read(receive.page(name), len);
                    let buffers = u16::from_le_bytes([frame[10], frame[11]]);
                    assert!(buffers == 1 || features.contains(MRG_RXBUF));
                    for _ in 1..buffers {
                        let (name, len) = receive.used().expect("all buffers of a frame");
                        frame.extend(receive.read(receive.page(name), len));
                    }
                    assert_eq!(frame[..10], [0; 10]);
                    // Those before it found no buffer, or went with a reset.
                    let at = sent.iter().position(|sent| *sent == frame[12..]);
                    sent.drain(..=at.expect("a frame that was never sent, or out of order"));
                    came += 1;
                }
            }
        }
        assert_eq!(device.read(0x70, Width::Word), 15, "{:?}", device.fault());
    }
    for _ in 0..20 {
        device.poll(NOW);
    }
    assert_eq!(device.next_poll(), NextPoll::OnEvent);
    while rings[1].used().is_some() {}
    assert!(rings[1].chains.iter().all(Option::is_none), "frames that were never done with");
    came
}

#[test]
fn what_comes_back_was_sent_with_every_combination_of_features() {
    let bits = [Features::RING_PACKED, Features::EVENT_IDX, Features::RING_RESET, MRG_RXBUF];
    for mask in 0..1_usize << bits.len() {
        let chosen = bits.iter().enumerate().filter(|(at, _)| mask >> at & 1 != 0);
        let features = chosen.fold(Features::VERSION_1, |set, (_, bit)| set | *bit);
        for completion in [Completion::AtOnce, Completion::Later, Completion::LaterReversed] {
            let came = run(0x5EED + mask as u64 * 0x1_0001, features, completion, 20_000);
            assert!(came > 500, "{features:?} {completion:?}: {came} frames");
        }
    }
}
