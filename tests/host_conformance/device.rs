//! Status, features, reset, configuration, registers: what is the same for all devices.

use sparkler::virtio::devices::block::{
    BLK_SIZE, CONFIG_WCE, DISCARD, MQ, RO, SEG_MAX, SIZE_MAX, TOPOLOGY, WRITE_ZEROES,
};
use sparkler::virtio::{Context, DeviceType, VirtioDevice};

use super::*;

/// A machine with the device of `$device`.
macro_rules! machine {
    ($ram:ident, $driver:ident, $machine:ident, $device:expr) => {
        let $ram = HostRam::new(RAM_SIZE);
        let mut device = $device;
        #[allow(unused)]
        let mut $driver = Driver::new(guest::memory(&$ram));
        let device = MmioTransport::new(&mut device, guest::memory(&$ram));
        let mut $machine = Machine { device, interrupts: 0 };
    };
}

/// Completes whatever it is given at once; has three queues.
#[derive(Default)]
struct Sink<'m> {
    chain: sparkler::virtio::queue::ChainBuffer<'m>,
}

impl<'m> VirtioDevice<'m> for Sink<'m> {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 16, 16]
    }

    fn queue_notified(&mut self, index: u16, context: &mut Context<'_, 'm>) {
        let Some(mut queue) = context.queue(index) else { return };
        while let Some(chain) = queue.pop(&mut self.chain) {
            queue.complete(chain.head, 0);
        }
    }
}

/// Every kind of disk: what is offered by each.
fn offers() -> Vec<Features> {
    let mut offers = vec![];
    disk!(ram, storage, driver, machine);
    offers.push(driver.offered(&mut machine));
    disk!(ram, storage, driver, machine, read_only);
    offers.push(driver.offered(&mut machine));
    let mut disk = RamDisk::new(storage.slice(Pa::new(0)), [0; 20]);
    let mut block = Block::new(&mut disk);
    block.set_queues(4);
    let device = MmioTransport::new(&mut block, guest::memory(&ram));
    offers.push(driver.offered(&mut Machine { device, interrupts: 0 }));
    offers
}

#[test]
fn buffers_offered_before_driver_ok_stay_untouched() {
    disk!(ram, storage, driver, machine);
    assert!(driver.negotiate(&mut machine, Features::VERSION_1));
    driver.configure_queue(&mut machine);
    machine.write(0x44, 1);
    offer(&mut driver, (READ, 0), &[(DATA, 512, true)]);
    let before = snapshot(&driver);
    driver.ring(&mut machine);
    machine.poll();
    assert!(snapshot(&driver) == before);
    assert_eq!((machine.interrupts, machine.read(0x60)), (0, 0));
    // From DRIVER_OK on the same chain is worked on.
    machine.write(0x70, 15);
    driver.ring(&mut machine);
    machine.run_to_idle();
    assert_eq!(driver.used(), Some((0, 513)));
}

/// What is offered at all, with what it needs (2.2, 5.2.3, 6).
const KNOWN: [(Features, Features); 16] = [
    (SIZE_MAX, Features::empty()),
    (TOPOLOGY, Features::empty()),
    (CONFIG_WCE, FLUSH),
    (MQ, Features::empty()),
    (DISCARD, Features::empty()),
    (WRITE_ZEROES, Features::empty()),
    (SEG_MAX, Features::empty()),
    (RO, Features::empty()),
    (BLK_SIZE, Features::empty()),
    (FLUSH, Features::empty()),
    (Features::INDIRECT_DESC, Features::VERSION_1),
    (Features::EVENT_IDX, Features::VERSION_1),
    (Features::VERSION_1, Features::empty()),
    (Features::RING_PACKED, Features::VERSION_1),
    (Features::NOTIFICATION_DATA, Features::VERSION_1),
    (Features::RING_RESET, Features::VERSION_1),
];

#[test]
fn a_feature_is_offered_with_those_it_needs() {
    for offer in offers() {
        for bit in offer.iter() {
            for feature in (0..64).map(|at| Features::from_bits_retain(1 << at)) {
                if bit.contains(feature) {
                    let known = KNOWN.iter().find(|(known, _)| *known == feature);
                    let (_, needs) = known.unwrap_or_else(|| panic!("{feature:?} is not known"));
                    assert!(offer.contains(*needs), "{feature:?} without {needs:?}");
                }
            }
        }
    }
}

#[test]
fn features_the_table_counts_on_being_absent_are_not_offered() {
    // Of the block device: BARRIER, GEOMETRY, SCSI, LIFETIME, SECURE_ERASE, ZONED.
    let of_disks = [0, 4, 7, 15, 16, 17];
    // ACCESS_PLATFORM, IN_ORDER, ORDER_PLATFORM, SR_IOV, ADMIN_VQ, and SUSPEND of version 1.4.
    let of_all = [33, 35, 36, 37, 41, 43];
    for offer in offers() {
        for bit in of_disks.into_iter().chain(of_all) {
            assert_eq!(offer.bits() & 1 << bit, 0, "bit {bit}");
        }
    }
}

#[test]
fn every_subset_of_the_offer_with_version_1_is_accepted_again_and_again() {
    disk!(ram, storage, driver, machine);
    let offered = driver.offered(&mut machine);
    let optional = offered.difference(Features::VERSION_1).bits();
    let mut subset = optional;
    loop {
        let wanted = Features::from_bits_retain(subset) | Features::VERSION_1;
        for _ in 0..2 {
            driver.start(&mut machine, wanted);
            assert_eq!(driver.offered(&mut machine), offered);
        }
        if subset == 0 {
            return;
        }
        subset = (subset - 1) & optional;
    }
}

