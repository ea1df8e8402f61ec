// Payloads of el2_stage2.rs. Each power-off hands over to the test, which changes stage 2.

    .equ    PAGE, 0x40300000            // guest::SPARE_PAGE

// Loads from the page, its neighbours below and above, and again, whatever becomes of it.
payload load_page
    constant x10, PAGE
1:  mov     x11, #-1
    ldr     x11, [x10]
    result  x11
    ldr     x11, [x10, #-8]
    result  x11
    ldr     x11, [x10, #4096]
    result  x11
    power_off
    b       1b

// Stores to the page, again and again.
payload store_page
    constant x10, PAGE
    mov     x11, #1
1:  str     x11, [x10]
    add     x11, x11, #1
    power_off
    b       1b

// Calls the page, again and again.
payload call_page
    constant x10, PAGE
    constant x11, 0xd65f03c0            // ret
    str     w11, [x10]
    dsb     ish
    ic      iallu
    dsb     ish
    isb
1:  resume_at 2f
    mov     x12, #0
    adr     x30, 3f
    ret     x10
2:  mov     x12, #1                     // it took an exception
3:  result  x12
    constant x24, RESUME
    str     xzr, [x24]
    power_off
    b       1b

    .global guest_image_end
guest_image_end:
