//! Exits of a guest with arbitrary syndromes, addresses and registers.

use std::mem::ManuallyDrop;

use sparkler::backend::clock::{Frequency, Ticks};
use sparkler::cpu::abort::{Injection, PstateFeatures};
use sparkler::cpu::sysreg::{IdRegisters, Limits, SystemRegister};
use sparkler::cpu::{Pstate, Register};
use sparkler::gic::{ListRegister, ListRegisters, Maintenance, State, VcpuIndex, Vgic};
use sparkler::memory::Ipa;
use sparkler::monitor::Operator;
use sparkler::rate_limit::RateLimit;
use sparkler::virtio::MmioTransport;
use sparkler::virtio::devices::block::Block;
use sparkler::vm::exit::{self, Next};
use sparkler::vm::host::{GuestVectors, Host};
use sparkler::vm::pl031::Pl031;
use sparkler::vm::{ExitCounts, Vcpu, Vm, layout};

use crate::disk::{Disk, Kind};
use crate::guest::{AREAS, Bus, RAM, address, memories};
use crate::honest;
use crate::input::Input;

/// Where the guest sees its IPA 0.
const VA: u64 = 0xFFFF_0000_0000_0000;
const VECTORS: u64 = 0xFFFF_8000_1000_0000;
/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 150;

/// A core that is not there.
struct Core {
    lrs: Lrs,
    now: Ticks,
    esr: u64,
    far: u64,
    hpfar: u64,
    sp: [u64; 2],
}

/// Its list registers, which only a guest's acknowledge and end of interrupt change.
struct Lrs([ListRegister; 4], u32);

impl ListRegisters for Lrs {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn read(&self, n: usize) -> ListRegister {
        self.0[n]
    }
    fn write(&mut self, n: usize, value: ListRegister) {
        for (other, lr) in self.0.iter().enumerate() {
            let same = !lr.is_invalid() && !value.is_invalid() && lr.vintid() == value.vintid();
            assert!(other == n || !same, "INTID {} twice", value.vintid());
        }
        self.0[n] = value;
    }
    fn empty(&self) -> u32 {
        (0..4).filter(|n| self.0[*n].is_invalid()).map(|n| 1 << n).sum()
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
    fn take_eoi_count(&mut self) -> u32 {
        std::mem::take(&mut self.1)
    }
    fn deactivate_physical(&mut self, _: u16) {}
}

impl IdRegisters for Core {
    fn read(&self, _: SystemRegister) -> u64 {
        0x1111_1111_1111_1111
    }
}

impl Host for Core {
    type ListRegisters = Lrs;

    fn list_registers(&mut self) -> &mut Lrs {
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
    fn translate(&self, address: u64, _: bool) -> Option<Ipa> {
        address.checked_sub(VA).map(Ipa::new)
    }
    fn stack_pointer(&self, el1: bool) -> u64 {
        self.sp[usize::from(el1)]
    }
    fn set_stack_pointer(&mut self, el1: bool, value: u64) {
        self.sp[usize::from(el1)] = value;
    }
    fn guest_vectors(&self) -> GuestVectors {
        let features = PstateFeatures::default();
        GuestVectors { vector_base: VECTORS, sctlr: 0, features }
    }
    fn set_exception(&mut self, _: &Injection) {}
    fn transmit(&mut self, _: usize, _: u8) {}
    fn with_operator<T>(&mut self, work: impl FnOnce(&mut dyn Operator) -> T) -> T {
        crate::monitor::with_operator(work)
    }
    fn input_wanted(&mut self) {}
    fn nudge(&mut self, _: u8) {}

    fn is_shared(&self) -> bool {
        false
    }

    fn keep_polling(&mut self) {}
    fn wake_at(&mut self, _: Ticks) {}
}

/// Exits of every class, with what the guest can do between them: memory, interrupts taken and
/// ended, machine resets.
pub fn guest_exits(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, disk) = memories();
    let kind = Kind::from_byte(input.u8());
    let (mut disk, watch) = Disk::new(kind, disk, &guest);
    watch.mood.set(u32::from(input.u8()));
    let mut block = Block::new(&mut disk);
    let limits = Limits { ipa_bits: 40, gic_system_registers: true };
    let clock = Pl031::new(1_700_000_000, Ticks(0), Frequency::new(1000).unwrap());
    let limit = RateLimit::new(10, Ticks(1000));
    // Holds nothing to be dropped; a vCPU borrows it for as long as the memory.
    let vm = Vm::new("fuzz", guest.memory.clone(), limits, &[0], Vgic::new(1), clock, limit);
    let mut vm = ManuallyDrop::new(vm);
    vm.operator = watch.mood.get() % 2 == 0;
    vm.plug(MmioTransport::new(&mut block, guest.memory.clone())).unwrap();
    let vm: &Vm<'_> = &vm;
    let mut vcpu = Vcpu::new(VcpuIndex::BOOT, vm, ExitCounts::default());
    vcpu.registers.pstate = Pstate::new(Pstate::EL1H);
    let mut core = Core {
        lrs: Lrs([ListRegister::EMPTY; 4], 0),
        now: Ticks(0),
        esr: 0,
        far: 0,
        hpfar: 0,
        sp: [0; 2],
    };

    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        match input.below(8) {
            0..=3 => {
                prepare(&mut vcpu, &mut core, input);
                if input.below(4) == 0 {
                    // The instruction, for an abort that does not tell.
                    let pc = RAM + 4 * u64::from(input.u8());
                    vcpu.registers.pc = VA + pc;
                    guest.put(pc, &input.u32().to_le_bytes());
                }
                if let Next::Reset = serve(&mut vcpu, &mut core) {
                    reset(vm, &mut core);
                }
            }
            4 => {
                let at = address(input);
                let len = 1 + input.below(16);
                guest.put(at, input.bytes(len));
            }
            5 => {
                core.now = core.now.after(Ticks(input.u16().into()));
                vm.on_timer(Some(vcpu.index), &mut core);
                vm.poll(Some(vcpu.index), &mut core);
            }
            6 => take_interrupt(vm, &mut core, input),
            _ => match input.below(4) {
                0 => reset(vm, &mut core),
                1 => {
                    vcpu.registers.pstate = Pstate::new(input.u64());
                    core.sp = [input.u64(), VA + 0x900_0000 + u64::from(input.u16())];
                }
                _ => {
                    let wanted = vm.wants_input();
                    assert_eq!(vm.receive(input.u8(), Some(vcpu.index), &mut core), wanted);
                }
            },
        }
    }
    let mut slot = vm.slot(0).unwrap().lock();
    honest::prove(&mut Bus::new(&mut slot), &guest, kind, &watch);
}

