//! The block device (5.2).

use sparkler::virtio::devices::block::{CONFIG_WCE, DISCARD, RO, WRITE_ZEROES};

use super::*;

const DISCARD_SECTORS: u32 = 11;
const ZERO_SECTORS: u32 = 13;
const WRITEBACK: u16 = 0x120;

/// A request of one segment.
fn range(
    machine: &mut Machine<'_, '_>,
    driver: &mut Driver<'_>,
    kind: u32,
    (sector, sectors, flags): (u64, u32, u32),
) -> u8 {
    driver.put(DATA, &sector.to_le_bytes());
    driver.put(DATA + 8, &sectors.to_le_bytes());
    driver.put(DATA + 12, &flags.to_le_bytes());
    request(machine, driver, (kind, 0), &[(DATA, 16, false)]).0
}

#[test]
fn configuration_without_a_feature_is_zero() {
    // Geometry, `unused0`, `num_queues` of one queue, `unused1`, and all that follows.
    let absent = |at| {
        [0x110..0x114, 0x121..0x124, 0x139..0x13C, 0x13C..0x1000].iter().any(|it| it.contains(&at))
    };
    disk!(ram, storage, driver, machine);
    for at in (0x100..0x1000).filter(|at| absent(*at)) {
        assert_eq!(machine.device.read(at, Width::Byte), 0, "{at:#x}");
    }
    // Nor has a read-only disk anything to say of discards and write zeroes.
    disk!(ram, storage, driver, machine, read_only);
    for at in (0x100..0x1000).filter(|at| absent(*at) || (0x124..0x139).contains(at)) {
        assert_eq!(machine.device.read(at, Width::Byte), 0, "{at:#x}");
    }
}

#[test]
fn flags_that_are_not_known_are_unsupported_and_change_nothing() {
    disk!(ram, storage, driver, machine);
    let contents = storage.slice(Pa::new(0));
    contents.fill(0, contents.len(), 0x66).unwrap();
    driver.start(&mut machine, FLUSH | DISCARD | WRITE_ZEROES);
    for bit in 0..32 {
        assert_eq!(range(&mut machine, &mut driver, DISCARD_SECTORS, (0, 8, 1 << bit)), 2);
        if bit != 0 {
            assert_eq!(range(&mut machine, &mut driver, ZERO_SECTORS, (0, 8, 1 << bit)), 2);
            assert_eq!(range(&mut machine, &mut driver, ZERO_SECTORS, (0, 8, 1 | 1 << bit)), 2);
        }
    }
    let mut bytes = vec![0; contents.len()];
    contents.read_bytes(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x66));
}

#[test]
fn zeroed_sectors_read_as_zeros_and_no_others() {
    for flags in [0, 1] {
        disk!(ram, storage, driver, machine);
        let contents = storage.slice(Pa::new(0));
        contents.fill(0, contents.len(), 0x66).unwrap();
        driver.start(&mut machine, FLUSH | WRITE_ZEROES);
        assert_eq!(range(&mut machine, &mut driver, ZERO_SECTORS, (3, 5, flags)), 0);
        for sector in 0..10 {
            let answer = request(&mut machine, &mut driver, (READ, sector), &[(DATA, 512, true)]);
            assert_eq!(answer.0, 0);
            let expected = if (3..8).contains(&sector) { 0 } else { 0x66 };
            assert_eq!(driver.get(DATA, 512), [expected; 512], "{sector}");
        }
    }
}

#[test]
fn writeback_begins_as_0_if_it_can_be_written_and_nothing_flushed() {
    disk!(ram, storage, driver, machine);
    for (features, expected) in [(CONFIG_WCE, 0), (CONFIG_WCE | FLUSH, 1)] {
        driver.start(&mut machine, features);
        assert_eq!(machine.device.read(WRITEBACK, Width::Byte), expected);
        // Whatever the mode, requests are answered.
        for value in [0, 1] {
            let outcome = machine.device.write(WRITEBACK, Width::Byte, value, NOW);
            assert_eq!(outcome, WriteOutcome::Done);
            assert_eq!(machine.device.read(WRITEBACK, Width::Byte), value);
            let data = [(DATA, 512, false)];
            assert_eq!(request(&mut machine, &mut driver, (WRITE, 1), &data).0, 0);
        }
    }
}

#[test]
fn a_read_only_disk_keeps_its_data() {
    disk!(ram, storage, driver, machine, read_only);
    let contents = storage.slice(Pa::new(0));
    contents.fill(0, contents.len(), 0x66).unwrap();
    for features in [FLUSH, FLUSH | RO] {
        driver.start(&mut machine, features);
        driver.put(DATA, &[0x11; 1024]);
        for data in [&[(DATA, 512, false)][..], &[(DATA, 1000, false), (DATA, 24, false)], &[]] {
            assert_eq!(request(&mut machine, &mut driver, (WRITE, 1), data).0, 1);
        }
    }
    let mut bytes = vec![0; contents.len()];
    contents.read_bytes(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x66));
}

#[test]
fn commands_that_were_not_offered_are_unsupported() {
    disk!(ram, storage, driver, machine);
    driver.start(&mut machine, FLUSH);
    // One range of 8 sectors, with every flag value that fits.
    for flags in [0_u32, 1, 2, 3, 1 << 31, u32::MAX] {
        driver.put(DATA, &8_u64.to_le_bytes());
        driver.put(DATA + 8, &8_u32.to_le_bytes());
        driver.put(DATA + 12, &flags.to_le_bytes());
        for kind in 0..=64 {
            if [READ, WRITE, FLUSH_CACHE, GET_ID].contains(&kind) {
                continue;
            }
            let data = [(DATA, 16, false), (DATA + 0x800, 64, true)];
            let answer = request(&mut machine, &mut driver, (kind, 0), &data);
            assert_eq!(answer.0, 2, "type {kind} flags {flags:#x}");
        }
    }
}
