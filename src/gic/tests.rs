//! Rules of the state machine and of list-register scheduling, one by one. Names that begin with a
//! letter and a number cite the list of known defects of other virtual GICs.

use super::model::{Machine, TIMER};
use super::*;

mod random;

const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const BOOT: VcpuIndex = VcpuIndex::BOOT;

fn listed(machine: &Machine, intid: u32) -> Option<ListRegister> {
    machine.core.lrs.iter().copied().find(|lr| !lr.is_invalid() && lr.vintid() == intid)
}

#[test]
fn an_edge_is_delivered_once() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    assert_eq!(machine.drain(), [48]);
    assert_eq!(machine.drain(), []);
}

#[test]
fn edges_before_the_acknowledge_merge() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    machine.enter();
    machine.pulse(48);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn v7_an_edge_while_active_makes_it_pending_and_active() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    assert_eq!(machine.ack(), Some(48));
    machine.pulse(48);
    machine.enter();
    assert_eq!(listed(&machine, 48).unwrap().state(), State::PendingActive);
    machine.eoi();
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn v6_the_pending_latch_is_consumed_when_loaded() {
    let mut machine = Machine::new(4);
    for _ in 0..100 {
        machine.pulse(48);
        assert_eq!(machine.drain(), [48]);
    }
    assert!(!machine.read_bit(ISPENDR, 48));
}

