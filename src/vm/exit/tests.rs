//! What a guest sees of its exits.

use super::*;
use crate::cpu::{Pstate, Register, Width};
use crate::gic::VcpuIndex;
use crate::memory::Ipa;
use crate::virtio::testing::Driver;
use crate::vm::layout;
use crate::vm::testing::*;

const NOT_SUPPORTED: u64 = u64::MAX;
const PSCI_VERSION: u64 = 0x8400_0000;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xC400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const UNKNOWN_CALL: u64 = 0x8600_FF00;

/// "virt": what the first register of a virtio slot says.
const VIRTIO_MAGIC: u64 = 0x7472_6976;
/// "undefined instruction" in ESR_EL1.
const UNDEFINED: u64 = 0x0200_0000;
const EXTERNAL_ABORT_ON_READ: u64 = 0x9600_0010;
const EXTERNAL_ABORT_ON_WRITE: u64 = 0x9600_0050;

fn machine() -> Machine {
    Machine::with_held_disk().0
}

#[test]
fn a_load_gets_the_devices_value_and_the_guest_goes_on() {
    let mut machine = machine();
    assert_eq!(machine.load(Machine::virtio(0, 0), Width::Word), Some(VIRTIO_MAGIC));
    assert_eq!(machine.vcpu.registers.pc, PC + 4);
    assert_eq!((machine.vcpu.exits.virtio_reads, machine.vcpu.exits.total()), (1, 1));
}

#[test]
fn a_load_to_xzr_happens_and_changes_no_register() {
    let mut machine = machine();
    assert!(machine.vm.receive(b'x', Some(machine.vcpu.index), &mut machine.host));
    let before = machine.vcpu.registers.clone();
    assert_eq!(machine.access(load_esr(31, Width::Byte), layout::UART.raw()), Seen::Done);
    let after = machine.vcpu.registers.clone();
    assert!((0..31).all(|n| before.get(x(n)) == after.get(x(n))));
    // FR.RXFE: the byte is gone.
    assert_ne!(machine.get(layout::UART.raw() + 0x18) & 1 << 4, 0);
}

#[test]
fn a_store_of_xzr_stores_zero() {
    let mut machine = machine();
    let mask = layout::UART.raw() + 0x38;
    machine.set(mask, 0x50);
    assert_eq!(machine.access(store_esr(31, Width::Word), mask), Seen::Done);
    assert_eq!(machine.get(mask), 0);
}

#[test]
fn an_address_nobody_has_is_an_external_abort_at_the_instruction() {
    for (esr, expected) in [
        (load_esr(3, Width::Word), EXTERNAL_ABORT_ON_READ),
        (store_esr(3, Width::Word), EXTERNAL_ABORT_ON_WRITE),
    ] {
        for ipa in [
            0,
            0x0A00_0000,
            0x0B00_0ABC,
            Machine::virtio(1, 0),
            layout::GICD.raw() - 4,
            layout::GICR.raw() + layout::GICR_SIZE,
            layout::UART.raw() - 1,
            layout::RTC.raw() + 0x1000,
            layout::RAM.raw() + RAM_SIZE as u64,
            0xFFFF_FFFF_FFFC,
        ] {
            let mut machine = machine();
            let before = machine.vcpu.registers.clone();
            assert_eq!(machine.access(esr, ipa), Seen::Exception(expected), "{ipa:#x}");
            let injection = machine.host.exceptions[0];
            assert_eq!(injection.far, Some(VA + (ipa & 0xFFF)));
            assert_eq!((injection.elr, injection.spsr), (PC, Pstate::new(Pstate::EL1H)));
            assert_eq!(machine.vcpu.registers.pc, VECTORS + 0x200);
            assert_eq!(machine.vcpu.registers.get(x(3)), before.get(x(3)));
            assert_eq!((machine.vcpu.exits.faults, machine.vcpu.exits.total()), (1, 1));
        }
    }
}

