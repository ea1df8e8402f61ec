//! A machine for the tests of this folder: a VM, its vCPU, and a core that is not there.
//!
//! Everything is leaked: a vCPU borrows its VM for as long as both exist.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::RwLockWriteGuard;

use super::exit::{self, Next};
use super::host::{GuestVectors, Host};
use super::pl031::Pl031;
use super::vcpus::{CoreNumber, Start};
use super::{ExitCounts, Vcpu, Vm, layout};
use crate::backend::block::{BlockBackend, BlockInfo, BlockRequest, BlockStatus, SubmitError, Tag};
use crate::backend::clock::{Frequency, Ticks};
use crate::cpu::abort::{Injection, PstateFeatures};
use crate::cpu::sysreg::{IdRegisters, Limits, SystemRegister};
use crate::cpu::{Pstate, Register, Width};
use crate::gic::{GicVersion, ListRegister, ListRegisters, Maintenance, State, VcpuIndex, Vgic};
use crate::memory::testing::ram;
use crate::memory::{GuestMemory, Ipa};
use crate::monitor::Operator;
use crate::monitor::testing::Fake;
use crate::rate_limit::RateLimit;
use crate::sync::testing::Shared;
use crate::virtio::devices::block::Block;
use crate::virtio::{Features, MmioTransport};

/// Size of a test guest's RAM, at [`layout::RAM`].
pub(super) const RAM_SIZE: usize = 0x1_0000;
/// Ticks a second.
pub(super) const HERTZ: u64 = 1000;
/// Log lines a test guest can cause at once.
pub(super) const WARNINGS: u32 = 3;
/// What the clock showed when the machine was made.
pub(super) const EPOCH: u64 = 1_700_000_000;
/// Where a test guest is when nothing else is said.
pub(super) const PC: u64 = 0x4000_8000;
/// A virtual address that differs from every IPA.
pub(super) const VA: u64 = 0xFFFF_8000_0000_0000;
/// VBAR_EL1.
pub(super) const VECTORS: u64 = 0xFFFF_8000_1000_0000;

/// ESR_EL2 of a data abort: translation fault at level 3.
pub(super) const DATA_ABORT: u64 = 0x24 << 26 | 1 << 25 | 0x07;
/// ESR_EL2 of an instruction abort: translation fault at level 3.
pub(super) const INSTRUCTION_ABORT: u64 = 0x20 << 26 | 1 << 25 | 0x07;
/// ESR_EL2 of HVC #0.
pub(super) const HVC: u64 = 0x16 << 26 | 1 << 25;
/// ESR_EL2 of SMC #0.
pub(super) const SMC: u64 = 0x17 << 26 | 1 << 25;
/// ESR_EL2 of WFI.
pub(super) const WFI: u64 = 0x01 << 26 | 1 << 25;
/// ESR_EL2 of a system register access, without its fields.
pub(super) const SYSTEM_REGISTER: u64 = 0x18 << 26 | 1 << 25;

/// Data abort: WnR.
pub(super) const WRITE: u64 = 1 << 6;
/// Data abort: S1PTW.
pub(super) const WALK: u64 = 1 << 7;
/// Data abort: CM.
pub(super) const CACHE_MAINTENANCE: u64 = 1 << 8;
/// Data abort: FnV.
pub(super) const NO_FAR: u64 = 1 << 10;
/// Data abort: a permission fault instead of a translation fault.
pub(super) const PERMISSION: u64 = 0x0F ^ 0x07;

/// x`number`.
pub(super) const fn x(number: u32) -> Register {
    Register::from_bits(number)
}

/// ESR_EL2 of a load (ISV = 1) to `register`, zero-extended.
pub(super) fn load_esr(register: u32, width: Width) -> u64 {
    let sixty_four = u64::from(width == Width::Double) << 15;
    DATA_ABORT | 1 << 24 | (width as u64) << 22 | u64::from(register) << 16 | sixty_four
}

/// ESR_EL2 of a store (ISV = 1) from `register`.
pub(super) fn store_esr(register: u32, width: Width) -> u64 {
    load_esr(register, width) | WRITE
}

/// A core's list registers.
#[derive(Debug)]
pub(super) struct FakeListRegisters([ListRegister; 4]);

