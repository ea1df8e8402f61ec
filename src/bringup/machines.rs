//! The machines that the board's device tree asks for: each with its cores, RAM and devices, and taken
//! to its seats. One that cannot be built is left out, and does not stop the others.
#![allow(unsafe_code)]

use core::time::Duration;

use sparkler::arch::boot::BootInfo;
use sparkler::arch::gic::PhysicalGic;
use sparkler::arch::guest::{Machine, Plan, Resident, Seat};
use sparkler::arch::interrupts::{Doorbell, MAX_DOORBELLS, Source};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::operator::{self, Inventory};
use sparkler::arch::smp::MAX_CORES;
use sparkler::arch::timer::Counter;
use sparkler::arch::{cache, firmware, stage2, wake};
use sparkler::backend::block::{BlockBackend, ID_SIZE};
use sparkler::backend::clock::Clock;
use sparkler::backend::null::NullDisk;
use sparkler::backend::overlay::{Jobs, Overlay, Revert};
use sparkler::backend::ram::RamDisk;
use sparkler::backend::removable::{Drive, Media};
use sparkler::backend::wake::Waker;
use sparkler::cpu::sysreg::Limits;
use sparkler::fdt::guest::GUEST_FDT_LEN;
use sparkler::fdt::{Below, BlockSource, Board, DeviceKind, DeviceNode, DiskSlot};
use sparkler::fdt::{Gic, Module, Trigger};
use sparkler::gic::{GicVersion, MAX_VCPUS, VcpuIndex, Vgic};
use sparkler::memory::stage2::{Attributes, Geometry, Stage2, Stage2Error, Vmid};
use sparkler::memory::{FramePool, GuestMemory, PAGE_SIZE, PaRange, RamMap, SharedSlice};
use sparkler::monitor::MemoryInfo;
use sparkler::rate_limit::RateLimit;
use sparkler::virtio::devices::block::Block;
use sparkler::virtio::limiter::Limits as RateLimits;
use sparkler::virtio::{Adjustment, Direction, MmioTransport, VirtioDevice};
use sparkler::vm::config::{
    Configuration, CoreSet, DiskUse, MAX_VMS, Refusal, Resources, VmConfig,
};
use sparkler::vm::lifecycle::{Manager, Request};
use sparkler::vm::loader::Modules;
use sparkler::vm::machine::MAX_DEVICES;
use sparkler::vm::options::VirtioOptions;
use sparkler::vm::pl031::Pl031;
use sparkler::vm::vcpus::CoreNumber;
use sparkler::vm::{Vm, layout};

use super::arena::{self, place, place_each};
use super::consoles::Consoles;
use super::cores::{self, Cores};
use super::devices;
use super::disks::{BoardDisks, Finder};
use super::entropy::Randomness;
use super::metadata;
use super::network::Network;
use super::sockets::Sockets;
use super::stop;

/// Alignment of what guests' RAM and EL2's pool are cut from: stage 2 maps it by 2 MiB blocks.
const BLOCK: u64 = 0x20_0000;
/// EL2's pool: stage-2 tables, DMA memory of the drivers, what the arena holds.
const POOL: u64 = 2 * BLOCK;
/// Log lines a guest can cause at once.
const WARNING_BURST: u32 = 10;
/// How often it can cause another.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// PL031 register offsets end here.
const RTC_SIZE: usize = 0x1000;

/// Builds the machines that the board's tree asks for, and runs them.
pub(super) fn run(boot: BootInfo, board: Board<'static>, tree: PaRange) -> ! {
    let image = PaRange::new(boot.image.raw(), BootInfo::image_size());
    let taken = [("sparkler", image), ("the device tree", tree)];
    if let Err(error) = board.check_modules(&taken) {
        stop(format_args!("{error}"));
    }
    let mut config = Configuration::new();
    let resources = Resources { cores: CoreSet::first(board.cpus.len()), taken: &taken };
    config.read(&board, &resources, &mut refuse);
    if !cfg!(feature = "metadata") {
        config.refuse_metadata(&mut refuse);
    }

    let mut free = match board.free_ram(&[image, tree]) {
        Ok(free) => free,
        Err(error) => stop(format_args!("{error}")),
    };
    if config.reserve_modules(&mut free).is_err() {
        stop(format_args!("free memory is in too many pieces"));
    }
    let mut pool = FramePool::new();
    let reserve = take(&mut free, POOL).and_then(|ram| pool.add(ram).ok());
    if reserve.is_none() || arena::open(&mut pool).is_none() {
        stop(format_args!("no {} KiB of RAM are free for EL2", POOL / 1024));
    }
    let Some(board) = place(|| board) else { no_room("the board") };
    let board: &'static Board<'static> = board;
    let cores = cores::start(board);
    let mut disks = BoardDisks::new(board);
    config.check_disks(&mut Finder { disks: &mut disks, pool: &mut pool }, &mut refuse);
    let card = devices::card(board);
    let entropy = Randomness::new(board);
    config.check_board(card.is_some(), entropy.is_some());
    config.place(&mut free, &mut refuse);

    let options = match VirtioOptions::parse(board.bootargs) {
        Ok(options) => options,
        Err(word) => stop(format_args!("sparkler.virtio: \"{word}\" means nothing")),
    };
    let [Some(gic), ..] = cores.gics else { stop(format_args!("there is no boot core")) };
    wake::Cores::connect(gic, cores.addresses());
    let machines = heapless::Vec::new();
    let mut builder = Builder {
        board,
        cores,
        disks,
        network: Network::new(card),
        entropy,
        sockets: Sockets::default(),
        consoles: Consoles::default(),
        options,
        pool,
        machines,
        seats: [const { None }; MAX_CORES],
    };
    for vm in config.vms() {
        if let Err(error) = builder.build(vm, &config) {
            log::error!("{}: not built: {error}", vm.node);
        }
    }
    if builder.machines.iter().all(|vm| !vm.life.is_asked()) {
        stop(format_args!("there is no VM to start"));
    }
    builder.attach_console();
    operator::publish(builder.inventory(&free));
    cores::go(builder.seats)
}

fn refuse(refusal: Refusal<'_>) {
    log::error!("{refusal}");
}

/// A machine is down. If it was the last one, so is the board.
fn ended() {
    if operator::machines().iter().all(|vm| vm.life.has_ended()) {
        firmware::power_off();
        firmware::park()
    }
}

