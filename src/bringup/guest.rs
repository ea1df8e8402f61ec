//! The one guest of a board without a configuration: all the RAM that is left, one core, one device
//! of each kind the board can serve.
#![allow(unsafe_code)]

use core::time::Duration;

use sparkler::arch::boot::BootInfo;
use sparkler::arch::core::Core;
use sparkler::arch::gic::{Frames, MAINTENANCE_INTID, PhysicalGic};
use sparkler::arch::guest::{Plan, Seat, power_off};
use sparkler::arch::interrupts::{
    Doorbell, MAX_DOORBELLS, PHYSICAL_TIMER_INTID, Source, VIRTUAL_TIMER_INTID,
};
use sparkler::arch::mmio::Mmio;
use sparkler::arch::timer::{Counter, TIMER_INTID};
use sparkler::arch::{cache, stage2};
use sparkler::backend::clock::Clock;
use sparkler::cpu::sysreg::Limits;
use sparkler::fdt::guest::GUEST_FDT_LEN;
use sparkler::fdt::{Board, Gic, Module, Trigger};
use sparkler::gic::{GicVersion, VcpuIndex, Vgic};
use sparkler::memory::stage2::{Attributes, Geometry, Stage2, Vmid};
use sparkler::memory::{FramePool, GuestMemory, PAGE_SIZE, PaRange, RamMap, SharedSlice};
use sparkler::rate_limit::RateLimit;
use sparkler::virtio::MmioTransport;
use sparkler::virtio::devices::block::Block;
use sparkler::vm::loader::Modules;
use sparkler::vm::options::VirtioOptions;
use sparkler::vm::pl031::Pl031;
use sparkler::vm::{ExitCounts, Vcpu, Vm, layout};

use super::arena::place;
use super::{devices, stop};

/// The guest that runs when no module is given.
static BUILTIN: &[u8] = include_bytes!(env!("SPARKLER_BUILTIN"));

/// Alignment of what guests' RAM and EL2's pool are cut from: stage 2 maps it by 2 MiB blocks.
const BLOCK: u64 = 0x20_0000;
/// EL2's pool: stage-2 tables, DMA memory of the drivers, the built-in guest's file.
const POOL: u64 = BLOCK;
/// Log lines a guest can cause at once.
const WARNING_BURST: u32 = 10;
/// How often it can cause another.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// PL031 register offsets end here.
const RTC_SIZE: usize = 0x1000;

/// Builds the guest and runs it.
pub(super) fn run(boot: BootInfo, board: Board<'static>, tree: PaRange) -> ! {
    let image = PaRange::new(boot.image.raw(), BootInfo::image_size());
    if let Err(error) = board.check_modules(&[("sparkler", image), ("the device tree", tree)]) {
        stop(format_args!("{error}"));
    }
    let mut free = match board.free_ram(&[image, tree]) {
        Ok(free) => free,
        Err(error) => stop(format_args!("{error}")),
    };
    let mut pool = FramePool::new();
    let reserve = take(&mut free, POOL).and_then(|ram| pool.add(ram).ok());
    if reserve.is_none() {
        stop(format_args!("no {} KiB of RAM are free for EL2", POOL / 1024));
    }

    let modules = modules(&board, &mut pool);
    let Some(ram) = free.largest(BLOCK) else { stop(format_args!("no RAM is left for a guest")) };
    let Some(memory) = take(&mut free, ram.len) else { stop(format_args!("EL2 cannot map RAM")) };
    let gic = interrupt_controller(&board);
    let stage2 = match address_space(memory, cpu_interface(&board, &gic), &mut pool) {
        Ok(tables) => tables,
        Err(error) => stop(format_args!("stage 2: {error}")),
    };
    let mut guest_memory = GuestMemory::new();
    if guest_memory.add(layout::RAM, memory).is_err() {
        stop(format_args!("the guest's RAM does not fit its map"));
    }

    let mut doorbells = heapless::Vec::<Doorbell, MAX_DOORBELLS>::new();
    let version = gic.version();
    let limits = Limits {
        ipa_bits: stage2.geometry().ipa_bits(),
        gic_system_registers: version == GicVersion::V3,
    };
    let Some(vm) = machine(guest_memory, limits, version, clock(&board)) else {
        stop(format_args!("EL2's arena is too small for the VM"));
    };
    plug_disk(vm, &board, &mut pool, &mut doorbells);
    if let Some(interrupt) = board.console.and_then(|uart| uart.interrupt) {
        let edge = interrupt.trigger == Trigger::Edge;
        let _ = doorbells.push(Doorbell::new(interrupt.intid, edge, Source::Console));
    }
    for intid in [VIRTUAL_TIMER_INTID, PHYSICAL_TIMER_INTID, MAINTENANCE_INTID, TIMER_INTID] {
        gic.enable(intid, false);
        if !gic.is_enabled(intid) {
            stop(format_args!(
                "interrupt {intid} is kept for the Secure state: EL2 cannot have it"
            ));
        }
    }
    for doorbell in &doorbells {
        doorbell.connect(&gic);
    }

    log::info!(
        "vm0: 1 vCPU, {} MiB of RAM at {} for IPA {}, {} virtio device(s)",
        memory.len() / 0x10_0000,
        memory.pa(),
        layout::RAM,
        vm.devices(),
    );
    let Some(scratch) = place(|| [0u8; GUEST_FDT_LEN]) else {
        stop(format_args!("EL2's arena is too small for a device tree"));
    };
    let stage2 = stage2::Registers::new(&stage2);
    let plan = Plan { modules, scratch, stage2, gic, on_end: power_off };
    let Some(seat) = seat(vm, doorbells, plan) else {
        stop(format_args!("EL2's arena is too small for the vCPU"));
    };
    match seat.start() {
        Ok(never) => match never {},
        Err(error) => stop(format_args!("vm0 is not started: {error}")),
    }
}

// What is large is built in a function of its own, so that the copies on the stack are gone before
// the next one is built.

#[inline(never)]
fn machine(
    memory: GuestMemory<'static>,
    limits: Limits,
    version: GicVersion,
    clock: Pl031,
) -> Option<&'static mut Vm<'static>> {
    let interval = Counter.frequency().ticks(WARNING_INTERVAL);
    let log_limit = RateLimit::new(WARNING_BURST, interval);
    place(|| Vm::new("vm0", memory, limits, Vgic::with_version(version, 1), clock, log_limit))
}

#[inline(never)]
fn seat(
    vm: &'static Vm<'static>,
    doorbells: heapless::Vec<Doorbell, MAX_DOORBELLS>,
    plan: Plan,
) -> Option<&'static mut Seat> {
    let vcpu = Vcpu::new(VcpuIndex::BOOT, vm, ExitCounts::default());
    let core = Core::new(&plan.gic);
    place(|| Seat { vcpu, core, doorbells, plan })
}

/// The board's disk, as the guest's first virtio device.
#[inline(never)]
fn plug_disk(
    vm: &mut Vm<'static>,
    board: &Board<'_>,
    pool: &mut FramePool<'static>,
    doorbells: &mut heapless::Vec<Doorbell, MAX_DOORBELLS>,
) {
    let options = match VirtioOptions::parse(board.bootargs) {
        Ok(options) => options,
        Err(word) => stop(format_args!("sparkler.virtio: \"{word}\" means nothing")),
    };
    let Some((disk, doorbell)) = devices::find_disk(board, pool) else {
        log::info!("no disk: the guest runs without");
        return;
    };
    let plugged = place(|| disk).and_then(|disk| place(|| Block::new(disk))).and_then(|block| {
        block.limit_segments(options.max_segments());
        vm.plug(options.apply(MmioTransport::new(block, vm.memory.clone())))
    });
    if plugged.is_none() {
        stop(format_args!("EL2's arena is too small for the disk"));
    }
    if let Some(doorbell) = doorbell {
        let _ = doorbells.push(doorbell);
    }
}

/// Takes `len` bytes out of the free RAM, in whole blocks, and maps them for EL2.
fn take(free: &mut RamMap, len: u64) -> Option<SharedSlice<'static>> {
    let range = free.find(len, BLOCK, 0)?;
    free.reserve(range).ok()?;
    // SAFETY: it was free: neither the image, nor the device tree, nor a module, and is so no more.
    unsafe { cache::shared_ram(range.base, range.len) }.ok()
}

