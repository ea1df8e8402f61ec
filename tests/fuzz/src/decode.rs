//! Instructions that are read from guest memory.

use sparkler::cpu::decode::{FaultingAccess, WriteBack, decode as decode_word};
use sparkler::cpu::{GuestRegisters, MmioKind, Register};
use sparkler::memory::Ipa;

use crate::input::Input;

/// Any word, for any fault and registers. What is believed made this access: it is of the direction
/// that aborted, and lies in the page that aborted.
pub fn decode(data: &[u8]) {
    let input = &mut Input::new(data);
    let word = input.u32();
    let mut registers = GuestRegisters::new();
    let (address, page) = (input.u64(), input.u64() & 0xFF_FFFF_F000);
    let close = input.u8();
    for number in 0..31 {
        // Registers near the fault's address, or else anything.
        let value = if close & 1 == 0 {
            address.wrapping_add_signed(i64::from(input.u8() as i8))
        } else {
            input.u64()
        };
        registers.set(Register::from_bits(number), value);
    }
    let fault = FaultingAccess {
        address,
        ipa: Ipa::new(page | address & 0xFFF),
        write: close & 2 != 0,
        stack_pointer: address.wrapping_add_signed(i64::from(input.u8() as i8)),
    };
    let before = registers.clone();
    let result = decode_word(word, &fault, &registers);
    assert_eq!(decode_word(word, &fault, &registers).is_ok(), result.is_ok());
    let Ok(transfer) = result else { return };
    // V = 0, and no exclusives: bits 29:27 are x01 with x = 1, or a pair.
    assert_eq!(word >> 26 & 1, 0, "{word:#x} is SIMD");
    assert_eq!(word >> 27 & 1, 1, "{word:#x} is no load or store");
    let mut end = transfer.first.ipa.raw();
    for access in transfer.accesses() {
        assert_eq!(matches!(access.kind, MmioKind::Store { .. }), fault.write);
        assert_eq!(access.ipa.raw(), end);
        end += access.width.bytes();
    }
    let first = transfer.first.ipa.raw();
    assert_eq!(first & !0xFFF, page, "{word:#x}: another page");
    assert!(end <= page + 0x1000, "{word:#x}: over the page's end");
    assert!((first..end).contains(&fault.ipa.raw()), "{word:#x}: another address");
    let moved = transfer.finish(&mut registers);
    assert_eq!(moved.is_some(), matches!(transfer.write_back, WriteBack::StackPointer(_)));
    let changed = (0..31)
        .map(Register::from_bits)
        .filter(|register| registers.get(*register) != before.get(*register))
        .count();
    assert!(changed <= 1, "more than the base register is written");
}
