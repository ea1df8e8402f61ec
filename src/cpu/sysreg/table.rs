//! The registers we know, and what each does (Arm ARM D24; GIC architecture, IHI 0069, 12.2).

use super::id::Shown::{AtMost, Fixed, GicSystemRegisters, Hardware, PhysicalRange};
use super::id::{Field, IdRule};
use super::{SgiGroup, SystemRegister};

/// What a register does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behaviour {
    /// Writes send software-generated interrupts; it cannot be read.
    SendSgi(SgiGroup),
    /// Writes deactivate an interrupt; it cannot be read.
    Deactivate,
    /// Reads give what the guest may see of the hardware's; it cannot be written.
    Id(IdRule),
    /// Reads give this; it cannot be written.
    ReadOnly(u64),
    /// Reads give this; writes are ignored.
    ReadWrite(u64),
    /// Writes are ignored; it cannot be read.
    WriteOnly,
}

/// A register we know.
pub(super) struct Entry {
    pub(super) register: SystemRegister,
    pub(super) name: &'static str,
    pub(super) behaviour: Behaviour,
}

/// The entry of a register. The hot ones, the SGI registers, come first.
#[inline]
pub(super) fn lookup(register: SystemRegister) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.register == register)
}

macro_rules! registers {
    ($($name:ident ($op0:literal, $op1:literal, $crn:literal, $crm:literal, $op2:literal)
        = $behaviour:expr;)*) => {
        /// Registers by their architectural names.
        #[allow(missing_docs, reason = "the names are the architecture's")]
        pub mod named {
            use super::SystemRegister;
            $(pub const $name: SystemRegister =
                SystemRegister::new($op0, $op1, $crn, $crm, $op2);)*
        }

        pub(super) static TABLE: &[Entry] = &[$(Entry {
            register: named::$name,
            name: stringify!($name),
            behaviour: $behaviour,
        }),*];
    };
}

/// The ID registers whose hardware value [`super::access`] may ask for.
pub const NAMED_ID_REGISTERS: &[SystemRegister] = &[
    named::ID_PFR0_EL1,
    named::ID_PFR1_EL1,
    named::ID_DFR0_EL1,
    named::ID_MMFR0_EL1,
    named::ID_MMFR1_EL1,
    named::ID_MMFR2_EL1,
    named::ID_MMFR3_EL1,
    named::ID_ISAR0_EL1,
    named::ID_ISAR1_EL1,
    named::ID_ISAR2_EL1,
    named::ID_ISAR3_EL1,
    named::ID_ISAR4_EL1,
    named::ID_ISAR5_EL1,
    named::ID_MMFR4_EL1,
    named::ID_ISAR6_EL1,
    named::MVFR0_EL1,
    named::MVFR1_EL1,
    named::MVFR2_EL1,
    named::ID_PFR2_EL1,
    named::ID_MMFR5_EL1,
    named::ID_AA64PFR0_EL1,
    named::ID_AA64PFR1_EL1,
    named::ID_AA64DFR0_EL1,
    named::ID_AA64ISAR0_EL1,
    named::ID_AA64ISAR1_EL1,
    named::ID_AA64ISAR2_EL1,
    named::ID_AA64MMFR0_EL1,
    named::ID_AA64MMFR1_EL1,
    named::ID_AA64MMFR2_EL1,
];

use Behaviour::{Deactivate, Id, ReadOnly, ReadWrite, SendSgi, WriteOnly};
use IdRule::{Fields, Whole};