/// What machines are built from.
struct Builder {
    board: &'static Board<'static>,
    cores: Cores,
    disks: BoardDisks,
    network: Network,
    entropy: Option<Randomness>,
    sockets: Sockets,
    consoles: Consoles,
    options: VirtioOptions,
    pool: FramePool<'static>,
    /// In the tree's order.
    machines: heapless::Vec<&'static Vm<'static>, MAX_VMS>,
    seats: [Option<&'static mut Seat>; MAX_CORES],
}

/// Why a machine is not built.
type Reason = &'static str;

const NO_ROOM: Reason = "EL2 has too little memory";
const NO_CORE: Reason = "one of its cores does not run";
const TOO_MANY: Reason = "it has too many devices";
const UNMAPPED: Reason = "EL2 cannot map its memory";

impl Builder {
    /// Builds a machine, takes its vCPUs to their seats, and asks for its start.
    fn build(&mut self, config: &VmConfig<'static>, all: &Configuration<'_>) -> Result<(), Reason> {
        let mut cores = heapless::Vec::<CoreNumber, MAX_VCPUS>::new();
        for core in &config.cores {
            let number = self.cores.number(core.get()).ok_or(NO_CORE)?;
            cores.push(number).map_err(|_| NO_ROOM)?;
        }
        let ram = config.ram.ok_or("it has no RAM")?;
        // SAFETY: `Configuration::place` took it out of the free RAM: it is nobody else's.
        let memory = unsafe { cache::shared_ram(ram.base, ram.len) };
        let memory = memory.map_err(|_| UNMAPPED)?;
        let [Some(gic), ..] = self.cores.gics else { return Err("there is no boot core") };
        let number = self.machines.len();
        let stage2 = self.address_space(number, memory, &gic)?;
        let ipa_bits = stage2.geometry().ipa_bits();
        let version = gic.version();
        let limits = Limits { ipa_bits, gic_system_registers: version == GicVersion::V3 };
        let mut guest_memory = GuestMemory::new();
        guest_memory.add(layout::RAM, memory).map_err(|_| "its RAM does not fit its map")?;
        let clock = clock(self.board);
        let vm =
            machine(config.name, guest_memory, limits, &cores, version, clock).ok_or(NO_ROOM)?;
        vm.number = number;
        vm.operator = config.operator;
        let home = usize::from(vm.vcpus.home());
        let mut doorbells = heapless::Vec::<Doorbell, MAX_DOORBELLS>::new();
        let mut reverts = heapless::Vec::new();
        for devices in config.devices.chunk_by(|_, next| is_medium(next)) {
            self.plug(vm, devices, all, &mut reverts, &mut doorbells)?;
        }
        let is_disk = |device: &DeviceNode<'_>| matches!(device.kind, DeviceKind::Block { .. });
        if !config.devices.iter().any(is_disk) {
            log::info!("{}: no disk: the guest runs without", config.name);
        }
        log::info!(
            "{}: {} vCPU, {} MiB of RAM at {} for IPA {}, {} virtio device(s)",
            vm.name,
            vm.vcpus.count(),
            memory.len() / 0x10_0000,
            memory.pa(),
            layout::RAM,
            vm.devices(),
        );
        let vm: &'static Vm<'static> = vm;
        let seat = self.seat(home, vm)?;
        for doorbell in doorbells {
            hang_up(Some(doorbell), &mut seat.doorbells);
        }
        let modules = self.modules(config)?;
        let stage2 = stage2::Registers::new(&stage2);
        for (index, core) in cores.iter().enumerate() {
            let index = VcpuIndex::new(index).ok_or(NO_ROOM)?;
            let resident = resident(vm, index, stage2).ok_or(NO_ROOM)?;
            let seat = self.seat(usize::from(*core), vm)?;
            if !seat.add(resident, config.weight) {
                return Err("a core has too many vCPUs");
            }
        }
        let scratch = scratch().ok_or(NO_ROOM)?;
        let plan = Plan { modules, scratch, reverts, on_end: ended };
        let manager = Manager::new(config.on_crash, Counter.frequency());
        let machine = place(|| Machine::new(vm, manager, plan)).ok_or(NO_ROOM)?;
        if !self.seat(home, vm)?.manage(machine) {
            return Err("a core has too many VMs");
        }
        if config.autostart {
            // It is off.
            let _ = vm.life.ask(Request::Start);
        }
        self.machines.push(vm).map_err(|_| NO_ROOM)
    }

    /// What there is on the board, once all machines are built.
    fn inventory(&self, free: &RamMap) -> Inventory {
        let bytes = |ranges: &[PaRange]| ranges.iter().map(|range| range.len).sum();
        let guests = self.machines.iter().flat_map(|vm| vm.memory.regions());
        let memory = MemoryInfo {
            total: bytes(&self.board.memory),
            guests: guests.map(|(_, memory)| memory.len() as u64).sum(),
            pool: self.pool.total_frames() as u64 * PAGE_SIZE,
            pool_free: self.pool.free_frames() as u64 * PAGE_SIZE,
            free: bytes(free.free()),
        };
        let cores = self.cores.of_board(self.board);
        Inventory { machines: self.machines.clone(), cores, memory, switch: self.network.switch() }
    }

    /// The seat of a core, made if it is not there yet.
    #[inline(never)]
    fn seat(&mut self, core: usize, vm: &'static Vm<'static>) -> Result<&mut Seat, Reason> {
        let addresses = self.cores.addresses();
        let gic = self.cores.gics.get(core).copied().flatten().ok_or(NO_CORE)?;
        let place_of = self.seats.get_mut(core).ok_or(NO_CORE)?;
        if place_of.is_none() {
            let seat = seat(vm, gic).ok_or(NO_ROOM)?;
            seat.connect(addresses);
            *place_of = Some(seat);
        }
        place_of.as_deref_mut().ok_or(NO_ROOM)
    }

