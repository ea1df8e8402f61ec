use proptest::prelude::*;

use super::*;
use crate::backend::block::ID_SIZE;
use crate::backend::ram::RamDisk;
use crate::memory::{HostRam, Pa};

const NOW: Ticks = Ticks(0);
const SECTORS: u64 = 43;

/// What is below: each sector has its number in all bytes, and 0x80.
fn below() -> HostRam {
    let ram = HostRam::new(SECTORS as usize * 512);
    for sector in 0..SECTORS as usize {
        ram.slice(Pa::new(0)).fill(sector * 512, 512, sector as u8 | 0x80).unwrap();
    }
    ram
}

fn base(ram: &HostRam) -> RamDisk<'_> {
    let disk = ram.slice(Pa::new(0)).subslice(0, SECTORS as usize * 512).unwrap();
    RamDisk::new(disk, [0; ID_SIZE]).read_only()
}

/// Memory for the table and this many clusters.
fn memory(clusters: usize) -> HostRam {
    HostRam::new((1 + clusters) * CLUSTER as usize)
}

fn ask<'m>(
    disk: &mut Overlay<'_, 'm>,
    op: BlockOp,
    sector: u64,
    segments: &[SharedSlice<'m>],
) -> Result<BlockStatus, SubmitError> {
    disk.submit(BlockRequest { tag: Tag(3), op, sector, segments }, NOW)?;
    disk.kick();
    let (tag, status) = disk.poll(NOW).unwrap();
    assert_eq!((tag, disk.poll(NOW), disk.in_flight()), (Tag(3), None, 0));
    Ok(status)
}

/// The first byte of each sector, read in one request.
fn contents<'m>(disk: &mut Overlay<'_, 'm>, buffer: &SharedSlice<'m>) -> Vec<u8> {
    let len = SECTORS as usize * 512;
    // In pieces that begin and end within sectors.
    let pieces = [0, 100, 700, 5000, 5001, 12_000, len];
    let segments: Vec<_> = pieces
        .windows(2)
        .map(|ends| buffer.subslice(ends[0], ends[1] - ends[0]).unwrap())
        .collect();
    assert_eq!(ask(disk, BlockOp::Read, 0, &segments), Ok(BlockStatus::Ok));
    let at = |at: usize| buffer.load_u8(at).unwrap();
    (0..SECTORS as usize)
        .map(|sector| {
            assert_eq!(at(sector * 512), at(sector * 512 + 511), "sector {sector}");
            at(sector * 512)
        })
        .collect()
}

fn write(disk: &mut Overlay<'_, '_>, sector: u64, sectors: usize, value: u8) -> BlockStatus {
    // Leaked: the test is over soon.
    let ram: &'static HostRam = Box::leak(Box::new(HostRam::new(sectors * 512)));
    let data = ram.slice(Pa::new(0)).subslice(0, sectors * 512).unwrap();
    data.fill(0, sectors * 512, value).unwrap();
    ask(disk, BlockOp::Write, sector, &[data]).unwrap()
}

#[test]
fn what_is_written_is_read_and_all_else_is_as_below() {
    let (below, memory, buffer) = (below(), memory(8), HostRam::new(SECTORS as usize * 512));
    let (mut base, revert) = (base(&below), Revert::new());
    let buffer = buffer.slice(Pa::new(0));
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    let mut expected: Vec<u8> = (0..SECTORS).map(|sector| sector as u8 | 0x80).collect();
    assert_eq!(contents(&mut disk, &buffer), expected);
    for (sector, sectors, value) in [(6, 5, 1), (42, 1, 2), (20, 1, 3), (8, 1, 4), (0, 24, 5)] {
        assert_eq!(write(&mut disk, sector, sectors, value), BlockStatus::Ok);
        expected[sector as usize..sector as usize + sectors].fill(value);
        assert_eq!(contents(&mut disk, &buffer), expected);
    }
    // The disk below was not touched.
    for sector in 0..SECTORS as usize {
        assert_eq!(below.slice(Pa::new(0)).load_u8(sector * 512), Some(sector as u8 | 0x80));
    }
}

