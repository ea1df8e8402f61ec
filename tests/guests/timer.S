// Payloads of el2_timer.rs.

    .equ    MILLISECOND, 0x10000        // or so

// Works for \ticks of the virtual counter. Changes x2 and x3.
.macro work ticks
    mrs     x2, cntvct_el0
    constant x3, \ticks
    add     x2, x2, x3
7:  isb
    mrs     x3, cntvct_el0
    cmp     x3, x2
    b.lo    7b
.endm

// Has timer \name expire soon, with \control in its control register. Changes x0.
.macro arm_timer name, control
    mov     x0, #0x800
    msr     \name\()_tval_el0, x0
    mov     x0, #\control
    msr     \name\()_ctl_el0, x0
    isb
.endm

// Waits, for a second at most, until the handler has counted to \count in x20. Changes x2 and x3.
.macro await_count count
    one_second x2, x3
7:  cmp     x20, #\count
    b.hs    8f
    until_over x2, x3, 7b
8:
.endm

// Waits, for a second at most, until the virtual timer says that it has expired. Changes x0, x2, x3.
.macro await_expiry
    one_second x2, x3
7:  mrs     x0, cntv_ctl_el0
    tbnz    x0, #2, 8f
    until_over x2, x3, 7b
8:
.endm

.macro result_acknowledged
    acknowledge x0
    result  x0
.endm

// The handler masks the timer, which stays expired.
payload expires_once
    enable_gic
    adr     x23, 1f
    mov     x20, #0
    msr     daifclr, #2
    arm_timer cntv, 1
    await_count 1
    work    MILLISECOND
    msr     daifset, #2
    result  x20
    mrs     x0, cntv_ctl_el0
    result  x0
    power_off
1:  acknowledge x21
    add     x20, x20, #1
    mov     x22, #3                     // ENABLE, IMASK
    msr     cntv_ctl_el0, x22
    isb
    end_interrupt x21
    isb
    eret

// The handler leaves the timer as it is, and masks it the third time.
payload comes_again
    enable_gic
    adr     x23, 1f
    mov     x20, #0
    msr     daifclr, #2
    arm_timer cntv, 1
    await_count 3
    work    MILLISECOND
    msr     daifset, #2
    result  x20
    power_off
1:  acknowledge x21
    add     x20, x20, #1
    cmp     x20, #3
    b.ne    2f
    msr     cntv_ctl_el0, xzr
    isb
2:  end_interrupt x21
    isb
    eret

// Expires masked, and is unmasked then.
payload masked
    enable_gic
    arm_timer cntv, 3
    await_expiry
    result  x0
    work    MILLISECOND
    result_acknowledged
    tell    0x10, 1
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
    await_interrupt
    power_off

// Its interrupt is disabled in the distributor's books, then enabled.
payload disabled
    enable_gic
    private_frame x19
    constant x20, (1 << 27)
    str     w20, [x19, #0x180]
    arm_timer cntv, 1
    one_second x2, x3
1:  ldr     w0, [x19, #0x200]           // ISPENDR0
    tbnz    w0, #27, 2f
    until_over x2, x3, 1b
2:  work    MILLISECOND
    result_acknowledged
    str     w20, [x19, #0x100]
    await_interrupt
    power_off

payload physical
    enable_gic
    arm_timer cntp, 1
    await_interrupt
    msr     cntp_ctl_el0, xzr
    isb
    end_interrupt x0
    isb
    result_acknowledged
    power_off

// Sleeps until the timer's handler has run three times (T1).
payload sleeps
    enable_gic
    adr     x23, 3f
    mov     x20, #0
1:  mov     x22, x20
    msr     daifset, #2
    arm_timer cntv, 1
2:  wfi
    msr     daifclr, #2
    isb
    msr     daifset, #2
    cmp     x20, x22
    b.eq    2b
    cmp     x20, #3
    b.ne    1b
    result  x20
    power_off
3:  acknowledge x21
    add     x20, x20, #1
    msr     cntv_ctl_el0, xzr
    isb
    end_interrupt x21
    isb
    eret

    .global guest_image_end
guest_image_end:
