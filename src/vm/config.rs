//! The VMs a board is to run: what its device tree asks for, checked against what there is.
//!
//! A mistake costs the VM that it is in, never another: each is refused with the path of its node
//! and the reason. Where two VMs want the same, the first in the tree has it.
//!
//! 1. [`Configuration::read`]: every VM's node, its modules, names, numbers, and which physical
//!    core each of its vCPUs is assigned to.
//! 2. [`Configuration::reserve_modules`]: what the modules take of the board's free RAM. EL2 takes
//!    its own part then.
//! 3. [`Configuration::check_disks`] and [`Configuration::check_board`], when the board's disks,
//!    its network card and its source of entropy are known: which sectors each device has.
//! 4. [`Configuration::place`]: each VM's RAM, and that of its overlays.

mod cores;
mod disks;
mod error;

pub use cores::{CoreIndex, CoreSet};
pub use disks::{DiskUse, Disks, PartError};
pub use error::{ConfigError, Refusal};

pub use super::run_queue::Weight;

use super::layout;
use crate::backend::block::SECTOR_SIZE;
use crate::backend::net::{MAX_PAIRS, MacAddress};
use crate::backend::vsock::{HOST_CID, MAX_PEERS};
use crate::fdt::vms::MAX_DEVICES;
use crate::fdt::{Below, BlockSource, Board, BoardError, DeviceKind, DeviceNode, Module, NodePath};
use crate::fdt::{DiskPart, DiskSlot, NetNode, NetTarget, OnCrash, PortList, PortTarget, VmNode};
use crate::memory::ram::TooManyRanges;
use crate::memory::{PaRange, RamMap};
use crate::virtio::devices::console::MAX_PORTS;

/// VMs a board can have.
pub const MAX_VMS: usize = 8;
/// vCPUs a VM can have.
pub const MAX_VCPUS: usize = 8;
/// Physical cores that are used.
pub const MAX_CORES: usize = 8;
/// vCPUs that can be assigned to one physical core.
pub const MAX_VCPUS_PER_CORE: usize = 8;
/// Bytes of a kernel's command line.
pub const MAX_BOOTARGS: usize = 2048;
/// Bytes of a VM's name.
pub const MAX_NAME: usize = 15;
/// A VM's RAM is a multiple of this, so that stage 2 maps it by blocks.
pub const RAM_BLOCK: u64 = 0x20_0000;

/// What stage 2 maps at best.
const LARGE_BLOCK: u64 = 1 << 30;
/// RAM that fits behind its address, in KiB.
const MAX_MEMORY_KIB: u64 = ((1 << layout::IPA_BITS) - layout::RAM.raw()) / 1024;
/// The most a null disk can have: what its sectors number in 64 bits of bytes.
const MAX_NULL_DISK_KIB: u64 = 1 << 43;

/// The MTUs that a network device can have: from what IPv4 needs to what its frames hold.
const LEAST_MTU: u64 = 68;
const MOST_MTU: u64 = u16::MAX as u64;

/// The context IDs that a guest can have.
const FIRST_CID: u64 = HOST_CID as u64 + 1;
const LAST_CID: u64 = u32::MAX as u64 - 1;

const _: () = assert!(MAX_DEVICES <= super::machine::MAX_DEVICES);

/// What the board has for VMs.
#[derive(Clone, Copy, Debug)]
pub struct Resources<'r> {
    /// The cores that run. Core n is the nth `cpu` node of the tree.
    pub cores: CoreSet,
    /// Memory no module can be in, each with what to call it: the image, the device tree.
    pub taken: &'r [(&'static str, PaRange)],
}

/// How much RAM a VM is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// That many bytes: not 0, a multiple of [`RAM_BLOCK`].
    Bytes(u64),
    /// The largest piece that is free.
    Rest,
}

