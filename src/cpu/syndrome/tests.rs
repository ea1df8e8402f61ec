use super::*;

/// Bit `n` of `value`, by division: not the way the code under test does it.
fn bit(value: u32, n: u32) -> bool {
    value / 2u32.pow(n) % 2 == 1
}

/// `width` bits of `value` from bit `n`, by division.
fn field(value: u32, n: u32, width: u32) -> u32 {
    value / 2u32.pow(n) % 2u32.pow(width)
}

#[test]
fn every_data_abort_syndrome_decodes_to_its_fields() {
    for iss in 0..1u32 << 25 {
        let esr = 0x24 << 26 | u64::from(iss);
        let Syndrome::DataAbort(abort) = Syndrome::decode(esr) else {
            panic!("{iss:#x} is not a data abort");
        };
        if let Some(instruction) = abort.instruction() {
            assert!(bit(iss, 24));
            assert_eq!(instruction.width.bytes(), 2u64.pow(field(iss, 22, 2)));
            assert_eq!(instruction.sign_extend, bit(iss, 21));
            assert_eq!(u32::from(instruction.register.number()), field(iss, 16, 5));
            assert_eq!(instruction.sixty_four, bit(iss, 15));
            assert_eq!(instruction.acquire_release, bit(iss, 14));
        } else {
            assert!(!bit(iss, 24));
        }
        assert_eq!(abort.far_is_valid(), !bit(iss, 10));
        assert_eq!(abort.external_abort_type(), bit(iss, 9));
        assert_eq!(abort.is_cache_maintenance(), bit(iss, 8));
        assert_eq!(abort.is_stage1_walk(), bit(iss, 7));
        assert_eq!(abort.is_write(), bit(iss, 6));
        assert_eq!(u32::from(abort.status().bits()), field(iss, 0, 6));
        let fault = field(iss, 2, 4);
        let plain = !bit(iss, 10) && !bit(iss, 8) && !bit(iss, 7);
        assert_eq!(abort.may_be_mmio(), plain && (fault == 1 || fault == 3));
    }
}

#[test]
fn every_exception_class_decodes_and_only_trapped_instructions_advance() {
    for class in 0..64u64 {
        let syndrome = Syndrome::decode(class << 26 | 1 << 25 | 0x1234);
        let named = ExceptionClass::from_esr(class << 26);
        assert_eq!(u64::from(named.number()), class);
        let expected = match class {
            0x01 => Syndrome::WaitFor(WaitFor(0x1234)),
            0x03 | 0x04 | 0x05 | 0x06 | 0x08 | 0x0C | 0x12 | 0x13 => Syndrome::AArch32(named),
            0x07 => Syndrome::FpAccess,
            0x09 => Syndrome::PointerAuthentication,
            0x0E => Syndrome::IllegalState,
            0x16 => Syndrome::Hvc { immediate: 0x1234 },
            0x17 => Syndrome::Smc { immediate: 0x1234 },
            0x18 => Syndrome::SystemRegister(SystemRegisterAccess(0x1234)),
            0x19 => Syndrome::SveAccess,
            0x1A => Syndrome::Eret,
            0x1D => Syndrome::SmeAccess,
            0x20 => Syndrome::InstructionAbort(InstructionAbort(0x1234)),
            0x21 => Syndrome::InstructionAbortInEl2(InstructionAbort(0x1234)),
            0x24 => Syndrome::DataAbort(DataAbort(0x1234)),
            0x25 => Syndrome::DataAbortInEl2(DataAbort(0x1234)),
            0x2F => Syndrome::SError,
            0x30 | 0x31 | 0x32 | 0x33 | 0x34 | 0x35 | 0x38 | 0x3A | 0x3C => Syndrome::Debug(named),
            _ => Syndrome::Other(named),
        };
        assert_eq!(syndrome, expected);
        let trapped = [0x01, 0x03, 0x04, 0x05, 0x06, 0x08, 0x0C, 0x12, 0x13, 0x17, 0x18, 0x24];
        assert_eq!(syndrome.advances_pc(), trapped.contains(&class), "class {class:#x}");
    }
}

#[test]
fn s24_a_trapped_smc_steps_and_an_hvc_does_not() {
    assert!(Syndrome::decode(0x17 << 26 | 1 << 25).advances_pc());
    assert!(!Syndrome::decode(0x16 << 26 | 1 << 25).advances_pc());
}

#[test]
fn bits_above_the_syndrome_do_not_reach_it() {
    let esr = 0xFFFF_FFFF_0000_0000 | 0x24 << 26 | 1 << 25;
    assert_eq!(Syndrome::decode(esr), Syndrome::DataAbort(DataAbort(0)));
    assert_eq!(InstructionLength::from_esr(esr), InstructionLength::Four);
    assert_eq!(InstructionLength::from_esr(0x24 << 26).bytes(), 2);
}

