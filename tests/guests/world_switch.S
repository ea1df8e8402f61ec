// Payloads of el2_world_switch.rs.

// Every register a guest has, to a value of its own: xN = 0xbeef_0000_0000_0001 + N and so on; the
// test knows them. SP_EL1 points to the results.
.macro fill_registers
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movz    x0, #(0x100 + \n)
    movk    x0, #0xf00d, lsl #48
    mvn     x1, x0
    stp     x0, x1, [sp, #-16]
    ldur    q\n, [sp, #-16]
    .endr
    constant x0, 0x07c00000             // AHP, DN, FZ, RMode
    msr     fpcr, x0
    constant x0, 0x0800009f             // QC and the cumulative exceptions
    msr     fpsr, x0
    mov     x0, #0x5e10
    msr     sp_el0, x0
    mov     x0, #0x71d0
    msr     tpidr_el0, x0
    mov     x0, #0x71d1
    msr     tpidr_el1, x0
    mov     x0, #0x71d2
    msr     tpidrro_el0, x0
    mov     x0, #0xe150
    msr     elr_el1, x0
    mov     x0, #0x3c4
    msr     spsr_el1, x0
    mov     x0, #0xfa50
    msr     far_el1, x0
    mov     x0, #0xe50
    msr     esr_el1, x0
    constant x0, 0xa0000000             // N and C
    msr     nzcv, x0
    constant x0, RESULTS
    mov     sp, x0
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    movz    x\n, #(1 + \n)
    movk    x\n, #0xbeef, lsl #48
    .endr
.endm

// Writes them all to the results.
.macro dump_registers
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    str     x\n, [sp, #(8 * \n)]
    .endr
    mrs     x0, nzcv
    mrs     x1, sp_el0
    mov     x2, sp
    mrs     x3, tpidr_el0
    mrs     x4, tpidr_el1
    mrs     x5, tpidrro_el0
    mrs     x6, fpcr
    mrs     x7, fpsr
    mrs     x8, elr_el1
    mrs     x9, spsr_el1
    mrs     x10, far_el1
    mrs     x11, esr_el1
    add     x12, sp, #248
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11
    str     x\n, [x12], #8
    .endr
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     q\n, [sp, #(352 + 16 * \n)]
    .endr
.endm
payload registers_over_hvc
    fill_registers
    hvc     #7
    dump_registers
    power_off

payload registers_over_smc
    fill_registers
    smc     #7
    dump_registers
    power_off

payload registers_over_load
    fill_registers
    constant x20, DEVICE
    ldr     x7, [x20, #8]
    dump_registers
    power_off

payload registers_over_store
    fill_registers
    constant x20, DEVICE
    str     x3, [x20, #8]
    dump_registers
    power_off

payload registers_over_system_register
    fill_registers
    mrs     x11, actlr_el1
    dump_registers
    power_off

payload registers_over_interrupt
    enable_gic
    fill_registers
    msr     cntv_tval_el0, xzr
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
1:  mrs     x0, isr_el1                 // masked here, but EL2 takes it and passes it on
    cbz     x0, 1b
    dump_registers
    power_off

payload reset_state
    mov     x0, sp
    mov     x8, #(3 << 20)
    .irp register, currentel, daif, sctlr_el1, tcr_el1, ttbr0_el1, mair_el1, mpidr_el1, midr_el1, contextidr_el1, cntv_ctl_el0, cntp_ctl_el0, fpcr, fpsr
    mrs     x8, \register
    result  x8
    .endr
    umov    x8, v31.d[1]
    result  x8
    mrs     x8, cntvct_el0
    result  x8
    power_off

payload calls
    mov     x5, #0
    constant x0, PSCI_VERSION
    hvc     #0
    add     x5, x5, #1
    result  x0
    constant x0, PSCI_VERSION
    smc     #0
    add     x5, x5, #2
    result  x0
    result  x5
    power_off

payload cpu_off
    constant x0, PSCI_CPU_OFF
    hvc     #0
    power_off

// Starts twice: the clock tells which time this is, for a reset of the guest leaves the time as it was
// set.
payload reset
    constant x10, RTC
    ldr     w11, [x10]                  // RTCDR
    lsr     w11, w11, #16
    mov     w12, #0x1234
    cmp     w11, w12
    b.eq    1f
    lsl     w11, w12, #16
    str     w11, [x10, #8]              // RTCLR
    constant x13, 0x40300000            // these must not be found the second time
    str     x12, [x13]
    msr     tpidr_el1, x12
    mov     x30, x12
    constant x0, PSCI_RESET
    hvc     #0
    power_off
1:  constant x13, 0x40300000
    ldr     x13, [x13]
    result  x13
    mrs     x13, tpidr_el1
    result  x13
    result  x30
    mov     x13, #1
    result  x13
    power_off

// Each load into a register full of ones.
.macro load_result instruction, register, offset
    mov     x1, #-1
    \instruction \register, [x20, #\offset]
    result  x1
.endm

payload loads
    constant x20, DEVICE
    load_result ldrb, w1, 1
    load_result ldrh, w1, 2
    load_result ldr, w1, 4
    load_result ldr, x1, 8
    load_result ldrsb, w1, 1
    load_result ldrsb, x1, 1
    load_result ldrsh, w1, 2
    load_result ldrsh, x1, 2
    load_result ldrsw, x1, 4
    load_result ldar, x1, 0
    add     x21, x20, #0x20
    mov     x22, #4
    mov     x1, #-1
    ldr     w1, [x21, x22, lsl #2]
    result  x1
    mov     x1, #-1
    ldrb    wzr, [x20, #1]
    ldr     xzr, [x20, #8]
    mov     x2, xzr
    result  x2
    power_off

payload stores
    constant x20, DEVICE
    movz    x1, #0x8182
    movk    x1, #0x8384, lsl #16
    movk    x1, #0x8586, lsl #32
    movk    x1, #0x8788, lsl #48
    strb    w1, [x20, #1]
    strh    w1, [x20, #2]
    str     w1, [x20, #4]
    str     x1, [x20, #8]
    strb    wzr, [x20, #1]
    str     wzr, [x20, #4]
    str     xzr, [x20, #8]
    stlr    w1, [x20]
    power_off

payload without_syndrome
    constant x20, DEVICE
    mov     x1, #-1
    ldr     w1, [x20], #4               // post-index
    result  x1
    mov     x1, #-1
    ldr     x1, [x20, #4]!              // pre-index
    result  x1
    mov     x1, #-1
    ldrsb   x1, [x20], #-8
    result  x1
    result  x20
    mov     x1, #-1
    mov     x2, #-1
    ldp     x1, x2, [x20]
    result  x1
    result  x2
    ldp     w1, w2, [x20, #8]
    result  x1
    result  x2
    ldpsw   x1, x2, [x20], #16
    result  x1
    result  x2
    ldp     xzr, x2, [x20]
    result  x2
    result  x20
    mov     x21, sp
    mov     sp, x20                     // SP as the base, of EL1
    ldr     x1, [sp], #8
    result  x1
    mov     x1, sp
    result  x1
    mov     sp, x21
    msr     sp_el0, x20                 // and of EL0
    msr     spsel, #0
    ldr     x1, [sp, #8]!
    mov     x2, sp
    msr     spsel, #1
    result  x1
    result  x2
    mrs     x2, sp_el0
    result  x2
    mov     x1, sp
    sub     x1, x1, x21
    result  x1
    constant x20, DEVICE
    mov     x1, #0x11
    mov     x2, #0x22
    str     w1, [x20], #8
    stp     x1, x2, [x20, #8]!
    stp     xzr, x2, [x20]
    result  x20
    power_off

payload load_from_hole
    constant x0, (HOLE + 0x123)
mark load_from_hole_at
    ldrb    w1, [x0]
    power_off

payload store_to_hole
    constant x0, (HOLE + 0x120)
mark store_to_hole_at
    str     x1, [x0]
    power_off

payload pair_from_hole
    constant x0, (HOLE + 0x120)
    mov     x1, #5
mark pair_from_hole_at
    ldp     x1, x2, [x0], #16
    result  x0
    result  x1
    power_off

payload hole_on_sp_el0
    constant x0, HOLE
    msr     spsel, #0
mark hole_on_sp_el0_at
    ldr     w1, [x0]
    msr     spsel, #1
    power_off

payload hole_at_el0
    constant x0, HOLE
    adr     x1, 1f
    msr     elr_el1, x1
    msr     spsr_el1, xzr
    eret
mark hole_at_el0_at
1:  ldr     w1, [x0]
    svc     #0
    power_off

payload aarch32_at_el0
    constant x0, DEVICE
    constant x3, HOLE
    mov     x1, #-1
    adr     x2, 1f
    msr     elr_el1, x2
    mov     x2, #0x10                   // User mode, A32
    msr     spsr_el1, x2
    eret
mark aarch32_at_el0_at
1:  .inst   0xe5901004                  // ldr r1, [r0, #4]
    .inst   0xe1d020d1                  // ldrsb r2, [r0, #1]
    .inst   0xe5804008                  // str r4, [r0, #8]
    .inst   0xe5936000                  // ldr r6, [r3]
    .inst   0xef000000                  // svc #0
    result  x1
    result  x2
    power_off

payload fetch_from_hole
    constant x0, HOLE
    resume_at 1f
    ret     x0
1:  power_off

// A device is there, but no instructions.
payload fetch_from_device
    constant x0, DEVICE
    resume_at 1f
    ret     x0
1:  power_off

// What the loader would give a device: no instruction syndrome, and nothing we decode.
payload exclusive_on_device
    constant x0, DEVICE
mark exclusive_on_device_at
    ldxr    w1, [x0]
    power_off

payload undefined
    mrs     x0, cpacr_el1
    orr     x0, x0, #(3 << 16)          // ZEN: EL1 itself traps nothing
    msr     cpacr_el1, x0
    isb
mark undefined_at
    .inst   0x0420e3e0                  // cntb x0 (SVE)
    mrs     x0, S3_0_C1_C2_0            // ZCR_EL1
    mrs     x0, pmcr_el0
    mrs     x0, pmccntr_el0
    msr     pmcntenset_el0, x0
    mrs     x0, S3_0_C9_C9_0            // PMSCR_EL1
    mrs     x0, S3_0_C10_C4_0           // LORSA_EL1
    mrs     x0, S3_0_C11_C0_0           // implementation defined
    mrs     x0, vbar_el2
    .inst   0x00000000                  // udf #0
    power_off

payload id_registers
    .irp register, id_aa64pfr0_el1, id_aa64pfr1_el1, id_aa64dfr0_el1, id_aa64isar0_el1, id_aa64mmfr0_el1, id_aa64mmfr1_el1, S3_0_C0_C4_4, id_dfr0_el1, S3_0_C0_C7_7
    mrs     x0, \register
    result  x0
    .endr
    power_off

payload ignored
    mov     x0, #0
    dc      isw, x0
    dc      csw, x0
    dc      cisw, x0
    mov     x0, #-1
    msr     actlr_el1, x0
    msr     mdscr_el1, x0
    msr     oslar_el1, xzr
    mrs     x0, actlr_el1
    result  x0
    mov     x0, #1
    result  x0
    power_off

// The interrupt may be taken before the WFI, which then must not wait: it is pending here.
payload wait_for_interrupt
    enable_gic
    mrs     x0, cntvct_el0
    mov     x1, #0x8000                 // half a millisecond or so
    add     x0, x0, x1
    msr     cntv_cval_el0, x0
    mov     x1, #1
    msr     cntv_ctl_el0, x1
    isb
    wfi
    isb
    mrs     x1, cntvct_el0
    result  x0
    result  x1
    power_off

    .global guest_image_end
guest_image_end:
