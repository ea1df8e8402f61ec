//! Which physical core a vCPU is assigned to, for ever.

use core::fmt;

use super::{ConfigError, MAX_CORES, MAX_VCPUS, MAX_VCPUS_PER_CORE, VmConfig};
use crate::fdt::vms::CellList;

/// A physical core: the number of its `cpu` node in the board's tree. Below [`MAX_CORES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CoreIndex(u8);

impl CoreIndex {
    /// Core `index`, if it is below [`MAX_CORES`].
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CORES { Some(Self(index as u8)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CoreIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Some of the physical cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreSet(u8);

const _: () = assert!(MAX_CORES <= u8::BITS as usize);

impl CoreSet {
    /// No core.
    pub const fn new() -> Self {
        Self(0)
    }

    /// The first `count` cores, but at most [`MAX_CORES`].
    pub const fn first(count: usize) -> Self {
        if count >= MAX_CORES { Self(u8::MAX) } else { Self((1 << count) - 1) }
    }

    /// Adds a core.
    pub const fn insert(&mut self, core: CoreIndex) {
        self.0 |= 1 << core.0;
    }

    /// Whether `core` is one of them.
    pub const fn contains(self, core: CoreIndex) -> bool {
        self.0 & 1 << core.0 != 0
    }

    /// How many they are.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether they are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// They, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = CoreIndex> {
        (0..MAX_CORES as u8).map(CoreIndex).filter(move |core| self.contains(*core))
    }
}

type Cores = heapless::Vec<CoreIndex, MAX_VCPUS>;

/// How many vCPUs of `vms` are assigned to `core`.
pub(super) fn load(vms: &[VmConfig<'_>], core: CoreIndex) -> usize {
    vms.iter().map(|vm| on(&vm.cores, core)).sum()
}

fn on(cores: &Cores, core: CoreIndex) -> usize {
    cores.iter().filter(|other| **other == core).count()
}

/// The cores of a VM that names them, beside the VMs there are: vCPU n is on the nth of `list`,
/// which starts over where it ends. Those that no vCPU comes to must exist too.
pub(super) fn named<'a>(
    vms: &[VmConfig<'a>],
    list: CellList<'a>,
    vcpus: u8,
    existing: CoreSet,
) -> Result<Cores, ConfigError<'a>> {
    let find = |number: u32| {
        let core = CoreIndex::new(number as usize).filter(|core| existing.contains(*core));
        core.ok_or(ConfigError::NoSuchCore { core: number })
    };
    for number in list.iter() {
        find(number)?;
    }
    let mut cores = Cores::new();
    for number in (0..usize::from(vcpus)).filter_map(|vcpu| list.cycled(vcpu)) {
        put(vms, &mut cores, find(number)?)?;
    }
    Ok(cores)
}

/// The cores of the VM at `index`, which names none: each vCPU goes where fewest are; first of its
/// own VM, then of all, then the lowest.
pub(super) fn spread<'a>(
    vms: &[VmConfig<'a>],
    index: usize,
    existing: CoreSet,
) -> Result<Cores, ConfigError<'a>> {
    let mut cores = Cores::new();
    for _ in 0..vms.get(index).map_or(0, |vm| vm.vcpus) {
        let best = existing.iter().min_by_key(|core| (on(&cores, *core), load(vms, *core)));
        let best = best.ok_or(ConfigError::NoSuchCore { core: 0 })?;
        put(vms, &mut cores, best)?;
    }
    Ok(cores)
}

fn put<'a>(
    vms: &[VmConfig<'a>],
    cores: &mut Cores,
    core: CoreIndex,
) -> Result<(), ConfigError<'a>> {
    if load(vms, core) + on(cores, core) >= MAX_VCPUS_PER_CORE {
        return Err(ConfigError::CoresFull);
    }
    cores.push(core).map_err(|_| ConfigError::CoresFull)
}