#[test]
fn a_user_program_takes_its_abort_in_the_kernel() {
    let mut machine = machine();
    machine.vcpu.registers.pstate = Pstate::new(Pstate::EL0T);
    assert_eq!(machine.access(load_esr(0, Width::Byte), 0x1000), Seen::Exception(0x9200_0010));
    assert_eq!(machine.vcpu.registers.pc, VECTORS + 0x400);
    assert!(!machine.vcpu.registers.pstate.is_el0());
}

#[test]
fn a_fault_whose_address_is_not_known_is_never_an_access_to_a_device() {
    for (flag, expected) in [(NO_FAR, 0x9600_0450), (WALK, EXTERNAL_ABORT_ON_WRITE)] {
        let mut machine = machine();
        machine.vcpu.registers.set(x(8), b'!'.into());
        let esr = store_esr(8, Width::Byte) | flag;
        assert_eq!(machine.access(esr, layout::UART.raw()), Seen::Exception(expected));
        assert!(machine.host.transmitted.is_empty());
        let far = (flag != NO_FAR).then_some(VA);
        assert_eq!(machine.host.exceptions[0].far, far);
    }
}

#[test]
fn a_permission_fault_is_where_stage_1_says_not_where_hpfar_does() {
    let mut machine = machine();
    let esr = store_esr(8, Width::Byte) | PERMISSION;
    machine.vcpu.registers.set(x(8), b'!'.into());
    // HPFAR_EL2 names the UART by chance; the guest's tables have the distributor there.
    machine.host.stage1 = Some(layout::GICD.raw());
    assert_eq!(machine.access(esr, layout::UART.raw()), Seen::Done);
    assert!(machine.host.transmitted.is_empty());
    assert_eq!(*machine.host.translated.borrow(), [(VA, false)]);

    machine.host.stage1 = Some(layout::UART.raw());
    machine.vcpu.registers.pstate = Pstate::new(Pstate::EL0T);
    assert_eq!(machine.access(esr, 0), Seen::Done);
    assert_eq!(machine.host.transmitted, b"!");
    assert_eq!(machine.host.translated.borrow()[1], (VA, true));
}

#[test]
fn a_permission_fault_that_stage_1_does_not_know_of_is_an_external_abort() {
    let mut machine = machine();
    machine.host.stage1 = None;
    let esr = store_esr(8, Width::Byte) | PERMISSION;
    assert_eq!(machine.access(esr, layout::UART.raw()), Seen::Exception(EXTERNAL_ABORT_ON_WRITE));
    assert!(machine.host.transmitted.is_empty());
}

#[test]
fn cache_maintenance_where_there_is_no_memory_is_done_already() {
    let maintenance = DATA_ABORT | WRITE | CACHE_MAINTENANCE;
    for ipa in [0, layout::UART.raw(), layout::RAM.raw() + RAM_SIZE as u64] {
        let mut machine = machine();
        assert_eq!(machine.access(maintenance, ipa), Seen::Done);
        assert!(machine.host.transmitted.is_empty());
    }
    // An address translation instruction whose walk failed, and what is no missing page.
    for esr in [maintenance | WALK, maintenance ^ PERMISSION, maintenance & !0x3F | 0x10] {
        let seen = machine().access(esr, layout::UART.raw());
        assert_eq!(seen, Seen::Exception(EXTERNAL_ABORT_ON_WRITE));
    }
}

#[test]
fn other_faults_than_of_a_missing_or_forbidden_page_are_external_aborts() {
    for status in (0..64).filter(|status| !matches!(status, 0x04..=0x07 | 0x0C..=0x0F)) {
        let mut machine = machine();
        let esr = store_esr(8, Width::Byte) & !0x3F | status;
        let seen = machine.access(esr, layout::UART.raw());
        assert_eq!(seen, Seen::Exception(EXTERNAL_ABORT_ON_WRITE), "{status:#x}");
        assert!(machine.host.transmitted.is_empty());
    }
}

