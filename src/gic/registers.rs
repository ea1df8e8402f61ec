//! What the classes of distributor registers mean, on a vCPU and a word of 32 interrupts.
//!
//! Front ends translate offsets to these. Word 0 is the vCPU's own SGIs and PPIs.

use super::bank::WORDS;
use super::interface::Affinity;
use super::irq::Bits;
use super::list_register::ListRegisters;
use super::{VcpuIndex, VcpuSet, Vgic};

/// Registers with one bit an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BitRegister {
    /// IGROUPR.
    Group,
    /// ISENABLER.
    SetEnable,
    /// ICENABLER.
    ClearEnable,
    /// ISPENDR.
    SetPending,
    /// ICPENDR.
    ClearPending,
    /// ISACTIVER.
    SetActive,
    /// ICACTIVER.
    ClearActive,
}

impl BitRegister {
    /// The class at `offset`, 0x080 to 0x3ff, of GICD or the SGI frame.
    #[inline]
    pub(super) const fn at(offset: u64) -> Option<Self> {
        match offset >> 7 {
            1 => Some(Self::Group),
            2 => Some(Self::SetEnable),
            3 => Some(Self::ClearEnable),
            4 => Some(Self::SetPending),
            5 => Some(Self::ClearPending),
            6 => Some(Self::SetActive),
            7 => Some(Self::ClearActive),
            _ => None,
        }
    }
}

impl Vgic {
    /// Reads a bit register of `owner`'s view. Pending and active state may be in the list
    /// registers of `vcpu`, the one that runs here with `lrs`.
    #[inline]
    pub(super) fn read_bits<L: ListRegisters>(
        &mut self,
        register: BitRegister,
        owner: VcpuIndex,
        word: usize,
        vcpu: VcpuIndex,
        lrs: &mut L,
    ) -> u32 {
        let bank = self.bank(owner, word);
        match register {
            BitRegister::Group => bank.group1,
            BitRegister::SetEnable | BitRegister::ClearEnable => bank.enabled,
            BitRegister::SetPending | BitRegister::ClearPending => {
                self.fold(owner, word, vcpu, lrs);
                self.bank(owner, word).pending()
            }
            BitRegister::SetActive | BitRegister::ClearActive => {
                self.fold(owner, word, vcpu, lrs);
                self.bank(owner, word).active
            }
        }
    }

    /// Takes note of what the guest did in the list registers that hold interrupts of `word`.
    ///
    /// Those of another vCPU cannot be read from here: what it did since its last flush is not seen
    /// by this read, as if the read had come first. It is made to flush (the next
    /// [`Vgic::flush`] of `vcpu` names it), so that a guest that polls sees it in the end.
    #[inline(never)]
    pub(super) fn fold<L: ListRegisters>(
        &mut self,
        owner: VcpuIndex,
        word: usize,
        vcpu: VcpuIndex,
        lrs: &mut L,
    ) {
        let mut stale = VcpuSet::EMPTY;
        for (index, interface) in self.vcpus.iter_mut().enumerate().take(self.vcpu_count) {
            let concerned = index != vcpu.get() && (word != 0 || index == owner.get());
            if concerned && interface.lists.look_again(word) {
                stale.insert(VcpuIndex(index as u8));
            }
        }
        if word != 0 || owner == vcpu {
            self.sync(vcpu, lrs);
        }
        if !stale.is_empty() {
            self.stale.merge(stale);
            self.interface_mut(vcpu).lists.dirty = true;
        }
    }

