//! A table walker and a TLB, made independently of the code under test.

use core::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

/// What the walk of one address found, and what of it a core may have cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    /// Tables below the root: first address and size of what each covers, and where it is.
    tables: Vec<(u64, u64, u64)>,
    /// First address, size and raw descriptor of the leaf.
    leaf: Option<(u64, u64, u64)>,
}

/// A walker made from the two register values alone, as the hardware is: Arm ARM D8.2.
#[derive(Clone, Copy)]
pub(super) struct Walker {
    memory: SharedSlice<'static>,
    vtcr: u64,
    vttbr: u64,
}

impl Walker {
    pub(super) fn of(stage2: &Stage2<'_>, memory: SharedSlice<'static>) -> Self {
        let vtcr = stage2.geometry().vtcr(VmidBits::Eight);
        Self { memory, vtcr, vttbr: stage2.vttbr() }
    }

    pub(super) fn walk(&self, ipa: u64) -> Walk {
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
        assert_eq!(table % (8 << (high - low)), 0, "root not aligned to its size");
        let mut walk = Walk { tables: Vec::new(), leaf: None };
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

    pub(super) fn translate(&self, ipa: u64) -> Option<(u64, Attributes)> {
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
        Some((pa + (ipa - base), Attributes { memory, access, executable }))
    }
}

/// A TLB with a walk cache that never forgets by itself, over some addresses.
pub(super) struct CachingTlb {
    pub(super) walker: Walker,
    cached: RefCell<BTreeMap<u64, Walk>>,
    pub(super) log: RefCell<Vec<&'static str>>,
}

impl CachingTlb {
    pub(super) fn new(walker: Walker, probes: &[u64]) -> Self {
        let cached = probes.iter().map(|ipa| (*ipa, walker.walk(*ipa))).collect();
        Self { walker, cached: RefCell::new(cached), log: RefCell::default() }
    }

    /// A core walks all addresses: what it has cached must not contradict what it finds.
    pub(super) fn observe(&self) {
        for (ipa, cached) in self.cached.borrow_mut().iter_mut() {
            let now = self.walker.walk(*ipa);
            if let (Some(old), Some(new)) = (cached.leaf, now.leaf) {
                let permission = 3 << 6 | 1 << 54;
                assert_eq!((old.0, old.1), (new.0, new.1), "{ipa:#x}: size changed while live");
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
    pub(super) fn assert_nothing_is_stale(&self) {
        for (ipa, cached) in self.cached.borrow().iter() {
            let now = self.walker.walk(*ipa);
            assert!(cached.leaf.is_none() || cached.leaf == now.leaf, "{ipa:#x}: stale leaf");
            assert!(now.tables.starts_with(&cached.tables), "{ipa:#x}: stale table");
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
            let kept = cached.tables.iter().take_while(|table| !covers(table.0, table.1)).count();
            // A leaf may be cached without the tables above it.
            cached.tables.truncate(kept);
        }
    }

    fn invalidate_vmid(&self, vmid: Vmid) {
        assert_eq!(u64::from(vmid.raw()), self.walker.vttbr >> 48);
        self.log.borrow_mut().push("vmid");
        self.observe();
        for cached in self.cached.borrow_mut().values_mut() {
            *cached = Walk { tables: Vec::new(), leaf: None };
        }
    }
}
