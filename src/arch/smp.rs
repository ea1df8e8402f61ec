//! The board's other cores: started, and told apart.
//!
//! A core comes in at `secondary_entry` in `boot/entry.S`, with its MMU off. It gets the boot core's
//! tables and registers, two stacks of its own with a guard page under each, and a number: the boot
//! core is 0, the others are what [`start`] was told.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;

use aarch64_cpu::registers::{MAIR_EL2, MPIDR_EL1, Readable};
use smccc::psci;

use super::mmu::MapError;
use super::{barrier, cache, firmware, layout, mmu, timer};
use crate::backend::clock::Clock;
use crate::fdt::{Cpu, CpuEnable};
use crate::memory::{PAGE_SIZE, Pa};
use crate::sync::Mutex;

/// Cores that EL2 uses, the boot core among them.
pub const MAX_CORES: usize = 8;

/// MPIDR_EL1's affinity fields: Aff3, Aff2 to Aff0.
pub(super) const AFFINITY: u64 = 0xff_00ff_ffff;

/// How far the stacks of one core are from those of the next: 1 << this. See `linker.ld`.
pub(super) const STACKS_SHIFT: u32 = 15;
const EXCEPTION_STACK: usize = 2 * PAGE_SIZE as usize;
const STACK: usize = 4 * PAGE_SIZE as usize;
const GUARD: usize = PAGE_SIZE as usize;
const _: () = assert!(EXCEPTION_STACK + STACK + 2 * GUARD == 1 << STACKS_SHIFT);
/// A core's stack ends this far below the end of its exception stack.
pub(super) const STACK_BELOW: usize = EXCEPTION_STACK + GUARD;

/// How long a core may take from its start to [`rust_entry`].
const PATIENCE: Duration = Duration::from_secs(1);

/// What a core looks itself up in while its caches are off: the affinity of core n is entry n. In
/// cache lines of its own.
#[repr(C, align(64))]
pub(super) struct Affinities([AtomicU64; MAX_CORES]);

/// No core's affinity.
const NOBODY: u64 = u64::MAX;

pub(super) static AFFINITIES: Affinities =
    Affinities([const { AtomicU64::new(NOBODY) }; MAX_CORES]);

/// A core that is started, or may be.
struct Slot {
    state: AtomicU8,
    entry: Mutex<Option<fn(usize) -> !>>,
}

/// Nobody has started it.
const OFF: u8 = 0;
/// It is on its way.
const STARTING: u8 = 1;
/// It has been given up: should it come up, it is parked.
const LATE: u8 = 2;
/// It runs.
const ON: u8 = 3;

static SLOTS: [Slot; MAX_CORES] =
    [const { Slot { state: AtomicU8::new(OFF), entry: Mutex::new(None) } }; MAX_CORES];

unsafe extern "C" {
    static __exception_stack_top: u8;
    fn secondary_entry();
}

/// Why a core was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Not a number from 1 to [`MAX_CORES`] - 1, or one that has been given to a core before.
    BadNumber,
    /// It runs already: this core, or one that firmware or an earlier loader has started.
    AlreadyOn,
    /// The device tree does not say how, or the board has no firmware to ask.
    NoMethod,
    /// PSCI CPU_ON has failed, with this error.
    Refused(psci::error::Error),
    /// Its release address cannot be one.
    BadReleaseAddress,
    /// EL2 cannot map its stacks or its release address.
    Unmapped(MapError),
    /// It did not come up within a second.
    Late,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadNumber => "no such core number is free",
            Self::AlreadyOn => "it is on already",
            Self::NoMethod => "there is no way to start it",
            Self::Refused(_) => "the firmware refuses",
            Self::BadReleaseAddress => "its release address is bad",
            Self::Unmapped(_) => "no room in EL2's map",
            Self::Late => "it does not come up",
        })
    }
}

/// The number of the core that runs this, below [`MAX_CORES`].
#[inline(always)]
pub fn this_core() -> usize {
    // `mmu_on` in entry.S has put it into an attribute that no descriptor uses.
    (MAIR_EL2.get() >> 56) as usize
}

/// The affinity of the core that runs this, as [`Cpu::mpidr`] has it.
pub fn this_affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

