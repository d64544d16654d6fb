//! Any bytes: read as a model, verified, run through the passes, written, and read again.

use qonnx::{budget, onnx, passes};

/// One input.
pub fn check(bytes: &[u8]) {
    budget::limit_memory(64 << 20);
    let none = |_: &_| Err("no external data".into());
    let Ok((mut model, lost)) = onnx::decode(bytes.to_vec().into(), &none) else { return };
    if !qonnx::ir::verify(&model).is_empty() {
        return;
    }
    let first = onnx::encode(&model).expect("a model that was read is written");
    let (again, _) = onnx::decode(first.clone().into(), &none).expect("what was written is read");
    assert!(
        lost > 0 || onnx::encode(&again).expect("written again") == first,
        "writing and reading changes nothing"
    );
    if passes::upgrade(&mut model, 17).is_err() || passes::run(&mut model, Some(200)).is_err() {
        return;
    }
    passes::finish(&mut model, "the passes").expect("passes keep a valid model valid");
    let text = onnx::encode(&model).expect("a model that was rewritten is written");
    onnx::decode(text.into(), &none).expect("and is read again");
}
