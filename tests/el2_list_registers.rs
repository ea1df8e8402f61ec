//! EL2: the virtual GIC on the core's list registers.
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
    use sparkler::arch::gic::MAINTENANCE_INTID;
    use sparkler::arch::gic::list_registers::CoreListRegisters;
    use sparkler::arch::interrupts::VIRTUAL_TIMER_INTID;
    use sparkler::gic::{GicVersion, IntId, ListRegister, ListRegisters, Maintenance, State};
    use sparkler::vm::Host;
    use sparkler::vm::exit::Next;
    use spin::Mutex;

    use super::el2_support::{self, check, gic};
    use super::guest::{Guest, Store, TEST_DEVICE, guest};

    core::arch::global_asm!(
        include_str!("guests/common.S"),
        include_str!("guests/list_registers.S")
    );

    type Outcome = Result<(), &'static str>;

    /// What the acknowledge register reads where there is no interrupt.
    const NONE: u64 = 1023;
    const TIMER_BIT: u32 = 1 << VIRTUAL_TIMER_INTID;

    /// What EL2 sees at a store of the payload to the test device.
    #[derive(Clone, Copy, Debug)]
    struct Snapshot {
        list_registers: [ListRegister; 4],
        active: u32,
    }

    impl Snapshot {
        /// The list register that holds `intid`.
        fn holding(&self, intid: u32) -> Option<ListRegister> {
            let mut held = self.list_registers.iter().filter(|lr| lr.vintid() == intid);
            held.find(|lr| !lr.is_invalid()).copied()
        }
    }

    static SNAPSHOTS: Mutex<heapless::Vec<Snapshot, 16>> = Mutex::new(heapless::Vec::new());

    fn take_snapshot(_: Store) {
        let snapshot = Snapshot { list_registers: gic::list_registers(), active: gic::active() };
        SNAPSHOTS.lock().push(snapshot).expect("a payload with fewer snapshots");
    }

    /// Runs a payload to its end; what was seen on the way.
    fn run(guest: &mut Guest, label: usize) -> Result<heapless::Vec<Snapshot, 16>, &'static str> {
        SNAPSHOTS.lock().clear();
        TEST_DEVICE.lock().on_store = take_snapshot;
        let end = guest.run(label);
        TEST_DEVICE.lock().on_store = |_| {};
        check(end == Next::PowerOff, "the payload did not power off")?;
        Ok(SNAPSHOTS.lock().clone())
    }

    /// Compares what the payload found with what it should have found.
    fn results(guest: &Guest, expected: &[u64]) -> Outcome {
        for (n, expected) in expected.iter().enumerate() {
            if guest.result(n) != *expected {
                semihosting::println!("result {n}: {:#x}, not {expected:#x}", guest.result(n));
                return Err("the guest found something else");
            }
        }
        Ok(())
    }

    fn software(intid: u32, state: State) -> ListRegister {
        ListRegister::new(IntId::new(intid).unwrap_or_default(), state, 0x80, true)
    }

    fn all_list_registers_hold_what_was_written() -> Outcome {
        let mut lrs = gic::physical().list_registers();
        let count = lrs.count();
        check(count == gic::list_register_count(), "another number of them")?;
        check(count >= 4, "the tests need four")?;
        let all = (1u32 << count) - 1;
        check(lrs.empty() & all == all, "they are not empty at first")?;
        let states = [State::Pending, State::Active, State::PendingActive];
        let value = |n: usize| software(32 + 7 * n as u32, states[n % 3]);
        for n in 0..count {
            lrs.write(n, value(n));
            check(lrs.empty() & all == all & !0 << (n + 1), "the written one counts as empty")?;
        }
        for n in 0..count {
            check(lrs.read(n) == value(n), "it does not hold what was written")?;
        }
        let lrs = gic::physical().list_registers();
        check(lrs.empty() & all == all, "they are not empty in the end")
    }

    fn maintenance_is_asked_for_and_the_interface_stays_on() -> Outcome {
        let mut lrs = gic::physical().list_registers();
        let hcr = |lrs: &mut CoreListRegisters, no_pending, unlisted_active| {
            lrs.set_maintenance(Maintenance { no_pending, unlisted_active });
            gic::hcr() & 0xf
        };
        check(hcr(&mut lrs, true, false) == 0b1001, "NPIE")?;
        check(hcr(&mut lrs, false, true) == 0b0101, "LRENPIE")?;
        check(hcr(&mut lrs, false, false) == 0b0001, "none")?;
        gic::set_hcr(5 << 27 | 1);
        check(lrs.take_eoi_count() == 5, "EOIcount is not what it was")?;
        check(lrs.take_eoi_count() == 0, "EOIcount is counted twice")?;
        check(gic::hcr() == 1, "the interface is off")
    }

    fn a_list_register_ended_with_maintenance_waits_to_be_seen_to() -> Outcome {
        let mut guest = guest();
        // Nobody but this test shall look at what the guest has done.
        guest.gic.disable(MAINTENANCE_INTID);
        let lr = software(40, State::Pending).with_eoi_maintenance(true);
        guest.seat().core.list_registers().write(2, lr);
        let run = run(&mut guest, label!(end_what_is_there));
        guest.gic.enable(MAINTENANCE_INTID, false);
        run?;
        let lrs = guest.seat().core.list_registers();
        let (held, empty) = (lrs.read(2), lrs.empty());
        lrs.write(2, ListRegister::EMPTY);
        results(&guest, &[40])?;
        check(held.is_invalid() && held.has_eoi_maintenance(), "it is not the one")?;
        check(empty & 1 << 2 == 0, "it counts as empty before it was seen to")?;
        check(guest.exits().interrupts == 0, "it was looked at")
    }

    fn the_timers_interrupt_is_the_guests_from_expiry_to_end() -> Outcome {
        let mut guest = guest();
        let snapshots = run(&mut guest, label!(timer_rounds))?;
        results(&guest, &[27, 27, 27])?;
        check(guest.exits().interrupts == gic::exits_of_timer(3), "not one exit for each expiry")?;
        check(snapshots.len() == 9, "not three looks at each")?;
        for round in snapshots.chunks(3) {
            let [before, acknowledged, ended] = round else { return Err("not three looks") };
            let lr = before.holding(VIRTUAL_TIMER_INTID).ok_or("it is not listed")?;
            check(lr.state() == State::Pending, "it is not pending")?;
            // QEMU's GICv2 gets no HW = 1 (arch::gic::v2).
            check(
                lr.physical() == Some(27) || gic::version() == GicVersion::V2,
                "it is not tied to the physical one",
            )?;
            check(before.active & TIMER_BIT != 0, "the physical one is not active")?;
            let lr = acknowledged.holding(VIRTUAL_TIMER_INTID).ok_or("it is gone")?;
            check(lr.state() == State::Active, "it is not active")?;
            check(acknowledged.active & TIMER_BIT != 0, "the physical one was deactivated")?;
            check(ended.holding(VIRTUAL_TIMER_INTID).is_none(), "it is still listed")?;
            check(ended.active & TIMER_BIT == 0, "the physical one is still active")?;
        }
        Ok(())
    }

    fn a_guest_that_ends_in_its_timers_interrupt_leaves_none_active() -> Outcome {
        let mut guest = guest();
        let snapshots = run(&mut guest, label!(timer_left_active))?;
        results(&guest, &[27])?;
        check(snapshots[0].active & TIMER_BIT != 0, "it was not in service")?;
        // It is taken off the core before the next guest comes, which gets its own.
        run(&mut guest, label!(timer_rounds))?;
        results(&guest, &[27, 27, 27])
    }

    /// GICD_ISACTIVER1 with these active.
    fn active(intids: &[u32]) -> u64 {
        intids.iter().fold(0, |bits, intid| bits | 1 << (intid - 32))
    }

    const NESTED: [u32; 6] = [40, 41, 42, 43, 44, 45];

    fn more_are_active_than_there_are_list_registers() -> Outcome {
        let mut guest = guest();
        let snapshots = run(&mut guest, label!(nested))?;
        results(&guest, &NESTED.map(u64::from))?;
        let mut expected = heapless::Vec::<u64, 32>::new();
        let _ = expected.extend_from_slice(&NESTED.map(u64::from));
        // All active; the less urgent one waits, before and after the guest has worked.
        let _ = expected.extend_from_slice(&[active(&NESTED), NONE, NONE]);
        for ended in 1..=NESTED.len() {
            let _ = expected.push(active(&NESTED[..NESTED.len() - ended]));
        }
        let _ = expected.extend_from_slice(&[48, 0, NONE]);
        results(&guest, &expected)?;
        for snapshot in &snapshots {
            let pending = snapshot.holding(48).ok_or("the less urgent one is not listed")?;
            check(pending.state() == State::Pending, "the less urgent one is not pending")?;
            let empty = snapshot.list_registers.iter().filter(|lr| lr.is_invalid()).count();
            check(empty == 0, "a list register is free")?;
        }
        check(snapshots.len() == 2, "not two looks")?;
        // V2: nothing is pending that could be taken, and no interrupt says so over and over.
        let interrupts = guest.exits().interrupts;
        check(interrupts <= 2 * NESTED.len() as u64 + 2, "a storm of maintenance interrupts")
    }

    fn ends_in_a_row_reach_what_is_in_no_list_register() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(ends_in_a_row))?;
        check(guest.result(6) == active(&NESTED), "they were not all active")?;
        check(guest.result(7) == 0, "one is still active")?;
        check(guest.result(8) == NONE, "one came again")
    }

    fn interrupts_are_deactivated_apart_from_their_end() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(split_end))?;
        let mut expected = heapless::Vec::<u64, 32>::new();
        let _ = expected.extend_from_slice(&NESTED.map(u64::from));
        let mut left = active(&NESTED);
        let _ = expected.extend_from_slice(&[left, left]);
        if gic::version() == GicVersion::V2 {
            // GICV_DIR cannot be trapped: of those outside the list registers the hardware says how
            // many, not which. In the end none is active.
            results(&guest, &expected)?;
            check(guest.result(13) == 0, "one is still active")?;
            return check(guest.result(14) == NONE, "one came again");
        }
        for intid in [42, 45, 40, 41, 44, 43] {
            left &= !active(&[intid]);
            let _ = expected.push(left);
        }
        let _ = expected.push(NONE);
        results(&guest, &expected)?;
        check(guest.exceptions().is_empty(), "a deactivation is undefined")
    }

    fn forty_at_once_come_once_each_the_most_urgent_first() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(overflow))?;
        let mut expected = heapless::Vec::<u64, 41>::new();
        for class in 0..4 {
            expected.extend((64..104).filter(|intid| intid & 3 == class));
        }
        let _ = expected.push(NONE);
        results(&guest, &expected)?;
        check(guest.exits().interrupts <= 40, "more maintenance than interrupts")
    }

    fn a_level_comes_again_until_it_is_low() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(level))?;
        results(&guest, &[NONE, 33, 33, NONE, NONE])
    }

    fn an_edge_while_active_comes_after_the_end() -> Outcome {
        let mut guest = guest();
        let snapshots = run(&mut guest, label!(edge_while_active))?;
        results(&guest, &[50, NONE, 50, NONE])?;
        let lr = snapshots[0].holding(50).ok_or("it is not listed")?;
        check(lr.state() == State::PendingActive, "it is not pending and active")
    }

    fn a_guests_interrupt_to_itself_comes() -> Outcome {
        let mut guest = guest();
        run(&mut guest, label!(sgi))?;
        results(&guest, &[5, NONE])
    }

    el2_tests!(
        all_list_registers_hold_what_was_written,
        maintenance_is_asked_for_and_the_interface_stays_on,
        a_list_register_ended_with_maintenance_waits_to_be_seen_to,
        the_timers_interrupt_is_the_guests_from_expiry_to_end,
        a_guest_that_ends_in_its_timers_interrupt_leaves_none_active,
        more_are_active_than_there_are_list_registers,
        ends_in_a_row_reach_what_is_in_no_list_register,
        interrupts_are_deactivated_apart_from_their_end,
        forty_at_once_come_once_each_the_most_urgent_first,
        a_level_comes_again_until_it_is_low,
        an_edge_while_active_comes_after_the_end,
        a_guests_interrupt_to_itself_comes,
    );
}