impl FakeListRegisters {
    /// The guest acknowledges the pending interrupt of the lowest INTID.
    pub(super) fn acknowledge(&mut self) -> Option<u32> {
        let pending = |lr: &&mut ListRegister| lr.state() == State::Pending;
        let lr = self.0.iter_mut().filter(pending).min_by_key(|lr| lr.vintid())?;
        *lr = ListRegister::from_bits(lr.bits() ^ 0b11 << 62);
        Some(lr.vintid())
    }

    /// The guest ends the active interrupt `intid`.
    pub(super) fn end(&mut self, intid: u32) {
        let lr = self.0.iter_mut().find(|lr| lr.vintid() == intid && lr.is_active()).unwrap();
        *lr = ListRegister::from_bits(lr.bits() & !(1 << 63));
    }

    /// What the guest would acknowledge, lowest INTID first.
    pub(super) fn pending(&self) -> Vec<u32> {
        let pending = self.0.iter().filter(|lr| lr.is_pending());
        let mut intids = pending.map(|lr| lr.vintid()).collect::<Vec<_>>();
        intids.sort_unstable();
        intids
    }
}

impl ListRegisters for FakeListRegisters {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn read(&self, n: usize) -> ListRegister {
        self.0[n]
    }
    fn write(&mut self, n: usize, value: ListRegister) {
        self.0[n] = value;
    }
    fn empty(&self) -> u32 {
        let empty = |n: &usize| self.0[*n].is_invalid() && !self.0[*n].has_eoi_maintenance();
        (0..self.0.len()).filter(empty).map(|n| 1 << n).sum()
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
    fn take_eoi_count(&mut self) -> u32 {
        0
    }
    fn deactivate_physical(&mut self, _: u16) {}
}

/// The core, and the board's console.
pub(super) struct FakeHost {
    pub(super) lrs: FakeListRegisters,
    pub(super) now: Ticks,
    pub(super) esr: u64,
    pub(super) far: u64,
    pub(super) hpfar: u64,
    /// Stage 1 maps [`VA`] and up to this IPA and up, or nothing at all.
    pub(super) stage1: Option<u64>,
    /// Addresses that were translated, and whether as EL0.
    pub(super) translated: RefCell<Vec<(u64, bool)>>,
    /// SP_EL0 and SP_EL1.
    pub(super) stack_pointers: [u64; 2],
    pub(super) exceptions: Vec<Injection>,
    pub(super) transmitted: Vec<u8>,
    pub(super) input_wanted: usize,
    pub(super) keep_polling: usize,
    /// Cores that were told to look.
    pub(super) nudged: Vec<CoreNumber>,
    /// Whether there is another vCPU on the core.
    pub(super) shared: bool,
    /// The first deadline asked for since [`Machine::run_timer`].
    pub(super) wake: Option<Ticks>,
}

impl FakeHost {
    fn new() -> Self {
        Self {
            lrs: FakeListRegisters([ListRegister::EMPTY; 4]),
            now: Ticks(0),
            esr: 0,
            far: 0,
            hpfar: 0,
            stage1: Some(layout::RAM.raw()),
            translated: RefCell::default(),
            stack_pointers: [0; 2],
            exceptions: vec![],
            transmitted: vec![],
            input_wanted: 0,
            keep_polling: 0,
            nudged: vec![],
            shared: false,
            wake: None,
        }
    }
}

impl IdRegisters for FakeHost {
    fn read(&self, _: SystemRegister) -> u64 {
        0x1111_1111_1111_1111
    }
}

impl Host for FakeHost {
    type ListRegisters = FakeListRegisters;

