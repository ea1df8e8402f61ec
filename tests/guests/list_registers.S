// Payloads of el2_list_registers.rs.
//
// They ask the CPU interface what is there instead of taking interrupts, but for one.

// Sets the priority of SPI \intid. Changes w1; x19 is the GICD.
.macro set_priority intid, priority
    mov     w1, #\priority
    strb    w1, [x19, #(0x400 + \intid)]
.endm

// Makes SPI \intid pending, enabled before or not. Changes w1.
.macro set_pending intid
    mov     w1, #(1 << (\intid % 32))
    str     w1, [x19, #(0x200 + \intid / 32 * 4)]
.endm

// The active SPIs 32 to 63, to the next result. Changes w1.
.macro result_active
    ldr     w1, [x19, #0x304]
    result  x1
.endm

.macro start
    enable_gic
    constant x19, GICD
    mov     w1, #-1
    .irp word, 1,2,3
    str     w1, [x19, #(0x100 + 4 * \word)]
    .endr
.endm

// Three expirations of the virtual timer, each an interrupt taken. The device sees it before the
// acknowledgement (0x10), after it (0x14), and after the end (0x18).
payload timer_rounds
    start
    adr     x23, 2f
    mov     x20, #0
    .irp round, 1,2,3
    mov     x0, #0x2000
    msr     cntv_tval_el0, x0
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
    msr     daifclr, #2
1:  cmp     x20, #\round
    b.ne    1b
    msr     daifset, #2
    .endr
    power_off
2:  tell    0x10, 1
    acknowledge x0
    tell    0x14, 1
    result  x0
    msr     cntv_ctl_el0, xzr
    isb
    end_interrupt x0
    tell    0x18, 1
    add     x20, x20, #1
    eret

// Ends in its timer's interrupt.
payload timer_left_active
    start
    mov     x0, #1
    msr     cntv_tval_el0, x0
    msr     cntv_ctl_el0, x0
    isb
    await_interrupt
    tell    0x10, 1
    power_off

// Six interrupts, each more urgent than the one before, acknowledged one within the other.
.macro nest
    start
    set_priority 40, 0xc0
    set_priority 41, 0xa8
    set_priority 42, 0x90
    set_priority 43, 0x78
    set_priority 44, 0x60
    set_priority 45, 0x48
    set_priority 48, 0xf0
    .irp intid, 40,41,42,43,44,45
    set_pending \intid
    acknowledge x0
    result  x0
    .endr
    result_active
.endm

payload nested
    nest
    set_pending 48                      // less urgent than all that is active
    acknowledge x0
    result  x0
    tell    0x10, 1
    mrs     x2, cntvct_el0
    constant x3, 0x20000
    add     x2, x2, x3                  // two milliseconds of undisturbed work
1:  mrs     x3, cntvct_el0
    cmp     x3, x2
    b.lo    1b
    acknowledge x0
    result  x0
    tell    0x14, 1
    .irp intid, 45,44,43,42,41,40
    mov     x0, #\intid
    end_interrupt x0
    result_active
    .endr
    await_interrupt
    end_interrupt x0
    result_active
    acknowledge x0
    result  x0
    power_off

// The ends in a row, with nothing in between that EL2 would see.
payload ends_in_a_row
    nest
    .irp intid, 45,44,43,42,41,40
    mov     x0, #\intid
    end_interrupt x0
    .endr
    isb
    result_active
    acknowledge x0
    result  x0
    power_off

// As `nested` with EOImode 1: the priorities are dropped first, then the interrupts deactivated in
// an order of their own.
payload split_end
    split_ends
    nest
    .irp intid, 45,44,43,42,41,40
    mov     x0, #\intid
    end_interrupt x0
    .endr
    result_active
    .irp intid, 42,45,40,41,44,43
    mov     x0, #\intid
    deactivate x0
    result_active
    .endr
    acknowledge x0
    result  x0
    power_off

// Forty interrupts at once, in four priorities.
payload overflow
    start
    mov     x2, #64
1:  and     x3, x2, #3
    lsl     x3, x3, #5
    add     x3, x3, #0x40
    add     x4, x19, x2
    strb    w3, [x4, #0x400]
    add     x2, x2, #1
    cmp     x2, #104
    b.ne    1b
    mov     w1, #-1
    str     w1, [x19, #0x208]
    mov     w1, #0xff
    str     w1, [x19, #0x20c]
    mov     x20, #40
2:  await_interrupt
    end_interrupt x0
    sub     x20, x20, #1
    cbnz    x20, 2b
    acknowledge x0
    result  x0
    power_off

// The PL011 in loop-back: a byte sent is a byte received, and the line is high until it is read.
payload level
    start
    constant x21, UART
    mov     w1, #0x381                  // CR: UARTEN, TXE, RXE, LBE
    str     w1, [x21, #0x30]
    mov     w1, #0x40                   // IMSC: RTIM
    str     w1, [x21, #0x38]
    acknowledge x0
    result  x0
    mov     w1, #'x'
    str     w1, [x21]
    await_interrupt
    end_interrupt x0
    await_interrupt                     // the line is still high
    ldr     w1, [x21]
    end_interrupt x0
    acknowledge x0
    result  x0
    mov     w1, #'y'
    str     w1, [x21]
    ldr     w1, [x21]                   // high, and low again, before anyone looked
    acknowledge x0
    result  x0
    power_off

payload edge_while_active
    start
    mov     w1, #(2 << (50 - 48) * 2)   // GICD_ICFGR3: edge
    str     w1, [x19, #0xc0c]
    set_pending 50
    await_interrupt
    set_pending 50
    tell    0x10, 1
    acknowledge x1
    result  x1
    end_interrupt x0
    await_interrupt
    end_interrupt x0
    acknowledge x0
    result  x0
    power_off

payload sgi
    start
    private_frame x1
    mov     w2, #(1 << 5)
    str     w2, [x1, #0x100]
    if_v2   1f
    constant x1, (5 << 24 | 1)          // INTID 5, to affinity 0.0.0.0
    msr     icc_sgi1r_el1, x1
    isb
    b       2f
1:  constant x1, (2 << 24 | 5)          // GICD_SGIR: INTID 5, to oneself
    str     w1, [x19, #0xf00]
2:  await_interrupt
    end_interrupt x0
    acknowledge x0
    result  x0
    power_off

// Acknowledges and ends whatever the test has put into a list register.
payload end_what_is_there
    start
    await_interrupt
    end_interrupt x0
    power_off

    .global guest_image_end
guest_image_end:
