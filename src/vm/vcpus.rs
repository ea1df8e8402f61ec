//! What cores must know of a machine's vCPUs that run on others: where each is, whether it is on,
//! and who is inside its guest at this moment.
//!
//! No lock: each vCPU has a state that PSCI's calls and its own core move, by compare and exchange.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::cpu::psci::{self, CallError, CpuState, CpuTable};
use crate::gic::{MAX_VCPUS, VcpuIndex};
use crate::memory::{GuestMemory, Ipa};

/// A core of the board, by the number EL2 gives it.
pub type CoreNumber = u8;

const OFF: u8 = 0;
const ON: u8 = 1;
/// CPU_ON was accepted; entry point and context are there.
const ON_PENDING: u8 = 2;
/// CPU_ON was accepted; they are being written.
const CLAIMED: u8 = 3;

/// Where a vCPU that is turned on begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its first instruction.
    pub entry: Ipa,
    /// Its x0.
    pub context: u64,
}

#[derive(Debug)]
struct Slot {
    core: CoreNumber,
    power: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

/// The vCPUs of a machine.
#[derive(Debug)]
pub struct VcpuTable {
    slots: heapless::Vec<Slot, MAX_VCPUS>,
    /// vCPUs whose state is on a core, a bit each.
    loaded: AtomicU8,
}

impl VcpuTable {
    /// One vCPU for each of `cores`, which says where; all off. What is beyond [`MAX_VCPUS`] is left
    /// out.
    pub fn new(cores: &[CoreNumber]) -> Self {
        let slot = |core: &CoreNumber| Slot {
            core: *core,
            power: AtomicU8::new(OFF),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        };
        let slots = cores.iter().take(MAX_VCPUS).map(slot).collect();
        Self { slots, loaded: AtomicU8::new(0) }
    }

    /// How many there are.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// The core that has the vCPU.
    #[inline]
    pub fn core_of(&self, vcpu: VcpuIndex) -> Option<CoreNumber> {
        self.slots.get(vcpu.get()).map(|slot| slot.core)
    }

    /// The core that has the boot vCPU, and that manages the machine.
    pub fn home(&self) -> CoreNumber {
        self.core_of(VcpuIndex::BOOT).unwrap_or(0)
    }

    /// The cores that have a vCPU, a bit each.
    pub fn cores(&self) -> u8 {
        self.slots.iter().fold(0, |cores, slot| cores | 1u8.wrapping_shl(u32::from(slot.core)))
    }

    /// How many of them a core has.
    pub fn count_at(&self, core: CoreNumber) -> usize {
        self.slots.iter().filter(|slot| slot.core == core).count()
    }

    /// The vCPU with an affinity; ours are 0.0.0.n.
    fn find(&self, affinity: psci::Affinity) -> Option<(VcpuIndex, &Slot)> {
        let index = VcpuIndex::new(usize::try_from(affinity.bits()).ok()?)?;
        Some((index, self.slots.get(index.get())?))
    }

    /// The vCPU of an affinity.
    pub fn by_affinity(&self, affinity: psci::Affinity) -> Option<VcpuIndex> {
        self.find(affinity).map(|(index, _)| index)
    }

    /// Turns a vCPU on: its core finds out by [`Self::take_start`], and must be told to look.
    ///
    /// # Errors
    /// As PSCI's CPU_ON has them: of two calls at once, one gets an error.
    pub fn turn_on(&self, vcpu: VcpuIndex, start: Start) -> Result<(), CallError> {
        let slot = self.slots.get(vcpu.get()).ok_or(CallError::InvalidParameters)?;
        // Acquire: what the core did before it turned the vCPU off is before what is written here.
        match slot.power.compare_exchange(OFF, CLAIMED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ON) => return Err(CallError::AlreadyOn),
            Err(_) => return Err(CallError::OnPending),
        }
        slot.entry.store(start.entry.raw(), Ordering::Relaxed);
        slot.context.store(start.context, Ordering::Relaxed);
        slot.power.store(ON_PENDING, Ordering::Release);
        Ok(())
    }

