use proptest::prelude::*;

use super::*;

/// Base register value used throughout: inside a page, room on both sides.
const BASE: u64 = 0xFFFF_8000_0A00_0800;
const IPA_BASE: u64 = 0x0A00_0800;

fn registers() -> GuestRegisters {
    let mut registers = GuestRegisters::new();
    for number in 0..31 {
        registers.set(Register::from_bits(number), 0x1111_1111_1111_1111 * u64::from(number % 16));
    }
    registers
}

fn fault(offset: i64, write: bool) -> FaultingAccess {
    FaultingAccess {
        address: BASE.wrapping_add_signed(offset),
        ipa: Ipa::new(IPA_BASE.wrapping_add_signed(offset)),
        write,
        stack_pointer: BASE,
    }
}

fn with_base(number: u32) -> GuestRegisters {
    let mut registers = registers();
    registers.set(Register::from_bits(number), BASE);
    registers
}

// Words and operands as LLVM's disassembler gives them.
#[test]
fn known_words_decode() {
    let registers = with_base(1);
    let load = |width, sign_extend, sixty_four, number| {
        let register = Register::from_bits(number);
        MmioKind::Load(LoadTarget::new(register, width, sign_extend, sixty_four))
    };
    let cases = [
        // ldr w0, [x1], #4
        (0xB840_4420, 0, load(Width::Word, false, false, 0), None, 4),
        // ldrb w2, [x1], #1
        (0x3840_1422, 0, load(Width::Byte, false, false, 2), None, 1),
        // ldr x3, [x1, #-8]!
        (0xF85F_8C23, -8, load(Width::Double, false, true, 3), None, -8),
        // ldrsw x4, [x1], #4
        (0xB880_4424, 0, load(Width::Word, true, true, 4), None, 4),
        // ldrsh w5, [x1, #2]!
        (0x78C0_2C25, 2, load(Width::Half, true, false, 5), None, 2),
        // ldp w6, w7, [x1], #8
        (
            0x28C1_1C26,
            0,
            load(Width::Word, false, false, 6),
            Some(load(Width::Word, false, false, 7)),
            8,
        ),
        // ldpsw x8, x9, [x1, #-8]!
        (
            0x69FF_2428,
            -8,
            load(Width::Word, true, true, 8),
            Some(load(Width::Word, true, true, 9)),
            -8,
        ),
    ];
    for (word, offset, first, second, moved) in cases {
        let transfer = decode(word, &fault(offset, false), &registers).unwrap();
        assert_eq!(transfer.first.kind, first, "{word:#x}");
        assert_eq!(transfer.first.ipa.raw(), IPA_BASE.wrapping_add_signed(offset), "{word:#x}");
        assert_eq!(transfer.second.map(|access| access.kind), second, "{word:#x}");
        let base = WriteBack::Register(Register::from_bits(1), BASE.wrapping_add_signed(moved));
        assert_eq!(transfer.write_back, base, "{word:#x}");
    }
}

#[test]
fn known_stores_carry_the_registers() {
    // stp x3, xzr, [x1, #16]
    let transfer = decode(0xA901_7C23, &fault(16, true), &with_base(1)).unwrap();
    assert_eq!(transfer.first.kind, MmioKind::Store { value: 0x3333_3333_3333_3333 });
    let second = transfer.second.unwrap();
    assert_eq!(second.kind, MmioKind::Store { value: 0 });
    assert_eq!(second.ipa.raw(), IPA_BASE + 24);
    assert_eq!(transfer.write_back, WriteBack::None);
    // strb w2, [x1], #1
    let transfer = decode(0x3800_1422, &fault(0, true), &with_base(1)).unwrap();
    assert_eq!(transfer.first.kind, MmioKind::Store { value: 0x22 });
    // stur w2, [x1, #-3]
    let transfer = decode(0xB81F_D022, &fault(-3, true), &with_base(1)).unwrap();
    assert_eq!(transfer.first.kind, MmioKind::Store { value: 0x2222_2222 });
    assert_eq!(transfer.write_back, WriteBack::None);
}

