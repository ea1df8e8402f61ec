use core::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

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

/// What the walk of one address found, and what of it a core may have cached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Walk {
    /// Tables below the root: first address and size of what each covers, and where it is.
    tables: Vec<(u64, u64, u64)>,
    /// First address, size and raw descriptor of the leaf.
    leaf: Option<(u64, u64, u64)>,
}

/// A walker made from the two register values alone, as the hardware is: Arm ARM D8.2.
#[derive(Clone, Copy)]
struct Walker {
    memory: SharedSlice<'static>,
    vtcr: u64,
    vttbr: u64,
}

impl Walker {
    fn of(stage2: &Stage2<'_>, memory: SharedSlice<'static>) -> Self {
        let vtcr = stage2.geometry().vtcr(VmidBits::Eight);
        Self {
            memory,
            vtcr,
            vttbr: stage2.vttbr(),
        }
    }

    fn walk(&self, ipa: u64) -> Walk {
        let bits = 64 - (self.vtcr & 0x3f);
        assert!(ipa >> bits == 0, "address size fault");
        let mut low = match self.vtcr >> 6 & 3 {
            2 => 39,
            1 => 30,
            0 => 21,
            _ => panic!("reserved SL0"),
        };
        let mut table = self.vttbr & 0xffff_ffff_fffe;
        let mut high = bits;
        assert_eq!(
            table % (8 << (high - low)),
            0,
            "root not aligned to its size"
        );
        let mut walk = Walk {
            tables: Vec::new(),
            leaf: None,
        };
        loop {
            let index = ipa >> low & ((1 << (high - low)) - 1);
            let offset = table + index * 8 - self.memory.pa().raw();
            let raw = self.memory.load_u64(offset as usize).unwrap();
            let (base, size) = (ipa >> low << low, 1 << low);
            match raw & 3 {
                3 if low > 12 => {
                    table = raw & 0xffff_ffff_f000;
                    walk.tables.push((base, size, table));
                    high = low;
                    low -= 9;
                }
                3 => walk.leaf = Some((base, size, raw)),
                1 if low == 21 || low == 30 => walk.leaf = Some((base, size, raw)),
                1 => panic!("reserved descriptor {raw:#x}"),
                _ => {}
            }
            if raw & 3 != 3 || walk.leaf.is_some() {
                return walk;
            }
        }
    }

    fn translate(&self, ipa: u64) -> Option<(u64, Attributes)> {
        let (base, size, raw) = self.walk(ipa).leaf?;
        let pa = raw & 0xffff_ffff_f000;
        assert_eq!(pa % size, 0, "block not aligned to its size");
        assert_eq!(raw >> 10 & 1, 1, "access flag fault");
        let memory = match (raw >> 2 & 0xf, raw >> 8 & 3) {
            (0xf, 3) => MemoryType::Normal,
            (1, _) => MemoryType::Device,
            other => panic!("memory attributes {other:?}"),
        };
        let access = match raw >> 6 & 3 {
            0 => Access::None,
            1 => Access::ReadOnly,
            3 => Access::ReadWrite,
            _ => panic!("write-only"),
        };
        let executable = match raw >> 53 & 3 {
            0 => true,
            2 => false,
            other => panic!("XN {other}"),
        };
        Some((
            pa + (ipa - base),
            Attributes {
                memory,
                access,
                executable,
            },
        ))
    }
}

/// A TLB with a walk cache that never forgets by itself, over some addresses.
struct CachingTlb {
    walker: Walker,
    cached: RefCell<BTreeMap<u64, Walk>>,
    log: RefCell<Vec<&'static str>>,
}

impl CachingTlb {
    fn new(walker: Walker, probes: &[u64]) -> Self {
        let cached = probes.iter().map(|ipa| (*ipa, walker.walk(*ipa))).collect();
        Self {
            walker,
            cached: RefCell::new(cached),
            log: RefCell::default(),
        }
    }