/// A VM that is to run.
#[derive(Clone, Debug)]
pub struct VmConfig<'a> {
    /// Its node; `/chosen` for the VM of a board without configuration.
    pub node: NodePath<'a>,
    /// Its name: unlike any other's, 1 to [`MAX_NAME`] of `A-Za-z0-9._-`.
    pub name: &'a str,
    vcpus: u8,
    /// Each vCPU's physical core: as many as it has vCPUs, 1 to [`MAX_VCPUS`].
    pub cores: heapless::Vec<CoreIndex, MAX_VCPUS>,
    /// Its share of cores that it does not have alone.
    pub weight: Weight,
    /// Whether it is started with the board.
    pub autostart: bool,
    /// What becomes of it after a crash.
    pub on_crash: OnCrash,
    /// Whether it may use the monitor's hypercalls.
    pub operator: bool,
    /// How much RAM it is to have.
    pub memory: Memory,
    /// Its RAM: both ends multiples of [`RAM_BLOCK`], nobody else's. [`Configuration::place`] gives
    /// it to every VM that it does not refuse.
    pub ram: Option<PaRange>,
    /// Its kernel. Checked, as all its modules: it is in the board's RAM, and over nothing else.
    pub kernel: Module<'a>,
    /// Its ramdisk. It may be another VM's too: modules are only read.
    pub ramdisk: Option<Module<'a>>,
    /// The kernel's command line: at most [`MAX_BOOTARGS`] bytes.
    pub bootargs: &'a str,
    /// Its virtio devices in the order of their slots, each with its node for messages.
    pub devices: heapless::Vec<DeviceNode<'a>, MAX_DEVICES>,
    /// Whether it is that of a board without configuration, which does with fewer devices.
    is_default: bool,
}

impl<'a> VmConfig<'a> {
    /// Calls `visit` with every range of memory that it boots from, or has as a disk.
    fn for_each_module(&self, visit: &mut dyn FnMut(Owned<'a>)) {
        visit(Owned::read(&self.kernel));
        if let Some(module) = &self.ramdisk {
            visit(Owned::read(module));
        }
        for device in &self.devices {
            let (image, shared) = match device.kind {
                DeviceKind::Block { source: BlockSource::Ram { image }, read_only, .. } => {
                    (image, read_only)
                }
                DeviceKind::Block {
                    source: BlockSource::Overlay { below: Below::Ram { image }, .. },
                    ..
                } => (image, true),
                DeviceKind::Net(NetNode { metadata: Some(archive), .. }) => (archive, true),
                _ => continue,
            };
            visit(Owned { node: device.node, range: image, shared });
        }
    }
}

/// Memory with something in it that a VM uses.
#[derive(Clone, Copy)]
struct Owned<'a> {
    node: NodePath<'a>,
    range: PaRange,
    /// Whether it is only read, so that others may read it too.
    shared: bool,
}

impl<'a> Owned<'a> {
    fn read(module: &Module<'a>) -> Self {
        Self { node: module.node, range: module.range, shared: true }
    }

    fn goes_with(&self, other: &Owned<'_>) -> bool {
        let same = self.range == other.range && self.shared && other.shared;
        same || !self.range.overlaps(other.range)
    }
}

/// The address that a network device is to have, if its node says.
fn address(device: &DeviceNode<'_>) -> Option<[u8; 6]> {
    match device.kind {
        DeviceKind::Net(net) => net.mac,
        _ => None,
    }
}

/// The context ID that a socket device is to have.
fn cid(device: &DeviceNode<'_>) -> Option<u64> {
    match device.kind {
        DeviceKind::Vsock(sockets) => Some(sockets.cid),
        _ => None,
    }
}

/// The VMs of a board.
#[derive(Clone, Debug, Default)]
pub struct Configuration<'a> {
    vms: Vms<'a>,
}

impl<'a> Configuration<'a> {
    /// No VMs.
    pub const fn new() -> Self {
        Self { vms: heapless::Vec::new() }
    }

    /// The VMs that are to run, in the tree's order.
    pub fn vms(&self) -> &[VmConfig<'a>] {
        &self.vms
    }

    /// How many vCPUs are assigned to `core`. One that has its core alone needs no time slices.
    pub fn vcpus_on(&self, core: CoreIndex) -> usize {
        cores::load(&self.vms, core)
    }

