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

const FR: u64 = 0x18;
const LCR_H: u64 = 0x2C;
const FEN: u32 = 1 << 4;

#[test]
fn input_without_room_is_refused_and_nothing_is_lost() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(LCR_H), FEN);
    let taken = (0..40).take_while(|byte| receive(&mut machine, *byte)).count();
    assert_eq!(taken, 32);
    assert!(!machine.vm.wants_input());
    let read = (0..32).map(|_| machine.get(uart(DR))).collect::<Vec<_>>();
    // Neither a byte is missing nor an overrun marked.
    assert_eq!(read, (0..32).collect::<Vec<_>>());
    assert!(machine.vm.wants_input());
}

#[test]
fn the_board_hears_once_when_there_is_room_again() {
    let mut machine = Machine::new(vec![]);
    assert!(receive(&mut machine, b'a'));
    for _ in 0..3 {
        machine.get(uart(FR));
    }
    assert_eq!(machine.host.input_wanted, 0, "it is full");
    machine.get(uart(DR));
    assert_eq!(machine.host.input_wanted, 1);
    machine.get(uart(FR));
    machine.get(uart(DR));
    assert_eq!(machine.host.input_wanted, 1, "there was room before");
    // A larger FIFO, emptied, has room too.
    assert!(receive(&mut machine, b'b'));
    machine.set(uart(LCR_H), FEN);
    assert_eq!(machine.host.input_wanted, 2);
}

#[test]
fn a_reset_takes_the_console_as_it_was_made() {
    let mut machine = Machine::new(vec![]);
    machine.set(uart(IMSC), RT);
    assert!(receive(&mut machine, b'a'));
    assert!(machine.vm.reset(machine.vcpu.index, &mut machine.host));
    assert_eq!(machine.host.input_wanted, 1, "a console that was full has room again");
    assert_eq!(machine.host.lrs.pending(), []);
    // The next guest enables the interrupt: no line is left high.
    machine.enable_interrupts();
    assert_eq!(machine.host.lrs.pending(), []);
    machine.set(uart(IMSC), RT);
    assert_eq!(machine.host.lrs.pending(), []);
    assert!(receive(&mut machine, b'b'));
    assert_eq!(machine.host.lrs.pending(), [UART_INTID]);
}