    /// Where the vCPU is to begin, if it was turned on; it is on from now. For its core.
    pub fn take_start(&self, vcpu: VcpuIndex) -> Option<Start> {
        let slot = self.slots.get(vcpu.get())?;
        slot.power.compare_exchange(ON_PENDING, ON, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let entry = Ipa::new(slot.entry.load(Ordering::Relaxed));
        Some(Start { entry, context: slot.context.load(Ordering::Relaxed) })
    }

    /// Turns a vCPU off, which its core does for it. `false`, and nothing is done, if no other vCPU
    /// is on or about to be: the machine could never run again.
    pub fn turn_off(&self, vcpu: VcpuIndex) -> bool {
        let others = || {
            let others = self.slots.iter().enumerate().filter(|(n, _)| *n != vcpu.get());
            others.map(|(_, slot)| slot.power.load(Ordering::SeqCst)).any(|power| power != OFF)
        };
        let Some(slot) = self.slots.get(vcpu.get()) else { return false };
        // First off, then a look: of two that go at once, the second at least sees the first.
        slot.power.store(OFF, Ordering::SeqCst);
        if others() {
            return true;
        }
        // Unless another one has turned it on again, before it went off itself.
        slot.power.compare_exchange(OFF, ON, Ordering::SeqCst, Ordering::Relaxed).is_err()
    }

    /// Turns all off: the machine is stopped.
    pub fn reset(&self) {
        for slot in &self.slots {
            slot.power.store(OFF, Ordering::Release);
        }
    }

    /// How many are on.
    pub fn count_on(&self) -> usize {
        self.slots.iter().filter(|slot| slot.power.load(Ordering::Relaxed) == ON).count()
    }

    /// The vCPU's state is being put on its core. From then on [`Self::is_at_rest`] is false.
    pub fn enter(&self, vcpu: VcpuIndex) {
        // SeqCst: the core looks whether it may run after this, the manager the other way round.
        self.loaded.fetch_or(1 << vcpu.get(), Ordering::SeqCst);
    }

    /// The vCPU's state is off its core again, and all of it in memory.
    pub fn leave(&self, vcpu: VcpuIndex) {
        self.loaded.fetch_and(!(1 << vcpu.get()), Ordering::SeqCst);
    }

    /// Whether no vCPU is on a core.
    pub fn is_at_rest(&self) -> bool {
        self.loaded.load(Ordering::SeqCst) == 0
    }
}

/// The vCPUs and the RAM they can start in, for PSCI.
pub struct Cpus<'a, 'm> {
    /// The vCPUs.
    pub vcpus: &'a VcpuTable,
    /// The RAM.
    pub memory: &'a GuestMemory<'m>,
}

impl CpuTable for Cpus<'_, '_> {
    fn state(&self, cpu: psci::Affinity) -> Option<CpuState> {
        let (_, slot) = self.vcpus.find(cpu)?;
        Some(match slot.power.load(Ordering::Relaxed) {
            OFF => CpuState::Off,
            ON => CpuState::On,
            _ => CpuState::OnPending,
        })
    }

