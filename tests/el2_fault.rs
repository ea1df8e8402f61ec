//! EL2: what becomes of EL2's own faults.
//!
//! Without an argument, probes: faults that are expected. With one, a fault that is not, which ends
//! the program with a dump and a reset of the board; `qemu/tests/faults.sh` looks at what it says.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[macro_use]
mod el2_support;

#[cfg(target_os = "none")]
mod on_target {
    use core::arch::{asm, global_asm};
    use core::hint::black_box;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use aarch64_cpu::registers::{HCR_EL2, ReadWriteable};
    use embedded_hal::delay::DelayNs;
    use sparkler::arch::boot::BootInfo;
    use sparkler::arch::fault::{Probe, probe};
    use sparkler::arch::timer::{Counter, TIMER_INTID, wake_at};
    use sparkler::arch::{barrier, layout, smp};
    use sparkler::backend::clock::Ticks;
    use sparkler::fdt::{Cpu, CpuEnable};

    use super::el2_support::{self, check, gic};

    type Outcome = Result<(), &'static str>;

    extern "C" fn harmless() {}

    fn probe_at(kind: Probe, address: usize) -> Result<(), u64> {
        // SAFETY: no guest runs, and the addresses used here are not mapped, or harmless.
        unsafe { probe(kind, address) }
    }

    /// ESR_EL2.EC, WnR and DFSC or IFSC.
    const CLASS_AND_STATUS: u64 = 0x3f << 26 | 0x7f;

    fn a_probe_names_its_fault_and_the_next_one_its_own() -> Outcome {
        for level_3_hole in [layout::IMAGE_BASE + 0x1f_f000, layout::IMAGE_BASE + 0x1f_e000] {
            let fault = |kind| probe_at(kind, level_3_hole).err().map(|esr| esr & CLASS_AND_STATUS);
            check(fault(Probe::Read) == Some(0x9400_0007), "a load")?;
            check(fault(Probe::Write) == Some(0x9400_0047), "a store")?;
            check(fault(Probe::Call) == Some(0x8400_0007), "a call")?;
            let text = harmless as extern "C" fn() as usize;
            check(probe_at(Probe::Call, text).is_ok(), "what does not fault")?;
        }
        Ok(())
    }

    extern "C" fn probes_that_fault() {
        for kind in [Probe::Read, Probe::Write, Probe::Call] {
            let _ = probe_at(kind, black_box(0x10));
        }
    }

    unsafe extern "C" {
        /// Calls `probes_that_fault`; the bits that changed in the registers a function must keep.
        fn probes_and_registers() -> u64;
    }

    global_asm!(
        ".section .text.probes_and_registers, \"ax\"",
        ".global probes_and_registers",
        "probes_and_registers:",
        "stp x29, x30, [sp, #-96]!",
        ".irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28",
        "str x\\n, [sp, #(8 * \\n - 136)]",
        ".endr",
        ".irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29",
        "mov x\\n, #(0x1100 + \\n)",
        ".endr",
        "bl {probes}",
        "mov x0, xzr",
        ".irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29",
        "mov x1, #(0x1100 + \\n)",
        "eor x1, x1, x\\n",
        "orr x0, x0, x1",
        ".endr",
        ".irp n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28",
        "ldr x\\n, [sp, #(8 * \\n - 136)]",
        ".endr",
        "ldp x29, x30, [sp], #96",
        "ret",
        probes = sym probes_that_fault,
    );

    fn a_probe_leaves_all_registers_that_a_call_keeps() -> Outcome {
        // SAFETY: it keeps the C calling convention.
        check(unsafe { probes_and_registers() } == 0, "a register has changed")
    }

    /// Needs more stack than there is.
    #[inline(never)]
    #[allow(unconditional_recursion)]
    fn bottomless(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        bottomless(depth + 1) + black_box(frame)[1]
    }

    static READY: AtomicUsize = AtomicUsize::new(0);

    /// Has `fault` run on this many cores besides this one.
    fn on_other_cores(count: usize, fault: fn(usize)) {
        static FAULT: spin::Once<fn(usize)> = spin::Once::new();
        FAULT.call_once(|| fault);
        for core in 1..=count {
            let cpu = Cpu { mpidr: core as u64, enable: CpuEnable::Psci };
            smp::start(&cpu, core, |core| {
                FAULT.get().expect("a fault")(core);
                sparkler::arch::firmware::park()
            })
            .expect("it starts");
        }
        Counter.delay_ns(4_000_000_000);
    }

    unsafe extern "C" {
        /// Fills each register n with 0xbeef_0000_0000 + core * 0x10000 + n, and loads from x7.
        fn fill_registers_and_fault(core: u64);
    }

    global_asm!(
        ".section .text.fill_registers_and_fault, \"ax\"",
        ".global fill_registers_and_fault",
        "fill_registers_and_fault:",
        "mov x30, #0xbeef",
        "lsl x30, x30, #32",
        "orr x30, x30, x0, lsl #16",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
        "add x\\n, x30, #\\n",
        ".endr",
        "ldr x30, [x7]",
    );

    /// Faults as `kind` says.
    fn fault(kind: &str) {
        match kind {
            "text" => {
                let text = harmless as extern "C" fn() as usize;
                // SAFETY: none. It must fault.
                unsafe { (text as *mut u32).write_volatile(0) };
            }
            "stack" => {
                black_box(bottomless(0));
            }
            "registers" => {
                // SAFETY: none. It must fault.
                unsafe {
                    asm!(
                        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
                        "movz x\\n, #(0x1000 + \\n)",
                        "movk x\\n, #0xbeef, lsl #32",
                        ".endr",
                        "ldr x30, [x7]",
                        options(noreturn)
                    )
                }
            }
            "call" => {
                // SAFETY: none. It must fault.
                let nowhere: extern "C" fn() = unsafe { core::mem::transmute(0x1234_0000usize) };
                nowhere();
            }
            "interrupt" => {
                // Physical interrupts come to EL2 while a guest runs, and are masked here.
                HCR_EL2.modify(HCR_EL2::IMO::SET);
                gic::physical().enable(TIMER_INTID, false);
                wake_at(Ticks(0));
                // SAFETY: none. It must be reported.
                unsafe { asm!("msr daifclr, #2", "isb") };
                Counter.delay_ns(1_000_000_000);
            }
            "another_core" => on_other_cores(1, |_| {
                black_box(bottomless(0));
            }),
            "three_cores" => on_other_cores(3, |core| {
                // All at once.
                READY.fetch_add(1, Ordering::Relaxed);
                while READY.load(Ordering::Relaxed) < 3 {
                    barrier::relax();
                }
                // SAFETY: none. It must fault.
                unsafe { fill_registers_and_fault(core as u64) }
            }),
            "panic" => {
                el2_support::PANICS_ARE_EL2S.store(true, Ordering::Relaxed);
                panic!("for a test");
            }
            _ => {}
        }
    }

    fn main(boot: BootInfo) -> ! {
        extern "C" fn probes() -> ! {
            el2_support::run(&[
                (
                    "a_probe_names_its_fault_and_the_next_one_its_own",
                    a_probe_names_its_fault_and_the_next_one_its_own,
                ),
                (
                    "a_probe_leaves_all_registers_that_a_call_keeps",
                    a_probe_leaves_all_registers_that_a_call_keeps,
                ),
            ])
        }
        match el2_support::argument(boot) {
            "" => el2_support::on_own_stack(probes),
            kind => fault(kind),
        }
        // No fault: no reset, and no verdict that anybody could take for one.
        semihosting::println!("nothing has happened");
        semihosting::process::exit(3)
    }
    sparkler::entry!(main);
}
