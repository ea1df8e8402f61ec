//! A disk whose medium is taken out and changed while the guest uses it.

use super::*;
use crate::backend::removable::Drive;

struct At(u64);

impl Clock for At {
    fn now(&self) -> Ticks {
        Ticks(self.0)
    }

    fn frequency(&self) -> Frequency {
        Frequency::new(1_000_000).unwrap()
    }
}

/// A guest before a drive with a medium of 64 sectors inside, and one of 32.
macro_rules! guest_with_media {
    ($disks:ident, $driver:ident, $transport:ident) => {
        let ram = HostRam::new(RAM_SIZE);
        let $disks = [Disk::new(), Disk::new()];
        $disks[1].get().info.sectors = 32;
        let mut media = $disks.clone();
        let media = media.iter_mut().map(|disk| disk as &mut dyn BlockBackend<'_>).collect();
        let mut backend = Drive::new(media);
        let mut device = Block::new(&mut backend);
        let mut $driver = Driver::new(guest_memory(&ram), 16);
        let mut $transport = MmioTransport::new(&mut device, guest_memory(&ram));
        $transport.bring_up(WITH_FLUSH, &$driver);
    };
}

fn change(transport: &mut MmioTransport<'_, '_>, medium: Option<u8>) -> Result<(), NotAdjusted> {
    transport.adjust(Adjustment::Medium(medium), &At(0))
}

#[test]
fn a_medium_that_is_taken_out_leaves_a_disk_without_sectors_whose_requests_are_errors() {
    guest_with_media!(disks, driver, transport);
    assert_eq!(transport.get(0x100), 64);
    let generation = transport.get(0xFC);
    assert_eq!(change(&mut transport, None), Ok(()));
    assert_eq!(transport.get(0x100), 0);
    assert_ne!(transport.get(0xFC), generation);
    assert!(transport.take_interrupt());
    assert_eq!(transport.get(0x60), 2);
    request(&mut driver, &mut transport, (IN, 0), &[(DATA, 512, true)]);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 0)), 1));
    request(&mut driver, &mut transport, (OUT, 0), &[(DATA, 512, false)]);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 1));
    // It is none either for the next driver.
    transport.set(0x70, 0);
    assert_eq!(transport.get(0x100), 0);
    assert!(disks[0].get().submitted.is_empty() && disks[1].get().submitted.is_empty());
}

#[test]
fn what_is_in_flight_ends_at_the_old_medium_and_what_follows_goes_to_the_new_one() {
    guest_with_media!(disks, driver, transport);
    request(&mut driver, &mut transport, (OUT, 5), &[(DATA, 512, false)]);
    assert_eq!(change(&mut transport, Some(1)), Err(NotAdjusted::Occupied));
    assert_eq!(change(&mut transport, None), Ok(()));
    assert_eq!(change(&mut transport, Some(2)), Err(NotAdjusted::Unsupported));
    assert_eq!(change(&mut transport, Some(1)), Ok(()));
    assert_eq!(transport.get(0x100), 32);
    assert!(transport.take_interrupt());

    // In another place than the first request, which is not over.
    header(&driver, HEADER + 0x100, IN, 7);
    driver.chain(3, &[(HEADER + 0x100, 16, false), (DATA, 512, true), (STATUS + 0x100, 1, true)]);
    driver.offer(3);
    transport.set(0x50, 0);
    transport.poll(NOW);
    assert_eq!(driver.used(), None);
    assert!(disks[1].get().submitted.is_empty());
    assert!(transport.has_work_in_flight());
    disks[0].finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!((driver.used(), status(&driver)), (Some((0, 1)), 0));
    // What was written is made durable first.
    assert_eq!(disks[0].get().submitted[1].1, BlockOp::Flush);
    let own = disks[0].get().submitted[1].0;
    assert!(disks[1].get().submitted.is_empty());
    assert_eq!(transport.next_poll(), NextPoll::Soon);
    disks[0].finish(own.0, BlockStatus::Ok);
    transport.poll(NOW);
    transport.poll(NOW);
    assert_eq!(disks[1].get().submitted, [(Tag(0), BlockOp::Read, 7, vec![512])]);
    disks[1].finish(0, BlockStatus::Ok);
    transport.poll(NOW);
    assert_eq!(driver.used(), Some((3, 513)));
    assert_eq!(disks[0].get().submitted.len(), 2);
}

#[test]
fn a_disk_that_is_not_removable_keeps_its_medium() {
    let disk = Disk::new();
    guest!(disk, V1, driver, transport);
    for medium in [None, Some(0)] {
        assert_eq!(change(&mut transport, medium), Err(NotAdjusted::Unsupported));
    }
    assert_eq!(transport.get(0x100), 64);
    assert_eq!(driver.used(), None);
}
