//! Rules of the state machine and of list-register scheduling, one by one. Names that begin with a
//! letter and a number cite the list of known defects of other virtual GICs.

use super::model::{Machine, TIMER};
use super::*;

mod overflow;
mod physical;
mod random;
mod random_several;
mod several;

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

/// Nests `priorities.len()` interrupts, 40 and up.
fn nest(machine: &mut Machine, priorities: &[u8]) {
    for (intid, &priority) in (40..).zip(priorities) {
        machine.set_priority(intid, priority);
        machine.pulse(intid);
        assert_eq!(machine.ack(), Some(intid));
    }
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
fn t1_whoever_raises_an_interrupt_is_told_whom_to_wake() {
    let mut machine = Machine::new(4);
    assert!(machine.vgic.pulse(IntId::new(48).unwrap()).contains(BOOT));
    assert!(machine.vgic.has_deliverable(BOOT, 0xff), "before any list register was written");
    machine.enter();
    assert!(machine.vgic.has_deliverable(BOOT, 0xff));
    assert_eq!(machine.drain(), [48]);
    machine.vgic.sync(BOOT, &mut machine.core);
    assert!(!machine.vgic.has_deliverable(BOOT, 0xff));
    let timer = IntId::new(TIMER).unwrap();
    machine.core.physical.insert(TIMER as u16);
    let woken = machine.vgic.inject_hw(BOOT, timer, TIMER as u16, &mut machine.core);
    assert!(woken.contains(BOOT));
    assert!(machine.vgic.has_deliverable(BOOT, 0xff));
}

#[test]
fn v11_interrupts_before_the_guest_has_set_anything_up_wait() {
    let mut machine = Machine::at_reset(4);
    machine.set_timer(true);
    machine.pulse(48);
    machine.set_level(33, true);
    machine.enter();
    assert_eq!(machine.drain(), []);
    assert!(!machine.vgic.has_deliverable(BOOT, 0xff));
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
    assert!(machine.vgic.has_deliverable(BOOT, 0xff));
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
    let _ = machine.vgic.unload(BOOT, &mut machine.core);
    machine.vgic.reset_unloaded();
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