    /// Adds the VMs that `board`'s tree asks for and `resources` allow; `refuse` hears of the
    /// others. Without any VM in the tree it is one, with all cores, the largest piece of free RAM,
    /// the board's first kernel module, disk 0, a network device and an entropy device; without such a
    /// module it is refused.
    pub fn read(
        &mut self,
        board: &Board<'a>,
        resources: &Resources<'_>,
        refuse: &mut dyn FnMut(Refusal<'a>),
    ) {
        let mut found = false;
        board.for_each_vm(&mut |vm, read| {
            found = true;
            let added = read.map_err(ConfigError::Tree).and_then(|node| {
                let config = self.judge(node, board, resources)?;
                self.vms.push(config).map_err(|_| ConfigError::TooManyVms)
            });
            if let Err(error) = added {
                refuse(Refusal { vm, error });
            }
        });
        if !found {
            match default_vm(board, resources.cores) {
                // There is room for one.
                Some(vm) => _ = self.vms.push(vm),
                None => refuse(Refusal { vm: CHOSEN, error: ConfigError::NoGuest }),
            }
        }
        // Who named no core gets what the others leave.
        self.retain(refuse, |vms, index| {
            if vms.get(index).is_some_and(|vm| vm.cores.is_empty()) {
                let spread = cores::spread(vms, index, resources.cores)?;
                if let Some(vm) = vms.get_mut(index) {
                    vm.cores = spread;
                }
            }
            Ok(())
        });
    }

    /// Takes the VMs' modules out of the free RAM.
    ///
    /// # Errors
    /// If it then is in too many pieces.
    pub fn reserve_modules(&self, free: &mut RamMap) -> Result<(), TooManyRanges> {
        let mut result = Ok(());
        for vm in &self.vms {
            vm.for_each_module(&mut |module| {
                result = result.and_then(|()| free.reserve(module.range));
            });
        }
        result
    }

    /// The VM of a board without configuration has a network device if the board has a network `card`,
    /// and an entropy device if it has a source of `entropy`.
    pub fn check_board(&mut self, card: bool, entropy: bool) {
        for vm in self.vms.iter_mut().filter(|vm| vm.is_default) {
            vm.devices.retain(|device| match device.kind {
                DeviceKind::Net(_) => card,
                DeviceKind::Rng => entropy,
                _ => true,
            });
        }
    }

    /// Refuses VMs with a metadata service, which this image was built without.
    pub fn refuse_metadata(&mut self, refuse: &mut dyn FnMut(Refusal<'a>)) {
        self.retain(refuse, |vms, index| {
            let devices = vms.get(index).into_iter().flat_map(|vm| &vm.devices);
            for device in devices {
                if let DeviceKind::Net(NetNode { metadata: Some(_), .. }) = device.kind {
                    let reason = "this image was built without it (cargo's feature \"metadata\")";
                    return Err(ConfigError::Metadata { node: device.node, reason });
                }
            }
            Ok(())
        });
    }

    /// Takes RAM for every VM and its overlays out of `free`, for which EL2 has taken what it needs
    /// before; refuses VMs for which there is too little in one piece.
    ///
    /// The first in the tree is served first, from the lowest piece that is large enough; one that
    /// stage 2 can map by blocks of 1 GiB, if there is.
    pub fn place(&mut self, free: &mut RamMap, refuse: &mut dyn FnMut(Refusal<'a>)) {
        self.retain(refuse, |vms, index| {
            let Some(vm) = vms.get_mut(index) else { return Ok(()) };
            let before = free.clone();
            let placed = place(vm, free);
            if placed.is_err() {
                *free = before;
            }
            placed
        });
    }

    /// Refuses every VM for which `judge`, called in order with all VMs and an index, has an error.
    fn retain(
        &mut self,
        refuse: &mut dyn FnMut(Refusal<'a>),
        mut judge: impl FnMut(&mut Vms<'a>, usize) -> Result<(), ConfigError<'a>>,
    ) {
        let mut index = 0;
        while let Some(vm) = self.vms.get(index).map(|vm| vm.node) {
            match judge(&mut self.vms, index) {
                Ok(()) => index += 1,
                Err(error) => {
                    self.vms.remove(index);
                    refuse(Refusal { vm, error });
                }
            }
        }
    }

    /// What `node` asks for, if it can be had beside the VMs there are.
    fn judge(
        &self,
        node: VmNode<'a>,
        board: &Board<'a>,
        resources: &Resources<'_>,
    ) -> Result<VmConfig<'a>, ConfigError<'a>> {
        check_name(node.name)?;
        if self.vms.iter().any(|vm| vm.name == node.name) {
            return Err(ConfigError::NameTaken);
        }
        let vcpus = in_range("cpus", node.cpus, 1, MAX_VCPUS as u64)? as u8;
        let weight = u64::from(Weight::DEFAULT.get());
        let weight = in_range("sparkler,weight", node.weight.unwrap_or(weight), 1, 1000)?;
        let kernel = node.kernel.ok_or(ConfigError::NoKernel)?;
        if kernel.bootargs.len() > MAX_BOOTARGS {
            return Err(ConfigError::BootargsTooLong);
        }
        let cores = match node.cores {
            Some(list) => cores::named(&self.vms, list, vcpus, resources.cores)?,
            None => heapless::Vec::new(),
        };
        let vm = VmConfig {
            node: node.node,
            name: node.name,
            vcpus,
            cores,
            weight: Weight::new(weight as u32).unwrap_or(Weight::DEFAULT),
            autostart: node.autostart,
            on_crash: node.on_crash,
            operator: node.operator,
            memory: memory(node.memory_kib)?,
            ram: None,
            kernel,
            ramdisk: node.ramdisk,
            bootargs: kernel.bootargs,
            devices: node.devices,
            is_default: false,
        };
        self.check_modules(&vm, board, resources)?;
        self.check_devices(&vm)?;
        Ok(vm)
    }

    /// The modules lie in the board's RAM, over nothing that is in use, and over other modules only
    /// if all of both is the same, and only read.
    fn check_modules(
        &self,
        vm: &VmConfig<'a>,
        board: &Board<'a>,
        resources: &Resources<'_>,
    ) -> Result<(), BoardError<'a>> {
        let mut result = Ok(());
        let mut index = 0;
        vm.for_each_module(&mut |module| {
            if result.is_err() {
                return;
            }
            result = board.check_module(module.node, module.range, resources.taken);
            let mut check = |other: Owned<'a>| {
                if result.is_ok() && !module.goes_with(&other) {
                    let (first, second) = (module.node, other.node);
                    result = Err(BoardError::ModulesOverlap { first, second });
                }
            };
            self.vms.iter().for_each(|other| other.for_each_module(&mut check));
            board.modules.iter().for_each(|plain| check(Owned::read(plain)));
            // Of its own, those that came before.
            let mut before = index;
            vm.for_each_module(&mut |other| {
                if before > 0 {
                    before -= 1;
                    check(other);
                }
            });
            index += 1;
        });
        result
    }

    /// Whether `vm` can have a port to that: a pipe has a good name, and two ends on the board at most.
    fn can_have(&self, vm: &VmConfig<'a>, port: Option<PortTarget<'a>>) -> bool {
        let Some(PortTarget::Pipe(name)) = port else { return port.is_some() };
        let all = self.vms.iter().chain([vm]).flat_map(|vm| &vm.devices).filter_map(ports_of);
        let ends = all.flat_map(|ports| ports.iter()).filter(|other| *other == port).count();
        check_name(name).is_ok() && ends <= 2
    }

    fn check_devices(&self, vm: &VmConfig<'a>) -> Result<(), ConfigError<'a>> {
        for (index, device) in vm.devices.iter().enumerate() {
            let own = vm.devices.get(..index).unwrap_or_default();
            let others = self.vms.iter().map(|vm| vm.devices.as_slice());
            for other in others.chain([own]).flatten() {
                if address(device).is_some_and(|mac| address(other) == Some(mac)) {
                    return Err(ConfigError::AddressTaken { node: device.node, by: other.node });
                }
                if cid(device).is_some_and(|own| cid(other) == Some(own)) {
                    return Err(ConfigError::CidTaken { node: device.node, by: other.node });
                }
            }
            let source = match device.kind {
                DeviceKind::Net(net) => {
                    check_net(device.node, &net)?;
                    continue;
                }
                DeviceKind::Block { source, queues, .. } => {
                    in_range("queues", queues.unwrap_or(1), 1, MAX_VCPUS as u64)?;
                    source
                }
                DeviceKind::Rng => continue,
                DeviceKind::Vsock(sockets) => {
                    in_range("guest-cid", sockets.cid, FIRST_CID, LAST_CID)?;
                    let peers = sockets.peers.map_or(0, |peers| peers.iter().count() as u64);
                    in_range("number of peers", peers, 0, MAX_PEERS as u64)?;
                    continue;
                }
                DeviceKind::Console(ports) => {
                    let terminals = own.iter().chain([device]).filter_map(ports_of);
                    let terminals = terminals.flat_map(|ports| ports.iter());
                    let terminal = Some(PortTarget::Terminal);
                    let good = (1..=MAX_PORTS).contains(&ports.iter().count())
                        && terminals.filter(|port| *port == terminal).count() <= 1
                        && ports.iter().all(|port| self.can_have(vm, port));
                    if !good {
                        return Err(ConfigError::Ports { node: device.node });
                    }
                    continue;
                }
            };
            match source {
                BlockSource::Ram { image }
                | BlockSource::Overlay { below: Below::Ram { image }, .. }
                    if image.len % SECTOR_SIZE != 0 =>
                {
                    return Err(ConfigError::ImageLength { image });
                }
                BlockSource::Overlay { memory_kib, .. } => {
                    memory(memory_kib)?;
                }
                BlockSource::Null { size_kib: size } => {
                    in_range("size", size, 1, MAX_NULL_DISK_KIB)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The ports of a console.
fn ports_of<'a>(device: &DeviceNode<'a>) -> Option<PortList<'a>> {
    match device.kind {
        DeviceKind::Console(ports) => Some(ports),
        _ => None,
    }
}

fn check_net<'a>(node: NodePath<'a>, net: &NetNode) -> Result<(), ConfigError<'a>> {
    if net.mac.is_some_and(|mac| MacAddress(mac).is_group() || mac == [0; 6]) {
        return Err(ConfigError::Address { node });
    }
    in_range("mtu", net.mtu, LEAST_MTU, MOST_MTU)?;
    in_range("vlan", net.vlan.unwrap_or(1), 1, 4094)?;
    in_range("queue-pairs", net.pairs, 1, MAX_PAIRS as u64)?;
    if net.metadata.is_some() && net.to != NetTarget::Switch {
        return Err(ConfigError::Metadata { node, reason: "its backend is not \"switch\"" });
    }
    Ok(())
}

type Vms<'a> = heapless::Vec<VmConfig<'a>, MAX_VMS>;

/// Where the modules of a board without configuration are.
const CHOSEN: NodePath<'static> = NodePath::new("", "chosen");

/// The only VM of a board whose tree has none; `None` without a kernel.
fn default_vm<'a>(board: &Board<'a>, cores: CoreSet) -> Option<VmConfig<'a>> {
    let node = CHOSEN;
    let images = board.first_guest()?;
    let source = BlockSource::Physical { disk: 0, part: DiskPart::Whole };
    let limits = Default::default();
    let slot = DiskSlot::Fixed;
    let disk = DeviceKind::Block { source, read_only: false, queues: None, capacity: None, slot };
    let disk = DeviceNode { node, kind: disk, limits };
    let (to, mac, vlan) = (NetTarget::Switch, None, None);
    let net = NetNode { to, mac, mtu: 1500, vlan, isolated: false, pairs: 1, metadata: None };
    let net = DeviceNode { node, kind: DeviceKind::Net(net), limits };
    let rng = DeviceNode { node, kind: DeviceKind::Rng, limits };
    Some(VmConfig {
        node,
        name: "vm0",
        vcpus: cores.len() as u8,
        cores: heapless::Vec::new(),
        weight: Weight::DEFAULT,
        autostart: true,
        on_crash: OnCrash::Stop,
        operator: false,
        memory: Memory::Rest,
        ram: None,
        kernel: images.kernel,
        ramdisk: images.ramdisk,
        bootargs: images.kernel.bootargs,
        devices: [disk, net, rng].into_iter().collect(),
        is_default: true,
    })
}

/// Takes the RAM of a VM and of its overlays.
fn place<'a>(vm: &mut VmConfig<'a>, free: &mut RamMap) -> Result<(), ConfigError<'a>> {
    let no_memory = |wanted, free: &RamMap| {
        let largest = free.largest(RAM_BLOCK).map_or(0, |ram| ram.len);
        ConfigError::NoMemory { wanted, largest }
    };
    for device in &mut vm.devices {
        let DeviceKind::Block { source, .. } = &mut device.kind else { continue };
        if let BlockSource::Overlay { memory_kib, ram, .. } = source {
            let wanted = *memory_kib * 1024;
            let found = free.find(wanted, RAM_BLOCK, 0);
            *ram = found.filter(|ram| free.reserve(*ram).is_ok());
            if ram.is_none() {
                return Err(no_memory(wanted, free));
            }
        }
    }
    let ram = match vm.memory {
        Memory::Rest => free.largest(RAM_BLOCK),
        Memory::Bytes(len) => Some(len)
            .filter(|len| *len >= LARGE_BLOCK)
            .and_then(|len| free.find(len, LARGE_BLOCK, layout::RAM.raw()))
            .or_else(|| free.find(len, RAM_BLOCK, 0)),
    };
    vm.ram = ram.filter(|ram| free.reserve(*ram).is_ok());
    if vm.ram.is_some() {
        return Ok(());
    }
    let wanted = if let Memory::Bytes(len) = vm.memory { len } else { RAM_BLOCK };
    Err(no_memory(wanted, free))
}

fn check_name<'a>(name: &str) -> Result<(), ConfigError<'a>> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
        return Err(ConfigError::Name);
    }
    Ok(())
}

fn in_range<'a>(
    property: &'static str,
    value: u64,
    least: u64,
    most: u64,
) -> Result<u64, ConfigError<'a>> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Range { property, value, least, most })
}

fn memory<'a>(kib: u64) -> Result<Memory, ConfigError<'a>> {
    let block = RAM_BLOCK / 1024;
    let kib = in_range("memory", kib, block, MAX_MEMORY_KIB)?;
    if !kib.is_multiple_of(block) {
        return Err(ConfigError::MemoryUnaligned { kib });
    }
    Ok(Memory::Bytes(kib * 1024))
}

#[cfg(test)]
mod tests;
