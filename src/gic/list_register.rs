//! List registers: how a virtual interrupt is handed to the virtual CPU interface.
//!
//! The value has the layout of `ICH_LR<n>_EL2` (Arm IHI 0069), so that on a GICv3
//! board reading and writing one is a single instruction. A GICv2 board's back end translates.

use super::irq::IntId;

/// Most list registers an implementation can have (ICH_VTR_EL2.ListRegs + 1).
pub const MAX_LIST_REGISTERS: usize = 16;

const STATE_PENDING: u64 = 1 << 62;
const STATE_ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const GROUP1: u64 = 1 << 60;
const PRIORITY_SHIFT: u32 = 48;
/// Only where HW = 0; with HW = 1 the bit is part of the pINTID.
const EOI: u64 = 1 << 41;
const PINTID_SHIFT: u32 = 32;
/// `ICH_LR<n>_EL2` has 13 bits; INTIDs of physical PPIs and SPIs need 10.
const PINTID_MASK: u64 = 0x3ff;
/// Where the virtual INTID of a GICv2's SGI has its sender, as GICC_IAR shows it.
const SENDER_SHIFT: u32 = 10;

/// The state of a listed interrupt, `ICH_LR<n>_EL2.State`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The list register is free.
    Invalid,
    /// Waits to be acknowledged.
    Pending,
    /// Acknowledged, not yet deactivated.
    Active,
    /// Acknowledged, and pending again.
    PendingActive,
}

/// One list register's content.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct ListRegister(u64);

impl ListRegister {
    /// A free list register.
    pub const EMPTY: Self = Self(0);

    /// A software interrupt (HW = 0) in `state`.
    #[inline]
    pub const fn new(intid: IntId, state: State, priority: u8, group1: bool) -> Self {
        let bits = intid.raw() as u64 | ((priority as u64) << PRIORITY_SHIFT);
        let state = match state {
            State::Invalid => 0,
            State::Pending => STATE_PENDING,
            State::Active => STATE_ACTIVE,
            State::PendingActive => STATE_PENDING | STATE_ACTIVE,
        };
        Self(bits | state | if group1 { GROUP1 } else { 0 })
    }

    /// The same, tied to the physical interrupt `pintid` (HW = 1): the guest's deactivation
    /// deactivates it. Takes the place of maintenance on EOI, which cannot be had with it.
    #[inline]
    pub const fn with_physical(self, pintid: u16) -> Self {
        let cleared = self.0 & !(PINTID_MASK << PINTID_SHIFT);
        Self(cleared | HW | ((pintid as u64 & PINTID_MASK) << PINTID_SHIFT))
    }

    /// The same, with or without a maintenance interrupt when the guest deactivates it.
    /// For HW = 0 only.
    #[inline]
    pub const fn with_eoi_maintenance(self, wanted: bool) -> Self {
        if wanted { Self(self.0 | EOI) } else { self }
    }

    /// The same, an SGI of a GICv2 that vCPU `sender` (0 to 7) has sent: bits 12:10.
    #[inline]
    pub const fn with_sender(self, sender: u8) -> Self {
        Self(self.0 & !(7 << SENDER_SHIFT) | (sender as u64 & 7) << SENDER_SHIFT)
    }

    /// From the `ICH_LR<n>_EL2` layout.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// In the `ICH_LR<n>_EL2` layout.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The virtual INTID field as it stands, 32 bits: with the sender in a GICv2's SGI.
    #[inline]
    pub const fn vintid(self) -> u32 {
        self.0 as u32
    }

    /// State field.
    #[inline]
    pub const fn state(self) -> State {
        match self.0 >> 62 {
            0 => State::Invalid,
            1 => State::Pending,
            2 => State::Active,
            _ => State::PendingActive,
        }
    }

    /// Whether the list register is free.
    #[inline]
    pub const fn is_invalid(self) -> bool {
        self.0 & (STATE_PENDING | STATE_ACTIVE) == 0
    }

    /// Whether the state is pending, or pending and active.
    #[inline]
    pub const fn is_pending(self) -> bool {
        self.0 & STATE_PENDING != 0
    }

    /// Whether the state is active, or pending and active.
    #[inline]
    pub const fn is_active(self) -> bool {
        self.0 & STATE_ACTIVE != 0
    }

    /// Priority, lower is more urgent.
    #[inline]
    pub const fn priority(self) -> u8 {
        (self.0 >> PRIORITY_SHIFT) as u8
    }

    /// Whether it is a Group 1 interrupt (IRQ); Group 0 is signalled as FIQ.
    #[inline]
    pub const fn is_group1(self) -> bool {
        self.0 & GROUP1 != 0
    }

    /// The physical interrupt it is tied to, if HW = 1.
    #[inline]
    pub const fn physical(self) -> Option<u16> {
        if self.0 & HW != 0 { Some(((self.0 >> PINTID_SHIFT) & PINTID_MASK) as u16) } else { None }
    }

    /// Whether the guest's deactivation raises a maintenance interrupt.
    #[inline]
    pub const fn has_eoi_maintenance(self) -> bool {
        self.0 & (HW | EOI) == EOI
    }
}

