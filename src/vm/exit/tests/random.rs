//! Any exit at all.

use proptest::prelude::*;

use super::*;
use crate::backend::clock::Ticks;
use crate::backend::ram::RamDisk;
use crate::memory::testing::ram;

/// Where a guest that tries everything looks.
fn address() -> impl Strategy<Value = u64> {
    let base = prop::sample::select(vec![
        Machine::virtio(0, 0),
        Machine::virtio(1, 0),
        layout::GICD.raw(),
        layout::GICD.raw() + 0x6000,
        layout::GICD.raw() + layout::GICD_SIZE - 0x40,
        layout::GICR.raw(),
        layout::GICR.raw() + 0x1_0000,
        layout::GICR.raw() + layout::GICR_SIZE - 0x40,
        layout::UART.raw(),
        layout::RTC.raw(),
        layout::RAM.raw(),
    ]);
    let registers = (base.clone(), 0u64..0x200).prop_map(|(base, offset)| base + (offset & !3));
    let anything = (base, -0x10i64..0x1010).prop_map(|(base, by)| base.wrapping_add_signed(by));
    prop_oneof![8 => registers, 4 => anything, 1 => 0u64..1 << 48]
}

/// Values that drivers write, and others.
fn value() -> impl Strategy<Value = u64> {
    let ram = layout::RAM.raw();
    prop_oneof![
        0u64..20,
        Just(ram),
        (0u64..0x10).prop_map(move |page| ram + 0x1000 * page),
        any::<u64>(),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    /// A load or store with a syndrome.
    Access { ipa: u64, sas: u64, register: u32, write: bool, value: u64 },
    /// A data abort with any other fields.
    Abort { iss: u64, ipa: u64 },
    /// An instruction, read from memory.
    Instruction { word: u32, ipa: u64, write: bool, base: u32 },
    /// HVC or SMC.
    Call { esr: u64, arguments: [u64; 4] },
    /// A system register.
    SystemRegister { iss: u64, value: u64 },
    /// Any exception at all.
    Any { esr: u64 },
    /// Another mode.
    Mode(u64),
    /// The guest writes to its memory, rings included.
    Memory { at: u16, value: u64 },
    /// The driver of a disk brings it up as it should.
    BringUp(u64),
    /// It offers a request, its header and data at `ram + at`, and kicks.
    Request { slot: u64, head: u16, at: u16, len: u32 },
    /// The slow disk finishes what is oldest.
    Finish,
    /// Input arrives.
    Input(u8),
    /// Time passes, and the timer fires.
    Timer(u64),
    /// The machine is reset.
    Reset,
}

/// A load or store encoding, more often than not.
fn instruction() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        any::<u32>().prop_map(|word| word & 0xC7DF_FFFF | 0x3800_0000),
        any::<u32>().prop_map(|word| word & 0xC1FF_FFFF | 0x2800_0000),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let system_register = prop_oneof![
        any::<u64>(),
        (0u64..1 << 22).prop_map(|iss| iss & !0x003F_FC1E | 3 << 20 | iss & 0xE_001E),
        Just(3 << 20 | 5 << 17 | 12 << 10 | 11 << 1),
    ];
    prop_oneof![
        12 => (address(), 0u64..4, 0u32..32, any::<bool>(), value()).prop_map(
            |(ipa, sas, register, write, value)| Act::Access { ipa, sas, register, write, value }
        ),
        2 => (any::<u64>(), address()).prop_map(|(iss, ipa)| Act::Abort { iss, ipa }),
        3 => (instruction(), address(), any::<bool>(), 0u32..32).prop_map(
            |(word, ipa, write, base)| Act::Instruction { word, ipa, write, base }
        ),
        1 => (prop::sample::select(vec![HVC, SMC, HVC | 1, SMC | 7]), any::<u8>(), value())
            .prop_map(|(esr, function, value)| {
                Act::Call { esr, arguments: [0x8400_0000 | u64::from(function), value, value, 0] }
            }),
        2 => (system_register, value()).prop_map(|(iss, value)| Act::SystemRegister { iss, value }),
        1 => any::<u64>().prop_map(|esr| Act::Any { esr }),
        1 => prop::sample::select(vec![Pstate::EL1H, Pstate::EL1T, Pstate::EL0T, 0x10, 0x30])
            .prop_map(Act::Mode),
        3 => (any::<u16>(), value()).prop_map(|(at, value)| Act::Memory { at, value }),
        2 => (0u64..2).prop_map(Act::BringUp),
        4 => (0u64..2, 0u16..10, any::<u16>(), prop::sample::select(vec![0u32, 512, 4096, u32::MAX]))
            .prop_map(|(slot, head, at, len)| Act::Request { slot, head, at, len }),
        1 => Just(Act::Finish),
        1 => any::<u8>().prop_map(Act::Input),
        1 => (0u64..1 << 20).prop_map(Act::Timer),
        1 => Just(Act::Reset),
    ]
}