#[test]
fn v6_an_interrupt_raised_while_disabled_is_kept() {
    let mut machine = Machine::new(4);
    machine.write_bit(ICENABLER, 48);
    machine.pulse(48);
    assert_eq!(machine.drain(), []);
    assert!(machine.read_bit(ISPENDR, 48));
    machine.write_bit(ISENABLER, 48);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn disabling_a_listed_pending_interrupt_withdraws_it_and_keeps_it_pending() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    machine.enter();
    assert!(listed(&machine, 48).is_some());
    machine.write_bit(ICENABLER, 48);
    machine.enter();
    assert_eq!(listed(&machine, 48), None);
    assert!(machine.read_bit(ISPENDR, 48));
    machine.write_bit(ISENABLER, 48);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn v4_an_active_interrupt_that_is_disabled_can_still_be_ended() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    assert_eq!(machine.ack(), Some(48));
    machine.write_bit(ICENABLER, 48);
    machine.enter();
    assert!(machine.read_bit(ISACTIVER, 48));
    machine.eoi();
    assert!(!machine.read_bit(ISACTIVER, 48));
    machine.write_bit(ISENABLER, 48);
    machine.pulse(48);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn a_disabled_group_holds_its_interrupts_back() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    machine.enter();
    machine.gicd_write(0, 4, 0b01);
    machine.enter();
    assert_eq!(machine.drain(), []);
    machine.gicd_write(0, 4, 0b10);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn group_and_priority_reach_the_list_register() {
    let mut machine = Machine::new(4);
    machine.set_priority(48, 0x57);
    machine.gicd_write(0x84, 4, !(1 << 1));
    machine.pulse(48);
    machine.pulse(33);
    machine.enter();
    assert!(listed(&machine, 48).unwrap().is_group1());
    assert_eq!(listed(&machine, 48).unwrap().priority(), 0x50);
    assert!(!listed(&machine, 33).unwrap().is_group1());
}

#[test]
fn v1_a_level_is_sampled_again_when_the_guest_ends_the_interrupt() {
    let mut machine = Machine::new(4);
    machine.set_level(33, true);
    assert_eq!(machine.ack(), Some(33));
    assert_eq!(machine.ack(), None);
    machine.eoi();
    assert_eq!(machine.ack(), Some(33));
    machine.set_level(33, false);
    machine.enter();
    assert!(!listed(&machine, 33).unwrap().has_eoi_maintenance(), "no exit for a line that fell");
    machine.eoi();
    assert_eq!(machine.drain(), []);
}

#[test]
fn a_level_that_falls_before_the_acknowledge_is_withdrawn() {
    let mut machine = Machine::new(4);
    machine.set_level(33, true);
    machine.enter();
    assert!(listed(&machine, 33).is_some());
    machine.set_level(33, false);
    machine.enter();
    assert_eq!(listed(&machine, 33), None);
    assert_eq!(machine.drain(), []);
}

#[test]
fn a_level_made_pending_by_software_stays_when_the_line_falls() {
    let mut machine = Machine::new(4);
    machine.set_level(33, true);
    machine.write_bit(ISPENDR, 33);
    machine.enter();
    machine.set_level(33, false);
    assert_eq!(machine.drain(), [33]);
}

#[test]
fn clearing_pending_ends_a_latch_but_not_a_high_line() {
    let mut machine = Machine::new(4);
    machine.set_level(33, true);
    machine.pulse(48);
    machine.enter();
    machine.write_bit(ICPENDR, 33);
    machine.write_bit(ICPENDR, 48);
    machine.enter();
    assert!(machine.read_bit(ISPENDR, 33));
    assert!(!machine.read_bit(ISPENDR, 48));
    assert_eq!(listed(&machine, 48), None);
    assert_eq!(machine.ack(), Some(33));
}

#[test]
fn an_edge_triggered_line_latches_rises_only() {
    let mut machine = Machine::new(4);
    machine.set_edge(48, true);
    machine.set_level(48, true);
    assert_eq!(machine.drain(), [48]);
    machine.set_level(48, true);
    machine.set_level(48, false);
    assert_eq!(machine.drain(), []);
    machine.set_level(48, true);
    assert_eq!(machine.drain(), [48]);
}

#[test]
fn the_most_urgent_goes_first() {
    let mut machine = Machine::new(2);
    for (intid, priority) in [(40, 0xc0), (41, 0x20), (42, 0x80), (43, 0x40), (44, 0xa0)] {
        machine.set_priority(intid, priority);
        machine.pulse(intid);
        machine.enter();
    }
    assert_eq!(machine.drain(), [41, 43, 42, 44, 40]);
}

#[test]
fn v7_overflow_goes_by_priority_not_by_age() {
    let mut machine = Machine::new(1);
    machine.pulse(40);
    machine.enter();
    machine.set_priority(41, 0x20);
    machine.pulse(41);
    machine.enter();
    assert!(listed(&machine, 41).is_some());
    assert_eq!(machine.drain(), [41, 40]);
}

#[test]
fn v1_more_interrupts_than_list_registers_all_arrive() {
    for count in [1, 2, 4, 16] {
        let mut machine = Machine::new(count);
        for intid in 32..256 {
            machine.pulse(intid);
        }
        let mut got = machine.drain();
        got.sort_unstable();
        assert_eq!(got, (32..256).collect::<Vec<_>>());
    }
}

/// Nests `priorities.len()` interrupts, 40 and up.
fn nest(machine: &mut Machine, priorities: &[u8]) {
    for (intid, &priority) in (40..).zip(priorities) {
        machine.set_priority(intid, priority);
        machine.pulse(intid);
        assert_eq!(machine.ack(), Some(intid));
    }
}

#[test]
fn v2_all_list_registers_active_and_one_pending_is_no_storm() {
    let mut machine = Machine::new(4);
    nest(&mut machine, &[0x80, 0x60, 0x40, 0x20]);
    // Less urgent than everything that is active; `enter` fails if maintenance stays asserted.
    machine.pulse(60);
    machine.enter();
    assert_eq!(machine.ack(), None);
    for intid in [43, 42, 41, 40] {
        assert_eq!(machine.eoi(), Some(intid));
    }
    assert_eq!(machine.drain(), [60]);
}

#[test]
fn v2_less_urgent_active_interrupts_are_not_lost_on_eviction() {
    let mut machine = Machine::new(2);
    nest(&mut machine, &[0xa0, 0x80, 0x60, 0x40, 0x20]);
    for intid in 40..45 {
        assert!(machine.read_bit(ISACTIVER, intid), "{intid}");
        // An edge meanwhile must be delivered after the deactivation.
        machine.pulse(intid);
    }
    machine.enter();
    let mut order = Vec::new();
    while let Some(ended) = machine.eoi() {
        order.push(ended);
        machine.enter();
    }
    assert_eq!(order, [44, 43, 42, 41, 40]);
    assert_eq!(machine.drain(), [44, 43, 42, 41, 40]);
}

#[test]
fn an_active_interrupt_outside_the_list_registers_can_be_deactivated_by_dir() {
    let mut machine = Machine::new(1);
    nest(&mut machine, &[0xa0, 0x80, 0x60]);
    for _ in 0..3 {
        machine.drop_priority();
    }
    assert!(machine.core.maintenance.unlisted_active);
    machine.dir(40);
    assert!(!machine.read_bit(ISACTIVER, 40));
    assert!(machine.read_bit(ISACTIVER, 41));
    machine.dir(42);
    machine.dir(41);
    for intid in 40..43 {
        assert!(!machine.read_bit(ISACTIVER, intid));
        machine.pulse(intid);
    }
    assert_eq!(machine.drain().len(), 3);
}

#[test]
fn ends_of_interrupts_that_never_were_deactivate_nothing() {
    let mut machine = Machine::new(1);
    for _ in 0..20 {
        machine.core.deactivate(50);
    }
    nest(&mut machine, &[0xa0, 0x80]);
    assert!(machine.read_bit(ISACTIVER, 40));
    assert!(machine.read_bit(ISACTIVER, 41));
}

#[test]
fn setting_and_clearing_active_by_software_works_listed_and_not() {
    let mut machine = Machine::new(1);
    machine.write_bit(ISACTIVER, 48);
    machine.pulse(48);
    assert_eq!(machine.ack(), None);
    assert!(machine.read_bit(ISACTIVER, 48));
    machine.write_bit(ICACTIVER, 48);
    machine.enter();
    assert!(!machine.read_bit(ISACTIVER, 48));
    assert_eq!(machine.ack(), Some(48));
    machine.write_bit(ICACTIVER, 48);
    machine.enter();
    assert!(!machine.read_bit(ISACTIVER, 48));
}

#[test]
fn the_timer_is_tied_to_its_physical_interrupt() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    machine.enter();
    assert_eq!(listed(&machine, TIMER).unwrap().physical(), Some(TIMER as u16));
    assert_eq!(machine.ack(), Some(TIMER));
    machine.set_timer(false);
    machine.eoi();
    assert!(machine.core.physical.is_empty());
    assert_eq!(machine.drain(), []);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
}