    /// A core walks all addresses: what it has cached must not contradict what it finds.
    fn observe(&self) {
        for (ipa, cached) in self.cached.borrow_mut().iter_mut() {
            let now = self.walker.walk(*ipa);
            if let (Some(old), Some(new)) = (cached.leaf, now.leaf) {
                let permission = 3 << 6 | 1 << 54;
                assert_eq!(
                    (old.0, old.1),
                    (new.0, new.1),
                    "{ipa:#x}: size changed while live"
                );
                assert_eq!(
                    old.2 & !permission,
                    new.2 & !permission,
                    "{ipa:#x}: changed while live"
                );
            }
            for (old, new) in cached.tables.iter().zip(&now.tables) {
                assert_eq!(old, new, "{ipa:#x}: table replaced while live");
            }
            // What is found is cached; what is cached stays.
            if let Some((_, size, _)) = cached.leaf {
                let deeper = now.tables.iter().any(|table| table.1 <= size);
                assert!(!deeper, "{ipa:#x}: table in the place of a live block");
            }
            if now.tables.len() > cached.tables.len() {
                cached.tables = now.tables;
            }
            cached.leaf = cached.leaf.or(now.leaf);
        }
    }

    /// After an operation: all that is still cached must be true.
    fn assert_nothing_is_stale(&self) {
        for (ipa, cached) in self.cached.borrow().iter() {
            let now = self.walker.walk(*ipa);
            assert!(
                cached.leaf.is_none() || cached.leaf == now.leaf,
                "{ipa:#x}: stale leaf"
            );
            assert!(
                now.tables.starts_with(&cached.tables),
                "{ipa:#x}: stale table"
            );
        }
    }
}

impl Tlb for CachingTlb {
    fn publish(&self) {
        self.log.borrow_mut().push("publish");
        self.observe();
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa) {
        assert_eq!(u64::from(vmid.raw()), self.walker.vttbr >> 48);
        self.log.borrow_mut().push("ipa");
        self.observe();
        let covers = |base: u64, size: u64| (base..base + size).contains(&ipa.raw());
        for cached in self.cached.borrow_mut().values_mut() {
            cached.leaf = cached.leaf.filter(|(base, size, _)| !covers(*base, *size));
            let kept = cached
                .tables
                .iter()
                .take_while(|table| !covers(table.0, table.1))
                .count();
            // A leaf may be cached without the tables above it.
            cached.tables.truncate(kept);
        }
    }

    fn invalidate_vmid(&self, vmid: Vmid) {
        assert_eq!(u64::from(vmid.raw()), self.walker.vttbr >> 48);
        self.log.borrow_mut().push("vmid");
        self.observe();
        for cached in self.cached.borrow_mut().values_mut() {
            *cached = Walk {
                tables: Vec::new(),
                leaf: None,
            };
        }
    }
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
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(ipa),
            Pa::new(pa),
            len,
            Attributes::RAM,
        )
        .unwrap();
    let sizes: Vec<_> = [
        ipa,
        GIB - 2 * MIB,
        GIB,
        2 * GIB - 1,
        2 * GIB,
        2 * GIB + 2 * MIB,
    ]
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
        stage2
            .map(&mut pool, &NoTlb, ipa, pa, 4 * MIB, Attributes::RAM)
            .unwrap();
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
            stage2
                .map(
                    &mut pool,
                    &NoTlb,
                    Ipa::new(ipa),
                    pa,
                    4096,
                    Attributes::DEVICE,
                )
                .unwrap();
        }
        let walker = Walker::of(&stage2, memory);
        assert_eq!(walker.translate(0), Some((GIB + 4096, Attributes::DEVICE)));
        assert_eq!(
            walker.translate(last),
            Some((GIB + 4096, Attributes::DEVICE))
        );
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
    stage2
        .map(&mut pool, &NoTlb, ipa, Pa::new(0), 2 * GIB, Attributes::RAM)
        .unwrap();
    let walker = Walker::of(&stage2, memory);
    assert_eq!(
        walker.translate(512 * GIB - 1),
        Some((GIB - 1, Attributes::RAM))
    );
    assert_eq!(walker.translate(512 * GIB), Some((GIB, Attributes::RAM)));
    assert_eq!(walker.translate(513 * GIB), None);
}

