//! The cache turned on and off, and a capacity that changes.

use super::*;

const WCE: Features = WITH_FLUSH.union(CONFIG_WCE);
/// `writeback`.
const WRITEBACK: u16 = 0x120;

fn set_writeback(transport: &mut MmioTransport<'_, '_>, width: Width, value: u64) {
    assert_eq!(transport.write(WRITEBACK, width, value, NOW), WriteOutcome::Done);
}

/// Does a write to the end; whether it was flushed before it was answered.
fn is_flushed(disk: &Disk, driver: &mut Driver<'_>, transport: &mut MmioTransport<'_, '_>) -> bool {
    disk.get().submitted.clear();
    request(driver, transport, (OUT, 0), &[(DATA, 512, false)]);
    for _ in 0..2 {
        if disk.get().held > 0 {
            assert_eq!(driver.used(), None);
            disk.finish(0, BlockStatus::Ok);
            transport.poll(NOW);
        }
    }
    assert_eq!((driver.used(), status(driver)), (Some((0, 1)), 0));
    let ops: Vec<_> = disk.get().submitted.iter().map(|it| it.1).collect();
    assert_eq!(ops[0], BlockOp::Write);
    ops[1..] == [BlockOp::Flush]
}

#[test]
fn the_driver_turns_the_cache_off_and_on() {
    let disk = Disk::new();
    guest!(disk, WCE, driver, transport);
    for (value, flushed) in [(1, false), (0, true), (0, true), (1, false)] {
        set_writeback(&mut transport, Width::Byte, value);
        assert_eq!(transport.read(WRITEBACK, Width::Byte), value);
        assert_eq!(is_flushed(&disk, &mut driver, &mut transport), flushed);
    }
    assert!(transport.take_interrupt());
    assert_eq!(transport.get(0x60), 1);
    // Until the next reset.
    set_writeback(&mut transport, Width::Byte, 0);
    let mut driver = Driver::new(driver.memory.clone(), 16);
    transport.bring_up(WCE, &driver);
    assert_eq!(transport.read(WRITEBACK, Width::Byte), 1);
    assert!(!is_flushed(&disk, &mut driver, &mut transport));
}

#[test]
fn other_values_widths_and_fields_are_not_written() {
    let disk = Disk::new();
    guest!(disk, WCE, driver, transport);
    let before: Vec<_> = (0x100..0x140).map(|at| transport.read(at, Width::Byte)).collect();
    for at in (0x100..0x140).filter(|at| *at != WRITEBACK) {
        assert_eq!(transport.write(at, Width::Byte, 0x5A, NOW), WriteOutcome::Done);
    }
    for value in [2, 0x80, 0xFF] {
        set_writeback(&mut transport, Width::Byte, value);
    }
    set_writeback(&mut transport, Width::Half, 0);
    set_writeback(&mut transport, Width::Word, 0);
    let after: Vec<_> = (0x100..0x140).map(|at| transport.read(at, Width::Byte)).collect();
    assert_eq!(before, after);
    assert!(!is_flushed(&disk, &mut driver, &mut transport));
}

#[test]
fn without_config_wce_writeback_is_not_written() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    set_writeback(&mut transport, Width::Byte, 0);
    assert!(!is_flushed(&disk, &mut driver, &mut transport));
}

#[test]
fn writeback_begins_as_0_without_flush() {
    let disk = Disk::new();
    guest!(disk, V1 | CONFIG_WCE, driver, transport);
    assert_eq!(transport.read(WRITEBACK, Width::Byte), 0);
    assert!(is_flushed(&disk, &mut driver, &mut transport));
    set_writeback(&mut transport, Width::Byte, 1);
    assert!(!is_flushed(&disk, &mut driver, &mut transport));
}

#[test]
fn writeback_may_be_written_from_features_ok_on() {
    let disk = Disk::new();
    guest!(disk, WCE, driver, transport);
    let mut driver = Driver::new(driver.memory.clone(), 16);
    assert!(transport.negotiate(WCE));
    set_writeback(&mut transport, Width::Byte, 0);
    transport.configure_queue(0, 16, &driver.areas);
    transport.set(0x44, 1);
    transport.set(0x70, 15);
    assert!(is_flushed(&disk, &mut driver, &mut transport));
}

#[test]
fn a_write_at_work_keeps_the_promise_it_was_made() {
    let disk = Disk::new();
    guest!(disk, WCE, driver, transport);
    set_writeback(&mut transport, Width::Byte, 0);
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    set_writeback(&mut transport, Width::Byte, 1);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert_eq!(disk.get().submitted[1].1, BlockOp::Flush);
}

#[test]
fn a_disk_that_grows_says_so_and_has_its_new_sectors_at_once() {
    let disk = Disk::new();
    guest!(disk, WITH_FLUSH, driver, transport);
    request(&mut driver, &mut transport, (IN, 64), &[(DATA, 512, true)]);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 0)), 1));
    assert!(transport.take_interrupt());
    transport.set(0x64, 3);
    let generation = transport.get(0xFC);

    // Nothing has changed.
    transport.backend_changed(NOW);
    assert!(!transport.take_interrupt());
    assert_eq!(transport.get(0xFC), generation);

    // Not before it is said, and with a request in flight.
    request(&mut driver, &mut transport, (IN, 63), &[(DATA, 512, true)]);
    disk.get().info.sectors = 128;
    assert_eq!(transport.get(0x100), 64);
    transport.backend_changed(NOW);
    assert_eq!(transport.get(0x100), 128);
    assert!(transport.take_interrupt());
    assert_eq!(transport.get(0x60), 2);
    assert_ne!(transport.get(0xFC), generation);
    disk.finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 513)), 0));

    request(&mut driver, &mut transport, (IN, 127), &[(DATA, 512, true)]);
    assert_eq!(disk.get().submitted.last().unwrap().2, 127);
    // What is more than the capacity is refused all the same.
    request(&mut driver, &mut transport, (IN, 128), &[(DATA, 512, true)]);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 0)), 1));
}

#[test]
fn a_disk_may_grow_before_a_driver_comes_and_only_its_capacity_changes() {
    let ram = HostRam::new(RAM_SIZE);
    let disk = Disk::new();
    let mut backend = disk.clone();
    let mut device = Block::new(&mut backend);
    let mut transport = MmioTransport::new(&mut device, guest_memory(&ram));
    let offered = transport.get(0x10);
    disk.get().info.sectors = 1 << 40;
    disk.get().info.read_only = true;
    transport.backend_changed(NOW);
    assert!(!transport.take_interrupt());
    assert_eq!(transport.read(0x100, Width::Double), 1 << 40);
    assert_eq!(transport.get(0x10), offered);
}
