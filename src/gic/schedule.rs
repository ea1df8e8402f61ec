//! Which interrupts are in the list registers, and which wait outside.
//!
//! The rules, in the order in which [`Scheduler::flush`] applies them:
//!
//! 1. A list register the guest has emptied is given back.
//! 2. A listed interrupt whose state was changed from outside (an edge, a line, a register write)
//!    is written anew: a pending one that may no longer be delivered is withdrawn, an edge makes an
//!    active one pending-and-active.
//! 3. Candidates go into free list registers, most urgent first. Without a free one, a candidate
//!    takes the place of a less urgent pending interrupt; if no list register is pending at
//!    all, the place of the active interrupt that the guest will deactivate last.
//! 4. While a candidate has to wait, no active interrupt in a list register is pending, too, unless
//!    it is as urgent.
//! 5. Active interrupts that were put outside come back where there is room.
//!
//! So at every entry either nobody waits outside, or some list register is pending and holds the
//! most urgent candidate. That is why NPIE, armed while candidates wait, cannot be asserted at
//! entry: the guest must acknowledge something first. Deactivations of active interrupts outside
//! are counted by the hardware (EOIcount) and, with EOImode = 0, arrive in order of urgency.

use super::bank::{Bank, WORDS};
use super::interface::{Lists, VcpuInterface};
use super::irq::{Bits, IntId};
use super::list_register::{ListRegister, ListRegisters, Maintenance, State};

/// One vCPU's state and the shared state, with the borrows taken apart.
pub(super) struct Scheduler<'a, L> {
    private: &'a mut Bank,
    lists: &'a mut Lists,
    spis: &'a mut [Bank; WORDS - 1],
    lrs: &'a mut L,
}

macro_rules! bank {
    ($self:ident, $word:expr) => {
        select(&mut *$self.private, &mut *$self.spis, $word)
    };
}

impl<'a, L: ListRegisters> Scheduler<'a, L> {
    pub(super) fn new(
        interface: &'a mut VcpuInterface,
        spis: &'a mut [Bank; WORDS - 1],
        lrs: &'a mut L,
    ) -> Self {
        let VcpuInterface { private, lists, .. } = interface;
        Self { private, lists, spis, lrs }
    }

    /// Whether there is anything to [`flush`](Self::flush).
    #[inline(always)]
    pub(super) fn is_dirty(&self) -> bool {
        self.lists.dirty
    }

