//! The virtual GIC: one state machine, its register front ends and list-register scheduling.
//!
//! - [`irq`], [`list_register`]: interrupt numbers; list registers and the trait that `arch`
//!   implements.
//! - `bank`: distributor state of 32 interrupts as words of bits. SPIs are in seven shared banks,
//!   SGIs and PPIs in one bank per vCPU.
//! - `interface`: what one vCPU has, mainly the bookkeeping of its list registers.
//! - `schedule`: which interrupts are listed and which wait; the rules are at the top of that file.
//! - `registers`: the meaning of each class of registers (I\[SC\]ENABLER, IPRIORITYR, ...), on a
//!   vCPU and a word of 32 interrupts, so that front ends only translate offsets.
//! - `v3`: GICD and GICR frames. `sgi`: ICC_SGI1R_EL1.
//! - [`v2`]: GICv2's GICD frame, and the format of its list registers. A GICv2 guest's CPU interface
//!   is the hardware's GICV, which stage 2 maps where the guest has its GICC.
//!
//! # How it is driven
//!
//! Devices and register writes change the distributor state and mark the vCPUs concerned. Before a
//! vCPU is entered, one test of [`Vgic::needs_flush`] decides whether [`Vgic::flush`] must write
//! list registers. Only reads of pending and active state, and the few calls that take list
//! registers, look at the hardware.
//!
//! # Locking
//!
//! All methods need the whole [`Vgic`], which is right for one vCPU and correct behind one lock for
//! more. No method waits or calls back, so the lock is held for a bounded time and never across a
//! guest's run. The list registers given must be those of the vCPU named, on the core it runs on.
//!
//! An access of one vCPU that concerns what another, running elsewhere, has in list registers:
//! a write takes effect when that vCPU flushes, and the answer names it. Until then it may still
//! acknowledge an interrupt that has just been disabled or cleared, as on hardware it might while the
//! write was on its way. A read of pending or active state sees what it did up to its last flush,
//! and has it flush.
//!
//! State kept per vCPU is in its own structure, touched by other vCPUs only to note a change; SPIs
//! are shared. A vCPU that leaves its core calls [`Vgic::unload`], so parked vCPUs have all state
//! here.

mod bank;
mod interface;
pub mod irq;
pub mod list_register;
mod registers;
mod schedule;
mod sgi;
pub mod v2;
mod v3;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use interface::{Affinity, VcpuSet};
pub use irq::{INTID_COUNT, IntId, SPI_BASE};
pub use list_register::{ListRegister, ListRegisters, MAX_LIST_REGISTERS, Maintenance, State};
pub use v3::{GICD_SIZE, GICR_STRIDE};

use bank::{Bank, WORDS};
use interface::VcpuInterface;
use schedule::{Scheduler, select};

/// Most vCPUs a virtual GIC serves.
pub const MAX_VCPUS: usize = 8;

/// A vCPU of the VM, counted from 0, always below [`MAX_VCPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VcpuIndex(u8);

impl VcpuIndex {
    /// The boot vCPU.
    pub const BOOT: Self = Self(0);

    /// vCPU number `index`, or `None` if there can be none of that number.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_VCPUS { Some(Self(index as u8)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// What the guest's interrupt controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicVersion {
    /// GICv2: SGIs have senders, SPIs target sets of CPU interfaces.
    V2,
    /// GICv3 with affinity routing.
    V3,
}

/// A VM's interrupt controller.
#[derive(Debug)]
pub struct Vgic {
    /// GICD_CTLR's EnableGrp0 and EnableGrp1.
    ctlr: u32,
    version: GicVersion,
    /// vCPUs whose list registers were needed by a read and could not be seen.
    stale: VcpuSet,
    /// vCPUs that exist, at least 1.
    vcpu_count: usize,
    spis: [Bank; WORDS - 1],
    /// GICD_IROUTER, in a GICv2 GICD_ITARGETSR, by word - 1 and bit.
    routes: [[u64; 32]; WORDS - 1],
    vcpus: [VcpuInterface; MAX_VCPUS],
}

