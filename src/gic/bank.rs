//! The state of 32 interrupts, one bit each in words, so that a question about all of them is a
//! few instructions.

use super::irq::PRIORITY_MASK;
use super::list_register::{ListRegister, State};
use super::{IntId, irq::Bits};

/// Words of 32 interrupts; word 0 holds SGIs and PPIs and is banked per vCPU.
pub(super) const WORDS: usize = 8;
/// SGIs 0-15 are edge-triggered by architecture; PPIs here are level-triggered.
const PRIVATE_EDGES: u32 = 0x0000_ffff;

/// One bit an interrupt.
#[derive(Debug)]
pub(super) struct Words([u32; WORDS]);

impl Words {
    pub(super) const NONE: Self = Self([0; WORDS]);
    /// Word 0 only: what belongs to a vCPU wherever SPIs are routed.
    pub(super) const PRIVATE: Self = Self([u32::MAX, 0, 0, 0, 0, 0, 0, 0]);
    pub(super) const ALL: Self = Self([u32::MAX; WORDS]);

    #[inline]
    pub(super) fn get(&self, word: usize) -> u32 {
        self.0.get(word % WORDS).copied().unwrap_or(0)
    }

    #[inline]
    pub(super) fn set(&mut self, word: usize, mask: u32) {
        if let Some(bits) = self.0.get_mut(word % WORDS) {
            *bits |= mask;
        }
    }

    #[inline]
    pub(super) fn clear(&mut self, word: usize, mask: u32) {
        if let Some(bits) = self.0.get_mut(word % WORDS) {
            *bits &= !mask;
        }
    }
}

/// A set of interrupts that is empty most of the time, and known to be by one test.
#[derive(Debug)]
pub(super) struct SparseSet {
    words: Words,
    /// Bit n: word n is not zero.
    occupied: u32,
}

impl SparseSet {
    pub(super) const EMPTY: Self = Self { words: Words::NONE, occupied: 0 };

    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    #[inline(always)]
    pub(super) fn insert(&mut self, word: usize, mask: u32) {
        if mask != 0 {
            self.words.set(word, mask);
            self.occupied |= 1 << (word % WORDS);
        }
    }

    #[inline(always)]
    pub(super) fn remove(&mut self, word: usize, mask: u32) {
        if !self.is_empty() {
            self.words.clear(word, mask);
            if self.words.get(word) == 0 {
                self.occupied &= !(1 << (word % WORDS));
            }
        }
    }

    /// Takes out a word that is not zero.
    pub(super) fn take_word(&mut self) -> Option<(usize, u32)> {
        let word = Bits(self.occupied).next()? as usize;
        let members = self.words.get(word);
        self.remove(word, members);
        Some((word, members))
    }

    /// Every member.
    pub(super) fn iter(&self) -> impl Iterator<Item = IntId> {
        Bits(self.occupied).flat_map(move |word| {
            let word = word as usize;
            Bits(self.words.get(word)).map(move |bit| IntId::at(word, bit))
        })
    }
}

/// Distributor state of 32 interrupts.
///
/// Of a *listed* interrupt (one in a list register) the truth about pending and active is in the
/// hardware; `lr_latch`, `hw_pending`, `active` are what was last read or written there.
#[derive(Debug)]
pub(super) struct Bank {
    /// Group 1, else Group 0 (IGROUPR).
    pub(super) group1: u32,
    /// Enabled (I\[SC\]ENABLER).
    pub(super) enabled: u32,
    /// Enabled, in an enabled group; see [`Self::set_deliverable`].
    pub(super) deliverable: u32,
    /// Edge-triggered, else level-sensitive (ICFGR).
    pub(super) edge: u32,
    /// Pending by an edge or by software, not yet given to a list register.
    pub(super) latch: u32,
    /// The input line is high.
    pub(super) line: u32,
    /// Active.
    pub(super) active: u32,
    /// Active because the guest wrote ISACTIVER, never acknowledged: no EOI need follow.
    pub(super) forced: u32,
    /// In a list register of some vCPU.
    pub(super) listed: u32,
    /// Listed, and the pending state in the list register came out of `latch`.
    pub(super) lr_latch: u32,
    /// A physical interrupt is active and owed a deactivation.
    pub(super) hw: u32,
    /// Subset of `hw`: the physical interrupt has not been delivered to the guest yet.
    pub(super) hw_pending: u32,
    /// Listed, and the guest asked for it to become active.
    pub(super) activate: u32,
    /// Listed, and the guest asked for it to become inactive.
    pub(super) deactivate: u32,
    /// IPRIORITYR.
    pub(super) priority: [u8; 32],
    /// Priority at which an active interrupt was acknowledged.
    running: [u8; 32],
    /// List register that holds a listed interrupt.
    pub(super) slot: [u8; 32],
    /// Physical INTID of an interrupt in `hw`.
    physical: [u16; 32],
    /// SGIs that are pending once for each sender: GICv2's 16, none of GICv3's.
    pub(super) per_sender: u32,
    /// Of those: the vCPUs, one bit each, whose SGI waits outside the list registers. Somebody is
    /// in it while the SGI is in `latch`.
    senders: [u8; 16],
    /// Of those: the vCPU whose SGI is in the list register, or active.
    sender: [u8; 16],
}

impl Bank {
    /// SPIs at power-on.
    pub(super) const SPIS: Self = Self {
        group1: 0,
        enabled: 0,
        deliverable: 0,
        edge: 0,
        latch: 0,
        line: 0,
        active: 0,
        forced: 0,
        listed: 0,
        lr_latch: 0,
        hw: 0,
        hw_pending: 0,
        activate: 0,
        deactivate: 0,
        priority: [0; 32],
        running: [0; 32],
        slot: [0; 32],
        physical: [0; 32],
        per_sender: 0,
        senders: [0; 16],
        sender: [0; 16],
    };

    /// SGIs and PPIs of one vCPU at power-on.
    pub(super) const PRIVATE: Self = Self { edge: PRIVATE_EDGES, ..Self::SPIS };

    /// As [`PRIVATE`](Self::PRIVATE) in a GICv2, where SGIs know their sender and cannot be disabled.
    pub(super) const PRIVATE_V2: Self =
        Self { per_sender: PRIVATE_EDGES, enabled: PRIVATE_EDGES, ..Self::PRIVATE };

    /// Inputs that stay pending without a latch: high lines of level-sensitive interrupts, and
    /// physical interrupts that wait.
    #[inline]
    pub(super) const fn asserted(&self) -> u32 {
        (self.line & !self.edge) | self.hw_pending
    }

    /// What ISPENDR reads.
    #[inline]
    pub(super) const fn pending(&self) -> u32 {
        self.latch | self.lr_latch | self.asserted()
    }

    /// To be called when `enabled`, `group1` or GICD_CTLR's group enables `ctlr` have changed.
    pub(super) fn set_deliverable(&mut self, ctlr: u32) {
        let groups = match ctlr & 0b11 {
            0b00 => 0,
            0b01 => !self.group1,
            0b10 => self.group1,
            _ => u32::MAX,
        };
        self.deliverable = self.enabled & groups;
    }

    /// Ought to be put into a list register.
    #[inline]
    pub(super) const fn candidates(&self) -> u32 {
        (self.latch | self.asserted()) & self.deliverable & !(self.listed | self.active)
    }

    #[inline]
    pub(super) fn priority_of(&self, bit: u32) -> u8 {
        at(&self.priority, bit)
    }

    /// How an active interrupt ranks: acknowledged ones by their priority, forced ones last.
    pub(super) fn running_rank(&self, bit: u32) -> u16 {
        let forced = self.forced & (1 << bit) != 0;
        u16::from(at(&self.running, bit)) | if forced { 0x100 } else { 0 }
    }

    #[inline]
    pub(super) fn slot_of(&self, bit: u32) -> usize {
        usize::from(at(&self.slot, bit))
    }

    #[inline]
    pub(super) fn physical_of(&self, bit: u32) -> u16 {
        at(&self.physical, bit)
    }

    #[inline]
    pub(super) fn set_slot(&mut self, bit: u32, n: usize) {
        if let Some(slot) = self.slot.get_mut(bit as usize & 31) {
            *slot = n as u8;
        }
    }

    pub(super) fn set_physical(&mut self, bit: u32, pintid: u16) {
        if let Some(physical) = self.physical.get_mut(bit as usize) {
            *physical = pintid;
        }
    }

