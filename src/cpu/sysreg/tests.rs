use proptest::prelude::*;

use super::*;

/// Hardware that answers every ID register with the same value.
struct Uniform(u64);

impl IdRegisters for Uniform {
    fn read(&self, register: SystemRegister) -> u64 {
        assert!(NAMED_ID_REGISTERS.contains(&register), "{register:?}");
        self.0
    }
}

const LIMITS: Limits = Limits { ipa_bits: 40, gic_system_registers: true };

fn read(register: SystemRegister, hardware: u64) -> Outcome {
    access(register, Access::Read, &Uniform(hardware), &LIMITS)
}

fn value(register: SystemRegister, hardware: u64) -> u64 {
    match read(register, hardware) {
        Outcome::Value(value) => value,
        other => panic!("{:?}: {other:?}", register.name()),
    }
}

fn write(register: SystemRegister) -> Outcome {
    access(register, Access::Write(0x1234), &Uniform(0), &LIMITS)
}

/// The four bits at `bit`.
fn nibble(value: u64, bit: u32) -> u64 {
    value >> bit & 0xF
}

#[test]
fn the_encoding_is_the_syndromes() {
    // S3_5_C10_C6_2 by the field positions of ISS.
    let register = SystemRegister::new(3, 5, 10, 6, 2);
    assert_eq!(register, SystemRegister::from_iss(3 << 20 | 2 << 17 | 5 << 14 | 10 << 10 | 6 << 1));
    assert_eq!(register.encoding(), [3, 5, 10, 6, 2]);
    // Rt, direction and the bits above are no part of the name.
    assert_eq!(SystemRegister::from_iss(0x01C0_03E1), SystemRegister::new(0, 0, 0, 0, 0));
}

#[test]
fn no_register_is_listed_twice() {
    for (at, entry) in table::TABLE.iter().enumerate() {
        let same = table::TABLE.iter().skip(at + 1).find(|other| other.register == entry.register);
        assert!(same.is_none(), "{} and {}", entry.name, same.unwrap().name);
    }
}

#[test]
fn named_id_registers_are_those_with_a_rule_for_the_hardware_value() {
    let ruled: Vec<_> = table::TABLE
        .iter()
        .filter(|entry| matches!(entry.behaviour, Behaviour::Id(_)))
        .map(|entry| entry.register)
        .collect();
    assert_eq!(ruled, NAMED_ID_REGISTERS);
    for entry in table::TABLE.iter().filter(|entry| entry.name.starts_with("ID_")) {
        assert!(entry.register.is_id_space(), "{}", entry.name);
        assert_eq!(write(entry.register), Outcome::Undefined, "{}", entry.name);
    }
}

#[test]
fn what_is_not_virtualised_is_not_advertised() {
    // With every field of the hardware at 0xF, 0 and 1: names, bits, what the guest may see.
    use named::*;
    let hidden: &[(SystemRegister, &str, &[u32])] = &[
        (ID_AA64PFR0_EL1, "EL2 EL3 RAS SVE SEL2 MPAM AMU RME", &[8, 12, 28, 32, 36, 40, 44, 52]),
        (ID_AA64PFR1_EL1, "MTE RAS MPAM SME RNDR CSV2 NMI", &[8, 12, 16, 24, 28, 32, 36, 40, 44]),
        (
            ID_AA64DFR0_EL1,
            "Trace PMU PMSS SEBEP SPE TRF TRBE BRBE",
            &[4, 8, 16, 24, 32, 40, 44, 52],
        ),
        (ID_AA64ISAR0_EL1, "TME", &[24]),
        (ID_AA64ISAR1_EL1, "XS LS64", &[56, 60]),
        (ID_AA64ISAR2_EL1, "WFxT MOPS SYSREG_128 SYSINSTR_128 ATS1A", &[0, 16, 32, 36, 60]),
        (ID_AA64MMFR0_EL1, "BigEnd SNSMem stage 2 granules FGT", &[8, 12, 16, 32, 36, 40, 56]),
        (ID_AA64MMFR1_EL1, "VMID VH LO XNX TWED HCX CMOW", &[4, 8, 16, 28, 32, 40, 56]),
        (ID_AA64MMFR2_EL1, "IESB NV FWB EVT", &[12, 24, 40, 56]),
        (ID_PFR0_EL1, "AMU RAS", &[20, 28]),
        (ID_PFR1_EL1, "Security Virtualization and fractions", &[4, 12, 20, 24]),
        (ID_DFR0_EL1, "secure debug, trace, PMU", &[4, 8, 12, 16, 20, 24, 28]),
        (ID_PFR2_EL1, "RAS_frac", &[8]),
    ];
    for (register, names, bits) in hidden {
        for hardware in [u64::MAX, 0x1111_1111_1111_1111] {
            for bit in *bits {
                assert_eq!(nibble(value(*register, hardware), *bit), 0, "{names}, bit {bit}");
            }
        }
    }
    for register in [
        ID_AA64PFR2_EL1,
        ID_AA64ZFR0_EL1,
        ID_AA64SMFR0_EL1,
        ID_AA64DFR1_EL1,
        ID_AA64ISAR3_EL1,
        ID_AA64MMFR3_EL1,
        ID_AA64MMFR4_EL1,
        ID_AFR0_EL1,
        ID_DFR1_EL1,
    ] {
        assert_eq!(value(register, u64::MAX), 0);
    }
}

