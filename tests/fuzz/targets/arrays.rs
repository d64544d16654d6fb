//! See `../checks/arrays.rs`.

#![no_main]

#[path = "../checks/arrays.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| check::check(input));