/// One exit. The guest goes on after the instruction, does it again, or is in its vector; only a
/// few exits may end it.
fn exit(machine: &mut Machine, esr: u64) {
    let before = machine.vcpu.registers.clone();
    let exceptions = machine.host.exceptions.len();
    let total = machine.vcpu.exits.total();
    let next = machine.exit(esr);
    let class = esr >> 26 & 0x3F;
    match next {
        Next::Resume => (),
        Next::PowerOff | Next::Reset | Next::Wait | Next::Off => {
            assert!(matches!(class, 0x16 | 0x17))
        }
        Next::Stop(_) => assert!(matches!(class, 0x16 | 0x17 | 0x2F)),
    }
    let length = if esr & 1 << 25 != 0 { 4 } else { 2 };
    let after = &machine.vcpu.registers;
    match machine.host.exceptions.len() - exceptions {
        0 => {
            let on =
                [before.pc.wrapping_add(length), before.pc.wrapping_add(4)].contains(&after.pc);
            let again = after.pc == before.pc;
            let hvc = class == 0x16 && again;
            let retried = class == 0x24 && again && machine.vm.has_work_in_flight();
            assert!(on || hvc || retried || next != Next::Resume, "{esr:#x}");
        }
        1 => {
            let injection = machine.host.exceptions.last().unwrap();
            assert_eq!((injection.elr, injection.spsr), (before.pc, before.pstate));
            assert_eq!(after.pc & !0x780, VECTORS);
            assert_eq!(after.pstate.bits() & Pstate::MODE, Pstate::EL1H);
            // An exception leaves the registers alone.
            assert!((0..31).all(|n| before.get(x(n)) == after.get(x(n))));
        }
        _ => panic!("two exceptions of one exit"),
    }
    assert!(machine.vcpu.exits.total() - total <= 1);
}

/// A machine with a fast disk and a slow one, and how their drivers see them.
struct World {
    machine: Machine,
    slow: HeldDisk,
    drivers: [Driver<'static>; 2],
}

impl World {
    fn new() -> Self {
        let fast = RamDisk::new(ram(0x5_0000_0000, 64 * 512), [7; 20]);
        let slow = HeldDisk::default();
        let machine = Machine::new(vec![Box::new(fast), Box::new(slow.clone())]);
        let driver = || Driver::new(machine.vm.memory.clone(), 8);
        let drivers = [driver(), driver()];
        Self { machine, slow, drivers }
    }

    /// The driver of `slot`, its rings empty.
    fn driver(&mut self, slot: u64) -> &mut Driver<'static> {
        let driver = &mut self.drivers[slot as usize];
        *driver = Driver::new(self.machine.vm.memory.clone(), 8);
        for area in
            [&mut driver.areas.descriptor, &mut driver.areas.driver, &mut driver.areas.device]
        {
            *area += 0x800 * slot;
        }
        driver
    }

    fn finish(&mut self) {
        if !self.slow.get().waiting.is_empty() {
            self.slow.finish();
        }
    }
}