    /// Brings the list registers up to date.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        // EOIcount must be spent before the set it speaks of changes.
        if self.lists.maintenance.unlisted_active {
            self.sync();
        } else {
            self.reap_empty();
        }
        self.lists.dirty = false;
        if !self.lists.attention.is_empty() {
            self.attend();
        }
        let waiting = self.place();
        if !self.lists.unlisted_active.is_empty() {
            self.relist();
        }
        self.ask(Maintenance {
            no_pending: waiting,
            unlisted_active: !self.lists.unlisted_active.is_empty(),
        });
    }

    #[inline(always)]
    fn ask(&mut self, wanted: Maintenance) {
        if wanted != self.lists.maintenance {
            self.lists.maintenance = wanted;
            self.lrs.set_maintenance(wanted);
        }
    }

    /// Takes note of everything the guest did to its list registers.
    #[inline(never)]
    pub(super) fn sync(&mut self) {
        for n in Bits(self.lists.used) {
            let n = n as usize;
            let now = self.lrs.read(n);
            self.look_at(n, now);
        }
        // The guest may write EOIs at will: they count only if something was out, and only so many.
        let mut count = self.lrs.take_eoi_count();
        if !self.lists.maintenance.unlisted_active {
            count = 0;
        }
        for _ in 0..count {
            match self.most_urgent_unlisted_active() {
                Some(intid) => self.retire(intid),
                None => break,
            }
        }
    }

    /// Empties the list registers and gives physical PPIs back; what they held stays known.
    pub(super) fn unload(&mut self) {
        self.sync();
        for n in Bits(self.lists.used) {
            self.evict(n as usize);
            self.lrs.write(n as usize, ListRegister::EMPTY);
        }
        for bit in Bits(self.private.hw) {
            self.lrs.deactivate_physical(self.private.physical_of(bit));
        }
        self.private.latch |= self.private.hw_pending;
        self.private.hw = 0;
        self.private.hw_pending = 0;
        self.lists.note_all();
        self.ask(Maintenance::default());
    }

    /// Looks at one interrupt's list register, if it has one.
    #[inline]
    pub(super) fn sync_one(&mut self, intid: IntId) {
        if self.lists.listed.get(intid.word()) & intid.mask() != 0 {
            let n = bank!(self, intid.word()).slot_of(intid.bit());
            if self.lrs.empty() >> n & 1 != 0 {
                self.reap(n);
            } else {
                let now = self.lrs.read(n);
                self.look_at(n, now);
            }
        }
    }

    /// Takes note of what list register `n`, in use, holds `now`.
    #[inline]
    fn look_at(&mut self, n: usize, now: ListRegister) {
        if now.is_invalid() {
            self.reap(n);
        } else {
            self.observe(n, now);
        }
    }

    #[inline]
    fn reap_empty(&mut self) {
        if self.lists.used == 0 {
            return;
        }
        let empty = self.lrs.empty();
        for n in Bits(self.lists.used & (empty | self.lists.eoi)) {
            let n = n as usize;
            // ELRSR leaves out those that asserted EOI maintenance.
            if empty & (1 << n) != 0 || self.lrs.read(n).is_invalid() {
                self.reap(n);
            }
        }
    }

    fn observe(&mut self, n: usize, now: ListRegister) {
        let (intid, written) = self.lists.written(n);
        let bank = bank!(self, intid.word());
        if bank.observe(intid.bit(), written, now) {
            self.lrs.deactivate_physical(bank.physical_of(intid.bit()));
        }
    }

    /// Gives back a list register whose interrupt the guest has deactivated.
    #[inline]
    fn reap(&mut self, n: usize) {
        let (intid, written) = self.lists.written(n);
        let (word, mask) = (intid.word(), intid.mask());
        let bank = bank!(self, word);
        let owed = bank.finish(intid.bit(), written).then(|| bank.physical_of(intid.bit()));
        if bank.activate & mask != 0 {
            bank.activate &= !mask;
            bank.force_active(intid.bit());
            self.lists.unlisted_active.insert(word, mask);
        }
        let eoi = self.lists.eoi >> n & 1 != 0;
        self.lists.vacate(n, intid);
        self.note_unlisted(intid);
        if owed.is_some() || eoi {
            self.settle(n, owed);
        }
    }

    /// What reaping list register `n` asks of the hardware, where it asks anything. Apart, so that
    /// the common case is a function that calls nothing.
    #[inline(never)]
    fn settle(&mut self, n: usize, owed: Option<u16>) {
        if let Some(pintid) = owed {
            self.lrs.deactivate_physical(pintid);
        }
        self.lrs.write(n, ListRegister::EMPTY);
    }

    /// An interrupt that left the list registers may be a candidate at once, here or elsewhere.
    #[inline(always)]
    fn note_unlisted(&mut self, intid: IntId) {
        if self.lists.routed.get(intid.word()) & intid.mask() != 0 {
            self.lists.words |= 1 << intid.word();
        } else {
            self.lists.moved.insert(intid.word(), intid.mask());
        }
    }

    /// Does what was asked for while an interrupt was listed.
    #[inline(never)]
    fn attend(&mut self) {
        while let Some((word, members)) = self.lists.attention.take_word() {
            for bit in Bits(members) {
                self.reconcile(IntId::at(word, bit));
            }
        }
    }

    fn reconcile(&mut self, intid: IntId) {
        let (word, bit, mask) = (intid.word(), intid.bit(), intid.mask());
        let bank = bank!(self, word);
        if self.lists.listed.get(word) & mask == 0 {
            // Unlisted and made inactive by the guest: the physical interrupt must follow.
            if (bank.listed | bank.active) & mask == 0 && bank.release(bit) {
                self.lrs.deactivate_physical(bank.physical_of(bit));
            }
            return;
        }
        let n = bank.slot_of(bit);
        let now = self.lrs.read(n);
        if now.is_invalid() {
            self.reap(n);
            return;
        }
        self.observe(n, now);

        let bank = bank!(self, word);
        if bank.activate & mask != 0 && bank.active & mask == 0 {
            bank.force_active(bit);
        }
        if bank.deactivate & mask != 0 {
            bank.active &= !mask;
            bank.forced &= !mask;
            if bank.release(bit) {
                self.lrs.deactivate_physical(bank.physical_of(bit));
            }
        }
        bank.activate &= !mask;
        bank.deactivate &= !mask;

        let deliverable = bank.deliverable & self.lists.routed.get(word) & mask != 0;
        let lr = if bank.active & mask != 0 {
            // Its group is that in which it was acknowledged.
            let group1 = if now.is_active() { now.is_group1() } else { bank.group1 & mask != 0 };
            bank.compose_active(intid, deliverable, group1)
        } else if deliverable && bank.pending() & mask != 0 {
            bank.compose_pending(intid)
        } else {
            self.lrs.write(n, ListRegister::EMPTY);
            self.evict(n);
            return;
        };
        if lr != now {
            self.lrs.write(n, lr);
        }
        self.lists.occupy(n, intid, lr);
    }

    /// Takes an interrupt out of a list register whose state is known. The caller overwrites it.
    fn evict(&mut self, n: usize) {
        let (intid, _) = self.lists.written(n);
        let (word, mask) = (intid.word(), intid.mask());
        let bank = bank!(self, word);
        bank.unlist(intid.bit());
        if bank.active & mask != 0 {
            self.lists.unlisted_active.insert(word, mask);
        }
        self.lists.vacate(n, intid);
        self.note_unlisted(intid);
    }

    /// Ends the active state of an interrupt that is in no list register.
    fn retire(&mut self, intid: IntId) {
        let (word, bit, mask) = (intid.word(), intid.bit(), intid.mask());
        let bank = bank!(self, word);
        bank.active &= !mask;
        bank.forced &= !mask;
        if bank.release(bit) {
            self.lrs.deactivate_physical(bank.physical_of(bit));
        }
        self.lists.unlisted_active.remove(word, mask);
        self.note_unlisted(intid);
    }

    /// Puts candidates into list registers; answers whether some had to stay outside.
    #[inline(always)]
    fn place(&mut self) -> bool {
        let mut is_known = false;
        loop {
            let candidate = self.most_urgent_candidate();
            if candidate.is_none() {
                return false;
            }
            let Some(n) = self.free() else {
                // All are in use, as far as is known at first.
                if !is_known {
                    self.sync();
                    is_known = true;
                } else if !self.displace(candidate.priority()) {
                    return true;
                }
                continue;
            };
            self.load_candidate(n, candidate.intid());
            if candidate.is_last {
                self.lists.words = 0;
                return false;
            }
        }
    }

    /// Makes room for a candidate of `priority` (rule 3), which the next use of the list register
    /// overwrites. `false` if the candidate has to wait.
    #[inline(never)]
    fn displace(&mut self, priority: u8) -> bool {
        match self.victim(priority) {
            Some(n) => {
                self.evict(n);
                true
            }
            None => {
                self.withhold(priority);
                false
            }
        }
    }

    /// Rule 4. While a candidate of `priority` waits, takes the pending state from active list
    /// registers that are less urgent: the hardware would signal them after their deactivation,
    /// past the candidate. They stay pending by software, and are looked at again at the next flush.
    fn withhold(&mut self, priority: u8) {
        for n in Bits(self.lists.used) {
            let n = n as usize;
            let lr = self.lrs.read(n);
            if lr.state() != State::PendingActive || lr.priority() <= priority {
                continue;
            }
            let (intid, _) = self.lists.written(n);
            let (word, mask) = (intid.word(), intid.mask());
            let bank = bank!(self, word);
            let lr = bank.compose_active(intid, false, lr.is_group1());
            self.lrs.write(n, lr);
            self.lists.occupy(n, intid, lr);
            self.lists.attention.insert(word, mask);
        }
    }

    /// Brings active interrupts back into free list registers, the next to be deactivated first.
    #[inline(never)]
    fn relist(&mut self) {
        while let Some(n) = self.free() {
            let Some(intid) = self.most_urgent_unlisted_active() else {
                return;
            };
            let (word, mask) = (intid.word(), intid.mask());
            self.lists.unlisted_active.remove(word, mask);
            let bank = bank!(self, word);
            let routed = self.lists.routed.get(word);
            let deliverable = bank.deliverable & routed & mask != 0;
            let lr = bank.compose_active(intid, deliverable, bank.group1 & mask != 0);
            self.occupy(n, intid, lr);
        }
    }

    #[inline]
    fn free(&self) -> Option<usize> {
        let n = (!self.lists.used).trailing_zeros() as usize;
        if n < self.lrs.count() { Some(n) } else { None }
    }

    /// Writes a candidate into the unused list register `n`.
    #[inline(always)]
    fn load_candidate(&mut self, n: usize, intid: IntId) {
        let lr = bank!(self, intid.word()).compose_pending(intid);
        self.occupy(n, intid, lr);
    }

    #[inline(always)]
    fn occupy(&mut self, n: usize, intid: IntId, lr: ListRegister) {
        let bank = bank!(self, intid.word());
        bank.listed |= intid.mask();
        bank.set_slot(intid.bit(), n);
        self.lists.occupy(n, intid, lr);
        self.lrs.write(n, lr);
    }

    /// The candidate with the lowest priority value; of equals the lowest INTID.
    #[inline]
    fn most_urgent_candidate(&mut self) -> Candidate {
        let mut best = Candidate::NONE;
        for word in Bits(self.lists.words) {
            let word = word as usize;
            let bank = bank!(self, word);
            let candidates = bank.candidates() & self.lists.routed.get(word);
            if candidates == 0 {
                self.lists.words &= !(1 << word);
            }
            for bit in Bits(candidates) {
                let urgency = u32::from(bank.priority_of(bit)) << 16 | IntId::at(word, bit).raw();
                best.is_last = best.is_none();
                best.urgency = best.urgency.min(urgency);
            }
        }
        best
    }

    /// The list register that an interrupt of `priority` may take over (rule 3).
    fn victim(&mut self, priority: u8) -> Option<usize> {
        let mut pending: Option<(u8, u32, usize)> = None;
        let mut active: Option<(u16, usize)> = None;
        for n in Bits(self.lists.used) {
            let n = n as usize;
            let lr = self.lrs.read(n);
            if lr.state() == State::Pending {
                pending = pending.max(Some((lr.priority(), lr.vintid(), n)));
            } else {
                let (intid, _) = self.lists.written(n);
                let rank = bank!(self, intid.word()).running_rank(intid.bit());
                active = active.max(Some((rank, n)));
            }
        }
        match pending {
            Some((least, _, n)) => (least > priority).then_some(n),
            None => active.map(|(_, n)| n),
        }
    }

    /// The interrupt outside the list registers that the guest will deactivate first.
    fn most_urgent_unlisted_active(&mut self) -> Option<IntId> {
        let mut best: Option<(IntId, u16)> = None;
        for intid in self.lists.unlisted_active.iter() {
            let rank = bank!(self, intid.word()).running_rank(intid.bit());
            if best.is_none_or(|(_, least)| rank < least) {
                best = Some((intid, rank));
            }
        }
        best.map(|(intid, _)| intid)
    }
}

/// An interrupt that ought to be in a list register, or none.
#[derive(Clone, Copy)]
struct Candidate {
    /// Priority and INTID in one number: the lowest is the most urgent.
    urgency: u32,
    /// There is no other.
    is_last: bool,
}

impl Candidate {
    const NONE: Self = Self { urgency: u32::MAX, is_last: false };

    #[inline(always)]
    const fn is_none(self) -> bool {
        self.urgency == u32::MAX
    }

    #[inline(always)]
    const fn priority(self) -> u8 {
        (self.urgency >> 16) as u8
    }

    #[inline(always)]
    const fn intid(self) -> IntId {
        IntId::at(self.urgency as usize >> 5, self.urgency)
    }
}

/// The bank of `word`: the vCPU's own for word 0.
#[inline]
pub(super) fn select<'b>(
    private: &'b mut Bank,
    spis: &'b mut [Bank; WORDS - 1],
    word: usize,
) -> &'b mut Bank {
    match spis.get_mut(word.wrapping_sub(1)) {
        Some(bank) => bank,
        None => private,
    }
}
