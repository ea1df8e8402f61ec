mod fake;
mod model;

use fake::{CachingTlb, Walker};

use super::*;
use crate::memory::testing::ram;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TABLES_AT: u64 = 0x7_8000_0000;

/// Hooks that do nothing, for tests of what the tables say.
struct NoTlb;

impl Tlb for NoTlb {
    fn publish(&self) {}
    fn invalidate_ipa(&self, _: Vmid, _: Ipa) {}
    fn invalidate_vmid(&self, _: Vmid) {}
}

fn pool(frames: usize) -> (FramePool<'static>, SharedSlice<'static>) {
    let memory = ram(TABLES_AT, frames * 4096);
    let mut pool = FramePool::new();
    pool.add(memory).unwrap();
    (pool, memory)
}

fn tree(pool: &mut FramePool<'static>, bits: u8) -> Stage2<'static> {
    Stage2::new(pool, Geometry::new(bits, 5).unwrap(), Vmid::new(7)).unwrap()
}

#[test]
fn ram_is_mapped_with_the_largest_blocks_both_addresses_allow() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    // A page, a 2 MiB block, a 1 GiB block, and the same back down.
    let (ipa, pa) = (GIB - 2 * MIB - 4096, 5 * GIB - 2 * MIB - 4096);
    let len = 4096 + 2 * MIB + GIB + 2 * MIB + 4096;
    stage2.map(&mut pool, &NoTlb, Ipa::new(ipa), Pa::new(pa), len, Attributes::RAM).unwrap();
    let sizes: Vec<_> = [ipa, GIB - 2 * MIB, GIB, 2 * GIB - 1, 2 * GIB, 2 * GIB + 2 * MIB]
        .map(|at| stage2.lookup(&pool, Ipa::new(at)).unwrap().size)
        .to_vec();
    assert_eq!(sizes, [4096, 2 * MIB, GIB, GIB, 2 * MIB, 4096]);
    let walker = Walker::of(&stage2, memory);
    for at in (ipa..ipa + len).step_by(MIB as usize - 4096) {
        assert_eq!(walker.translate(at), Some((at + 4 * GIB, Attributes::RAM)));
    }
    assert_eq!(walker.translate(ipa - 4096), None);
    assert_eq!(walker.translate(ipa + len), None);
}

#[test]
fn addresses_that_are_not_congruent_get_smaller_blocks() {
    let (mut pool, _) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    for (ipa, pa, size) in [(GIB, 6 * MIB, 2 * MIB), (4 * GIB, 6 * MIB + 4096, 4096)] {
        let (ipa, pa) = (Ipa::new(ipa), Pa::new(pa));
        stage2.map(&mut pool, &NoTlb, ipa, pa, 4 * MIB, Attributes::RAM).unwrap();
        assert_eq!(stage2.lookup(&pool, ipa).unwrap().size, size);
    }
}

#[test]
fn every_size_of_address_space_is_walked_to_its_last_page() {
    for bits in 32..=48 {
        let (mut pool, memory) = pool(64);
        let mut stage2 = tree(&mut pool, bits);
        let last = (1 << bits) - 4096;
        for ipa in [0, last] {
            let pa = Pa::new(GIB + 4096);
            stage2.map(&mut pool, &NoTlb, Ipa::new(ipa), pa, 4096, Attributes::DEVICE).unwrap();
        }
        let walker = Walker::of(&stage2, memory);
        assert_eq!(walker.translate(0), Some((GIB + 4096, Attributes::DEVICE)));
        assert_eq!(walker.translate(last), Some((GIB + 4096, Attributes::DEVICE)));
        assert_eq!(walker.translate(1 << (bits - 1)), None);
    }
}

#[test]
fn a_concatenated_root_is_aligned_and_both_tables_are_used() {
    let (mut pool, memory) = pool(32);
    let _odd = pool.alloc().unwrap();
    let mut stage2 = tree(&mut pool, 40);
    assert_eq!(stage2.vttbr() & 0x1fff, 0);
    assert_eq!(stage2.vttbr() >> 48, 7);
    let ipa = Ipa::new(511 * GIB);
    stage2.map(&mut pool, &NoTlb, ipa, Pa::new(0), 2 * GIB, Attributes::RAM).unwrap();
    let walker = Walker::of(&stage2, memory);
    assert_eq!(walker.translate(512 * GIB - 1), Some((GIB - 1, Attributes::RAM)));
    assert_eq!(walker.translate(512 * GIB), Some((GIB, Attributes::RAM)));
    assert_eq!(walker.translate(513 * GIB), None);
}

