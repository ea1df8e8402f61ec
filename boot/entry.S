// From reset to Rust: check the exception level, build the first EL2 map, turn the MMU on.
//
// Rust runs only under the MMU, at the address it was linked for; the image itself may lie anywhere.
// Until then every address here is PC-relative (adr, adrp) and so physical.
//
// Held throughout: x19 = device tree (physical), x20 = image (physical), x23 = whether there is
// firmware at EL3: not if we came from there.

    .section .head.text, "ax"

.macro load_constant reg, value
    movz    \reg, #((\value) & 0xffff)
    movk    \reg, #(((\value) >> 16) & 0xffff), lsl #16
    movk    \reg, #(((\value) >> 32) & 0xffff), lsl #32
    movk    \reg, #(((\value) >> 48) & 0xffff), lsl #48
.endm

// Maps the pages from \start to \end (page-aligned symbols) with \attributes, into the L3 table x22.
.macro map_section start, end, attributes
    adrp    x0, \start
    adrp    x1, \end
    load_constant x2, \attributes
1:  cmp     x0, x1
    b.hs    2f
    sub     x3, x0, x20
    lsr     x3, x3, #12
    orr     x4, x0, x2
    str     x4, [x22, x3, lsl #3]
    add     x0, x0, #4096
    b       1b
2:
.endm

entry:
    msr     daifset, #0xf
    mov     x19, x0
    adrp    x20, _start
    mov     x23, #1
    mrs     x0, CurrentEL
    cmp     x0, #(3 << 2)
    b.eq    from_el3
    cmp     x0, #(2 << 2)
    b.eq    at_el2

// EL1: nothing below us can be virtualised. Say so on the default UART, and stop.
    adr     x1, not_el2_text
    load_constant x2, {early_uart}
1:  ldrb    w3, [x1], #1
    cbz     w3, 3f
2:  ldr     w4, [x2, #0x18]         // UARTFR
    tbnz    w4, #5, 2b              // TXFF
    str     w3, [x2]
    b       1b
3:  wfi
    b       3b
not_el2_text:
    .asciz  "[sparkler] not at EL2: the board must enter the image at EL2 or EL3 (QEMU: -M virt,virtualization=on)\r\n"
    .balign 4

from_el3:
    mov     x23, xzr
// SCR_EL3: RW, HCE, NS, RES1[5:4], SMC enabled (SMD, bit 7, clear). And what would trap to EL3, where
// nobody is: pointer authentication (APK, API), HFGRTR_EL2 and the like (FGTEn), HCRX_EL2 (HXEn).
    load_constant x0, ((1 << 38) | (1 << 27) | (1 << 17) | (1 << 16) | 0x531)
    msr     scr_el3, x0
    msr     cptr_el3, xzr
    msr     mdcr_el3, xzr
    mrs     x0, id_aa64pfr0_el1
    ubfx    x0, x0, #24, #4
    cbz     x0, 1f
    mov     x0, #0xf                // ICC_SRE_EL3: SRE, DFB, DIB, Enable: EL2 may use the system registers
    msr     S3_6_C12_C12_5, x0
1:  mov     x0, #0x3c9              // SPSR_EL3: EL2h, DAIF masked
    msr     spsr_el3, x0
    adr     x0, at_el2
    msr     elr_el3, x0
    isb
    eret

at_el2:
    load_constant x0, {hcr_boot}
    msr     hcr_el2, x0             // E2H and TGE clear: the single-stage EL2 regime
    load_constant x0, {sctlr_off}
    msr     sctlr_el2, x0
    isb

// Zero .bss (the first tables are in it). Stale cache lines would hide what is written with the
// caches off, so they are discarded first.
    adrp    x0, __bss_start
    adrp    x1, __bss_end
    mov     x2, x0
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4         // DminLine: log2 of words
    mov     x4, #4
    lsl     x3, x4, x3
1:  dc      ivac, x2
    add     x2, x2, x3
    cmp     x2, x1
    b.lo    1b
    dsb     sy
2:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    2b

// The image's map: L0 -> L1 -> L2 -> L3, one 2 MiB window at the link address.
    adrp    x21, __boot_tables      // L0, L1, L2, L3, identity L1: one page each
    add     x22, x21, #(3 * 4096)   // L3
    mov     x5, #3                  // valid table descriptor
    add     x0, x21, #4096
    orr     x0, x0, x5
    str     x0, [x21, #({image_l0_index} * 8)]
    add     x0, x21, #(2 * 4096)
    orr     x0, x0, x5
    str     x0, [x21, #4096]
    orr     x0, x22, x5
    add     x1, x21, #(2 * 4096)
    str     x0, [x1]
    map_section _start,              __text_end,           {attr_text}
    map_section __text_end,          __rodata_end,         {attr_rodata}
    map_section __rodata_end,        __data_end,           {attr_data}
    map_section __exception_stack,   __exception_stack_top, {attr_data}
    map_section __stack,             __stack_top,          {attr_data}

// The identity map of the 1 GiB this code runs in, for the instructions around the switch.
    add     x0, x21, #(4 * 4096)
    orr     x1, x0, x5
    lsr     x2, x20, #39
    str     x1, [x21, x2, lsl #3]
    ubfx    x2, x20, #30, #9
    lsr     x3, x20, #30
    lsl     x3, x3, #30
    load_constant x4, {attr_identity}
    orr     x3, x3, x4
    str     x3, [x0, x2, lsl #3]
    dsb     sy

    load_constant x0, {mair}
    msr     mair_el2, x0
    load_constant x0, {tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf            // PARange
    cmp     x1, #5
    b.ls    1f
    mov     x1, #5                  // 48 bits: 52 need another descriptor format
1:  bfi     x0, x1, #16, #3         // TCR_EL2.PS
    msr     tcr_el2, x0
    msr     ttbr0_el2, x21
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    load_constant x0, {sctlr_on}
    msr     sctlr_el2, x0
    isb
    ldr     x0, =at_link_address
    br      x0
    .ltorg

    .section .text.entry, "ax"
at_link_address:
    ldr     x0, =__boot_tables
    lsr     x1, x20, #39
    str     xzr, [x0, x1, lsl #3]   // the identity map has served
    dsb     ishst
    tlbi    alle2
    dsb     ish
    isb
    ldr     x0, =vectors
    msr     vbar_el2, x0
    ldr     x0, =__stack_top
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    mov     x1, x20
    mov     x2, x23
    bl      {rust_entry}
1:  wfi
    b       1b
    .ltorg
