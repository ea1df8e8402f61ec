//! Discard and write zeroes.

use super::*;

const DISCARD_REQUEST: u32 = 11;
const WRITE_ZEROES_REQUEST: u32 = 13;
const BOTH: Features = WITH_FLUSH.union(DISCARD).union(WRITE_ZEROES);

/// A disk of 64 sectors that discards up to 32 of them, and zeroes up to 16.
fn disk() -> Disk {
    let disk = Disk::new();
    disk.get().info.discard = Some(DiscardLimits { max_sectors: 32, alignment: 8 });
    disk.get().info.write_zeroes = Some(WriteZeroesLimits { max_sectors: 16, may_unmap: true });
    disk
}

/// Puts segment `number` of a request into memory.
fn put_range(driver: &Driver<'_>, number: u64, (sector, sectors, flags): (u64, u32, u32)) {
    let at = DATA + 16 * number;
    driver.put(at, &sector.to_le_bytes());
    driver.put(at + 8, &sectors.to_le_bytes());
    driver.put(at + 12, &flags.to_le_bytes());
}

/// The status of a request that must not reach the disk.
fn refused_range(disk: &Disk, features: Features, kind: u32, range: (u64, u32, u32)) -> u8 {
    guest!(disk, features, driver, transport);
    put_range(&driver, 0, range);
    request(&mut driver, &mut transport, (kind, 0), &[(DATA, 16, false)]);
    assert!(disk.get().submitted.is_empty(), "{kind} {range:?}");
    assert_eq!((driver.used(), driver.used()), (Some((0, 1)), None));
    status(&driver)
}

#[test]
fn a_range_goes_to_the_disk_as_it_is() {
    for (kind, flags, op) in [
        (DISCARD_REQUEST, 0, BlockOp::Discard { sectors: 16 }),
        (WRITE_ZEROES_REQUEST, 0, BlockOp::WriteZeroes { sectors: 16, unmap: false }),
        (WRITE_ZEROES_REQUEST, 1, BlockOp::WriteZeroes { sectors: 16, unmap: true }),
    ] {
        let disk = disk();
        guest!(disk, BOTH, driver, transport);
        for (result, expected) in
            [(BlockStatus::Ok, 0), (BlockStatus::IoError, 1), (BlockStatus::Unsupported, 2)]
        {
            put_range(&driver, 0, (48, 16, flags));
            // The header's sector means nothing here.
            request(&mut driver, &mut transport, (kind, 99), &[(DATA, 16, false)]);
            assert_eq!(disk.get().submitted.pop(), Some((Tag(0), op, 48, vec![])));
            assert_eq!(driver.used(), None);
            disk.finish(0, result);
            transport.poll(NOW);
            assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), expected));
        }
    }
}

#[test]
fn a_segment_may_be_cut_anywhere() {
    for cut in 1..16 {
        let disk = disk();
        guest!(disk, BOTH, driver, transport);
        put_range(&driver, 0, (3, 4, 0));
        let tail: [u8; 16] = driver.get(DATA + u64::from(cut));
        driver.put(DATA + 0x100, &tail);
        let data = [(DATA, cut, false), (DATA + 0x100, 16 - cut, false)];
        request(&mut driver, &mut transport, (DISCARD_REQUEST, 0), &data);
        let op = BlockOp::Discard { sectors: 4 };
        assert_eq!(disk.get().submitted, [(Tag(0), op, 3, vec![])]);
    }
}

#[test]
fn ranges_that_are_not_on_the_disk_or_too_long_are_errors() {
    let disk = disk();
    for range in [(64, 1, 0), (63, 2, 0), (u64::MAX, 1, 0), (u64::MAX - 3, 8, 0), (1 << 55, 8, 0)] {
        assert_eq!(refused_range(&disk, BOTH, DISCARD_REQUEST, range), 1, "{range:?}");
        assert_eq!(refused_range(&disk, BOTH, WRITE_ZEROES_REQUEST, range), 1, "{range:?}");
    }
    for (kind, max) in [(DISCARD_REQUEST, 32), (WRITE_ZEROES_REQUEST, 16)] {
        assert_eq!(refused_range(&disk, BOTH, kind, (0, max + 1, 0)), 1);
        assert_eq!(refused_range(&disk, BOTH, kind, (0, u32::MAX, 0)), 1);
        // Nothing to do, but where nothing is.
        assert_eq!(refused_range(&disk, BOTH, kind, (64, 0, 0)), 0);
        assert_eq!(refused_range(&disk, BOTH, kind, (65, 0, 0)), 1);
    }
    // Whole blocks only.
    disk.get().info.block_size = 4096;
    for range in [(4, 8, 0), (8, 4, 0), (1, 1, 0)] {
        assert_eq!(refused_range(&disk, BOTH, DISCARD_REQUEST, range), 1, "{range:?}");
        assert_eq!(refused_range(&disk, BOTH, WRITE_ZEROES_REQUEST, range), 1, "{range:?}");
    }
}