#[test]
fn a_fetch_from_where_there_is_no_ram_is_an_instruction_abort() {
    let mut machine = machine();
    let seen = machine.access(INSTRUCTION_ABORT, layout::UART.raw());
    assert_eq!(seen, Seen::Exception(0x8600_0010));
    assert_eq!(machine.host.exceptions[0].far, Some(VA));
    let seen = machine.access(INSTRUCTION_ABORT | NO_FAR, layout::UART.raw());
    assert_eq!(seen, Seen::Exception(0x8600_0410));
    assert_eq!(machine.host.exceptions[1].far, None);
}

#[test]
fn hvc_returns_after_itself_and_smc_is_stepped_over() {
    let mut machine = machine();
    let (next, version) = machine.call(HVC, [PSCI_VERSION, 0, 0, 0]);
    assert_eq!((next, version), (Next::Resume, 0x1_0001));
    assert_eq!(machine.vcpu.registers.pc, PC);
    let (next, version) = machine.call(SMC, [PSCI_VERSION, 0, 0, 0]);
    assert_eq!((next, version), (Next::Resume, 0x1_0001));
    assert_eq!(machine.vcpu.registers.pc, PC + 4);
    assert_eq!((machine.vcpu.exits.calls, machine.vcpu.exits.total()), (2, 2));
}

#[test]
fn a_machine_with_a_gicv2_has_no_redistributors() {
    let mut machine = Machine::with_gicv2();
    for frame in 0..4 {
        let ipa = layout::GICR.raw() + 0x1_0000 * frame;
        let load = machine.access(load_esr(3, Width::Word), ipa);
        assert_eq!(load, Seen::Exception(EXTERNAL_ABORT_ON_READ), "{ipa:#x}");
    }
    let ipa = layout::GICR.raw() + 0x1_0100;
    let store = machine.access(store_esr(3, Width::Word), ipa);
    assert_eq!(store, Seen::Exception(EXTERNAL_ABORT_ON_WRITE));
    assert_eq!(machine.access(load_esr(3, Width::Word), layout::GICD.raw()), Seen::Done);
}

#[test]
fn a_call_nobody_knows_is_not_supported_and_changes_x0_only() {
    for esr in [HVC, SMC] {
        for function in [UNKNOWN_CALL, 0xFFFF_FFFF, u64::MAX, 0x0100_0000] {
            let mut machine = machine();
            for n in 0..31 {
                machine.vcpu.registers.set(x(n), 0x1000 + u64::from(n));
            }
            let (next, result) = machine.call(esr, [function, 0x1001, 0x1002, 0x1003]);
            assert_eq!((next, result), (Next::Resume, NOT_SUPPORTED));
            for n in 1..31 {
                assert_eq!(machine.vcpu.registers.get(x(n)), 0x1000 + u64::from(n));
            }
        }
    }
}

#[test]
fn a_call_with_an_immediate_is_not_supported_whatever_it_asks() {
    for esr in [HVC, SMC] {
        for immediate in [1, 0x4A48, 0xFFFF] {
            let mut machine = machine();
            let answer = machine.call(esr | immediate, [SYSTEM_OFF, 0, 0, 0]);
            assert_eq!(answer, (Next::Resume, NOT_SUPPORTED));
            assert_eq!(machine.vcpu.registers.pc, if esr == HVC { PC } else { PC + 4 });
            assert!(machine.host.exceptions.is_empty());
        }
    }
}

#[test]
fn calls_that_end_the_guest_say_so() {
    let next = |function| machine().call(HVC, [function, 0, 0, 0]).0;
    assert_eq!(next(SYSTEM_OFF), Next::PowerOff);
    assert_eq!(next(SYSTEM_RESET), Next::Reset);
    assert_eq!(next(CPU_OFF), Next::Off);
}

