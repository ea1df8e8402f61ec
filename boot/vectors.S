// The EL2 vector table and the world switch.
//
// While a guest runs, TPIDR_EL2 holds the address of its `GuestRegisters` - x0 to x30, pc, pstate,
// eight bytes each - and SP_EL2 the top of this core's stack. A guest's exit saves them and calls
// Rust, which returns the address of those to resume. All other EL1 state stays in the registers.

.macro guest_exit handler
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mrs     x0, tpidr_el2
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x1, elr_el2
    mrs     x2, spsr_el2
    stp     x30, x1, [x0, #240]     // x30, pc
    str     x2, [x0, #{pstate}]
    bl      \handler
    b       resume_guest
.endm

// The top of this core's exception stack: `mmu_on` in entry.S has put it where it needs no other
// register to be found.
.macro exception_stack_top reg
    mrs     \reg, mair_el2
    ubfx    \reg, \reg, #16, #32
    movk    \reg, #({image_base} >> 32), lsl #32
.endm

// An exception of EL2's own, or one a guest must not be able to cause: saves all there is on the
// core's exception stack (its stack may be what failed) and reports. Only a probe comes back.
.macro fatal kind
    .balign 128
    msr     tpidr_el2, x0           // the vCPU pointer is lost; so is this core
    exception_stack_top x0
    sub     x0, x0, #{dump_size}
    stp     x1, x2, [x0, #8]
    mov     x1, sp
    str     x1, [x0, #{dump_sp}]
    mov     x1, #\kind
    b       fatal_common
.endm

    .section .text.vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    fatal   0                       // current EL, SP_EL0: never used
    fatal   1
    fatal   2
    fatal   3
    fatal   4                       // current EL, SP_EL2: synchronous
    fatal   5
    fatal   6
    fatal   7
    guest_exit {on_sync}            // lower EL, AArch64
    guest_exit {on_irq}
    guest_exit {on_irq}             // FIQ: routed here, and as good a reason to look
    guest_exit {on_serror}
    guest_exit {on_sync}            // lower EL, AArch32: EL0 may be
    guest_exit {on_irq}
    guest_exit {on_irq}
    guest_exit {on_serror}
    .ltorg

fatal_common:
    stp     x3, x4, [x0, #24]
    stp     x5, x6, [x0, #40]
    stp     x7, x8, [x0, #56]
    stp     x9, x10, [x0, #72]
    stp     x11, x12, [x0, #88]
    stp     x13, x14, [x0, #104]
    stp     x15, x16, [x0, #120]
    stp     x17, x18, [x0, #136]
    stp     x19, x20, [x0, #152]
    stp     x21, x22, [x0, #168]
    stp     x23, x24, [x0, #184]
    stp     x25, x26, [x0, #200]
    stp     x27, x28, [x0, #216]
    stp     x29, x30, [x0, #232]
    mrs     x2, tpidr_el2
    str     x2, [x0]
    mov     sp, x0
    bl      {on_fatal}
// It was an expected fault (see probe.S): x0 is the dump, ELR_EL2 the fix-up.
    ldr     x1, [x0, #{dump_sp}]
    mov     sp, x1
    ldp     x3, x4, [x0, #24]
    ldp     x5, x6, [x0, #40]
    ldp     x7, x8, [x0, #56]
    ldp     x9, x10, [x0, #72]
    ldp     x11, x12, [x0, #88]
    ldp     x13, x14, [x0, #104]
    ldp     x15, x16, [x0, #120]
    ldp     x17, x18, [x0, #136]
    ldp     x19, x20, [x0, #152]
    ldp     x21, x22, [x0, #168]
    ldp     x23, x24, [x0, #184]
    ldp     x25, x26, [x0, #200]
    ldp     x27, x28, [x0, #216]
    ldp     x29, x30, [x0, #232]
    ldp     x1, x2, [x0, #8]
    ldr     x0, [x0]
    eret

// Enters the guest whose registers x0 points to, leaving the present stack behind.
    .global enter_guest
enter_guest:
    exception_stack_top x1
    sub     x1, x1, #{stack_below}
    mov     sp, x1
resume_guest:
    ldp     x30, x1, [x0, #240]
    ldr     x2, [x0, #{pstate}]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldp     x0, x1, [x0]
    eret
// Speculation past the ERET must find nothing.
    dsb     nsh
    isb
    .ltorg