#[test]
fn unknown_flags_and_more_segments_than_offered_are_unsupported() {
    let disk = disk();
    for bit in 0..32 {
        // Even where the range is bad too.
        for (sector, sectors) in [(0, 8), (64, 8), (0, 33), (0, 0)] {
            let range = (sector, sectors, 1 << bit);
            assert_eq!(refused_range(&disk, BOTH, DISCARD_REQUEST, range), 2, "{range:?}");
            if bit > 0 {
                let range = (sector, sectors, 1 << bit | 1);
                assert_eq!(refused_range(&disk, BOTH, WRITE_ZEROES_REQUEST, range), 2);
            }
        }
    }
    for kind in [DISCARD_REQUEST, WRITE_ZEROES_REQUEST] {
        for (bytes, expected) in [(0, 1), (1, 1), (15, 1), (17, 2), (32, 2), (48, 2)] {
            guest!(disk, BOTH, driver, transport);
            for number in 0..3 {
                put_range(&driver, number, (8 * number, 8, 0));
            }
            let data = [(DATA, bytes, false)];
            let data = if bytes == 0 { &[][..] } else { &data };
            request(&mut driver, &mut transport, (kind, 0), data);
            assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), expected), "{bytes}");
            assert!(disk.get().submitted.is_empty());
        }
    }
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let disk = disk();
    let range = (0, 8, 0);
    assert_eq!(refused_range(&disk, BOTH - DISCARD, DISCARD_REQUEST, range), 2);
    assert_eq!(refused_range(&disk, BOTH - WRITE_ZEROES, WRITE_ZEROES_REQUEST, range), 2);
    // A read-only disk does not offer them.
    disk.get().info.read_only = true;
    for kind in [DISCARD_REQUEST, WRITE_ZEROES_REQUEST] {
        assert_eq!(refused_range(&disk, WITH_FLUSH, kind, range), 2);
    }
}

#[test]
fn secure_erase_lifetime_and_zones_are_unsupported() {
    let disk = disk();
    for kind in [10, 14, 15, 16, 18, 20, 22, 24, 26] {
        assert_eq!(refused_range(&disk, BOTH, kind, (0, 8, 0)), 2, "{kind}");
    }
}

#[test]
fn zeroes_are_durable_before_they_complete_if_writes_are_but_discards_promise_nothing() {
    let disk = disk();
    guest!(disk, BOTH - FLUSH, driver, transport);
    put_range(&driver, 0, (0, 8, 0));
    request(&mut driver, &mut transport, (DISCARD_REQUEST, 0), &[(DATA, 16, false)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));
    assert_eq!(disk.get().submitted.len(), 1);

    request(&mut driver, &mut transport, (WRITE_ZEROES_REQUEST, 0), &[(DATA, 16, false)]);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert_eq!(disk.get().submitted.last().unwrap().1, BlockOp::Flush);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));
}

#[test]
fn a_range_that_changes_after_it_was_judged_has_no_second_look() {
    let disk = disk();
    guest!(disk, BOTH, driver, transport);
    disk.get().room = 0;
    put_range(&driver, 0, (0, 8, 0));
    request(&mut driver, &mut transport, (DISCARD_REQUEST, 0), &[(DATA, 16, false)]);
    // It waits in the ring, and is judged as it is when the disk has room.
    put_range(&driver, 0, (60, 8, 0));
    disk.get().room = 1;
    transport.poll(NOW);
    assert!(disk.get().submitted.is_empty());
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 1));
}