impl Vgic {
    /// A GICv3 at power-on for `vcpus` vCPUs (1 to [`MAX_VCPUS`]; clamped), with affinity 0.0.0.n.
    pub const fn new(vcpus: usize) -> Self {
        Self::with_version(GicVersion::V3, vcpus)
    }

    /// A GICv2 at power-on. vCPU n is CPU interface n.
    pub const fn new_v2(vcpus: usize) -> Self {
        Self::with_version(GicVersion::V2, vcpus)
    }

    /// [`new`](Self::new) or [`new_v2`](Self::new_v2).
    pub const fn with_version(version: GicVersion, vcpus: usize) -> Self {
        let vcpu_count = match vcpus {
            0 => 1,
            MAX_VCPUS.. => MAX_VCPUS,
            count => count,
        };
        let mut vgic = Self {
            ctlr: 0,
            version,
            stale: VcpuSet::EMPTY,
            vcpu_count,
            spis: [const { Bank::SPIS }; WORDS - 1],
            routes: [[0; 32]; WORDS - 1],
            vcpus: [
                VcpuInterface::new(0, version),
                VcpuInterface::new(1, version),
                VcpuInterface::new(2, version),
                VcpuInterface::new(3, version),
                VcpuInterface::new(4, version),
                VcpuInterface::new(5, version),
                VcpuInterface::new(6, version),
                VcpuInterface::new(7, version),
            ],
        };
        // Out of reset every SPI is routed to affinity 0.0.0.0, the boot vCPU; in a GICv2 to nobody,
        // if there is a choice.
        let nobody = matches!(version, GicVersion::V2) && vcpu_count > 1;
        let mut rest: &mut [VcpuInterface] = &mut vgic.vcpus;
        let mut is_boot = true;
        while let [vcpu, tail @ ..] = rest {
            if nobody || !is_boot {
                vcpu.lists.routed = bank::Words::PRIVATE;
            }
            is_boot = false;
            rest = tail;
        }
        vgic
    }

    /// What the guest sees.
    #[inline]
    pub const fn version(&self) -> GicVersion {
        self.version
    }

    /// How many vCPUs there are.
    #[inline]
    pub const fn vcpus(&self) -> usize {
        self.vcpu_count
    }

    /// Gives `vcpu` another affinity, which its MPIDR_EL1 must show. For set-up, before the guest
    /// runs.
    pub fn set_affinity(&mut self, vcpu: VcpuIndex, affinity: Affinity) {
        self.interface_mut(vcpu).affinity = affinity;
        self.reroute_all();
    }

    /// Back to power-on state: everything disabled, nothing pending or active. Input lines and
    /// affinities stay: lines belong to the devices. Every vCPU has been [unloaded](Self::unload).
    pub fn reset_unloaded(&mut self) {
        self.ctlr = 0;
        self.stale = VcpuSet::EMPTY;
        for (index, interface) in self.vcpus.iter_mut().enumerate() {
            let (affinity, line) = (interface.affinity, interface.private.line);
            *interface = VcpuInterface::new(index as u8, self.version);
            interface.affinity = affinity;
            interface.private.line = line;
        }
        for spis in &mut self.spis {
            let line = spis.line;
            *spis = Bank::SPIS;
            spis.line = line;
        }
        self.routes = [[0; 32]; WORDS - 1];
        self.reroute_all();
    }

