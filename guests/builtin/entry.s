// The builtin guest's first instructions and its exception vectors.
//
// Entered as the arm64 boot protocol says: x0 = FDT, MMU off, any 2 MiB-aligned address, at EL1.

// Turns the MMU and the caches on; x1 is the address of the level 1 table. Changes x2.
.macro mmu_on
    mov     x2, #0xff04
    msr     mair_el1, x2
    msr     ttbr0_el1, x1
    mov     x2, #0x3519             // T0SZ 25, IRGN0/ORGN0 write-back, SH0 inner, TG0 4 KiB
    movk    x2, #0x80, lsl #16      // EPD1
    movk    x2, #2, lsl #32         // IPS 40 bits
    msr     tcr_el1, x2
    tlbi    vmalle1
    dsb     sy
    isb
    mov     x2, #0x1805             // I, SA0 off, C, M and the RES1 bit 11
    movk    x2, #0x30d0, lsl #16    // RES1
    msr     sctlr_el1, x2
    isb
    ic      iallu
    dsb     sy
    isb
.endm

.section .text.header, "ax"
.global image_header
image_header:
    b       entry
    .long   0
    .quad   0                       // text_offset
    .quad   image_end - image_header // image_size: covers .bss, table and stack
    .quad   0b1010                  // little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

entry:
    mrs     x1, CurrentEL
    cmp     x1, #(1 << 2)
    b.eq    1f
0:  wfe                             // not at EL1: there is no way to say so yet
    b       0b
1:
    adrp    x1, translation_table

    // Level 1, 1 GiB a block, virtual = physical. Block 0 holds the devices (nGnRE, attribute 0),
    // 1-3 the memory (write-back, inner shareable, attribute 1).
    mov     x2, x1
    add     x3, x1, #4096
2:  stp     xzr, xzr, [x2], #16
    cmp     x2, x3
    b.ne    2b
    mov     x2, #0x401              // block, AF, attribute 0
    movk    x2, #0x0060, lsl #48    // PXN, UXN
    str     x2, [x1]
    mov     x2, #0x705              // block, AF, inner shareable, attribute 1
    mov     x3, #0x40000000
    add     x2, x2, x3
    str     x2, [x1, #8]
    add     x2, x2, x3
    str     x2, [x1, #16]
    add     x2, x2, x3
    str     x2, [x1, #24]
    dsb     sy
    dc      ivac, x1                // written with the caches off: drop what a cache may hold
    dsb     sy

    mmu_on

    // Everything was linked at 0: add where we are to each pointer that the relative relocations
    // (RELR) list: an address, or a bitmap of the 63 words after the last word done.
    adrp    x1, image_header
    adrp    x2, relr_start
    add     x2, x2, :lo12:relr_start
    adrp    x3, relr_end
    add     x3, x3, :lo12:relr_end
3:  cmp     x2, x3
    b.hs    4f
    ldr     x4, [x2], #8
    tbnz    x4, #0, 6f
    add     x5, x1, x4
    ldr     x6, [x5]
    add     x6, x6, x1
    str     x6, [x5], #8
    b       3b
6:  mov     x7, x5
    add     x5, x5, #(63 * 8)
7:  lsr     x4, x4, #1
    cbz     x4, 3b
    tbz     x4, #0, 8f
    ldr     x6, [x7]
    add     x6, x6, x1
    str     x6, [x7]
8:  add     x7, x7, #8
    b       7b
4:
    adrp    x2, bss_start
    adrp    x3, bss_end
5:  stp     xzr, xzr, [x2], #16
    cmp     x2, x3
    b.lo    5b

    adrp    x2, vectors
    add     x2, x2, :lo12:vectors
    msr     vbar_el1, x2
    isb
    adrp    x2, stack_top
    add     x2, x2, :lo12:stack_top
    mov     sp, x2
    mov     x29, xzr
    mov     x30, xzr
    bl      guest_main
    b       0b

// A core that CPU_ON starts: x0 is the end of its stack, where its function's address is. Left out of a
// guest that starts none.
.section .text.secondary, "ax"
.global secondary_entry
secondary_entry:
    adrp    x1, translation_table
    mmu_on
    adrp    x2, vectors
    add     x2, x2, :lo12:vectors
    msr     vbar_el1, x2
    isb
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    ldr     x2, [x0]
    blr     x2
    b       .

// An exception from EL1 on its own stack: the whole frame, then Rust.
.macro save_frame
    sub     sp, sp, #272
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x30, x1, [sp, #240]
    str     x2, [sp, #256]
.endm

// An interrupt: only what the procedure call standard lets the handler change.
.macro save_interrupted
    sub     sp, sp, #192
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x29, [sp, #144]
    mrs     x1, elr_el1
    stp     x30, x1, [sp, #160]
    mrs     x2, spsr_el1
    str     x2, [sp, #176]
.endm

.macro unexpected index
    .balign 0x80
    save_frame
    mov     x0, sp
    mov     x1, #\index
    b       exception_unexpected
.endm

// The vectors; \interrupt takes an interrupt. The GIC's version is known later than the first exception, and
// nobody should ask for it at every interrupt: there is a table for each.
.macro vector_table name, interrupt
.balign 0x800
\name:
    unexpected 0
    unexpected 1
    unexpected 2
    unexpected 3

    .balign 0x80
    b       synchronous
    .balign 0x80
    b       \interrupt
    unexpected 6
    unexpected 7

    unexpected 8
    unexpected 9
    unexpected 10
    unexpected 11
    unexpected 12
    unexpected 13
    unexpected 14
    unexpected 15
    .balign 0x80
.endm

.section .text.vectors, "ax"
vector_table vectors, interrupt
.global vectors_v2
vector_table vectors_v2, interrupt_v2

synchronous:
    save_frame
    mov     x0, sp
    bl      exception_synchronous
    ldp     x30, x1, [sp, #240]
    ldr     x2, [sp, #256]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    add     sp, sp, #272
    eret

.macro interrupt_entry name, handler
\name:
    save_interrupted
    bl      \handler
    ldp     x30, x1, [sp, #160]
    ldr     x2, [sp, #176]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x29, [sp, #144]
    add     sp, sp, #192
    eret
.endm

interrupt_entry interrupt, exception_interrupt
interrupt_entry interrupt_v2, exception_interrupt_v2