#[test]
fn a_cortex_a53_shows_what_its_guest_needs() {
    use named::*;
    // ID_AA64PFR0_EL1 with EL0-EL3 in both states and GICv3 system registers.
    assert_eq!(value(ID_AA64PFR0_EL1, 0x0100_2222), 0x0100_0012);
    assert_eq!(value(ID_AA64DFR0_EL1, 0x1030_5106), 0x0000_00F0_0010_1006);
    assert_eq!(value(ID_AA64ISAR0_EL1, 0x0001_1120), 0x0001_1120);
    // 40 bits of physical address, 16-bit ASIDs, 4K and 64K granules.
    assert_eq!(value(ID_AA64MMFR0_EL1, 0x0000_1122), 0x0000_0022);
    assert_eq!(value(ID_ISAR0_EL1, 0x0210_1110), 0x0210_1110);
}

#[test]
fn the_gic_field_follows_the_vm_and_never_claims_a_version_4() {
    let gic = |hardware: u64, system_registers| {
        let limits = Limits { gic_system_registers: system_registers, ..LIMITS };
        let ids = Uniform(hardware << 24);
        match access(named::ID_AA64PFR0_EL1, Access::Read, &ids, &limits) {
            Outcome::Value(value) => nibble(value, 24),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([gic(0, true), gic(1, true), gic(3, true)], [0, 1, 1]);
    assert_eq!([gic(1, false), gic(3, false)], [0, 0]);
}

#[test]
fn the_physical_range_is_no_larger_than_stage_2() {
    let range = |hardware, ipa_bits| {
        let limits = Limits { ipa_bits, ..LIMITS };
        match access(named::ID_AA64MMFR0_EL1, Access::Read, &Uniform(hardware), &limits) {
            Outcome::Value(value) => nibble(value, 0),
            other => panic!("{other:?}"),
        }
    };
    let sizes = [32, 36, 39, 40, 42, 44, 48, 52, 56, 64];
    assert_eq!(sizes.map(|bits| range(0xF, bits)), [0, 1, 1, 2, 3, 4, 5, 6, 7, 7]);
    assert_eq!(range(2, 48), 2);
}

#[test]
fn id_registers_without_a_name_read_as_zero() {
    let mut unnamed = 0;
    for crm in 1..=7 {
        for op2 in 0..8 {
            let register = SystemRegister::new(3, 0, 0, crm, op2);
            if register.name().is_none() {
                assert_eq!(read(register, u64::MAX), Outcome::Value(0));
                assert_eq!(write(register), Outcome::Undefined);
                unnamed += 1;
            }
        }
    }
    assert_eq!(unnamed, 56 - 42);
    // CRm 0 is not trapped by TID3, CRm 8 is nothing.
    assert_eq!(read(SystemRegister::new(3, 0, 0, 8, 0), 0), Outcome::Undefined);
    assert_eq!(read(SystemRegister::new(3, 1, 0, 1, 0), 0), Outcome::Undefined);
}

#[test]
fn sgi_registers_send_and_cannot_be_read() {
    for (register, group) in [
        (named::ICC_SGI1R_EL1, SgiGroup::One),
        (named::ICC_SGI0R_EL1, SgiGroup::Zero),
        (named::ICC_ASGI1R_EL1, SgiGroup::OtherOne),
    ] {
        assert_eq!(write(register), Outcome::SendSgi(group, 0x1234));
        assert_eq!(read(register, 0), Outcome::Undefined);
    }
}

#[test]
fn a_trapped_deactivation_names_its_interrupt() {
    // Not there at all, it would be undefined for guests with EOImode = 1.
    assert_eq!(write(named::ICC_DIR_EL1), Outcome::Deactivate(0x1234));
    assert_eq!(read(named::ICC_DIR_EL1, 0), Outcome::Undefined);
}

#[test]
fn debug_registers_are_inert_and_the_os_lock_reads_unlocked() {
    use named::*;
    for register in [MDSCR_EL1, DBGBCR0_EL1, DBGWVR1_EL1, OSDLR_EL1, DBGPRCR_EL1, ACTLR_EL1] {
        assert_eq!(read(register, 0), Outcome::Value(0));
        assert_eq!(write(register), Outcome::Ignored);
    }
    assert_eq!(read(OSLSR_EL1, 0), Outcome::Value(8));
    assert_eq!(write(OSLSR_EL1), Outcome::Undefined);
    assert_eq!(write(OSLAR_EL1), Outcome::Ignored);
    assert_eq!(read(OSLAR_EL1, 0), Outcome::Undefined);
    // ID_AA64DFR0_EL1 says two of each: a third is not there.
    assert_eq!(write(SystemRegister::new(2, 0, 0, 2, 5)), Outcome::Undefined);
}

#[test]
fn set_way_maintenance_is_ignored() {
    for register in [named::DC_ISW, named::DC_CSW, named::DC_CISW] {
        assert_eq!(write(register), Outcome::Ignored);
    }
}

#[test]
fn what_is_hidden_is_undefined() {
    let registers = [
        (SystemRegister::new(3, 3, 9, 12, 0), "PMCR_EL0"),
        (SystemRegister::new(3, 3, 9, 13, 0), "PMCCNTR_EL0"),
        (SystemRegister::new(3, 0, 9, 14, 1), "PMINTENSET_EL1"),
        (SystemRegister::new(3, 3, 14, 15, 7), "PMCCFILTR_EL0"),
        (SystemRegister::new(3, 0, 10, 4, 3), "LORC_EL1"),
        (SystemRegister::new(3, 0, 10, 4, 7), "LORID_EL1"),
        (SystemRegister::new(3, 0, 9, 9, 0), "PMSCR_EL1"),
        (SystemRegister::new(3, 0, 13, 0, 7), "SCXTNUM_EL1"),
        (SystemRegister::new(3, 3, 13, 2, 0), "AMCR_EL0"),
        (SystemRegister::new(2, 1, 0, 1, 0), "TRCPRGCTLR"),
        (SystemRegister::new(3, 0, 15, 0, 0), "implementation defined"),
        (SystemRegister::new(1, 0, 11, 0, 0), "implementation defined"),
        (SystemRegister::new(3, 0, 5, 3, 0), "ERRIDR_EL1"),
    ];
    for (register, name) in registers {
        assert_eq!(read(register, 0), Outcome::Undefined, "{name}");
        assert_eq!(write(register), Outcome::Undefined, "{name}");
    }
}

proptest! {
    #[test]
    fn every_access_has_an_outcome(iss: u32, is_write: bool, value: u64, hardware: u64) {
        let register = SystemRegister::from_iss(iss);
        let kind = if is_write { Access::Write(value) } else { Access::Read };
        match access(register, kind, &Uniform(hardware), &LIMITS) {
            Outcome::Value(_) => prop_assert!(!is_write),
            Outcome::Ignored => prop_assert!(is_write),
            Outcome::SendSgi(_, sent) | Outcome::Deactivate(sent) => {
                prop_assert!(is_write && sent == value);
            }
            Outcome::Undefined => {}
        }
    }

    #[test]
    fn a_guest_never_sees_more_than_the_hardware_has(hardware: u64) {
        // True of unsigned fields; those we fix ourselves are left out.
        let fixed = [(named::ID_AA64PFR0_EL1, 4), (named::ID_AA64DFR0_EL1, 0)];
        for register in NAMED_ID_REGISTERS {
            if *register == named::ID_AA64DFR0_EL1 {
                continue;
            }
            let seen = value(*register, hardware);
            for bit in (0..64).step_by(4) {
                if !fixed.contains(&(*register, bit)) {
                    prop_assert!(nibble(seen, bit) <= nibble(hardware, bit));
                }
            }
        }
    }
}