    fn list_registers(&mut self) -> &mut FakeListRegisters {
        &mut self.lrs
    }
    fn now(&self) -> Ticks {
        self.now
    }
    fn syndrome(&self) -> u64 {
        self.esr
    }
    fn fault_address(&self) -> u64 {
        self.far
    }
    fn fault_page(&self) -> u64 {
        self.hpfar
    }
    fn translate(&self, address: u64, el0: bool) -> Option<Ipa> {
        self.translated.borrow_mut().push((address, el0));
        Some(Ipa::new(address.checked_sub(VA)?.wrapping_add(self.stage1?)))
    }
    fn stack_pointer(&self, el1: bool) -> u64 {
        self.stack_pointers[usize::from(el1)]
    }
    fn set_stack_pointer(&mut self, el1: bool, value: u64) {
        self.stack_pointers[usize::from(el1)] = value;
    }
    fn guest_vectors(&self) -> GuestVectors {
        let features = PstateFeatures::default();
        GuestVectors { vector_base: VECTORS, sctlr: 0, features }
    }
    fn set_exception(&mut self, injection: &Injection) {
        self.exceptions.push(*injection);
    }
    fn transmit(&mut self, machine: usize, byte: u8) {
        assert_eq!(machine, 0);
        self.transmitted.push(byte);
    }
    fn with_operator<T>(&mut self, work: impl FnOnce(&mut dyn Operator) -> T) -> T {
        work(&mut Fake::default())
    }
    fn input_wanted(&mut self) {
        self.input_wanted += 1;
    }
    fn nudge(&mut self, core: CoreNumber) {
        self.nudged.push(core);
    }
    fn is_shared(&self) -> bool {
        self.shared
    }
    fn keep_polling(&mut self) {
        self.keep_polling += 1;
    }
    fn wake_at(&mut self, deadline: Ticks) {
        self.wake = Some(self.wake.map_or(deadline, |wake| wake.min(deadline)));
    }
}

/// What the guest got of one exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The instruction is done.
    Done,
    /// The instruction is executed again.
    Again,
    /// An exception with this ESR_EL1.
    Exception(u64),
}

/// A VM that has RAM and no devices.
pub(super) fn vm() -> Vm<'static> {
    vm_on(&[0])
}

/// A VM that has RAM, no devices, and a vCPU on each of `cores`.
fn vm_on(cores: &[CoreNumber]) -> Vm<'static> {
    vm_with(GicVersion::V3, cores)
}

fn vm_with(gic: GicVersion, cores: &[CoreNumber]) -> Vm<'static> {
    let mut memory = GuestMemory::new();
    assert!(memory.add(layout::RAM, ram(0x9_8000_0000, RAM_SIZE)).is_ok());
    let limits = Limits { ipa_bits: 40, gic_system_registers: true };
    let clock = Pl031::new(EPOCH, Ticks(0), Frequency::new(HERTZ as u32).unwrap());
    let log_limit = RateLimit::new(WARNINGS, Ticks(10 * HERTZ));
    let gic = Vgic::with_version(gic, cores.len());
    Vm::new("test", memory, limits, cores, gic, clock, log_limit)
}

/// Gives `vm` a block device; its slot, if there was one.
pub(super) fn plug(vm: &mut Vm<'static>, disk: Box<dyn BlockBackend<'static>>) -> Option<usize> {
    let block = Box::leak(Box::new(Block::new(Box::leak(disk))));
    vm.plug(MmioTransport::new(block, vm.memory.clone()))
}

/// A VM with one vCPU on a core.
pub(super) struct Machine {
    pub(super) vm: &'static Vm<'static>,
    pub(super) vcpu: Vcpu<'static>,
    pub(super) host: FakeHost,
}

impl Machine {
    /// A machine with a block device for each of `disks`.
    pub(super) fn new(disks: Vec<Box<dyn BlockBackend<'static>>>) -> Self {
        let mut vm = vm();
        for disk in disks {
            plug(&mut vm, disk).unwrap();
        }
        Self::of(vm)
    }

    /// A machine without devices, with a vCPU on each of `cores`. The boot vCPU is on.
    pub(super) fn with_cores(cores: &[CoreNumber]) -> Self {
        Self::of(vm_on(cores))
    }

    /// A machine without devices, with two vCPUs and a GICv2.
    pub(super) fn with_gicv2() -> Self {
        Self::of(vm_with(GicVersion::V2, &[0, 1]))
    }