    /// The console's input goes to the home of the first machine.
    fn attach_console(&mut self) {
        let Some(vm) = self.machines.first().copied() else { return };
        let interrupt = self.board.console.and_then(|uart| uart.interrupt);
        let Ok(seat) = self.seat(usize::from(vm.vcpus.home()), vm) else { return };
        if let Some(interrupt) = interrupt {
            let edge = interrupt.trigger == Trigger::Edge;
            let doorbell = Doorbell::new(interrupt.intid, edge, Source::Console);
            let _ = seat.doorbells.push(doorbell);
        }
    }

    /// Plugs a device, of which there are further media, into the next slot.
    fn plug(
        &mut self,
        vm: &mut Vm<'static>,
        devices: &[DeviceNode<'static>],
        all: &Configuration<'_>,
        reverts: &mut heapless::Vec<&'static Revert, MAX_DEVICES>,
        doorbells: &mut heapless::Vec<Doorbell, MAX_DOORBELLS>,
    ) -> Result<(), Reason> {
        let Some(device) = devices.first() else { return Ok(()) };
        let (read_only, queues, capacity, slot) = match device.kind {
            DeviceKind::Net(node) => {
                let place = [vm.number as u8, vm.devices() as u8];
                let content = node.metadata.map(metadata::open).transpose()?;
                let home = vm.vcpus.home();
                let opened = self.network.device(&node, place, home, content, &mut self.pool);
                let (net, doorbell) = opened.ok_or(NO_ROOM)?;
                hang_up(doorbell, doorbells);
                plug(vm, net, &self.options, device.limits).ok_or(TOO_MANY)?;
                return Ok(());
            }
            DeviceKind::Rng => {
                let entropy = self.entropy.as_mut().ok_or("the board has no source of entropy")?;
                let rng = entropy.device(&mut self.pool)?;
                plug(vm, rng, &self.options, device.limits).ok_or(TOO_MANY)?;
                return Ok(());
            }
            DeviceKind::Vsock(node) => {
                let opened = self.sockets.device(&node, vm.vcpus.home());
                let (sockets, desk) = opened.ok_or(NO_ROOM)?;
                vm.desk = vm.desk.or(desk);
                plug(vm, sockets, &self.options, device.limits).ok_or(TOO_MANY)?;
                return Ok(());
            }
            DeviceKind::Console(ports) => {
                let (console, terminal) = self.consoles.device(vm, &ports).ok_or(NO_ROOM)?;
                let slot = plug(vm, console, &self.options, device.limits).ok_or(TOO_MANY)?;
                if let Some(end) = terminal {
                    vm.set_terminal(slot, end);
                }
                return Ok(());
            }
            DeviceKind::Block { read_only, queues, capacity, slot, .. } => {
                (read_only, queues, capacity, slot)
            }
        };
        let mut media = Media::new();
        for device in devices {
            let disk = self.disk(vm, device, all, reverts, doorbells)?;
            media.push(disk).map_err(|_| NO_ROOM)?;
        }
        let disk = match slot {
            DiskSlot::Drive => drive(media),
            _ => media.pop(),
        };
        let block = disk.and_then(front).ok_or(NO_ROOM)?;
        if read_only {
            block.forbid_writes();
        }
        block.limit_capacity(capacity.unwrap_or(u64::MAX));
        block.limit_segments(self.options.max_segments());
        let usual = self.options.queues(vm.vcpus.count());
        block.set_queues(queues.map_or(usual, |queues| queues as usize));
        plug(vm, block, &self.options, device.limits).ok_or(TOO_MANY)?;
        Ok(())
    }

    /// What is behind a block device, or one of its media.
    fn disk(
        &mut self,
        vm: &Vm<'static>,
        device: &DeviceNode<'_>,
        all: &Configuration<'_>,
        reverts: &mut heapless::Vec<&'static Revert, MAX_DEVICES>,
        doorbells: &mut heapless::Vec<Doorbell, MAX_DOORBELLS>,
    ) -> Result<&'static mut dyn BlockBackend<'static>, Reason> {
        let DeviceKind::Block { source, .. } = device.kind else { return Err(NO_ROOM) };
        let mut physical = || {
            let waker = Waker::new(&wake::Cores, vm.vcpus.home());
            let wanted = DiskUse::of(device);
            let opened = wanted.and_then(|wanted| self.disks.connect(&wanted, all, waker));
            let (disk, doorbell) = opened.ok_or("its disk cannot be used")?;
            hang_up(doorbell, doorbells);
            Ok(disk)
        };
        match source {
            BlockSource::Physical { .. } => physical(),
            BlockSource::Overlay { below, keep, ram, .. } => {
                let below = match below {
                    Below::Physical { .. } => physical()?,
                    Below::Ram { image } => ram_disk(image, true)?,
                };
                let ram = ram.ok_or(NO_ROOM)?;
                // SAFETY: `Configuration::place` took it out of the free RAM: it is nobody else's.
                let ram = unsafe { cache::shared_ram(ram.base, ram.len) }.map_err(|_| UNMAPPED)?;
                let (disk, revert) = overlay(below, ram).ok_or(NO_ROOM)?;
                if !keep {
                    reverts.push(revert).map_err(|_| NO_ROOM)?;
                }
                Ok(disk)
            }
            BlockSource::Ram { image } => ram_disk(image, false),
            BlockSource::Null { size_kib } => {
                Ok(place(|| NullDisk::new(size_kib.saturating_mul(2))).ok_or(NO_ROOM)?)
            }
        }
    }

    /// The guest's address space: all of `memory` at its RAM address, and a GICv2's CPU interface.
    fn address_space(
        &mut self,
        number: usize,
        memory: SharedSlice<'static>,
        gic: &PhysicalGic,
    ) -> Result<Stage2<'static>, Reason> {
        let frame = match &self.board.gic {
            Some(Gic::V2 { virtual_cpu, .. }) => {
                let frame = virtual_cpu.and_then(|frame| gic.guest_cpu_interface(frame));
                Some(frame.ok_or("the board's GICv2 has no virtual CPU interface")?)
            }
            _ => None,
        };
        tables(number, memory, frame, &mut self.pool).map_err(|_| "stage 2 cannot map its memory")
    }