/// What the guest boots: the board's first kernel module, or the built-in guest.
fn modules(board: &Board<'static>, pool: &mut FramePool<'static>) -> Modules<'static> {
    let Some(images) = board.first_guest() else {
        log::info!("no kernel module: running the built-in guest");
        let frames = BUILTIN.len().div_ceil(PAGE_SIZE as usize);
        let file = pool.alloc_run(frames, PAGE_SIZE).ok().and_then(|room| {
            room.write_bytes(0, BUILTIN)?;
            room.subslice(0, BUILTIN.len())
        });
        let Some(kernel) = file else { stop(format_args!("no room for the built-in guest")) };
        return Modules { kernel, ramdisk: None, bootargs: board.bootargs };
    };
    let map = |module: &Module<'_>| {
        // SAFETY: checked to be RAM that overlaps nothing else; it is never given to a guest.
        match unsafe { cache::shared_ram(module.range.base, module.range.len) } {
            Ok(file) => file,
            Err(_) => stop(format_args!("{}: EL2 cannot map the module", module.node)),
        }
    };
    log::info!("kernel {}: {} KiB", images.kernel.node, images.kernel.range.len / 1024);
    if let Some(ramdisk) = &images.ramdisk {
        log::info!("ramdisk {}: {} KiB", ramdisk.node, ramdisk.range.len / 1024);
    }
    Modules {
        kernel: map(&images.kernel),
        ramdisk: images.ramdisk.as_ref().map(map),
        bootargs: images.kernel.bootargs,
    }
}

/// What of a GICv2 board's GICV the guest gets for its GICC.
fn cpu_interface(board: &Board<'_>, gic: &PhysicalGic) -> Option<PaRange> {
    let Some(Gic::V2 { virtual_cpu, .. }) = &board.gic else { return None };
    let frame = virtual_cpu.and_then(|frame| gic.guest_cpu_interface(frame));
    if frame.is_none() {
        stop(format_args!("the board's GICv2 has no virtual CPU interface"));
    }
    frame
}

/// A stage 2 with all of `memory` at the guest's RAM address, and a GICv2's CPU interface.
fn address_space(
    memory: SharedSlice<'static>,
    cpu_interface: Option<PaRange>,
    pool: &mut FramePool<'static>,
) -> Result<Stage2<'static>, sparkler::memory::stage2::Stage2Error> {
    let geometry = Geometry::widest(layout::IPA_BITS, stage2::pa_range())?;
    let mut tables = Stage2::new(pool, geometry, Vmid::new(1))?;
    let len = memory.len() as u64;
    tables.map(pool, &stage2::Tlbs, layout::RAM, memory.pa(), len, Attributes::RAM)?;
    if let Some(frame) = cpu_interface {
        let (ipa, attributes) = (layout::GICC, Attributes::DEVICE);
        tables.map(pool, &stage2::Tlbs, ipa, frame.base, frame.len, attributes)?;
    }
    Ok(tables)
}

/// The board's interrupt controller, brought up.
fn interrupt_controller(board: &Board<'_>) -> PhysicalGic {
    let frames = match &board.gic {
        Some(Gic::V3 { distributor, redistributors, .. }) => {
            Frames::V3 { distributor: *distributor, redistributors }
        }
        Some(Gic::V2 { distributor, cpu_interface, hypervisor: Some(hypervisor), .. }) => {
            Frames::V2 {
                distributor: *distributor,
                cpu_interface: *cpu_interface,
                hypervisor: *hypervisor,
            }
        }
        Some(Gic::V2 { .. }) => {
            stop(format_args!("the board's GICv2 has no virtualization extensions"))
        }
        None => stop(format_args!("the device tree has no interrupt controller that is known")),
    };
    // SAFETY: they are this board's, by its device tree; EL2 has the board to itself.
    match unsafe { PhysicalGic::init(&frames) } {
        Ok(gic) => gic,
        Err(error) => stop(format_args!("the interrupt controller cannot be used: {error}")),
    }
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
