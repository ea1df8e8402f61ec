//! EL2: the EL1 state of vCPUs that share a core is kept while another runs.
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
    use core::arch::asm;

    use sparkler::arch::barrier;
    use sparkler::arch::context::{El1Context, forget_translations};
    use sparkler::arch::el1::set_traps;
    use sparkler::arch::registers::{ID_AA64ISAR1_EL1, ID_AA64PFR0_EL1};
    use sparkler::arch::timer::Counter;
    use sparkler::backend::clock::{Clock, Ticks};
    use sparkler::sync::Mutex;
    use sparkler::vm::exit::Next;

    use super::el2_support::{self, check};
    use super::guest::{Store, TEST_DEVICE, guest};

    core::arch::global_asm!(include_str!("guests/common.S"), include_str!("guests/world_switch.S"));

    type Outcome = Result<(), &'static str>;

    /// A register by its name, how it is written and read, and the bits of it that are compared.
    struct Register {
        name: &'static str,
        set: fn(u64),
        get: fn() -> u64,
        bits: u64,
    }

    macro_rules! registers {
        ($($name:literal),* $(,)?) => { registers!($($name & !0),*) };
        ($($name:literal & $bits:expr),*) => {[$(Register {
            name: $name,
            set: |value| {
                // SAFETY: EL2 runs without it.
                unsafe {
                    asm!(
                        ".arch_extension fp", concat!("msr ", $name, ", {}"), in(reg) value,
                        options(nomem, nostack)
                    )
                }
            },
            get: || {
                let value;
                // SAFETY: reading it has no effect.
                unsafe {
                    asm!(
                        ".arch_extension fp", concat!("mrs {}, ", $name), out(reg) value,
                        options(nomem, nostack)
                    )
                }
                value
            },
            bits: $bits,
        }),*]};
    }

    /// ENABLE and IMASK; ISTATUS tells the time.
    const TIMER_CONTROLS: [Register; 2] = registers!("cntv_ctl_el0" & 0b11, "cntp_ctl_el0" & 0b11);

    /// A sum of two of these must not overflow: QEMU 7.2 then waits for a time in the past, for ever.
    const TIMES: [Register; 3] =
        registers!("cntvoff_el2" & TIME, "cntv_cval_el0" & TIME, "cntp_cval_el0" & TIME);
    const TIME: u64 = !0 >> 2;

    /// What a guest can write untrapped, and what steers what it reads. Not of the list in `arch`.
    const REGISTERS: [Register; 26] = registers!(
        "sctlr_el1",
        "cpacr_el1",
        "ttbr0_el1",
        "ttbr1_el1",
        "tcr_el1",
        "mair_el1",
        "amair_el1",
        "vbar_el1",
        "elr_el1",
        "spsr_el1",
        "esr_el1",
        "far_el1",
        "afsr0_el1",
        "afsr1_el1",
        "par_el1",
        "contextidr_el1",
        "csselr_el1",
        "tpidr_el0",
        "tpidrro_el0",
        "tpidr_el1",
        "sp_el0",
        "sp_el1",
        "cntkctl_el1",
        "vmpidr_el2",
        "fpcr",
        "fpsr",
    );

    /// Of pointer authentication: APIA, APIB, APDA, APDB, APGA.
    const KEYS: [Register; 10] = registers!(
        "s3_0_c2_c1_0",
        "s3_0_c2_c1_1",
        "s3_0_c2_c1_2",
        "s3_0_c2_c1_3",
        "s3_0_c2_c2_0",
        "s3_0_c2_c2_1",
        "s3_0_c2_c2_2",
        "s3_0_c2_c2_3",
        "s3_0_c2_c3_0",
        "s3_0_c2_c3_1",
    );

    /// DISR_EL1 as the guest has it.
    const DEFERRED: [Register; 1] = registers!("s3_4_c12_c1_1");

    /// Those that this core has.
    fn registers() -> impl Iterator<Item = &'static Register> {
        let keys = ID_AA64ISAR1_EL1::get() >> 4 & 0xff != 0;
        let ras = ID_AA64PFR0_EL1::get() >> 28 & 0xf != 0;
        let optional =
            KEYS.iter().filter(move |_| keys).chain(DEFERRED.iter().filter(move |_| ras));
        REGISTERS.iter().chain(&TIMES).chain(&TIMER_CONTROLS).chain(optional)
    }

    const MOST: usize = 42;

    /// A state of this core, as this test sees it.
    #[derive(Clone, PartialEq, Eq)]
    struct State {
        registers: heapless::Vec<u64, MOST>,
        vectors: [u128; 32],
    }

    fn set_vectors(vectors: &[u128; 32]) {
        // SAFETY: EL2 is built without FP and SIMD.
        unsafe {
            asm!(
                ".arch_extension fp",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "ldr q\\n, [{0}, #(16 * \\n)]",
                ".endr",
                in(reg) vectors,
                options(nostack)
            );
        }
    }

    fn vectors() -> [u128; 32] {
        let mut vectors = [0; 32];
        // SAFETY: as above.
        unsafe {
            asm!(
                ".arch_extension fp",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "str q\\n, [{0}, #(16 * \\n)]",
                ".endr",
                in(reg) &mut vectors,
                options(nostack)
            );
        }
        vectors
    }

    impl State {
        fn of_this_core() -> Self {
            barrier::isb();
            let registers = registers().map(|register| (register.get)() & register.bits).collect();
            Self { registers, vectors: vectors() }
        }

        /// Fills this core with noise; what it took of it.
        fn random(random: &mut impl FnMut() -> u64) -> Self {
            for register in registers() {
                (register.set)(random() & register.bits);
            }
            set_vectors(&core::array::from_fn(|_| {
                u128::from(random()) << 64 | u128::from(random())
            }));
            Self::of_this_core()
        }

        fn check(&self, expected: &Self) -> Outcome {
            for (n, register) in registers().enumerate() {
                if self.registers[n] != expected.registers[n] {
                    let (is, was) = (self.registers[n], expected.registers[n]);
                    semihosting::println!("{}: {is:#x}, not {was:#x}", register.name);
                    return Err("a register is not what it was");
                }
            }
            check(self.vectors == expected.vectors, "a vector register is not what it was")
        }
    }

    /// A generator of noise (xorshift64).
    fn noise(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        }
    }

    fn zero() -> El1Context {
        El1Context::reset(1 << 31, Ticks(0))
    }

    fn two_contexts_take_turns_and_both_keep_their_state() -> Outcome {
        set_traps(false);
        let mut random = noise(0x5eed_5eed_5eed);
        let mut contexts = [zero(), zero()];
        let mut states: [Option<State>; 2] = [None, None];
        for turn in 0..64 {
            let own = turn & 1;
            if let Some(state) = &states[own] {
                contexts[own].restore();
                State::of_this_core().check(state)?;
            }
            // Half of the turns change nothing.
            if states[own].is_none() || random() & 1 == 0 {
                states[own] = Some(State::random(&mut random));
            }
            contexts[own].save();
            // What is saved is not touched by what happens to the core.
            State::random(&mut random);
        }
        Ok(())
    }

    fn a_reset_leaves_nothing_of_the_past() -> Outcome {
        set_traps(false);
        State::random(&mut noise(0xdead_beef));
        El1Context::reset(0x8000_0102, Ticks(77)).restore();
        let state = State::of_this_core();
        for (register, value) in registers().zip(&state.registers) {
            let expected = match register.name {
                "sctlr_el1" => 0x30d0_0800,
                "vmpidr_el2" => 0x8000_0102,
                "cntvoff_el2" => 77,
                _ => 0,
            };
            if *value != expected {
                semihosting::println!("{}: {value:#x}, not {expected:#x}", register.name);
                return Err("a register is not in its reset state");
            }
        }
        check(state.vectors == [0; 32], "a vector register is not zero")
    }

    fn timer(name: &str) -> &'static Register {
        registers().find(|register| register.name == name).expect("a register")
    }

    /// The deadline of a vCPU with these timers: control and comparison.
    fn deadline(offset: u64, virtual_timer: (u64, u64), physical: (u64, u64)) -> Option<Ticks> {
        (timer("cntvoff_el2").set)(offset);
        (timer("cntv_ctl_el0").set)(virtual_timer.0);
        (timer("cntv_cval_el0").set)(virtual_timer.1);
        (timer("cntp_ctl_el0").set)(physical.0);
        (timer("cntp_cval_el0").set)(physical.1);
        barrier::isb();
        let mut context = zero();
        context.save();
        context.timer_deadline(0)
    }

    const OFF: (u64, u64) = (0, 5);

    fn the_deadline_is_that_of_the_first_timer_that_will_interrupt() -> Outcome {
        set_traps(false);
        check(deadline(1000, OFF, OFF).is_none(), "both are off")?;
        check(deadline(1000, (1, 50), OFF) == Some(Ticks(1050)), "the virtual one")?;
        check(deadline(1000, OFF, (1, 50)) == Some(Ticks(50)), "the physical one")?;
        check(
            deadline(1000, (1, 50), (1, 1049)) == Some(Ticks(1049)),
            "the physical one is first",
        )?;
        check(deadline(1000, (1, 50), (1, 1051)) == Some(Ticks(1050)), "the virtual one is first")?;
        // T3: a timer that is masked does not interrupt, though it expires.
        check(deadline(1000, (3, 50), OFF).is_none(), "the virtual one is masked")?;
        check(deadline(1000, (3, 50), (3, 50)).is_none(), "both are masked")?;
        check(deadline(1000, (3, 50), (1, 99)) == Some(Ticks(99)), "one is masked")?;
        check(deadline(1000, (2, 50), OFF).is_none(), "masked and off")?;
        check(deadline(1000, (1, !0 - 1000), OFF) == Some(Ticks(!0)), "a time that never comes")?;
        // An offset may also put the virtual counter ahead of the physical one.
        check(deadline(1000u64.wrapping_neg(), (1, 1500), OFF) == Some(Ticks(500)), "ahead")?;
        check(deadline(1000u64.wrapping_neg(), (1, 500), OFF) == Some(Ticks(0)), "long ago")
    }

    /// The interrupts pending for this core (ISR_EL1).
    fn pending() -> u64 {
        let isr;
        // SAFETY: a read of the register has no effect.
        unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nomem, nostack)) };
        isr
    }

    fn wait_for(microseconds: u64) {
        let hertz = u64::from(Counter.frequency().hertz());
        let end = Counter.now().after(Ticks(hertz * microseconds / 1_000_000));
        while Counter.now() < end {
            barrier::relax();
        }
    }

    fn the_timers_of_a_saved_vcpu_do_not_fire_and_a_restored_ones_do() -> Outcome {
        // With the interrupts of the timers enabled.
        let _guest = guest();
        set_traps(false);
        for name in ["cntv", "cntp"] {
            let mut context = zero();
            context.restore();
            let soon = Counter.now().0 + u64::from(Counter.frequency().hertz()) / 1000;
            let (control, at) = match name {
                "cntv" => ("cntv_ctl_el0", "cntv_cval_el0"),
                _ => ("cntp_ctl_el0", "cntp_cval_el0"),
            };
            (timer(at).set)(soon);
            (timer(control).set)(1);
            barrier::isb();
            context.save();
            check(context.timer_deadline(0) == Some(Ticks(soon)), "another deadline")?;
            wait_for(3_000);
            check(pending() == 0, "the timer of a saved vCPU has fired")?;
            context.restore();
            wait_for(1_000);
            check(pending() != 0, "the timer of a restored vCPU does not fire")?;
            zero().restore();
            wait_for(1_000);
            check(pending() == 0, "a timer is on after a reset")?;
        }
        Ok(())
    }

    /// What the guest's store is answered with: another vCPU has the core.
    fn another_runs(_: Store) {
        static CONTEXT: Mutex<Option<El1Context>> = Mutex::new(None);
        let mut context = CONTEXT.lock();
        let context = context.get_or_insert_with(zero);
        context.save();
        State::random(&mut noise(0x0bad_cafe));
        context.restore();
        forget_translations();
    }

    fn a_guest_does_not_notice_that_another_had_the_core() -> Outcome {
        let mut guest = guest();
        TEST_DEVICE.lock().on_store = another_runs;
        let end = guest.run(label!(registers_over_store));
        TEST_DEVICE.lock().on_store = |_| {};
        check(end == Next::PowerOff, "the payload did not power off")?;
        check(TEST_DEVICE.lock().stores.len() == 1, "no other vCPU ran")?;
        // What the payload has filled in: tests/guests/world_switch.S.
        let others = [
            0xa000_0000,
            0x5e10,
            super::guest::RESULTS,
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
        for (n, expected) in others.into_iter().enumerate() {
            check(guest.result(31 + n) == expected, "a register")?;
        }
        for n in 0..32 {
            let low = 0xf00d_0000_0000_0100 + n as u64;
            let at = 44 + 2 * n;
            check((guest.result(at), guest.result(at + 1)) == (low, !low), "a vector register")?;
        }
        Ok(())
    }

    el2_tests!(
        two_contexts_take_turns_and_both_keep_their_state,
        a_reset_leaves_nothing_of_the_past,
        the_deadline_is_that_of_the_first_timer_that_will_interrupt,
        the_timers_of_a_saved_vcpu_do_not_fire_and_a_restored_ones_do,
        a_guest_does_not_notice_that_another_had_the_core,
    );
}