#[test]
fn every_fault_status_has_its_kind() {
    use FaultKind::*;
    let kinds: [(u32, FaultKind); 34] = [
        (0b000000, AddressSize(0)),
        (0b000001, AddressSize(1)),
        (0b000010, AddressSize(2)),
        (0b000011, AddressSize(3)),
        (0b000100, Translation(0)),
        (0b000101, Translation(1)),
        (0b000110, Translation(2)),
        (0b000111, Translation(3)),
        (0b001000, AccessFlag(0)),
        (0b001001, AccessFlag(1)),
        (0b001010, AccessFlag(2)),
        (0b001011, AccessFlag(3)),
        (0b001100, Permission(0)),
        (0b001101, Permission(1)),
        (0b001110, Permission(2)),
        (0b001111, Permission(3)),
        (0b010000, SyncExternal),
        (0b010001, TagCheck),
        (0b010011, SyncExternalOnWalk(-1)),
        (0b010100, SyncExternalOnWalk(0)),
        (0b010111, SyncExternalOnWalk(3)),
        (0b011000, Parity),
        (0b011011, ParityOnWalk(-1)),
        (0b011100, ParityOnWalk(0)),
        (0b011111, ParityOnWalk(3)),
        (0b100001, Alignment),
        (0b100011, GranuleProtection),
        (0b101000, GranuleProtection),
        (0b101001, AddressSize(-1)),
        (0b101011, Translation(-1)),
        (0b110000, TlbConflict),
        (0b110001, UnsupportedAtomicUpdate),
        (0b110100, Lockdown),
        (0b110101, UnsupportedAtomic),
    ];
    for (bits, kind) in kinds {
        assert_eq!(FaultStatus::from_bits(bits).kind(), kind, "{bits:#b}");
    }
    for bits in [0b010010, 0b011001, 0b011010, 0b100000, 0b101100, 0b111111] {
        assert_eq!(FaultStatus::from_bits(bits).kind(), Reserved, "{bits:#b}");
    }
}

#[test]
fn a_faulting_ipa_takes_its_page_from_hpfar_and_its_offset_from_far() {
    // Non-secure bit and reserved bits around FIPA must not leak in.
    let hpfar = 1 << 63 | 0x0900_0000 >> 8 | 0xF;
    assert_eq!(fault_ipa(hpfar, 0xFFFF_8000_1234_5018), Ipa::new(0x0900_0018));
    assert_eq!(fault_ipa(u64::MAX, u64::MAX), Ipa::new(0x00FF_FFFF_FFFF_FFFF));
}

#[test]
fn waits_are_told_apart() {
    let wait = |iss: u64| match Syndrome::decode(0x01 << 26 | 1 << 25 | iss) {
        Syndrome::WaitFor(wait) => (wait.event(), wait.has_timeout(), wait.timeout()),
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(0b000), (false, false, None));
    assert_eq!(wait(0b001), (true, false, None));
    assert_eq!(wait(0b010), (false, true, None));
    assert_eq!(wait(7 << 5 | 0b110), (false, true, Some(Register::from_bits(7))));
    assert_eq!(wait(7 << 5 | 0b111), (true, true, Some(Register::from_bits(7))));
    assert_eq!(wait(7 << 5 | 0b100), (false, false, None));
}

#[test]
fn a_system_register_access_names_register_target_and_direction() {
    // MRS x9, ID_AA64PFR0_EL1 (3, 0, 0, 4, 0): ISS assembled by hand from the field positions.
    let iss = 3 << 20 | 9 << 5 | 4 << 1 | 1;
    let access = SystemRegisterAccess::from_iss(iss);
    assert_eq!(access.system_register(), SystemRegister::new(3, 0, 0, 4, 0));
    assert_eq!(access.register().number(), 9);
    assert!(access.is_read());
    assert!(!SystemRegisterAccess::from_iss(iss & !1).is_read());
}

#[test]
fn an_instruction_abort_decodes_to_its_fields() {
    let Syndrome::InstructionAbort(abort) = Syndrome::decode(0x20 << 26 | 1 << 10 | 1 << 7 | 0x06)
    else {
        panic!("not an instruction abort");
    };
    assert!(!abort.far_is_valid() && abort.is_stage1_walk() && abort.status().is_translation());
    let plain = InstructionAbort::from_iss(0x0F);
    assert!(plain.far_is_valid() && !plain.is_stage1_walk() && plain.status().is_permission());
}