    /// Writes a bit register of `owner`'s view.
    pub(super) fn write_bits(
        &mut self,
        register: BitRegister,
        owner: VcpuIndex,
        word: usize,
        value: u32,
    ) -> VcpuSet {
        let ctlr = self.ctlr;
        let bank = self.bank_mut(owner, word);
        let mask = match register {
            BitRegister::Group => {
                let changed = bank.group1 ^ value;
                bank.group1 = value;
                changed
            }
            BitRegister::SetEnable => {
                let changed = value & !bank.enabled;
                bank.enabled |= value;
                changed
            }
            BitRegister::ClearEnable => {
                let changed = value & bank.enabled & !bank.per_sender;
                bank.enabled &= !changed;
                changed
            }
            // GICv2's SGIs have registers of their own for it.
            BitRegister::SetPending => {
                let value = value & !bank.per_sender;
                bank.latch |= value;
                value
            }
            BitRegister::ClearPending => {
                let value = value & !bank.per_sender;
                bank.latch &= !value;
                bank.lr_latch &= !value;
                value
            }
            BitRegister::SetActive => return self.set_active(owner, word, value),
            BitRegister::ClearActive => return self.clear_active(owner, word, value),
        };
        bank.set_deliverable(ctlr);
        self.touch(owner, word, mask)
    }

    fn set_active(&mut self, owner: VcpuIndex, word: usize, mask: u32) -> VcpuSet {
        let bank = self.bank_mut(owner, word);
        bank.activate |= mask & bank.listed;
        bank.deactivate &= !mask;
        let forced = mask & !(bank.listed | bank.active);
        for bit in Bits(forced) {
            bank.force_active(bit);
        }
        if word == 0 {
            self.interface_mut(owner).lists.unlisted_active.insert(word, forced);
        } else {
            for interface in &mut self.vcpus {
                let lists = &mut interface.lists;
                lists.unlisted_active.insert(word, forced & lists.routed.get(word));
            }
        }
        self.touch(owner, word, mask)
    }

    /// Ends the active state of interrupts, wherever it is.
    pub(super) fn clear_active(&mut self, owner: VcpuIndex, word: usize, mask: u32) -> VcpuSet {
        let bank = self.bank_mut(owner, word);
        let unlisted = mask & !bank.listed;
        bank.deactivate |= mask & bank.listed;
        bank.activate &= !mask;
        bank.active &= !unlisted;
        bank.forced &= !unlisted;
        // Without a list register nothing but the next flush can deactivate a physical interrupt.
        let owed = bank.hw & unlisted;
        if word == 0 {
            let lists = &mut self.interface_mut(owner).lists;
            lists.unlisted_active.remove(word, mask);
            lists.attention.insert(word, owed);
        } else {
            for interface in &mut self.vcpus {
                let lists = &mut interface.lists;
                lists.unlisted_active.remove(word, mask);
                lists.attention.insert(word, owed & lists.routed.get(word));
            }
        }
        self.touch(owner, word, mask)
    }

    /// Reads four IPRIORITYR bytes, from `bit` (a multiple of four) on.
    #[inline]
    pub(super) fn read_priorities(&self, owner: VcpuIndex, word: usize, bit: usize) -> u32 {
        let priority = &self.bank(owner, word).priority;
        let bytes = priority.get(bit..).and_then(|rest| rest.first_chunk::<4>());
        u32::from_le_bytes(*bytes.unwrap_or(&[0; 4]))
    }

    /// Reads one IPRIORITYR byte.
    pub(super) fn read_priority(&self, owner: VcpuIndex, word: usize, bit: u32) -> u8 {
        self.bank(owner, word).priority_of(bit)
    }

    /// Writes the `width` lowest bytes of `value` to IPRIORITYR, from `bit` on.
    pub(super) fn write_priorities(
        &mut self,
        owner: VcpuIndex,
        word: usize,
        bit: u32,
        width: u32,
        value: u32,
    ) -> VcpuSet {
        let bank = self.bank_mut(owner, word);
        let mut changed = 0;
        for (at, byte) in (bit..32).zip(value.to_le_bytes()).take(width as usize) {
            bank.set_priority(at, byte);
            changed |= 1 << at;
        }
        self.touch(owner, word, changed)
    }

    /// Reads ICFGR for 16 interrupts from bit 0 or 16 on.
    pub(super) fn read_config(&self, owner: VcpuIndex, word: usize, upper: bool) -> u32 {
        let edge = self.bank(owner, word).edge;
        spread(if upper { edge >> 16 } else { edge & 0xffff }) << 1
    }

