//! Firmware calls: PSCI (Arm DEN 0022) and the SMC calling convention (Arm DEN 0028).

use crate::board::Board;
use crate::exception;
use crate::report::{Failed, Verdict, check, expect};
use core::arch::asm;

const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_ON_64: u32 = 0xc400_0003;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SMCCC_VERSION: u32 = 0x8000_0000;
/// A yielding call of no one's: nobody implements it, so it costs the least a call can.
pub(crate) const UNKNOWN_CALL: u32 = 0x4b00_0000;

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const DENIED: i64 = -3;
const ALREADY_ON: i64 = -4;

/// sparkler's own calls (docs/monitor.md).
const CALL_UID: u32 = 0x8600_ff01;
const MONITOR_COMMAND: u32 = 0xc600_0001;

/// Calls function `id` by HVC; x0 of the answer.
pub(crate) fn hvc(id: u32, arguments: [u64; 3]) -> i64 {
    let answer: i64;
    let [x1, x2, x3] = arguments;
    // SAFETY: the calls made here do not touch our memory; registers are as SMCCC leaves them.
    unsafe {
        asm!("hvc #0", inout("x0") u64::from(id) => answer, inout("x1") x1 => _, inout("x2") x2 => _,
            inout("x3") x3 => _, clobber_abi("C"), options(nostack));
    }
    answer
}

/// Gives sparkler's monitor a command; the length of its answer, or an error, and how it begins.
fn command(command: &[u8]) -> (i64, [u8; 4]) {
    let mut answer = [0u8; 1024];
    let result: i64;
    // SAFETY: the call reads the command and writes no more than the answer, which is identity-mapped.
    unsafe {
        asm!("hvc #0", inout("x0") u64::from(MONITOR_COMMAND) => result,
            inout("x1") command.as_ptr() => _, inout("x2") command.len() => _,
            inout("x3") answer.as_mut_ptr() => _, in("x4") answer.len(),
            clobber_abi("C"), options(nostack));
    }
    let [a, b, c, d, ..] = answer;
    (result, [a, b, c, d])
}

/// Calls function `id` by SMC; x0 of the answer.
fn smc(id: u32) -> i64 {
    let answer: i64;
    // SAFETY: as for `hvc`.
    unsafe {
        asm!("smc #0", inout("x0") u64::from(id) => answer, clobber_abi("C"), options(nostack));
    }
    answer
}

/// Powers the machine off.
pub(crate) fn system_off() -> ! {
    hvc(SYSTEM_OFF, [0; 3]);
    loop {
        // SAFETY: waits; nothing else is left to do.
        unsafe { asm!("wfe", options(nomem, nostack)) };
    }
}

/// Checks the calls that come back.
pub(crate) fn run(board: &Board) {
    check("psci: VERSION is at least 1.0", || {
        let version = hvc(PSCI_VERSION, [0; 3]) as u32;
        expect((0x1_0000..0x2_0000).contains(&version), "version", version)
    });
    check("psci: FEATURES knows what we need and nothing unknown", || {
        for id in [PSCI_VERSION, CPU_ON_64, SYSTEM_OFF, SYSTEM_RESET, PSCI_FEATURES] {
            expect(hvc(PSCI_FEATURES, [id.into(), 0, 0]) >= 0, "denies function", id)?;
        }
        same(hvc(PSCI_FEATURES, [0x8400_00ff, 0, 0]) as i32 as i64, NOT_SUPPORTED)
    });
    check("psci: CPU_ON of this core and of no core is refused", || {
        let me = crate::gic::affinity();
        same(hvc(CPU_ON_64, [me, 0x4020_0000, 0]) as i32 as i64, ALREADY_ON)?;
        same(hvc(CPU_ON_64, [0x00ff_ff07, 0x4020_0000, 0]) as i32 as i64, INVALID_PARAMETERS)
    });
    if !board.is_sparkler {
        return;
    }
    check("smccc: VERSION is at least 1.1", || {
        let version = hvc(SMCCC_VERSION, [0; 3]);
        expect((0x1_0001..0x2_0000).contains(&version), "version", version as u64)
    });
    check("smccc: an unknown HVC is NOT_SUPPORTED", || {
        same(hvc(UNKNOWN_CALL, [0; 3]), NOT_SUPPORTED)?;
        same(hvc(0xffff_ffff, [u64::MAX; 3]), NOT_SUPPORTED)
    });
    check("monitor: says that this is sparkler", || same(hvc(CALL_UID, [0; 3]), 0x2e6d_1c4f));
    if command(b"vms").0 >= 0 {
        check("monitor: an operator is told of the VMs", || {
            let (len, answer) = command(b"vms");
            expect(len > 100 && answer == *b"name", "answer", u32::from_le_bytes(answer))
        });
    } else {
        check("monitor: who is no operator is denied", || same(command(b"vms").0, DENIED));
    }
    check("smccc: SMC is answered here and never reaches firmware", || {
        let call = exception::guarded(|| smc(PSCI_VERSION));
        let version = call.map_err(|fault| Failed::seeing("SMC faulted, ESR", fault.esr))?;
        same(version, hvc(PSCI_VERSION, [0; 3]))?;
        same(smc(UNKNOWN_CALL), NOT_SUPPORTED)
    });
}

fn same(seen: i64, wanted: i64) -> Verdict {
    expect(seen == wanted, "answer", seen as u64)
}