#[test]
fn a_full_overlay_fails_that_write_only_and_discarding_makes_room() {
    let (below, memory, buffer) = (below(), memory(2), HostRam::new(SECTORS as usize * 512));
    let (mut base, revert) = (base(&below), Revert::new());
    let buffer = buffer.slice(Pa::new(0));
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    assert_eq!(write(&mut disk, 0, 1, 1), BlockStatus::Ok);
    // Two more clusters, one of which there would be.
    assert_eq!(write(&mut disk, 12, 8, 2), BlockStatus::IoError);
    assert_eq!(
        contents(&mut disk, &buffer)[..21],
        [
            1, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144, 145,
            146, 147, 148
        ]
    );
    assert_eq!(write(&mut disk, 8, 8, 3), BlockStatus::Ok);
    assert_eq!(write(&mut disk, 16, 1, 4), BlockStatus::IoError);
    // What has its place can still be written.
    assert_eq!(write(&mut disk, 0, 16, 5), BlockStatus::Ok);
    assert_eq!(ask(&mut disk, BlockOp::Discard { sectors: 8 }, 8, &[]), Ok(BlockStatus::Ok));
    assert_eq!(write(&mut disk, 16, 1, 4), BlockStatus::Ok);
    let contents = contents(&mut disk, &buffer);
    assert_eq!(contents[..18], [5, 5, 5, 5, 5, 5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0x91]);
}

#[test]
fn discarded_again_and_again_places_are_not_lost() {
    let (below, memory) = (below(), memory(3));
    let (mut base, revert) = (base(&below), Revert::new());
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    for round in 0..20u8 {
        assert_eq!(write(&mut disk, 0, 24, round), BlockStatus::Ok);
        assert_eq!(write(&mut disk, 24, 1, round), BlockStatus::IoError);
        let zero = BlockOp::WriteZeroes { sectors: 24, unmap: true };
        assert_eq!(ask(&mut disk, zero, 0, &[]), Ok(BlockStatus::Ok));
    }
}

#[test]
fn zeros_over_part_of_a_cluster_leave_the_rest() {
    let (below, memory, buffer) = (below(), memory(4), HostRam::new(SECTORS as usize * 512));
    let (mut base, revert) = (base(&below), Revert::new());
    let buffer = buffer.slice(Pa::new(0));
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    let zero = |disk: &mut Overlay<'_, '_>, sector, sectors| {
        ask(disk, BlockOp::WriteZeroes { sectors, unmap: false }, sector, &[]).unwrap()
    };
    assert_eq!(write(&mut disk, 2, 3, 7), BlockStatus::Ok);
    zero(&mut disk, 3, 1);
    zero(&mut disk, 9, 2);
    assert_eq!(write(&mut disk, 10, 2, 8), BlockStatus::Ok);
    let expected =
        [0x80, 0x81, 7, 0, 7, 0x85, 0x86, 0x87, 0x88, 0, 8, 8, 0x8c, 0x8d, 0x8e, 0x8f, 0x90];
    assert_eq!(contents(&mut disk, &buffer)[..17], expected);
}

#[test]
fn a_revert_brings_back_what_is_below() {
    let (below, memory, buffer) = (below(), memory(2), HostRam::new(SECTORS as usize * 512));
    let (mut base, revert) = (base(&below), Revert::new());
    let buffer = buffer.slice(Pa::new(0));
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    let fresh = contents(&mut disk, &buffer);
    for _ in 0..3 {
        assert_eq!(write(&mut disk, 4, 8, 1), BlockStatus::Ok);
        assert_ne!(contents(&mut disk, &buffer), fresh);
        revert.ask();
        assert_eq!(contents(&mut disk, &buffer), fresh);
    }
}

