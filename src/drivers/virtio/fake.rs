//! A virtio-mmio block device in software, for tests: honest unless told otherwise. It checks
//! the driver as it goes and panics where a driver breaks the specification.

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use crate::drivers::registers::Registers;
use crate::drivers::testing::{FakeRam, dump, fill};
use crate::memory::SharedSlice;
use crate::sync::testing::Shared;

pub(super) const F_SIZE_MAX: u64 = 1 << 1;
pub(super) const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_RO: u64 = 1 << 5;
pub(super) const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
pub(super) const F_TOPOLOGY: u64 = 1 << 10;
pub(super) const F_CONFIG_WCE: u64 = 1 << 11;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;
pub(super) const F_INDIRECT: u64 = 1 << 28;
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// What a usual device offers, and something nobody knows.
pub(super) const USUAL: u64 =
    F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_INDIRECT | F_EVENT_IDX | F_VERSION_1 | 1 << 50;

pub(super) const SECTORS: u64 = 256;
pub(super) const IDENTITY: &[u8; 20] = b"fake-disk\0\0\0\0\0\0\0\0\0\0\0";

/// What a new disk holds from `sector` on: every sector and every place in it tells itself from
/// the others.
pub(super) fn contents(sector: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pattern: Vec<u8> = (0..512u32).map(|n| (n * 7 + n / 256) as u8).collect();
    for number in sector..sector + sectors {
        pattern[200..208].copy_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&pattern);
    }
    bytes
}

/// A request the device has taken from the available ring.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) kind: u32,
    pub(super) sector: u64,
    /// Address and length of the data descriptors.
    pub(super) data: Vec<(u64, u32)>,
    status: u64,
}

pub(super) struct State {
    pub(super) magic: u32,
    pub(super) version: u32,
    pub(super) id: u32,
    pub(super) offered: u64,
    pub(super) driver_features: u64,
    pub(super) status: u32,
    pub(super) config: [u32; 15],
    /// Counts up at every read, if the configuration is to hold no still.
    pub(super) restless_config: bool,
    pub(super) generation: u32,
    pub(super) num_max: u32,
    pub(super) interrupt_status: u32,
    /// Times the line went up.
    pub(super) interrupts: u32,
    pub(super) notifies: u32,
    pub(super) register_reads: u32,
    pub(super) requests: Vec<Request>,
    pub(super) disk: Vec<u8>,
    /// What the disk held at the last flush.
    pub(super) durable: Vec<u8>,
    /// Status bytes written instead of the honest ones.
    pub(super) status_byte: Option<u8>,
    /// Requests are served at the doorbell; otherwise when the test says so.
    pub(super) prompt: bool,
    /// Doorbells are not heard.
    pub(super) dead: bool,
    /// The driver need not ring; the device looks by itself.
    pub(super) needs_no_doorbell: bool,
    /// Reads of the status that still show the device before the reset.
    pub(super) slow_reset: u32,
    pub(super) refuses_features: bool,
    /// The driver was told that requests are done which are not.
    pub(super) lied: bool,
    pub(super) resets: u32,
    /// Every request ever taken: kind, sector, data descriptors.
    pub(super) log: Vec<(u32, u64, usize)>,
    /// Every range zeroed or discarded: sector, sectors, flags.
    pub(super) ranges: Vec<(u64, u32, u32)>,
    resetting: bool,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    pub(super) num: u32,
    ready: u32,
    addresses: [u32; 6],
    taken: u16,
    used: u16,
}

pub(super) struct FakeDisk<'m> {
    ram: &'m FakeRam,
    state: Shared<State>,
}

fn needs_event(event: u16, new: u16, old: u16) -> bool {
    // Whether `event` is one of old..new, counted out.
    (0..new.wrapping_sub(old)).any(|n| old.wrapping_add(n) == event)
}

