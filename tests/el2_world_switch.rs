//! EL2: a guest's exits, through the vectors and back, on the hardware.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[macro_use]
mod el2_support;
#[cfg(target_os = "none")]
#[macro_use]
#[path = "el2_support/guest.rs"]
mod guest;

#[cfg(target_os = "none")]
mod on_target {
    use super::el2_support::{self, check, gic};
    use super::guest::{
        DEVICE, Guest, HOLE, RESULTS, Store, TEST_DEVICE, Taken, device_value, guest, guest_address,
    };
    use sparkler::arch::registers::{ID_AA64DFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1, MIDR_EL1};
    use sparkler::arch::timer::Counter;
    use sparkler::backend::clock::Clock;
    use sparkler::gic::GicVersion;
    use sparkler::memory::Ipa;
    use sparkler::vm::exit::Next;
    use sparkler::vm::layout;

    core::arch::global_asm!(include_str!("guests/common.S"), include_str!("guests/world_switch.S"));

    type Outcome = Result<(), &'static str>;

    const NOT_SUPPORTED: u64 = -1i64 as u64;

    /// A payload that ends by powering off.
    fn run(guest: &mut Guest, label: usize) -> Outcome {
        check(guest.run(label) == Next::PowerOff, "the payload did not power off")
    }

    /// Runs one of the `registers_over_` payloads and compares what it dumped with what it had
    /// filled in, but for `changed`.
    fn survive(label: usize, changed: &[(usize, u64)]) -> Outcome {
        let mut guest = guest();
        run(&mut guest, label)?;
        let x = (0..31).map(|n| 0xbeef_0000_0000_0001 + n);
        let others = [
            0xa000_0000,
            0x5e10,
            RESULTS,
            0x71d0,
            0x71d1,
            0x71d2,
            0x07c0_0000,
            0x0800_009f,
            0xe150,
            0x3c4,
            0xfa50,
            0xe50,
        ];
        for (n, value) in x.chain(others).enumerate() {
            let change = changed.iter().find(|change| change.0 == n);
            let expected = change.map_or(value, |change| change.1);
            if guest.result(n) != expected {
                semihosting::println!("word {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err(if n < 31 { "a general-purpose register" } else { "a register" });
            }
        }
        for n in 0..32 {
            let low = 0xf00d_0000_0000_0100 + n as u64;
            let at = 44 + 2 * n;
            check((guest.result(at), guest.result(at + 1)) == (low, !low), "a vector register")?;
        }
        Ok(())
    }

    fn all_registers_survive_an_hvc() -> Outcome {
        survive(label!(registers_over_hvc), &[(0, NOT_SUPPORTED)])
    }

    fn all_registers_survive_an_smc() -> Outcome {
        survive(label!(registers_over_smc), &[(0, NOT_SUPPORTED)])
    }

    fn all_registers_survive_a_load_but_its_target() -> Outcome {
        survive(label!(registers_over_load), &[(20, DEVICE), (7, device_value(8))])
    }

    fn all_registers_survive_a_store() -> Outcome {
        survive(label!(registers_over_store), &[(20, DEVICE)])?;
        let stores = &TEST_DEVICE.lock().stores;
        let stored = Store { offset: 8, bytes: 8, value: 0xbeef_0000_0000_0004 };
        check(stores.as_slice() == [stored], "the store is not what the device got")
    }

    fn all_registers_survive_a_system_register_trap() -> Outcome {
        survive(label!(registers_over_system_register), &[(11, 0)])
    }

    fn all_registers_survive_a_physical_interrupt() -> Outcome {
        survive(label!(registers_over_interrupt), &[(0, 0x80)])?;
        check(guest().exits().interrupts == 1, "not one interrupt")
    }

    fn a_guest_starts_in_the_reset_state() -> Outcome {
        let mut guest = guest();
        // Whatever another guest has left.
        run(&mut guest, label!(registers_over_store))?;
        let before = Counter.now().0;
        run(&mut guest, label!(reset_state))?;
        let passed = Counter.now().0 - before;
        let expected =
            [1 << 2, 0x3c0, 0x30d0_0800, 0, 0, 0, 1 << 31, MIDR_EL1::get(), 0, 0, 0, 0, 0, 0];
        for (n, expected) in expected.into_iter().enumerate() {
            if guest.result(n) != expected {
                semihosting::println!("result {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err("a register is not in its reset state");
            }
        }
        check(guest.result(expected.len()) < passed, "the virtual counter does not start at zero")
    }

    fn an_hvc_returns_past_itself_and_an_smc_is_stepped_over() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(calls))?;
        check(guest.result(0) == 0x1_0001, "HVC does not answer PSCI 1.1")?;
        check(guest.result(1) == 0x1_0001, "SMC does not answer PSCI 1.1")?;
        check(guest.result(2) == 3, "what follows a call did not run once")?;
        check(guest.exits().calls == 3, "not three calls")
    }

