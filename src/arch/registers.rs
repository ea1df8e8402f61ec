//! System registers that the `aarch64-cpu` crate does not have, by their Arm ARM names.

/// Defines a type with `get` and `set` for a system register, named as the assembler knows it.
macro_rules! system_register {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[allow(non_camel_case_types)]
        pub struct $name;

        #[allow(dead_code)]
        impl $name {
            /// Reads the register.
            #[inline(always)]
            pub fn get() -> u64 {
                let value: u64;
                // SAFETY: reading this register has no effect on memory that Rust knows of.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, ", $register), out(reg) value,
                        options(nostack, preserves_flags)
                    );
                }
                value
            }

            /// Writes the register. It is in effect after an ISB, or on return to the guest.
            #[inline(always)]
            pub fn set(value: u64) {
                // SAFETY: the registers listed here steer guests, timers and interrupts; none
                // changes EL2's own translation regime or control flow.
                unsafe {
                    core::arch::asm!(
                        concat!("msr ", $register, ", {}"), in(reg) value,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    )*};
}

system_register! {
    /// EL2 physical timer compare value.
    CNTHP_CVAL_EL2 = "CNTHP_CVAL_EL2";
    /// EL1 virtual timer control.
    CNTV_CTL_EL0 = "CNTV_CTL_EL0";
    /// EL1 physical timer control.
    CNTP_CTL_EL0 = "CNTP_CTL_EL0";
    /// Interrupt Acknowledge, group 1.
    ICC_IAR1_EL1 = "ICC_IAR1_EL1";
    /// End Of Interrupt, group 1: with EOImode 1, the priority drop.
    ICC_EOIR1_EL1 = "ICC_EOIR1_EL1";
    /// Deactivate Interrupt.
    ICC_DIR_EL1 = "ICC_DIR_EL1";
    /// Generate a group 1 SGI.
    ICC_SGI1R_EL1 = "ICC_SGI1R_EL1";
    /// CPU interface control.
    ICC_CTLR_EL1 = "ICC_CTLR_EL1";
    /// Priority mask.
    ICC_PMR_EL1 = "ICC_PMR_EL1";
    /// Group 1 enable.
    ICC_IGRPEN1_EL1 = "ICC_IGRPEN1_EL1";
    /// Hypervisor control of the virtual CPU interface.
    ICH_HCR_EL2 = "ICH_HCR_EL2";
    /// Which list registers are empty.
    ICH_ELRSR_EL2 = "ICH_ELRSR_EL2";
    /// List register 0.
    ICH_LR0_EL2 = "ICH_LR0_EL2";
    /// List register 1.
    ICH_LR1_EL2 = "ICH_LR1_EL2";
    /// List register 2.
    ICH_LR2_EL2 = "ICH_LR2_EL2";
    /// List register 3.
    ICH_LR3_EL2 = "ICH_LR3_EL2";
    /// List register 4.
    ICH_LR4_EL2 = "ICH_LR4_EL2";
    /// List register 5.
    ICH_LR5_EL2 = "ICH_LR5_EL2";
    /// List register 6.
    ICH_LR6_EL2 = "ICH_LR6_EL2";
    /// List register 7.
    ICH_LR7_EL2 = "ICH_LR7_EL2";
    /// List register 8.
    ICH_LR8_EL2 = "ICH_LR8_EL2";
    /// List register 9.
    ICH_LR9_EL2 = "ICH_LR9_EL2";
    /// List register 10.
    ICH_LR10_EL2 = "ICH_LR10_EL2";
    /// List register 11.
    ICH_LR11_EL2 = "ICH_LR11_EL2";
    /// List register 12.
    ICH_LR12_EL2 = "ICH_LR12_EL2";
    /// List register 13.
    ICH_LR13_EL2 = "ICH_LR13_EL2";
    /// List register 14.
    ICH_LR14_EL2 = "ICH_LR14_EL2";
    /// List register 15.
    ICH_LR15_EL2 = "ICH_LR15_EL2";
    /// The guest's ICC_CTLR, PMR, BPR and group enables.
    ICH_VMCR_EL2 = "ICH_VMCR_EL2";
    /// Active priorities, group 0.
    ICH_AP0R0_EL2 = "ICH_AP0R0_EL2";
    /// Active priorities, group 1.
    ICH_AP1R0_EL2 = "ICH_AP1R0_EL2";
    /// Active priorities, group 0, next 32; there from six bits of preemption priority on.
    ICH_AP0R1_EL2 = "ICH_AP0R1_EL2";
    /// Active priorities, group 0, third 32; there with seven bits of preemption priority.
    ICH_AP0R2_EL2 = "ICH_AP0R2_EL2";
    /// Active priorities, group 0, last 32; there with seven bits of preemption priority.
    ICH_AP0R3_EL2 = "ICH_AP0R3_EL2";
    /// Active priorities, group 1, next 32; there from six bits of preemption priority on.
    ICH_AP1R1_EL2 = "ICH_AP1R1_EL2";
    /// Active priorities, group 1, third 32; there with seven bits of preemption priority.
    ICH_AP1R2_EL2 = "ICH_AP1R2_EL2";
    /// Active priorities, group 1, last 32; there with seven bits of preemption priority.
    ICH_AP1R3_EL2 = "ICH_AP1R3_EL2";
    /// Size of the virtual CPU interface.
    ICH_VTR_EL2 = "ICH_VTR_EL2";
    /// What the guest reads as MIDR_EL1.
    VPIDR_EL2 = "VPIDR_EL2";
    /// Address of the last stage-2 fault: IPA bits from 12 up, in bits from 4 up.
    HPFAR_EL2 = "HPFAR_EL2";
    /// Hypervisor debug control.
    MDCR_EL2 = "MDCR_EL2";
    /// Hypervisor system traps.
    HSTR_EL2 = "HSTR_EL2";
    /// Fine-grained read traps (FEAT_FGT).
    HFGRTR_EL2 = "S3_4_C1_C1_4";
    /// Fine-grained write traps (FEAT_FGT).
    HFGWTR_EL2 = "S3_4_C1_C1_5";
    /// Fine-grained instruction traps (FEAT_FGT).
    HFGITR_EL2 = "S3_4_C1_C1_6";
    /// Fine-grained read traps of debug registers (FEAT_FGT).
    HDFGRTR_EL2 = "S3_4_C3_C1_4";
    /// Fine-grained write traps of debug registers (FEAT_FGT).
    HDFGWTR_EL2 = "S3_4_C3_C1_5";
    /// Extended hypervisor configuration (FEAT_HCX).
    HCRX_EL2 = "S3_4_C1_C2_2";
    /// Performance monitor control.
    PMCR_EL0 = "PMCR_EL0";
    /// Performance counters enabled, to set.
    PMCNTENSET_EL0 = "PMCNTENSET_EL0";
    /// Event and filter of counter 0.
    PMEVTYPER0_EL0 = "PMEVTYPER0_EL0";
    /// Event and filter of counter 1.
    PMEVTYPER1_EL0 = "PMEVTYPER1_EL0";
    /// Counter 0.
    PMEVCNTR0_EL0 = "PMEVCNTR0_EL0";
    /// Counter 1.
    PMEVCNTR1_EL0 = "PMEVCNTR1_EL0";
    /// Monitor debug system control.
    MDSCR_EL1 = "MDSCR_EL1";
    /// Processor feature register 0.
    ID_AA64PFR0_EL1 = "ID_AA64PFR0_EL1";
    /// Processor feature register 1.
    ID_AA64PFR1_EL1 = "ID_AA64PFR1_EL1";
    /// Debug feature register 0.
    ID_AA64DFR0_EL1 = "ID_AA64DFR0_EL1";
    /// Memory model feature register 0.
    ID_AA64MMFR0_EL1 = "ID_AA64MMFR0_EL1";
    /// Memory model feature register 1.
    ID_AA64MMFR1_EL1 = "ID_AA64MMFR1_EL1";
    /// Instruction set feature register 1.
    ID_AA64ISAR1_EL1 = "ID_AA64ISAR1_EL1";
    /// Instruction set feature register 2.
    ID_AA64ISAR2_EL1 = "S3_0_C0_C6_2";
    /// Main ID.
    MIDR_EL1 = "MIDR_EL1";
    /// DC ZVA block size.
    DCZID_EL0 = "DCZID_EL0";
    /// Cache type.
    CTR_EL0 = "CTR_EL0";
}