impl<'m> FakeDisk<'m> {
    pub(super) fn new(ram: &'m FakeRam, offered: u64) -> Self {
        let state = State {
            magic: 0x7472_6976,
            version: 2,
            id: 2,
            offered,
            driver_features: 0,
            status: 0x0f, // as a bootloader left it
            #[rustfmt::skip]
            config: [
                SECTORS as u32, 0, 4096, 254, 0, 512,
                // Topology; `writeback` off, four queues; discards, zeroes.
                0x0004_0203, 64, 0x0004_0000, 96, 1, 8, 48, 1, 1,
            ],
            restless_config: false,
            generation: 0,
            num_max: 1024,
            interrupt_status: 0,
            interrupts: 0,
            notifies: 0,
            register_reads: 0,
            requests: Vec::new(),
            disk: contents(0, SECTORS),
            durable: Vec::new(),
            status_byte: None,
            prompt: true,
            dead: false,
            needs_no_doorbell: false,
            slow_reset: 0,
            refuses_features: false,
            lied: false,
            resets: 0,
            log: Vec::new(),
            ranges: Vec::new(),
            resetting: false,
            device_features_sel: 7,
            driver_features_sel: 7,
            queue_sel: 7,
            num: 0,
            ready: 0,
            addresses: [0; 6],
            taken: 0,
            used: 0,
        };
        Self { ram, state: Shared::new(state) }
    }

