//! Compiles the digit classifier that the repository ships and compares it with the original on 500 pictures.
//!
//! `cargo run --release --example digits`

use std::error::Error;
use std::fs::File;
use std::path::Path;

use ndarray::{Array1, Array3};
use ndarray_npy::NpzReader;
use qonnx::calibrate::threshold::Calibrator;
use qonnx::interpret::Program;
use qonnx::ir::Array;
use qonnx::{Mode, Options, compile};

/// Pictures a run.
const BATCH: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = root.join("tests/data");
    let (before, after) = (data.join("digits.onnx"), root.join("target/digits.int8.onnx"));
    let options = Options {
        mode: Mode::Static,
        calib: Some(data.join("digits/calib")),
        calibrator: Calibrator::Auto,
        ..Options::default()
    };
    let report = compile(&before, &after, &options, &|_, _, _| {})?;
    print!("{}", report.summary());

    let mut archive = NpzReader::new(File::open(data.join("digits/eval.npz"))?)?;
    let images: Array3<u8> = archive.by_name("images")?;
    let labels: Array1<u8> = archive.by_name("labels")?;
    println!(
        "fp32      {:.1} % of {} pictures right",
        100.0 * accuracy(&before, &images, &labels)?,
        labels.len()
    );
    println!("int8      {:.1} %", 100.0 * accuracy(&after, &images, &labels)?);
    Ok(())
}

/// Share of the pictures that a model classifies right.
fn accuracy(model: &Path, images: &Array3<u8>, labels: &Array1<u8>) -> Result<f64, Box<dyn Error>> {
    let program = Program::new(&qonnx::onnx::read(model)?.model.graph)?;
    let mut right = 0;
    for (pictures, labels) in images
        .as_slice()
        .unwrap_or_default()
        .chunks(BATCH * 28 * 28)
        .zip(labels.as_slice().unwrap_or_default().chunks(BATCH))
    {
        let pixels: Vec<f32> = pictures.iter().map(|&p| f32::from(p) / 255.0).collect();
        let outputs = program.run(&[Array::new(&[labels.len(), 1, 28, 28], pixels)?])?;
        let logits = outputs[0].slice::<f32>()?;
        for (row, &label) in logits.chunks(10).zip(labels) {
            let best = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0);
            right += usize::from(best == usize::from(label));
        }
    }
    Ok(right as f64 / labels.len() as f64)
}
