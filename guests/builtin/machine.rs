//! Checks of memory, of faults, and of device accesses by unusual instructions.

use crate::board::{Board, Gic, Range};
use crate::exception::guarded;
use crate::gic::{PIDR2, PIDR2_V2};
use crate::mmio::*;
use crate::report::{Failed, Verdict, check, expect};
use crate::timer;

/// An address no machine map names: between the virtio slots of QEMU's `virt` and its platform bus.
const HOLE: usize = 0x0bad_0000;
/// "virt" as MagicValue has it.
const MAGIC: u32 = 0x7472_6976;

/// Runs them all. Interrupts are still masked.
pub(crate) fn run(board: &Board) {
    check("memory: what nobody wrote is zero", || zeroed(board));
    check("fault: a read of nothing is an external abort", || {
        abort(|| {
            read32(HOLE);
        })
    });
    check("fault: so is a write, a byte, a post-index read", || {
        abort(|| write32(HOLE, 1))?;
        abort(|| {
            read8(HOLE);
        })?;
        abort(|| {
            read32_post_index(HOLE);
        })
    });
    check("counter: runs, at the frequency it says", || {
        let from = timer::now();
        let grew = timer::wait(10, || timer::now() > from);
        expect(grew && timer::frequency() > 1_000_000, "CNTFRQ", timer::frequency())
    });
    if let Some(rtc) = board.rtc {
        check("rtc: is a PL031 and has a date", || {
            let id = read32(rtc + 0xfe0);
            expect(id == 0x31, "PeriphID0", id)?;
            let seconds = read32(rtc);
            // 2020-01-01; the board's clock or QEMU's -rtc says what it is.
            expect(seconds > 1_577_836_800, "seconds", seconds)
        });
    }
    if board.is_sparkler {
        check("registers: what the ID registers hide is undefined", hidden_registers);
        check("registers: no interrupt is acknowledged as an NMI", no_nmi);
    }
    check("mmio: odd widths and places are survived", || odd_widths(board));
    if let Some(slot) = board.slots.first() {
        let base = slot.registers.base;
        check("mmio: post-index, pre-index, pair and XZR accesses", || unusual(base, board));
        check("virtio: notifying a missing queue is survived", || {
            for queue in [7, 0xffff, u32::MAX] {
                write32(base + 0x50, queue);
            }
            expect(read32(base) == MAGIC, "MagicValue", read32(base))
        });
    }
}

/// Reads registers of features that sparkler does not offer, whatever the core has.
fn hidden_registers() -> Verdict {
    /// One read of the register, guarded.
    macro_rules! hidden {
        ($($name:literal = $register:literal,)*) => {$(
            let fault = guarded(|| {
                let value: u64;
                // SAFETY: reads of these registers have no effect.
                unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value,
                        options(nomem, nostack));
                }
                value
            });
            match fault {
                Err(fault) => expect(fault.esr >> 26 == 0, $name, fault.esr)?,
                Ok(value) => return Err(Failed::seeing($name, value)),
            }
        )*};
    }
    hidden! {
        "ERRIDR_EL1" = "S3_0_C5_C3_0",
        "AMCR_EL0" = "S3_3_C13_C2_0",
        "AMCNTENSET0_EL0" = "S3_3_C13_C2_5",
        "PMCR_EL0" = "S3_3_C9_C12_0",
        "PMCCNTR_EL0" = "S3_3_C9_C13_0",
        "PMSCR_EL1" = "S3_0_C9_C9_0",
        "PMBLIMITR_EL1" = "S3_0_C9_C10_0",
        "TRBLIMITR_EL1" = "S3_0_C9_C11_0",
        "TRFCR_EL1" = "S3_0_C1_C2_1",
        "LORC_EL1" = "S3_0_C10_C4_3",
        "MPAM1_EL1" = "S3_0_C10_C5_0",
        "SCXTNUM_EL1" = "S3_0_C13_C0_7",
        "TCR2_EL1" = "S3_0_C2_C0_3",
    }
    Ok(())
}

/// ICC_NMIAR1_EL1, which is not offered (ID_AA64PFR1_EL1.NMI). Nothing traps it alone: where the core has it, it says
/// that there is none.
fn no_nmi() -> Verdict {
    let read = guarded(|| {
        let intid: u64;
        // SAFETY: acknowledges an NMI, and none can be pending.
        unsafe {
            core::arch::asm!("mrs {}, S3_0_C12_C9_5", out(reg) intid, options(nomem, nostack));
        }
        intid
    });
    match read {
        Err(fault) => expect(fault.esr >> 26 == 0, "ESR", fault.esr),
        Ok(intid) => expect(intid == 1023, "INTID", intid),
    }
}