    /// What the guest boots.
    fn modules(&self, config: &VmConfig<'static>) -> Result<Modules<'static>, Reason> {
        let map = |module: &Module<'_>| {
            log::info!("{}: {}: {} KiB", config.name, module.node, module.range.len / 1024);
            // SAFETY: checked to be RAM that overlaps nothing else, and only ever read.
            unsafe { cache::shared_ram(module.range.base, module.range.len) }.map_err(|_| UNMAPPED)
        };
        let kernel = map(&config.kernel)?;
        let ramdisk = config.ramdisk.as_ref().map(map).transpose()?;
        Ok(Modules { kernel, ramdisk, bootargs: config.bootargs })
    }
}

/// EL2's arena is full.
fn no_room(what: &str) -> ! {
    stop(format_args!("EL2's arena is too small for {what}"))
}

// What is large is built in a function of its own, so that the copies on the stack are gone before
// the next one is built.

#[inline(never)]
fn machine(
    name: &'static str,
    memory: GuestMemory<'static>,
    limits: Limits,
    cores: &[CoreNumber],
    version: GicVersion,
    clock: Pl031,
) -> Option<&'static mut Vm<'static>> {
    let interval = Counter.frequency().ticks(WARNING_INTERVAL);
    let log_limit = RateLimit::new(WARNING_BURST, interval);
    place(|| {
        let gic = Vgic::with_version(version, cores.len());
        Vm::new(name, memory, limits, cores, gic, clock, log_limit)
    })
}

#[inline(never)]
fn seat(vm: &'static Vm<'static>, gic: PhysicalGic) -> Option<&'static mut Seat> {
    place(|| Seat::new(vm, gic))
}

#[inline(never)]
fn scratch() -> Option<&'static mut [u8]> {
    place_each(GUEST_FDT_LEN, || 0)
}

#[inline(never)]
fn resident(
    vm: &'static Vm<'static>,
    index: VcpuIndex,
    stage2: stage2::Registers,
) -> Option<&'static mut Resident> {
    place(|| Resident::new(vm, index, stage2))
}

/// A disk in memory.
#[inline(never)]
fn ram_disk(
    image: PaRange,
    read_only: bool,
) -> Result<&'static mut dyn BlockBackend<'static>, Reason> {
    // SAFETY: checked to be RAM that nobody else has, unless all only read it, and taken out of the
    // free RAM.
    let image = unsafe { cache::shared_ram(image.base, image.len) }.map_err(|_| UNMAPPED)?;
    let disk = RamDisk::new(image, [0; ID_SIZE]);
    let disk = if read_only { disk.read_only() } else { disk };
    Ok(place(|| disk).ok_or(NO_ROOM)?)
}