#[test]
fn a_vcpu_is_turned_on_by_its_core_which_is_told() {
    let mut machine = Machine::with_cores(&[2, 5]);
    let entry = layout::RAM.raw() + 0x40;
    let (next, result) = machine.call(SMC, [CPU_ON, 1, entry, 77]);
    assert_eq!((next, result), (Next::Resume, 0));
    assert_eq!(machine.host.nudged, [5]);
    let (_, result) = machine.call(HVC, [CPU_ON, 1, entry, 78]);
    assert_eq!(result as i64, -5, "ON_PENDING");
    let start = machine.vm.vcpus.take_start(VcpuIndex::new(1).unwrap());
    assert_eq!(start, Some(Start { entry: Ipa::new(entry), context: 77 }));
    let (_, result) = machine.call(HVC, [CPU_ON, 1, entry, 78]);
    assert_eq!(result as i64, -4, "ALREADY_ON");
    let (_, result) = machine.call(HVC, [CPU_ON, 0, entry, 78]);
    assert_eq!(result as i64, -4, "ALREADY_ON");
    for (target, entry, error) in
        [(2, entry, -2), (0x101, entry, -2), (1 << 24, entry, -2), (1, 0, -4)]
    {
        let (_, result) = machine.call(HVC, [CPU_ON, target, entry, 0]);
        assert_eq!(result as i64, error, "target {target:#x} entry {entry:#x}");
    }
}

#[test]
fn a_vcpu_is_not_turned_on_outside_ram() {
    let mut machine = Machine::with_cores(&[0, 1]);
    for entry in [0, layout::UART.raw(), layout::RAM.raw() - 4, layout::RAM.raw() + 2, u64::MAX - 3]
    {
        let (_, result) = machine.call(HVC, [CPU_ON, 1, entry, 0]);
        assert_eq!(result as i64, -9, "INVALID_ADDRESS: {entry:#x}");
    }
    assert!(machine.host.nudged.is_empty());
}

#[test]
fn a_standby_call_waits() {
    assert_eq!(machine().call(HVC, [0xC400_0001, 0, 0, 0]), (Next::Wait, 0));
}

/// MONITOR_COMMAND, its command at the start of RAM, its answer a page further on.
fn command(machine: &mut Machine, text: &[u8]) -> u64 {
    let ram = layout::RAM.raw();
    machine.vm.memory.slice(layout::RAM, text.len()).unwrap().write_bytes(0, text).unwrap();
    machine.vcpu.registers.set(x(4), 64);
    machine.call(HVC, [0xC600_0001, ram, text.len() as u64, ram + 0x1000]).1
}

#[test]
fn an_operators_guest_gives_commands_to_the_monitor_and_others_do_not() {
    let mut vm = vm();
    vm.operator = true;
    let mut machine = Machine::of(vm);
    let before = machine.vcpu.registers.clone();
    assert_eq!(command(&mut machine, b"memory"), 64);
    let answer = Ipa::new(layout::RAM.raw() + 0x1000);
    let mut text = [0; 6];
    machine.vm.memory.slice(answer, 6).unwrap().read_bytes(0, &mut text).unwrap();
    assert_eq!(&text, b"total ");
    assert!((5..31).all(|n| before.get(x(n)) == machine.vcpu.registers.get(x(n))));
    assert_eq!(machine.vm.exits_of(machine.vcpu.index).unwrap().calls, 1);

    let mut machine = self::machine();
    assert_eq!(command(&mut machine, b"memory") as i64, -3);
    // What says "mine" by its immediate is none of these calls.
    machine.call(HVC | 1, [0x8600_FF01, 0, 0, 0]);
    assert_eq!(machine.vcpu.registers.get(x(0)), NOT_SUPPORTED);
}

#[test]
fn every_guest_is_told_which_hypervisor_it_runs_on() {
    let mut machine = machine();
    machine.call(SMC, [0x8600_FF01, 7, 7, 7]);
    let uid = crate::monitor::hypercall::UID.map(u64::from);
    assert_eq!(machine.vcpu.registers.arguments(), uid);
    machine.call(HVC, [0x8600_FF03, 7, 7, 7]);
    assert_eq!(machine.vcpu.registers.arguments(), [1, 0, 7, 7]);
}

