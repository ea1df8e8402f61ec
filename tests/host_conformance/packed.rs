//! The packed virtqueue (2.8), with a driver of its own.

use sparkler::backend::ram::CompletionOrder;

use super::*;

/// The driver of a packed ring (2.8), in the same places as the split one, for lists in flight that
/// are all of one length.
#[derive(Clone, Copy)]
struct Packed {
    next: u64,
    available_wrap: bool,
    used: u64,
    used_wrap: bool,
}

impl Packed {
    const AVAILABLE: u16 = 1 << 7;
    const USED: u16 = 1 << 15;

    fn start(driver: &mut Driver<'_>, machine: &mut Machine<'_, '_>, wanted: Features) -> Self {
        driver.start(machine, wanted | Features::RING_PACKED);
        Self { next: 0, available_wrap: true, used: 0, used_wrap: true }
    }

    fn flags(wrap: bool) -> u16 {
        if wrap { Self::AVAILABLE } else { Self::USED }
    }

    fn put_flags(driver: &Driver<'_>, at: u64, flags: u16) {
        driver.put(RAM + at * 16 + 14, &flags.to_le_bytes());
    }

    /// Makes a list available, the first descriptor's flags last. Where it begins.
    fn offer(&mut self, driver: &Driver<'_>, id: u16, buffers: &[(u64, u32, bool)]) -> u64 {
        let first = self.next;
        let mut first_flags = 0;
        for (at, (address, len, writable)) in buffers.iter().enumerate() {
            let more = at + 1 < buffers.len();
            let flags = Self::flags(self.available_wrap);
            let flags = flags | u16::from(more) | u16::from(*writable) << 1;
            driver.put(RAM + self.next * 16, &address.to_le_bytes());
            driver.put(RAM + self.next * 16 + 8, &len.to_le_bytes());
            driver.put(RAM + self.next * 16 + 12, &id.to_le_bytes());
            if at == 0 {
                first_flags = flags;
            } else {
                Self::put_flags(driver, self.next, flags);
            }
            Self::advance(&mut self.next, &mut self.available_wrap, 1);
        }
        Self::put_flags(driver, first, first_flags);
        first
    }

    fn advance(position: &mut u64, wrap: &mut bool, count: u64) {
        *position += count;
        if *position >= u64::from(QUEUE_SIZE) {
            *position -= u64::from(QUEUE_SIZE);
            *wrap = !*wrap;
        }
    }

    /// The next list of `descriptors` that is used: its ID and length.
    fn take(&mut self, driver: &Driver<'_>, descriptors: u64) -> Option<(u16, u32)> {
        let descriptor = driver.get(RAM + self.used * 16, 16);
        let flags = u16::from_le_bytes([descriptor[14], descriptor[15]]);
        let both = if self.used_wrap { Self::AVAILABLE | Self::USED } else { 0 };
        if flags & (Self::AVAILABLE | Self::USED) != both {
            return None;
        }
        Self::advance(&mut self.used, &mut self.used_wrap, descriptors);
        let len = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
        Some((u16::from_le_bytes([descriptor[12], descriptor[13]]), len))
    }
}

/// A header at `at`, with its request.
fn header(driver: &Driver<'_>, at: u64, (kind, sector): (u32, u64)) {
    driver.put(at, &kind.to_le_bytes());
    driver.put(at + 4, &[0; 4]);
    driver.put(at + 8, &sector.to_le_bytes());
}

#[test]
fn on_a_packed_ring_only_used_descriptors_and_writable_buffers_change() {
    disk!(ram, storage, driver, machine);
    let mut packed = Packed::start(&mut driver, &mut machine, FLUSH | Features::EVENT_IDX);
    // Three descriptors each: the ring wraps every sixth request, in the middle of a list.
    for round in 0..100 {
        let (what, data) = match round % 4 {
            0 => ((WRITE, 3), (DATA, 512, false)),
            1 => ((READ, 3), (DATA, 512, true)),
            2 => ((READ, 1 << 40), (DATA, 512, true)),
            _ => ((99, 0), (DATA, 512, false)),
        };
        driver.put(DATA, &[0x3C; 512]);
        header(&driver, BUFFERS, what);
        let list = [(BUFFERS, 16, false), data, (STATUS, 1, true)];
        let first = packed.offer(&driver, round, &list);
        let before = snapshot(&driver);
        driver.ring(&mut machine);
        machine.run_to_idle();
        assert_eq!(packed.take(&driver, 3).map(|it| it.0), Some(round));
        let mut may_change = vec![
            RAM + first * 16..RAM + first * 16 + 16,
            RAM + 0x2000..RAM + 0x2004,
            STATUS..STATUS + 1,
        ];
        if data.2 {
            may_change.push(DATA..DATA + 512);
        }
        let after = snapshot(&driver);
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            let address = RAM + at as u64;
            let allowed = may_change.iter().any(|range| range.contains(&address));
            assert!(before == after || allowed, "{what:?} changed {address:#x}");
        }
        // A descriptor that has been used is the driver's.
        driver.ring(&mut machine);
        machine.poll();
        assert!(snapshot(&driver) == after);
    }
}

