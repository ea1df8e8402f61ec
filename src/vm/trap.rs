//! Exits that take a closer look: system registers, and accesses without a syndrome.

use super::bus::Access;
use super::exit::{inject, perform};
use super::host::Host;
use super::machine::Vcpu;
use crate::cpu::abort::GuestException;
use crate::cpu::decode::{self, FaultingAccess};
use crate::cpu::syndrome::SystemRegisterAccess;
use crate::cpu::sysreg::{self, Outcome, SgiGroup};
use crate::cpu::{DataAbort, InstructionLength};
use crate::memory::Ipa;

/// A trapped MSR, MRS or system instruction.
pub(super) fn system_register<H: Host>(
    vcpu: &mut Vcpu<'_>,
    host: &mut H,
    access: SystemRegisterAccess,
    length: InstructionLength,
) {
    let what = if access.is_read() {
        sysreg::Access::Read
    } else {
        sysreg::Access::Write(vcpu.registers.get(access.register()))
    };
    match sysreg::access(access.system_register(), what, host, &vcpu.vm.limits) {
        Outcome::Value(value) => vcpu.registers.set(access.register(), value),
        Outcome::Ignored => {}
        Outcome::SendSgi(SgiGroup::One, value) => {
            let index = vcpu.index;
            vcpu.vm.interrupt(index, host, |gic, _| gic.send_sgi(index, value));
        }
        Outcome::Deactivate(value) => {
            let index = vcpu.index;
            vcpu.vm.interrupt(index, host, |gic, _| gic.deactivate(index, value));
        }
        // The guest has one group: the other two registers reach nobody.
        Outcome::SendSgi(SgiGroup::Zero | SgiGroup::OtherOne, _) => {}
        Outcome::Undefined => return inject(vcpu, host, GuestException::Undefined),
    }
    vcpu.registers.complete_instruction(length);
}

/// Where a permission fault was: HPFAR_EL2 does not say (Arm ARM D24.2), so the address is had anew
/// from the guest's tables. They may have changed since: it is an allegation as good as any other.
#[cold]
pub(super) fn forbidden_address<H: Host>(vcpu: &Vcpu<'_>, host: &H, far: u64) -> Option<Ipa> {
    host.translate(far, vcpu.registers.pstate.is_el0())
}

/// A load or store whose abort says nothing of it (ISV = 0): it is read from the guest's memory.
/// `false` if it is none that is emulated, or nobody answers; then the guest gets an abort.
#[cold]
pub(super) fn without_syndrome<H: Host>(
    vcpu: &mut Vcpu<'_>,
    host: &mut H,
    abort: DataAbort,
    ipa: Ipa,
    far: u64,
) -> bool {
    let (pc, pstate) = (vcpu.registers.pc, vcpu.registers.pstate);
    if pstate.is_aarch32() {
        return false;
    }
    let sp_el1 = pstate.uses_sp_el1();
    let word = host
        .translate(pc, pstate.is_el0())
        .and_then(|ipa| vcpu.vm.memory.slice(ipa, 4).ok())
        .and_then(|word| word.load_u32(0));
    let fault = FaultingAccess {
        address: far,
        ipa,
        write: abort.is_write(),
        stack_pointer: host.stack_pointer(sp_el1),
    };
    let transfer = word.and_then(|word| decode::decode(word, &fault, &vcpu.registers).ok());
    let Some(transfer) = transfer else { return false };
    let mut counted = None;
    for access in transfer.accesses() {
        let outcome = perform(vcpu, host, access);
        // A pair is one exit: what its first access counted stands.
        vcpu.exits = *counted.get_or_insert(vcpu.exits);
        match outcome {
            Access::Done => {}
            // Registers that ask for this are not written by pairs; once more does no harm.
            Access::Retry => return true,
            Access::Nobody => return false,
        }
    }
    if let Some(stack_pointer) = transfer.finish(&mut vcpu.registers) {
        host.set_stack_pointer(sp_el1, stack_pointer);
    }
    vcpu.registers.complete_instruction(InstructionLength::Four);
    true
}
