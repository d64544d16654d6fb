//! Any text: parsed as ONNX text; what it prints parses to the same.

use qonnx::onnx::text::{Detail, parse, print};

/// One input.
pub fn check(text: &str) {
    let Ok(model) = parse(text) else { return };
    let printed = print(&model, Detail::Full);
    let again = parse(&printed).unwrap_or_else(|e| panic!("what was printed does not parse: {e}\n{printed}"));
    assert_eq!(print(&again, Detail::Full), printed);
}