fn perform(world: &mut World, act: &Act) {
    let machine = &mut world.machine;
    let at_ipa = |machine: &mut Machine, ipa: u64| {
        machine.host.far = VA + (ipa & 0xFFF);
        machine.host.hpfar = ipa >> 12 << 4;
        machine.host.stage1 = Some(ipa & !0xFFF);
    };
    match *act {
        Act::Access { ipa, sas, register, write, value } => {
            at_ipa(machine, ipa);
            machine.vcpu.registers.set(x(register), value);
            let write = if write { WRITE } else { 0 };
            exit(machine, DATA_ABORT | 1 << 24 | sas << 22 | u64::from(register) << 16 | write);
        }
        Act::Abort { iss, ipa } => {
            at_ipa(machine, ipa);
            exit(machine, 0x24 << 26 | 1 << 25 | iss & 0x1FF_FFFF);
        }
        Act::Instruction { word, ipa, write, base } => {
            at_ipa(machine, ipa);
            machine.host.stage1 = Some(layout::RAM.raw());
            at_instruction(machine, word);
            let far = machine.host.far;
            machine.vcpu.registers.set(x(base), far);
            machine.host.stack_pointers = [far; 2];
            exit(machine, DATA_ABORT | if write { WRITE } else { 0 });
        }
        Act::Call { esr, arguments } => {
            for (number, argument) in (0..).zip(arguments) {
                machine.vcpu.registers.set(x(number), argument);
            }
            exit(machine, esr);
        }
        Act::SystemRegister { iss, value } => {
            machine.vcpu.registers.set(x((iss >> 5) as u32), value);
            exit(machine, SYSTEM_REGISTER | iss & 0x3F_FFFF);
        }
        Act::Any { esr } => exit(machine, esr),
        Act::Mode(mode) => machine.vcpu.registers.pstate = Pstate::new(mode),
        Act::Memory { at, value } => {
            let at = layout::RAM.raw() + u64::from(at & !7);
            machine.vm.memory.slice(Ipa::new(at), 8).unwrap().store_u64(0, value).unwrap();
        }
        Act::BringUp(slot) => {
            machine.vcpu.registers.pstate = Pstate::new(Pstate::EL1H);
            // A device that waits for its disk is not to be had yet.
            if machine.get(Machine::virtio(slot, 0x70)) == 0 {
                world.driver(slot);
                world.machine.bring_up(slot, &world.drivers[slot as usize]);
            }
        }
        Act::Request { slot, head, at, len } => {
            let ram = layout::RAM.raw();
            let data = ram + u64::from(at);
            let driver = &mut world.drivers[slot as usize];
            driver
                .chain(head % 8, &[(data, 16, false), (data, len, true), (ram + 0x6000, 1, true)]);
            driver.offer(head);
            at_ipa(machine, Machine::virtio(slot, 0x50));
            exit(machine, store_esr(31, Width::Word));
        }
        Act::Finish => world.finish(),
        Act::Input(byte) => {
            let room = machine.vm.wants_input();
            assert_eq!(machine.vm.receive(byte, Some(machine.vcpu.index), &mut machine.host), room);
        }
        Act::Timer(by) => {
            let now = machine.host.now.after(Ticks(by));
            machine.run_timer(now);
        }
        Act::Reset => {
            for _ in 0..1000 {
                world.finish();
                let machine = &mut world.machine;
                if machine.reset() {
                    assert!(!machine.vm.has_work_in_flight());
                    assert_eq!(machine.host.lrs.pending(), []);
                    return;
                }
            }
            panic!("it is never reset");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_guest_that_does_anything_goes_on_or_gets_an_exception(
        acts in prop::collection::vec(act(), 1..120),
    ) {
        let mut world = World::new();
        let logged = logged(|| acts.iter().for_each(|act| perform(&mut world, act)));
        // One more warning for each ten seconds, and a line for those not shown.
        let seconds = world.machine.host.now.0 / HERTZ;
        prop_assert!(logged.len() as u64 <= 2 * (u64::from(WARNINGS) + seconds / 10 + 1));
    }
}

#[test]
fn every_width_at_every_offset_of_every_device_is_answered() {
    let disk = RamDisk::new(ram(0x5_0000_0000, 64 * 512), [7; 20]);
    let mut machine = Machine::new(vec![Box::new(disk)]);
    let regions = [
        (Machine::virtio(0, 0), layout::VIRTIO_SIZE),
        (layout::GICD.raw(), layout::GICD_SIZE),
        (layout::GICR.raw(), layout::GICR_SIZE),
        (layout::UART.raw(), 0x1000),
        (layout::RTC.raw(), 0x1000),
    ];
    let widths = [Width::Byte, Width::Half, Width::Word, Width::Double];
    for (base, size) in regions {
        for ipa in base..base + size {
            for width in widths {
                let value = machine.load(ipa, width).unwrap();
                assert_eq!(value, width.truncate(value), "{ipa:#x} {width:?}");
                for stored in [u64::MAX, 0] {
                    assert_eq!(machine.store(ipa, width, stored), Seen::Done, "{ipa:#x} {width:?}");
                }
            }
        }
        assert_eq!(machine.load(base.wrapping_sub(1), Width::Byte), None);
        assert_eq!(machine.load(base + size, Width::Byte), None);
    }
}

#[test]
fn an_access_over_the_end_of_a_slot_never_reaches_the_next() {
    let disks = [HeldDisk::default(), HeldDisk::default()];
    let mut machine = Machine::new(disks.map(|disk| Box::new(disk) as Box<_>).into());
    for (width, first) in [(Width::Half, 1), (Width::Word, 1), (Width::Double, 1)] {
        for into in first..width.bytes() {
            let ipa = Machine::virtio(1, 0) - into;
            assert_eq!(machine.load(ipa, width), Some(0), "not the next slot's magic number");
            assert_eq!(machine.store(ipa, width, u64::MAX), Seen::Done);
        }
        // Over the end of the last slot there is nobody, but the access begins at somebody.
        let ipa = Machine::virtio(2, 0) - 1;
        assert_eq!(machine.load(ipa, width), Some(0));
    }
}
