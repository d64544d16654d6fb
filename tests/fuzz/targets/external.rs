//! See `../checks/external.rs`.

#![no_main]

#[path = "../checks/external.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|input: (Vec<(String, String)>, Vec<i64>, i32)| check::check(input));