#[test]
fn who_waits_gives_a_core_up_that_it_shares() {
    let mut machine = machine();
    machine.host.shared = true;
    assert_eq!(machine.exit(WFI), Next::Wait);
    assert_eq!(machine.vcpu.registers.pc, PC + 4);
}

#[test]
fn waiting_is_stepped_over() {
    let mut machine = machine();
    for esr in [WFI, WFI | 1] {
        assert_eq!(machine.access(esr, 0), Seen::Done);
    }
    assert_eq!((machine.vcpu.exits.waits, machine.vcpu.exits.total()), (2, 2));
}

#[test]
fn an_serror_stops_the_machine() {
    assert!(matches!(machine().exit(0x2F << 26 | 1 << 25), Next::Stop(_)));
}

#[test]
fn what_the_guest_does_not_have_is_undefined() {
    for class in [0x00, 0x03, 0x07, 0x09, 0x0C, 0x0E, 0x19, 0x1A, 0x1D, 0x3F] {
        let mut machine = machine();
        let seen = machine.access(class << 26 | 1 << 25, 0);
        assert_eq!(seen, Seen::Exception(UNDEFINED), "{class:#x}");
        assert_eq!(machine.host.exceptions[0].elr, PC);
    }
}

#[test]
fn an_id_register_is_read_and_the_guest_goes_on() {
    let mut machine = machine();
    // MRS x5, ID_AA64DFR0_EL1: op0 3, op1 0, CRn 0, CRm 5, op2 0.
    let esr = SYSTEM_REGISTER | 3 << 20 | 5 << 1 | 5 << 5 | 1;
    assert_eq!(machine.access(esr, 0), Seen::Done);
    assert_eq!(machine.vcpu.registers.get(x(5)), 0xF0_0010_1006);
    assert_eq!((machine.vcpu.exits.system_registers, machine.vcpu.exits.total()), (1, 1));
}

#[test]
fn a_write_to_a_read_only_system_register_is_undefined_and_counted_once() {
    let mut machine = machine();
    let esr = SYSTEM_REGISTER | 3 << 20 | 5 << 1 | 5 << 5;
    assert_eq!(machine.access(esr, 0), Seen::Exception(UNDEFINED));
    assert_eq!(machine.host.exceptions[0].elr, PC);
    assert_eq!(machine.vcpu.exits.total(), 1);
}

#[test]
fn a_software_generated_interrupt_to_itself_is_listed() {
    let mut machine = machine();
    let gicr = layout::GICR.raw() + 0x1_0000;
    machine.set(gicr + 0x80, 0xFFFF_FFFF);
    machine.set(gicr + 0x100, 0xFFFF_FFFF);
    // MSR ICC_SGI1R_EL1, x5: op0 3, op1 0, CRn 12, CRm 11, op2 5. INTID 3 to Aff0 0.
    machine.vcpu.registers.set(x(5), 3 << 24 | 1);
    let esr = SYSTEM_REGISTER | 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1 | 5 << 5;
    assert_eq!(machine.access(esr, 0), Seen::Done);
    assert_eq!(machine.host.lrs.pending(), [3]);
}

/// Puts an instruction where the guest is.
fn at_instruction(machine: &mut Machine, word: u32) {
    machine.vcpu.registers.pc = VA + 0x1000;
    let place = Ipa::new(layout::RAM.raw() + 0x1000);
    machine.vm.memory.slice(place, 4).unwrap().store_u32(0, word).unwrap();
}

/// STR W2, [X1], #4.
const STORE_POST_INDEX: u32 = 0xB800_4422;
/// STR W2, [SP], #4.
const STORE_POST_INDEX_SP: u32 = 0xB800_47E2;
/// LDP W2, W3, [X1].
const LOAD_PAIR: u32 = 0x2940_0C22;

