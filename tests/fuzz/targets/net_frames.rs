//! The fuzzer's entry to [`sparkler_fuzz::net_frames`].
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| sparkler_fuzz::net_frames(data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("a fuzz target: build it with cargo-fuzz, or use the replay");
}