    /// Writes IPRIORITYR; the bits that do not exist are dropped.
    pub(super) fn set_priority(&mut self, bit: u32, priority: u8) {
        if let Some(byte) = self.priority.get_mut(bit as usize) {
            *byte = priority & PRIORITY_MASK;
        }
    }

    /// Makes an unlisted interrupt active by software.
    pub(super) fn force_active(&mut self, bit: u32) {
        let mask = 1 << bit;
        self.active |= mask;
        self.forced |= mask;
        self.set_running(bit, self.priority_of(bit));
    }

    fn set_running(&mut self, bit: u32, priority: u8) {
        if let Some(running) = self.running.get_mut(bit as usize) {
            *running = priority;
        }
    }

    /// Takes note of the state of a listed interrupt that is not Invalid. `written` is what its
    /// list register was given. Answers whether its physical interrupt must be deactivated.
    #[must_use]
    pub(super) fn observe(&mut self, bit: u32, written: ListRegister, now: ListRegister) -> bool {
        let mask = 1 << bit;
        let acknowledged = now.is_active()
            && (self.active & mask == 0 || (self.lr_latch & mask != 0 && !now.is_pending()));
        if !now.is_pending() {
            self.lr_latch &= !mask;
            if written.physical().is_some() {
                self.hw_pending &= !mask;
            }
        }
        if now.is_active() {
            self.active |= mask;
            if acknowledged {
                self.forced &= !mask;
                self.set_running(bit, written.priority());
            }
            return false;
        }
        self.active &= !mask;
        self.forced &= !mask;
        written.physical().is_none() && self.release(bit)
    }

    /// Takes note that the guest has deactivated a listed interrupt, its list register being
    /// Invalid. Answers whether its physical interrupt must be deactivated.
    #[inline]
    #[must_use]
    pub(super) fn finish(&mut self, bit: u32, written: ListRegister) -> bool {
        let mask = 1 << bit;
        self.listed &= !mask;
        self.lr_latch &= !mask;
        self.active &= !mask;
        self.forced &= !mask;
        self.deactivate &= !mask;
        if written.physical().is_some() {
            // The guest's deactivation reached the physical interrupt.
            self.hw &= !mask;
            self.hw_pending &= !mask;
            return false;
        }
        self.release(bit)
    }

    /// To be called when an interrupt is no longer active by other means than a list register with
    /// HW = 1. Answers whether its physical interrupt must be deactivated, and forgets it.
    #[inline(always)]
    #[must_use]
    pub(super) fn release(&mut self, bit: u32) -> bool {
        let mask = 1 << bit;
        let owed = self.hw & !self.hw_pending & mask != 0;
        if owed {
            self.hw &= !mask;
        }
        owed
    }

    /// What a list register must hold for an interrupt that is to be delivered. Moves the latch
    /// into it.
    #[inline(always)]
    pub(super) fn compose_pending(&mut self, intid: IntId) -> ListRegister {
        let (bit, mask) = (intid.bit(), intid.mask());
        if self.per_sender & mask != 0 {
            return self.compose_pending_sgi(intid);
        }
        let latched = self.latch & mask;
        self.latch ^= latched;
        self.lr_latch |= latched;
        let group1 = self.group1 & mask != 0;
        let lr = ListRegister::new(intid, State::Pending, self.priority_of(bit), group1);
        if self.hw & mask != 0 {
            lr.with_physical(self.physical_of(bit))
        } else {
            lr.with_eoi_maintenance(self.asserted() & mask != 0)
        }
    }

    /// What a list register must hold for an active interrupt. Moves the latch into it, or back
    /// where it may not be delivered.
    pub(super) fn compose_active(
        &mut self,
        intid: IntId,
        deliverable: bool,
        group1: bool,
    ) -> ListRegister {
        let (bit, mask) = (intid.bit(), intid.mask());
        let wanted = (self.latch | self.lr_latch) & mask;
        // One list register has room for one sender.
        let per_sender = self.per_sender & mask != 0;
        let latched = if deliverable && !per_sender { wanted } else { 0 };
        if per_sender {
            self.put_back_sender(bit);
        }
        self.latch = (self.latch & !mask) | (wanted ^ latched);
        self.lr_latch = (self.lr_latch & !mask) | latched;
        let hw = self.hw & mask != 0;
        let state = if latched != 0 { State::PendingActive } else { State::Active };
        let lr = ListRegister::new(intid, state, self.priority_of(bit), group1);
        // HW = 1 forbids pending-and-active, and stands for one delivery of the physical
        // interrupt: otherwise the deactivation is done by software, after maintenance.
        if hw && latched == 0 && self.hw_pending & mask == 0 {
            lr.with_physical(self.physical_of(bit))
        } else {
            // What stays pending outside is due, here or on another vCPU, after the deactivation.
            let left = self.asserted() & mask != 0 || wanted != latched;
            let lr = lr.with_eoi_maintenance(hw || left);
            if per_sender { lr.with_sender(self.sender_of(bit)) } else { lr }
        }
    }