impl core::fmt::Debug for ListRegister {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ListRegister")
            .field("vintid", &self.vintid())
            .field("state", &self.state())
            .field("priority", &self.priority())
            .field("group1", &self.is_group1())
            .field("physical", &self.physical())
            .field("eoi", &self.has_eoi_maintenance())
            .finish()
    }
}

/// The maintenance interrupts that the present list-register content needs.
///
/// ICH_HCR_EL2.UIE (underflow) is not among them: it is asserted while one list register or none
/// is valid, which on a core with one or two list registers is for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Maintenance {
    /// ICH_HCR_EL2.NPIE: when no list register is pending. Wanted while deliverable interrupts
    /// wait outside; at least one list register is pending at every entry with this set.
    pub no_pending: bool,
    /// ICH_HCR_EL2.LRENPIE: when EOIcount is not zero, and TDIR where ICH_VTR_EL2.TDS has it:
    /// wanted while active interrupts are outside the list registers. A trapped write to
    /// ICC_DIR_EL1 goes to [`Vgic::deactivate`](super::Vgic::deactivate).
    pub unlisted_active: bool,
}

/// The list registers of the vCPU that runs on this core: hardware in `arch`, fakes in tests.
pub trait ListRegisters {
    /// How many there are, 1 to 16 (ICH_VTR_EL2.ListRegs + 1).
    fn count(&self) -> usize;

    /// Reads `ICH_LR<n>_EL2`; `n` < `count()`.
    fn read(&self, n: usize) -> ListRegister;

    /// Writes `ICH_LR<n>_EL2`; `n` < `count()`.
    fn write(&mut self, n: usize, value: ListRegister);

    /// ICH_ELRSR_EL2: bit n is set if list register n is Invalid. Those that were written with EOI
    /// maintenance may be left out, as the hardware does until they are rewritten; bits at and
    /// above `count()` do not matter.
    fn empty(&self) -> u32;

    /// Says which maintenance interrupts are wanted (ICH_HCR_EL2; En stays set). Is always preceded
    /// by [`take_eoi_count`](Self::take_eoi_count) where the count matters, so EOIcount may be
    /// written as zero.
    fn set_maintenance(&mut self, wanted: Maintenance);

    /// ICH_HCR_EL2.EOIcount, which becomes zero: deactivations that found no list register.
    fn take_eoi_count(&mut self) -> u32;

    /// Deactivates a physical interrupt (ICC_DIR_EL1) whose virtual one the guest will never
    /// deactivate through a list register.
    fn deactivate_physical(&mut self, pintid: u16);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(state: State) -> ListRegister {
        ListRegister::new(IntId::new(27).unwrap(), state, 0xa0, true)
    }

    #[test]
    fn fields_are_where_the_architecture_puts_them() {
        assert_eq!(timer(State::Pending).bits(), 0x50a0_0000_0000_001b);
        assert_eq!(timer(State::Active).bits(), 0x90a0_0000_0000_001b);
        assert_eq!(timer(State::PendingActive).bits(), 0xd0a0_0000_0000_001b);
        assert_eq!(timer(State::Invalid).bits(), 0x10a0_0000_0000_001b);
        assert_eq!(timer(State::Pending).with_physical(30).bits(), 0x70a0_001e_0000_001b);
        assert_eq!(timer(State::Pending).with_eoi_maintenance(true).bits(), 0x50a0_0200_0000_001b);
        let group0 = ListRegister::new(IntId::new(255).unwrap(), State::Pending, 0xf8, false);
        assert_eq!(group0.bits(), 0x40f8_0000_0000_00ff);
    }

    #[test]
    fn fields_read_back_as_written() {
        for state in [State::Invalid, State::Pending, State::Active, State::PendingActive] {
            let plain = ListRegister::from_bits(timer(state).bits());
            assert_eq!(plain.state(), state);
            assert_eq!(plain.vintid(), 27);
            assert_eq!(plain.priority(), 0xa0);
            assert!(plain.is_group1());
            assert_eq!(plain.physical(), None);
            assert!(!plain.has_eoi_maintenance());
            assert!(plain.with_eoi_maintenance(true).has_eoi_maintenance());
            assert_eq!(plain.with_physical(1019).physical(), Some(1019));
            assert_eq!(plain.is_pending(), matches!(state, State::Pending | State::PendingActive));
            assert_eq!(plain.is_active(), matches!(state, State::Active | State::PendingActive));
            assert_eq!(plain.is_invalid(), state == State::Invalid);
        }
    }

    #[test]
    fn a_physical_intid_that_sets_bit_41_is_not_eoi_maintenance() {
        let lr = timer(State::Pending).with_physical(0x3ff & (1 << 9));
        assert_eq!(lr.bits() & (1 << 41), 1 << 41);
        assert!(!lr.has_eoi_maintenance());
    }

    #[test]
    fn v1_a_vintid_wider_than_eight_bits_survives() {
        assert_eq!(ListRegister::from_bits(0x50a0_0000_0000_0130).vintid(), 0x130);
    }
}
