//! A driver that does everything right: what every input ends with.

use crate::disk::{IDENTITY, Kind, Watch};
use crate::guest::{AREAS, BUFFERS, Bus, Guest, PACKED, SECTOR, SECTORS};

/// EVENT_IDX, INDIRECT_DESC, VERSION_1 and the block device's FLUSH.
const WANTED: u64 = 1 << 29 | 1 << 28 | 1 << 32 | 1 << 9;
/// Entries of the queue: fewer than requests are made, so that it wraps.
const SIZE: u16 = 8;
const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x20;
const STATUS: u64 = DATA + SECTOR as u64;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// Resets the device and drives it: it must work, whatever it went through.
pub(crate) fn prove(bus: &mut Bus<'_, '_, '_>, guest: &Guest, kind: Kind, watch: &Watch) {
    prove_with(WANTED, bus, guest, kind, watch);
}

/// The same with a packed ring, then with a split one.
pub(crate) fn prove_packed(bus: &mut Bus<'_, '_, '_>, guest: &Guest, kind: Kind, watch: &Watch) {
    prove_with(WANTED | PACKED, bus, guest, kind, watch);
    prove_with(WANTED, bus, guest, kind, watch);
}

fn prove_with(wanted: u64, bus: &mut Bus<'_, '_, '_>, guest: &Guest, kind: Kind, watch: &Watch) {
    watch.mood.set(0);
    watch.scribbles.borrow_mut().clear();
    bus.set(0x70, 0);
    assert_eq!(watch.in_flight(), 0, "a reset is over while the disk has requests");
    assert_eq!([0x70, 0x60, 0x44].map(|offset| bus.get(offset)), [0; 3]);
    assert!(!bus.transport.take_interrupt() && !bus.transport.interrupt_asserted());
    assert!(!bus.transport.has_work_in_flight());
    guest.put(AREAS.descriptor, &[0; 0x1800]);
    let agreed = bus.bring_up(wanted, SIZE);
    assert!(agreed >> 32 & 1 == 1);
    let mut driver =
        Driver { guest, event_idx: agreed >> 29 & 1 == 1, packed: agreed & PACKED != 0, done: 0 };
    let capacity = u64::from(bus.get(0x100)) | u64::from(bus.get(0x104)) << 32;
    assert_eq!(capacity, SECTORS as u64);

    for round in 0..6_u8 {
        let sector = u64::from(round) * 3 % capacity;
        let pattern = [round ^ 0x5A; SECTOR];
        guest.put(DATA, &pattern);
        let expected = if kind == Kind::ReadOnly { 1 } else { 0 };
        assert_eq!(driver.request(bus, OUT, sector, false), (expected, 1));
        guest.put(DATA, &[0xEE; SECTOR]);
        assert_eq!(driver.request(bus, IN, sector, true), (0, SECTOR as u32 + 1));
        if kind.keeps_data() {
            assert_eq!(guest.get::<SECTOR>(DATA), pattern);
        }
    }
    assert_eq!(driver.request(bus, FLUSH, 0, false).0, 0);
    assert_eq!(driver.request(bus, GET_ID, 0, true).0, 0);
    if kind != Kind::Null {
        assert_eq!(guest.get(DATA), IDENTITY);
    }
    assert_eq!(driver.request(bus, IN, capacity, true), (1, 0));
    assert_eq!(bus.get(0x70), 15);
    bus.set(0x70, 0);
    assert_eq!(watch.in_flight(), 0);
}

struct Driver<'a> {
    guest: &'a Guest,
    event_idx: bool,
    packed: bool,
    /// Requests made and answered.
    done: u16,
}