    fn is_entry_point(&self, entry: Ipa) -> bool {
        self.memory.slice(entry, 4).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::ram;

    fn vcpu(index: usize) -> VcpuIndex {
        VcpuIndex::new(index).unwrap()
    }

    fn start(entry: u64) -> Start {
        Start { entry: Ipa::new(entry), context: 7 }
    }

    #[test]
    fn a_vcpu_is_turned_on_once_and_starts_where_it_was_told() {
        let table = VcpuTable::new(&[0, 1]);
        assert_eq!(table.take_start(vcpu(1)), None);
        assert_eq!(table.turn_on(vcpu(1), start(0x1000)), Ok(()));
        assert_eq!(table.turn_on(vcpu(1), start(0x2000)), Err(CallError::OnPending));
        assert_eq!(table.take_start(vcpu(1)), Some(start(0x1000)));
        assert_eq!(table.take_start(vcpu(1)), None);
        assert_eq!(table.turn_on(vcpu(1), start(0x2000)), Err(CallError::AlreadyOn));
        assert!(!table.turn_off(vcpu(1)), "the boot vCPU is off");
        table.turn_on(vcpu(0), start(0)).unwrap();
        assert!(table.turn_off(vcpu(1)), "the boot vCPU is about to run");
        assert_eq!(table.turn_on(vcpu(1), start(0x3000)), Ok(()));
    }

    #[test]
    fn a_vcpu_that_is_not_there_cannot_be_turned_on() {
        let table = VcpuTable::new(&[3, 4]);
        assert_eq!(table.turn_on(vcpu(2), start(0)), Err(CallError::InvalidParameters));
        assert_eq!(table.take_start(vcpu(2)), None);
        assert!(!table.turn_off(vcpu(2)));
        assert_eq!((table.core_of(vcpu(1)), table.core_of(vcpu(2))), (Some(4), None));
        assert_eq!((table.home(), table.cores()), (3, 0b1_1000));
        assert_eq!([0, 3, 4].map(|core| table.count_at(core)), [0, 1, 1]);
    }

    #[test]
    fn the_last_one_stays_on() {
        let table = VcpuTable::new(&[0, 0, 0]);
        for index in 0..3 {
            table.turn_on(vcpu(index), start(0)).unwrap();
            table.take_start(vcpu(index)).unwrap();
        }
        assert!(table.turn_off(vcpu(0)));
        assert!(table.turn_off(vcpu(2)));
        assert!(!table.turn_off(vcpu(1)));
        assert_eq!(table.count_on(), 1);
        table.reset();
        assert_eq!(table.count_on(), 0);
    }

    #[test]
    fn of_many_calls_at_once_one_turns_the_vcpu_on() {
        let table = VcpuTable::new(&[0, 1]);
        for _ in 0..200 {
            let accepted = std::thread::scope(|scope| {
                let call = |entry| {
                    let table = &table;
                    scope.spawn(move || table.turn_on(vcpu(1), start(entry)).is_ok())
                };
                let calls = [0x1000, 0x2000, 0x3000].map(call);
                calls.map(|call| call.join().unwrap()).iter().filter(|accepted| **accepted).count()
            });
            assert_eq!(accepted, 1);
            assert!(table.take_start(vcpu(1)).is_some());
            table.reset();
        }
    }

    #[test]
    fn a_vcpu_that_goes_off_is_not_lost_when_the_other_turns_it_on_and_goes_off_too() {
        let table = VcpuTable::new(&[0, 1]);
        for _ in 0..2000 {
            for index in 0..2 {
                table.turn_on(vcpu(index), start(0)).unwrap();
                table.take_start(vcpu(index)).unwrap();
            }
            let (off, accepted, other_off) = std::thread::scope(|scope| {
                let table = &table;
                let first = scope.spawn(move || table.turn_off(vcpu(0)));
                let accepted = (0..1000).any(|_| table.turn_on(vcpu(0), start(0x1000)).is_ok());
                let other_off = table.turn_off(vcpu(1));
                (first.join().unwrap(), accepted, other_off)
            });
            if accepted {
                assert!(off && other_off);
                assert_eq!(table.take_start(vcpu(0)), Some(start(0x1000)));
            }
            table.reset();
        }
    }

    #[test]
    fn the_machine_is_at_rest_once_every_vcpu_has_left() {
        let table = VcpuTable::new(&[0, 1]);
        assert!(table.is_at_rest());
        table.enter(vcpu(0));
        table.enter(vcpu(1));
        table.leave(vcpu(0));
        assert!(!table.is_at_rest());
        table.leave(vcpu(1));
        assert!(table.is_at_rest());
    }

    #[test]
    fn psci_sees_the_vcpus_by_affinity_and_starts_them_in_ram_only() {
        let table = VcpuTable::new(&[0, 1]);
        let mut memory = GuestMemory::new();
        assert!(memory.add(Ipa::new(0x4000_0000), ram(0x9_8000_0000, 0x1000)).is_ok());
        let cpus = Cpus { vcpus: &table, memory: &memory };
        let state = |mpidr| cpus.state(psci::Affinity::from_mpidr(mpidr));
        assert_eq!(state(1), Some(CpuState::Off));
        assert_eq!(state(2), None);
        assert_eq!(state(0x100), None);
        assert_eq!(state(0x1_0000_0001), None);
        table.turn_on(vcpu(1), start(0)).unwrap();
        assert_eq!(state(1), Some(CpuState::OnPending));
        table.take_start(vcpu(1)).unwrap();
        assert_eq!(state(1), Some(CpuState::On));
        assert!(cpus.is_entry_point(Ipa::new(0x4000_0ffc)));
        assert!(!cpus.is_entry_point(Ipa::new(0x4000_1000)));
        assert!(!cpus.is_entry_point(Ipa::new(u64::MAX - 3)));
    }
}