    /// The machine `vm`, its boot vCPU on.
    pub(super) fn of(vm: Vm<'static>) -> Self {
        let vm = Box::leak(Box::new(vm));
        let start = Start { entry: layout::RAM, context: 0 };
        vm.vcpus.turn_on(VcpuIndex::BOOT, start).unwrap();
        vm.vcpus.take_start(VcpuIndex::BOOT).unwrap();
        let mut vcpu = Vcpu::new(VcpuIndex::BOOT, vm, ExitCounts::default());
        vcpu.registers.pstate = Pstate::new(Pstate::EL1H);
        let mut machine = Self { vm, vcpu, host: FakeHost::new() };
        machine.enable_interrupts();
        machine.vcpu.registers.pc = PC;
        machine.vcpu.exits = ExitCounts::default();
        machine.host.nudged.clear();
        machine
    }

    /// A machine with a disk that a test finishes by hand.
    pub(super) fn with_held_disk() -> (Self, HeldDisk) {
        let disk = HeldDisk::default();
        (Self::new(vec![Box::new(disk.clone())]), disk)
    }

    /// As Linux does: every SPI of the first two words enabled, in Group 1, of one priority.
    pub(super) fn enable_interrupts(&mut self) {
        let gicd = layout::GICD.raw();
        self.set(gicd, 0b10);
        for word in 1..3 {
            self.set(gicd + 0x80 + 4 * word, 0xFFFF_FFFF);
            self.set(gicd + 0x100 + 4 * word, 0xFFFF_FFFF);
        }
        for spi in (32..96).step_by(4) {
            self.set(gicd + 0x400 + spi, 0xA0A0_A0A0);
        }
    }

    /// The vCPU leaves its core, and the machine is reset; whether it was at rest.
    pub(super) fn reset(&mut self) -> bool {
        self.vm.unload_interrupts(self.vcpu.index, &mut self.host);
        self.vm.reset(&mut self.host)
    }

    /// One exit with ESR_EL2 = `esr`.
    pub(super) fn exit(&mut self, esr: u64) -> Next {
        self.host.esr = esr;
        exit::synchronous(&mut self.vcpu, &mut self.host)
    }

    /// One exit with ESR_EL2 = `esr` of an access to `ipa`, by a guest that sees it at [`VA`].
    pub(super) fn access(&mut self, esr: u64, ipa: u64) -> Seen {
        self.host.far = VA + (ipa & 0xFFF);
        self.host.hpfar = ipa >> 12 << 4;
        let (pc, exceptions) = (self.vcpu.registers.pc, self.host.exceptions.len());
        assert_eq!(self.exit(esr), Next::Resume);
        match self.host.exceptions.get(exceptions) {
            Some(injection) => Seen::Exception(injection.esr),
            None if self.vcpu.registers.pc == pc => Seen::Again,
            None => {
                assert_eq!(self.vcpu.registers.pc, pc.wrapping_add(4));
                Seen::Done
            }
        }
    }

    /// The guest loads from `ipa`; `None` if that is an external abort.
    pub(super) fn load(&mut self, ipa: u64, width: Width) -> Option<u64> {
        self.vcpu.registers.set(x(7), 0xDEAD_DEAD_DEAD_DEAD);
        match self.access(load_esr(7, width), ipa) {
            Seen::Done => Some(self.vcpu.registers.get(x(7))),
            Seen::Exception(0x9600_0010) => None,
            other => panic!("{other:?}"),
        }
    }

    /// The guest stores to `ipa`.
    pub(super) fn store(&mut self, ipa: u64, width: Width, value: u64) -> Seen {
        self.vcpu.registers.set(x(8), value);
        self.access(store_esr(8, width), ipa)
    }

    /// Reads a 32-bit register.
    pub(super) fn get(&mut self, ipa: u64) -> u32 {
        self.load(ipa, Width::Word).unwrap() as u32
    }

    /// Writes a 32-bit register, at once.
    pub(super) fn set(&mut self, ipa: u64, value: u32) {
        assert_eq!(self.store(ipa, Width::Word, value.into()), Seen::Done);
    }

    /// The guest's call with `arguments` in x0 to x3; its result.
    pub(super) fn call(&mut self, esr: u64, arguments: [u64; 4]) -> (Next, u64) {
        for (number, argument) in (0..).zip(arguments) {
            self.vcpu.registers.set(x(number), argument);
        }
        let next = self.exit(esr);
        (next, self.vcpu.registers.get(x(0)))
    }

