//! Guests of a few instructions, run through the real vectors and exit handling.
//!
//! A payload is an EL1 program in `tests/guests/`. [`Guest::run`] starts it on a machine of its own
//! - 4 MiB of RAM, a test device as virtio slot 0 - and returns when it powers off.
#![allow(dead_code, missing_docs, unreachable_pub)]

use core::arch::global_asm;

use sparkler::arch::cache;
use sparkler::arch::gic::PhysicalGic;
use sparkler::arch::guest::{Machine, Plan, Resident, Seat};
use sparkler::arch::stage2::{Registers, Tlbs, pa_range};
use sparkler::arch::timer::Counter;
use sparkler::backend::clock::Clock;
use sparkler::backend::clock::Ticks;
use sparkler::cpu::{GuestRegisters, Register, sysreg::Limits};
use sparkler::fdt::OnCrash;
use sparkler::fdt::guest::GUEST_FDT_LEN;
use sparkler::gic::{GicVersion, VcpuIndex, Vgic};
use sparkler::memory::stage2::{Attributes, Geometry, Stage2, Vmid};
use sparkler::memory::{FramePool, GuestMemory, Ipa, PAGE_SIZE, SharedSlice};
use sparkler::rate_limit::RateLimit;
use sparkler::virtio::{Context, DeviceType, MmioTransport, VirtioDevice};
use sparkler::vm::exit::Next;
use sparkler::vm::lifecycle::{Manager, Request};
use sparkler::vm::loader::Modules;
use sparkler::vm::pl031::Pl031;
use sparkler::vm::run_queue::Weight;
use sparkler::vm::{ExitCounts, Vm, layout};
use spin::{Mutex, Once};

use crate::el2_support::{gic, ram};

/// Size of a guest's RAM.
pub const RAM_SIZE: u64 = 0x40_0000;
/// Where the loader puts a raw binary.
pub const IMAGE: u64 = layout::RAM.raw() + 0x8_0000;
/// The addresses of `tests/guests/common.S`.
pub const RESULTS: u64 = 0x4010_0000;
const EXCEPTIONS: u64 = 0x4010_8000;
/// Where the image has its payload's offset.
const SELECTOR: usize = 16;
/// The guest's configuration space of the test device.
pub const DEVICE: u64 = layout::VIRTIO.raw() + 0x100;
/// Nothing is mapped here.
pub const HOLE: u64 = 0x1000_0000;

unsafe extern "C" {
    static guest_image: u8;
    static guest_image_end: u8;
}

/// The address of a label of the payloads, for [`Guest::run`] and [`guest_address`].
#[macro_export]
macro_rules! label {
    ($name:ident) => {{
        unsafe extern "C" {
            static $name: u8;
        }
        (&raw const $name).addr()
    }};
}

/// Where the guest has what the test's image has at `label`.
pub fn guest_address(label: usize) -> u64 {
    IMAGE + (label - (&raw const guest_image).addr()) as u64
}

/// A store to the test device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    pub offset: usize,
    pub bytes: usize,
    pub value: u64,
}

/// What the payload has done to the test device, and what is to be done for it.
pub struct TestDevice {
    pub stores: heapless::Vec<Store, 64>,
    pub on_store: fn(Store),
}

/// The test device as it is now.
pub static TEST_DEVICE: Mutex<TestDevice> =
    Mutex::new(TestDevice { stores: heapless::Vec::new(), on_store: |_| {} });

/// What the test device reads at `offset`: the offset, with the sign bit of every byte set.
pub fn device_byte(offset: usize) -> u8 {
    0x80 | offset as u8
}

/// What the test device reads at `offset`, eight bytes of it.
pub fn device_value(offset: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|at| device_byte(offset + at)))
}

/// Its front: the device model of slot 0.
struct Front;

impl<'m> VirtioDevice<'m> for Front {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = device_byte(offset + at);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8], _: &mut Context<'_, 'm>) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let store = Store { offset, bytes: data.len(), value: u64::from_le_bytes(value) };
        let mut device = TEST_DEVICE.lock();
        device.stores.push(store).expect("a payload with fewer stores");
        let on_store = device.on_store;
        drop(device);
        on_store(store);
    }

    fn queue_notified(&mut self, _: u16, _: &mut Context<'_, 'm>) {}
}

/// An exception the payload took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Offset of the vector.
    pub vector: u64,
    pub esr: u64,
    pub far: u64,
    pub elr: u64,
    pub spsr: u64,
}

/// The machine that payloads run on.
pub struct Guest {
    seat: *mut Seat,
    vm: &'static Vm<'static>,
    kernel: SharedSlice<'static>,
    memory: SharedSlice<'static>,
    pub gic: PhysicalGic,
    pub pool: FramePool<'static>,
    pub tables: Stage2<'static>,
}

