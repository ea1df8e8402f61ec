//! A virtio-mmio network card in software: honest unless told otherwise. It checks the driver as it
//! goes and panics where a driver breaks the specification.

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use crate::drivers::registers::Registers;
use crate::drivers::testing::{FakeRam, dump, fill};
use crate::memory::SharedSlice;
use crate::sync::testing::Shared;

pub(super) const F_CSUM: u64 = 1 << 0;
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
pub(super) const F_MTU: u64 = 1 << 3;
pub(super) const F_MAC: u64 = 1 << 5;
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
pub(super) const F_HOST_TSO4: u64 = 1 << 11;
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
pub(super) const F_STATUS: u64 = 1 << 16;
pub(super) const F_INDIRECT: u64 = 1 << 28;
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
pub(super) const F_VERSION_1: u64 = 1 << 32;
pub(super) const F_SPEED_DUPLEX: u64 = 1 << 63;

/// What a usual device offers, with queues of control and features that nobody knows.
pub(super) const USUAL: u64 =
    F_MAC | F_MRG_RXBUF | F_STATUS | F_INDIRECT | F_EVENT_IDX | F_VERSION_1 | 1 << 17 | 1 << 50;

pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// A frame the device has taken from the available ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) head: u16,
    pub(super) header: [u8; 12],
    /// As it was when it was taken.
    pub(super) bytes: Vec<u8>,
    /// Address and length of its descriptors.
    pub(super) pieces: Vec<(u64, u32)>,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    num: u32,
    ready: u32,
    addresses: [u32; 6],
    taken: u16,
    used: u16,
}

pub(super) struct State {
    pub(super) offered: u64,
    pub(super) driver_features: u64,
    pub(super) status: u32,
    pub(super) config: [u8; 24],
    pub(super) num_max: u32,
    pub(super) interrupt_status: u32,
    /// Times it wanted to interrupt.
    pub(super) interrupts: u32,
    /// Doorbells of each queue.
    pub(super) notifies: [u32; 2],
    pub(super) register_reads: u32,
    /// Being sent.
    pub(super) outgoing: Vec<Outgoing>,
    /// Has been sent.
    pub(super) wire: Vec<Outgoing>,
    /// Frames are sent at the doorbell; otherwise when the test says so.
    pub(super) prompt: bool,
    /// Doorbells are not heard.
    pub(super) dead: bool,
    /// Reads of the status that still show the device before the reset.
    pub(super) slow_reset: u32,
    pub(super) refuses_features: bool,
    pub(super) resets: u32,
    /// The driver was told that something was used which was not.
    pub(super) lied: bool,
    resetting: bool,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: usize,
    queues: [Queue; 2],
}

pub(super) struct FakeNic<'m> {
    ram: &'m FakeRam,
    state: Shared<State>,
}

impl<'m> FakeNic<'m> {
    pub(super) fn new(ram: &'m FakeRam, offered: u64) -> Self {
        let mut config = [0; 24];
        config[..6].copy_from_slice(&MAC);
        config[6] = 1;
        let state = State {
            offered,
            driver_features: 0,
            status: 0x0f, // as a bootloader left it
            config,
            num_max: 1024,
            interrupt_status: 0,
            interrupts: 0,
            notifies: [0; 2],
            register_reads: 0,
            outgoing: Vec::new(),
            wire: Vec::new(),
            prompt: true,
            dead: false,
            slow_reset: 0,
            refuses_features: false,
            resets: 0,
            lied: false,
            resetting: false,
            device_features_sel: 7,
            driver_features_sel: 7,
            queue_sel: 7,
            queues: [Queue::default(); 2],
        };
        Self { ram, state: Shared::new(state) }
    }