#[test]
fn after_a_reset_nothing_is_touched_and_nothing_is_heard() {
    disk!(ram, storage, driver, machine);
    driver.start(&mut machine, FLUSH);
    offer(&mut driver, (READ, 0), &[(DATA, 512, true)]);
    driver.ring(&mut machine);
    assert!(machine.device.has_work_in_flight());
    machine.write(0x70, 0);
    machine.interrupts = 0;
    driver.put(DATA, &[0xA5; 512]);
    let before = snapshot(&driver);
    driver.ring(&mut machine);
    machine.poll();
    offer(&mut driver, (READ, 0), &[(DATA, 512, true)]);
    driver.ring(&mut machine);
    machine.poll();
    assert!(driver.get(DATA, 512) == [0xA5; 512]);
    assert!(snapshot(&driver)[0x2000..0x3000] == before[0x2000..0x3000]);
    assert_eq!((machine.interrupts, machine.read(0x60), machine.read(0x70)), (0, 0, 0));
}

#[test]
fn configuration_is_the_same_at_every_status() {
    disk!(ram, storage, driver, machine);
    let read = |machine: &Machine<'_, '_>| {
        (0x100..0x140).map(|at| machine.device.read(at, Width::Byte)).collect::<Vec<_>>()
    };
    let first = read(&machine);
    assert_eq!(first[0], SECTORS as u64);
    for status in [1, 3, 11, 15, 143] {
        if status == 11 {
            machine.write(0x24, 1);
            machine.write(0x20, Features::VERSION_1.page(1));
        }
        machine.write(0x70, status);
        assert_eq!(machine.read(0x70), status);
        assert_eq!(read(&machine), first, "status {status}");
    }
}

#[test]
fn a_disk_has_no_shared_memory() {
    disk!(ram, storage, driver, machine);
    for id in (0..=256).chain([u32::MAX]) {
        machine.write(0xAC, id);
        let registers = [0xB0, 0xB4, 0xB8, 0xBC].map(|offset| machine.read(offset));
        assert_eq!(registers, [u32::MAX; 4], "region {id}");
    }
}

#[test]
fn a_reset_clears_interrupts_and_every_ready_bit() {
    machine!(ram, driver, machine, Sink::default());
    driver.start(&mut machine, Features::empty());
    for queue in [1, 2] {
        machine.write(0x30, queue);
        machine.write(0x38, 16);
        for (low, area) in [(0x80, 0x4000), (0x90, 0x5000), (0xA0, 0x6000)] {
            machine.write(low, RAM as u32 + area * queue);
        }
        machine.write(0x44, 1);
    }
    assert_eq!(machine.read(0x70), 15);
    driver.offer(0, &[(DATA, 1, true)]);
    driver.ring(&mut machine);
    assert_eq!(machine.read(0x60), 1);
    machine.write(0x70, 0);
    assert_eq!(machine.read(0x60), 0);
    for queue in 0..3 {
        machine.write(0x30, queue);
        assert_eq!(machine.read(0x44), 0, "queue {queue}");
    }
}

#[test]
fn a_queue_that_is_not_ready_is_not_accessed() {
    disk!(ram, storage, driver, machine);
    let untouched = |driver: &mut Driver<'_>, machine: &mut Machine<'_, '_>| {
        offer(driver, (READ, 0), &[(DATA, 512, true)]);
        let before = snapshot(driver);
        machine.interrupts = 0;
        driver.ring(machine);
        machine.poll();
        snapshot(driver) == before && machine.interrupts == 0
    };
    assert!(driver.negotiate(&mut machine, Features::VERSION_1));
    driver.configure_queue(&mut machine);
    machine.write(0x70, 15);
    assert!(untouched(&mut driver, &mut machine));
    // Ready, it is; not ready any more, it is not.
    machine.write(0x44, 1);
    driver.ring(&mut machine);
    machine.run_to_idle();
    assert_eq!(driver.used(), Some((0, 513)));
    machine.write(0x44, 0);
    assert_eq!(machine.read(0x44), 0);
    assert!(untouched(&mut driver, &mut machine));
}

#[test]
fn queue_reset_reads_zero_after_a_reset_and_once_enabled() {
    disk!(ram, storage, driver, machine);
    driver.start(&mut machine, Features::RING_RESET);
    offer(&mut driver, (READ, 0), &[(DATA, 512, true)]);
    driver.ring(&mut machine);
    // Not polled: the reset of the device overtakes that of the queue.
    let outcome = machine.device.write(0xC0, Width::Word, 1, NOW);
    assert_eq!(outcome, WriteOutcome::Done);
    machine.write(0x70, 0);
    assert_eq!((machine.read(0xC0), machine.read(0x44)), (0, 0));
    driver.start(&mut machine, Features::RING_RESET);
    machine.write(0xC0, 1);
    machine.run_to_idle();
    driver.configure_queue(&mut machine);
    machine.write(0x44, 1);
    assert_eq!((machine.read(0xC0), machine.read(0x44)), (0, 1));
    let read = request(&mut machine, &mut driver, (READ, 0), &[(DATA, 512, true)]);
    assert_eq!(read, (0, 513));
}

#[test]
fn all_of_ram_can_be_reached_at_the_guests_addresses() {
    disk!(ram, storage, driver, machine);
    storage.slice(Pa::new(0)).fill(0, SECTOR, 0x99).unwrap();
    driver.start(&mut machine, FLUSH);
    let end = RAM + RAM_SIZE as u64;
    for address in (RAM + 0x3000..end - 511).step_by(0xE01).chain([end - 512]) {
        if (BUFFERS..DATA).contains(&address) {
            continue;
        }
        let read = request(&mut machine, &mut driver, (READ, 0), &[(address, 512, true)]);
        assert_eq!(read, (0, 513));
        assert!(driver.get(address, 512) == [0x99; 512], "{address:#x}");
    }
}