#[test]
fn an_access_without_a_syndrome_is_read_from_the_guests_memory() {
    let mut machine = machine();
    at_instruction(&mut machine, STORE_POST_INDEX);
    machine.vcpu.registers.set(x(1), VA);
    machine.vcpu.registers.set(x(2), b'!'.into());
    assert_eq!(machine.access(DATA_ABORT | WRITE, layout::UART.raw()), Seen::Done);
    assert_eq!(machine.host.transmitted, b"!");
    assert_eq!(machine.vcpu.registers.get(x(1)), VA + 4);
    assert_eq!(*machine.host.translated.borrow(), [(VA + 0x1000, false)]);
    assert_eq!((machine.vcpu.exits.mmio, machine.vcpu.exits.total()), (1, 1));
}

#[test]
fn the_stack_pointer_as_a_base_is_that_of_the_guests_mode() {
    for (mode, el1) in [(Pstate::EL1H, true), (Pstate::EL1T, false), (Pstate::EL0T, false)] {
        let mut machine = machine();
        at_instruction(&mut machine, STORE_POST_INDEX_SP);
        machine.vcpu.registers.pstate = Pstate::new(mode);
        machine.host.stack_pointers = [0x1111_0000; 2];
        machine.host.stack_pointers[usize::from(el1)] = VA;
        machine.vcpu.registers.set(x(2), b'!'.into());
        assert_eq!(machine.access(DATA_ABORT | WRITE, layout::UART.raw()), Seen::Done);
        assert_eq!(machine.host.transmitted, b"!");
        let mut expected = [0x1111_0000; 2];
        expected[usize::from(el1)] = VA + 4;
        assert_eq!(machine.host.stack_pointers, expected);
        assert_eq!(machine.host.translated.borrow()[0].1, mode == Pstate::EL0T);
    }
}

#[test]
fn a_pair_is_two_accesses_and_one_exit() {
    let mut machine = machine();
    at_instruction(&mut machine, LOAD_PAIR);
    machine.vcpu.registers.set(x(1), VA);
    assert_eq!(machine.access(DATA_ABORT, Machine::virtio(0, 0)), Seen::Done);
    assert_eq!(machine.vcpu.registers.get(x(2)), VIRTIO_MAGIC);
    assert_eq!(machine.vcpu.registers.get(x(3)), 2);
    assert_eq!((machine.vcpu.exits.virtio_reads, machine.vcpu.exits.total()), (1, 1));
}

#[test]
fn an_instruction_that_is_not_emulated_or_not_there_is_an_external_abort() {
    // LDADD W2, W3, [X1]; LDR Q0, [X1]; a store where the abort was a load; an address that differs.
    for word in [0xB822_0023, 0x3DC0_0020, STORE_POST_INDEX, LOAD_PAIR | 1 << 15] {
        let mut machine = machine();
        at_instruction(&mut machine, word);
        machine.vcpu.registers.set(x(1), VA);
        let before = machine.vcpu.registers.clone();
        let seen = machine.access(DATA_ABORT, Machine::virtio(0, 0));
        assert_eq!(seen, Seen::Exception(EXTERNAL_ABORT_ON_READ), "{word:#x}");
        assert!((0..31).all(|n| before.get(x(n)) == machine.vcpu.registers.get(x(n))));
        assert_eq!(machine.host.exceptions[0].elr, VA + 0x1000);
    }
    for pc in [PC, VA + 0x1002, VA + RAM_SIZE as u64, VA - 4] {
        let mut machine = machine();
        at_instruction(&mut machine, LOAD_PAIR);
        machine.vcpu.registers.pc = pc;
        machine.vcpu.registers.set(x(1), VA);
        let seen = machine.access(DATA_ABORT, Machine::virtio(0, 0));
        assert_eq!(seen, Seen::Exception(EXTERNAL_ABORT_ON_READ), "{pc:#x}");
    }
}

#[test]
fn a_32_bit_program_without_a_syndrome_gets_an_abort() {
    let mut machine = machine();
    at_instruction(&mut machine, LOAD_PAIR);
    machine.vcpu.registers.pstate = Pstate::new(Pstate::AARCH32);
    machine.vcpu.registers.set(x(1), VA);
    let seen = machine.access(DATA_ABORT, Machine::virtio(0, 0));
    assert_eq!(seen, Seen::Exception(0x9200_0010));
    assert_eq!(machine.vcpu.registers.pc, VECTORS + 0x600);
}