    pub(super) fn get(&self) -> RwLockReadGuard<'_, State> {
        self.state.borrow()
    }

    pub(super) fn set(&self) -> RwLockWriteGuard<'_, State> {
        self.state.borrow_mut()
    }

    /// Part of queue `queue`: descriptors, available ring, used ring.
    fn part(&self, queue: usize, part: usize) -> SharedSlice<'m> {
        let Queue { addresses, num, .. } = self.get().queues[queue];
        let bytes = [num * 16, num * 2 + 6, num * 8 + 6][part];
        let pa = u64::from(addresses[part * 2 + 1]) << 32 | u64::from(addresses[part * 2]);
        self.ram.at(pa, bytes as usize)
    }

    fn num(&self, queue: usize) -> u16 {
        self.get().queues[queue].num as u16
    }

    pub(super) fn ring(&self, queue: usize) -> u16 {
        self.num(queue)
    }

    fn agreed(&self, feature: u64) -> bool {
        self.get().driver_features & feature != 0
    }

    /// Buffers to receive in that are left.
    pub(super) fn buffers(&self) -> u16 {
        let index = self.part(RX, 1).load_u16(2).unwrap();
        index.wrapping_sub(self.get().queues[RX].taken)
    }

    /// The head of the next chain that is available.
    fn take(&self, queue: usize) -> Option<u16> {
        let (available, num) = (self.part(queue, 1), self.num(queue));
        let index = available.load_u16(2).unwrap();
        let taken = self.get().queues[queue].taken;
        assert!(self.get().lied || index.wrapping_sub(taken) <= num, "more than entries");
        if taken == index {
            return None;
        }
        self.set().queues[queue].taken = taken.wrapping_add(1);
        available.load_u16(4 + usize::from(taken % num) * 2)
    }

    /// The descriptors of a chain: address, length, flags.
    fn walk(&self, queue: usize, head: u16) -> Vec<(u64, u32, u16)> {
        let mut table = self.part(queue, 0);
        let at = usize::from(head) * 16;
        let mut index = usize::from(head);
        let mut whole = None;
        if table.load_u16(at + 12).unwrap() & 4 != 0 {
            assert!(self.agreed(F_INDIRECT));
            assert_eq!(table.load_u16(at + 12), Some(4));
            let bytes = table.load_u32(at + 8).unwrap() as usize;
            assert!(bytes > 0 && bytes.is_multiple_of(16));
            table = self.ram.at(table.load_u64(at).unwrap(), bytes);
            (index, whole) = (0, Some(bytes / 16));
        }
        let mut chain = Vec::new();
        loop {
            let at = index * 16;
            let flags = table.load_u16(at + 12).expect("descriptor outside the table");
            chain.push((table.load_u64(at).unwrap(), table.load_u32(at + 8).unwrap(), flags));
            assert!(chain.len() <= usize::from(self.num(queue)), "chain longer than the queue");
            if flags & 1 == 0 {
                break;
            }
            index = usize::from(table.load_u16(at + 14).unwrap());
        }
        assert!(whole.is_none_or(|whole| whole == chain.len()), "descriptors left over");
        chain
    }

    /// Takes what is to be sent.
    pub(super) fn collect(&self) {
        assert_eq!(self.get().status & 0x4, 4, "rings before DRIVER_OK");
        while let Some(head) = self.take(TX) {
            let mut bytes = Vec::new();
            let mut pieces = Vec::new();
            for (address, len, flags) in self.walk(TX, head) {
                assert!(flags & 2 == 0 && len > 0, "a piece that cannot be read");
                bytes.extend(dump(self.ram.at(address, len as usize)));
                pieces.push((address, len));
            }
            let header = bytes.drain(..12).collect::<Vec<_>>().try_into().unwrap();
            self.judge(&header, bytes.len());
            let mut state = self.set();
            let twice = state.outgoing.iter().any(|other| other.head == head);
            assert!(state.lied || !twice, "head {head} is given twice");
            state.outgoing.push(Outgoing { head, header, bytes, pieces });
        }
        let index = self.part(TX, 1).load_u16(2).unwrap();
        let event = 4 + usize::from(self.num(TX)) * 8;
        if self.agreed(F_EVENT_IDX) {
            self.part(TX, 2).store_u16(event, index).unwrap();
        }
    }

    /// The header asks for nothing that was not agreed on.
    fn judge(&self, header: &[u8; 12], len: usize) {
        assert!(header[0] & !1 == 0 && header[10..] == [0, 0], "{header:?}");
        assert!(header[0] == 0 || self.agreed(F_CSUM));
        assert!(header[1] == 0 || header[0] == 1 && self.agreed(F_HOST_TSO4));
        assert!(len >= 14);
    }

    /// Sends the `n`th frame it has, and says so.
    pub(super) fn complete(&self, n: usize) {
        let frame = self.set().outgoing.remove(n);
        let head = frame.head;
        self.set().wire.push(frame);
        self.push_used(TX, head.into(), 0);
    }

    pub(super) fn complete_all(&self) {
        while !self.get().outgoing.is_empty() {
            self.complete(0);
        }
    }

    /// Takes a buffer to receive in: its number, and where it is.
    pub(super) fn buffer(&self) -> (u16, SharedSlice<'m>) {
        let head = self.take(RX).expect("no buffer is left");
        let chain = self.walk(RX, head);
        assert_eq!((chain.len(), chain[0].2), (1, 2));
        (head, self.ram.at(chain[0].0, chain[0].1 as usize))
    }

    /// Receives a frame with such a header, but for `num_buffers`, which is right. It interrupts at
    /// most once.
    pub(super) fn receive(&self, header: [u8; 12], bytes: &[u8]) {
        let mut all = [&header, bytes].concat();
        let mut used = Vec::new();
        let mut first = None;
        while !all.is_empty() {
            let (head, buffer) = self.buffer();
            let len = buffer.len().min(all.len());
            fill(buffer.subslice(0, len).unwrap(), &all[..len]);
            all.drain(..len);
            first.get_or_insert(buffer);
            used.push((head, len));
            assert!(self.agreed(F_MRG_RXBUF) || all.is_empty(), "the buffer is too short");
        }
        let pieces = if self.agreed(F_MRG_RXBUF) { used.len() as u16 } else { 0xdead };
        first.unwrap().store_u16(10, pieces).unwrap();
        for (head, len) in used {
            self.push_used(RX, head.into(), len as u32);
        }
    }

    /// Puts `id` into a used ring, whatever it is, and interrupts if that is asked for.
    pub(super) fn push_used(&self, queue: usize, id: u32, bytes: u32) {
        let (used, num) = (self.part(queue, 2), self.num(queue));
        let old = self.get().queues[queue].used;
        let entry = 4 + usize::from(old % num) * 8;
        used.store_u32(entry, id).unwrap();
        used.store_u32(entry + 4, bytes).unwrap();
        self.set_used_index(queue, old.wrapping_add(1));
        let available = self.part(queue, 1);
        let wanted = if self.agreed(F_EVENT_IDX) {
            available.load_u16(4 + usize::from(num) * 2).unwrap() == old
        } else {
            available.load_u16(0).unwrap() & 1 == 0
        };
        let mut state = self.set();
        state.interrupts += u32::from(wanted);
        state.interrupt_status |= u32::from(wanted);
    }

    pub(super) fn set_used_index(&self, queue: usize, index: u16) {
        self.set().queues[queue].used = index;
        self.part(queue, 2).store_u16(2, index).unwrap();
    }

    fn reset(&self) {
        let mut state = self.set();
        state.resetting = false;
        state.resets += 1;
        state.status = 0;
        state.driver_features = 0;
        state.outgoing.clear();
        state.lied = false;
        state.interrupt_status = 0;
        state.queues = [Queue::default(); 2];
    }
}

