//! Virtual interrupts that are tied to physical ones: the timer.

use super::*;

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
fn a_physical_edge_while_active_is_delivered_after_the_deactivation() {
    let mut machine = Machine::new(4);
    machine.write_bit(ISACTIVER, TIMER);
    machine.enter();
    machine.set_timer(true);
    machine.enter();
    machine.timer_line = false;
    assert_eq!(machine.drain(), []);
    machine.write_bit(ICACTIVER, TIMER);
    assert_eq!(machine.drain(), [TIMER]);
    assert!(machine.core.physical.is_empty());
}

#[test]
fn a_finished_timer_leaves_nothing_behind() {
    let mut machine = Machine::new(4);
    machine.set_timer(true);
    assert_eq!(machine.ack(), Some(TIMER));
    machine.timer_line = false;
    machine.eoi();
    machine.pulse(48);
    assert_eq!(machine.drain(), [48]);
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
