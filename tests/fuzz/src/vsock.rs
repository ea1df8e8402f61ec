//! Socket devices of three guests: packets with any header, of any length, to whomever, with buffers that are
//! posted or not, resets, and commands at CID 2.

use std::sync::{Mutex, OnceLock, PoisonError};

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::backend::vsock::{Desk, Fabric, HEADER, Kinds, PortCell, PortConfig, is_valid};
use sparkler::backend::wake::{Wake, Waker};
use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa};
use sparkler::virtio::devices::vsock::Vsock;
use sparkler::virtio::{MmioTransport, NextPoll, Width};

use crate::input::Input;

const MAX_STEPS: usize = 300;
const GUESTS: usize = 3;
/// Entries of every queue, and of the ring for events.
const SIZE: u16 = 8;
const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x1_0000;
/// Where packets are put together, and where buffers are: a slot for each entry.
const OUT: u64 = RAM + 0x1000;
const OUT_SLOT: u64 = 0x1000;
const IN: u64 = RAM + 0x9000;
const IN_SLOT: u64 = 0xE00;

struct Nobody;

impl Wake for Nobody {
    fn wake(&self, _: u8) {}
}

struct Guest {
    transport: MmioTransport<'static, 'static>,
    memory: GuestMemory<'static>,
    available: [u16; 3],
    seen: [u16; 3],
    cid: u32,
}

/// Where the rings of a queue are.
fn ring(queue: u64) -> [u64; 3] {
    let at = RAM + queue * 0x400;
    [at, at + 0x100, at + 0x200]
}

impl Guest {
    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.slice(Ipa::new(address), bytes.len()).unwrap().write_bytes(0, bytes).unwrap();
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.slice(Ipa::new(address), N).unwrap().read_bytes(0, &mut bytes).unwrap();
        bytes
    }

    fn set(&mut self, offset: u16, value: u32, now: u64) {
        let _ = self.transport.write(offset, Width::Word, value.into(), Ticks(now));
    }

    fn start(&mut self, features: u32, now: u64) {
        for status in [0, 1, 3] {
            self.set(0x70, status, now);
        }
        for (page, features) in [(0, features & 7), (1, 1)] {
            self.set(0x24, page, now);
            self.set(0x20, features, now);
        }
        self.set(0x70, 11, now);
        (self.available, self.seen) = ([0; 3], [0; 3]);
        for queue in 0..3u64 {
            self.put(ring(queue)[0], &[0; 0x400]);
            self.set(0x30, queue as u32, now);
            self.set(0x38, SIZE.into(), now);
            for (low, address) in [0x80, 0x90, 0xA0].into_iter().zip(ring(queue)) {
                self.set(low, address as u32, now);
                self.set(low + 4, 0, now);
            }
            self.set(0x44, 1, now);
        }
        self.set(0x70, 15, now);
        assert_eq!(self.transport.read(0x70, Width::Word), 15);
    }

    /// Offers a buffer of a queue, if an entry is free.
    fn offer(&mut self, queue: usize, address: u64, len: u32, writable: bool, now: u64) {
        let [descriptors, driver, _] = ring(queue as u64);
        let slot = self.available[queue] % SIZE;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12] = if writable { 2 } else { 0 };
        self.put(descriptors + 16 * u64::from(slot), &descriptor);
        self.put(driver + 4 + 2 * u64::from(slot), &slot.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.put(driver + 2, &self.available[queue].to_le_bytes());
        self.set(0x50, queue as u32, now);
    }

    fn has_room(&self, queue: usize) -> bool {
        self.available[queue].wrapping_sub(self.seen[queue]) < SIZE
    }

    /// What the device is done with: queues are used in order, and no more than was there.
    fn look(&mut self) {
        for queue in 0..3usize {
            let device = ring(queue as u64)[2];
            while u16::from_le_bytes(self.get(device + 2)) != self.seen[queue] {
                let slot = self.seen[queue] % SIZE;
                let used: [u8; 8] = self.get(device + 4 + 8 * u64::from(slot));
                let [head, len] =
                    [0, 4].map(|at| u32::from_le_bytes(used[at..at + 4].try_into().unwrap()));
                assert_eq!(head, u32::from(slot), "out of order");
                match queue {
                    0 => self.check(u64::from(slot), len),
                    1 => assert_eq!(len, 0),
                    _ => assert_eq!(len, 4),
                }
                self.seen[queue] = self.seen[queue].wrapping_add(1);
            }
        }
    }

    /// A packet that came is one, and for this guest.
    fn check(&self, slot: u64, len: u32) {
        let header: [u8; HEADER] = self.get(IN + slot * IN_SLOT);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(len, HEADER as u32 + word(24));
        assert_eq!([word(8), word(12)], [self.cid, 0], "it is another's");
        let op = header[30];
        assert!((1..=7).contains(&op) && header[31] == 0);
        let source = word(0);
        assert!(op == 3 || source == 2 || is_valid(source) && source != self.cid && word(4) == 0);
        let kind = u16::from_le_bytes([header[28], header[29]]);
        assert!(op == 3 || Kinds::from_bits(kind as u8).is_some());
    }
}