#[test]
fn the_stack_pointer_is_a_base_and_goes_back_to_the_caller() {
    // ldr x0, [sp], #16
    let mut registers = registers();
    let transfer = decode(0xF841_07E0, &fault(0, false), &registers).unwrap();
    assert_eq!(transfer.write_back, WriteBack::StackPointer(BASE + 16));
    let before = registers.clone();
    assert_eq!(transfer.finish(&mut registers), Some(BASE + 16));
    assert_eq!(registers, before);
    // str xzr, [sp, #-16]!: the zero register and the base share a number, not a register.
    let transfer = decode(0xF81F_0FFF, &fault(-16, true), &registers).unwrap();
    assert_eq!(transfer.first.kind, MmioKind::Store { value: 0 });
}

#[test]
fn write_back_reaches_the_base_register_only() {
    let mut registers = with_base(1);
    let transfer = decode(0xB840_4420, &fault(0, false), &registers).unwrap();
    let mut expected = registers.clone();
    expected.set(Register::from_bits(1), BASE + 4);
    assert_eq!(transfer.finish(&mut registers), None);
    assert_eq!(registers, expected);
}

#[test]
fn what_we_do_not_emulate_is_refused() {
    let words = [
        (0x3DC0_0020, "ldr q0, [x1]"),
        (0xFC40_8420, "ldr d0, [x1], #8"),
        (0x6D40_0420, "ldp d0, d1, [x1]"),
        (0x885F_7C20, "ldxr w0, [x1]"),
        (0x88DF_FC20, "ldar w0, [x1]"),
        (0x889F_FC20, "stlr w0, [x1]"),
        (0xB820_0022, "ldadd w0, w2, [x1]"),
        (0x88A0_7C22, "cas w0, w2, [x1]"),
        (0x9940_0020, "ldapur w0, [x1]"),
        (0xB8BF_C020, "ldapr w0, [x1]"),
        (0x6900_0820, "stgp x0, x2, [x1]"),
        (0xD920_0820, "stg x0, [x1]"),
        (0xF880_0020, "prfum pldl1keep, [x1]"),
        (0xB840_0820, "ldtr w0, [x1]"),
        (0x1800_0000, "ldr w0, ."),
        (0xD503_201F, "nop"),
        (0x0000_0000, "udf #0"),
        (0xFFFF_FFFF, "not allocated"),
    ];
    for (word, name) in words {
        for write in [false, true] {
            let refused = decode(word, &fault(0, write), &with_base(1));
            assert_eq!(refused, Err(Refused::Unsupported), "{name}");
        }
    }
}

#[test]
fn unpredictable_forms_are_refused() {
    let words = [
        (0xB840_4421, false, "ldr w1, [x1], #4"),
        (0xB800_4421, true, "str w1, [x1], #4"),
        (0xA8C1_0821, false, "ldp x1, x2, [x1], #16"),
        (0xA8C1_0422, false, "ldp x2, x1, [x1], #16"),
        (0xA940_0822, false, "ldp x2, x2, [x1]"),
    ];
    for (word, write, name) in words {
        let refused = decode(word, &fault(0, write), &with_base(1));
        assert_eq!(refused, Err(Refused::Unpredictable), "{name}");
    }
    // stp x2, x2, [x1] is as good as any.
    assert!(decode(0xA900_0822, &fault(0, true), &with_base(1)).is_ok());
}

#[test]
fn an_instruction_that_did_not_make_the_access_is_refused() {
    let registers = with_base(1);
    let ldr_post = 0xB840_4420;
    assert_eq!(decode(ldr_post, &fault(0, true), &registers), Err(Refused::Direction));
    for offset in [-1, 4, 0x100, -0x1000] {
        let refused = decode(ldr_post, &fault(offset, false), &registers);
        assert_eq!(refused, Err(Refused::Address), "{offset}");
    }
}

#[test]
fn a_pair_may_fault_at_its_second_register() {
    // ldp w6, w7, [x1], #8
    let transfer = decode(0x28C1_1C26, &fault(4, false), &with_base(1)).unwrap();
    assert_eq!(transfer.first.ipa.raw(), IPA_BASE);
    assert_eq!(transfer.accesses().count(), 2);
}