// SAFETY: the tests run on one core.
unsafe impl Send for Guest {}

/// The one there is, locked for a test.
pub fn guest() -> spin::MutexGuard<'static, Guest> {
    static GUEST: Once<Mutex<Guest>> = Once::new();
    GUEST.call_once(|| Mutex::new(Guest::build())).lock()
}

impl Guest {
    #[inline(never)]
    fn build() -> Self {
        let mut pool = ram::pool(0x20_0000);
        let memory = ram::ram(RAM_SIZE, 0x20_0000);
        let tables = address_space(&mut pool, 1, memory);
        let kernel = kernel();
        let gic = gic::physical();
        let stage2 = Registers::new(&tables);
        let vm = machine("test", memory, tables.geometry(), &[0]);
        let mut seat = Seat::new(vm, gic);
        seat.intercept = Some(on_end);
        seat.enable_interrupts();
        assert!(seat.add(ram::place(Resident::new(vm, VcpuIndex::BOOT, stage2)), Weight::DEFAULT));
        assert!(seat.manage(managed(vm, kernel)));
        Self { seat: ram::place(seat), vm, kernel, memory, gic, pool, tables }
    }

    /// Starts the payload at `label` on a machine that has just been turned on; how it ended.
    pub fn run(&mut self, label: usize) -> Next {
        select(self.kernel, label);
        self.forget();
        let life = &self.vm.life;
        let _ = life.ask(if life.state().is_down() { Request::Start } else { Request::Reset });
        self.ended(run_seat)
    }

    /// Lets a payload that has powered off go on behind the call, everything as it was.
    pub fn resume(&mut self) -> Next {
        self.forget();
        // SAFETY: as in `run`. TPIDR_EL2 still has the seat.
        self.ended(|seat| unsafe { test_resume_guest(seat.cast()) })
    }

    fn forget(&mut self) {
        TEST_DEVICE.lock().stores.clear();
        self.seat().vcpu.exits = ExitCounts::default();
    }

    fn ended(&mut self, go: impl FnOnce(*mut Seat)) -> Next {
        go(self.seat);
        cache::clean_invalidate(self.memory);
        take_end()
    }

    /// The vCPU and its core.
    pub fn seat(&mut self) -> &mut Seat {
        // SAFETY: placed for ever, and reached through this guest only.
        unsafe { &mut *self.seat }
    }

    /// What the payload's exits were for.
    pub fn exits(&mut self) -> ExitCounts {
        self.seat().vcpu.exits
    }

    /// A general-purpose register as the payload left it.
    pub fn register(&mut self, number: u32) -> u64 {
        self.seat().vcpu.registers.get(Register::from_bits(number))
    }

    /// Its RAM.
    pub fn memory(&self) -> SharedSlice<'static> {
        self.memory
    }

    /// The doubleword that the guest has at `ipa`.
    pub fn word(&self, ipa: u64) -> u64 {
        self.memory.load_u64((ipa - layout::RAM.raw()) as usize).expect("guest RAM")
    }

    /// Result number `n` of the payload.
    pub fn result(&self, n: usize) -> u64 {
        self.word(RESULTS + 8 * n as u64)
    }

    /// The exceptions that the payload took.
    pub fn exceptions(&self) -> heapless::Vec<Taken, 64> {
        let at = |n: u64| self.word(EXCEPTIONS + 8 + 8 * n);
        (0..self.word(EXCEPTIONS))
            .map(|n| Taken {
                vector: at(5 * n),
                esr: at(5 * n + 1),
                far: at(5 * n + 2),
                elr: at(5 * n + 3),
                spsr: at(5 * n + 4),
            })
            .collect()
    }
}

/// The payloads, in RAM of their own.
pub fn kernel() -> SharedSlice<'static> {
    let image = (&raw const guest_image).addr();
    let len = (&raw const guest_image_end).addr() - image;
    // SAFETY: the payloads are constants of this program, between the two labels.
    let image = unsafe { core::slice::from_raw_parts(image as *const u8, len) };
    let kernel = ram::ram((len as u64).next_multiple_of(PAGE_SIZE), PAGE_SIZE);
    let kernel = kernel.subslice(0, len).expect("room");
    kernel.write_bytes(0, image).expect("room");
    kernel
}

/// Has `kernel` begin with the payload at `label`.
pub fn select(kernel: SharedSlice<'_>, label: usize) {
    let offset = (label - (&raw const guest_image).addr()) as u64;
    kernel.write_bytes(SELECTOR, &offset.to_le_bytes()).expect("room");
}