#[test]
fn ranges_that_are_misaligned_empty_or_outside_are_refused() {
    let (mut pool, _) = pool(32);
    let mut stage2 = Stage2::new(&mut pool, Geometry::new(40, 2).unwrap(), Vmid::new(1)).unwrap();
    let end = 1 << 40;
    let mut map = |ipa, pa, len| {
        stage2.map(&mut pool, &NoTlb, Ipa::new(ipa), Pa::new(pa), len, Attributes::RAM)
    };
    assert_eq!(map(1, 0, 4096), Err(Stage2Error::Misaligned));
    assert_eq!(map(0, 8, 4096), Err(Stage2Error::Misaligned));
    assert_eq!(map(0, 0, 4095), Err(Stage2Error::Misaligned));
    assert_eq!(map(0, 0, 0), Err(Stage2Error::Misaligned));
    assert_eq!(map(end, 0, 4096), Err(Stage2Error::OutOfRange));
    assert_eq!(map(end - 4096, 0, 8192), Err(Stage2Error::OutOfRange));
    assert_eq!(map(u64::MAX - 4095, 0, 4096), Err(Stage2Error::OutOfRange));
    assert_eq!(map(4096, 0, u64::MAX - 4095), Err(Stage2Error::OutOfRange));
    assert_eq!(map(0, end, 4096), Err(Stage2Error::OutOfRange));
    assert_eq!(map(0, u64::MAX - 4095, 8192), Err(Stage2Error::OutOfRange));
    assert_eq!(map(end - 4096, end - 4096, 4096), Ok(()));
    let ipa = Ipa::new(end);
    assert_eq!(stage2.unmap(&mut pool, &NoTlb, ipa, 4096), Err(Stage2Error::OutOfRange));
    let refused = stage2.protect(&mut pool, &NoTlb, ipa, 4096, Attributes::RAM);
    assert_eq!(refused, Err(Stage2Error::OutOfRange));
    assert_eq!(stage2.lookup(&pool, ipa), None);
    assert_eq!(stage2.lookup(&pool, Ipa::new(u64::MAX)), None);
}

#[test]
fn mapping_over_a_mapping_is_refused_without_effect() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    let ipa = Ipa::new(GIB + 8 * MIB);
    stage2.map(&mut pool, &NoTlb, ipa, Pa::new(0), 4096, Attributes::RAM).unwrap();
    let free = pool.free_frames();
    let again = stage2.map(&mut pool, &NoTlb, Ipa::new(GIB), Pa::new(0), 16 * MIB, Attributes::RAM);
    assert_eq!(again, Err(Stage2Error::AlreadyMapped));
    assert_eq!(pool.free_frames(), free);
    assert_eq!(Walker::of(&stage2, memory).translate(GIB), None);
}

#[test]
fn out_of_frames_leaves_the_tree_as_it_was() {
    // Root of 2, and 3 frames: enough for one path of tables and one more.
    let (mut pool, memory) = pool(6);
    let mut stage2 = tree(&mut pool, 40);
    let page = Ipa::new(4 * GIB - 4096);
    stage2.map(&mut pool, &NoTlb, page, Pa::new(0), 4096, Attributes::RAM).unwrap();
    let free = pool.free_frames();
    let result =
        stage2.map(&mut pool, &NoTlb, Ipa::new(2 * GIB + 4096), Pa::new(0), GIB, Attributes::RAM);
    assert_eq!(result, Err(Stage2Error::OutOfFrames));
    assert_eq!(pool.free_frames(), free);
    let walker = Walker::of(&stage2, memory);
    assert_eq!(walker.translate(2 * GIB + 4096), None);
    assert_eq!(walker.translate(4 * GIB - 4096), Some((0, Attributes::RAM)));
    // A 1 GiB block that cannot be split in two steps is still there.
    stage2.map(&mut pool, &NoTlb, Ipa::new(GIB), Pa::new(GIB), GIB, Attributes::RAM).unwrap();
    let result = stage2.unmap(&mut pool, &NoTlb, Ipa::new(GIB + 4096), 4096);
    assert_eq!(result, Err(Stage2Error::OutOfFrames));
    for at in [GIB, GIB + 4096, 2 * GIB - 1] {
        assert_eq!(walker.translate(at), Some((at, Attributes::RAM)));
    }
}

