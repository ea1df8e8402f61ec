//! EL2: guests with vCPUs on several cores, and several on one.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod el2_support;
#[cfg(target_os = "none")]
#[macro_use]
#[path = "el2_support/guest.rs"]
mod guest;

#[cfg(target_os = "none")]
mod on_target {
    use core::ptr;
    use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    use core::time::Duration;

    use sparkler::arch::boot::BootInfo;
    use sparkler::arch::gic::{CoreAddress, PhysicalGic};
    use sparkler::arch::guest::{Resident, Seat};
    use sparkler::arch::smp::{MAX_CORES, start};
    use sparkler::arch::stage2::Registers;
    use sparkler::arch::timer::Counter;
    use sparkler::arch::{barrier, cache};
    use sparkler::backend::clock::Clock;
    use sparkler::gic::VcpuIndex;
    use sparkler::memory::{FramePool, SharedSlice};
    use sparkler::sync::Mutex;
    use sparkler::vm::exit::Next;
    use sparkler::vm::lifecycle::{Request, State};
    use sparkler::vm::run_queue::Weight;
    use sparkler::vm::{Vm, layout};
    use spin::Once;

    use super::el2_support::{self, check, gic, ram};
    use super::guest::{self, RAM_SIZE, RESULTS, Store, TEST_DEVICE};

    core::arch::global_asm!(include_str!("guests/common.S"), include_str!("guests/smp.S"));

    type Outcome = Result<(), &'static str>;

    const CORES: usize = 4;
    /// MAILBOX of `smp.S`, where vCPU 0 counts, as a result's number.
    const RING: usize = 0x8_0000 / 8;

    /// A machine of the test.
    struct Machine {
        vm: &'static Vm<'static>,
        kernel: SharedSlice<'static>,
        memory: SharedSlice<'static>,
        stage2: Registers,
    }

    impl Machine {
        /// Number `n`, with a vCPU on each of `cores`.
        fn build(n: u16, name: &'static str, cores: &[u8], pool: &mut FramePool<'static>) -> Self {
            let memory = ram::ram(RAM_SIZE, 0x20_0000);
            let tables = guest::address_space(pool, n, memory);
            let vm = guest::machine(name, memory, tables.geometry(), cores);
            Self { vm, kernel: guest::kernel(), memory, stage2: Registers::new(&tables) }
        }

        fn sit(&self, index: usize, seat: &mut Seat) {
            let index = VcpuIndex::new(index).expect("a vCPU");
            let resident = ram::place(Resident::new(self.vm, index, self.stage2));
            assert!(seat.add(resident, Weight::DEFAULT));
        }

        /// Has it start anew with the payload at `label` when its core looks. It then runs until it is
        /// started again, also beside the tests that follow.
        fn start(&self, label: usize) {
            guest::select(self.kernel, label);
            let life = &self.vm.life;
            let _ = life.ask(if life.state().is_down() { Request::Start } else { Request::Reset });
        }

        fn result(&self, n: usize) -> u64 {
            cache::clean_invalidate(self.memory);
            let at = (RESULTS - layout::RAM.raw()) as usize + 8 * n;
            self.memory.load_u64(at).expect("guest RAM")
        }

        fn results<const N: usize>(&self) -> [u64; N] {
            core::array::from_fn(|n| self.result(n))
        }
    }

    /// A vCPU of `four` is on each core; `one` and `two` share core 0 with its first.
    struct Fleet {
        seat: *mut Seat,
        four: Machine,
        one: Machine,
        two: Machine,
    }

    // SAFETY: what is not shared by its own means is the boot core's alone.
    unsafe impl Send for Fleet {}
    // SAFETY: as above.
    unsafe impl Sync for Fleet {}

    static FLEET: Once<Fleet> = Once::new();
    static GICS: Mutex<[Option<PhysicalGic>; MAX_CORES]> = Mutex::new([None; MAX_CORES]);
    static READY: AtomicUsize = AtomicUsize::new(1);
    static SEATS: [AtomicPtr<Seat>; CORES] = [const { AtomicPtr::new(ptr::null_mut()) }; CORES];
    static GO: AtomicBool = AtomicBool::new(false);