/// The tables of a machine with `memory`.
pub fn address_space(
    pool: &mut FramePool<'static>,
    vmid: u16,
    memory: SharedSlice<'static>,
) -> Stage2<'static> {
    let geometry = Geometry::widest(layout::IPA_BITS, pa_range()).expect("a geometry");
    let mut tables = Stage2::new(pool, geometry, Vmid::new(vmid)).expect("a root");
    tables
        .map(pool, &Tlbs, layout::RAM, memory.pa(), RAM_SIZE, Attributes::RAM)
        .expect("RAM is mapped");
    if let Some(frame) = gic::physical().guest_cpu_interface(gic::VIRTUAL_CPU) {
        tables
            .map(pool, &Tlbs, layout::GICC, frame.base, frame.len, Attributes::DEVICE)
            .expect("GICV is mapped");
    }
    tables
}

/// What starts `vm` from `kernel`.
pub fn managed(vm: &'static Vm<'static>, kernel: SharedSlice<'static>) -> &'static mut Machine {
    let modules = Modules { kernel, ramdisk: None, bootargs: "" };
    let (scratch, reverts) = (ram::place([0u8; GUEST_FDT_LEN]), Default::default());
    let plan = Plan { modules, scratch, reverts, on_end: || () };
    let manager = Manager::new(OnCrash::Stop, Counter.frequency());
    ram::place(Machine::new(vm, manager, plan))
}

/// Runs this core's seat until a guest of it has ended, by [`on_end`].
pub fn run_seat(seat: *mut Seat) {
    // SAFETY: the seat is a test's, and used by nobody while it runs.
    unsafe { test_run_guest(seat.cast()) }
}

/// How the guest has ended that made [`run_seat`] return.
pub fn take_end() -> Next {
    END.lock().take().expect("the guest has ended")
}

/// A machine with a vCPU on each of `cores`.
#[inline(never)]
pub fn machine(
    name: &'static str,
    memory: SharedSlice<'static>,
    geometry: Geometry,
    cores: &[u8],
) -> &'static Vm<'static> {
    let mut guest_memory = GuestMemory::new();
    assert!(guest_memory.add(layout::RAM, memory).is_ok());
    let limits = Limits {
        ipa_bits: geometry.ipa_bits(),
        gic_system_registers: gic::version() == GicVersion::V3,
    };
    let clock = Pl031::new(0, Counter.now(), Counter.frequency());
    let log_limit = RateLimit::new(8, Ticks(1));
    let vm = ram::place(Vm::new(
        name,
        guest_memory.clone(),
        limits,
        cores,
        Vgic::with_version(gic::version(), cores.len()),
        clock,
        log_limit,
    ));
    let front = ram::place(Front);
    assert_eq!(vm.plug(MmioTransport::new(front, guest_memory)), Some(0));
    vm
}

/// How the guest ended.
static END: Mutex<Option<Next>> = Mutex::new(None);

/// The guest has ended: back to the test that ran it.
pub fn on_end(next: Next) -> ! {
    *END.lock() = Some(next);
    // SAFETY: a guest runs only inside `test_run_guest` or `test_resume_guest`, whose frame is on
    // the tests' stack, untouched since.
    unsafe { test_return() }
}

extern "C" fn start(seat: &'static mut Seat) -> ! {
    seat.run()
}

unsafe extern "C" {
    fn test_run_guest(seat: *mut GuestRegisters);
    fn test_resume_guest(registers: *mut GuestRegisters);
    fn test_return() -> !;
}

// A guest's exits use the boot stack from its top; the tests have another (`el2_support::run`).
// So leaving a guest is a jump from the one to the other.
global_asm!(
    ".section .text.test_run_guest, \"ax\"",
    ".macro leave_test_stack",
    "stp x29, x30, [sp, #-96]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mov x2, sp",
    "ldr x1, =test_stack_pointer",
    "str x2, [x1]",
    ".endm",
    ".global test_run_guest, test_resume_guest, test_return",
    "test_run_guest:",
    "leave_test_stack",
    "ldr x1, =__stack_top",
    "mov sp, x1",
    "b {start}",
    "test_resume_guest:",
    "leave_test_stack",
    "b enter_guest",
    "test_return:",
    "ldr x1, =test_stack_pointer",
    "ldr x2, [x1]",
    "mov sp, x2",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #96",
    "ret",
    ".ltorg",
    ".section .bss.test_run_guest, \"aw\", @nobits",
    ".balign 8",
    "test_stack_pointer: .quad 0",
    start = sym start,
);

/// The guest address of a page of its RAM that no payload uses.
pub const SPARE_PAGE: Ipa = Ipa::new(layout::RAM.raw() + 0x30_0000);