#[test]
fn what_is_only_below_goes_there_as_it_is_and_errors_come_back() {
    struct Below(Vec<(u16, u64, usize)>);
    impl<'m> BlockBackend<'m> for Below {
        fn info(&self) -> BlockInfo {
            BlockInfo { max_segments: 64, depth: 32, read_only: true, ..BlockInfo::new(SECTORS) }
        }
        fn submit(&mut self, request: BlockRequest<'_, 'm>, _: Ticks) -> Result<(), SubmitError> {
            assert_eq!(request.op, BlockOp::Read);
            self.0.push((request.tag.0, request.sector, request.sectors() as usize));
            Ok(())
        }
        fn kick(&mut self) {}
        fn poll(&mut self, _: Ticks) -> Option<(Tag, BlockStatus)> {
            let (tag, ..) = self.0.last()?;
            Some((Tag(*tag), BlockStatus::IoError))
        }
        fn in_flight(&self) -> usize {
            0
        }
    }
    let (memory, buffer, revert) = (memory(2), HostRam::new(16 * 512), Revert::new());
    let mut base = Below(Vec::new());
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    let info = disk.info();
    assert_eq!((info.read_only, info.max_segments, info.depth), (false, 32, 32));
    let data = buffer.slice(Pa::new(0));
    let mut submit = |tag, op, sector, sectors: usize| {
        let segments = [data.subslice(0, sectors * 512).unwrap()];
        disk.submit(BlockRequest { tag: Tag(tag), op, sector, segments: &segments }, NOW).unwrap();
        disk.poll(NOW).unwrap()
    };
    let failed = |tag| (Tag(tag), BlockStatus::IoError);
    let done = |tag| (Tag(tag), BlockStatus::Ok);
    assert_eq!(submit(1, BlockOp::Read, 0, 16), failed(1));
    assert_eq!(submit(2, BlockOp::Write, 4, 4), done(2));
    assert_eq!(submit(3, BlockOp::Read, 5, 2), done(3));
    // Only as far as it is not here: at both ends what is here is left out.
    assert_eq!(submit(4, BlockOp::Read, 4, 8), failed(4));
    assert_eq!(submit(5, BlockOp::Read, 2, 4), failed(5));
    assert_eq!(submit(6, BlockOp::Read, 3, 6), failed(6));
    assert_eq!(base.0, [(1, 0, 16), (4, 8, 4), (5, 2, 2), (6, 3, 6)]);
}

#[test]
fn requests_out_of_bounds_and_too_large_ones_are_refused() {
    let (below, memory, buffer) = (below(), memory(2), HostRam::new(4096));
    let (mut base, revert) = (base(&below), Revert::new());
    let one = [buffer.slice(Pa::new(0)).subslice(0, 512).unwrap()];
    let mut jobs = Jobs::new();
    let mut disk = Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
    let no = Err(SubmitError::Unsupported);
    for sector in [SECTORS, u64::MAX] {
        assert_eq!(ask(&mut disk, BlockOp::Write, sector, &one), no);
        assert_eq!(ask(&mut disk, BlockOp::Read, sector, &one), no);
    }
    assert_eq!(ask(&mut disk, BlockOp::Discard { sectors: u32::MAX }, 0, &[]), no);
    assert_eq!(ask(&mut disk, BlockOp::Flush, u64::MAX, &[]), Ok(BlockStatus::Ok));
    // 33 segments, of which some are here.
    assert_eq!(ask(&mut disk, BlockOp::Write, 0, &one), Ok(BlockStatus::Ok));
    assert_eq!(ask(&mut disk, BlockOp::Read, 0, &[one[0]; 33]), no);
    assert_eq!(ask(&mut disk, BlockOp::Read, 0, &[one[0]; 32]), Ok(BlockStatus::Ok));
}

#[test]
fn an_overlay_without_room_for_a_sector_is_refused() {
    let (below, small) = (below(), HostRam::new(CLUSTER as usize));
    let (mut base, revert) = (base(&below), Revert::new());
    let mut jobs = Jobs::new();
    let error = Overlay::new(&mut base, small.slice(Pa::new(0)), &revert, &mut jobs).err();
    assert_eq!(error, Some(TooSmall { least: 8192 }));
    assert_eq!(least(8 * 1024), 8192);
    assert_eq!(least(8 * 1024 + 1), 12288);
    assert!(least(u64::MAX / 512) > 1 << 40);
}

#[derive(Clone, Debug)]
enum Act {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Read(u64, u64),
    Revert,
}

