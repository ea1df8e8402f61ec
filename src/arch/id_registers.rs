//! The ID registers of this core, by their encoding. What a guest sees of them is decided in
//! [`crate::cpu::sysreg`].

/// Reads `S3_0_C0_C<crm>_<op2>`, for the space that HCR_EL2.TID3 traps (CRm 1 to 7). `None` outside.
pub fn read(crm: u8, op2: u8) -> Option<u64> {
    macro_rules! select {
        ($($crm:literal: $($op2:literal)*;)*) => {
            match (crm, op2) {
                $($(($crm, $op2) => {
                    let value: u64;
                    // SAFETY: a read of the ID space (op0 3, op1 0, CRn 0) has no effect; unallocated
                    // encodings in it read as zero.
                    unsafe {
                        core::arch::asm!(
                            concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2), out(reg) value,
                            options(nomem, nostack, preserves_flags, pure)
                        );
                    }
                    Some(value)
                })*)*
                _ => None,
            }
        };
    }
    select! {
        1: 0 1 2 3 4 5 6 7;
        2: 0 1 2 3 4 5 6 7;
        3: 0 1 2 3 4 5 6 7;
        4: 0 1 2 3 4 5 6 7;
        5: 0 1 2 3 4 5 6 7;
        6: 0 1 2 3 4 5 6 7;
        7: 0 1 2 3 4 5 6 7;
    }
}