registers! {
    ICC_SGI1R_EL1 (3, 0, 12, 11, 5) = SendSgi(SgiGroup::One);
    ICC_SGI0R_EL1 (3, 0, 12, 11, 7) = SendSgi(SgiGroup::Zero);
    ICC_ASGI1R_EL1 (3, 0, 12, 11, 6) = SendSgi(SgiGroup::OtherOne);
    // Traps only while an active interrupt is in no list register (ICH_HCR_EL2.TDIR).
    ICC_DIR_EL1 (3, 0, 12, 11, 1) = Deactivate;

    // AArch32 at EL0. Hidden: AMU, RAS, the security and virtualization extensions, debug beyond
    // the version, trace and the PMU.
    ID_PFR0_EL1 (3, 0, 0, 1, 0) = Id(Fields(&[
        Field(0, Hardware), Field(4, Hardware), Field(8, Hardware), Field(12, Hardware), // State0-3
        Field(16, AtMost(1)), // CSV2, as in ID_AA64PFR0_EL1
        Field(24, Hardware), // DIT
    ]));
    ID_PFR1_EL1 (3, 0, 0, 1, 1) = Id(Fields(&[
        Field(0, Hardware), // ProgMod
        Field(16, Hardware), // GenTimer
        Field(28, GicSystemRegisters),
    ]));
    ID_DFR0_EL1 (3, 0, 0, 1, 2) = Id(Fields(&[
        Field(0, AtMost(6)), // CopDbg: Armv8.0
    ]));
    ID_AFR0_EL1 (3, 0, 0, 1, 3) = ReadOnly(0);
    ID_MMFR0_EL1 (3, 0, 0, 1, 4) = Id(Whole);
    ID_MMFR1_EL1 (3, 0, 0, 1, 5) = Id(Whole);
    ID_MMFR2_EL1 (3, 0, 0, 1, 6) = Id(Whole);
    ID_MMFR3_EL1 (3, 0, 0, 1, 7) = Id(Whole);
    ID_ISAR0_EL1 (3, 0, 0, 2, 0) = Id(Whole);
    ID_ISAR1_EL1 (3, 0, 0, 2, 1) = Id(Whole);
    ID_ISAR2_EL1 (3, 0, 0, 2, 2) = Id(Whole);
    ID_ISAR3_EL1 (3, 0, 0, 2, 3) = Id(Whole);
    ID_ISAR4_EL1 (3, 0, 0, 2, 4) = Id(Whole);
    ID_ISAR5_EL1 (3, 0, 0, 2, 5) = Id(Whole);
    ID_MMFR4_EL1 (3, 0, 0, 2, 6) = Id(Whole);
    ID_ISAR6_EL1 (3, 0, 0, 2, 7) = Id(Whole);
    MVFR0_EL1 (3, 0, 0, 3, 0) = Id(Whole);
    MVFR1_EL1 (3, 0, 0, 3, 1) = Id(Whole);
    MVFR2_EL1 (3, 0, 0, 3, 2) = Id(Whole);
    ID_PFR2_EL1 (3, 0, 0, 3, 4) = Id(Fields(&[
        Field(0, Hardware), Field(4, Hardware), // CSV3, SSBS
    ]));
    ID_DFR1_EL1 (3, 0, 0, 3, 5) = ReadOnly(0);
    ID_MMFR5_EL1 (3, 0, 0, 3, 6) = Id(Whole);

    // EL1 is AArch64 only. EL2 and EL3 read as absent: the guest can reach neither. Hidden: RAS,
    // SVE, SEL2, MPAM, AMU, RME. CSV2 above 1 would announce SCXTNUM_ELx, which traps.
    ID_AA64PFR0_EL1 (3, 0, 0, 4, 0) = Id(Fields(&[
        Field(0, Hardware), // EL0
        Field(4, Fixed(1)), // EL1
        Field(16, Hardware), Field(20, Hardware), // FP, AdvSIMD
        Field(24, GicSystemRegisters),
        Field(48, Hardware), // DIT
        Field(56, AtMost(1)), Field(60, Hardware), // CSV2, CSV3
    ]));
    // Hidden: MTE, RAS_frac, MPAM_frac, SME, RNDR_trap, CSV2_frac, NMI, GCS and later.
    ID_AA64PFR1_EL1 (3, 0, 0, 4, 1) = Id(Fields(&[
        Field(0, Hardware), Field(4, Hardware), // BT, SSBS
    ]));
    ID_AA64PFR2_EL1 (3, 0, 0, 4, 2) = ReadOnly(0);
    ID_AA64ZFR0_EL1 (3, 0, 0, 4, 4) = ReadOnly(0);
    ID_AA64SMFR0_EL1 (3, 0, 0, 4, 5) = ReadOnly(0);
    ID_AA64FPFR0_EL1 (3, 0, 0, 4, 7) = ReadOnly(0);

    // The smallest legal debug architecture: Armv8.0, two breakpoints, two watchpoints, one of
    // them context-aware. No trace, PMU, SPE, TRBE, BRBE; no OS double lock.
    ID_AA64DFR0_EL1 (3, 0, 0, 5, 0) = Id(Fields(&[
        Field(0, Fixed(6)), // DebugVer
        Field(12, Fixed(1)), Field(20, Fixed(1)), Field(28, Fixed(0)), // BRPs, WRPs, CTX_CMPs
        Field(36, Fixed(0xF)), // DoubleLock
    ]));
    ID_AA64DFR1_EL1 (3, 0, 0, 5, 1) = ReadOnly(0);
    ID_AA64DFR2_EL1 (3, 0, 0, 5, 2) = ReadOnly(0);
    ID_AA64AFR0_EL1 (3, 0, 0, 5, 4) = ReadOnly(0);
    ID_AA64AFR1_EL1 (3, 0, 0, 5, 5) = ReadOnly(0);

    // Hidden: TME. All else needs nothing of EL2.
    ID_AA64ISAR0_EL1 (3, 0, 0, 6, 0) = Id(Fields(&[
        Field(4, Hardware), Field(8, Hardware), Field(12, Hardware), // AES, SHA1, SHA2
        Field(16, Hardware), Field(20, Hardware), // CRC32, Atomic
        Field(28, Hardware), Field(32, Hardware), Field(36, Hardware), // RDM, SHA3, SM3
        Field(40, Hardware), Field(44, Hardware), Field(48, Hardware), // SM4, DP, FHM
        Field(52, Hardware), Field(56, Hardware), Field(60, Hardware), // TS, TLB, RNDR
    ]));
    // Hidden: XS and LS64, which HCRX_EL2 controls. Pointer authentication (APA, API, GPA, GPI)
    // is shown, so HCR_EL2.{APK, API} must be set.
    ID_AA64ISAR1_EL1 (3, 0, 0, 6, 1) = Id(Fields(&[
        Field(0, Hardware), // DPB
        Field(4, Hardware), Field(8, Hardware), // APA, API
        Field(12, Hardware), Field(16, Hardware), Field(20, Hardware), // JSCVT, FCMA, LRCPC
        Field(24, Hardware), Field(28, Hardware), // GPA, GPI
        Field(32, Hardware), Field(36, Hardware), Field(40, Hardware), // FRINTTS, SB, SPECRES
        Field(44, Hardware), Field(48, Hardware), Field(52, Hardware), // BF16, DGH, I8MM
    ]));
    // Hidden: WFxT, whose time-out a trapped wait would have to keep; MOPS, SYSREG_128,
    // SYSINSTR_128 and ATS1A, which EL2 must enable.
    ID_AA64ISAR2_EL1 (3, 0, 0, 6, 2) = Id(Fields(&[
        Field(4, Hardware), // RPRES
        Field(8, Hardware), Field(12, Hardware), // GPA3, APA3
        Field(20, Hardware), Field(24, Hardware), Field(28, Hardware), // BC, PAC_frac, CLRBHB
        Field(40, Hardware), Field(48, Hardware), Field(52, Hardware), // PRFMSLC, RPRFM, CSSC
    ]));
    ID_AA64ISAR3_EL1 (3, 0, 0, 6, 3) = ReadOnly(0);

    // Hidden: mixed endianness, because our device registers are little-endian; SNSMem; FGT; the
    // stage 2 granules, which without EL2 follow the stage 1 fields. ECV above 1 is EL2's.
    ID_AA64MMFR0_EL1 (3, 0, 0, 7, 0) = Id(Fields(&[
        Field(0, PhysicalRange),
        Field(4, Hardware), // ASIDBits
        Field(20, Hardware), Field(24, Hardware), Field(28, Hardware), // TGran16, 64, 4
        Field(44, Hardware), // ExS
        Field(60, AtMost(1)), // ECV
    ]));
    // Hidden: VMIDBits, VH, XNX, TWED, HCX, CMOW, which are EL2's; LO, whose registers trap.
    ID_AA64MMFR1_EL1 (3, 0, 0, 7, 1) = Id(Fields(&[
        Field(0, AtMost(2)), // HAFDBS
        Field(12, Hardware), Field(20, Hardware), Field(24, Hardware), // HPDS, PAN, SpecSEI
        Field(36, Hardware), Field(44, Hardware), Field(48, Hardware), // ETS, AFP, nTLBPA
        Field(52, Hardware), Field(60, Hardware), // TIDCP1, ECBHB
    ]));
    // Hidden: IESB (RAS), NV, FWB, EVT.
    ID_AA64MMFR2_EL1 (3, 0, 0, 7, 2) = Id(Fields(&[
        Field(0, Hardware), Field(4, Hardware), Field(8, Hardware), // CnP, UAO, LSM
        Field(16, Hardware), Field(20, Hardware), Field(28, Hardware), // VARange, CCIDX, ST
        Field(32, Hardware), Field(36, Hardware), // AT, IDS
        Field(48, Hardware), Field(52, Hardware), Field(60, Hardware), // TTL, BBM, E0PD
    ]));
    // TCR2, SCTLR2, permission indirection and the like: all need HCRX_EL2.
    ID_AA64MMFR3_EL1 (3, 0, 0, 7, 3) = ReadOnly(0);
    ID_AA64MMFR4_EL1 (3, 0, 0, 7, 4) = ReadOnly(0);

    ACTLR_EL1 (3, 0, 1, 0, 1) = ReadWrite(0);

    // Self-hosted debug is not virtualised: the registers are there and do nothing.
    OSDTRRX_EL1 (2, 0, 0, 0, 2) = ReadWrite(0);
    DBGBVR0_EL1 (2, 0, 0, 0, 4) = ReadWrite(0);
    DBGBCR0_EL1 (2, 0, 0, 0, 5) = ReadWrite(0);
    DBGWVR0_EL1 (2, 0, 0, 0, 6) = ReadWrite(0);
    DBGWCR0_EL1 (2, 0, 0, 0, 7) = ReadWrite(0);
    DBGBVR1_EL1 (2, 0, 0, 1, 4) = ReadWrite(0);
    DBGBCR1_EL1 (2, 0, 0, 1, 5) = ReadWrite(0);
    DBGWVR1_EL1 (2, 0, 0, 1, 6) = ReadWrite(0);
    DBGWCR1_EL1 (2, 0, 0, 1, 7) = ReadWrite(0);
    MDCCINT_EL1 (2, 0, 0, 2, 0) = ReadWrite(0);
    MDSCR_EL1 (2, 0, 0, 2, 2) = ReadWrite(0);
    OSDTRTX_EL1 (2, 0, 0, 3, 2) = ReadWrite(0);
    OSECCR_EL1 (2, 0, 0, 6, 2) = ReadWrite(0);
    MDRAR_EL1 (2, 0, 1, 0, 0) = ReadOnly(0);
    OSLAR_EL1 (2, 0, 1, 0, 4) = WriteOnly;
    // OSLM = 0b10: the lock is there, and not locked.
    OSLSR_EL1 (2, 0, 1, 1, 4) = ReadOnly(0b1000);
    OSDLR_EL1 (2, 0, 1, 3, 4) = ReadWrite(0);
    DBGPRCR_EL1 (2, 0, 1, 4, 4) = ReadWrite(0);
    // Eight claim bits, read as ones; none is ever claimed.
    DBGCLAIMSET_EL1 (2, 0, 7, 8, 6) = ReadWrite(0xFF);
    DBGCLAIMCLR_EL1 (2, 0, 7, 9, 6) = ReadWrite(0);
    DBGAUTHSTATUS_EL1 (2, 0, 7, 14, 6) = ReadOnly(0);
    MDCCSR_EL0 (2, 3, 0, 1, 0) = ReadOnly(0);
    DBGDTR_EL0 (2, 3, 0, 4, 0) = ReadWrite(0);
    DBGDTRRX_EL0 (2, 3, 0, 5, 0) = ReadWrite(0);

    // Set/way maintenance cannot be done for one guest, and reaches no memory that a correct
    // guest shares: cores' caches are coherent, and devices are ours.
    DC_ISW (1, 0, 7, 6, 2) = WriteOnly;
    DC_CSW (1, 0, 7, 10, 2) = WriteOnly;
    DC_CISW (1, 0, 7, 14, 2) = WriteOnly;
}