/// The syndrome of the next exit, and what goes with it.
fn prepare(vcpu: &mut Vcpu<'_>, core: &mut Core, input: &mut Input<'_>) {
    let value = match input.below(4) {
        0 => input.u64(),
        1 => AREAS.descriptor + u64::from(input.u8()) * 16,
        _ => input.u8().into(),
    };
    let register = input.below(32) as u32;
    vcpu.registers.set(Register::from_bits(register), value);
    let il = 1 << 25;
    core.esr = match input.below(8) {
        // A load or store with its syndrome.
        0..=2 => {
            let (size, write) = (input.u8(), input.u8());
            let size = if size < 0xC0 { 2 } else { u64::from(size & 3) };
            let write = u64::from(write & 1) << 6 | u64::from(write & 2) << 20;
            0x24 << 26 | il | 1 << 24 | size << 22 | u64::from(register) << 16 | write | 7
        }
        // And without.
        3 => 0x24 << 26 | il | u64::from(input.u8() & 1) << 6 | 7,
        // A call of PSCI or SMCCC.
        4 => {
            let function = match input.below(4) {
                0 => input.u32(),
                1 => 0x8000_0000 | u32::from(input.u16()),
                _ => 0x8400_0000 | u32::from(input.u8()) & 0x1F | u32::from(input.u8() & 1) << 30,
            };
            vcpu.registers.set(Register::from_bits(0), function.into());
            u64::from(0x16 + input.u8() % 2) << 26 | il
        }
        // A system register.
        5 => 0x18 << 26 | il | u64::from(input.u32() & 0x1FF_FFFF),
        6 => u64::from(input.u8() & 0x3F) << 26 | u64::from(input.u32() & 0x3FF_FFFF),
        _ => input.u64(),
    };
    let ipa = match input.below(8) {
        0 => input.u64() & 0xFF_FFFF_FFFF,
        1 => layout::GICD.raw() + u64::from(input.u16()),
        2 => layout::GICR.raw() + u64::from(input.u16()) * 4,
        3 => layout::UART.raw() + u64::from(input.u16() & 0xFFF),
        4 => layout::RTC.raw() + u64::from(input.u8()),
        5 => layout::VIRTIO.raw() + u64::from(input.u16()),
        _ => layout::VIRTIO.raw() + u64::from(input.u8()),
    };
    core.far = if input.u8() < 0xF0 { VA + ipa } else { input.u64() };
    core.hpfar = ipa >> 12 << 4;
}

/// One exit.
fn serve(vcpu: &mut Vcpu<'_>, core: &mut Core) -> Next {
    let (pc, exits) = (vcpu.registers.pc, vcpu.exits.total());
    let next = exit::synchronous(vcpu, core);
    assert!(vcpu.exits.total() - exits <= 1, "one exit counted twice: {:#x}", core.esr);
    let after = vcpu.registers.pc;
    let step = after.wrapping_sub(pc);
    let vector = after.wrapping_sub(VECTORS);
    assert!(
        matches!(step, 0 | 2 | 4) || vector < 0x800 && vector & 0x7F == 0,
        "goes on at {after:#x} after {pc:#x}"
    );
    assert!(!matches!(next, Next::Stop(reason) if reason.is_empty()));
    next
}

/// The machine is reset, and its device lets go.
fn reset(vm: &Vm<'_>, core: &mut Core) {
    vm.unload_interrupts(VcpuIndex::BOOT, core);
    for _ in 0..10_000 {
        if vm.reset(core) {
            assert!(!vm.has_work_in_flight());
            return;
        }
        core.now = core.now.after(Ticks(1));
        vm.poll(None, core);
    }
    panic!("a machine's reset never ends");
}

/// The guest's core acknowledges an interrupt, or ends one.
fn take_interrupt(vm: &Vm<'_>, core: &mut Core, input: &mut Input<'_>) {
    let at = input.below(4);
    let lr = core.lrs.0[at];
    core.lrs.0[at] = match lr.state() {
        State::Pending => ListRegister::from_bits(lr.bits() ^ 0b11 << 62),
        State::Active | State::PendingActive => ListRegister::from_bits(lr.bits() & !(1 << 63)),
        State::Invalid => lr,
    };
    if input.flag() {
        vm.interrupt(VcpuIndex::BOOT, core, |gic, _| {
            gic.on_maintenance(VcpuIndex::BOOT);
            sparkler::gic::VcpuSet::EMPTY
        });
    }
}