    fn secondary(core: usize) -> ! {
        let gic = gic::physical().init_core(&gic::frames()).expect("a GIC");
        GICS.lock()[core] = Some(gic);
        READY.fetch_add(1, Ordering::AcqRel);
        while !GO.load(Ordering::Acquire) {
            barrier::relax();
        }
        // SAFETY: placed for ever, and this core's alone.
        unsafe { &mut *SEATS[core].load(Ordering::Relaxed) }.run()
    }

    fn build(boot: BootInfo) -> Fleet {
        let cpus = el2_support::board(boot).cpus;
        GICS.lock()[0] = Some(gic::physical());
        for core in 1..CORES {
            assert!(start(&cpus[core], core, secondary).is_ok());
        }
        while READY.load(Ordering::Acquire) != CORES {
            barrier::relax();
        }
        let mut pool = ram::pool(0x20_0000);
        let four = Machine::build(1, "four", &[0, 1, 2, 3], &mut pool);
        let one = Machine::build(2, "one", &[0], &mut pool);
        let two = Machine::build(3, "two", &[0], &mut pool);
        let gics = *GICS.lock();
        let addresses: [Option<CoreAddress>; MAX_CORES] =
            core::array::from_fn(|core| gics[core].map(|gic| gic.this_core()));
        let mut own = ptr::null_mut();
        for core in 0..CORES {
            let mut seat = Seat::new(four.vm, gics[core].expect("a GIC"));
            seat.connect(addresses);
            four.sit(core, &mut seat);
            if core == 0 {
                seat.intercept = Some(guest::on_end);
                for machine in [&one, &two] {
                    machine.sit(0, &mut seat);
                }
                for machine in [&four, &one, &two] {
                    assert!(seat.manage(guest::managed(machine.vm, machine.kernel)));
                }
                own = ram::place(seat);
            } else {
                SEATS[core].store(ram::place(seat), Ordering::Relaxed);
            }
        }
        GO.store(true, Ordering::Release);
        Fleet { seat: own, four, one, two }
    }

    impl Fleet {
        /// Runs this core until a guest of it powers its machine off.
        fn run(&self) -> Outcome {
            guest::run_seat(self.seat);
            check(guest::take_end() == Next::PowerOff, "a guest does not power off")
        }
    }