#[test]
fn on_a_packed_ring_what_writable_buffers_held_before_makes_no_difference() {
    let run = |fill: u8| {
        disk!(ram, storage, driver, machine);
        storage.slice(Pa::new(0)).fill(0, 4096, 0x77).unwrap();
        let mut packed = Packed::start(&mut driver, &mut machine, FLUSH);
        let mut answers = vec![];
        for what in [(READ, 2), (READ, 999), (77, 0)] {
            driver.put(DATA, &[fill; 512]);
            driver.put(STATUS, &[fill]);
            header(&driver, BUFFERS, what);
            packed.offer(&driver, 5, &[(BUFFERS, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
            driver.ring(&mut machine);
            machine.run_to_idle();
            let (_, len) = packed.take(&driver, 3).unwrap();
            let data = driver.get(DATA, 512);
            let written = if len == 0 { vec![] } else { data };
            answers.push((driver.get(STATUS, 1), len, written));
        }
        answers
    };
    assert_eq!(run(0), run(0xFF));
    assert_eq!(run(0)[0].2, [0x77; 512]);
}

#[test]
fn a_packed_descriptor_counts_only_once_its_available_bit_has_changed() {
    disk!(ram, storage, driver, machine);
    let mut packed = Packed::start(&mut driver, &mut machine, FLUSH);
    for round in 0..40 {
        header(&driver, BUFFERS, (READ, 0));
        let mut after = packed;
        let list = [(BUFFERS, 16, false), (DATA, 512, true), (STATUS, 1, true)];
        let first = after.offer(&driver, round, &list);
        let flags = driver.get(RAM + first * 16 + 14, 2);
        let flags = u16::from_le_bytes([flags[0], flags[1]]);
        let bits = Packed::AVAILABLE | Packed::USED;
        // Both as before, both changed, and the other lap's.
        for stale in [0, bits, bits ^ (flags & bits)] {
            Packed::put_flags(&driver, first, flags & !bits | stale);
            let before = snapshot(&driver);
            driver.ring(&mut machine);
            machine.poll();
            assert!(snapshot(&driver) == before, "flags {stale:#x}");
        }
        Packed::put_flags(&driver, first, flags);
        driver.ring(&mut machine);
        machine.run_to_idle();
        packed = after;
        assert_eq!(packed.take(&driver, 3), Some((round, 513)));
    }
}

#[test]
fn packed_lists_are_started_in_ring_order_and_used_in_the_order_of_completion() {
    for order in [CompletionOrder::InOrder, CompletionOrder::Reversed] {
        let ram = HostRam::new(RAM_SIZE);
        let storage = HostRam::new(SECTORS * SECTOR);
        let mut disk = RamDisk::new(storage.slice(Pa::new(0)), [0; 20]).with_order(order);
        let mut block = Block::new(&mut disk);
        let mut driver = Driver::new(guest::memory(&ram));
        let device = MmioTransport::new(&mut block, guest::memory(&ram));
        let mut machine = Machine { device, interrupts: 0 };
        let mut packed = Packed::start(&mut driver, &mut machine, FLUSH);
        for round in 0..50 {
            // Four writes to one sector: the disk has what the last one started says.
            for id in 0..4_u16 {
                let (at, data) = (BUFFERS + u64::from(id) * 16, DATA + u64::from(id) * 512);
                header(&driver, at, (WRITE, 9));
                driver.put(data, &[id as u8 + round; 512]);
                let status = STATUS + u64::from(id);
                packed.offer(
                    &driver,
                    id * 7,
                    &[(at, 16, false), (data, 512, false), (status, 1, true)],
                );
            }
            driver.ring(&mut machine);
            machine.run_to_idle();
            let ids = [(); 4].map(|()| packed.take(&driver, 3).unwrap().0);
            let reversed = order == CompletionOrder::Reversed;
            assert_eq!(ids, if reversed { [21, 14, 7, 0] } else { [0, 7, 14, 21] });
            assert_eq!(storage.slice(Pa::new(0)).load_u8(9 * SECTOR), Some(3 + round));
        }
    }
}