#[test]
fn an_access_over_the_end_of_a_page_is_refused() {
    let mut registers = registers();
    registers.set(Register::from_bits(1), 0x1FFC);
    let fault = FaultingAccess {
        address: 0x2000,
        ipa: Ipa::new(0x0A00_0000),
        write: false,
        stack_pointer: 0,
    };
    // ldp w6, w7, [x1], #8
    assert_eq!(decode(0x28C1_1C26, &fault, &registers), Err(Refused::CrossesPage));
    // ldr x3, [x1], #8
    assert_eq!(decode(0xF840_8423, &fault, &registers), Err(Refused::CrossesPage));
}

/// What an encoder makes a word from: mnemonics, not bit fields of the decoder.
#[derive(Clone, Copy, Debug)]
enum Mnemonic {
    Str,
    Strb,
    Strh,
    Ldr,
    Ldrb,
    Ldrh,
    Ldrsb,
    Ldrsh,
    Ldrsw,
}

/// Name, W or X register, then the word with all operands zero (from the instruction pages, C6.2,
/// unscaled form), bytes, sign.
const IMMEDIATE: [(Mnemonic, bool, u32, u64, bool); 13] = [
    (Mnemonic::Str, false, 0xB800_0000, 4, false),
    (Mnemonic::Str, true, 0xF800_0000, 8, false),
    (Mnemonic::Strb, false, 0x3800_0000, 1, false),
    (Mnemonic::Strh, false, 0x7800_0000, 2, false),
    (Mnemonic::Ldr, false, 0xB840_0000, 4, false),
    (Mnemonic::Ldr, true, 0xF840_0000, 8, false),
    (Mnemonic::Ldrb, false, 0x3840_0000, 1, false),
    (Mnemonic::Ldrh, false, 0x7840_0000, 2, false),
    (Mnemonic::Ldrsb, false, 0x38C0_0000, 1, true),
    (Mnemonic::Ldrsb, true, 0x3880_0000, 1, true),
    (Mnemonic::Ldrsh, false, 0x78C0_0000, 2, true),
    (Mnemonic::Ldrsh, true, 0x7880_0000, 2, true),
    (Mnemonic::Ldrsw, true, 0xB880_0000, 4, true),
];

/// X registers, word with all operands zero (C6.2, signed offset form), bytes, sign, load.
const PAIR: [(bool, u32, u64, bool, bool); 5] = [
    (false, 0x2900_0000, 4, false, false),
    (true, 0xA900_0000, 8, false, false),
    (false, 0x2940_0000, 4, false, true),
    (true, 0xA940_0000, 8, false, true),
    (true, 0x6940_0000, 4, true, true),
];

/// Register contents for a case: base as asked, the others recognisable.
fn state(base: u32) -> (GuestRegisters, u64) {
    let registers = if base == 31 { registers() } else { with_base(base) };
    (registers, BASE)
}

fn expect(
    load: bool,
    bytes: u64,
    sign: bool,
    sixty_four: bool,
    number: u32,
    registers: &GuestRegisters,
) -> MmioKind {
    let width = [Width::Byte, Width::Half, Width::Word, Width::Double]
        .into_iter()
        .find(|width| width.bytes() == bytes)
        .unwrap();
    let register = Register::from_bits(number);
    if load {
        MmioKind::Load(LoadTarget::new(register, width, sign, sixty_four))
    } else {
        let mask = if bytes == 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
        MmioKind::Store { value: registers.get(register) & mask }
    }
}