#[test]
fn ranges_that_are_misaligned_empty_or_outside_are_refused() {
    let (mut pool, _) = pool(32);
    let mut stage2 = Stage2::new(&mut pool, Geometry::new(40, 2).unwrap(), Vmid::new(1)).unwrap();
    let end = 1 << 40;
    let mut map = |ipa, pa, len| {
        stage2.map(
            &mut pool,
            &NoTlb,
            Ipa::new(ipa),
            Pa::new(pa),
            len,
            Attributes::RAM,
        )
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
    assert_eq!(
        stage2.unmap(&mut pool, &NoTlb, ipa, 4096),
        Err(Stage2Error::OutOfRange)
    );
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
    stage2
        .map(&mut pool, &NoTlb, ipa, Pa::new(0), 4096, Attributes::RAM)
        .unwrap();
    let free = pool.free_frames();
    let again = stage2.map(
        &mut pool,
        &NoTlb,
        Ipa::new(GIB),
        Pa::new(0),
        16 * MIB,
        Attributes::RAM,
    );
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
    stage2
        .map(&mut pool, &NoTlb, page, Pa::new(0), 4096, Attributes::RAM)
        .unwrap();
    let free = pool.free_frames();
    let result = stage2.map(
        &mut pool,
        &NoTlb,
        Ipa::new(2 * GIB + 4096),
        Pa::new(0),
        GIB,
        Attributes::RAM,
    );
    assert_eq!(result, Err(Stage2Error::OutOfFrames));
    assert_eq!(pool.free_frames(), free);
    let walker = Walker::of(&stage2, memory);
    assert_eq!(walker.translate(2 * GIB + 4096), None);
    assert_eq!(walker.translate(4 * GIB - 4096), Some((0, Attributes::RAM)));
    // A 1 GiB block that cannot be split in two steps is still there.
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(GIB),
            Pa::new(GIB),
            GIB,
            Attributes::RAM,
        )
        .unwrap();
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
    let result = stage2.map(
        &mut pool,
        &tlb,
        Ipa::new(GIB),
        Pa::new(0),
        4096,
        Attributes::RAM,
    );
    assert_eq!(result, Err(Stage2Error::OutOfFrames));
    assert_eq!(*tlb.log.borrow(), ["publish", "publish", "vmid"]);
    assert_eq!(pool.free_frames(), 1);
}

#[test]
fn splitting_a_block_breaks_it_before_the_table_is_made() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(GIB),
            Pa::new(0),
            GIB,
            Attributes::RAM,
        )
        .unwrap();
    let probes = [GIB, GIB + 2 * MIB, GIB + 2 * MIB + 4096, 2 * GIB - 1];
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &probes);
    let (ipa, ro) = (Ipa::new(GIB + 2 * MIB), Attributes::READ_ONLY);
    stage2.protect(&mut pool, &tlb, ipa, 4096, ro).unwrap();
    tlb.assert_nothing_is_stale();
    // 1 GiB split, 2 MiB split, then a change of permission.
    let (split, protect) = (["publish", "ipa", "publish"], ["publish", "ipa"]);
    assert_eq!(*tlb.log.borrow(), [&split[..], &split, &protect].concat());
    let attributes = probes.map(|at| tlb.walker.translate(at).unwrap().1);
    assert_eq!(
        attributes,
        [Attributes::RAM, ro, Attributes::RAM, Attributes::RAM]
    );
}

#[test]
fn a_change_of_memory_type_breaks_each_entry() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(GIB),
            Pa::new(0),
            8192,
            Attributes::RAM,
        )
        .unwrap();
    let tlb = CachingTlb::new(Walker::of(&stage2, memory), &[GIB, GIB + 4096]);
    stage2
        .protect(&mut pool, &tlb, Ipa::new(GIB), 8192, Attributes::DEVICE)
        .unwrap();
    tlb.assert_nothing_is_stale();
    assert_eq!(
        *tlb.log.borrow(),
        ["publish", "ipa", "publish", "ipa", "publish"]
    );
    assert_eq!(
        tlb.walker.translate(GIB + 4096),
        Some((4096, Attributes::DEVICE))
    );
}

#[test]
fn unmapping_many_pages_takes_one_invalidation_and_frees_the_tables() {
    let (mut pool, memory) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    let free = pool.free_frames();
    let (ipa, pa) = (Ipa::new(GIB), Pa::new(4096));
    stage2
        .map(&mut pool, &NoTlb, ipa, pa, 4 * MIB, Attributes::RAM)
        .unwrap();
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
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(0),
            Pa::new(GIB),
            8192,
            Attributes::RAM,
        )
        .unwrap();
    let result = stage2.protect(
        &mut pool,
        &NoTlb,
        Ipa::new(0),
        3 * 4096,
        Attributes::READ_ONLY,
    );
    assert_eq!(result, Err(Stage2Error::NotMapped));
    assert_eq!(
        Walker::of(&stage2, memory).translate(0),
        Some((GIB, Attributes::RAM))
    );
}