impl Registers for FakeNic<'_> {
    fn read32(&self, offset: usize) -> u32 {
        self.set().register_reads += 1;
        if offset == 0x070 && self.get().resetting {
            if self.get().slow_reset > 0 {
                self.set().slow_reset -= 1;
            } else {
                self.reset();
            }
        }
        let state = self.get();
        match offset {
            0x010 => match state.device_features_sel {
                0 => state.offered as u32,
                1 => (state.offered >> 32) as u32,
                _ => 0,
            },
            0x034 if state.queue_sel < 2 => state.num_max,
            0x034 => 0,
            0x044 => state.queues[state.queue_sel].ready,
            0x060 => state.interrupt_status,
            0x070 => state.status,
            0x0fc => 0,
            // Of 32 bits is the speed alone.
            0x10c => u32::from_le_bytes(state.config[12..16].try_into().unwrap()),
            _ => panic!("read of {offset:#x}"),
        }
    }

    fn read16(&self, offset: usize) -> u16 {
        self.set().register_reads += 1;
        assert!([0x106, 0x108, 0x10a].contains(&offset), "16 bits of {offset:#x}");
        let at = offset - 0x100;
        u16::from_le_bytes(self.get().config[at..at + 2].try_into().unwrap())
    }

    fn read8(&self, offset: usize) -> u8 {
        assert!((0x100..0x106).contains(&offset), "8 bits of {offset:#x}");
        assert!(self.get().status & 2 != 0, "configuration before DRIVER");
        self.get().config[offset - 0x100]
    }

    fn write32(&self, offset: usize, value: u32) {
        self.set().write(offset, value);
        if (offset, value) == (0x050, 1) && !self.get().dead {
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
            0x030 => state.queue_sel = value as usize,
            0x038 => {
                assert!(value.is_power_of_two() && value <= state.num_max);
                state.queues[state.queue_sel].num = value;
            }
            0x044 => {
                assert_eq!(state.status, 11, "queue ready before FEATURES_OK");
                state.queues[state.queue_sel].ready = value;
            }
            0x050 => {
                let queue = state.queues[value as usize];
                assert_eq!((queue.ready, state.status & 4), (1, 4));
                state.notifies[value as usize] += 1;
            }
            0x064 => state.interrupt_status &= !value,
            0x070 if value == 0 => state.resetting = true,
            0x070 if value & 0x80 != 0 => state.status |= 0x80,
            0x070 => {
                assert_eq!(state.status & !value, 0, "status bits taken back");
                let unknown = state.driver_features & !state.offered;
                assert_eq!(unknown, 0, "features that were not offered");
                state.status = if state.refuses_features { value & !8 } else { value };
            }
            0x080 | 0x084 | 0x090 | 0x094 | 0x0a0 | 0x0a4 => {
                let queue = &mut state.queues[state.queue_sel];
                assert_eq!(queue.ready, 0, "address of a queue in use");
                queue.addresses[(offset - 0x080) / 16 * 2 + (offset & 4) / 4] = value;
            }
            _ => panic!("write of {offset:#x}"),
        }
    }
}
