//! What a machine's parts do to each other.

use super::*;
use crate::cpu::Width;
use crate::vm::testing::*;

const UART_INTID: u32 = layout::FIRST_SPI + layout::UART_SPI;

/// A register of the UART.
fn uart(offset: u64) -> u64 {
    layout::UART.raw() + offset
}

const DR: u64 = 0x00;
const IMSC: u64 = 0x38;
const RT: u32 = 1 << 6;

fn receive(machine: &mut Machine, byte: u8) -> bool {
    machine.vm.receive(byte, machine.vcpu.index, &mut machine.host)
}

#[test]
fn input_interrupts_until_it_is_read() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert_eq!(machine.host.lrs.pending(), []);
    assert!(receive(&mut machine, b'a'));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
    assert_eq!(machine.get(uart(DR)), u32::from(b'a'));
    assert_eq!(machine.host.lrs.pending(), []);
}

#[test]
fn a_read_of_the_interrupt_controller_leaves_nothing_unlisted() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert!(receive(&mut machine, b'a'));
    // The line is still high when the guest ends the interrupt; the read takes note of the end.
    assert_eq!(machine.host.lrs.acknowledge(), Some(UART_INTID));
    machine.host.lrs.end(UART_INTID);
    let active = layout::GICD.raw() + 0x300 + 4;
    assert_eq!(machine.load(active, Width::Word), Some(0));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
}
