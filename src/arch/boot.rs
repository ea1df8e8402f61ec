//! From the Image header to Rust.
//!
//! | file | what it does |
//! |---|---|
//! | `boot/header.S` | the arm64 Image header |
//! | `boot/entry.S` | EL3 or EL2 at reset to Rust under the MMU; at EL1 a message, and the end. Further cores, for [`super::smp`] |
//! | `boot/vectors.S` | VBAR_EL2: a guest's exits to [`super::exception`], EL2's own faults to [`super::fault`]; `enter_guest` |
//!
//! The assembly takes every constant and offset from here. It ends in `rust_entry`, which calls the
//! program's entry: see [`crate::entry`].

use core::arch::global_asm;

use super::layout::{self, descriptor};
use super::{exception, fault, smp};
use crate::cpu::GuestRegisters;
use crate::memory::Pa;
use crate::memory::shared::copy_bytes;

// The vectors store pairs: x0 first, pc right after x30.
const _: () = assert!(GuestRegisters::X_OFFSET == 0 && GuestRegisters::PC_OFFSET == 248);

/// HCR_EL2 while EL2 gets ready: RW (EL1 is AArch64); VM, E2H and TGE clear.
const HCR_BOOT: u64 = 1 << 31;

global_asm!(include_str!("../../boot/header.S"));
global_asm!(
    include_str!("../../boot/entry.S"),
    early_uart = const layout::DEFAULT_UART,
    hcr_boot = const HCR_BOOT,
    sctlr_off = const layout::SCTLR_OFF,
    sctlr_on = const layout::SCTLR_ON,
    mair = const layout::MAIR,
    tcr = const layout::TCR,
    image_l0_index = const (layout::IMAGE_BASE >> 39) & 511,
    attr_text = const descriptor::TEXT | descriptor::TABLE_OR_PAGE,
    attr_rodata = const descriptor::RODATA | descriptor::TABLE_OR_PAGE,
    attr_data = const descriptor::DATA | descriptor::TABLE_OR_PAGE,
    attr_identity = const descriptor::TEXT | descriptor::BLOCK,
    rust_entry = sym rust_entry,
    secondary_rust_entry = sym smp::rust_entry,
    secondary_affinities = sym smp::AFFINITIES,
    affinity = const smp::AFFINITY,
    max_cores = const smp::MAX_CORES,
    stacks_shift = const smp::STACKS_SHIFT,
    stack_below = const smp::STACK_BELOW,
);
global_asm!(
    include_str!("../../boot/vectors.S"),
    pstate = const GuestRegisters::PSTATE_OFFSET,
    image_base = const layout::IMAGE_BASE,
    stack_below = const smp::STACK_BELOW,
    dump_size = const size_of::<fault::Dump>(),
    dump_sp = const core::mem::offset_of!(fault::Dump, sp),
    on_sync = sym exception::on_sync,
    on_irq = sym exception::on_irq,
    on_serror = sym exception::on_serror,
    on_fatal = sym fault::on_fatal,
);

// The compiler's own goes by single words, and by bytes where the two are not aligned alike. Not a
// function of Rust's: what only the compiler calls would be dropped.
global_asm!(".global memcpy", "memcpy: b {copy}", copy = sym copy_bytes);

unsafe extern "C" {
    static __end: u8;
}

/// What the boot code hands on.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// x0 at entry: where the board's device tree should be.
    pub fdt: Pa,
    /// Where the image lies.
    pub image: Pa,
}

impl BootInfo {
    /// Bytes of memory the image takes from [`Self::image`] on, .bss and stacks included.
    pub fn image_size() -> u64 {
        (&raw const __end).addr() as u64 - layout::IMAGE_BASE as u64
    }
}

/// The first Rust that runs: at the link address, under the MMU, on `__stack`; x0 and x1 as `entry.S`
/// has them. Interrupts are masked, and stay so at EL2 for ever.
extern "C" fn rust_entry(fdt: u64, image: u64, firmware: u64) -> ! {
    unsafe extern "Rust" {
        fn sparkler_main(boot: BootInfo) -> !;
    }
    if firmware == 0 {
        super::firmware::set_absent();
    }
    let boot = BootInfo { fdt: Pa::new(fdt), image: Pa::new(image) };
    // SAFETY: the image is mapped at `boot.image`, on this one core, and nothing has been mapped yet.
    unsafe { super::mmu::init(boot.image) };
    // SAFETY: `sparkler_main` is defined with this signature by the `entry!` macro, once per program.
    unsafe { sparkler_main(boot) }
}

/// Names the function that runs after the boot code: `fn(BootInfo) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the symbol is the one the boot code calls, and `entry!` is used once in a program.
        #[unsafe(no_mangle)]
        fn sparkler_main(boot: $crate::arch::boot::BootInfo) -> ! {
            let main: fn($crate::arch::boot::BootInfo) -> ! = $main;
            main(boot)
        }
    };
}