/// The guests, and the desk of the first: made once, and reset for each input.
struct Board {
    guests: Vec<Guest>,
    desk: &'static Desk,
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

impl Board {
    fn new() -> Self {
        let fabric: &Fabric<'_> = leak(Fabric::new(Frequency::new(1000).unwrap()));
        let desk: &Desk = leak(Desk::new());
        // Guest 3 may talk with both others, which may not with each other.
        let guest = |cid: u32| {
            let peers: &[u32] = if cid == 3 { &[4, 5] } else { &[3] };
            let cell = leak(PortCell::new(PortConfig {
                cid,
                peers: peers.iter().copied().collect(),
                desk: (cid == 3).then_some(desk),
                waker: Waker::new(&Nobody, 0),
            }));
            let device = leak(Vsock::new(fabric.attach(cell).unwrap()));
            let mut memory = GuestMemory::new();
            let ram: &HostRam = leak(HostRam::new(RAM_SIZE));
            let ram = ram.slice(Pa::new(0x9_0000_0000)).subslice(0, RAM_SIZE).unwrap();
            assert!(memory.add(Ipa::new(RAM), ram).is_ok());
            let transport = MmioTransport::new(device, memory.clone());
            Guest { transport, memory, available: [0; 3], seen: [0; 3], cid }
        };
        Self { guests: (3..3 + GUESTS as u32).map(guest).collect(), desk }
    }
}

/// Packets, buffers, resets and time: nobody gets what is not for it, each buffer comes back once, and at the end the
/// devices work.
pub fn vsock(data: &[u8]) {
    static BOARD: OnceLock<Mutex<Board>> = OnceLock::new();
    let board = BOARD.get_or_init(|| Mutex::new(Board::new()));
    let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
    let Board { guests, desk } = &mut *board;
    let input = &mut Input::new(data);
    let mut now = 0;
    for guest in guests.iter_mut() {
        guest.put(RAM, &[0; RAM_SIZE]);
        guest.set(0x70, 0, now);
    }
    for guest in guests.iter_mut() {
        guest.start(7, now);
    }
    for _ in 0..MAX_STEPS {
        if !input.more() {
            break;
        }
        let guest = &mut guests[input.below(GUESTS)];
        match input.below(16) {
            0..5 if guest.has_room(1) => {
                let slot = u64::from(guest.available[1] % SIZE);
                let at = OUT + slot * OUT_SLOT;
                let len = u32::from(input.u16()) % 0xF00;
                guest.put(at, &header(input, guest.cid, len));
                guest.put(at + HEADER as u64, input.bytes(32));
                let cut = if input.below(8) == 0 { u32::from(input.u8()) } else { 0 };
                guest.offer(1, at, (HEADER as u32 + len).saturating_sub(cut).max(1), false, now);
            }
            5..9 if guest.has_room(0) => {
                let slot = u64::from(guest.available[0] % SIZE);
                let len = HEADER as u32 + u32::from(input.u16()) % (0xE00 - HEADER as u32);
                guest.offer(0, IN + slot * IN_SLOT, len, true, now);
            }
            9 if guest.has_room(2) => guest.offer(2, RAM + 0xF00, 4, true, now),
            10 => guest.start(input.u8().into(), now),
            11 => now += u64::from(input.u16() % 2000),
            12 => guest.set(0x50, input.u8().into(), now),
            13 => desk.serve(&mut |line, out| {
                assert!(line.len() <= 256);
                for _ in 0..line.len() {
                    let _ = out.write_str("an answer of some length");
                }
            }),
            _ => guest.transport.poll(Ticks(now)),
        }
        for guest in guests.iter_mut() {
            guest.look();
        }
    }
    // A reset leads back to devices that work.
    for guest in guests.iter_mut() {
        guest.start(7, now);
    }
    for slot in 0..4 {
        guests[1].offer(0, IN + slot * IN_SLOT, 0xE00, true, now);
    }
    let mut good = [0; HEADER];
    (good[0], good[8], good[28], good[30]) = (3, 4, 1, 1);
    guests[0].put(OUT, &good);
    guests[0].offer(1, OUT, HEADER as u32, false, now);
    guests[1].transport.poll(Ticks(now));
    for guest in guests.iter_mut() {
        guest.look();
        assert_ne!(guest.transport.next_poll(), NextPoll::Soon);
    }
    assert_eq!((guests[0].seen[1], guests[1].seen[0]), (1, 1));
}

/// A header that is mostly one.
fn header(input: &mut Input<'_>, cid: u32, len: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let to = [2, 3, 4, 5, 3, 4, input.u8()][input.below(7)];
    header[..4].copy_from_slice(&cid.to_le_bytes());
    header[8] = to;
    header[16] = input.u8() % 4;
    let port: u32 = if to == 2 { 1024 } else { u32::from(input.u8() % 4) };
    header[20..24].copy_from_slice(&port.to_le_bytes());
    let op = input.u8() % 8;
    let len = if op == 5 { len } else { 0 };
    header[24..28].copy_from_slice(&len.to_le_bytes());
    header[28] = if to == 2 { 1 } else { 1 + input.u8() % 2 };
    header[30] = op;
    header[32] = input.u8();
    header[36..40].copy_from_slice(&input.u32().to_le_bytes());
    header[40..44].copy_from_slice(&input.u32().to_le_bytes());
    if input.below(8) == 0 {
        header[input.below(HEADER)] = input.u8();
    }
    header
}