#[test]
fn a_timer_that_stays_high_fires_again_after_each_end() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    for _ in 0..3 {
        assert_eq!(machine.ack(), Some(TIMER));
        machine.eoi();
    }
}

#[test]
fn a_disabled_timer_neither_storms_nor_is_lost() {
    let mut machine = Machine::new(4);
    machine.write_bit(ICENABLER, TIMER);
    machine.set_timer(true);
    machine.enter();
    assert_eq!(machine.drain(), []);
    assert!(machine.core.physical.contains(&(TIMER as u16)), "active, so it cannot storm");
    machine.write_bit(ISENABLER, TIMER);
    assert_eq!(machine.ack(), Some(TIMER));
}

#[test]
fn v3_disabling_an_active_hardware_interrupt_does_not_orphan_it() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.write_bit(ICENABLER, TIMER);
    machine.enter();
    machine.timer_line = false;
    machine.eoi();
    assert!(machine.core.physical.is_empty());
    machine.write_bit(ISENABLER, TIMER);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
}

#[test]
fn v3_making_a_hardware_interrupt_inactive_deactivates_the_physical_one() {
    for count in [1, 4] {
        let mut machine = Machine::new(count);
        machine.set_timer(true);
        assert_eq!(machine.ack(), Some(TIMER));
        if count == 1 {
            // Pushed out of the list register.
            machine.set_priority(48, 0x20);
            machine.pulse(48);
            assert_eq!(machine.ack(), Some(48));
        }
        machine.timer_line = false;
        machine.write_bit(ICACTIVER, TIMER);
        machine.enter();
        assert!(machine.core.physical.is_empty());
    }
}

