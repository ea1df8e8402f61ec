// What all EL1 test payloads share: the entry, the vectors, and macros. `tests/el2_support/guest.rs`
// has the other end of it.
//
// The image runs wherever the loader puts it. Conventions:
// - x28 = RESULTS, where a payload leaves 64-bit values for the test
// - a synchronous exception is written down and stepped over, or goes on at `resume_at`'s label;
//   it changes x24 to x27
// - what asks the interrupt controller changes x17 and x29
// - an IRQ goes to the address in x23, with nothing saved

    .equ    STACK_TOP,  0x40100000
    .equ    RESULTS,    0x40100000
    .equ    GICC_AT,    0x40107ff0      // GICC of a GICv2, or 0: a GICv3
    .equ    RESUME,     0x40107ff8      // where to go on after the next exception, unless 0
    .equ    EXCEPTIONS, 0x40108000      // their number, then five words of each
    .equ    MAX_EXCEPTIONS, 64

    .equ    DEVICE,     0x0f000100      // configuration space of the test device
    .equ    HOLE,       0x10000000      // nothing is mapped here
    .equ    GICD,       0x08000000
    .equ    GICC,       0x08010000
    .equ    GICR,       0x080a0000
    .equ    UART,       0x09000000
    .equ    RTC,        0x09010000

    .equ    PSCI_VERSION,    0x84000000
    .equ    PSCI_CPU_OFF,    0x84000002
    .equ    PSCI_SYSTEM_OFF, 0x84000008
    .equ    PSCI_RESET,      0x84000009

    .arch_extension fp
    .arch_extension simd
    .section .rodata.guest, "a"

.macro payload name
    .balign 4
    .global \name
\name:
.endm

// A place whose address the test asks for.
.macro mark name
    .global \name
\name:
.endm

.macro constant reg, value
    movz    \reg, #((\value) & 0xffff)
    movk    \reg, #(((\value) >> 16) & 0xffff), lsl #16
.endm

// Writes \reg to the next result.
.macro result reg
    str     \reg, [x28], #8
.endm

// Ends the run: the test goes on.
.macro power_off
    constant x0, PSCI_SYSTEM_OFF
    hvc     #0
.endm

// The next synchronous exception goes on at \label. Changes x24 and x25.
.macro resume_at label
    constant x24, RESUME
    adr     x25, \label
    str     x25, [x24]
.endm

