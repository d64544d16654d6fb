//! `qonnx run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::console;
use crate::calibrate::read::{InputSpec, one};
use crate::calibrate::write;
use crate::error::{Fault, one_line};
use crate::interpret::{self, Program};
use crate::ir::{Array, Graph, ValueId};
use crate::{onnx, passes};

/// Run a model on one set of inputs in the interpreter.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx run model.onnx --input-dir test_data_set_0 --out outputs")]
pub struct Run {
    /// The model.
    model: PathBuf,
    /// Directory with a file for each input: NAME.npy, input_I.npy, or the same as .pb.
    #[arg(long, value_name = "DIR")]
    input_dir: PathBuf,
    /// Directory for the outputs: NAME.npy, or output_I.pb for element types that NumPy lacks. Made if missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How Q/DQ graphs are computed.
    #[arg(long, value_enum, default_value_t)]
    numerics: Numerics,
    /// Threads; the result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Say nothing unless it fails.
    #[arg(short, long)]
    quiet: bool,
}

/// How a graph with QuantizeLinear and DequantizeLinear is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Numerics {
    /// By the ONNX definition: dequantize, compute in float, quantize.
    #[default]
    Spec,
    /// What ONNX Runtime's fused integer kernels compute.
    Ort,
}

impl Numerics {
    /// A program that computes so.
    pub fn program(self, graph: &Graph) -> anyhow::Result<Program> {
        Ok(Program::with_numerics(graph, self.into())?)
    }
}

impl From<Numerics> for interpret::Numerics {
    fn from(numerics: Numerics) -> Self {
        match numerics {
            Numerics::Spec => Self::Spec,
            Numerics::Ort => Self::Ort,
        }
    }
}

impl Run {
    /// Runs the model and writes its outputs.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let mut model = onnx::read_inlined(&self.model)?.model;
        passes::infer(&mut model.graph);
        let graph = &model.graph;
        let program = self.numerics.program(graph)?;
        let (inputs, warnings) = inputs(graph, &self.input_dir)?;
        if !self.quiet {
            warnings.iter().for_each(|w| console::warning(w));
        }
        let outputs = program.run(&inputs)?;
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let stems = write::file_stems(graph.outputs.iter().map(|&v| graph.name(v)));
        for (index, ((array, &value), stem)) in outputs.iter().zip(&graph.outputs).zip(stems).enumerate() {
            let name = graph.name(value);
            let (file, bytes) = match write::npy(array) {
                Some(bytes) => (format!("{stem}.npy"), bytes),
                None => (format!("output_{index}.pb"), write::protobuf(name, array)),
            };
            let path = self.out.join(file);
            onnx::write_atomically(&path, &bytes)?;
            if !self.quiet {
                let renamed = if stem == name { "" } else { " (the name is no file name)" };
                let ty = array.tensor_type();
                let name = one_line(name);
                console::note(&format!("output    `{name}` {ty} -> {}{renamed}", path.display()));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A value for each input that the program asks for, and what to tell the user.
fn inputs(graph: &Graph, dir: &Path) -> anyhow::Result<(Vec<Array>, Vec<String>)> {
    let ids: Vec<ValueId> = graph.inputs.iter().copied().filter(|&v| graph.constant(v).is_none()).collect();
    let specs: Vec<InputSpec> = ids
        .iter()
        .map(|&v| InputSpec::of(graph, v))
        .collect::<Result<_, _>>()
        .map_err(|f| f.at(dir.display()))?;
    let given = one::read(dir, &specs)?;
    // Programs take either the inputs without a default or all of them.
    let with_defaults =
        ids.iter().zip(&given.arrays).any(|(id, a)| a.is_some() && graph.value(*id).default.is_some());
    let mut arrays = Vec::new();
    for (number, (id, array)) in ids.iter().zip(&given.arrays).enumerate() {
        let Some(spec) = specs.get(number) else { break };
        match (array, &graph.value(*id).default) {
            (Some(array), _) => arrays.push(array.clone()),
            (None, Some(default)) if with_defaults => {
                arrays.push(default.array().map_err(|f| f.at(format!("default of input `{}`", spec.name)))?);
            }
            (None, Some(_)) => {}
            (None, None) => {
                let fault = Fault::new(format!("no file for input `{}` {}", spec.name, spec.ty));
                let hint = format!("call it `{}.npy` or `input_{number}.npy`", write::file_stem(&spec.name));
                return Err(fault.hint(hint).at(dir.display()).into());
            }
        }
    }
    Ok((arrays, given.warnings))
}