/// Starts `cpu` as core `core`, and waits, a second at most, until it runs `entry(core)`: at EL2, on
/// its own stack, interrupts masked, with its traps and its interrupt controller still to be set up.
///
/// Called by the boot core, for one core after the other.
///
/// # Errors
/// See [`StartError`]. A number whose core is late stays taken.
pub fn start(cpu: &Cpu, core: usize, entry: fn(usize) -> !) -> Result<(), StartError> {
    let (Some(slot), Some(affinity)) = (SLOTS.get(core), AFFINITIES.0.get(core)) else {
        return Err(StartError::BadNumber);
    };
    if cpu.mpidr == this_affinity() {
        return Err(StartError::AlreadyOn);
    }
    if core == 0 || slot.state.swap(STARTING, Ordering::Relaxed) != OFF {
        return Err(StartError::BadNumber);
    }
    if let Err(error) = map_stacks(core) {
        return Err(give_up(slot, affinity, StartError::Unmapped(error)));
    }
    *slot.entry.lock() = Some(entry);
    affinity.store(cpu.mpidr, Ordering::Relaxed);
    // SAFETY: a static of the image.
    unsafe { cache::write_back(AFFINITIES.0.as_ptr().addr(), size_of::<Affinities>()) };

    let released = match cpu.enable {
        CpuEnable::Psci => turn_on(cpu.mpidr),
        CpuEnable::SpinTable(at) => release(at),
        CpuEnable::Unknown => Err(StartError::NoMethod),
    };
    released.map_err(|error| give_up(slot, affinity, error))?;

    let clock = timer::Counter;
    let end = clock.now().after(clock.frequency().ticks(PATIENCE));
    while slot.state.load(Ordering::Acquire) != ON {
        if clock.now() > end {
            // It may come up just now.
            let late =
                slot.state.compare_exchange(STARTING, LATE, Ordering::Relaxed, Ordering::Relaxed);
            return if late.is_ok() { Err(StartError::Late) } else { Ok(()) };
        }
        barrier::relax();
    }
    Ok(())
}

/// The number is free again: no core has been told of it.
fn give_up(slot: &Slot, affinity: &AtomicU64, error: StartError) -> StartError {
    slot.state.store(OFF, Ordering::Relaxed);
    affinity.store(NOBODY, Ordering::Relaxed);
    // SAFETY: a static of the image.
    unsafe { cache::write_back(AFFINITIES.0.as_ptr().addr(), size_of::<Affinities>()) };
    error
}

/// Where cores enter: a physical address.
fn entry_point() -> Pa {
    let entry: unsafe extern "C" fn() = secondary_entry;
    mmu::image_pa(entry as usize)
}

/// PSCI CPU_ON.
fn turn_on(mpidr: u64) -> Result<(), StartError> {
    match firmware::cpu_on(mpidr, entry_point()) {
        None => Err(StartError::NoMethod),
        Some(Ok(())) => Ok(()),
        Some(Err(psci::Error::AlreadyOn | psci::Error::OnPending)) => Err(StartError::AlreadyOn),
        Some(Err(error)) => Err(StartError::Refused(error)),
    }
}

/// Writes the entry point to `at` and wakes those that wait for it (Devicetree Specification,
/// "enable-method": "spin-table").
fn release(at: Pa) -> Result<(), StartError> {
    if at.raw() == 0 || !at.raw().is_multiple_of(8) {
        return Err(StartError::BadReleaseAddress);
    }
    mmu::map_ram(at, 8).map_err(StartError::Unmapped)?;
    let word = layout::linear(at);
    // SAFETY: mapped just now, and the device tree says that this word is the core's.
    unsafe { AtomicU64::from_ptr(word as *mut u64) }.store(entry_point().raw(), Ordering::Relaxed);
    // The core reads it with its caches off.
    // SAFETY: as above.
    unsafe { cache::write_back(word, 8) };
    barrier::wake_waiting_cores();
    Ok(())
}

/// Maps the stacks of `core`, and not the pages under them.
fn map_stacks(core: usize) -> Result<(), MapError> {
    let end = (&raw const __exception_stack_top).addr() + (core << STACKS_SHIFT);
    mmu::map_image(end - EXCEPTION_STACK, EXCEPTION_STACK)?;
    mmu::map_image(end - STACK_BELOW - STACK, STACK)
}

/// The first Rust a started core runs.
pub(super) extern "C" fn rust_entry(core: usize) -> ! {
    if let Some(slot) = SLOTS.get(core) {
        let entry = *slot.entry.lock();
        let here = slot.state.compare_exchange(STARTING, ON, Ordering::Release, Ordering::Relaxed);
        if let (Ok(_), Some(entry)) = (here, entry) {
            entry(core)
        }
    }
    firmware::park()
}
