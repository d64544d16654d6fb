//! Runs models in the interpreter, by the ONNX definition and as ONNX Runtime's integer kernels compute.
//!
//! `cargo run --example evaluate -- DIR [ROUNDS]`
//!
//! Every directory `DIR/CASE` holds `model.onnx` and a file `input_I.pb` for each input; next to them `spec_I.pb` and
//! `ort_I.pb` are written for each output. A line for each case says how many steps computed on integers and, with
//! ROUNDS, how many milliseconds a run took at best.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use prost::Message;
use qonnx::interpret::{Numerics, Program};
use qonnx::ir::{Array, Tensor};
use qonnx::proto::TensorProto;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().ok_or("evaluate DIR [ROUNDS]")?;
    let rounds = arguments.next().map_or(Ok(0), |n| n.parse())?;
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root)?.map(|e| Ok(e?.path())).collect::<Result<_, std::io::Error>>()?;
    cases.retain(|case| case.join("model.onnx").is_file());
    cases.sort();
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match evaluate(&case, rounds) {
            Ok(line) => println!("{name} {line}"),
            Err(error) => println!("{name} failed: {error}"),
        }
    }
    Ok(())
}

fn evaluate(case: &Path, rounds: usize) -> Result<String, Box<dyn Error>> {
    let mut graph = qonnx::onnx::read(&case.join("model.onnx"))?.model.graph;
    qonnx::passes::infer(&mut graph);
    let load = |i: usize| -> Result<Array, Box<dyn Error>> {
        let proto = TensorProto::decode(fs::read(case.join(format!("input_{i}.pb")))?.as_slice())?;
        Ok(Tensor::from_proto(proto, None)?.array()?)
    };
    let inputs = (0..graph.inputs.len()).map(load).collect::<Result<Vec<_>, _>>()?;
    let mut line = String::new();
    for (name, numerics) in [("spec", Numerics::Spec), ("ort", Numerics::Ort)] {
        let program = Program::with_numerics(&graph, numerics)?;
        for (i, output) in program.run(&inputs)?.iter().enumerate() {
            let bytes = Tensor::from_array(output).proto().encode_to_vec();
            fs::write(case.join(format!("{name}_{i}.pb")), bytes)?;
        }
        line += &format!("{name} {} of {} steps on integers ", program.integer_steps(), program.steps());
        let mut best = f64::INFINITY;
        for _ in 0..rounds {
            let start = Instant::now();
            program.run(&inputs)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        if rounds > 0 {
            line += &format!("in {:.3} ms ", best * 1e3);
        }
    }
    Ok(line)
}
