// Accesses that may fault: each returns 0, or through probe_fixup the ESR_EL2 of its fault.
    .section .text.probe, "ax"
    .global probe_read, probe_write, probe_call, probe_fixup
probe_read:                         // x0 = address; the value is dropped
    stp     x29, x30, [sp, #-16]!
    ldr     w1, [x0]
    b       1f
probe_write:                        // x0 = address; writes a zero word
    stp     x29, x30, [sp, #-16]!
    str     wzr, [x0]
    b       1f
probe_call:                         // x0 = address of a function that only returns
    stp     x29, x30, [sp, #-16]!
    blr     x0
1:  mov     x0, xzr
probe_fixup:
    ldp     x29, x30, [sp], #16
    ret