#[test]
fn v3_an_active_hardware_interrupt_outside_the_list_registers_is_deactivated_in_the_end() {
    let mut machine = Machine::new(1);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.set_priority(48, 0x20);
    machine.pulse(48);
    assert_eq!(machine.ack(), Some(48));
    machine.timer_line = false;
    machine.set_priority(49, 0x10);
    machine.pulse(49);
    assert_eq!(machine.ack(), Some(49));
    for intid in [49, 48, TIMER] {
        assert_eq!(machine.eoi(), Some(intid));
    }
    assert!(machine.core.physical.is_empty());
}

#[test]
fn a_timer_made_pending_by_software_while_active_is_not_pending_active_in_hardware() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.timer_line = false;
    machine.write_bit(ISPENDR, TIMER);
    machine.enter();
    machine.eoi();
    assert_eq!(machine.ack(), Some(TIMER));
    machine.eoi();
    assert!(machine.core.physical.is_empty());
    assert_eq!(machine.drain(), []);
}

#[test]
fn t3_a_timer_that_is_masked_before_the_acknowledge_is_withdrawn() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    machine.enter();
    machine.set_timer(false);
    assert_eq!(machine.drain(), []);
    assert!(machine.core.physical.is_empty());
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.set_timer(false);
    assert!(machine.core.physical.contains(&(TIMER as u16)), "the guest still has to end it");
    machine.eoi();
    assert!(machine.core.physical.is_empty());
}

#[test]
fn t1_whoever_raises_an_interrupt_is_told_whom_to_wake() {
    let mut machine = Machine::new(4);
    assert!(machine.vgic.pulse(IntId::new(48).unwrap()).contains(BOOT));
    assert!(machine.vgic.has_deliverable(BOOT), "before any list register was written");
    machine.enter();
    assert!(machine.vgic.has_deliverable(BOOT));
    assert_eq!(machine.drain(), [48]);
    machine.vgic.sync(BOOT, &mut machine.core);
    assert!(!machine.vgic.has_deliverable(BOOT));
    let timer = IntId::new(TIMER).unwrap();
    machine.core.physical.insert(TIMER as u16);
    let woken = machine.vgic.inject_hw(BOOT, timer, TIMER as u16, &mut machine.core);
    assert!(woken.contains(BOOT));
    assert!(machine.vgic.has_deliverable(BOOT));
}

#[test]
fn v11_interrupts_before_the_guest_has_set_anything_up_wait() {
    let mut machine = Machine::at_reset(4);
    machine.set_timer(true);
    machine.pulse(48);
    machine.set_level(33, true);
    machine.enter();
    assert_eq!(machine.drain(), []);
    assert!(!machine.vgic.has_deliverable(BOOT));
    machine.gicd_write(0, 4, 0b11);
    machine.write_bit(ISENABLER, TIMER);
    assert_eq!(machine.ack(), Some(TIMER));
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    let mut machine = Machine::new(4);
    machine.pulse(48);
    machine.set_level(33, true);
    machine.enter();
    let writes = machine.core.writes;
    assert!(!machine.vgic.needs_flush(BOOT));
    machine.vgic.on_maintenance(BOOT);
    machine.enter();
    machine.write_bit(ISENABLER, 48);
    machine.enter();
    assert_eq!(machine.core.writes, writes);
}

#[test]
fn v1_unloading_keeps_every_state_and_frees_the_core() {
    let mut machine = Machine::new(2);
    nest(&mut machine, &[0x80, 0x60]);
    machine.pulse(41);
    machine.set_level(33, true);
    machine.set_timer(true);
    machine.enter();
    let _ = machine.vgic.unload(BOOT, &mut machine.core);
    assert!(machine.core.lrs.iter().all(|lr| lr.is_invalid()));
    assert!(machine.core.physical.is_empty());
    assert!(!machine.core.maintenance_asserted());
    assert!(machine.vgic.has_deliverable(BOOT));
    machine.timer_line = false;
    machine.enter();
    assert_eq!(machine.eoi(), Some(41));
    assert_eq!(machine.ack(), Some(41));
    assert_eq!(machine.eoi(), Some(41));
    assert_eq!(machine.eoi(), Some(40));
    machine.set_priority(33, 0xb0);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.eoi();
    assert_eq!(machine.ack(), Some(33));
}

