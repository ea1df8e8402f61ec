//! The bare-metal test harness: runs the listed functions, prints cargo's lines, ends QEMU.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod gic;
pub mod ram;

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use semihosting::{print, println, process};
use sparkler::arch::boot::BootInfo;
use sparkler::arch::{layout, mmu};
use sparkler::fdt::{Board, HEADER_LEN, blob_size};
use sparkler::memory::Pa;

/// A test: `Err` says what was wrong. A panic fails the whole program.
pub type Test = fn() -> Result<(), &'static str>;

/// The tests' stack. The boot stack belongs to the exits of the guests they run.
#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; 128 * 1024]>);

// SAFETY: only its address is used.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; 128 * 1024]));

/// Calls `main` on the tests' stack.
pub fn on_own_stack(main: extern "C" fn() -> !) -> ! {
    let top = STACK.0.get().addr() + size_of::<Stack>();
    // SAFETY: the stack is used by nobody else, and what is on the present one is not needed again.
    unsafe {
        asm!("mov sp, {}", "mov x29, xzr", "br {}", in(reg) top, in(reg) main, options(noreturn))
    }
}

/// What QEMU ends with if all tests passed; the runner knows it. Not 0, which is what it ends with
/// if the board is turned off or reset.
const PASSED: i32 = 77;

/// What the board's device tree says.
pub fn board(boot: BootInfo) -> Board<'static> {
    let blob = |len| {
        mmu::map_ram(boot.fdt, len as u64).expect("EL2 maps RAM");
        // SAFETY: QEMU's device tree, which nobody writes to.
        unsafe { core::slice::from_raw_parts(layout::linear(boot.fdt) as *const u8, len) }
    };
    let size = blob_size(blob(HEADER_LEN), boot.fdt).expect("a device tree");
    Board::read(blob(size), boot.fdt).expect("a board")
}

/// The board's words, but for QEMU's version.
pub fn argument(boot: BootInfo) -> &'static str {
    board(boot).bootargs.split("qemu=").next().unwrap_or("").trim()
}

/// x0 at entry of programs with [`el2_tests!`].
pub static FDT: AtomicU64 = AtomicU64::new(0);

/// QEMU's version, such as 702 for 7.2.
pub fn qemu_version() -> u32 {
    static VERSION: AtomicU32 = AtomicU32::new(0);
    let known = VERSION.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let fdt = Pa::new(FDT.load(Ordering::Relaxed));
    let words = board(BootInfo { fdt, image: fdt }).bootargs;
    let version = words.split("qemu=").nth(1).expect("the runner says QEMU's version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().expect("a number"));
    let (major, minor) = (numbers.next(), numbers.next());
    let version = major.expect("a version") * 100 + minor.expect("a minor version");
    VERSION.store(version, Ordering::Relaxed);
    version
}

/// Runs `tests` and ends QEMU with the verdict.
pub fn run(tests: &[(&str, Test)]) -> ! {
    println!("\nrunning {} tests", tests.len());
    let mut failed = 0;
    for (name, test) in tests {
        print!("test {name} ... ");
        match test() {
            Ok(()) => println!("ok"),
            Err(why) => {
                failed += 1;
                println!("FAILED: {why}");
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed", tests.len() - failed);
    process::exit(if failed == 0 { PASSED } else { 1 })
}

/// `Err(why)` unless `condition` holds.
pub fn check(condition: bool, why: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(why) }
}

/// A panic is EL2's own, and no test's.
pub static PANICS_ARE_EL2S: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if PANICS_ARE_EL2S.load(Ordering::Relaxed) {
        sparkler::arch::fault::on_panic(info)
    }
    println!("FAILED: {info}");
    println!("test result: FAILED. 0 passed; 1 failed");
    process::exit(101)
}

/// Defines the program's entry and its tests.
#[macro_export]
macro_rules! el2_tests {
    ($($name:ident),* $(,)?) => {
        fn main(boot: sparkler::arch::boot::BootInfo) -> ! {
            el2_support::FDT.store(boot.fdt.raw(), core::sync::atomic::Ordering::Relaxed);
            extern "C" fn tests() -> ! {
                el2_support::run(&[$((stringify!($name), $name)),*])
            }
            el2_support::on_own_stack(tests)
        }
        sparkler::entry!(main);
    };
}