    pub(super) fn get(&self) -> RwLockReadGuard<'_, State> {
        self.state.borrow()
    }

    pub(super) fn set(&self) -> RwLockWriteGuard<'_, State> {
        self.state.borrow_mut()
    }

    fn part(&self, part: usize, bytes: usize) -> SharedSlice<'m> {
        let addresses = self.get().addresses;
        let pa = u64::from(addresses[part * 2 + 1]) << 32 | u64::from(addresses[part * 2]);
        self.ram.at(pa, bytes)
    }

    fn descriptors(&self) -> SharedSlice<'m> {
        self.part(0, self.get().num as usize * 16)
    }

    pub(super) fn available(&self) -> SharedSlice<'m> {
        self.part(1, self.get().num as usize * 2 + 6)
    }

    fn used_ring(&self) -> SharedSlice<'m> {
        self.part(2, self.get().num as usize * 8 + 6)
    }

    fn agreed(&self, feature: u64) -> bool {
        self.get().driver_features & feature != 0
    }

    /// The descriptors of a chain in `table`: address, length, flags.
    fn walk(table: SharedSlice<'_>, head: u16) -> Vec<(u64, u32, u16)> {
        let mut chain = Vec::new();
        let mut index = usize::from(head);
        loop {
            let at = index * 16;
            let flags = table.load_u16(at + 12).expect("descriptor outside the table");
            chain.push((table.load_u64(at).unwrap(), table.load_u32(at + 8).unwrap(), flags));
            assert!(chain.len() <= table.len() / 16, "loop");
            if flags & 1 == 0 {
                return chain;
            }
            index = usize::from(table.load_u16(at + 14).unwrap());
        }
    }

    /// Takes what is in the available ring.
    pub(super) fn collect(&self) {
        assert_eq!(self.get().status & 0x4, 4, "rings before DRIVER_OK");
        let (available, num) = (self.available(), self.get().num as u16);
        let index = available.load_u16(2).unwrap();
        if index.wrapping_sub(self.get().taken) > num {
            // One that says it has done what it has not taken gets to see this.
            assert!(self.get().lied, "more available than entries");
            self.set().taken = index.wrapping_sub(num);
        }
        while self.get().taken != index {
            let entry = self.get().taken % num;
            let head = available.load_u16(4 + usize::from(entry) * 2).unwrap();
            {
                let mut state = self.set();
                state.taken = state.taken.wrapping_add(1);
            }
            let request = self.parse(head);
            let mut state = self.set();
            state.log.push((request.kind, request.sector, request.data.len()));
            let lied = state.lied;
            state.requests.retain(|other| {
                assert!(lied || other.head != head, "head {head} is given twice");
                other.head != head
            });
            state.requests.push(request);
        }
        if self.agreed(F_EVENT_IDX) {
            let event = if self.get().needs_no_doorbell { index.wrapping_sub(1) } else { index };
            self.used_ring().store_u16(4 + usize::from(num) * 8, event).unwrap();
        } else {
            self.used_ring().store_u16(0, self.get().needs_no_doorbell.into()).unwrap();
        }
    }

    fn parse(&self, head: u16) -> Request {
        let mut chain = Self::walk(self.descriptors(), head);
        if chain[0].2 & 4 != 0 {
            assert!(self.agreed(F_INDIRECT));
            let (address, bytes, flags) = chain[0];
            assert_eq!((chain.len(), flags), (1, 4));
            assert!(bytes > 0 && bytes % 16 == 0);
            chain = Self::walk(self.ram.at(address, bytes as usize), 0);
            assert_eq!(chain.len(), bytes as usize / 16, "descriptors left over");
        }
        assert!(chain.len() <= self.get().num as usize, "chain longer than the queue");
        let (header, header_bytes, header_flags) = chain.remove(0);
        let (status, status_bytes, status_flags) = chain.pop().unwrap();
        assert_eq!((header_bytes, header_flags & 2), (16, 0));
        assert_eq!((status_bytes, status_flags & 2), (1, 2));
        let header = self.ram.at(header, 16);
        let kind = header.load_u32(0).unwrap();
        assert_eq!(header.load_u32(4).unwrap(), 0);
        for (_, bytes, flags) in &chain {
            let to_device = matches!(kind, 1 | 11 | 13);
            assert_eq!(flags & 2, if to_device { 0 } else { 2 }, "direction");
            if self.agreed(F_SIZE_MAX) {
                assert!(*bytes <= self.get().config[2], "segment too long");
            }
        }
        if self.agreed(F_SEG_MAX) {
            assert!(chain.len() <= self.get().config[3].max(1) as usize, "too many segments");
        }
        Request {
            head,
            kind,
            sector: header.load_u64(8).unwrap(),
            data: chain.iter().map(|(address, bytes, _)| (*address, *bytes)).collect(),
            status,
        }
    }

    /// Does the `n`th request it has, writes its status, and says that it is done.
    pub(super) fn complete(&self, n: usize) {
        let request = self.set().requests.remove(n);
        self.perform(&request);
        self.push_used(u32::from(request.head), 1);
    }

    /// Does a request and writes its status, but does not say that it is done.
    pub(super) fn perform(&self, request: &Request) {
        let mut at = request.sector as usize * 512;
        for (address, bytes) in &request.data {
            let memory = self.ram.at(*address, *bytes as usize);
            let range = at..at + *bytes as usize;
            match request.kind {
                _ if self.get().status_byte.is_some_and(|byte| byte != 0) => {}
                0 => fill(memory, &self.get().disk[range]),
                1 => self.set().disk[range].copy_from_slice(&dump(memory)),
                8 => fill(memory, IDENTITY),
                11 | 13 => self.zero(request, memory),
                _ => {}
            }
            at += *bytes as usize;
        }
        if request.kind == 4 {
            let state = &mut *self.set();
            state.durable.clone_from(&state.disk);
        }
        let known = matches!(request.kind, 0 | 1 | 4 | 8 | 11 | 13);
        let byte = self.get().status_byte.unwrap_or(if known { 0 } else { 2 });
        self.ram.at(request.status, 1).store_u8(0, byte).unwrap();
    }

    /// Zeroes what the range in `memory` says: both a discard and write zeroes do that here.
    fn zero(&self, request: &Request, memory: SharedSlice<'_>) {
        let (discards, limit) = (request.kind == 11, if request.kind == 11 { 9 } else { 12 });
        assert!(self.agreed(if discards { F_DISCARD } else { F_WRITE_ZEROES }), "not agreed");
        assert_eq!((request.data.len(), memory.len(), request.sector), (1, 16, 0));
        let sector = memory.load_u64(0).unwrap() as usize;
        let (sectors, flags) = (memory.load_u32(8).unwrap(), memory.load_u32(12).unwrap());
        if self.get().lied {
            // It may have said that this request was over, and the driver have used its memory for another.
            return;
        }
        assert!(sectors <= self.get().config[limit], "too many sectors");
        assert!(flags == 0 || (flags == 1 && !discards), "flags {flags}");
        let mut state = self.set();
        state.ranges.push((sector as u64, sectors, flags));
        state.disk[sector * 512..][..sectors as usize * 512].fill(0);
    }

    pub(super) fn complete_all(&self) {
        while !self.get().requests.is_empty() {
            self.complete(0);
        }
    }

    /// Puts `id` into the used ring, whatever it is, and interrupts if that is asked for.
    pub(super) fn push_used(&self, id: u32, bytes: u32) {
        let (used, num) = (self.used_ring(), self.get().num as u16);
        let old = self.get().used;
        let entry = 4 + usize::from(old % num) * 8;
        used.store_u32(entry, id).unwrap();
        used.store_u32(entry + 4, bytes).unwrap();
        let new = old.wrapping_add(1);
        self.set_used_index(new);
        let available = self.available();
        let wanted = if self.agreed(F_EVENT_IDX) {
            needs_event(available.load_u16(4 + usize::from(num) * 2).unwrap(), new, old)
        } else {
            available.load_u16(0).unwrap() & 1 == 0
        };
        if wanted {
            let mut state = self.set();
            state.interrupts += 1;
            state.interrupt_status |= 1;
        }
    }

    pub(super) fn set_used_index(&self, index: u16) {
        self.set().used = index;
        self.used_ring().store_u16(2, index).unwrap();
    }

    fn reset(&self) {
        let mut state = self.set();
        state.resetting = false;
        state.resets += 1;
        state.status = 0;
        state.driver_features = 0;
        state.requests.clear();
        state.lied = false;
        state.interrupt_status = 0;
        (state.num, state.ready, state.taken, state.used) = (0, 0, 0, 0);
        state.addresses = [0; 6];
    }
}

