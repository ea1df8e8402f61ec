//! The fuzzer's entry to [`sparkler_fuzz::console`].
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sparkler_fuzz::console(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("a fuzz target: build it with cargo-fuzz, or use the replay");
}
