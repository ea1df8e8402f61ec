//! The board's other cores: started one after the other, and sent to their seats together.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use core::time::Duration;

use sparkler::arch::gic::{CoreAddress, Frames, PhysicalGic};
use sparkler::arch::guest::Seat;
use sparkler::arch::operator::BoardCore;
use sparkler::arch::smp::{self, MAX_CORES};
use sparkler::arch::timer::Counter;
use sparkler::arch::{barrier, firmware};
use sparkler::backend::clock::Clock;
use sparkler::fdt::{Board, Gic};
use sparkler::sync::Mutex;

use super::stop;

/// How long a core may take to bring up its side of the interrupt controller.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a core that comes up needs of the first one.
struct Shared {
    gic: PhysicalGic,
    frames: Frames<'static>,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);
/// The interrupt controller as each core sees it, once it is up.
static GICS: [Mutex<Option<PhysicalGic>>; MAX_CORES] = [const { Mutex::new(None) }; MAX_CORES];
/// Where each core has its seat; null if it has none.
static SEATS: [AtomicPtr<Seat>; MAX_CORES] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CORES];
/// All seats are taken: go.
static GO: AtomicBool = AtomicBool::new(false);

/// The cores that are up, the interrupt controller as each sees it, by number.
pub(super) struct Cores {
    /// The boot core is the first.
    pub(super) gics: [Option<PhysicalGic>; MAX_CORES],
    /// Which of the tree's cores is the boot core.
    boot: usize,
}

impl Cores {
    /// How they address each other.
    pub(super) fn addresses(&self) -> [Option<CoreAddress>; MAX_CORES] {
        self.gics.map(|gic| gic.map(|gic| gic.this_core()))
    }

    /// All cores of the board that have a number.
    pub(super) fn of_board(&self, board: &Board<'_>) -> [Option<BoardCore>; MAX_CORES] {
        let mut cores = [None; MAX_CORES];
        for (index, cpu) in board.cpus.iter().enumerate() {
            let number = self.number_of(index);
            if let Some(place) = cores.get_mut(number) {
                let online = matches!(self.gics.get(number), Some(Some(_)));
                *place = Some(BoardCore { affinity: cpu.mpidr, online });
            }
        }
        cores
    }

    /// The number EL2 gives the `index`-th core of the tree, if it is up.
    pub(super) fn number(&self, index: usize) -> Option<u8> {
        let number = self.number_of(index);
        self.gics.get(number)?.as_ref()?;
        u8::try_from(number).ok()
    }

    /// The boot core is number 0: it changes places with the first of the tree.
    fn number_of(&self, index: usize) -> usize {
        match index {
            _ if index == self.boot => 0,
            0 => self.boot,
            _ => index,
        }
    }
}

/// Brings up the interrupt controller, and as many of the board's cores as EL2 uses.
pub(super) fn start(board: &'static Board<'static>) -> Cores {
    let frames = frames(board);
    // SAFETY: by the device tree they are this board's, and nobody else runs.
    let gic = match unsafe { PhysicalGic::init(&frames) } {
        Ok(gic) => gic,
        Err(error) => stop(format_args!("the interrupt controller cannot be used: {error}")),
    };
    if let Some(intid) = sparkler::arch::interrupts::missing(&gic) {
        stop(format_args!("interrupt {intid} is kept for the Secure state: EL2 cannot have it"));
    }
    *SHARED.lock() = Some(Shared { gic, frames });
    let here = smp::this_affinity();
    let boot = board.cpus.iter().position(|cpu| cpu.mpidr == here).unwrap_or(0);
    let mut cores = Cores { gics: [None; MAX_CORES], boot };
    let [first, ..] = &mut cores.gics;
    *first = Some(gic);
    for (index, cpu) in board.cpus.iter().enumerate().filter(|(_, cpu)| cpu.mpidr != here) {
        let core = cores.number_of(index);
        let Some(place) = cores.gics.get_mut(core) else {
            log::warn!("more than {MAX_CORES} cores: the others are not used");
            break;
        };
        match smp::start(cpu, core, secondary) {
            Ok(()) => *place = interface_of(core),
            Err(error) => {
                log::warn!("core {core} (affinity {:#x}) is not used: {error}", cpu.mpidr);
            }
        }
    }
    cores
}

/// Waits until a core that has come up has its side of the interrupt controller.
fn interface_of(core: usize) -> Option<PhysicalGic> {
    let place = GICS.get(core)?;
    let end = Counter.now().after(Counter.frequency().ticks(PATIENCE));
    loop {
        if let Some(gic) = *place.lock() {
            return Some(gic);
        }
        if Counter.now() > end {
            log::warn!("core {core} is not used: its interrupt controller cannot be");
            return None;
        }
        barrier::relax();
    }
}

/// Where the board's interrupt controller is.
fn frames(board: &'static Board<'static>) -> Frames<'static> {
    match &board.gic {
        Some(Gic::V3 { distributor, redistributors, .. }) => {
            Frames::V3 { distributor: *distributor, redistributors }
        }
        Some(Gic::V2 { distributor, cpu_interface, hypervisor: Some(hypervisor), .. }) => {
            let (distributor, cpu_interface) = (*distributor, *cpu_interface);
            Frames::V2 { distributor, cpu_interface, hypervisor: *hypervisor }
        }
        Some(Gic::V2 { .. }) => {
            stop(format_args!("the board's GICv2 has no virtualization extensions"))
        }
        None => stop(format_args!("the device tree has no interrupt controller that is known")),
    }
}

/// Sends all cores to their seats, this one too.
pub(super) fn go(seats: [Option<&'static mut Seat>; MAX_CORES]) -> ! {
    let mut own = None;
    for (core, seat) in seats.into_iter().enumerate() {
        let Some(seat) = seat else { continue };
        if core == 0 {
            own = Some(seat);
        } else if let Some(place) = SEATS.get(core) {
            place.store(seat, Ordering::Relaxed);
        }
    }
    GO.store(true, Ordering::Release);
    barrier::wake_waiting_cores();
    match own {
        Some(seat) => seat.run(),
        None => firmware::park(),
    }
}

/// What a core does that comes up.
fn secondary(core: usize) -> ! {
    let own = SHARED.lock().as_ref().map(|shared| shared.gic.init_core(&shared.frames));
    let Some(place) = GICS.get(core) else { firmware::park() };
    match own {
        Some(Ok(gic)) => *place.lock() = Some(gic),
        _ => firmware::park(),
    }
    while !GO.load(Ordering::Acquire) {
        barrier::wait_for_event();
    }
    let seat = SEATS.get(core).map_or(ptr::null_mut(), |seat| seat.load(Ordering::Relaxed));
    // SAFETY: null, or placed for ever and given up to this core alone by `go`.
    match unsafe { seat.as_mut() } {
        Some(seat) => seat.run(),
        None => firmware::park(),
    }
}