    /// Reads `width` bytes at `offset` of the GICD frame. `vcpu` is the one that reads, and runs on
    /// this core with `lrs`. What other vCPUs did to interrupts in their list registers since their
    /// last flush is not seen; those it matters of are in the answer of the next
    /// [`flush`](Self::flush) of `vcpu`, which is then needed.
    #[inline]
    pub fn gicd_read<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        offset: u64,
        width: u32,
        lrs: &mut L,
    ) -> u64 {
        match self.version {
            GicVersion::V3 => self.gicd_read_v3(vcpu, offset, width, lrs),
            GicVersion::V2 => self.gicd_read_v2(vcpu, offset, width, lrs),
        }
    }

    /// `vcpu` writes the `width` lowest bytes of `value` at `offset` of the GICD frame.
    pub fn gicd_write(&mut self, vcpu: VcpuIndex, offset: u64, width: u32, value: u64) -> VcpuSet {
        match self.version {
            GicVersion::V3 => self.gicd_write_v3(offset, width, value),
            GicVersion::V2 => self.gicd_write_v2(vcpu, offset, width, value),
        }
    }

    /// Whether [`flush`](Self::flush) has something to do: a load and a test, for the exit path.
    #[inline]
    pub fn needs_flush(&self, vcpu: VcpuIndex) -> bool {
        self.interface(vcpu).lists.dirty
    }

    /// Brings the list registers of `vcpu` up to date, before it is entered. The answer is of other
    /// vCPUs that got something to deliver by it (an SPI whose routing changed), or whose list
    /// registers a register read of `vcpu` has asked for; empty with one vCPU. Does nothing unless
    /// [`needs_flush`](Self::needs_flush).
    #[inline]
    pub fn flush<L: ListRegisters>(&mut self, vcpu: VcpuIndex, lrs: &mut L) -> VcpuSet {
        let mut scheduler = self.scheduler(vcpu, lrs);
        if !scheduler.is_dirty() {
            return VcpuSet::EMPTY;
        }
        scheduler.flush();
        self.hand_over(vcpu)
    }

    /// Takes note of what the guest did to its list registers (acknowledged, deactivated).
    /// Register reads do it themselves where they need to.
    pub fn sync<L: ListRegisters>(&mut self, vcpu: VcpuIndex, lrs: &mut L) {
        self.scheduler(vcpu, lrs).sync();
        // What became inactive may be pending again; what was counted is gone from EOIcount.
        self.interface_mut(vcpu).lists.dirty = true;
    }

    /// The maintenance interrupt was taken: some list register wants service, which the next
    /// [`flush`](Self::flush) does. Cannot be asserted again before the guest has run.
    pub fn on_maintenance(&mut self, vcpu: VcpuIndex) {
        self.interface_mut(vcpu).lists.dirty = true;
    }

    /// Empties the list registers of a vCPU that leaves its core; all state is then in `self`.
    /// Physical PPIs are given back, because the core's next vCPU needs them: what was pending of
    /// them stays pending by software. ICH_VMCR and the active priorities (ICH_AP0R, ICH_AP1R) are
    /// the caller's to save.
    pub fn unload<L: ListRegisters>(&mut self, vcpu: VcpuIndex, lrs: &mut L) -> VcpuSet {
        self.scheduler(vcpu, lrs).unload();
        self.hand_over(vcpu)
    }

    /// Whether an enabled interrupt is pending for `vcpu`, as of the last [`sync`](Self::sync) or
    /// [`unload`](Self::unload), with a priority value below `threshold`, that which its CPU interface
    /// signals to it: if so it must not be parked.
    pub fn has_deliverable(&self, vcpu: VcpuIndex, threshold: u8) -> bool {
        let lists = &self.interface(vcpu).lists;
        (0..WORDS).any(|word| {
            let bank = self.bank(vcpu, word);
            let mine = (lists.routed.get(word) & !bank.listed) | lists.listed.get(word);
            let mut ready = irq::Bits(bank.pending() & bank.deliverable & !bank.active & mine);
            ready.any(|bit| bank.priority_of(bit) < threshold)
        })
    }

    /// The private interrupts of `vcpu` that are pending or active, a bit each, as of the last
    /// [`sync`](Self::sync) or [`unload`](Self::unload). What drives their lines has no more to say.
    pub fn private_pending_or_active(&self, vcpu: VcpuIndex) -> u32 {
        let private = &self.interface(vcpu).private;
        private.pending() | private.active
    }

    /// The input line of an SPI is `high` or low. An edge-triggered SPI latches the rise; a
    /// level-sensitive one is pending while the line is high. SGIs and PPIs are ignored.
    pub fn set_level(&mut self, intid: IntId, high: bool) -> VcpuSet {
        if intid.is_private() { VcpuSet::EMPTY } else { self.drive(VcpuIndex::BOOT, intid, high) }
    }

    /// As [`set_level`](Self::set_level) for a PPI of `vcpu`. Other interrupts are ignored.
    pub fn set_ppi_level(&mut self, vcpu: VcpuIndex, intid: IntId, high: bool) -> VcpuSet {
        if intid.is_private() && intid.raw() >= 16 {
            self.drive(vcpu, intid, high)
        } else {
            VcpuSet::EMPTY
        }
    }

    /// An SPI's source signals one event (a message, a rising edge). Pending until acknowledged,
    /// whatever trigger the guest has configured. SGIs and PPIs are ignored.
    #[inline]
    pub fn pulse(&mut self, intid: IntId) -> VcpuSet {
        if intid.is_private() {
            return VcpuSet::EMPTY;
        }
        self.bank_mut(VcpuIndex::BOOT, intid.word()).latch |= intid.mask();
        self.touch(VcpuIndex::BOOT, intid.word(), intid.mask())
    }

    /// The physical interrupt `pintid` was taken at EL2 on the core of `vcpu`, its priority
    /// dropped, and is now active: delivers it as `intid`. The guest's deactivation becomes the
    /// physical one's. Until then the physical interrupt stays active and cannot fire again, so a
    /// guest that disables `intid` stops it rather than storming EL2.
    pub fn inject_hw<L: ListRegisters>(
        &mut self,
        vcpu: VcpuIndex,
        intid: IntId,
        pintid: u16,
        lrs: &mut L,
    ) -> VcpuSet {
        // The list register of the delivery before may still stand there, Invalid.
        self.scheduler(vcpu, lrs).sync_one(intid);
        let bank = self.bank_mut(vcpu, intid.word());
        bank.hw |= intid.mask();
        bank.hw_pending |= intid.mask();
        bank.set_physical(intid.bit(), pintid);
        self.touch(vcpu, intid.word(), intid.mask())
    }

    /// The source of an interrupt injected by [`inject_hw`](Self::inject_hw) has gone quiet. If the
    /// guest has not acknowledged it yet, it is withdrawn and the physical interrupt deactivated.
    pub fn retract_hw<L: ListRegisters>(&mut self, vcpu: VcpuIndex, intid: IntId, lrs: &mut L) {
        let (word, mask) = (intid.word(), intid.mask());
        if self.bank_mut(vcpu, word).hw_pending & mask == 0 {
            return;
        }
        self.scheduler(vcpu, lrs).sync_one(intid);
        let bank = self.bank_mut(vcpu, word);
        if bank.hw_pending & mask == 0 {
            return;
        }
        bank.hw_pending &= !mask;
        if bank.release(intid.bit()) {
            lrs.deactivate_physical(bank.physical_of(intid.bit()));
        }
        let _ = self.touch(vcpu, word, mask);
    }

    /// A trapped write to ICC_DIR_EL1 (see [`Maintenance::unlisted_active`]).
    pub fn deactivate(&mut self, vcpu: VcpuIndex, value: u64) -> VcpuSet {
        match u32::try_from(value & 0xff_ffff).ok().and_then(IntId::new) {
            Some(intid) => self.clear_active(vcpu, intid.word(), intid.mask()),
            None => VcpuSet::EMPTY,
        }
    }

    fn drive(&mut self, vcpu: VcpuIndex, intid: IntId, high: bool) -> VcpuSet {
        let mask = intid.mask();
        let bank = self.bank_mut(vcpu, intid.word());
        if (bank.line & mask != 0) == high {
            return VcpuSet::EMPTY;
        }
        bank.line ^= mask;
        if bank.edge & mask != 0 {
            if !high {
                return VcpuSet::EMPTY;
            }
            bank.latch |= mask;
        }
        self.touch(vcpu, intid.word(), mask)
    }

    /// Marks the vCPUs that changes to the interrupts `mask` of `word` concern; `vcpu` is the owner
    /// if they are private.
    #[inline(always)]
    fn touch(&mut self, vcpu: VcpuIndex, word: usize, mask: u32) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        if word == 0 {
            if self.interface_mut(vcpu).lists.note(word, mask) {
                set.insert(vcpu);
            }
            return set;
        }
        self.touch_spis(word, mask)
    }

    /// The same for SPIs, which may be anyone's.
    #[inline(never)]
    fn touch_spis(&mut self, word: usize, mask: u32) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        for (index, interface) in self.vcpus.iter_mut().enumerate().take(self.vcpu_count) {
            if interface.lists.note(word, mask) {
                set.insert(VcpuIndex(index as u8));
            }
        }
        set
    }

    fn touch_all(&mut self) -> VcpuSet {
        let mut set = VcpuSet::EMPTY;
        for (index, interface) in self.vcpus.iter_mut().enumerate().take(self.vcpu_count) {
            interface.lists.note_all();
            set.insert(VcpuIndex(index as u8));
        }
        set
    }

    /// Tells other vCPUs of SPIs that have left this one, and that they are to look.
    #[inline(always)]
    fn hand_over(&mut self, vcpu: VcpuIndex) -> VcpuSet {
        if self.stale.is_empty() && self.interface(vcpu).lists.moved.is_empty() {
            return VcpuSet::EMPTY;
        }
        self.hand_over_some(vcpu)
    }

    #[cold]
    #[inline(never)]
    fn hand_over_some(&mut self, vcpu: VcpuIndex) -> VcpuSet {
        let mut set = core::mem::take(&mut self.stale);
        while let Some((word, mask)) = self.interface_mut(vcpu).lists.moved.take_word() {
            set.merge(self.touch(vcpu, word, mask));
        }
        set.without(vcpu)
    }

    /// Works out anew which vCPU each SPI goes to.
    fn reroute_all(&mut self) {
        for word in 1..WORDS {
            self.reroute(word, u32::MAX);
        }
    }

    /// As [`reroute_all`](Self::reroute_all), for some interrupts of a word. A route to an affinity
    /// that no vCPU has, or to no CPU interface, leads nowhere: the SPI stays pending.
    fn reroute(&mut self, word: usize, mask: u32) {
        let Some(routes) = self.routes.get(word.wrapping_sub(1)) else {
            return;
        };
        for (index, interface) in self.vcpus.iter_mut().enumerate() {
            let mut routed = 0;
            for bit in irq::Bits(mask) {
                let route = routes.get(bit as usize).copied().unwrap_or(0);
                let here = match self.version {
                    GicVersion::V3 => route == interface.affinity.bits(),
                    GicVersion::V2 if self.vcpu_count == 1 => true,
                    // Of several targets the lowest-numbered.
                    GicVersion::V2 => route.trailing_zeros() == index as u32,
                };
                routed |= u32::from(here && index < self.vcpu_count) << bit;
            }
            interface.lists.routed.clear(word, mask);
            interface.lists.routed.set(word, routed);
        }
    }

    #[inline]
    fn interface(&self, vcpu: VcpuIndex) -> &VcpuInterface {
        let [first, ..] = &self.vcpus;
        self.vcpus.get(vcpu.get() % MAX_VCPUS).unwrap_or(first)
    }

    #[inline]
    fn interface_mut(&mut self, vcpu: VcpuIndex) -> &mut VcpuInterface {
        let [first, rest @ ..] = &mut self.vcpus;
        match rest.get_mut(vcpu.get().wrapping_sub(1)) {
            Some(interface) => interface,
            None => first,
        }
    }

    #[inline]
    fn bank(&self, vcpu: VcpuIndex, word: usize) -> &Bank {
        match self.spis.get(word.wrapping_sub(1)) {
            Some(bank) => bank,
            None => &self.interface(vcpu).private,
        }
    }

    #[inline]
    fn bank_mut(&mut self, vcpu: VcpuIndex, word: usize) -> &mut Bank {
        let [first, rest @ ..] = &mut self.vcpus;
        let interface = rest.get_mut(vcpu.get().wrapping_sub(1)).unwrap_or(first);
        select(&mut interface.private, &mut self.spis, word)
    }

    #[inline]
    fn scheduler<'a, L: ListRegisters>(
        &'a mut self,
        vcpu: VcpuIndex,
        lrs: &'a mut L,
    ) -> Scheduler<'a, L> {
        let [first, rest @ ..] = &mut self.vcpus;
        let interface = rest.get_mut(vcpu.get().wrapping_sub(1)).unwrap_or(first);
        Scheduler::new(interface, &mut self.spis, lrs)
    }
}