#[test]
fn a_table_unlinked_before_it_held_anything_is_invalidated_before_it_is_freed() {
    // Root of 2 and one frame: the level-2 table is linked when the level-3 one fails.
    let (mut pool, memory) = pool(4);
    let mut stage2 = tree(&mut pool, 40);
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &[GIB]);
    let result = stage2.map(&mut pool, &tlb, Ipa::new(GIB), Pa::new(0), 4096, Attributes::RAM);
    assert_eq!(result, Err(Stage2Error::OutOfFrames));
    assert_eq!(*tlb.log.borrow(), ["publish", "publish", "vmid"]);
    assert_eq!(pool.free_frames(), 1);
}

#[test]
fn splitting_a_block_breaks_it_before_the_table_is_made() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2.map(&mut pool, &NoTlb, Ipa::new(GIB), Pa::new(0), GIB, Attributes::RAM).unwrap();
    let probes = [GIB, GIB + 2 * MIB, GIB + 2 * MIB + 4096, 2 * GIB - 1];
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &probes);
    let (ipa, ro) = (Ipa::new(GIB + 2 * MIB), Attributes::READ_ONLY);
    stage2.protect(&mut pool, &tlb, ipa, 4096, ro).unwrap();
    tlb.assert_nothing_is_stale();
    // 1 GiB split, 2 MiB split, then a change of permission.
    let (split, protect) = (["publish", "ipa", "publish"], ["publish", "ipa"]);
    assert_eq!(*tlb.log.borrow(), [&split[..], &split, &protect].concat());
    let attributes = probes.map(|at| tlb.walker.translate(at).unwrap().1);
    assert_eq!(attributes, [Attributes::RAM, ro, Attributes::RAM, Attributes::RAM]);
}

#[test]
fn a_change_of_memory_type_breaks_each_entry() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2.map(&mut pool, &NoTlb, Ipa::new(GIB), Pa::new(0), 8192, Attributes::RAM).unwrap();
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &[GIB, GIB + 4096]);
    stage2.protect(&mut pool, &tlb, Ipa::new(GIB), 8192, Attributes::DEVICE).unwrap();
    tlb.assert_nothing_is_stale();
    assert_eq!(*tlb.log.borrow(), ["publish", "ipa", "publish", "ipa", "publish"]);
    assert_eq!(tlb.walker.translate(GIB + 4096), Some((4096, Attributes::DEVICE)));
}

#[test]
fn unmapping_many_pages_takes_one_invalidation_and_frees_the_tables() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    let free = pool.free_frames();
    let (ipa, pa) = (Ipa::new(GIB), Pa::new(4096));
    stage2.map(&mut pool, &NoTlb, ipa, pa, 4 * MIB, Attributes::RAM).unwrap();
    assert_eq!(pool.free_frames(), free - 3);
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &[GIB, GIB + 2 * MIB, 2 * GIB]);
    stage2.unmap(&mut pool, &tlb, ipa, 4 * MIB).unwrap();
    tlb.assert_nothing_is_stale();
    assert_eq!(*tlb.log.borrow(), ["publish", "vmid"]);
    assert_eq!(pool.free_frames(), free);
}

#[test]
fn protecting_a_hole_is_refused() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2.map(&mut pool, &NoTlb, Ipa::new(0), Pa::new(GIB), 8192, Attributes::RAM).unwrap();
    let result = stage2.protect(&mut pool, &NoTlb, Ipa::new(0), 3 * 4096, Attributes::READ_ONLY);
    assert_eq!(result, Err(Stage2Error::NotMapped));
    assert_eq!(Walker::of(&stage2, memory).translate(0), Some((GIB, Attributes::RAM)));
}

#[test]
fn a_pool_without_the_tables_is_an_error() {
    let (mut pool, _) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2.map(&mut pool, &NoTlb, Ipa::new(0), Pa::new(GIB), 4096, Attributes::RAM).unwrap();
    let mut other = FramePool::new();
    assert_eq!(stage2.lookup(&other, Ipa::new(0)), None);
    let result = stage2.unmap(&mut other, &NoTlb, Ipa::new(0), 4096);
    assert_eq!(result, Err(Stage2Error::Corrupt));
}

#[test]
fn a_mapping_translates_its_own_addresses_only() {
    let attributes = Attributes::RAM;
    let mapping = Mapping { ipa: Ipa::new(GIB), pa: Pa::new(0), size: 2 * MIB, attributes };
    assert_eq!(mapping.translate(Ipa::new(GIB + 5)), Some(Pa::new(5)));
    assert_eq!(mapping.translate(Ipa::new(GIB + 2 * MIB)), None);
    assert_eq!(mapping.translate(Ipa::new(GIB - 1)), None);
    assert!(!mapping.is_identity());
    assert!(Mapping { pa: Pa::new(GIB), ..mapping }.is_identity());
}