    fn fleet() -> &'static Fleet {
        FLEET.get().expect("a fleet")
    }

    fn milliseconds(ticks: u64) -> u64 {
        ticks / Counter.frequency().ticks(Duration::from_millis(1)).0
    }

    fn four_vcpus_wake_each_other_by_sgis() -> Outcome {
        let fleet = fleet();
        fleet.four.start(label!(sgi_ring));
        fleet.run()?;
        let results = fleet.four.results();
        check(results[..3] == [0; 3], "CPU_ON fails")?;
        check(results == [0, 0, 0, 100, 0xe00], "an SGI is lost, or another comes")
    }

    fn vcpus_are_turned_on_and_off_a_hundred_times() -> Outcome {
        let fleet = fleet();
        fleet.four.start(label!(power_cycles));
        fleet.run()?;
        check(fleet.four.results() == [101, 0], "a start fails, or is not a fresh one")
    }

    fn bad_starts_are_refused() -> Outcome {
        let fleet = fleet();
        fleet.four.start(label!(bad_starts));
        fleet.run()?;
        const ALREADY_ON: u64 = -4i64 as u64;
        const INVALID_PARAMETERS: u64 = -2i64 as u64;
        const INVALID_ADDRESS: u64 = -9i64 as u64;
        let results: [u64; 16] = fleet.four.results();
        check(results[..3] == [0, ALREADY_ON, ALREADY_ON], "on twice")?;
        check(results[3..8] == [INVALID_PARAMETERS; 5], "a vCPU that is not there")?;
        check(results[8..14] == [INVALID_ADDRESS; 6], "an entry outside of RAM")?;
        check(results[14..] == [1, INVALID_PARAMETERS], "what was refused is on")
    }

    /// `one` sleeps ten times until a timer expires, twice.
    fn sleeps() -> Outcome {
        let fleet = fleet();
        fleet.one.start(label!(parked_by_timer));
        fleet.run()?;
        let [virtual_left, virtual_late, physical_left, physical_late] = fleet.one.results();
        check(virtual_left == 0 && physical_left == 0, "another interrupt comes")?;
        let late = milliseconds(virtual_late.max(physical_late));
        check(late < 500, "it wakes late")
    }

    fn a_parked_vcpu_is_woken_by_its_timers() -> Outcome {
        sleeps()
    }

    fn who_spins_with_interrupts_masked_keeps_nobody_from_running() -> Outcome {
        let fleet = fleet();
        fleet.two.start(label!(spins));
        sleeps()
    }

    fn who_shares_a_core_notices_nothing_in_its_registers() -> Outcome {
        let fleet = fleet();
        fleet.two.start(label!(keeps_second));
        fleet.one.start(label!(keeps_first));
        fleet.run()?;
        let [first, second]: [[u64; 2]; 2] = [fleet.one.results(), fleet.two.results()];
        check(first[1] == 0, "the first has lost something")?;
        check(second[1] == 0, "the second has lost something")?;
        check(first[0] > 100 && second[0] > 100, "one of them did not run")
    }

    fn more_are_active_than_fit_on_a_shared_core() -> Outcome {
        let fleet = fleet();
        fleet.two.start(label!(overflows_second));
        fleet.one.start(label!(overflows_first));
        fleet.run()?;
        let second: [u64; 2] = fleet.two.results();
        check(fleet.one.results() == [0, 1], "an interrupt is lost or comes twice")?;
        check(second[0] == 0, "the second loses one, or has it twice")
    }

    fn who_waits_has_paid_for_what_it_ran() -> Outcome {
        let fleet = fleet();
        fleet.two.start(label!(counts));
        fleet.one.start(label!(counts_and_sleeps));
        fleet.run()?;
        let (sleeper, other) = (fleet.one.result(0), fleet.two.result(0));
        check(sleeper > 1000, "it does not run")?;
        check(other > sleeper / 10 * 7, "it comes before the other each time it has slept")
    }

    fn who_waits_for_what_is_pending_has_no_more_than_its_share() -> Outcome {
        let fleet = fleet();
        fleet.two.start(label!(counts));
        fleet.one.start(label!(counts_a_while));
        fleet.run()?;
        let beside_another = fleet.one.result(0);
        fleet.two.start(label!(waits_for_the_pending));
        fleet.one.start(label!(counts_a_while));
        fleet.run()?;
        let (count, waits) = (fleet.one.result(0), fleet.two.result(0));
        check(waits > 100, "it does not run")?;
        // It runs for a slice at a time: were the timer that ends it lost but once, the neighbour would have a
        // slice in all. The margin is for what else the host does, whose time this is without -icount.
        check(count > beside_another / 3, "it takes its neighbour's time")
    }

    fn a_timer_whose_interrupt_is_disabled_wakes_nobody() -> Outcome {
        wakes_once(label!(disabled_timer))
    }

    fn what_the_priority_mask_keeps_off_wakes_nobody() -> Outcome {
        wakes_once(label!(masked_by_priority))
    }

    /// `one` has something pending that is not to end its wait, and the physical timer's interrupt, which is.
    fn wakes_once(label: usize) -> Outcome {
        let fleet = fleet();
        fleet.one.start(label);
        fleet.run()?;
        let [wakes, interrupt] = fleet.one.results();
        check(interrupt == 30, "another interrupt comes")?;
        check(wakes < 10, "it wakes again and again")
    }

    static ACCEPTED: AtomicU32 = AtomicU32::new(0);
    /// States that the machine was in when something was asked, a bit each.
    static SEEN: AtomicU32 = AtomicU32::new(0);
    static COMPLAINT: AtomicU64 = AtomicU64::new(0);

    /// Asks of `four` what the director's number says; or one of `four` has found something wrong.
    fn direct(store: Store) {
        TEST_DEVICE.lock().stores.clear();
        if store.offset != 0 {
            COMPLAINT.store(store.value, Ordering::Relaxed);
            return;
        }
        let life = &fleet().four.vm.life;
        SEEN.fetch_or(1 << life.state() as u32, Ordering::Relaxed);
        let request = match store.value % 16 {
            0..4 => Request::Reset,
            4..8 => Request::Pause,
            8..12 => Request::Resume,
            12..15 => Request::Start,
            _ => Request::Stop,
        };
        if life.ask(request).is_ok() {
            ACCEPTED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All there is of `four` when it has just been started; for what it is compared with.
    fn inventory() -> Result<[u64; 20], &'static str> {
        let fleet = fleet();
        fleet.four.start(label!(inventory));
        fleet.run()?;
        let results: [u64; 20] = fleet.four.results();
        check(results.iter().take(5).all(|hash| *hash != 0), "nothing is listed")?;
        Ok(results)
    }

    fn hundreds_of_resets_pauses_and_stops_end_as_the_first_start() -> Outcome {
        let fleet = fleet();
        let first = inventory()?;
        let starts = fleet.four.vm.life.starts();
        fleet.two.start(label!(counts));
        fleet.four.start(label!(lives));
        TEST_DEVICE.lock().on_store = direct;
        fleet.one.start(label!(director));
        fleet.run()?;
        check(COMPLAINT.load(Ordering::Relaxed) == 0, "a vCPU of it has found something wrong")?;
        check(ACCEPTED.load(Ordering::Relaxed) >= 300, "too little was accepted")?;
        let wanted = [State::Off, State::Running, State::Paused].map(|state| 1 << state as u32);
        let seen = SEEN.load(Ordering::Relaxed);
        check(wanted.iter().all(|bit| seen & bit != 0), "it was not in all states")?;
        let life = &fleet.four.vm.life;
        check(life.starts() > starts + 50, "it was hardly started")?;
        check(fleet.two.result(0) > 1000, "its neighbour did not run")?;
        // Wherever it has ended, it goes on when it is told to, with all of its vCPUs.
        let _ = (life.ask(Request::Start), life.ask(Request::Resume));
        let progress = || (life.starts(), fleet.four.result(RING));
        let before = progress();
        for _ in 0..20 {
            fleet.one.start(label!(counts_a_while));
            fleet.run()?;
            if progress() != before {
                break;
            }
        }
        check(life.state() == State::Running && progress() != before, "it does not go on")?;
        check(COMPLAINT.load(Ordering::Relaxed) == 0, "a vCPU of it has found something wrong")?;
        check(inventory()? == first, "something of its past is left")?;
        four_vcpus_wake_each_other_by_sgis()
    }

    fn main(boot: BootInfo) -> ! {
        FLEET.call_once(|| build(boot));
        extern "C" fn tests() -> ! {
            macro_rules! list {
                ($($name:ident),* $(,)?) => { el2_support::run(&[$((stringify!($name), $name)),*]) };
            }
            list!(
                four_vcpus_wake_each_other_by_sgis,
                vcpus_are_turned_on_and_off_a_hundred_times,
                bad_starts_are_refused,
                a_parked_vcpu_is_woken_by_its_timers,
                who_spins_with_interrupts_masked_keeps_nobody_from_running,
                who_shares_a_core_notices_nothing_in_its_registers,
                more_are_active_than_fit_on_a_shared_core,
                who_waits_has_paid_for_what_it_ran,
                who_waits_for_what_is_pending_has_no_more_than_its_share,
                a_timer_whose_interrupt_is_disabled_wakes_nobody,
                hundreds_of_resets_pauses_and_stops_end_as_the_first_start,
                what_the_priority_mask_keeps_off_wakes_nobody,
            )
        }
        el2_support::on_own_stack(tests)
    }
    sparkler::entry!(main);
}