proptest! {
    #[test]
    fn every_single_form_decodes_as_it_was_encoded(
        form in 0usize..13, index in 0u32..3, offset in -256i64..256, rn in 0u32..32, rt in 0u32..32,
    ) {
        let (mnemonic, sixty_four, opcode, bytes, sign) = IMMEDIATE[form];
        // LDUR, post-index, pre-index.
        let mode = [0, 0x400, 0xC00][index as usize];
        let word = opcode + mode + ((offset + 512) as u32 % 512) * 0x1000 + rn * 32 + rt;
        let load = !matches!(mnemonic, Mnemonic::Str | Mnemonic::Strb | Mnemonic::Strh);
        let (registers, _) = state(rn);
        let at = if index == 1 { 0 } else { offset };
        let result = decode(word, &fault(at, !load), &registers);
        if index != 0 && rn == rt && rn != 31 {
            prop_assert_eq!(result, Err(Refused::Unpredictable));
            return Ok(());
        }
        let transfer = result.unwrap();
        prop_assert_eq!(transfer.first.kind, expect(load, bytes, sign, sixty_four, rt, &registers));
        prop_assert_eq!(transfer.first.width.bytes(), bytes);
        prop_assert_eq!(transfer.first.ipa.raw(), IPA_BASE.wrapping_add_signed(at));
        prop_assert_eq!(transfer.second, None);
        let moved = BASE.wrapping_add_signed(offset);
        prop_assert_eq!(transfer.write_back, match (index, rn) {
            (0, _) => WriteBack::None,
            (_, 31) => WriteBack::StackPointer(moved),
            _ => WriteBack::Register(Register::from_bits(rn), moved),
        });
    }

    #[test]
    fn every_pair_form_decodes_as_it_was_encoded(
        form in 0usize..5, index in 0u32..4, scaled in -64i64..64,
        rn in 0u32..32, rt in 0u32..32, rt2 in 0u32..32,
    ) {
        let (sixty_four, opcode, bytes, sign, load) = PAIR[form];
        // No-allocate, post-index, signed offset, pre-index, relative to the signed offset's word.
        let word = match index {
            0 => opcode - 0x0100_0000,
            1 => opcode - 0x0080_0000,
            2 => opcode,
            _ => opcode + 0x0080_0000,
        } + ((scaled + 128) as u32 % 128) * 0x8000 + rt2 * 1024 + rn * 32 + rt;
        let (registers, _) = state(rn);
        let offset = scaled * bytes as i64;
        let at = if index == 1 { 0 } else { offset };
        let result = decode(word, &fault(at, !load), &registers);
        if sign && index == 0 {
            prop_assert_eq!(result, Err(Refused::Unsupported));
            return Ok(());
        }
        let writes_back = index == 1 || index == 3;
        if load && rt == rt2 || writes_back && rn != 31 && (rn == rt || rn == rt2) {
            prop_assert_eq!(result, Err(Refused::Unpredictable));
            return Ok(());
        }
        let transfer = result.unwrap();
        let second = transfer.second.unwrap();
        prop_assert_eq!(transfer.first.kind, expect(load, bytes, sign, sixty_four, rt, &registers));
        prop_assert_eq!(second.kind, expect(load, bytes, sign, sixty_four, rt2, &registers));
        prop_assert_eq!(transfer.first.ipa.raw(), IPA_BASE.wrapping_add_signed(at));
        prop_assert_eq!(second.ipa.raw(), IPA_BASE.wrapping_add_signed(at) + bytes);
        let moved = BASE.wrapping_add_signed(offset);
        prop_assert_eq!(transfer.write_back, match (writes_back, rn) {
            (false, _) => WriteBack::None,
            (true, 31) => WriteBack::StackPointer(moved),
            (true, _) => WriteBack::Register(Register::from_bits(rn), moved),
        });
    }

    #[test]
    fn no_word_panics_and_what_decodes_covers_the_fault(
        word: u32, address: u64, ipa: u64, write: bool, base: u64,
    ) {
        let mut registers = GuestRegisters::new();
        for number in 0..31 {
            registers.set(Register::from_bits(number), base);
        }
        let fault = FaultingAccess { address, ipa: Ipa::new(ipa), write, stack_pointer: base };
        if let Ok(transfer) = decode(word, &fault, &registers) {
            let end = transfer.accesses().map(|access| access.ipa.raw() + access.width.bytes()).max();
            prop_assert!(transfer.first.ipa.raw() <= ipa && ipa < end.unwrap());
        }
    }
}
