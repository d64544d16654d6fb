//! A build script that compiles a model with the library. In a project of your own it is `build.rs`, with
//! `qonnx` among the build-dependencies; here it is an example of this crate, and a test runs it.

use std::error::Error;
use std::path::PathBuf;

use qonnx::Options;
use qonnx::options::Effort;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let (model, calib) = (root.join("tests/data/digits.onnx"), root.join("tests/data/digits/calib"));
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("digits.int8.onnx");
    let options =
        Options { calib: Some(calib), steps: Effort::Fast.steps(), if_changed: true, ..Options::default() };
    let report = qonnx::compile(&model, &out, &options, &|_, _, _| {})?;
    for file in &report.files {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    for warning in &report.warnings {
        println!("cargo:warning={warning}");
    }
    Ok(())
}
