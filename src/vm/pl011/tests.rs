use proptest::prelude::*;

use super::offset::*;
use super::*;

const RX: u64 = 1 << 4;
const TX: u64 = 1 << 5;
const RT: u64 = 1 << 6;
const OE: u64 = 1 << 10;

fn read(uart: &mut Pl011, offset: u64) -> u64 {
    uart.read(offset, Width::Word)
}

fn write(uart: &mut Pl011, offset: u64, value: u64) -> Option<u8> {
    uart.write(offset, Width::Word, value)
}

/// A UART with FIFOs on, RX at half, all interrupts unmasked.
fn uart() -> Pl011 {
    let mut uart = Pl011::new();
    write(&mut uart, LCR_H, 0x70);
    write(&mut uart, CR, 0x301);
    write(&mut uart, IMSC, 0x7FF);
    uart
}

#[test]
fn the_identification_is_an_arm_r1p5() {
    let mut uart = Pl011::new();
    let mut word =
        |base: u64| (0..4).fold(0, |id, n| id | read(&mut uart, base + 4 * n) << (8 * n));
    assert_eq!(word(0xFE0), 0x0034_1011);
    assert_eq!(word(0xFF0), 0xB105_F00D);
}

#[test]
fn reset_values_are_the_manuals() {
    let mut uart = Pl011::new();
    for (offset, value) in
        [(RSR_ECR, 0), (FR, 0x97), (CR, 0x300), (IFLS, 0x12), (IMSC, 0), (RIS, 0), (LCR_H, 0)]
    {
        assert_eq!(read(&mut uart, offset), value, "{offset:#x}");
    }
    assert!(!uart.interrupt_line() && uart.wants_input());
}

#[test]
fn registers_keep_the_bits_they_have() {
    let mut uart = Pl011::new();
    for (offset, value) in [
        (ILPR, 0xFF),
        (IBRD, 0xFFFF),
        (FBRD, 0x3F),
        (LCR_H, 0xFF),
        (CR, 0xFF87),
        (IFLS, 0x3F),
        (IMSC, 0x7FF),
        (DMACR, 7),
    ] {
        assert_eq!(write(&mut uart, offset, u64::MAX), None);
        assert_eq!(read(&mut uart, offset), value, "{offset:#x}");
    }
}

#[test]
fn bytes_are_transmitted_at_once_in_any_width_without_enabling() {
    let mut uart = Pl011::new();
    for width in [Width::Byte, Width::Half, Width::Word, Width::Double] {
        assert_eq!(uart.write(DR, width, 0x1_FFFF_FF41), Some(b'A'));
    }
    // Neither full nor busy, and empty.
    assert_eq!(read(&mut uart, FR) & (1 << 3 | 1 << 5 | 1 << 7), 1 << 7);
}

#[test]
fn a_driver_that_waits_for_the_transmit_interrupt_gets_one_per_write() {
    let mut uart = uart();
    assert!(!uart.interrupt_line());
    for _ in 0..3 {
        write(&mut uart, DR, u64::from(b'x'));
        assert_eq!(read(&mut uart, MIS), TX);
        assert!(uart.interrupt_line());
        write(&mut uart, ICR, TX);
        assert!(!uart.interrupt_line());
    }
}

/// Linux's amba-pl011: fill until full, then on each interrupt clear what is not RX, TX or RT and
/// write half a FIFO more, and mask TX when nothing is left.
#[test]
fn an_interrupt_driven_transmitter_ends_with_the_line_low() {
    let mut uart = uart();
    write(&mut uart, IMSC, 0);
    let mut left = 100u32;
    let mut sent = 0;
    write(&mut uart, DR, 0);
    write(&mut uart, IMSC, TX);
    for _ in 0..32 {
        let status = read(&mut uart, MIS);
        if status & TX == 0 {
            break;
        }
        write(&mut uart, ICR, status & !(TX | RX | RT));
        for _ in 0..16.min(left) {
            assert!(write(&mut uart, DR, 0).is_some());
            sent += 1;
        }
        left -= 16.min(left);
        if left == 0 {
            write(&mut uart, IMSC, 0);
        }
    }
    assert_eq!((sent, uart.interrupt_line()), (100, false));
}

#[test]
fn a_single_byte_interrupts_by_time_out_and_reading_it_ends_that() {
    let mut uart = uart();
    assert!(uart.push(b'a'));
    assert_eq!(read(&mut uart, RIS), RT);
    assert!(uart.interrupt_line());
    assert_eq!(read(&mut uart, FR) & FR_RXFE as u64, 0);
    assert_eq!(read(&mut uart, DR), u64::from(b'a'));
    assert_eq!(read(&mut uart, RIS), 0);
    assert!(!uart.interrupt_line());
    assert_eq!(read(&mut uart, DR), 0);
}

#[test]
fn the_receive_level_follows_ifls() {
    for (select, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 16)] {
        let mut uart = uart();
        write(&mut uart, IFLS, select << 3);
        for n in 1..=32 {
            assert!(uart.push(n));
            assert_eq!(read(&mut uart, RIS) & RX != 0, n >= level, "{select}: {n}");
        }
        for left in (0..32).rev() {
            read(&mut uart, DR);
            assert_eq!(read(&mut uart, RIS) & RX != 0, left >= level, "{select}: {left}");
            assert_eq!(read(&mut uart, RIS) & RT != 0, left > 0);
        }
    }
}

#[test]
fn a_time_out_cleared_with_data_left_comes_again() {
    let mut uart = uart();
    uart.push(1);
    uart.push(2);
    uart.push(3);
    write(&mut uart, ICR, RT);
    assert!(!uart.interrupt_line());
    read(&mut uart, DR);
    assert!(uart.interrupt_line());
    write(&mut uart, ICR, RT);
    uart.push(4);
    assert!(uart.interrupt_line());
}

