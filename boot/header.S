// The arm64 boot protocol's Image header ("booting.rst"): QEMU, U-Boot and UEFI stubs load the
// image from it, at any 2 MiB-aligned address, and enter with x0 = the board's device tree.
    .section .head.text, "ax"
    .global _start
_start:
    b       entry
    .long   0
    .quad   0                       // text_offset: a multiple of 2 MiB
    .quad   __image_size            // covers .bss and the stacks
    .quad   (1 << 3) | (1 << 1)     // anywhere in memory, 4 KiB pages, little-endian
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0
