//! The block device (5.2).

use sparkler::virtio::devices::block::RO;

use super::*;

#[test]
fn configuration_without_a_feature_is_zero() {
    disk!(ram, storage, driver, machine);
    let present = [0x100..0x108, 0x10C..0x110, 0x114..0x118];
    for at in 0x100..0x1000 {
        if !present.iter().any(|range| range.contains(&at)) {
            assert_eq!(machine.device.read(at, Width::Byte), 0, "{at:#x}");
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