#[test]
fn a_pool_without_the_tables_is_an_error() {
    let (mut pool, _) = pool(32);
    let mut stage2 = tree(&mut pool, 40);
    stage2
        .map(
            &mut pool,
            &NoTlb,
            Ipa::new(0),
            Pa::new(GIB),
            4096,
            Attributes::RAM,
        )
        .unwrap();
    let mut other = FramePool::new();
    assert_eq!(stage2.lookup(&other, Ipa::new(0)), None);
    let result = stage2.unmap(&mut other, &NoTlb, Ipa::new(0), 4096);
    assert_eq!(result, Err(Stage2Error::Corrupt));
}

#[test]
fn a_mapping_translates_its_own_addresses_only() {
    let attributes = Attributes::RAM;
    let mapping = Mapping {
        ipa: Ipa::new(GIB),
        pa: Pa::new(0),
        size: 2 * MIB,
        attributes,
    };
    assert_eq!(mapping.translate(Ipa::new(GIB + 5)), Some(Pa::new(5)));
    assert_eq!(mapping.translate(Ipa::new(GIB + 2 * MIB)), None);
    assert_eq!(mapping.translate(Ipa::new(GIB - 1)), None);
    assert!(!mapping.is_identity());
    assert!(
        Mapping {
            pa: Pa::new(GIB),
            ..mapping
        }
        .is_identity()
    );
}

/// One piece of the plain model: guest range, distance to the physical one, attributes.
type Piece = (u64, u64, u64, Attributes);

fn model_lookup(model: &[Piece], ipa: u64) -> Option<(u64, Attributes)> {
    let piece = model
        .iter()
        .find(|piece| (piece.0..piece.1).contains(&ipa))?;
    Some((ipa + piece.2, piece.3))
}

fn model_remove(model: &mut Vec<Piece>, from: u64, end: u64) -> Vec<Piece> {
    let mut removed = Vec::new();
    let mut rest = Vec::new();
    for (start, stop, delta, attributes) in model.drain(..) {
        for (low, high, inside) in [
            (start, stop.min(from), false),
            (start.max(from), stop.min(end), true),
            (start.max(end), stop, false),
        ] {
            let into = if inside { &mut removed } else { &mut rest };
            if low < high {
                into.push((low, high, delta, attributes));
            }
        }
    }
    *model = rest;
    removed
}

#[derive(Clone, Debug)]
enum Step {
    Map(u64, u64, u64, Attributes),
    Unmap(u64, u64),
    Protect(u64, u64, Attributes),
}

/// Addresses around the boundaries of every level and of the two root tables.
const BASES: [u64; 5] = [0, GIB - 2 * MIB, GIB, 512 * GIB - 2 * MIB, 512 * GIB];

fn steps() -> impl Strategy<Value = Step> {
    let ipa = (
        0..BASES.len(),
        0u64..4,
        prop_oneof![3 => Just(0u64), 1 => Just(2 * MIB)],
    )
        .prop_map(|(base, page, more)| BASES[base] + page * 4096 + more);
    let len = prop_oneof![
        4 => (1u64..5).prop_map(|pages| pages * 4096),
        4 => (1u64..4).prop_map(|blocks| blocks * 2 * MIB),
        2 => Just(2 * MIB - 4096),
        2 => Just(GIB),
        1 => Just(GIB + 2 * MIB),
    ];
    let delta = prop_oneof![
        4 => Just(4 * GIB),
        2 => Just(2 * MIB),
        1 => Just(4096u64),
    ];
    let attributes = prop_oneof![
        3 => Just(Attributes::RAM),
        1 => Just(Attributes::READ_ONLY),
        1 => Just(Attributes::DEVICE),
        1 => Just(Attributes { access: Access::None, ..Attributes::RAM }),
    ];
    prop_oneof![
        (ipa.clone(), len.clone(), delta, attributes.clone())
            .prop_map(|(ipa, len, delta, attributes)| Step::Map(ipa, len, delta, attributes)),
        (ipa.clone(), len.clone()).prop_map(|(ipa, len)| Step::Unmap(ipa, len)),
        (ipa, len, attributes)
            .prop_map(|(ipa, len, attributes)| Step::Protect(ipa, len, attributes)),
    ]
}