    /// Writes ICFGR of SPIs. SGIs are always edge-triggered; PPIs are wired level-sensitive here.
    pub(super) fn write_config(&mut self, word: usize, upper: bool, value: u32) -> VcpuSet {
        if word == 0 {
            return VcpuSet::EMPTY;
        }
        let shift = if upper { 16 } else { 0 };
        let field = 0xffff << shift;
        let bank = self.bank_mut(VcpuIndex::BOOT, word);
        let edge = (bank.edge & !field) | (gather(value >> 1) << shift);
        let changed = bank.edge ^ edge;
        bank.edge = edge;
        self.touch(VcpuIndex::BOOT, word, changed)
    }

    /// GICD_IROUTER.
    pub(super) fn read_route(&self, word: usize, bit: usize) -> u64 {
        let routes = self.routes.get(word.wrapping_sub(1));
        routes.and_then(|routes| routes.get(bit)).copied().unwrap_or(0)
    }

    /// GICD_IROUTER. Interrupt_Routing_Mode does not exist (GICD_TYPER.No1N): the affinity counts.
    pub(super) fn write_route(&mut self, word: usize, bit: usize, value: u64) -> VcpuSet {
        self.change_routes(word, 1 << (bit & 31), |routes| {
            if let Some(route) = routes.get_mut(bit) {
                *route = value & Affinity::MASK;
            }
        })
    }

    /// Changes where the SPIs `mask` of `word` go. The vCPUs concerned are those that they leave,
    /// in whose list registers they may be, and those that they go to.
    pub(super) fn change_routes(
        &mut self,
        word: usize,
        mask: u32,
        change: impl FnOnce(&mut [u64; 32]),
    ) -> VcpuSet {
        if !is_spi_word(word) {
            return VcpuSet::EMPTY;
        }
        let mut set = self.touch(VcpuIndex::BOOT, word, mask);
        if let Some(routes) = self.routes.get_mut(word.wrapping_sub(1)) {
            change(routes);
        }
        self.reroute(word, mask);
        set.merge(self.touch(VcpuIndex::BOOT, word, mask));
        set
    }

    /// GICD_CTLR's group enables.
    pub(super) fn write_group_enables(&mut self, value: u32) -> VcpuSet {
        let enables = value & 0b11;
        if self.ctlr == enables {
            return VcpuSet::EMPTY;
        }
        self.ctlr = enables;
        let private = self.vcpus.iter_mut().map(|interface| &mut interface.private);
        for bank in private.chain(&mut self.spis) {
            bank.set_deliverable(enables);
        }
        self.touch_all()
    }

    /// The enables that [`write_group_enables`](Self::write_group_enables) set.
    #[inline]
    pub(super) const fn group_enables(&self) -> u32 {
        self.ctlr
    }
}

/// Whether `word` is one of SPIs.
#[inline]
pub(super) const fn is_spi_word(word: usize) -> bool {
    word != 0 && word < WORDS
}

/// Bit n of the 16 lowest to bit 2n.
const fn spread(bits: u32) -> u32 {
    let bits = (bits | (bits << 8)) & 0x00ff_00ff;
    let bits = (bits | (bits << 4)) & 0x0f0f_0f0f;
    let bits = (bits | (bits << 2)) & 0x3333_3333;
    (bits | (bits << 1)) & 0x5555_5555
}

/// Bit 2n to bit n; odd bits are dropped.
const fn gather(bits: u32) -> u32 {
    let bits = bits & 0x5555_5555;
    let bits = (bits | (bits >> 1)) & 0x3333_3333;
    let bits = (bits | (bits >> 2)) & 0x0f0f_0f0f;
    let bits = (bits | (bits >> 4)) & 0x00ff_00ff;
    (bits | (bits >> 8)) & 0x0000_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreading_and_gathering_undo_each_other() {
        for bits in 0..=0xffff {
            assert_eq!(gather(spread(bits)), bits);
            assert_eq!(spread(bits) & 0xaaaa_aaaa, 0);
        }
        assert_eq!(spread(0b1001), 0b100_0001);
        assert_eq!(gather(0xffff_ffff), 0xffff);
    }
}