#[test]
fn reset_is_power_on_but_for_the_lines() {
    let mut machine = Machine::new(1);
    nest(&mut machine, &[0x80, 0x60, 0x40]);
    machine.set_timer(true);
    machine.set_level(33, true);
    machine.gicd_write(0x6000 + 8 * 48, 8, 3);
    machine.enter();
    machine.timer_line = false;
    machine.vgic.reset(BOOT, &mut machine.core);
    assert!(machine.core.lrs.iter().all(|lr| lr.is_invalid()));
    assert!(machine.core.physical.is_empty());
    machine.core.running.clear();
    for offset in (0x80..0xe00).step_by(4) {
        let expected = if offset == 0x204 || offset == 0x284 { 0b10 } else { 0 };
        assert_eq!(machine.gicd_read(offset, 4), expected, "{offset:#x}");
    }
    for offset in (0x80..0xc00).step_by(4) {
        assert_eq!(machine.gicr_read(0x1_0000 + offset, 4), 0, "{offset:#x}");
    }
    assert_eq!(machine.gicd_read(0x6000 + 8 * 48, 8), 0);
    machine.enter();
    assert_eq!(machine.drain(), []);
}

/// Four vCPUs, SGIs and SPIs enabled in Group 1 on all of them.
fn four() -> (Vgic, [model::FakeCore; 4]) {
    let mut vgic = Vgic::new(4);
    let _ = vgic.gicd_write(0, 4, 0b10);
    let _ = vgic.gicd_write(0x84, 4, 0xffff_ffff);
    let _ = vgic.gicd_write(0x104, 4, 0xffff_ffff);
    for frame in 0..4 {
        let _ = vgic.gicr_write(frame * GICR_STRIDE + 0x1_0080, 4, 0xffff_ffff);
        let _ = vgic.gicr_write(frame * GICR_STRIDE + 0x1_0100, 4, 0xffff_ffff);
    }
    (vgic, core::array::from_fn(|_| model::FakeCore::new(4)))
}

fn vcpu(index: usize) -> VcpuIndex {
    VcpuIndex::new(index).unwrap()
}

fn members(set: VcpuSet) -> Vec<usize> {
    set.iter().map(VcpuIndex::get).collect()
}

#[test]
fn sgis_reach_listed_targets_and_all_but_self() {
    let (mut vgic, mut cores) = four();
    assert_eq!(members(vgic.send_sgi(vcpu(0), 5 << 24 | 0b1010)), [1, 3]);
    assert_eq!(members(vgic.send_sgi(vcpu(2), 6 << 24 | 1 << 40)), [0, 1, 3]);
    assert_eq!(members(vgic.send_sgi(vcpu(2), 7 << 24 | 0b100)), [2], "a vCPU may name itself");
    for (index, expected) in [vec![6], vec![5, 6], vec![7], vec![5, 6]].into_iter().enumerate() {
        let core = &mut cores[index];
        let _ = vgic.flush(vcpu(index), core);
        let mut got: Vec<u32> =
            core.lrs.iter().filter(|lr| lr.is_pending()).map(|lr| lr.vintid()).collect();
        got.sort_unstable();
        assert_eq!(got, expected, "vCPU {index}");
    }
}

#[test]
fn sgis_to_nobody_are_ignored() {
    let (mut vgic, _) = four();
    for value in [
        5 << 24 | 0xfff0,           // Aff0 4 to 15
        5 << 24 | 1 << 44 | 0b1111, // Aff0 16 to 19
        5 << 24 | 1 << 16 | 0b1111, // Aff1 1
        5 << 24 | 1 << 32 | 0b1111, // Aff2 1
        5 << 24 | 1 << 48 | 0b1111, // Aff3 1
        5 << 24,
    ] {
        assert!(vgic.send_sgi(vcpu(0), value).is_empty(), "{value:#x}");
    }
    for index in 0..4 {
        assert!(!vgic.has_deliverable(vcpu(index)));
    }
}

