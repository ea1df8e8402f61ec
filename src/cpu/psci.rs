//! PSCI 1.1 (Arm DEN 0022) and SMCCC 1.1 (Arm DEN 0028), as a guest calls them by HVC or SMC.
//!
//! A call is decoded, judged, and either answered or turned into something for the caller to do.
//! Nothing is ever passed on to the board's firmware.

#[cfg(test)]
mod tests;

use crate::memory::Ipa;

/// Which CPU: the affinity fields of an MPIDR, where MPIDR has them (bits 39:32 and 23:0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity(u64);

impl Affinity {
    /// Bits that are affinity fields.
    const FIELDS: u64 = 0xFF_00FF_FFFF;

    /// The affinity in an MPIDR; its other bits are ignored.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self(mpidr & Self::FIELDS)
    }

    /// The affinity in a call's argument, `None` if bits outside the fields are set.
    const fn from_argument(argument: u64) -> Option<Self> {
        if argument & !Self::FIELDS == 0 { Some(Self(argument)) } else { None }
    }

    /// The fields in MPIDR's places.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// What a CPU of the guest is doing: the values of AFFINITY_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum CpuState {
    /// Running or in standby.
    On = 0,
    /// Off.
    Off = 1,
    /// CPU_ON was accepted, it does not run yet.
    OnPending = 2,
}

/// The guest's CPUs, as PSCI must know them.
pub trait CpuTable {
    /// What a CPU is doing, `None` if the guest has no such CPU.
    fn state(&self, cpu: Affinity) -> Option<CpuState>;
    /// Whether a CPU can start at `entry`: whether the guest has RAM there.
    fn is_entry_point(&self, entry: Ipa) -> bool;
}

/// What the caller is left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Put this into x0 and go on. x1 to x17 keep their values (SMCCC 1.1).
    Return(u64),
    /// Wait for an interrupt for this vCPU, masked or not, then put [`SUCCESS`] into x0 and go on.
    Suspend,
    /// Stop this vCPU for good. If it was the last one on, the guest can never run again.
    CpuOff,
    /// Start an off vCPU at `entry` in EL1h, MMU and caches off, everything masked, `context` in x0;
    /// then put [`SUCCESS`] into the caller's x0. The table has said that it is off.
    CpuOn {
        /// Which one.
        cpu: Affinity,
        /// Where it starts.
        entry: Ipa,
        /// Its x0.
        context: u64,
    },
    /// Stop the whole guest.
    SystemOff,
    /// Restart the whole guest.
    SystemReset,
}

/// The result of a call that did what was asked.
pub const SUCCESS: u64 = 0;

/// Errors of PSCI and SMCCC; the first is -1 in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i8)]
pub enum CallError {
    /// No such function here.
    NotSupported = -1,
    /// An argument is out of range, or names something that is not there.
    InvalidParameters = -2,
    /// The CPU runs already.
    AlreadyOn = -4,
    /// The CPU is about to run.
    OnPending = -5,
    /// The entry point is no RAM of the guest's.
    InvalidAddress = -9,
}

impl CallError {
    /// The value for x0: the sign reaches through all 64 bits, so that both widths read it.
    pub const fn value(self) -> u64 {
        self as i8 as i64 as u64
    }
}

/// A call's function, as far as we have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Function {
    SmcccVersion,
    SmcccArchFeatures,
    PsciVersion,
    PsciFeatures,
    CpuSuspend,
    CpuOff,
    CpuOn,
    AffinityInfo,
    MigrateInfoType,
    SystemOff,
    SystemReset,
    SystemReset2,
}

/// Bit of a function identifier: SMC64 convention, arguments are 64 bits wide.
const SMC64: u32 = 1 << 30;
/// SMCCC 1.1: major version above bit 16.
const SMCCC_VERSION_1_1: u64 = 0x1_0001;
/// PSCI 1.1: major version above bit 16.
const PSCI_VERSION_1_1: u64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: no Trusted OS, or one that needs no migration.
const MIGRATION_NOT_REQUIRED: u64 = 2;
/// SYSTEM_RESET2: the architectural warm reset.
const SYSTEM_WARM_RESET: u64 = 0;
/// Original power_state format: all bits but power level, state type and state ID are reserved.
const POWER_STATE_RESERVED: u64 = 0xFCFE_0000;
/// Original power_state format: power level.
const POWER_LEVEL: u64 = 0x0300_0000;

impl Function {
    /// The function a function identifier names, in the width it is defined in.
    const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0x8000_0000 => Self::SmcccVersion,
            0x8000_0001 => Self::SmcccArchFeatures,
            0x8400_0000 => Self::PsciVersion,
            0x8400_0001 | 0xC400_0001 => Self::CpuSuspend,
            0x8400_0002 => Self::CpuOff,
            0x8400_0003 | 0xC400_0003 => Self::CpuOn,
            0x8400_0004 | 0xC400_0004 => Self::AffinityInfo,
            0x8400_0006 => Self::MigrateInfoType,
            0x8400_0008 => Self::SystemOff,
            0x8400_0009 => Self::SystemReset,
            0x8400_000A => Self::PsciFeatures,
            0x8400_0012 | 0xC400_0012 => Self::SystemReset2,
            _ => return None,
        })
    }
}