fn act() -> impl Strategy<Value = Act> {
    let range = || (0..SECTORS).prop_flat_map(|first| (Just(first), 1..=(SECTORS - first)));
    prop_oneof![
        5 => (range(), 1u8..128).prop_map(|((first, count), value)| Act::Write(first, count.min(12), value)),
        2 => (range(), any::<bool>()).prop_map(|((first, count), discard)| Act::Zero(first, count, discard)),
        3 => range().prop_map(|(first, count)| Act::Read(first, count)),
        1 => Just(Act::Revert),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Against a plain array of sectors; a write that fails is one for which there may not have been
    /// room, and changes nothing.
    #[test]
    fn an_overlay_reads_as_a_plain_disk(
        clusters in 1usize..8, cuts in prop::collection::vec(1usize..1500, 1..30),
        acts in prop::collection::vec(act(), 0..60),
    ) {
        let (below, memory) = (below(), memory(clusters));
        let buffer = HostRam::new(SECTORS as usize * 512);
        let (mut base, revert) = (base(&below), Revert::new());
        let buffer = buffer.slice(Pa::new(0));
        let fresh: Vec<u8> = (0..SECTORS).map(|sector| sector as u8 | 0x80).collect();
        let mut model = fresh.clone();
        // Sectors that are not as below, and clusters that take RAM.
        let (mut known, mut placed) = (vec![false; SECTORS as usize], vec![false; 6]);
        let mut jobs = Jobs::new();
        let mut disk =
            Overlay::new(&mut base, memory.slice(Pa::new(0)), &revert, &mut jobs).unwrap();
        let pieces = |sectors: u64| {
            let (mut at, end, mut pieces) = (0, sectors as usize * 512, Vec::new());
            for cut in cuts.iter().cycle() {
                let len = if pieces.len() == 31 { end - at } else { (*cut).min(end - at) };
                pieces.push(buffer.subslice(at, len).unwrap());
                at += len;
                if at == end {
                    return pieces;
                }
            }
            pieces
        };
        for act in acts {
            match act {
                Act::Write(first, count, value) => {
                    buffer.fill(0, count as usize * 512, value).unwrap();
                    let range = first as usize..(first + count) as usize;
                    let mut after = placed.clone();
                    after[first as usize / 8..=(first + count - 1) as usize / 8].fill(true);
                    let needed = after.iter().filter(|it| **it).count();
                    match ask(&mut disk, BlockOp::Write, first, &pieces(count)).unwrap() {
                        BlockStatus::Ok => {
                            model[range.clone()].fill(value);
                            known[range].fill(true);
                            placed = after;
                            prop_assert!(needed <= clusters);
                        }
                        _ => prop_assert!(needed > clusters),
                    }
                }
                Act::Zero(first, count, discard) => {
                    let sectors = count as u32;
                    let op = if discard {
                        BlockOp::Discard { sectors }
                    } else {
                        BlockOp::WriteZeroes { sectors, unmap: false }
                    };
                    prop_assert_eq!(ask(&mut disk, op, first, &[]), Ok(BlockStatus::Ok));
                    let range = first as usize..(first + count) as usize;
                    model[range.clone()].fill(0);
                    // RAM is given back when all that is known of a cluster is zeros by this.
                    for (cluster, placed) in placed.iter_mut().enumerate() {
                        let all = cluster * 8..(cluster * 8 + 8).min(known.len());
                        let rest = all.clone().any(|sector| known[sector] && !range.contains(&sector));
                        *placed &= rest || !all.clone().any(|sector| range.contains(&sector));
                        for sector in all {
                            known[sector] |= range.contains(&sector);
                        }
                    }
                }
                Act::Read(first, count) => {
                    buffer.fill(0, SECTORS as usize * 512, 0x55).unwrap();
                    let status = ask(&mut disk, BlockOp::Read, first, &pieces(count));
                    prop_assert_eq!(status, Ok(BlockStatus::Ok));
                    for sector in 0..count {
                        let expected = model[(first + sector) as usize];
                        for byte in [0, 511] {
                            let at = sector as usize * 512 + byte;
                            prop_assert_eq!(buffer.load_u8(at), Some(expected));
                        }
                    }
                }
                Act::Revert => {
                    revert.ask();
                    model.clone_from(&fresh);
                    known.fill(false);
                    placed.fill(false);
                }
            }
        }
    }
}