/// A disk over another; with what makes it forget what was written.
#[inline(never)]
fn overlay(
    below: &'static mut dyn BlockBackend<'static>,
    ram: SharedSlice<'static>,
) -> Option<(&'static mut dyn BlockBackend<'static>, &'static Revert)> {
    let revert: &'static Revert = place(Revert::new)?;
    let jobs = place(Jobs::new)?;
    let disk = Overlay::new(below, ram, revert, jobs).ok()?;
    Some((place(|| disk)?, revert))
}

/// What there is no room for is polled less often.
fn hang_up(doorbell: Option<Doorbell>, among: &mut heapless::Vec<Doorbell, MAX_DOORBELLS>) {
    if let Some(doorbell) = doorbell {
        let _ = among.push(doorbell);
    }
}

/// Whether a device is a medium of the one before.
fn is_medium(device: &DeviceNode<'_>) -> bool {
    matches!(device.kind, DeviceKind::Block { slot: DiskSlot::Medium, .. })
}

/// A disk whose medium can be changed.
#[inline(never)]
fn drive(media: Media<'static, 'static>) -> Option<&'static mut dyn BlockBackend<'static>> {
    Some(place(|| Drive::new(media))?)
}

/// A block device for a disk.
#[inline(never)]
fn front(
    disk: &'static mut dyn BlockBackend<'static>,
) -> Option<&'static mut Block<'static, 'static>> {
    place(|| Block::new(disk))
}

/// Plugs a device into the next slot.
#[inline(never)]
fn plug(
    vm: &mut Vm<'static>,
    device: &'static mut dyn VirtioDevice<'static>,
    options: &VirtioOptions,
    limits: [RateLimits; 2],
) -> Option<usize> {
    let mut transport = options.apply(MmioTransport::new(device, vm.memory.clone()));
    for (direction, limits) in [Direction::In, Direction::Out].into_iter().zip(limits) {
        if limits != RateLimits::default() {
            // Asked for only of devices that know limits.
            let _ = transport.adjust(Adjustment::Limit(direction, limits), &Counter);
        }
    }
    vm.plug(transport)
}

/// Takes `len` bytes out of the free RAM, in whole blocks, and maps them for EL2.
fn take(free: &mut RamMap, len: u64) -> Option<SharedSlice<'static>> {
    let range = free.find(len, BLOCK, 0)?;
    free.reserve(range).ok()?;
    // SAFETY: it was free: neither the image, nor the device tree, nor a module, and is so no more.
    unsafe { cache::shared_ram(range.base, range.len) }.ok()
}

fn tables(
    number: usize,
    memory: SharedSlice<'static>,
    cpu_interface: Option<PaRange>,
    pool: &mut FramePool<'static>,
) -> Result<Stage2<'static>, Stage2Error> {
    let geometry = Geometry::widest(layout::IPA_BITS, stage2::pa_range())?;
    // VMID 0 is nobody's.
    let mut tables = Stage2::new(pool, geometry, Vmid::new(number as u16 + 1))?;
    let len = memory.len() as u64;
    tables.map(pool, &stage2::Tlbs, layout::RAM, memory.pa(), len, Attributes::RAM)?;
    if let Some(frame) = cpu_interface {
        let (ipa, attributes) = (layout::GICC, Attributes::DEVICE);
        tables.map(pool, &stage2::Tlbs, ipa, frame.base, frame.len, attributes)?;
    }
    Ok(tables)
}

/// The guest's clock, set by the board's.
fn clock(board: &Board<'_>) -> Pl031 {
    let epoch = board.rtc.and_then(|rtc| {
        // SAFETY: the tree has a PL031 there; a clock does no DMA.
        let registers = unsafe { Mmio::map(rtc.base, RTC_SIZE) }.ok()?;
        Some(u64::from(registers.read32_relaxed(0)))
    });
    Pl031::new(epoch.unwrap_or(0), Counter.now(), Counter.frequency())
}
