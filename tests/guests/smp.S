// Payloads of el2_smp_guest.rs.

    .equ    CPU_OFF_CALL,       0x84000002
    .equ    CPU_ON_CALL,        0xc4000003
    .equ    AFFINITY_INFO_CALL, 0xc4000004
    .equ    MAILBOX,            0x40180000      // a doubleword for each vCPU
    .equ    ROUNDS,             100

// Turns vCPU \cpu on at \label with \context as its x0; the answer is in x0. Changes x1 to x3.
.macro turn_on cpu, label, context
    mov     x1, \cpu
    adr     x2, \label
    mov     x3, \context
    constant x0, CPU_ON_CALL
    hvc     #0
.endm

// x0 = what vCPU \cpu is doing. Changes x1 and x2.
.macro affinity_info cpu
    mov     x1, \cpu
    mov     x2, #0
    constant x0, AFFINITY_INFO_CALL
    hvc     #0
.endm

// Has all SGIs come to vCPU \cpu, which runs this. Changes x0 to x2.
.macro enable_sgis cpu
    if_v2   .Lsgis_v2_\@
    constant x0, GICR
    add     x0, x0, \cpu, lsl #17
    str     wzr, [x0, #0x14]
    add     x0, x0, #0x10000
    mov     w1, #-1
    str     w1, [x0, #0x80]
    mov     w1, #0xffff
    str     w1, [x0, #0x100]
    mov     x1, #0xff
    msr     icc_pmr_el1, x1
    mov     x1, #1
    msr     icc_igrpen1_el1, x1
    isb
    b       .Lsgis_\@
.Lsgis_v2_\@:
    constant x0, GICD
    mov     w1, #-1
    str     w1, [x0, #0x80]
    mov     w1, #0xffff
    str     w1, [x0, #0x100]
    mov     w1, #0xff
    str     w1, [x29, #4]
    ldr     w1, [x29]
    orr     w1, w1, #6
    str     w1, [x29]
.Lsgis_\@:
.endm

// Sends SGI \intid to the vCPUs whose bits \targets has. Changes x0 and x1.
.macro send_sgi intid, targets
    mov     x0, \intid
    mov     x1, \targets
    if_v2   .Lsend_v2_\@
    orr     x0, x1, x0, lsl #24
    msr     icc_sgi1r_el1, x0
    isb
    b       .Lsend_\@
.Lsend_v2_\@:
    orr     x0, x0, x1, lsl #16
    constant x1, GICD
    str     w0, [x1, #0xf00]
    dsb     sy
.Lsend_\@:
.endm

// Sleeps until there is an interrupt, and ends it: x0 is its number. Interrupts stay masked.
.macro sleep_for_interrupt
6:  wfi
    acknowledge x0
    and     x4, x0, #0x3ff
    cmp     x4, #1020
    b.hs    6b
    end_interrupt x0
    mov     x0, x4
.endm

// SGI n wakes vCPU n, which wakes the next; then all answer to one that goes to them together.
payload sgi_ring
    mov     x22, #0
    enable_gic
    enable_sgis x22
    .irp cpu, 1,2,3
    turn_on #\cpu, ring_member, #\cpu
    result  x0
    .endr
    constant x19, MAILBOX
    .irp cpu, 1,2,3
1:  ldr     x0, [x19, #(8 * \cpu)]      // they listen
    yield
    cbz     x0, 1b
    .endr
    mov     x20, #ROUNDS
    mov     x21, #0
2:  send_sgi #1, #2
    sleep_for_interrupt
    cmp     x0, #0
    cinc    x21, x21, eq
    subs    x20, x20, #1
    b.ne    2b
    result  x21
    mov     x21, #0
    send_sgi #8, #0xe
3:  sleep_for_interrupt
    mov     x1, #1
    lsl     x1, x1, x0
    orr     x21, x21, x1
    cmp     x21, #0xe00
    b.ne    3b
    result  x21
    power_off

ring_member:
    mov     x22, x0
    enable_sgis x22
    constant x19, MAILBOX
    mov     x0, #1
    str     x0, [x19, x22, lsl #3]
1:  sleep_for_interrupt
    cmp     x0, #8
    b.eq    2f
    cmp     x0, x22
    b.ne    1b
    add     x20, x22, #1
    and     x20, x20, #3
    mov     x21, #1
    lsl     x21, x21, x20
    send_sgi x20, x21
    b       1b
2:  add     x20, x22, #8
    send_sgi x20, #1
    b       1b

// Others are turned on and turn themselves off, over and over.
payload power_cycles
    constant x19, MAILBOX
    mov     x20, #1                     // round
    mov     x21, #0                     // what went wrong
1:  .irp cpu, 1,2,3
    turn_on #\cpu, cycled, x20
    cmp     x0, #0
    cinc    x21, x21, ne
    .endr
    .irp cpu, 1,2,3
2:  affinity_info #\cpu
    yield
    cmp     x0, #1
    b.ne    2b
    ldr     x0, [x19, #(8 * \cpu)]
    cmp     x0, x20
    cinc    x21, x21, ne
    .endr
    add     x20, x20, #1
    cmp     x20, #(ROUNDS + 1)
    b.ne    1b
    result  x20
    result  x21
    power_off

cycled:
    mrs     x1, mpidr_el1
    and     x1, x1, #0xff
    constant x19, MAILBOX
    str     x0, [x19, x1, lsl #3]
    mrs     x2, sctlr_el1
    mrs     x3, currentel
    mov     x4, #5                      // M and C
    and     x2, x2, x4
    cmp     x3, #4
    ccmp    x2, #0, #0, eq
    b.eq    3f
    str     xzr, [x19, x1, lsl #3]
3:  mov     x2, #-1                     // what the next start must not see
    msr     sp_el0, x2
    msr     tpidr_el1, x2
    constant x0, CPU_OFF_CALL
    hvc     #0
    b       .

// What CPU_ON refuses.
payload bad_starts
    turn_on #1, waits_for_ever, #0
    result  x0
1:  affinity_info #1
    yield
    cbnz    x0, 1b
    turn_on #1, waits_for_ever, #0
    result  x0
    turn_on #0, waits_for_ever, #0
    result  x0
    .irp target, 4, 8, 0x100, 0x10001, 0x1000000
    constant x1, \target
    adr     x2, waits_for_ever
    mov     x3, #0
    constant x0, CPU_ON_CALL
    hvc     #0
    result  x0
    .endr
    .irp entry, 0x1000, 0x3ffffffc, 0x40400000, 0x40000002, 0x0f000000, 0x08000000
    mov     x1, #2
    constant x2, \entry
    mov     x3, #0
    constant x0, CPU_ON_CALL
    hvc     #0
    result  x0
    .endr
    affinity_info #2
    result  x0
    affinity_info #4
    result  x0
    power_off

waits_for_ever:
    wfi
    b       waits_for_ever

// Sleeps until \name, whose interrupt is \intid, expires, ten times. The latest was late by so many
// ticks: the next result. Changes x20 and x21.
.macro sleep_by_timer name, counter, intid
    mov     x20, #10
    mov     x21, #0
1:  isb
    mrs     x22, \counter
    constant x0, 0x10000                // a millisecond
    add     x22, x22, x0
    msr     \name\()_cval_el0, x22
    mov     x0, #1
    msr     \name\()_ctl_el0, x0
    isb
2:  wfi
    acknowledge x0
    cmp     w0, #1023
    b.eq    2b
    isb
    mrs     x1, \counter
    cmp     x0, #\intid
    b.ne    3f
    sub     x1, x1, x22
    cmp     x1, x21
    csel    x21, x1, x21, hi
    msr     \name\()_ctl_el0, xzr
    isb
    end_interrupt x0
    subs    x20, x20, #1
    b.ne    1b
3:  result  x20
    result  x21
.endm

payload parked_by_timer
    enable_gic
    sleep_by_timer cntv, cntvct_el0, 27
    sleep_by_timer cntp, cntpct_el0, 30
    power_off

// Nothing ends this but EL2.
payload spins
1:  b       1b

// Fills what a vCPU has with values of \seed, and looks whether they stay. Results: turns, and the
// number of what did not.
.macro keep seed, turns
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x0, #(\seed + \n)
    mvn     x1, x0
    stp     x0, x1, [sp, #-16]
    ldur    q\n, [sp, #-16]
    .endr
    .irp name, sp_el0,tpidr_el0,tpidr_el1,tpidrro_el0,far_el1,ttbr0_el1,ttbr1_el1,mair_el1,contextidr_el1,cntv_cval_el0,cntp_cval_el0,elr_el1
    constant x0, (\seed << 8)
    msr     \name, x0
    .endr
    mov     x0, #((\seed & 3) << 22)    // RMode
    msr     fpcr, x0
    mov     x0, #(\seed & 0x1f)
    msr     fpsr, x0
    .irp n, 5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,29,30
    mov     x\n, #(\seed + 64 + \n)
    .endr
    mov     x4, #0
1:  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    mov     x3, #(1 + \n)
    mov     x0, #(\seed + \n)
    stur    q\n, [sp, #-16]
    ldp     x1, x2, [sp, #-16]
    cmp     x0, x1
    b.ne    9f
    mvn     x1, x2
    cmp     x0, x1
    b.ne    9f
    .endr
    mov     x3, #40
    .irp name, sp_el0,tpidr_el0,tpidr_el1,tpidrro_el0,far_el1,ttbr0_el1,ttbr1_el1,mair_el1,contextidr_el1,cntv_cval_el0,cntp_cval_el0,elr_el1
    add     x3, x3, #1
    constant x0, (\seed << 8)
    mrs     x1, \name
    cmp     x0, x1
    b.ne    9f
    .endr
    mov     x3, #60
    mrs     x1, fpcr
    mov     x0, #((\seed & 3) << 22)
    cmp     x0, x1
    b.ne    9f
    mov     x3, #61
    mrs     x1, fpsr
    mov     x0, #(\seed & 0x1f)
    cmp     x0, x1
    b.ne    9f
    .irp n, 5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,29,30
    mov     x3, #(64 + \n)
    cmp     x\n, #(\seed + 64 + \n)
    b.ne    9f
    .endr
    add     x4, x4, #1
    mov     x3, #0
    stp     x4, x3, [x28]
    isb
    mrs     x0, cntvct_el0
    constant x1, \turns
    cmp     x0, x1
    b.lo    1b
9:  stp     x4, x3, [x28]
.endm

// A fifth of a second each.
payload keeps_first
    keep    0x115, 0xc00000
    power_off
payload keeps_second
    keep    0x62a, 0xffffffff
    b       .

// Twenty interrupts are active at once, while another does the same on this core; then they are pending
// again, are deactivated, and come again (the latter on a GICv3).
.macro overflow
    split_ends
    enable_gic
    constant x19, GICD
    mov     w0, #-1
    str     w0, [x19, #0x108]           // ISENABLER2
    constant x1, 0x0fffff
    mov     x2, #64
    mov     w0, #1
    if_v2   2f
    b       4f
2:                                      // GICD_ITARGETSR
    add     x3, x19, #0x800
3:  strb    w0, [x3, x2]
    add     x2, x2, #1
    cmp     x2, #84
    b.ne    3b
4:  str     w1, [x19, #0x208]           // ISPENDR2
    mov     x20, #0
    mov     x21, #64
5:  acknowledge x0
    cmp     x0, x21
    cinc    x20, x20, ne
    end_interrupt x0
    add     x21, x21, #1
    cmp     x21, #84
    b.ne    5b
    if_v2   10f
    constant x1, 0x0fffff
    str     w1, [x19, #0x208]           // pending and active
10: mrs     x2, cntvct_el0
    constant x3, 0x200000               // thirty milliseconds: several slices
    add     x2, x2, x3
6:  isb
    mrs     x3, cntvct_el0
    cmp     x3, x2
    b.lo    6b
    acknowledge x0                      // all are active: nothing comes
    cmp     w0, #1023
    cinc    x20, x20, ne
    ldr     w0, [x19, #0x308]           // ISACTIVER2
    constant x1, 0x0fffff
    cmp     w0, w1
    cinc    x20, x20, ne
    mov     x21, #64
7:  deactivate x21
    if_v2   11f                         // GICV_DIR does not tell EL2 which it is
    acknowledge x0                      // it comes again
    cmp     x0, x21
    cinc    x20, x20, ne
    end_interrupt x0
    deactivate x21
11: add     x21, x21, #1
    cmp     x21, #84
    b.ne    7b
    acknowledge x0
    cmp     w0, #1023
    cinc    x20, x20, ne
    ldr     w0, [x19, #0x308]
    cmp     w0, #0
    cinc    x20, x20, ne
    result  x20                         // what went wrong
    mov     x0, #1
    result  x0                          // done
.endm

payload overflows_first
    overflow
    power_off
payload overflows_second
    overflow
    b       .

// Counts, in the next result, until the virtual counter reaches \limit.
.macro count_until limit
7:  ldr     x0, [x28]
    add     x0, x0, #1
    str     x0, [x28]
    isb
    mrs     x0, cntvct_el0
    cmp     x0, \limit
    b.lo    7b
.endm

// Counts as long as it is let.
payload counts
    mov     x21, #-1
    count_until x21
    b       .

// Counts for four milliseconds and sleeps for one, for a fifth of a second.
payload counts_and_sleeps
    enable_gic
    constant x19, 0xc00000
1:  isb
    mrs     x21, cntvct_el0
    cmp     x21, x19
    b.hs    9f
    constant x0, 0x3d000
    add     x21, x21, x0
    count_until x21
    constant x0, 0x10000
    add     x21, x21, x0
    msr     cntv_cval_el0, x21
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
2:  wfi
    acknowledge x0
    cmp     w0, #1023
    b.eq    2b
    msr     cntv_ctl_el0, xzr
    isb
    end_interrupt x0
    b       1b
9:  power_off

// Sleeps while the virtual timer has expired, whose interrupt is disabled; the physical one ends it. How
// often it woke, and by what.
payload disabled_timer
    enable_gic
    mov     w1, #(1 << 27)
    constant x0, (GICR + 0x10180)       // ICENABLER0
    if_v2   1f
    b       2f
1:  constant x0, (GICD + 0x180)
2:  str     w1, [x0]
    msr     cntv_cval_el0, xzr
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
    mrs     x22, cntpct_el0
    constant x0, 0x300000               // 50 ms
    add     x22, x22, x0
    msr     cntp_cval_el0, x22
    mov     x0, #1
    msr     cntp_ctl_el0, x0
    isb
    mov     x20, #0
3:  wfi
    add     x20, x20, #1
    acknowledge x0
    cmp     w0, #1023
    b.eq    3b
    result  x20
    result  x0
    power_off

// Sleeps while an interrupt is pending that the priority mask keeps off; the physical timer's, which it does
// not, ends it. How often it woke, and by what.
payload masked_by_priority
    enable_gic
    mov     x22, #0
    enable_sgis x22
    mov     w1, #0x80                   // SGI 1 has a low priority
    constant x0, (GICR + 0x10401)
    if_v2   1f
    b       2f
1:  constant x0, (GICD + 0x401)
2:  strb    w1, [x0]
    if_v2   1f
    mov     x1, #0x80
    msr     icc_pmr_el1, x1
    b       2f
1:  mov     w1, #0x80
    str     w1, [x29, #4]
2:  isb
    send_sgi #1, #1
    mrs     x22, cntpct_el0
    constant x0, 0x300000               // 50 ms
    add     x22, x22, x0
    msr     cntp_cval_el0, x22
    mov     x0, #1
    msr     cntp_ctl_el0, x0
    isb
    mov     x20, #0
3:  wfi
    add     x20, x20, #1
    acknowledge x0
    cmp     w0, #1023
    b.eq    3b
    result  x20
    result  x0
    power_off

// Waits for its virtual timer's interrupt, which is pending already, with interrupts masked: each WFI completes at
// once, most without an exit. Does some work in between, as long as it is let, and counts its waits.
payload waits_for_the_pending
    enable_gic
    msr     cntv_cval_el0, xzr
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
    mov     x20, #0
1:  wfi
    mov     x0, #10000
2:  subs    x0, x0, #1
    b.ne    2b
    add     x20, x20, #1
    str     x20, [x28]
    b       1b

// Counts for a fifth of a second.
payload counts_a_while
    constant x21, 0xc00000
    count_until x21
    power_off
    b       waits_for_ever

// Has the test ask for something of another machine, so many times, and waits for up to 4 ms after each: asleep
// or not.
    .equ    REQUESTS,           800
payload director
    enable_gic
    constant x19, 20261122
    constant x20, REQUESTS
1:  constant x0, 1664525
    constant x1, 1013904223
    madd    w19, w19, w0, w1
    lsr     w1, w19, #24
    constant x0, DEVICE
    str     w1, [x0]
    isb
    mrs     x22, cntvct_el0
    ubfx    x1, x19, #12, #12
    add     x22, x22, x1, lsl #6
    tbnz    w19, #11, 3f
    msr     cntv_cval_el0, x22
    mov     x0, #1
    msr     cntv_ctl_el0, x0
    isb
2:  wfi
    acknowledge x0
    cmp     w0, #1023
    b.eq    2b
    msr     cntv_ctl_el0, xzr
    isb
    end_interrupt x0
    b       4f
3:  until_over x22, x2, 3b
4:  subs    x20, x20, #1
    b.ne    1b
    power_off
    b       waits_for_ever

    .equ    COMPLAINT,          8               // in the test device

// FP and SIMD do not trap. Changes x1.
.macro use_fp
    mov     x1, #(3 << 20)              // CPACR_EL1.FPEN
    msr     cpacr_el1, x1
    isb
.endm

// What the next life of this vCPU must not see: in its registers, and in what it has of the interrupt controller.
// Changes x0 to x2.
.macro leave_traces
    mov     x0, #-1
    .irp name, sp_el0,tpidr_el0,tpidr_el1,tpidrro_el0,contextidr_el1,far_el1,ttbr0_el1,ttbr1_el1,mair_el1
    msr     \name, x0
    .endr
    mov     x1, #(1 << 44)              // QEMU 7.2 hangs if the sum with CNTVOFF_EL2 overflows
    msr     cntv_cval_el0, x1
    msr     cntp_cval_el0, x1
    mov     x1, #3                      // on, and masked
    msr     cntv_ctl_el0, x1
    msr     cntp_ctl_el0, x1
    use_fp
    fmov    d31, x0
    constant x1, GICD                   // SPIs that are not enabled: pending, active, with a priority
    str     w0, [x1, #0x20c]
    str     w0, [x1, #0x30c]
    str     w0, [x1, #0x460]
    str     w0, [x1, #0xc18]
    constant x1, (DEVICE - 0x100 + 0x70)
    mov     w0, #3
    str     w0, [x1]                    // a driver has seen the device
.endm

// Four vCPUs wake each other in a ring until they are stopped. The last one resets the machine when it has been woken 20
// times. What should not be is told to the device: something left of an earlier life, or an interrupt that nobody sent.
payload lives
    constant x19, MAILBOX
    .irp cpu, 0,1,2,3
    ldr     x0, [x19, #(8 * \cpu)]
    mov     x26, #1
    cbnz    x0, complains
    .endr
    .irp cpu, 1,2,3
    turn_on #\cpu, lives_on, #\cpu
    mov     x26, #2
    cbnz    x0, complains
    .endr
    mov     x0, #0
    bl      prepares
    .irp cpu, 1,2,3
1:  ldr     x0, [x19, #(8 * \cpu)]
    yield
    cbz     x0, 1b
    .endr
    send_sgi #1, #2
    b       rings

lives_on:
    constant x19, MAILBOX
    bl      prepares
rings:
    sleep_for_interrupt
    mov     x26, #3
    cmp     x0, x22
    b.ne    complains
    ldr     x2, [x19, x22, lsl #3]
    add     x2, x2, #1
    str     x2, [x19, x22, lsl #3]
    cmp     x22, #3
    ccmp    x2, #20, #0, eq
    b.eq    2f
    add     x20, x22, #1
    and     x20, x20, #3
    mov     x21, #1
    lsl     x21, x21, x20
    send_sgi x20, x21
    b       rings
2:  constant x0, PSCI_RESET
    hvc     #0
    mov     x26, #4
complains:
    constant x24, DEVICE
    str     w26, [x24, #COMPLAINT]
    b       waits_for_ever

// Readies vCPU x0, which is x22 from then on, and has it in the mailbox.
prepares:
    mov     x22, x0
    ldr     x0, [x19, x22, lsl #3]
    mov     x26, #5
    cbnz    x0, complains
    mrs     x0, tpidr_el1
    mov     x26, #6
    cbnz    x0, complains
    cbnz    x22, 1f
    enable_gic
1:  enable_sgis x22
    leave_traces
    mov     x0, #1
    str     x0, [x19, x22, lsl #3]
    ret

// x20 = a hash of x20 and \value. Changes x1.
.macro hash value
    constant x1, 0x01000193
    eor     x20, x20, \value
    mul     x20, x20, x1
    ror     x20, x20, #17
.endm

// The next result: a hash of the words from \from to \to, which are constants. Changes x0, x1, x2, x3 and x20.
.macro hash_words from, to
    constant x2, \from
    constant x3, \to
    mov     x20, #1
7:  ldr     w0, [x2], #4
    hash    x0
    cmp     x2, x3
    b.lo    7b
    result  x20
.endm

// x20 = a hash of this vCPU's registers.
.macro hash_registers
    mov     x20, #1
    .irp name, sp_el0,tpidr_el0,tpidr_el1,tpidrro_el0,contextidr_el1,far_el1,ttbr0_el1,ttbr1_el1,mair_el1,cntv_cval_el0,cntp_cval_el0,cntv_ctl_el0,cntp_ctl_el0,sctlr_el1,mpidr_el1,esr_el1,elr_el1,afsr0_el1
    mrs     x0, \name
    hash    x0
    .endr
    use_fp
    fmov    x0, d31
    hash    x0
.endm

// Hashes of all there is of a machine that has just been started: the device tree and the RAM behind it; the virtio device;
// the interrupt controller; and each vCPU's registers.
payload inventory
    hash_registers
    result  x20
    hash_words 0x40180000, 0x40400000
    hash_words (DEVICE - 0x100), (DEVICE - 4) // all but ConfigGeneration, which goes on
    hash_words GICD, (GICD + 0x10)
    hash_words (GICD + 0x80), (GICD + 0xd00)
    if_v2   1f
    .irp cpu, 0,1,2,3
    hash_words (GICR + 0x20000 * \cpu), (GICR + 0x20000 * \cpu + 0x20)
    hash_words (GICR + 0x20000 * \cpu + 0x10080), (GICR + 0x20000 * \cpu + 0x10d00)
    .endr
1:  constant x19, MAILBOX
    .irp cpu, 1,2,3
    turn_on #\cpu, is_listed, #\cpu
    result  x0
2:  ldr     x0, [x19, #(8 * \cpu)]
    yield
    cbz     x0, 2b
    result  x0
    .endr
    power_off
    b       waits_for_ever

is_listed:
    mov     x22, x0
    hash_registers
    constant x19, MAILBOX
    str     x20, [x19, x22, lsl #3]
    b       waits_for_ever

    .balign 8
guest_image_end:
