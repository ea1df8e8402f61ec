//! The bare-metal test harness: runs the listed functions, prints cargo's lines, ends QEMU.
#![allow(dead_code, missing_docs)]

use semihosting::{print, println, process};

/// A test: `Err` says what was wrong. A panic fails the whole program.
pub type Test = fn() -> Result<(), &'static str>;

/// Runs `tests` and ends QEMU with 0 if all passed.
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
    process::exit(if failed == 0 { 0 } else { 1 })
}

/// `Err(why)` unless `condition` holds.
pub fn check(condition: bool, why: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(why) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAILED: {info}");
    println!("test result: FAILED. 0 passed; 1 failed");
    process::exit(101)
}

/// Defines the program's entry and its tests.
#[macro_export]
macro_rules! el2_tests {
    ($($name:ident),* $(,)?) => {
        fn main(_: sparkler::arch::boot::BootInfo) -> ! {
            el2_support::run(&[$((stringify!($name), $name)),*])
        }
        sparkler::entry!(main);
    };
}
