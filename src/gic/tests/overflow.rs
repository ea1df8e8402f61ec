//! More interrupts than list registers, pending or active.

use super::*;

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
fn ends_of_interrupts_that_never_were_do_not_count_against_a_forced_active_one() {
    let mut machine = Machine::new(1);
    for _ in 0..20 {
        machine.core.deactivate(50);
    }
    machine.write_bit(ISACTIVER, 48);
    machine.pulse(50);
    machine.pulse(51);
    machine.enter();
    assert!(machine.read_bit(ISACTIVER, 48));
}

#[test]
fn an_interrupt_acknowledged_again_at_another_priority_ranks_by_that() {
    let mut machine = Machine::new(1);
    nest(&mut machine, &[0x20]);
    machine.pulse(40);
    machine.set_priority(40, 0xa0);
    machine.enter();
    // Ended and acknowledged again without an exit.
    assert_eq!(machine.core.end_of_interrupt(), Some(40));
    assert_eq!(machine.core.acknowledge(), Some(40));
    for (intid, priority) in [(41, 0x60), (42, 0x10)] {
        machine.set_priority(intid, priority);
        machine.pulse(intid);
        assert_eq!(machine.ack(), Some(intid));
    }
    assert_eq!(machine.eoi(), Some(42));
    assert_eq!(machine.eoi(), Some(41));
    assert!(!machine.read_bit(ISACTIVER, 41));
    assert!(machine.read_bit(ISACTIVER, 40));
}

#[test]
fn a_forced_active_interrupt_that_is_acknowledged_later_ranks_as_such() {
    let mut machine = Machine::new(2);
    machine.set_priority(50, 0xc0);
    machine.pulse(50);
    assert_eq!(machine.ack(), Some(50));
    machine.write_bit(ISACTIVER, 40);
    machine.pulse(40);
    machine.enter();
    machine.core.deactivate(40);
    assert_eq!(machine.core.acknowledge(), Some(40));
    for (intid, priority) in [(41, 0x60), (42, 0x10)] {
        machine.set_priority(intid, priority);
        machine.pulse(intid);
        assert_eq!(machine.ack(), Some(intid));
    }
    for intid in [42, 41, 40] {
        assert_eq!(machine.eoi(), Some(intid));
    }
    assert!(!machine.read_bit(ISACTIVER, 40));
    assert!(machine.read_bit(ISACTIVER, 50));
}
