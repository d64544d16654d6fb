//! Bad input gives one clear line and exit code 1, and an output that is there survives.

use std::path::Path;

use ndarray::Array4;
use ndarray_npy::write_npy;

use super::{args, digits, qonnx, samples, tempdir};

const PRECIOUS: &[u8] = b"precious";

/// Compiles `model` with `calib` over an existing file; it must fail with one line that holds each of `parts`.
#[track_caller]
fn fails(model: &Path, calib: &Path, parts: &[&str]) {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    std::fs::write(&out, PRECIOUS).unwrap();
    qonnx(args!["compile", model, out, "--calib", calib]).code(1).says(parts).one_error();
    assert_eq!(std::fs::read(&out).unwrap(), PRECIOUS);
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "no temporary file is left");
}

#[test]
fn not_a_model() {
    let dir = tempdir();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    fails(&file("text.onnx", b"hello, world"), &samples(), &["text.onnx", "not "]);
    fails(&file("empty.onnx", b""), &samples(), &["empty.onnx", "is empty"]);
    fails(&file("zip.onnx", b"PK\x03\x04rest"), &samples(), &["zip archive"]);
    fails(&file("json.onnx", b"{\"a\": 1}"), &samples(), &["JSON"]);
    fails(dir.path(), &samples(), &["not a regular file"]);
    fails(&dir.path().join("missing.onnx"), &samples(), &["missing.onnx", "cannot be read"]);
}

#[test]
fn truncated_models() {
    let dir = tempdir();
    let bytes = std::fs::read(digits()).unwrap();
    let path = dir.path().join("cut.onnx");
    for keep in [1, 10, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        fails(&path, &samples(), &["cut.onnx"]);
    }
}

#[test]
fn samples_that_do_not_fit() {
    let dir = tempdir();
    fails(&digits(), &dir.path().join("nowhere"), &["nowhere", "cannot be read"]);
    fails(&digits(), dir.path(), &["no samples found", "hint"]);
    let file = dir.path().join("a.npy");
    let with = |array: &Array4<f32>| write_npy(&file, array).unwrap();
    with(&Array4::zeros((1, 1, 28, 27)));
    fails(&digits(), dir.path(), &["a.npy", "28,27"]);
    with(&Array4::from_elem((1, 1, 28, 28), f32::NAN));
    fails(&digits(), dir.path(), &["a.npy", "NaN"]);
    write_npy(&file, &Array4::<i64>::zeros((1, 1, 28, 28))).unwrap();
    fails(&digits(), dir.path(), &["a.npy", "int64"]);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    fails(&digits(), dir.path(), &["a.npy"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = tempdir();
    let to = |path: &Path| qonnx(args!["compile", digits(), path, "-q"]);
    to(&dir.path().join("no/such/directory/out.onnx")).code(1).says(&["cannot be written"]).one_error();
    to(dir.path()).code(1).says(&["it is a directory"]).one_error();
}

#[test]
fn wrong_usage_is_told_apart() {
    qonnx(args!["compile"]).code(2).says(&["Usage"]);
    qonnx(args!["compile", "a", "b", "--mode", "sideways"]).code(2).says(&["sideways"]);
    qonnx(args!["compile", "a", "b", "--threads", "0"]).code(2);
    qonnx(args!["--version"]).code(0).prints(&[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn limits_are_kept() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    std::fs::write(&out, PRECIOUS).unwrap();
    for (limit, parts) in [
        (["--memory-limit", "64k"], ["there is room for", "--memory-limit"]),
        (["--time-limit", "0.01"], ["time limit", "0.01 s"]),
    ] {
        qonnx(args!["compile", digits(), out, "--calib", samples(), "--threads", "1", limit[0], limit[1]])
            .code(1)
            .says(&parts);
        assert_eq!(std::fs::read(&out).unwrap(), PRECIOUS);
    }
    qonnx(args!["compile", digits(), out, "--memory-limit", "much"]).code(2).says(&["no amount of memory"]);
}
