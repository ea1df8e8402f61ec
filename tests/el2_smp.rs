//! EL2: the board's other cores come up, each with its own stacks, and share memory.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod el2_support;

#[cfg(target_os = "none")]
mod on_target {
    use core::arch::{asm, global_asm};
    use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use core::time::Duration;

    use aarch64_cpu::registers::{
        CurrentEL, HCR_EL2, Readable, SCTLR_EL2, TCR_EL2, TTBR0_EL2, VBAR_EL2,
    };
    use smccc::{Smc, psci};
    use sparkler::arch::boot::BootInfo;
    use sparkler::arch::fault::{Probe, probe};
    use sparkler::arch::smp::{MAX_CORES, StartError, start, this_affinity, this_core};
    use sparkler::arch::timer::Counter;
    use sparkler::arch::{barrier, cache, layout, mmu};
    use sparkler::backend::clock::Clock;
    use sparkler::fdt::{Cpu, CpuEnable};
    use sparkler::sync::Mutex;
    use spin::Once;

    use super::el2_support::{self, check, ram};

    type Outcome = Result<(), &'static str>;

    /// The board's cores, the boot core first; the runner's board has four.
    static CPUS: Once<heapless::Vec<Cpu, 16>> = Once::new();
    const CORES: usize = 4;

    /// What a core has found when it came up.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Found {
        core: usize,
        affinity: u64,
        stack: usize,
        registers: [u64; 6],
    }

    static FOUND: Mutex<[Option<Found>; MAX_CORES]> = Mutex::new([None; MAX_CORES]);

    #[inline(never)]
    fn look() -> Found {
        let stack: usize;
        // SAFETY: reads the stack pointer.
        unsafe { asm!("mov {}, sp", out(reg) stack, options(nomem, nostack)) };
        let registers = [
            CurrentEL.get(),
            SCTLR_EL2.get(),
            TTBR0_EL2.get(),
            TCR_EL2.get(),
            VBAR_EL2.get(),
            HCR_EL2.get(),
        ];
        Found { core: this_core(), affinity: this_affinity(), stack, registers }
    }

    /// What all cores but the boot core are to do, how often that has changed, and how many have.
    static JOB: Mutex<fn(usize)> = Mutex::new(|_| {});
    static JOBS: AtomicUsize = AtomicUsize::new(0);
    static DONE: AtomicUsize = AtomicUsize::new(0);

    fn work(core: usize) -> ! {
        FOUND.lock()[core] = Some(look());
        let mut seen = 0;
        loop {
            let jobs = JOBS.load(Ordering::Acquire);
            if jobs != seen {
                seen = jobs;
                let job = *JOB.lock();
                job(core);
                DONE.fetch_add(1, Ordering::AcqRel);
            }
            barrier::relax();
        }
    }

    /// `true` once `done` is, `false` if that takes longer than it should.
    fn wait(seconds: u64, done: impl Fn() -> bool) -> bool {
        let span = Counter.frequency().ticks(Duration::from_secs(seconds));
        let end = Counter.now().after(span);
        while !done() {
            if Counter.now() > end {
                return false;
            }
            barrier::relax();
        }
        true
    }

    /// Has all cores do `job`, this one too.
    fn on_all_cores(job: fn(usize)) -> Outcome {
        DONE.store(0, Ordering::Relaxed);
        *JOB.lock() = job;
        JOBS.fetch_add(1, Ordering::Release);
        job(0);
        let done = || DONE.load(Ordering::Acquire) == CORES - 1;
        check(wait(20, done), "a core does not answer")
    }

    fn cpu(core: usize) -> Cpu {
        CPUS.get().expect("cores")[core]
    }

    fn cores_start_once_and_run_with_the_boot_cores_map() -> Outcome {
        check(CPUS.get().is_some_and(|cpus| cpus.len() == CORES), "the board has other cores")?;
        check(this_core() == 0 && this_affinity() == cpu(0).mpidr, "the boot core is not core 0")?;
        for core in 1..CORES - 1 {
            check(start(&cpu(core), core, work).is_ok(), "a core does not start")?;
            check(wait(5, || FOUND.lock()[core].is_some()), "it does not run its entry")?;
        }
        let own = look();
        for core in 1..CORES - 1 {
            let found = FOUND.lock()[core].ok_or("nothing found")?;
            check(found.core == core, "it has another number")?;
            check(found.affinity == cpu(core).mpidr, "it is another core")?;
            check(found.registers == own.registers, "its registers are not the boot core's")?;
        }
        let again = start(&cpu(1), 7, work);
        check(again == Err(StartError::AlreadyOn), "a core was started twice")?;
        check(start(&cpu(3), 1, work) == Err(StartError::BadNumber), "a number was given twice")
    }

    // What firmware leaves a core in that is to be started by a spin table: it waits for an address
    // to be written to the word that follows.
    global_asm!(
        ".section .text.spin_table, \"ax\"",
        ".balign 8",
        ".global spin_table",
        "spin_table:",
        "mov x1, x0",
        "1: wfe",
        "ldr x2, [x1]",
        "cbz x2, 1b",
        "br x2",
    );

    unsafe extern "C" {
        fn spin_table();
    }

    fn a_core_starts_by_a_spin_table() -> Outcome {
        let core = CORES - 1;
        let release = ram::ram(64, 64);
        release.store_u64(0, 0).expect("room");
        cache::clean_invalidate(release);
        let stub: unsafe extern "C" fn() = spin_table;
        let (stub, word) = (mmu::image_pa(stub as usize).raw(), release.pa());
        let on = psci::cpu_on::<Smc>(cpu(core).mpidr, stub, word.raw());
        check(on.is_ok(), "the firmware does not start it")?;
        let cpu = Cpu { enable: CpuEnable::SpinTable(word), ..cpu(core) };
        check(start(&cpu, core, work).is_ok(), "it does not start")?;
        check(wait(5, || FOUND.lock()[core].is_some()), "it does not run its entry")?;
        let found = FOUND.lock()[core].ok_or("nothing found")?;
        check(found.affinity == cpu.mpidr && found.core == core, "another core came")?;
        check(found.registers == look().registers, "its registers are not the boot core's")
    }

    fn what_cannot_be_started_is_an_error() -> Outcome {
        let psci = |mpidr| Cpu { mpidr, enable: CpuEnable::Psci };
        let with = |enable| Cpu { mpidr: 0x42, enable };
        let refused = |cpu, core| start(&cpu, core, work).err();
        let nobody = Some(StartError::Refused(psci::Error::InvalidParameters));
        check(refused(psci(0x77), 4) == nobody, "a core that is not there")?;
        check(refused(psci(0x77), 0) == Some(StartError::BadNumber), "number 0")?;
        check(refused(psci(0x77), MAX_CORES) == Some(StartError::BadNumber), "number 8")?;
        check(refused(cpu(0), 4) == Some(StartError::AlreadyOn), "the boot core")?;
        let unknown = refused(with(CpuEnable::Unknown), 4);
        check(unknown == Some(StartError::NoMethod), "an unknown method")?;
        for address in [0, 0x4800_0004, layout::PA_LIMIT] {
            let table = CpuEnable::SpinTable(sparkler::memory::Pa::new(address));
            check(refused(with(table), 4).is_some(), "a bad release address")?;
        }
        Ok(())
    }

    fn a_core_that_does_not_come_is_given_up_after_a_second() -> Outcome {
        let release = ram::ram(64, 64);
        let cpu = Cpu { mpidr: 0x42, enable: CpuEnable::SpinTable(release.pa()) };
        let (before, second) = (Counter.now(), u64::from(Counter.frequency().hertz()));
        check(start(&cpu, 5, work) == Err(StartError::Late), "another answer")?;
        let waited = Counter.now().0 - before.0;
        check(waited >= second && waited < 5 * second, "not a second")?;
        check(start(&cpu, 5, work) == Err(StartError::BadNumber), "its number is free")
    }

    /// Pages of a core's stack and exception stack, and of the guards under them; linker.ld.
    const STACK: usize = 4 * 4096;
    const EXCEPTION_STACK: usize = 2 * 4096;
    const GUARD: usize = 4096;

    fn stacks_have_guard_pages_and_are_not_shared() -> Outcome {
        unsafe extern "C" {
            static __exception_stack_top: u8;
        }
        let mut end = (&raw const __exception_stack_top).addr();
        // SAFETY: this core runs no guest; the last page of a stack is not in use, and the stores are
        // below it.
        let faults = |address| unsafe { probe(Probe::Read, address) }.is_err();
        for core in 1..CORES {
            check(faults(end), "no guard page under the stack")?;
            let (low, high) = (end + GUARD, end + GUARD + STACK);
            let sp = FOUND.lock()[core].ok_or("nothing found")?.stack;
            check(low <= sp && sp <= high, "a core is not on its stack")?;
            check(!faults(low) && !faults(high - 8), "the stack is not mapped")?;
            check(faults(high), "no guard page under the exception stack")?;
            end = high + GUARD + EXCEPTION_STACK;
            check(!faults(high + GUARD) && !faults(end - 8), "the exception stack is not mapped")?;
        }
        check(faults(end), "there are stacks of a core that is off")
    }

    fn the_identity_map_is_gone_on_every_core() -> Outcome {
        static REACHABLE: AtomicBool = AtomicBool::new(false);
        on_all_cores(|_| {
            let image = mmu::image_pa(layout::IMAGE_BASE).raw() as usize;
            for kind in [Probe::Read, Probe::Call] {
                // SAFETY: this core runs no guest. Nothing is mapped there.
                if unsafe { probe(kind, image) }.is_ok() {
                    REACHABLE.store(true, Ordering::Relaxed);
                }
            }
        })?;
        check(!REACHABLE.load(Ordering::Relaxed), "an identity map is left")
    }

    fn faults_at_the_same_time_do_not_disturb_each_other() -> Outcome {
        static WRONG: AtomicU64 = AtomicU64::new(0);
        on_all_cores(|core| {
            for n in 0..2_000 {
                let (kind, expected) = match (core + n) % 3 {
                    0 => (Probe::Read, 0x9400_0000),
                    1 => (Probe::Write, 0x9400_0040),
                    _ => (Probe::Call, 0x8400_0000),
                };
                // SAFETY: this core runs no guest. Nothing is mapped there.
                let esr = unsafe { probe(kind, 0x1000 * core) }.err();
                if esr.map(|esr| esr & 0xfc00_0040) != Some(expected) {
                    WRONG.fetch_add(1, Ordering::Relaxed);
                }
            }
        })?;
        check(WRONG.load(Ordering::Relaxed) == 0, "a core has the fault of another")
    }

    fn memory_is_coherent_and_locks_lock() -> Outcome {
        const ROUNDS: u64 = 10_000;
        static PAIR: Mutex<(u64, u64)> = Mutex::new((0, 0));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        static TORN: AtomicBool = AtomicBool::new(false);
        on_all_cores(|_| {
            for _ in 0..ROUNDS {
                let mut pair = PAIR.lock();
                if pair.0 != pair.1 {
                    TORN.store(true, Ordering::Relaxed);
                }
                pair.0 += 1;
                pair.1 += 1;
                COUNT.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        check(!TORN.load(Ordering::Relaxed), "two cores held one lock")?;
        let expected = ROUNDS * CORES as u64;
        check(*PAIR.lock() == (expected, expected), "an update was lost")?;
        check(COUNT.load(Ordering::Relaxed) == expected, "an atomic update was lost")
    }

    fn what_is_mapped_later_is_mapped_for_all() -> Outcome {
        static ADDRESS: AtomicUsize = AtomicUsize::new(0);
        static SUM: AtomicU64 = AtomicU64::new(0);
        let memory = ram::ram(0x1000, 0x1000);
        memory.store_u64(0, 0x5eed).expect("room");
        ADDRESS.store(layout::linear(memory.pa()), Ordering::Relaxed);
        on_all_cores(|_| {
            let word = ADDRESS.load(Ordering::Relaxed) as *const u64;
            // SAFETY: mapped RAM that is not written to.
            SUM.fetch_add(unsafe { word.read_volatile() }, Ordering::Relaxed);
        })?;
        check(SUM.load(Ordering::Relaxed) == 0x5eed * CORES as u64, "a core reads something else")
    }

    fn main(boot: BootInfo) -> ! {
        CPUS.call_once(|| el2_support::board(boot).cpus);
        extern "C" fn tests() -> ! {
            macro_rules! list {
                ($($name:ident),* $(,)?) => { el2_support::run(&[$((stringify!($name), $name)),*]) };
            }
            list!(
                cores_start_once_and_run_with_the_boot_cores_map,
                a_core_starts_by_a_spin_table,
                what_cannot_be_started_is_an_error,
                a_core_that_does_not_come_is_given_up_after_a_second,
                stacks_have_guard_pages_and_are_not_shared,
                the_identity_map_is_gone_on_every_core,
                faults_at_the_same_time_do_not_disturb_each_other,
                memory_is_coherent_and_locks_lock,
                what_is_mapped_later_is_mapped_for_all,
            )
        }
        el2_support::on_own_stack(tests)
    }
    sparkler::entry!(main);
}