impl Driver<'_> {
    /// One request with a sector of data; its status and used length.
    fn request(
        &mut self,
        bus: &mut Bus<'_, '_, '_>,
        request_type: u32,
        sector: u64,
        device_writes: bool,
    ) -> (u8, u32) {
        let guest = self.guest;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&request_type.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        guest.put(HEADER, &header);
        guest.put(STATUS, &[0xFF]);
        let write = if device_writes { 2 } else { 0 };
        let buffers = [(HEADER, 16, 1), (DATA, SECTOR as u32, 1 | write), (STATUS, 1, 2)];
        let wanted = if self.packed { self.offer_packed(buffers) } else { self.offer(buffers) };
        let interrupts = bus.interrupts;
        if wanted {
            bus.set(0x50, 0);
        }
        for _ in 0..1000 {
            if !bus.transport.has_work_in_flight() {
                break;
            }
            bus.poll();
        }
        let len = if self.packed { self.used_packed() } else { self.used() };
        self.done += 1;
        assert_eq!(bus.interrupts, interrupts + 1, "not one interrupt for one request");
        assert_eq!(bus.get(0x60), 1);
        bus.set(0x64, 1);
        assert_eq!(bus.get(0x60), 0);
        (guest.get::<1>(STATUS)[0], len)
    }

    fn head(&self) -> u16 {
        self.done * 3 % SIZE
    }

    /// Makes a chain available in the split ring; whether the device wants to be notified.
    fn offer(&self, buffers: [(u64, u32, u16); 3]) -> bool {
        let (guest, head) = (self.guest, self.head());
        for (by, (address, len, flags)) in (0..).zip(buffers) {
            let place = AREAS.descriptor + 16 * u64::from((head + by) % SIZE);
            guest.descriptor(place, (address, len, flags, (head + by + 1) % SIZE));
        }
        // Interrupt for this one.
        guest.put_u16(AREAS.driver + 4 + 2 * u64::from(SIZE), self.done);
        guest.put_u16(AREAS.driver + 4 + 2 * u64::from(self.done % SIZE), head);
        guest.put_u16(AREAS.driver + 2, self.done.wrapping_add(1));
        if self.event_idx {
            guest.get_u16(AREAS.device + 4 + 8 * u64::from(SIZE)) == self.done
        } else {
            guest.get_u16(AREAS.device) & 1 == 0
        }
    }

    /// The used length of the request, which must be there.
    fn used(&self) -> u32 {
        let element = AREAS.device + 4 + 8 * u64::from(self.done % SIZE);
        let done = self.guest.get_u16(AREAS.device + 2);
        assert_eq!(done, self.done + 1, "a request is not answered");
        let [id, len] = [element, element + 4].map(|at| u32::from_le_bytes(self.guest.get(at)));
        assert_eq!(id, self.head().into());
        len
    }

    /// The lap `by` places behind the head, as wrap counter.
    fn wrap(&self, by: u16) -> bool {
        ((self.done * 3 + by) / SIZE).is_multiple_of(2)
    }

    /// As [`Self::offer`], in the packed ring.
    fn offer_packed(&self, buffers: [(u64, u32, u16); 3]) -> bool {
        let (guest, head) = (self.guest, self.head());
        for (by, (address, len, flags)) in (0..).zip(buffers) {
            let place = AREAS.descriptor + 16 * u64::from((head + by) % SIZE);
            let available = if self.wrap(by) { 1 << 7 } else { 1 << 15 };
            // The buffer ID is where a split ring's descriptor has its flags.
            guest.descriptor(place, (address, len, self.done, flags | available));
        }
        let position = head | u16::from(self.wrap(0)) << 15;
        guest.put_u16(AREAS.driver, position);
        guest.put_u16(AREAS.driver + 2, if self.event_idx { 2 } else { 0 });
        match guest.get_u16(AREAS.device + 2) {
            0 => true,
            2 => guest.get_u16(AREAS.device) == position,
            _ => false,
        }
    }

    /// As [`Self::used`], in the packed ring.
    fn used_packed(&self) -> u32 {
        let place = AREAS.descriptor + 16 * u64::from(self.head());
        let used = if self.wrap(0) { 1 << 7 | 1 << 15 } else { 0 };
        let flags = self.guest.get_u16(place + 14);
        assert_eq!(flags & (1 << 7 | 1 << 15), used, "a request is not answered");
        assert_eq!(self.guest.get_u16(place + 12), self.done);
        u32::from_le_bytes(self.guest.get(place + 8))
    }
}
