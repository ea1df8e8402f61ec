//! One vCPU's side of the virtual GIC: its own interrupts, and what is in its list registers.

use super::bank::{Bank, SparseSet, WORDS, Words};
use super::irq::IntId;
use super::list_register::{ListRegister, MAX_LIST_REGISTERS, Maintenance};
use super::{GicVersion, VcpuIndex};

/// GICR_WAKER.ProcessorSleep.
pub(super) const PROCESSOR_SLEEP: u32 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep.
pub(super) const CHILDREN_ASLEEP: u32 = 1 << 2;

/// MPIDR affinity fields in IROUTER's layout: Aff3 in \[39:32\], Aff2 to Aff0 in \[23:0\].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Affinity(u64);

impl Affinity {
    /// The bits that IROUTER and MPIDR_EL1 use for affinity.
    pub(super) const MASK: u64 = 0xff_00ff_ffff;

    /// The affinity fields of an MPIDR_EL1 value.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self(mpidr & Self::MASK)
    }

    /// In the layout of MPIDR_EL1 and IROUTER.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Aff3.Aff2.Aff1.Aff0, as in GICR_TYPER\[63:32\].
    pub(super) const fn packed(self) -> u32 {
        ((self.0 >> 8) as u32 & 0xff00_0000) | (self.0 as u32 & 0x00ff_ffff)
    }
}

/// What one vCPU has: private interrupts, affinity, list registers.
#[derive(Debug)]
pub(super) struct VcpuInterface {
    /// SGIs and PPIs.
    pub(super) private: Bank,
    /// What is, or should be, in the list registers.
    pub(super) lists: Lists,
    pub(super) affinity: Affinity,
    /// GICR_WAKER.
    pub(super) waker: u32,
}

impl VcpuInterface {
    pub(super) const fn new(index: u8, version: GicVersion) -> Self {
        Self {
            private: match version {
                GicVersion::V2 => Bank::PRIVATE_V2,
                GicVersion::V3 => Bank::PRIVATE,
            },
            lists: Lists::new(),
            affinity: Affinity(index as u64),
            waker: PROCESSOR_SLEEP | CHILDREN_ASLEEP,
        }
    }
}

/// Bookkeeping of a vCPU's list registers.
#[derive(Debug)]
pub(super) struct Lists {
    /// Something changed that the list registers do not show.
    pub(super) dirty: bool,
    /// Words that may hold candidates.
    pub(super) words: u32,
    /// SPIs routed here; all of word 0.
    pub(super) routed: Words,
    /// Interrupts in list registers of this vCPU.
    pub(super) listed: Words,
    /// Interrupts whose state changed while they were listed, and physical ones to deactivate.
    pub(super) attention: SparseSet,
    /// Active interrupts of this vCPU that are in no list register.
    pub(super) unlisted_active: SparseSet,
    /// SPIs that left the list registers of this vCPU while routed to another.
    pub(super) moved: SparseSet,
    /// List registers in use.
    pub(super) used: u32,
    /// Those written with EOI maintenance.
    pub(super) eoi: u32,
    /// What each list register in use was given.
    written: [ListRegister; MAX_LIST_REGISTERS],
    /// What the hardware was last asked for.
    pub(super) maintenance: Maintenance,
}

impl Lists {
    const fn new() -> Self {
        Self {
            dirty: false,
            words: 0,
            routed: Words::ALL,
            listed: Words::NONE,
            attention: SparseSet::EMPTY,
            unlisted_active: SparseSet::EMPTY,
            moved: SparseSet::EMPTY,
            used: 0,
            eoi: 0,
            written: [ListRegister::EMPTY; MAX_LIST_REGISTERS],
            maintenance: Maintenance { no_pending: false, unlisted_active: false },
        }
    }

    /// Takes note that interrupts of a word changed; answers whether that concerns this vCPU.
    #[inline(always)]
    pub(super) fn note(&mut self, word: usize, mask: u32) -> bool {
        let listed = self.listed.get(word) & mask;
        if listed | (self.routed.get(word) & mask) == 0 {
            return false;
        }
        self.attention.insert(word, listed);
        self.words |= 1 << word;
        self.dirty = true;
        true
    }

    /// Has the next flush look at what is listed of a word; answers whether there is anything.
    pub(super) fn look_again(&mut self, word: usize) -> bool {
        let listed = self.listed.get(word);
        self.attention.insert(word, listed);
        self.dirty |= listed != 0;
        listed != 0
    }

    /// Everything may have changed.
    pub(super) fn note_all(&mut self) {
        self.words = (1 << WORDS) - 1;
        for word in 0..WORDS {
            self.attention.insert(word, self.listed.get(word));
        }
        self.dirty = true;
    }

    /// The interrupt in list register `n`, and what was written for it.
    #[inline]
    pub(super) fn written(&self, n: usize) -> (IntId, ListRegister) {
        let lr = self.written.get(n).copied().unwrap_or(ListRegister::EMPTY);
        (IntId::at(lr.vintid() as usize >> 5, lr.vintid()), lr)
    }

    /// Takes note that `n` now holds `lr`.
    #[inline(always)]
    pub(super) fn occupy(&mut self, n: usize, intid: IntId, lr: ListRegister) {
        if let Some(written) = self.written.get_mut(n) {
            *written = lr;
        }
        self.used |= 1 << n;
        self.eoi &= !(1 << n);
        self.eoi |= u32::from(lr.has_eoi_maintenance()) << n;
        self.listed.set(intid.word(), intid.mask());
    }

    /// Takes note that `n`, which held `intid`, is free.
    #[inline(always)]
    pub(super) fn vacate(&mut self, n: usize, intid: IntId) {
        self.used &= !(1 << n);
        self.eoi &= !(1 << n);
        self.listed.clear(intid.word(), intid.mask());
        self.attention.remove(intid.word(), intid.mask());
    }
}

/// A set of vCPUs that have something new to deliver. A vCPU in it that runs on another core must
/// be made to exit; one that is parked must be woken; for the one that runs here the next entry is
/// enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "a parked vCPU that is not woken sleeps through its interrupt"]
pub struct VcpuSet(u8);

impl VcpuSet {
    /// No vCPU.
    pub const EMPTY: Self = Self(0);

    /// Adds one.
    #[inline]
    pub(super) const fn insert(&mut self, vcpu: VcpuIndex) {
        self.0 |= 1 << vcpu.get();
    }

    /// Adds those of `other`.
    #[inline]
    pub(super) const fn merge(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// With those of `other`.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without `vcpu`.
    #[inline]
    pub const fn without(self, vcpu: VcpuIndex) -> Self {
        Self(self.0 & !(1 << vcpu.get()))
    }

    /// Whether `vcpu` is in it.
    #[inline]
    pub const fn contains(self, vcpu: VcpuIndex) -> bool {
        self.0 & (1 << vcpu.get()) != 0
    }

    /// Whether nobody is in it.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, lowest first.
    pub fn iter(self) -> impl Iterator<Item = VcpuIndex> {
        super::irq::Bits(u32::from(self.0)).filter_map(|bit| VcpuIndex::new(bit as usize))
    }
}