fn probes() -> Vec<u64> {
    let mut probes = Vec::new();
    for base in BASES {
        for block in [
            0,
            2 * MIB,
            4 * MIB,
            8 * MIB,
            GIB - 4 * MIB,
            GIB,
            GIB + 2 * MIB,
        ] {
            probes.extend((0..9).map(|page| base + block + page * 4096));
            probes.push(base + block + 2 * MIB - 4096);
        }
    }
    probes.sort_unstable();
    probes.dedup();
    probes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_tables_agree_with_a_plain_map_and_no_core_sees_a_stale_entry(
        steps in prop::collection::vec(steps(), 1..16), frames in 8usize..48,
    ) {
        let (mut pool, memory) = pool(frames);
        let all_free = pool.free_frames();
        let mut stage2 = tree(&mut pool, 40);
        let probes = probes();
        let walker = Walker::of(&stage2, memory);
        let tlb = CachingTlb::new(walker, &probes);
        let mut model: Vec<Piece> = Vec::new();
        for step in steps {
            let outcome = match step.clone() {
                Step::Map(ipa, len, delta, attributes) => {
                    let taken = !model_remove(&mut model.clone(), ipa, ipa + len).is_empty();
                    let pa = Pa::new(ipa + delta);
                    let result = stage2.map(&mut pool, &tlb, Ipa::new(ipa), pa, len, attributes);
                    prop_assert_eq!(taken, result == Err(Stage2Error::AlreadyMapped));
                    if result.is_ok() {
                        model.push((ipa, ipa + len, delta, attributes));
                    }
                    result
                }
                Step::Unmap(ipa, len) => {
                    let result = stage2.unmap(&mut pool, &tlb, Ipa::new(ipa), len);
                    if result.is_ok() {
                        model_remove(&mut model, ipa, ipa + len);
                    }
                    result
                }
                Step::Protect(ipa, len, attributes) => {
                    let there = model_remove(&mut model.clone(), ipa, ipa + len);
                    let whole = there.iter().map(|piece| piece.1 - piece.0).sum::<u64>() == len;
                    let result = stage2.protect(&mut pool, &tlb, Ipa::new(ipa), len, attributes);
                    prop_assert_eq!(!whole, result == Err(Stage2Error::NotMapped));
                    if result.is_ok() {
                        for piece in model_remove(&mut model, ipa, ipa + len) {
                            model.push((piece.0, piece.1, piece.2, attributes));
                        }
                    }
                    result
                }
            };
            prop_assert!(!matches!(
                outcome,
                Err(Stage2Error::Corrupt | Stage2Error::Misaligned | Stage2Error::OutOfRange)
            ), "{:?}: {:?}", step, outcome);
            tlb.assert_nothing_is_stale();
            for at in &probes {
                let expected = model_lookup(&model, *at);
                prop_assert_eq!(walker.translate(*at), expected, "{:#x} after {:?}", at, &step);
                let found = stage2.lookup(&pool, Ipa::new(*at)).map(|mapping| {
                    (mapping.translate(Ipa::new(*at)).unwrap().raw(), mapping.attributes)
                });
                prop_assert_eq!(found, expected);
            }
            tlb.observe();
        }
        stage2.unmap(&mut pool, &tlb, Ipa::new(0), 1 << 40).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free - 2, "tables left after unmapping all");
        stage2.destroy(&mut pool, &tlb).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free);
    }

    #[test]
    fn destroying_a_tree_gives_every_frame_back(
        steps in prop::collection::vec(steps(), 1..12),
    ) {
        let (mut pool, _) = pool(64);
        let all_free = pool.free_frames();
        let mut stage2 = tree(&mut pool, 41);
        for step in steps {
            if let Step::Map(ipa, len, delta, attributes) = step {
                let pa = Pa::new(ipa + delta);
                let _ = stage2.map(&mut pool, &NoTlb, Ipa::new(ipa), pa, len, attributes);
            }
        }
        stage2.destroy(&mut pool, &NoTlb).unwrap();
        prop_assert_eq!(pool.free_frames(), all_free);
    }
}
