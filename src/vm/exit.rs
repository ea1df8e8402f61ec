//! A guest's exits, from syndrome to resumption. Read this file, [`super::bus`] and [`super::trap`],
//! and you have read the exit path.

#[cfg(test)]
mod tests;

use super::bus::Access;
use super::host::Host;
use super::machine::{Vcpu, Vm};
use super::trap;
use super::vcpus::{Cpus, Start};
use crate::cpu::abort::{ExceptionSource, GuestException};
use crate::cpu::psci::{self, Affinity, Call, Outcome};
use crate::cpu::syndrome::fault_ipa;
use crate::cpu::{DataAbort, InstructionLength, MmioAccess, MmioKind, Register, Syndrome};
use crate::monitor::hypercall;

/// What becomes of the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Resume,
    /// It waits for an interrupt.
    Wait,
    /// It has turned itself off.
    Off,
    /// Its machine is turned off.
    PowerOff,
    /// Its machine starts again.
    Reset,
    /// Its machine cannot go on; the reason. Behind a second reference, so that the answer to every
    /// exit is returned in registers.
    Stop(&'static &'static str),
}

/// Serves a synchronous exit.
#[inline]
pub fn synchronous<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H) -> Next {
    let esr = host.syndrome();
    let length = InstructionLength::from_esr(esr);
    let syndrome = Syndrome::decode(esr);
    let next = match syndrome {
        Syndrome::DataAbort(abort) => {
            data_abort(vcpu, host, abort, length);
            Next::Resume
        }
        Syndrome::Hvc { immediate } => call(vcpu, host, immediate),
        Syndrome::Smc { immediate } => {
            vcpu.registers.complete_instruction(length);
            call(vcpu, host, immediate)
        }
        Syndrome::SystemRegister(access) => {
            vcpu.exits.system_registers += 1;
            trap::system_register(vcpu, host, access, length);
            Next::Resume
        }
        Syndrome::WaitFor(_) => {
            // Not trapped while a vCPU has its core to itself; if it is, going on is allowed.
            vcpu.exits.waits += 1;
            vcpu.registers.complete_instruction(length);
            if host.is_shared() { Next::Wait } else { Next::Resume }
        }
        Syndrome::InstructionAbort(abort) => {
            vcpu.exits.faults += 1;
            let address = abort.far_is_valid().then(|| host.fault_address());
            inject(vcpu, host, GuestException::InstructionAbort { address });
            Next::Resume
        }
        Syndrome::SError => Next::Stop(&"an SError that is not the guest's to take"),
        _ => {
            vcpu.exits.faults += 1;
            inject(vcpu, host, GuestException::Undefined);
            Next::Resume
        }
    };
    if vcpu.vm.has_work_in_flight() {
        vcpu.vm.poll(Some(vcpu.index), host);
    }
    next
}

/// HVC and SMC alike: PSCI, SMCCC and the monitor's calls; nothing reaches the firmware.
///
/// SMCCC reserves immediates other than zero (DEN 0028, "SMC and HVC immediate value"), those of HVC
/// for hypervisors' own use, of which we make none. They are answered as an unknown function is, and
/// not with an undefined instruction: a guest that looks for the hypervisor it runs on must be able
/// to ask.
#[inline(always)]
fn call<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H, immediate: u16) -> Next {
    vcpu.exits.calls += 1;
    let arguments = vcpu.registers.arguments();
    let call = Call::decode(arguments);
    if immediate == 0 {
        if call.is_known() {
            return known_call(vcpu, host, call);
        }
        if hypercall::is_for_us(arguments) {
            return monitor(vcpu, host);
        }
    }
    vcpu.registers.set_result(psci::CallError::NotSupported.value());
    Next::Resume
}

/// A call of PSCI or SMCCC that is here.
#[inline(never)]
fn known_call<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H, call: Call) -> Next {
    let vm = vcpu.vm;
    let cpus = Cpus { vcpus: &vm.vcpus, memory: &vm.memory };
    let result = match call.handle(&cpus) {
        Outcome::Return(value) => value,
        Outcome::Suspend => {
            vcpu.registers.set_result(psci::SUCCESS);
            return Next::Wait;
        }
        Outcome::SystemOff => return Next::PowerOff,
        Outcome::SystemReset => return Next::Reset,
        Outcome::CpuOff => return Next::Off,
        Outcome::CpuOn { cpu, entry, context } => turn_on(vm, host, cpu, Start { entry, context }),
    };
    vcpu.registers.set_result(result);
    Next::Resume
}