/// A guest with a request in flight on a disk that does not answer.
fn with_request_in_flight() -> (Machine, HeldDisk) {
    let (mut machine, disk) = Machine::with_held_disk();
    let mut driver = Driver::new(machine.vm.memory.clone(), 8);
    machine.bring_up(0, &driver);
    let ram = layout::RAM.raw();
    driver.put(ram + 0x4000, &[0; 16]);
    let chain = [(ram + 0x4000, 16, false), (ram + 0x5000, 512, true), (ram + 0x6000, 1, true)];
    driver.chain(0, &chain);
    driver.offer(0);
    machine.set(Machine::virtio(0, 0x50), 0);
    assert_eq!(disk.get().waiting.len(), 1);
    (machine, disk)
}

#[test]
fn a_reset_with_a_request_in_flight_is_executed_again_until_the_disk_is_done() {
    let (mut machine, disk) = with_request_in_flight();
    let status = Machine::virtio(0, 0x70);
    machine.vcpu.registers.set(x(9), 0);
    for _ in 0..5 {
        let polls = disk.get().polls;
        assert_eq!(machine.access(store_esr(9, Width::Word), status), Seen::Again);
        assert!(disk.get().polls > polls, "each try looks at the disk");
        assert!(machine.vm.has_work_in_flight());
        assert_ne!(machine.get(status), 0);
    }
    disk.finish();
    // The exit before has already collected it, so that the store finds nothing to wait for.
    assert_ne!(machine.get(status), 1);
    assert_eq!(machine.access(store_esr(9, Width::Word), status), Seen::Done);
    assert_eq!(machine.get(status), 0);
    assert!(!machine.vm.has_work_in_flight());
    // A request that a reset has overtaken ends without an interrupt.
    assert_eq!(machine.host.lrs.pending(), []);
}

#[test]
fn a_pair_store_that_must_be_tried_again_writes_nothing_back() {
    let (mut machine, disk) = with_request_in_flight();
    // STP W2, W3, [X1], #8 to Status and the reserved register behind it.
    at_instruction(&mut machine, 0x2881_0C22);
    machine.vcpu.registers.set(x(1), VA + 0x70);
    for n in [2, 3] {
        machine.vcpu.registers.set(x(n), 0);
    }
    let pair = |machine: &mut Machine| machine.access(DATA_ABORT | WRITE, Machine::virtio(0, 0x70));
    assert_eq!(pair(&mut machine), Seen::Again);
    assert_eq!(machine.vcpu.registers.get(x(1)), VA + 0x70);
    disk.finish();
    assert_eq!(pair(&mut machine), Seen::Done);
    assert_eq!(machine.vcpu.registers.get(x(1)), VA + 0x78);
}

#[test]
fn every_exit_collects_what_the_disk_has_finished() {
    let (mut machine, disk) = with_request_in_flight();
    assert_eq!(machine.host.lrs.pending(), []);
    disk.finish();
    let (next, _) = machine.call(HVC, [UNKNOWN_CALL, 0, 0, 0]);
    assert_eq!(next, Next::Resume);
    assert!(!machine.vm.has_work_in_flight());
    assert_eq!(machine.host.lrs.pending(), [32 + layout::VIRTIO_SPI]);
}

#[test]
fn stores_to_stepped_registers_use_the_number_in_the_syndrome() {
    let mut machine = machine();
    for n in 0..31 {
        machine.vcpu.registers.set(Register::from_bits(n), u64::from(b'A') + u64::from(n));
    }
    for n in 0..31 {
        assert_eq!(machine.access(store_esr(n, Width::Byte), layout::UART.raw()), Seen::Done);
    }
    assert_eq!(machine.host.transmitted, (b'A'..b'A' + 31).collect::<Vec<_>>());
}

mod random;