/// Looks at the last page, the middle and wherever the tree is not.
fn zeroed(board: &Board) -> Verdict {
    // Only the first 3 GiB of memory are mapped.
    let size = board.memory.size.min(3 << 30);
    for offset in [size - 4096, size / 2, size / 2 + (size / 4)] {
        let page = Range { base: (board.memory.base + offset) & !0xfff, size: 4096 };
        if page.base < board.fdt.base + board.fdt.size && board.fdt.base < page.base + page.size {
            continue;
        }
        for address in (page.base..page.base + page.size).step_by(8) {
            let value = read64(address);
            expect(value == 0, "in memory", value)?;
        }
    }
    Ok(())
}

fn abort(access: impl FnOnce()) -> Verdict {
    match guarded(access) {
        Ok(()) => Err(Failed::because("no exception")),
        Err(fault) if !fault.is_external_abort() => Err(Failed::seeing("ESR", fault.esr)),
        Err(fault) => expect(fault.far & !7 == HOLE as u64, "FAR", fault.far),
    }
}

/// Accesses that no driver makes: any answer or abort will do, so long as the machine goes on.
fn odd_widths(board: &Board) -> Verdict {
    let (second, third) = match board.gic {
        Gic::V2 { interface } => (interface, interface + 0x1000),
        Gic::V3 { redistributor } => (redistributor, redistributor + 0x1_0000),
    };
    let mut places = [board.gicd, second, third, board.uart + 0x18, 0];
    if let Some(slot) = board.slots.first() {
        places[4] = slot.registers.base;
    }
    for base in places.into_iter().filter(|&base| base != 0) {
        for offset in [0usize, 1, 2, 3, 5, 0x70, 0x101, 0x1fc] {
            // The console's own data register would print.
            let address = base + offset;
            let _ = guarded(|| read8(address));
            let _ = guarded(|| read16(address));
            let _ = guarded(|| read64(address));
            let _ = guarded(|| read8_signed(address));
        }
    }
    if board.is_sparkler
        && let Some(slot) = board.slots.first()
    {
        // Writes too, to registers that only a driver's 32 bits may change.
        let base = slot.registers.base;
        let _ = guarded(|| write8(base + 0x14, 1));
        let _ = guarded(|| write16(base + 0x24, 1));
        let _ = guarded(|| write64(base + 0x30, u64::MAX));
        // Past the registers there is only the device's configuration, if any.
        let _ = guarded(|| write32(base + 0xffc, u32::MAX));
        let _ = guarded(|| read32(base + 0xffc));
        let magic = read32(base);
        expect(magic == MAGIC, "MagicValue", magic)?;
        // What one program of ours left in the selectors, the next resets.
        write32(base + 0x70, 0);
    }
    let (identity, version) = match board.gic {
        Gic::V2 { .. } => (PIDR2_V2, 2),
        Gic::V3 { .. } => (PIDR2, 3),
    };
    expect(read32(board.gicd + identity) >> 4 & 0xf == version, "GICD_PIDR2", 0u32)
}

/// Instructions whose syndrome says nothing about the register (ESR_EL2.ISS.ISV = 0), and XZR.
fn unusual(base: usize, board: &Board) -> Verdict {
    if board.is_sparkler {
        let (value, after) = read32_post_index(base);
        expect(value == MAGIC, "post-index read", value)?;
        expect(after == base + 4, "address after", after as u64)?;
        let (magic, version) = read32_pair(base);
        expect(magic == MAGIC && version == 2, "pair, second", version)?;
        // QueueSel: queue 5 of a block device does not exist, queue 0 does.
        let after = write32_pre_index(base + 0x30, 5);
        expect(after == base + 0x30, "address after", after as u64)?;
    } else {
        write32(base + 0x30, 5);
    }
    let missing = read32(base + 0x34);
    write32_xzr(base + 0x30);
    let first = read32(base + 0x34);
    expect(missing == 0, "QueueNumMax of a missing queue", missing)?;
    // An empty slot has no queue either.
    expect(first != 0 || read32(base + 8) == 0, "QueueNumMax", first)?;
    let sign = read8_signed(base);
    expect(!board.is_sparkler || sign == 0x76 || sign == 0, "sign-extended byte", sign as u64)
}
