//! EL2: the counter, EL2's timer, and the guest's timers.
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
    use core::sync::atomic::{AtomicU64, Ordering};

    use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
    use embedded_hal::delay::DelayNs;
    use sparkler::arch::barrier;
    use sparkler::arch::timer::{Counter, TIMER_INTID, never_wake, wake_at};
    use sparkler::backend::clock::{Clock, Ticks};
    use sparkler::vm::exit::Next;

    use super::el2_support::{self, check, gic};
    use super::guest::{Guest, TEST_DEVICE, guest};

    core::arch::global_asm!(include_str!("guests/common.S"), include_str!("guests/timer.S"));

    type Outcome = Result<(), &'static str>;

    /// What ICC_IAR1_EL1 reads where there is no interrupt.
    const NONE: u64 = 1023;

    /// The interrupts pending for this core (ISR_EL1).
    fn pending() -> u64 {
        let isr;
        // SAFETY: a read of the register has no effect.
        unsafe { asm!("mrs {}, isr_el1", out(reg) isr, options(nomem, nostack)) };
        isr
    }

    fn now() -> Ticks {
        barrier::isb();
        Counter.now()
    }

    /// This many microseconds from now.
    fn in_microseconds(count: u64) -> Ticks {
        now().after(Ticks(u64::from(Counter.frequency().hertz()) * count / 1_000_000))
    }

    fn wait_until(time: Ticks) {
        while now() < time {
            barrier::relax();
        }
    }

    /// The interrupt that is taken within a second, ended; its time.
    fn next_interrupt() -> Option<(u32, Ticks)> {
        let patience = in_microseconds(1_000_000);
        while now() < patience {
            if let Some(acknowledged) = gic::physical().acknowledge() {
                let taken = now();
                never_wake();
                gic::physical().drop_priority(acknowledged);
                gic::physical().deactivate(acknowledged);
                return Some((acknowledged.intid(), taken));
            }
        }
        None
    }

    fn the_counter_moves_and_never_back() -> Outcome {
        let first = now();
        let mut last = first;
        for _ in 0..10_000 {
            let next = now();
            check(next >= last, "it went back")?;
            last = next;
        }
        check(last > first, "it stands still")
    }

    fn the_frequency_is_the_boards() -> Outcome {
        let hertz = u64::from(Counter.frequency().hertz());
        check(hertz == CNTFRQ_EL0.get() && hertz > 1_000_000, "another frequency")
    }

    fn a_delay_is_never_short() -> Outcome {
        let hertz = u64::from(Counter.frequency().hertz());
        for ns in [0, 1, 15, 17, 999, 20_000, 1_000_000] {
            let before = now();
            Counter.delay_ns(ns);
            let passed = now().0 - before.0;
            // ticks / hertz >= ns / 10^9, without a division.
            check(passed * 1_000_000_000 >= u64::from(ns) * hertz, "too short")?;
        }
        // Somebody may hold the emulator up, but not ten times in a row.
        let shortest = (0..10).map(|_| {
            let before = now();
            Counter.delay_ns(1_000);
            now().0 - before.0
        });
        check(shortest.min().is_some_and(|ticks| ticks < hertz / 100), "ten milliseconds and more")
    }

    fn the_timer_interrupts_at_its_deadline() -> Outcome {
        let _guest = guest();
        // Often, because an emulator is late now and then, which would hide that it was early.
        for _ in 0..20 {
            let deadline = in_microseconds(500);
            wake_at(deadline);
            let early = pending() != 0;
            check(!early || now() >= deadline, "it came at once")?;
            let (intid, taken) = next_interrupt().ok_or("it never came")?;
            check(intid == TIMER_INTID, "another interrupt")?;
            check(taken >= deadline, "it came early")?;
            check(gic::physical().acknowledge().is_none(), "it came twice")?;
        }
        Ok(())
    }

    fn a_deadline_in_the_past_interrupts_at_once() -> Outcome {
        let _guest = guest();
        wake_at(Ticks(now().0 - 1));
        let taken = next_interrupt();
        check(taken.is_some_and(|taken| taken.0 == TIMER_INTID), "it never came")
    }

    fn the_timer_can_be_stopped() -> Outcome {
        let _guest = guest();
        let deadline = in_microseconds(300);
        wake_at(deadline);
        never_wake();
        wait_until(deadline);
        wait_until(in_microseconds(300));
        check(gic::physical().acknowledge().is_none(), "it came")?;
        check(pending() == 0, "something is pending")
    }

    fn a_new_deadline_takes_the_place_of_the_old_one() -> Outcome {
        let _guest = guest();
        wake_at(in_microseconds(300));
        let deadline = in_microseconds(3_000);
        wake_at(deadline);
        let (_, taken) = next_interrupt().ok_or("it never came")?;
        check(taken >= deadline, "the old one came")
    }

    fn run(guest: &mut Guest, label: usize) -> Outcome {
        check(guest.run(label) == Next::PowerOff, "the payload did not power off")
    }

    fn results(guest: &Guest, expected: &[u64]) -> Outcome {
        for (n, expected) in expected.iter().enumerate() {
            if guest.result(n) != *expected {
                semihosting::println!("result {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err("the guest found something else");
            }
        }
        Ok(())
    }

    fn a_guests_timer_interrupts_once() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(expires_once))?;
        // One interrupt; the timer is enabled, masked and expired.
        results(&guest, &[1, 0b111])?;
        check(guest.exits().interrupts == gic::exits_of_timer(1), "not one exit")
    }

    fn a_guests_timer_that_stays_expired_interrupts_again() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(comes_again))?;
        results(&guest, &[3])?;
        // With a GICv2, an exit sees to one's end and takes the next.
        let ends = gic::exits_of_timer(1) - 1;
        check(guest.exits().interrupts == 3 + ends, "not an exit for each")
    }

    static INTERRUPTS_WHILE_MASKED: AtomicU64 = AtomicU64::new(0);

    fn a_guests_masked_timer_does_not_interrupt() -> Outcome {
        let mut guest = guest();
        INTERRUPTS_WHILE_MASKED.store(1, Ordering::Relaxed);
        // Nothing is pending for EL2 either: T3.
        TEST_DEVICE.lock().on_store =
            |_| INTERRUPTS_WHILE_MASKED.store(pending(), Ordering::Relaxed);
        let end = run(&mut guest, label!(masked));
        TEST_DEVICE.lock().on_store = |_| {};
        end?;
        results(&guest, &[0b111, NONE, 27])?;
        check(INTERRUPTS_WHILE_MASKED.load(Ordering::Relaxed) == 0, "it is pending at EL2")?;
        check(guest.exits().interrupts == 1, "not one exit")
    }

    fn a_guests_timer_waits_while_its_interrupt_is_disabled() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(disabled))?;
        results(&guest, &[NONE, 27])?;
        check(guest.exits().interrupts == 1, "it interrupts EL2 over and over")
    }

    fn a_guest_has_the_physical_timer_too() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(physical))?;
        results(&guest, &[30, NONE])
    }

    fn a_sleeping_guest_wakes_by_its_timer() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(sleeps))?;
        results(&guest, &[3])?;
        check(guest.exits().interrupts == gic::exits_of_timer(3), "not three exits")
    }

    el2_tests!(
        the_counter_moves_and_never_back,
        the_frequency_is_the_boards,
        a_delay_is_never_short,
        the_timer_interrupts_at_its_deadline,
        a_deadline_in_the_past_interrupts_at_once,
        the_timer_can_be_stopped,
        a_new_deadline_takes_the_place_of_the_old_one,
        a_guests_timer_interrupts_once,
        a_guests_timer_that_stays_expired_interrupts_again,
        a_guests_masked_timer_does_not_interrupt,
        a_guests_timer_waits_while_its_interrupt_is_disabled,
        a_guest_has_the_physical_timer_too,
        a_sleeping_guest_wakes_by_its_timer,
    );
}