    /// Takes a listed interrupt out of its list register; what was pending there is latched here.
    #[inline]
    pub(super) fn unlist(&mut self, bit: u32) {
        let mask = 1 << bit;
        if self.per_sender & mask != 0 {
            self.put_back_sender(bit);
        }
        self.listed &= !mask;
        self.latch |= self.lr_latch & mask;
        self.lr_latch &= !mask;
    }

    /// Adds `senders`, one bit a vCPU, to those whose SGI `bit` is pending. GICv2 only.
    pub(super) fn add_senders(&mut self, bit: u32, senders: u8) {
        if let Some(waiting) = self.senders.get_mut(bit as usize) {
            *waiting |= senders;
            self.latch |= u32::from(senders != 0) << bit;
        }
    }

    /// The SGI `bit` of these senders is no longer pending. GICv2 only.
    pub(super) fn remove_senders(&mut self, bit: u32, senders: u8) {
        let listed = 1u8 << (self.sender_of(bit) & 7);
        if let Some(waiting) = self.senders.get_mut(bit as usize) {
            let mask = 1 << bit;
            *waiting &= !senders;
            if *waiting == 0 {
                self.latch &= !mask;
            }
            if senders & listed != 0 {
                self.lr_latch &= !mask;
            }
        }
    }

    /// Those whose SGI `bit` is pending, in a list register or not. GICv2 only.
    pub(super) fn senders_of(&self, bit: u32) -> u8 {
        let listed = (self.lr_latch >> (bit & 31) & 1) as u8;
        let waiting = self.senders.get(bit as usize).copied().unwrap_or(0);
        waiting | listed << (self.sender_of(bit) & 7)
    }

    fn sender_of(&self, bit: u32) -> u8 {
        self.sender.get(bit as usize).copied().unwrap_or(0)
    }

    /// The SGI that is pending in the list register waits with the others again.
    fn put_back_sender(&mut self, bit: u32) {
        if self.lr_latch & 1 << bit != 0 {
            let sender = 1 << (self.sender_of(bit) & 7);
            if let Some(waiting) = self.senders.get_mut(bit as usize) {
                *waiting |= sender;
            }
        }
    }

    /// [`compose_pending`](Self::compose_pending) for an SGI with senders: one goes into the list
    /// register, the lowest-numbered first, and stays there; the others follow after its end.
    #[cold]
    #[inline(never)]
    fn compose_pending_sgi(&mut self, intid: IntId) -> ListRegister {
        let (bit, mask) = (intid.bit(), intid.mask());
        if let (Some(waiting), Some(sender)) =
            (self.senders.get_mut(bit as usize), self.sender.get_mut(bit as usize))
        {
            if self.lr_latch & mask == 0 {
                *sender = waiting.trailing_zeros() as u8 & 7;
                *waiting &= waiting.wrapping_sub(1);
                self.lr_latch |= mask;
            }
            // What the listed sender has sent again meanwhile is the same interrupt.
            *waiting &= !(1 << (*sender & 7));
            let others = u32::from(*waiting != 0) << bit;
            self.latch = self.latch & !mask | others;
        }
        let group1 = self.group1 & mask != 0;
        ListRegister::new(intid, State::Pending, self.priority_of(bit), group1)
            .with_eoi_maintenance(self.latch & mask != 0)
            .with_sender(self.sender_of(bit))
    }
}

#[inline]
fn at<T: Copy + Default>(values: &[T; 32], bit: u32) -> T {
    values.get(bit as usize & 31).copied().unwrap_or_default()
}
