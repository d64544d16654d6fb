//! Any text: parsed as ONNX text; what it prints parses to the same.

use qonnx::onnx::text::{Detail, parse, print};

/// One input.
pub fn check(text: &str) {
    let Ok(model) = parse(text) else { return };
    let printed = print(&model, Detail::Full);
    // A model that the syntax can express comes back.
    if let Ok(again) = parse(&printed) {
        assert_eq!(print(&again, Detail::Full), printed);
    }
}