impl Registers for FakeDisk<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.set().register_reads += 1;
        if offset == 0x070 && self.get().resetting {
            if self.get().slow_reset > 0 {
                self.set().slow_reset -= 1;
            } else {
                self.reset();
            }
        }
        let state = &mut *self.set();
        match offset {
            0x000 => state.magic,
            0x004 => state.version,
            0x008 => state.id,
            0x010 => match state.device_features_sel {
                0 => state.offered as u32,
                1 => (state.offered >> 32) as u32,
                _ => 0,
            },
            0x034 if state.queue_sel == 0 => state.num_max,
            0x034 => 0,
            0x044 => state.ready,
            0x060 => state.interrupt_status,
            0x070 => state.status,
            0x0fc => {
                state.generation += u32::from(state.restless_config);
                state.generation
            }
            0x100..0x13c => {
                assert!(state.status & 2 != 0, "configuration before DRIVER");
                state.config[(offset - 0x100) / 4]
            }
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        self.set().write(offset, value);
        if offset == 0x050 && !self.get().dead {
            self.collect();
            if self.get().prompt {
                self.complete_all();
            }
        }
    }
}

impl State {
    fn write(&mut self, offset: usize, value: u32) {
        let state = self;
        match offset {
            0x014 => state.device_features_sel = value,
            0x020 => {
                assert_eq!(state.status, 3, "features after FEATURES_OK or before DRIVER");
                let shift = 32 * state.driver_features_sel;
                let mask = !(u64::from(u32::MAX) << shift);
                state.driver_features = state.driver_features & mask | u64::from(value) << shift;
            }
            0x024 => state.driver_features_sel = value,
            0x030 => state.queue_sel = value,
            0x038 => {
                assert!(value.is_power_of_two() && value <= state.num_max);
                state.num = value;
            }
            0x044 => {
                assert_eq!(state.status, 11, "queue ready before FEATURES_OK");
                state.ready = value;
            }
            0x050 => {
                assert_eq!((value, state.ready, state.status & 4), (0, 1, 4));
                state.notifies += 1;
            }
            0x064 => state.interrupt_status &= !value,
            0x120 => {
                assert_eq!(state.status & 8, 8, "writeback before FEATURES_OK");
                assert_ne!(state.driver_features & F_CONFIG_WCE, 0, "not agreed");
                state.config[8] = value;
            }
            0x070 if value == 0 => state.resetting = true,
            0x070 if value & 0x80 != 0 => state.status |= 0x80,
            0x070 => {
                assert_eq!(state.status & !value, 0, "status bits taken back");
                let unknown = state.driver_features & !state.offered;
                assert_eq!(unknown, 0, "features that were not offered");
                state.status = if state.refuses_features { value & !8 } else { value };
            }
            0x080 | 0x084 | 0x090 | 0x094 | 0x0a0 | 0x0a4 => {
                assert_eq!(state.ready, 0, "address of a queue in use");
                state.addresses[(offset - 0x080) / 16 * 2 + (offset & 4) / 4] = value;
            }
            _ => panic!("write of {offset:#x}"),
        }
    }
}
