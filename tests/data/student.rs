//! What a model computes while it is trained, beside the model that training would write.
//!
//! `cargo run --example student -- DIR`
//!
//! The shipped digits model is quantized as `qonnx train` starts from it: with weights of 8, 5 and 4 bits, with a scale for
//! each channel and with one for each weight. Every directory `DIR/CASE` gets `model.onnx`, which holds the integers, and
//! for some pictures `input_I.pb` and `student_I.pb`, the output of the forward pass with fake quantization.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use qonnx::calibrate::read;
use qonnx::ir::{Array, Graph, Tensor};
use qonnx::options::Effort;
use qonnx::train::Student;
use qonnx::train::loss::taps;
use qonnx::train::tape::Tape;
use qonnx::{Mode, Options, onnx};

const PICTURES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args().nth(1).ok_or("student DIR")?);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (source, samples) = (data.join("digits.onnx"), data.join("digits/calib"));
    fs::create_dir_all(&root)?;
    let int8 = root.join("int8.onnx");
    let options = Options {
        mode: Mode::Static,
        calib: Some(samples.clone()),
        steps: Effort::Fast.steps(),
        ..Options::default()
    };
    qonnx::compile(&source, &int8, &options, &|_, _, _| {})?;
    let reference = onnx::read(&source)?.model.graph;
    let samples = read::open(&samples, &read::open_inputs(&reference)?, None)?;
    for (name, bits, per_tensor) in
        [("8", 8, false), ("5", 5, false), ("4", 4, false), ("4-per-tensor", 4, true)]
    {
        let mut model = onnx::read(&int8)?.model;
        let mut student = Student::new(&model.graph, &reference)?;
        if per_tensor {
            student.join_channels();
        }
        student.narrow_weights(bits)?;
        let directory = root.join(format!("bits-{name}"));
        fs::create_dir_all(&directory)?;
        for index in 0..PICTURES.min(samples.len()) {
            let inputs = samples.load(index)?;
            write(&directory.join(format!("input_{index}.pb")), &inputs[0])?;
            write(&directory.join(format!("student_{index}.pb")), &forward(&student, &inputs)?)?;
        }
        let values: Vec<Array> = student.parameters.iter().map(|p| p.start.clone()).collect();
        model.graph = student.export(&values)?;
        onnx::write(&directory.join("model.onnx"), &model, onnx::Payloads::Inside)?;
    }
    Ok(())
}

/// The first output, with every weight and activation rounded and real.
fn forward(student: &Student, inputs: &[Array]) -> Result<Array, Box<dyn Error>> {
    let graph: &Graph = &student.graph;
    let (parameters, taps) = (student.parameters.iter().map(|p| p.value).collect::<Vec<_>>(), taps(graph));
    let mut tape = Tape::new(graph, &parameters, &taps)?;
    student.parameters.iter().enumerate().for_each(|(i, p)| tape.set(i, p.start.clone()));
    let record = tape.forward(inputs)?;
    Ok(tape.value(&record, taps[0]).ok_or("the output is missing")?.clone())
}

fn write(path: &Path, array: &Array) -> std::io::Result<()> {
    fs::write(path, Tensor::from_array(array).proto().encode_to_vec())
}