#[test]
fn v5_every_affinity_field_selects() {
    let (mut vgic, _) = four();
    vgic.set_affinity(vcpu(1), Affinity::from_mpidr(0x04_8003_0212));
    let value = 5 << 24 | 4 << 48 | 3 << 32 | 2 << 16 | 1 << 44 | 1 << 2;
    assert_eq!(members(vgic.send_sgi(vcpu(0), value)), [1]);
    let _ = vgic.gicd_write(0x6000 + 8 * 48, 8, 0x04_0003_0212);
    assert_eq!(members(vgic.pulse(IntId::new(48).unwrap())), [1]);
    assert_eq!(
        vgic.gicr_read(vcpu(0), GICR_STRIDE + 8, 8, &mut model::FakeCore::new(1)) >> 32,
        0x0403_0212
    );
}

#[test]
fn group_0_sgi_registers_do_not_reach_group_1_interrupts() {
    let (mut vgic, _) = four();
    let _ = vgic.gicr_write(0x1_0080 + GICR_STRIDE, 4, !(1 << 5));
    assert_eq!(members(vgic.send_group0_sgi(vcpu(0), 5 << 24 | 0b1111)), [1]);
}

#[test]
fn an_spi_follows_its_route_even_out_of_a_list_register() {
    let (mut vgic, mut cores) = four();
    let spi = IntId::new(48).unwrap();
    assert_eq!(members(vgic.pulse(spi)), [0]);
    let _ = vgic.flush(vcpu(0), &mut cores[0]);
    assert!(cores[0].lrs[0].is_pending());
    let concerned = vgic.gicd_write(0x6000 + 8 * 48, 8, 2);
    assert!(concerned.contains(vcpu(0)) && concerned.contains(vcpu(2)));
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert!(cores[2].lrs[0].is_invalid(), "vCPU 0 still holds it");
    assert_eq!(members(vgic.flush(vcpu(0), &mut cores[0])), [2]);
    assert!(cores[0].lrs[0].is_invalid());
    let _ = vgic.flush(vcpu(2), &mut cores[2]);
    assert_eq!((cores[2].lrs[0].vintid(), cores[2].lrs[0].state()), (48, State::Pending));
    assert!(!vgic.has_deliverable(vcpu(0)));
    assert!(vgic.has_deliverable(vcpu(2)));
}

#[test]
fn an_spi_routed_to_nobody_waits() {
    let (mut vgic, _) = four();
    let _ = vgic.gicd_write(0x6000 + 8 * 48, 8, 9);
    assert!(vgic.pulse(IntId::new(48).unwrap()).is_empty());
    assert_eq!(members(vgic.gicd_write(0x6000 + 8 * 48, 8, 1)), [1]);
    assert!(vgic.has_deliverable(vcpu(1)));
}

#[test]
fn private_interrupts_of_one_vcpu_are_not_anothers() {
    let (mut vgic, _) = four();
    assert_eq!(members(vgic.set_ppi_level(vcpu(3), IntId::new(20).unwrap(), true)), [3]);
    for index in 0..4 {
        assert_eq!(vgic.has_deliverable(vcpu(index)), index == 3);
    }
}

#[test]
fn device_calls_ignore_interrupts_of_the_wrong_kind() {
    let (mut vgic, _) = four();
    let (sgi, ppi, spi) =
        (IntId::new(3).unwrap(), IntId::new(20).unwrap(), IntId::new(48).unwrap());
    assert!(vgic.pulse(sgi).is_empty());
    assert!(vgic.pulse(ppi).is_empty());
    assert!(vgic.set_level(ppi, true).is_empty());
    assert!(vgic.set_ppi_level(vcpu(0), sgi, true).is_empty());
    assert!(vgic.set_ppi_level(vcpu(0), spi, true).is_empty());
    assert!((0..4).all(|index| !vgic.has_deliverable(vcpu(index))));
}

#[test]
fn the_number_of_vcpus_is_clamped() {
    let mut core = model::FakeCore::new(1);
    for (asked, last) in [(0, 0), (1, 0), (8, 7), (9, 7), (usize::MAX, 7)] {
        let mut vgic = Vgic::new(asked);
        let typer = vgic.gicr_read(BOOT, last * GICR_STRIDE + 8, 8, &mut core);
        assert_eq!(typer & 0x10, 0x10, "{asked}");
    }
}
