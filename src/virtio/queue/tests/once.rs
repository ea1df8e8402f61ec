//! What a driver has written is read once: it may change right after, and nothing else comes of it.
//!
//! The driver here is the worst there can be. The moment the device has loaded a byte of a
//! descriptor, of an indirect table, of an entry of the available ring or of a request's header, the
//! byte is another.

use super::*;
use crate::backend::ram::RamDisk;
use crate::memory::Pa;
use crate::memory::testing::with_other_side;
use crate::virtio::MmioTransport;
use crate::virtio::devices::block::Block;
use crate::virtio::testing::packed::PackedDriver;
use crate::virtio::testing::{NOW, Registers};

const TABLE_PLACE: u64 = BUFFERS + 0x1000;
const FEATURES: Features = Features::VERSION_1.union(Features::INDIRECT_DESC);
const PACKED: Features = FEATURES.union(Features::RING_PACKED);

const LIST: [(u64, u32, bool); 4] = [
    (BUFFERS, 4, false),
    (BUFFERS + 0x40, 8, false),
    (BUFFERS + 0x80, 16, true),
    (BUFFERS + 0xC0, 32, true),
];

/// Does `work`, while each byte of `places` (guest address, length) becomes another when it has been
/// loaded. None may be loaded twice. The bytes that were loaded.
fn hostile<T>(
    memory: &GuestMemory<'_>,
    places: &[(u64, u64)],
    work: impl FnOnce() -> T,
) -> (T, usize) {
    let base = memory.regions()[0].1.pa().raw();
    let loaded = std::rc::Rc::new(std::cell::RefCell::new(std::collections::BTreeSet::new()));
    let (seen, places) = (loaded.clone(), places.to_vec());
    let result = with_other_side(
        move |slice, offset, len| {
            for at in offset..offset + len {
                let address = RAM + (slice.pa().raw() + at as u64).wrapping_sub(base);
                if places.iter().any(|(start, len)| (*start..start + len).contains(&address)) {
                    assert!(seen.borrow_mut().insert(address), "{address:#x} is loaded twice");
                    let byte = slice.load_u8(at).unwrap();
                    slice.store_u8(at, !byte).unwrap();
                }
            }
        },
        work,
    );
    let count = loaded.borrow().len();
    (result, count)
}

#[test]
fn a_split_chain_is_what_it_was_when_it_was_read() {
    for table in [None, Some(TABLE_PLACE), Some(TABLE_PLACE + 4), Some(TABLE_PLACE + 1)] {
        for direct in 0..LIST.len() {
            let direct = if table.is_some() { direct } else { LIST.len() };
            let ram = HostRam::new(RAM_SIZE);
            let mut driver = Driver::new(guest_memory(&ram), 8);
            driver.chain(0, &LIST[..direct]);
            if let Some(table) = table {
                if let Some(last) = direct.checked_sub(1) {
                    // Goes on in the table.
                    let (address, len, writable) = LIST[last];
                    let flags = NEXT | if writable { WRITE } else { 0 };
                    driver.descriptor(last as u16, (address, len, flags, direct as u16));
                }
                let rest = &LIST[direct..];
                for (at, (address, len, writable)) in rest.iter().enumerate() {
                    let more = if at + 1 < rest.len() { NEXT } else { 0 };
                    let flags = more | if *writable { WRITE } else { 0 };
                    let index = at as u16;
                    driver.descriptor_at(table, index, (*address, *len, flags, index + 1));
                }
                let len = 16 * rest.len() as u32;
                driver.descriptor(direct as u16, (table, len, INDIRECT, 0));
            }
            driver.offer(0);
            let mut queue = started(&driver, FEATURES);
            let places = [(RAM, 128), (RAM + 0x1004, 16), (TABLE_PLACE, 128)];
            let (chain, loaded) =
                hostile(&driver.memory, &places, || pop(queue.ring().unwrap(), &driver.memory));
            let readable = vec![(0x4000, 4), (0x4040, 8)];
            let writable = vec![(0x4080, 16), (0x40C0, 32)];
            assert_eq!(chain, Ok(Some((0, readable, writable))));
            // All descriptors, and the entry of the available ring.
            let descriptors = LIST.len() + usize::from(table.is_some());
            assert_eq!(loaded, 16 * descriptors + 2);
        }
    }
}

#[test]
fn a_packed_list_is_what_it_was_when_it_was_read() {
    for table in [None, Some(TABLE_PLACE), Some(TABLE_PLACE + 4), Some(TABLE_PLACE + 1)] {
        let ram = HostRam::new(RAM_SIZE);
        let mut driver = PackedDriver::new(guest_memory(&ram), 8);
        match table {
            Some(table) => driver.offer_indirect(5, table, &LIST),
            None => driver.offer(5, &LIST),
        }
        let mut queue = Queue::new(256);
        queue.set_size(8);
        queue.set_areas(|areas| *areas = driver.areas);
        queue.set_ready();
        queue.start(PACKED, &driver.memory).unwrap();
        let places = [(RAM, 128), (TABLE_PLACE, 128)];
        let (list, loaded) =
            hostile(&driver.memory, &places, || pop(queue.ring().unwrap(), &driver.memory));
        let readable = vec![(0x4000, 4), (0x4040, 8)];
        let writable = vec![(0x4080, 16), (0x40C0, 32)];
        assert_eq!(list, Ok(Some((5, readable, writable))));
        assert_eq!(loaded, 16 * (LIST.len() + usize::from(table.is_some())));
    }
}

#[test]
fn a_request_to_the_disk_is_what_it_was_when_it_was_read() {
    const HEADER: u64 = BUFFERS + 0x100;
    const DATA: u64 = BUFFERS + 0x400;
    const STATUS: u64 = BUFFERS + 0x800;
    // The header whole, and cut where its fields are.
    for cut in [16, 1, 4, 9] {
        let (ram, disk) = (HostRam::new(RAM_SIZE), HostRam::new(8192));
        let mut driver = Driver::new(guest_memory(&ram), 8);
        let mut backend = RamDisk::new(disk.slice(Pa::new(0x1_0000_0000)), [0; 20]);
        let mut block = Block::new(&mut backend);
        let mut transport = MmioTransport::new(&mut block, guest_memory(&ram));
        transport.bring_up(FEATURES, &driver);
        driver.put(HEADER, &[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        driver.put(DATA, &[0xAB; 512]);
        driver.put(STATUS, &[0xFF]);
        let rest = (HEADER + u64::from(cut), 16 - cut, false);
        driver.chain(0, &[(HEADER, cut, false), rest, (DATA, 512, false), (STATUS, 1, true)]);
        driver.offer(0);
        let places = [(RAM, 128), (RAM + 0x1004, 16), (HEADER, 16)];
        let ((), loaded) = hostile(&driver.memory, &places, || {
            transport.set(0x50, 0);
            // Once for the write, and once for the flush that makes it durable.
            transport.poll(NOW);
            transport.poll(NOW);
        });
        // Two descriptors and more, the entry, the header.
        assert_eq!(loaded, 4 * 16 + 2 + 16);
        assert_eq!(driver.used(), Some((0, 1)));
        assert_eq!(driver.get(STATUS), [0]);
        let mut sector = [0; 512];
        disk.slice(Pa::new(0)).read_bytes(3 * 512, &mut sector).unwrap();
        assert_eq!(sector, [0xAB; 512]);
        assert_eq!(transport.get(0x70), 15);
    }
}