/// A call with its arguments in the width of its convention.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    function: Option<Function>,
    arguments: [u64; 3],
}

impl Call {
    /// Decodes a call from x0 to x3, made with an immediate of zero. SMCCC reserves other immediates;
    /// an HVC or SMC with one is no call, and [`CallError::NotSupported`] whatever it asks.
    #[inline(always)]
    pub const fn decode([x0, x1, x2, x3]: [u64; 4]) -> Self {
        let id = x0 as u32;
        let mask = if id & SMC64 != 0 { u64::MAX } else { 0xFFFF_FFFF };
        Self { function: Function::from_id(id), arguments: [x1 & mask, x2 & mask, x3 & mask] }
    }

    /// Whether it is a function that is here. Of others, [`Self::handle`] says that they are not.
    #[inline]
    pub const fn is_known(&self) -> bool {
        self.function.is_some()
    }

    /// Judges the call.
    pub fn handle(&self, cpus: &impl CpuTable) -> Outcome {
        match self.judge(cpus) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Return(error.value()),
        }
    }

    fn judge(&self, cpus: &impl CpuTable) -> Result<Outcome, CallError> {
        let [first, second, third] = self.arguments;
        match self.function.ok_or(CallError::NotSupported)? {
            Function::SmcccVersion => Ok(Outcome::Return(SMCCC_VERSION_1_1)),
            Function::SmcccArchFeatures => arch_features(first as u32),
            Function::PsciVersion => Ok(Outcome::Return(PSCI_VERSION_1_1)),
            Function::PsciFeatures => psci_features(first as u32),
            Function::CpuSuspend => suspend(first),
            Function::CpuOff => Ok(Outcome::CpuOff),
            Function::CpuOn => cpu_on(first, second, third, cpus),
            Function::AffinityInfo => affinity_info(first, second, cpus),
            Function::MigrateInfoType => Ok(Outcome::Return(MIGRATION_NOT_REQUIRED)),
            Function::SystemOff => Ok(Outcome::SystemOff),
            Function::SystemReset => Ok(Outcome::SystemReset),
            Function::SystemReset2 if first == SYSTEM_WARM_RESET => Ok(Outcome::SystemReset),
            Function::SystemReset2 => Err(CallError::InvalidParameters),
        }
    }
}

/// SMCCC_ARCH_FEATURES: of the architecture service only the two calls themselves are there. The
/// workaround calls are not, so a guest does not believe a mitigation is in place that is not.
const fn arch_features(id: u32) -> Result<Outcome, CallError> {
    match Function::from_id(id) {
        Some(Function::SmcccVersion | Function::SmcccArchFeatures) => Ok(Outcome::Return(SUCCESS)),
        _ => Err(CallError::NotSupported),
    }
}

/// PSCI_FEATURES: every PSCI function we have, and SMCCC_VERSION, by which SMCCC is found. No
/// feature flags: CPU_SUSPEND has the original power_state format and no OS-initiated mode.
const fn psci_features(id: u32) -> Result<Outcome, CallError> {
    match Function::from_id(id) {
        None | Some(Function::SmcccArchFeatures) => Err(CallError::NotSupported),
        Some(_) => Ok(Outcome::Return(SUCCESS)),
    }
}

/// CPU_SUSPEND. A power-down request is taken as standby, which the specification allows:
/// the call then returns, and the entry point is not used.
const fn suspend(power_state: u64) -> Result<Outcome, CallError> {
    let power_state = power_state & 0xFFFF_FFFF;
    // There is one power level, the CPU's own.
    if power_state & (POWER_STATE_RESERVED | POWER_LEVEL) != 0 {
        return Err(CallError::InvalidParameters);
    }
    Ok(Outcome::Suspend)
}

fn cpu_on(
    target: u64,
    entry: u64,
    context: u64,
    cpus: &impl CpuTable,
) -> Result<Outcome, CallError> {
    let cpu = Affinity::from_argument(target).ok_or(CallError::InvalidParameters)?;
    match cpus.state(cpu).ok_or(CallError::InvalidParameters)? {
        CpuState::On => Err(CallError::AlreadyOn),
        CpuState::OnPending => Err(CallError::OnPending),
        CpuState::Off => {
            let entry = Ipa::new(entry);
            // A64 instructions are aligned; a CPU cannot start elsewhere.
            if !entry.is_aligned(4) || !cpus.is_entry_point(entry) {
                return Err(CallError::InvalidAddress);
            }
            Ok(Outcome::CpuOn { cpu, entry, context })
        }
    }
}

fn affinity_info(target: u64, level: u64, cpus: &impl CpuTable) -> Result<Outcome, CallError> {
    let cpu = Affinity::from_argument(target).ok_or(CallError::InvalidParameters)?;
    // Levels above the CPU's own are optional since PSCI 1.0.
    if level != 0 {
        return Err(CallError::InvalidParameters);
    }
    let state = cpus.state(cpu).ok_or(CallError::InvalidParameters)?;
    Ok(Outcome::Return(state as u64))
}
