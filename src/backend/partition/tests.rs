use super::*;
use crate::backend::block::{ID_SIZE, Topology};
use crate::backend::ram::RamDisk;
use crate::memory::{HostRam, Pa};

const NOW: Ticks = Ticks(0);
const DISK: usize = 64 * 512;

fn sectors(first: u64, count: u64) -> Sectors {
    Sectors::new(first, count).unwrap()
}

#[test]
fn a_range_has_sectors_and_its_end_a_number() {
    assert_eq!(Sectors::new(5, 0), None);
    assert_eq!(Sectors::new(u64::MAX, 1), None);
    assert_eq!(Sectors::new(1, u64::MAX / 512), None);
    let whole = sectors(0, u64::MAX / 512);
    assert_eq!((whole.first(), whole.end()), (0, u64::MAX / 512));
    assert!(sectors(3, 2).overlaps(sectors(4, 9)) && sectors(4, 9).overlaps(sectors(3, 2)));
    assert!(!sectors(3, 2).overlaps(sectors(5, 1)) && !sectors(5, 1).overlaps(sectors(3, 2)));
    assert!(sectors(8, 16).is_aligned(8));
    assert!(!sectors(8, 15).is_aligned(8) && !sectors(4, 16).is_aligned(8));
}

#[test]
fn a_range_is_of_whole_blocks_of_the_disk() {
    let disk = BlockInfo { block_size: 4096, ..BlockInfo::new(64) };
    assert_eq!(check(&disk, sectors(8, 56)), Ok(()));
    let beyond = RangeError::BeyondDisk { sectors: 64 };
    assert_eq!(check(&disk, sectors(8, 64)), Err(beyond));
    assert_eq!(check(&disk, sectors(u64::MAX / 1024, 1)), Err(beyond));
    for range in [sectors(4, 8), sectors(8, 4)] {
        assert_eq!(check(&disk, range), Err(RangeError::Unaligned { block_size: 4096 }));
    }
}

#[test]
fn nothing_outside_the_range_is_reached() {
    let (storage, ram) = (HostRam::new(DISK), HostRam::new(4096));
    let (storage, memory) = (storage.slice(Pa::new(0)), ram.slice(Pa::new(0)));
    let range = sectors(10, 20);
    let mut part = Partition::new(RamDisk::new(storage, [0; ID_SIZE]), range).unwrap();
    assert_eq!(part.info().sectors, 20);
    memory.fill(0, 4096, 0xAA).unwrap();
    let one = [memory.subslice(0, 512).unwrap()];
    let mut ask = |op, sector, segments: &[_]| {
        let submitted = part.submit(BlockRequest { tag: Tag(7), op, sector, segments }, NOW);
        part.kick();
        submitted.map(|()| part.poll(NOW).unwrap())
    };
    let done = Ok((Tag(7), BlockStatus::Ok));
    for sector in [0, 19] {
        assert_eq!(ask(BlockOp::Write, sector, &one), done);
    }
    let no = Err(SubmitError::Unsupported);
    for sector in [20, 53, 54, u64::MAX - 9, u64::MAX] {
        assert_eq!(ask(BlockOp::Write, sector, &one), no);
        assert_eq!(ask(BlockOp::Read, sector, &one), no);
    }
    let two = [one[0]; 2];
    assert_eq!(ask(BlockOp::Write, 19, &two), no);
    assert_eq!(ask(BlockOp::Discard { sectors: 21 }, 0, &[]), no);
    assert_eq!(ask(BlockOp::WriteZeroes { sectors: 1, unmap: true }, 20, &[]), no);
    assert_eq!(ask(BlockOp::Flush, 0, &[]), done);
    for sector in 0..64 {
        let expected = if [10, 29].contains(&sector) { 0xAA } else { 0 };
        assert_eq!(storage.load_u8(sector * 512), Some(expected), "{sector}");
    }
    assert_eq!(ask(BlockOp::Discard { sectors: 1 }, 19, &[]), done);
    assert_eq!([10, 29].map(|sector| storage.load_u8(sector * 512).unwrap()), [0xAA, 0]);
}

#[test]
fn a_read_only_range_refuses_what_changes_it() {
    let (storage, ram) = (HostRam::new(DISK), HostRam::new(4096));
    let (storage, memory) = (storage.slice(Pa::new(0)), ram.slice(Pa::new(0)));
    let disk = RamDisk::new(storage, [0; ID_SIZE]);
    let mut part = Partition::new(disk, sectors(0, 64)).unwrap().read_only();
    assert!(part.info().read_only);
    let one = [memory.subslice(0, 512).unwrap()];
    let mut ask = |op, segments: &[_]| {
        part.submit(BlockRequest { tag: Tag(0), op, sector: 0, segments }, NOW)
    };
    let no = Err(SubmitError::Unsupported);
    assert_eq!(ask(BlockOp::Write, &one), no);
    assert_eq!(ask(BlockOp::Discard { sectors: 1 }, &[]), no);
    assert_eq!(ask(BlockOp::WriteZeroes { sectors: 1, unmap: false }, &[]), no);
    assert_eq!(ask(BlockOp::Read, &one), Ok(()));
    assert_eq!(ask(BlockOp::Flush, &[]), Ok(()));
}

#[test]
fn the_alignment_of_physical_blocks_is_the_disk_s() {
    struct Aligned;
    impl BlockBackend<'_> for Aligned {
        fn info(&self) -> BlockInfo {
            let topology =
                Topology { physical_block_exponent: 3, alignment_offset: 1, ..Topology::FLAT };
            BlockInfo { topology, ..BlockInfo::new(1000) }
        }
        fn submit(&mut self, _: BlockRequest<'_, '_>, _: Ticks) -> Result<(), SubmitError> {
            Err(SubmitError::Failed)
        }
        fn kick(&mut self) {}
        fn poll(&mut self, _: Ticks) -> Option<(Tag, BlockStatus)> {
            None
        }
        fn in_flight(&self) -> usize {
            0
        }
    }
    for (first, offset) in [(0, 1), (1, 0), (2, 7), (9, 0), (8, 1), (63, 2)] {
        let part = Partition::new(Aligned, sectors(first, 100)).unwrap();
        assert_eq!(part.info().topology.alignment_offset, offset, "{first}");
    }
}
