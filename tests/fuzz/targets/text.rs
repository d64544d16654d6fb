//! See `../checks/text.rs`.

#![no_main]

#[path = "../checks/text.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|text: &str| check::check(text));