/// A call of the vendor-specific hypervisor service: who are we, and the monitor's commands.
#[cold]
fn monitor<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H) -> Next {
    let vm = vcpu.vm;
    let [x0, x1, x2, x3] = vcpu.registers.arguments();
    let x4 = vcpu.registers.get(Register::from_bits(4));
    let Some(call) = hypercall::Call::decode([x0, x1, x2, x3, x4]) else { return Next::Resume };
    let outcome = if vm.operator {
        vm.publish_exits(vcpu.index, &vcpu.exits);
        host.with_operator(|operator| call.handle(&vm.memory, Some(operator)))
    } else {
        call.handle(&vm.memory, None)
    };
    let results: &[u64] = match &outcome {
        hypercall::Outcome::Four(results) => results,
        hypercall::Outcome::Two(results) => results,
        hypercall::Outcome::One(result) => core::slice::from_ref(result),
    };
    for (number, result) in (0..).zip(results) {
        vcpu.registers.set(Register::from_bits(number), *result);
    }
    Next::Resume
}

/// CPU_ON of a vCPU that was off a moment ago; the result of the call.
#[cold]
fn turn_on<H: Host>(vm: &Vm<'_>, host: &mut H, cpu: Affinity, start: Start) -> u64 {
    let Some(target) = vm.vcpus.by_affinity(cpu) else {
        return psci::CallError::InvalidParameters.value();
    };
    if let Err(error) = vm.vcpus.turn_on(target, start) {
        return error.value();
    }
    if let Some(core) = vm.vcpus.core_of(target) {
        host.nudge(core);
    }
    psci::SUCCESS
}

/// A load or store that stage 2 does not let pass: a device's register, or nothing.
#[inline]
fn data_abort<H: Host>(
    vcpu: &mut Vcpu<'_>,
    host: &mut H,
    abort: DataAbort,
    length: InstructionLength,
) {
    let far = host.fault_address();
    if abort.may_be_mmio() {
        let ipa = if abort.status().is_permission() {
            trap::forbidden_address(vcpu, host, far)
        } else {
            Some(fault_ipa(host.fault_page(), far))
        };
        if let Some(ipa) = ipa {
            if let Some(access) = MmioAccess::from_abort(abort, ipa, &vcpu.registers) {
                match perform(vcpu, host, access) {
                    Access::Done => return vcpu.registers.complete_instruction(length),
                    Access::Retry => return,
                    Access::Nobody => {}
                }
            } else if trap::without_syndrome(vcpu, host, abort, ipa, far) {
                return;
            }
        }
    } else if is_maintenance_of_nothing(abort) {
        return vcpu.registers.complete_instruction(length);
    }
    vcpu.exits.faults += 1;
    let address = abort.far_is_valid().then_some(far);
    inject(vcpu, host, GuestException::DataAbort { address, write: abort.is_write() });
}

/// Whether this was cache maintenance by address where the guest has no memory. Nothing there can be
/// in a cache, so that nothing is left to do: firmware cleans what it takes for flash or device
/// memory, and on hardware no abort is certain.
#[cold]
fn is_maintenance_of_nothing(abort: DataAbort) -> bool {
    abort.is_cache_maintenance() && !abort.is_stage1_walk() && abort.status().is_translation()
}

/// Carries out one access, a load's register included.
#[inline(always)]
pub(super) fn perform<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H, access: MmioAccess) -> Access {
    match access.kind {
        MmioKind::Load(target) => vcpu.load(access.ipa, target, host),
        MmioKind::Store { value } => vcpu.store(access.ipa, access.width, value, host),
    }
}

/// Has the guest take an exception.
pub(super) fn inject<H: Host>(vcpu: &mut Vcpu<'_>, host: &mut H, exception: GuestException) {
    let vectors = host.guest_vectors();
    let source = ExceptionSource {
        pc: vcpu.registers.pc,
        pstate: vcpu.registers.pstate,
        vector_base: vectors.vector_base,
        sctlr: vectors.sctlr,
    };
    let injection = source.inject(exception, vectors.features);
    vcpu.registers.pc = injection.pc;
    vcpu.registers.pstate = injection.pstate;
    host.set_exception(&injection);
}