    fn the_last_cpu_turned_off_stops_the_guest() -> Outcome {
        let end = guest().run(label!(cpu_off));
        check(matches!(end, Next::Stop(_)), "it was not stopped")
    }

    fn a_reset_starts_the_guest_with_nothing_of_its_past() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(reset))?;
        check(guest.result(3) == 1, "it did not start again")?;
        check(guest.result(0) == 0, "RAM was not zeroed")?;
        check(guest.result(1) == 0 && guest.result(2) == 0, "registers were not zeroed")
    }

    fn guest_ram_is_elsewhere_than_the_guest_believes() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(stores))?;
        let mapping = guest.tables.lookup(&guest.pool, layout::RAM).ok_or("RAM is not mapped")?;
        check(!mapping.is_identity(), "IPA and PA are the same")?;
        check(mapping.pa == guest.memory().pa(), "RAM is mapped to something else")
    }

    fn loads_of_every_size_extend_as_the_instruction_says() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(loads))?;
        let expected = [
            0x81,
            0x8382,
            0x8786_8584,
            device_value(8),
            0xffff_ff81,
            !0 << 8 | 0x81,
            0xffff_8382,
            !0 << 16 | 0x8382,
            !0 << 32 | 0x8786_8584,
            device_value(0),
            device_value(0x30) & 0xffff_ffff,
            0,
        ];
        for (n, expected) in expected.into_iter().enumerate() {
            if guest.result(n) != expected {
                semihosting::println!("load {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err("a load gave something else");
            }
        }
        check(guest.exits().virtio_reads == 13, "a load did not reach the device, or did twice")
    }

    fn stores_of_every_size_carry_the_register_or_zero() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(stores))?;
        let value = 0x8788_8586_8384_8182u64;
        let expected = [
            (1, 1, value & 0xff),
            (2, 2, value & 0xffff),
            (4, 4, value & 0xffff_ffff),
            (8, 8, value),
            (1, 1, 0),
            (4, 4, 0),
            (8, 8, 0),
            (0, 4, value & 0xffff_ffff),
        ];
        let expected = expected.map(|(offset, bytes, value)| Store { offset, bytes, value });
        check(TEST_DEVICE.lock().stores == expected, "the device got something else")
    }

    fn instructions_without_a_syndrome_are_emulated() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(without_syndrome))?;
        let low = |offset| device_value(offset) & 0xffff_ffff;
        let sign = !0 << 32;
        let expected = [
            low(0),
            device_value(8),
            !0 << 8 | 0x88,
            DEVICE,
            device_value(0),
            device_value(8),
            low(8),
            low(12),
            sign | low(0),
            sign | low(4),
            device_value(24),
            DEVICE + 16,
            device_value(16),
            DEVICE + 24,
            device_value(24),
            DEVICE + 24,
            DEVICE + 24,
            0,
            DEVICE + 16,
        ];
        for (n, expected) in expected.into_iter().enumerate() {
            if guest.result(n) != expected {
                semihosting::println!("result {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err("a register is wrong after it");
            }
        }
        let expected = [(0, 4, 0x11), (16, 8, 0x11), (24, 8, 0x22), (16, 8, 0), (24, 8, 0x22)];
        let expected = expected.map(|(offset, bytes, value)| Store { offset, bytes, value });
        check(TEST_DEVICE.lock().stores == expected, "the device got something else")
    }

    const EL1H: u64 = 0x3c5;
    const DATA_ABORT: u64 = 0x9600_0010;
    const WRITE: u64 = 1 << 6;

    /// Runs a payload that takes exceptions.
    fn exceptions(label: usize, expected: &[Taken]) -> Outcome {
        let mut guest = guest();
        run(&mut guest, label)?;
        let taken = guest.exceptions();
        for (taken, expected) in taken.iter().zip(expected) {
            if taken != expected {
                semihosting::println!("{taken:#x?}, not {expected:#x?}");
                return Err("another exception");
            }
        }
        check(taken.len() == expected.len(), "not as many exceptions")
    }

    fn a_load_from_nowhere_is_an_external_abort() -> Outcome {
        let elr = guest_address(label!(load_from_hole_at));
        let taken = Taken { vector: 0x200, esr: DATA_ABORT, far: HOLE + 0x123, elr, spsr: EL1H };
        exceptions(label!(load_from_hole), &[taken])
    }

    fn a_store_to_nowhere_is_an_external_abort() -> Outcome {
        let (esr, far) = (DATA_ABORT | WRITE, HOLE + 0x120);
        let elr = guest_address(label!(store_to_hole_at));
        exceptions(label!(store_to_hole), &[Taken { vector: 0x200, esr, far, elr, spsr: EL1H }])
    }

    fn a_pair_from_nowhere_is_an_external_abort_and_changes_nothing() -> Outcome {
        let elr = guest_address(label!(pair_from_hole_at));
        let taken = Taken { vector: 0x200, esr: DATA_ABORT, far: HOLE + 0x120, elr, spsr: EL1H };
        exceptions(label!(pair_from_hole), &[taken])?;
        let guest = guest();
        check(guest.result(0) == HOLE + 0x120, "the base was written back")?;
        check(guest.result(1) == 5, "a target was loaded")
    }

    fn an_abort_takes_the_vector_of_the_stack_pointer_in_use() -> Outcome {
        let elr = guest_address(label!(hole_on_sp_el0_at));
        let taken = Taken { vector: 0, esr: DATA_ABORT, far: HOLE, elr, spsr: 0x3c4 };
        exceptions(label!(hole_on_sp_el0), &[taken])
    }

    fn an_abort_at_el0_is_taken_from_a_lower_level() -> Outcome {
        let elr = guest_address(label!(hole_at_el0_at));
        let abort = Taken { vector: 0x400, esr: 0x9200_0010, far: HOLE, elr, spsr: 0 };
        let svc = Taken { vector: 0x400, esr: 0x5600_0000, far: HOLE, elr: elr + 8, spsr: 0 };
        exceptions(label!(hole_at_el0), &[abort, svc])
    }

    fn an_aarch32_program_reaches_devices_and_takes_aborts() -> Outcome {
        let elr = guest_address(label!(aarch32_at_el0_at)) + 12;
        let abort = Taken { vector: 0x600, esr: 0x9200_0010, far: HOLE, elr, spsr: 0x10 };
        let svc = Taken { vector: 0x600, esr: 0x4600_0000, far: HOLE, elr: elr + 8, spsr: 0x10 };
        exceptions(label!(aarch32_at_el0), &[abort, svc])?;
        let guest = guest();
        check(guest.result(0) as u32 == device_value(4) as u32, "another word")?;
        check(guest.result(1) as u32 == 0xffff_ff81, "another byte")?;
        let stores = &TEST_DEVICE.lock().stores;
        check(stores.len() == 1 && stores[0].offset == 8 && stores[0].bytes == 4, "the store")
    }

    fn a_fetch_from_nowhere_is_an_external_abort() -> Outcome {
        let (esr, far) = (0x8600_0010, HOLE);
        let taken = Taken { vector: 0x200, esr, far, elr: far, spsr: EL1H };
        exceptions(label!(fetch_from_hole), &[taken])
    }

    fn a_fetch_from_a_device_is_an_external_abort() -> Outcome {
        let (esr, far) = (0x8600_0010, DEVICE);
        let taken = Taken { vector: 0x200, esr, far, elr: far, spsr: EL1H };
        exceptions(label!(fetch_from_device), &[taken])
    }

    fn an_exclusive_on_a_device_is_an_external_abort() -> Outcome {
        let elr = guest_address(label!(exclusive_on_device_at));
        let taken = Taken { vector: 0x200, esr: DATA_ABORT, far: DEVICE, elr, spsr: EL1H };
        exceptions(label!(exclusive_on_device), &[taken])
    }

    fn what_is_not_offered_is_undefined() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(undefined))?;
        let taken = guest.exceptions();
        check(taken.len() == 10, "something was executed")?;
        for (n, taken) in taken.iter().enumerate() {
            let elr = guest_address(label!(undefined_at)) + 4 * n as u64;
            if (taken.vector, taken.esr, taken.elr) != (0x200, 0x0200_0000, elr) {
                semihosting::println!("instruction {n}: {taken:#x?}");
                return Err("not an undefined instruction");
            }
        }
        Ok(())
    }

    fn id_registers_hide_what_is_not_virtualised() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(id_registers))?;
        let [pfr0, pfr1, dfr0, isar0, mmfr0, mmfr1, zfr0, dfr0_32, unnamed] =
            core::array::from_fn(|n| guest.result(n));
        let field = |value: u64, at: u32| value >> at & 0xf;
        let hardware = ID_AA64PFR0_EL1::get();
        check(field(hardware, 8) != 0, "this core has no EL2?")?;
        check(field(ID_AA64DFR0_EL1::get(), 8) != 0, "this core has no PMU to hide")?;
        check(field(pfr0, 8) == 0 && field(pfr0, 12) == 0, "EL2 or EL3 is shown")?;
        check(field(pfr0, 32) == 0 && zfr0 == 0, "SVE is shown")?;
        let shown = u64::from(gic::version() == GicVersion::V3);
        check(field(pfr0, 24) == shown, "the GIC is another")?;
        check(pfr0 & 0xff_0000 == hardware & 0xff_0000, "FP and SIMD are not the core's")?;
        check(field(pfr1, 8) == 0 && field(pfr1, 24) == 0, "MTE or SME is shown")?;
        check(field(dfr0, 8) == 0 && field(dfr0_32, 24) == 0, "the PMU is shown")?;
        check(field(dfr0, 0) == 6, "no debug architecture is shown")?;
        check(isar0 >> 4 & 0xff == hardware_isar0() >> 4 & 0xff, "AES, SHA1 are not the core's")?;
        check(field(mmfr0, 0) <= 2, "more physical address bits than stage 2 translates")?;
        let (shown, real) = (field(mmfr1, 20), field(ID_AA64MMFR1_EL1::get(), 20));
        check(shown == real && field(mmfr1, 8) == 0, "PAN is not the core's, or VH is shown")?;
        check(unnamed == 0, "an unnamed ID register is not zero")
    }

    fn hardware_isar0() -> u64 {
        sparkler::arch::id_registers::read(6, 0).unwrap_or(0)
    }

    fn writes_that_mean_nothing_here_are_stepped_over() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(ignored))?;
        check(guest.exceptions().is_empty(), "one was refused")?;
        // The entry reads one, too.
        check(guest.exits().system_registers == 1 + 7, "one was not trapped")?;
        check((guest.result(0), guest.result(1)) == (0, 1), "ACTLR_EL1 kept a value")
    }

    fn a_wait_for_interrupt_ends_with_the_timers() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(wait_for_interrupt))?;
        check(guest.result(1) >= guest.result(0), "it ended before the timer's time")?;
        check(guest.exits().interrupts == 1, "not one interrupt")
    }

    fn the_instruction_address_follows_the_guests_tables() -> Outcome {
        use sparkler::vm::Host;
        let mut guest = guest();
        run(&mut guest, label!(calls))?;
        // The guest's MMU is off: its addresses are intermediate physical ones.
        let pc = guest_address(label!(calls));
        let found = guest.seat().core.translate(pc, false);
        check(found == Some(Ipa::new(pc)), "not where the guest has it")
    }

    el2_tests!(
        all_registers_survive_an_hvc,
        all_registers_survive_an_smc,
        all_registers_survive_a_load_but_its_target,
        all_registers_survive_a_store,
        all_registers_survive_a_system_register_trap,
        all_registers_survive_a_physical_interrupt,
        a_guest_starts_in_the_reset_state,
        an_hvc_returns_past_itself_and_an_smc_is_stepped_over,
        the_last_cpu_turned_off_stops_the_guest,
        a_reset_starts_the_guest_with_nothing_of_its_past,
        guest_ram_is_elsewhere_than_the_guest_believes,
        loads_of_every_size_extend_as_the_instruction_says,
        stores_of_every_size_carry_the_register_or_zero,
        instructions_without_a_syndrome_are_emulated,
        a_load_from_nowhere_is_an_external_abort,
        a_store_to_nowhere_is_an_external_abort,
        a_pair_from_nowhere_is_an_external_abort_and_changes_nothing,
        an_abort_takes_the_vector_of_the_stack_pointer_in_use,
        an_abort_at_el0_is_taken_from_a_lower_level,
        an_aarch32_program_reaches_devices_and_takes_aborts,
        a_fetch_from_nowhere_is_an_external_abort,
        a_fetch_from_a_device_is_an_external_abort,
        an_exclusive_on_a_device_is_an_external_abort,
        what_is_not_offered_is_undefined,
        id_registers_hide_what_is_not_virtualised,
        writes_that_mean_nothing_here_are_stepped_over,
        a_wait_for_interrupt_ends_with_the_timers,
        the_instruction_address_follows_the_guests_tables,
    );
}
