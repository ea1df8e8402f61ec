// From reset to Rust: check the exception level, build the first EL2 map, turn the MMU on.
//
// Rust runs only under the MMU, at the address it was linked for; the image itself may lie anywhere.
// Until then every address here is PC-relative (adr, adrp) and so physical.
//
// Held throughout: x19 = device tree (physical), x20 = image (physical), x23 = whether there is
// firmware at EL3: not if we came from there; x24 = number of this core, 0 for the one that boots.
// The others come in by `secondary_entry`, once `arch::smp` has had them started.

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
    mov     x24, xzr
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
    mov     x0, #0x33ff             // CPTR_EL2: RES1, TFP clear: memory is copied with vector registers
    msr     cptr_el2, x0

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
    adrp    x21, __boot_tables      // L0, L1, L2, L3, identity L1 and L0: one page each
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

// The identity map of the 1 GiB this code runs in, for the instructions around the switch: a root of
// its own, of use only until the core is at the link address. It stays, for the cores to come.
    add     x0, x21, #(4 * 4096)
    add     x1, x21, #(5 * 4096)
    ldr     x2, [x21, #({image_l0_index} * 8)]
    str     x2, [x1, #({image_l0_index} * 8)]
    orr     x2, x0, x5
    lsr     x3, x20, #39
    str     x2, [x1, x3, lsl #3]
    ubfx    x2, x20, #30, #9
    lsr     x3, x20, #30
    lsl     x3, x3, #30
    load_constant x4, {attr_identity}
    orr     x3, x3, x4
    str     x3, [x0, x2, lsl #3]
    dsb     sy

// Core x24 turns its MMU on, by the tables at x21, and goes on at the link address.
mmu_on:
    load_constant x0, {mair}
    ldr     x26, =__exception_stack_top
    add     x26, x26, x24, lsl #{stacks_shift}
// Descriptors use attributes 0 and 1 only. The bytes of the others hold what a core must find with
// no other register intact: the low half of its exception stack's top (2 to 5), its number (7).
    bfi     x0, x26, #16, #32
    bfi     x0, x24, #56, #8
    msr     mair_el2, x0
    load_constant x0, {tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf            // PARange
    cmp     x1, #5
    b.ls    1f
    mov     x1, #5                  // 48 bits: 52 need another descriptor format
1:  bfi     x0, x1, #16, #3         // TCR_EL2.PS
    msr     tcr_el2, x0
    add     x0, x21, #(5 * 4096)
    msr     ttbr0_el2, x0
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    load_constant x0, {sctlr_on}
    msr     sctlr_el2, x0
    isb
    ldr     x0, =at_link_address
    br      x0

// Where firmware, or a spin table, enters another core: at EL2 with the MMU off, and with nothing
// else promised. It finds its number by its MPIDR_EL1 in `secondary_affinities`, which `arch::smp`
// has written back to memory. Cores share a spin table's word: who is not in there waits.
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    3f
    load_constant x0, {hcr_boot}
    msr     hcr_el2, x0
    load_constant x0, {sctlr_off}
    msr     sctlr_el2, x0
    isb
    mov     x0, #0x33ff             // as the first core
    msr     cptr_el2, x0
    mrs     x0, mpidr_el1
    load_constant x1, {affinity}
    and     x0, x0, x1
    adrp    x1, {secondary_affinities}
    add     x1, x1, :lo12:{secondary_affinities}
1:  mov     x24, #1
2:  ldr     x2, [x1, x24, lsl #3]
    cmp     x0, x2
    b.eq    4f
    add     x24, x24, #1
    cmp     x24, #{max_cores}
    b.lo    2b
    wfe
    b       1b
3:  wfi                             // another level: not what was asked for
    b       3b
4:  adrp    x20, _start
    adrp    x21, __boot_tables
    b       mmu_on
    .ltorg

    .section .text.entry, "ax"
at_link_address:
    msr     ttbr0_el2, x21          // the identity map has served
    isb
    tlbi    alle2
    dsb     nsh
    isb
    ldr     x0, =vectors
    msr     vbar_el2, x0
    sub     x0, x26, #{stack_below}
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    cbnz    x24, 1f
    mov     x0, x19
    mov     x1, x20
    mov     x2, x23
    bl      {rust_entry}
1:  msr     cnthp_ctl_el2, xzr
    mov     x0, x24
    bl      {secondary_rust_entry}
2:  wfi
    b       2b
    .ltorg