#[test]
fn without_fifos_one_byte_is_held() {
    let mut uart = Pl011::new();
    assert!(uart.push(b'1'));
    assert!(!uart.wants_input());
    assert_eq!(read(&mut uart, RIS), RX | RT);
    assert_eq!(read(&mut uart, FR) & FR_RXFF as u64, FR_RXFF as u64);
    assert!(!uart.push(b'2'));
    assert_eq!(read(&mut uart, DR), u64::from(b'1'));
    assert!(uart.wants_input());
}

#[test]
fn an_overrun_is_reported_once_and_counted() {
    let mut uart = uart();
    for n in 0..32 {
        assert!(uart.push(n));
    }
    assert!(!uart.wants_input());
    assert!(!uart.push(0xEE));
    assert!(!uart.push(0xEF));
    assert_eq!(uart.overruns(), 2);
    assert_eq!(read(&mut uart, RIS) & OE, OE);
    assert_eq!(read(&mut uart, RSR_ECR), 8);
    write(&mut uart, ICR, OE);
    write(&mut uart, RSR_ECR, 0);
    assert_eq!((read(&mut uart, RIS) & OE, read(&mut uart, RSR_ECR)), (0, 0));
    // The byte after the gap carries the mark, the next does not.
    assert_eq!(read(&mut uart, DR), 0);
    assert!(uart.push(0x40) && uart.wants_input() == (uart.fifo.len() < 32));
    for n in 1..32 {
        assert_eq!(read(&mut uart, DR), n);
    }
    assert_eq!(read(&mut uart, DR), 0x840);
    assert_eq!(read(&mut uart, RSR_ECR), 8);
    uart.push(0x41);
    assert_eq!(read(&mut uart, DR), 0x41);
    assert_eq!(read(&mut uart, RSR_ECR), 0);
}

#[test]
fn loopback_receives_what_is_sent_and_sends_nothing_out() {
    let mut uart = uart();
    write(&mut uart, CR, 0x381);
    assert_eq!(write(&mut uart, DR, 0x5A), None);
    assert_eq!(read(&mut uart, RIS), TX | RT);
    assert_eq!(read(&mut uart, DR), 0x5A);
}

#[test]
fn switching_the_fifos_empties_them() {
    let mut uart = uart();
    uart.push(1);
    uart.push(2);
    write(&mut uart, LCR_H, 0x60);
    assert_eq!(read(&mut uart, RIS), 0);
    assert_eq!(read(&mut uart, FR) & FR_RXFE as u64, FR_RXFE as u64);
}

#[test]
fn masked_interrupts_do_not_raise_the_line() {
    let mut uart = uart();
    write(&mut uart, IMSC, 0);
    uart.push(1);
    assert!(!uart.interrupt_line());
    assert_eq!((read(&mut uart, RIS), read(&mut uart, MIS)), (RT, 0));
    write(&mut uart, IMSC, RT);
    assert!(uart.interrupt_line());
    assert_eq!(read(&mut uart, MIS), RT);
}

#[test]
fn narrow_reads_give_the_bytes_they_ask_for() {
    let mut uart = uart();
    write(&mut uart, IBRD, 0xABCD);
    assert_eq!(uart.read(IBRD, Width::Byte), 0xCD);
    assert_eq!(uart.read(IBRD + 1, Width::Byte), 0xAB);
    assert_eq!(uart.read(IBRD + 2, Width::Half), 0);
    assert_eq!(uart.read(IBRD, Width::Double), 0xABCD);
    // The upper byte of DR does not eat a character.
    uart.push(7);
    assert_eq!(uart.read(DR + 1, Width::Byte), 0);
    assert_eq!(uart.read(DR, Width::Byte), 7);
    assert_eq!(uart.write(DR + 1, Width::Byte, 7), None);
}

proptest! {
    #[test]
    fn only_dr_changes_anything_by_being_read(
        setup in prop::collection::vec((0u64..0x50, any::<u64>()), 0..20),
        input in prop::collection::vec(any::<u8>(), 0..40),
        offset in 4u64..0x1000,
    ) {
        let mut uart = Pl011::new();
        for (offset, value) in setup {
            write(&mut uart, offset, value);
        }
        for byte in input {
            uart.push(byte);
        }
        let before = format!("{uart:?}");
        uart.read(offset, Width::Word);
        prop_assert_eq!(format!("{uart:?}"), before);
    }

    #[test]
    fn any_trace_keeps_the_line_and_the_flags_true(
        trace in prop::collection::vec((0u64..0x1010, any::<u64>(), 0u8..4, 0u32..4), 0..200),
    ) {
        let mut uart = Pl011::new();
        for (offset, value, act, width) in trace {
            let width = Width::from_log2(width);
            match act {
                0 => { uart.read(offset, width); }
                1 => { uart.write(offset, width, value); }
                2 => { uart.write(offset & 0x7C, width, value); }
                _ => {
                    let wanted = uart.wants_input();
                    prop_assert_eq!(uart.push(value as u8), wanted);
                }
            }
            let (raw, mask) = (read(&mut uart, RIS), read(&mut uart, IMSC));
            prop_assert_eq!(read(&mut uart, MIS), raw & mask);
            prop_assert_eq!(uart.interrupt_line(), raw & mask != 0);
            prop_assert!(uart.fifo.len() <= uart.depth());
            let flags = read(&mut uart, FR);
            prop_assert_eq!(flags & FR_RXFE as u64 != 0, uart.fifo.is_empty());
        }
    }
}