    /// Time passes up to `now`, and the core's timer fires if it is due; whether it did.
    pub(super) fn run_timer(&mut self, now: Ticks) -> bool {
        self.host.now = now;
        let due = self.host.wake.is_some_and(|wake| wake <= now);
        if due {
            self.host.wake = None;
            self.vm.on_timer(Some(self.vcpu.index), &mut self.host);
            self.vm.poll(Some(self.vcpu.index), &mut self.host);
        }
        due
    }

    /// Address of a register of a virtio slot.
    pub(super) fn virtio(slot: u64, offset: u64) -> u64 {
        layout::VIRTIO.raw() + slot * layout::VIRTIO_SIZE + offset
    }

    /// The guest's driver brings the device in `slot` up, its rings where `driver` has them.
    pub(super) fn bring_up(&mut self, slot: u64, driver: &crate::virtio::testing::Driver<'_>) {
        let accepted = Features::VERSION_1;
        let areas = &driver.areas;
        let words = |address: u64| [address as u32, (address >> 32) as u32];
        let [[d0, d1], [a0, a1], [u0, u1]] =
            [areas.descriptor, areas.driver, areas.device].map(words);
        for (offset, value) in [
            (0x70, 0),
            (0x70, 1),
            (0x70, 3),
            (0x24, 0),
            (0x20, accepted.page(0)),
            (0x24, 1),
            (0x20, accepted.page(1)),
            (0x70, 11),
            (0x30, 0),
            (0x38, driver.size.into()),
            (0x80, d0),
            (0x84, d1),
            (0x90, a0),
            (0x94, a1),
            (0xA0, u0),
            (0xA4, u1),
            (0x44, 1),
            (0x70, 15),
        ] {
            self.set(Self::virtio(slot, offset), value);
        }
        assert_eq!(self.get(Self::virtio(slot, 0x70)), 15);
    }
}

/// What a [`HeldDisk`] has.
#[derive(Default)]
pub(super) struct Held {
    /// Requests that were submitted and not finished.
    pub(super) waiting: VecDeque<Tag>,
    /// Requests that the next polls give back.
    pub(super) finished: VecDeque<Tag>,
    /// Polls by the device.
    pub(super) polls: usize,
    /// It has failed, and does not let go of its requests' memory.
    pub(super) stuck: bool,
    /// Sectors it has beyond those it began with.
    pub(super) grown: u64,
}

/// A disk that finishes requests when a test says so. They move no data.
#[derive(Clone, Default)]
pub(super) struct HeldDisk(Shared<Held>);

impl HeldDisk {
    pub(super) fn get(&self) -> RwLockWriteGuard<'_, Held> {
        self.0.borrow_mut()
    }

    /// Finishes the oldest request.
    pub(super) fn finish(&self) {
        let mut held = self.get();
        let tag = held.waiting.pop_front().unwrap();
        held.finished.push_back(tag);
    }
}

impl BlockBackend<'static> for HeldDisk {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            flush: true,
            max_segments: 8,
            depth: 8,
            ..BlockInfo::new(64 + self.get().grown)
        }
    }
    fn submit(&mut self, request: BlockRequest<'_, 'static>, _: Ticks) -> Result<(), SubmitError> {
        self.get().waiting.push_back(request.tag);
        Ok(())
    }
    fn kick(&mut self) {}
    fn poll(&mut self, _: Ticks) -> Option<(Tag, BlockStatus)> {
        let mut held = self.get();
        held.polls += 1;
        held.finished.pop_front().map(|tag| (tag, BlockStatus::Ok))
    }
    fn in_flight(&self) -> usize {
        let held = self.get();
        held.waiting.len() + held.finished.len()
    }
    fn dma_stopped(&self) -> bool {
        !self.get().stuck
    }
}

thread_local! {
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.level(), record.args());
        LOGGED.with_borrow_mut(|logged| logged.push(line));
    }
    fn flush(&self) {}
}

/// What `work` logs.
pub(super) fn logged(work: impl FnOnce()) -> Vec<String> {
    // The first test to come here sets it for all.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
    let before = LOGGED.with_borrow(Vec::len);
    work();
    LOGGED.with_borrow_mut(|logged| logged.split_off(before))
}