// Turns the interrupt controller on, with SPIs in group 1 and the timers' PPIs enabled. Changes x0
// to x2.
.macro enable_gic
    constant x0, GICD
    mov     w1, #0x12                   // ARE, EnableGrp1
    str     w1, [x0]
    mov     w1, #-1
    .irp word, 1,2,3
    str     w1, [x0, #(0x80 + 4 * \word)]
    .endr
    constant x2, GICC_AT
    ldr     x2, [x2]
    cbnz    x2, .Lenable_v2_\@
    constant x0, GICR
    str     wzr, [x0, #0x14]            // GICR_WAKER
    add     x0, x0, #0x10000
    str     w1, [x0, #0x80]
    constant x1, 0x48000000             // 27 and 30
    str     w1, [x0, #0x100]
    mov     x1, #0xff
    msr     icc_pmr_el1, x1
    mov     x1, #1
    msr     icc_igrpen1_el1, x1
    isb
    b       .Lenabled_\@
.Lenable_v2_\@:
    str     w1, [x0, #0x80]
    constant x1, 0x48000000
    str     w1, [x0, #0x100]
    mov     w1, #0xff
    str     w1, [x2, #4]                // GICC_PMR
    ldr     w1, [x2]
    orr     w1, w1, #6                  // GICC_CTLR: EnableGrp1, AckCtl
    str     w1, [x2]
.Lenabled_\@:
.endm

// Jumps to \label with x29 = GICC on a GICv2. Changes x29.
.macro if_v2 label
    constant x29, GICC_AT
    ldr     x29, [x29]
    cbnz    x29, \label
.endm

// The registers of SGIs and PPIs from IGROUPR0 on: GICR's SGI frame, or GICD.
.macro private_frame reg
    constant \reg, GICD
    if_v2   .Lprivate_\@
    constant \reg, (GICR + 0x10000)
.Lprivate_\@:
.endm

.macro acknowledge reg
    if_v2   .Lv2_\@
    mrs     \reg, icc_iar1_el1
    b       .Lend_\@
.Lv2_\@:
    ldr     w17, [x29, #0xc]
    mov     \reg, x17
.Lend_\@:
.endm

.macro end_interrupt reg
    if_v2   .Lv2_\@
    msr     icc_eoir1_el1, \reg
    isb
    b       .Lend_\@
.Lv2_\@:
    mov     x17, \reg
    str     w17, [x29, #0x10]
    dsb     sy                          // maintenance, if that asked for it, comes before what follows
    isb
.Lend_\@:
.endm

.macro deactivate reg
    if_v2   .Lv2_\@
    msr     icc_dir_el1, \reg
    isb
    b       .Lend_\@
.Lv2_\@:
    mov     x17, \reg
    add     x29, x29, #0x1000
    str     w17, [x29]
.Lend_\@:
.endm

// Ends of interrupts drop the priority only. Changes x0.
.macro split_ends
    if_v2   .Lv2_\@
    mov     x0, #2                      // ICC_CTLR_EL1.EOImode
    msr     icc_ctlr_el1, x0
    isb
    b       .Lend_\@
.Lv2_\@:
    mov     w0, #(1 << 9)               // GICC_CTLR.EOImode
    str     w0, [x29]
.Lend_\@:
.endm

// Sets \time to a second from now, by the virtual counter. Changes \scratch.
.macro one_second time, scratch
    mrs     \time, cntvct_el0
    mrs     \scratch, cntfrq_el0
    add     \time, \time, \scratch
.endm

// Goes back to \label unless \time is over. Changes \scratch.
.macro until_over time, scratch, label
    isb
    mrs     \scratch, cntvct_el0
    cmp     \scratch, \time
    b.lo    \label
.endm

// What is acknowledged within a second, to the next result and x0. Changes x1 and x2.
.macro await_interrupt
    one_second x1, x2
8:  acknowledge x0
    cmp     w0, #1023
    b.ne    9f
    until_over x1, x2, 8b
9:  result  x0
.endm

// Writes \value to the test device at \offset. Changes x24 and x25.
.macro tell offset, value
    constant x24, DEVICE
    mov     x25, #\value
    str     w25, [x24, #\offset]
.endm

    .balign 2048
    .global guest_image, guest_image_end
guest_image:
    ldr     x1, 1f
    adr     x2, guest_image
    add     x1, x1, x2
    b       2f
1:  .quad   0                           // the payload's offset: the test writes it
2:  adr     x2, guest_vectors
    msr     vbar_el1, x2
    constant x2, STACK_TOP
    mov     sp, x2
    mrs     x2, id_aa64pfr0_el1
    tst     x2, #(0xf << 24)            // GIC: no system registers, a GICv2
    constant x2, GICC
    csel    x2, x2, xzr, eq
    msr     nzcv, xzr
    constant x28, GICC_AT
    str     x2, [x28]
    constant x28, RESULTS
    mov     x2, #(3 << 20)              // CPACR_EL1.FPEN
    msr     cpacr_el1, x2
    isb
    br      x1

.macro sync_vector offset
    .balign 128
    mov     x24, #\offset
    b       on_exception
.endm
.macro irq_vector
    .balign 128
    br      x23
.endm
.macro other_vector offset
    .balign 128
    mov     x24, #\offset
    b       on_unexpected
.endm

    .balign 2048
guest_vectors:
    .irp base, 0x000, 0x200, 0x400, 0x600
    sync_vector \base
    irq_vector
    other_vector (\base + 0x100)
    other_vector (\base + 0x180)
    .endr

    .balign 128
on_exception:
    constant x25, EXCEPTIONS
    ldr     x26, [x25]
    cmp     x26, #MAX_EXCEPTIONS
    b.hs    on_unexpected
    add     x27, x26, #1
    str     x27, [x25]
    mov     x27, #40
    madd    x26, x26, x27, x25
    str     x24, [x26, #8]!
    mrs     x24, esr_el1
    mrs     x25, far_el1
    stp     x24, x25, [x26, #8]
    mrs     x25, elr_el1
    mrs     x27, spsr_el1
    stp     x25, x27, [x26, #24]
    lsr     x24, x24, #26
    cmp     x24, #0x15                  // SVC from AArch64
    b.eq    2f
    cmp     x24, #0x11                  // SVC from AArch32
    b.eq    2f
    constant x26, RESUME
    ldr     x27, [x26]
    str     xzr, [x26]
    add     x25, x25, #4
    cmp     x27, #0
    csel    x25, x25, x27, eq
    msr     elr_el1, x25
    eret
2:  mov     x24, #0x3c5                 // on at EL1, behind it
    msr     spsr_el1, x24
    eret

on_unexpected:
    constant x25, RESULTS
    mov     x24, #-1
    str     x24, [x25]
    power_off
