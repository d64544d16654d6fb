//! `qonnx inspect`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::onnx::{self, External, text};
use crate::passes;
use crate::report::dot::dot;
use crate::report::inspect::Inspection;

/// Tell what is in a model: interface, operators, sizes, work, and how far it is quantized.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx inspect model.onnx --text > model.golden")]
pub struct Inspect {
    /// The model.
    model: PathBuf,
    /// The model in ONNX text syntax, large tensors as a digest: stable, made for golden files.
    #[arg(long, group = "form")]
    text: bool,
    /// The graph in Graphviz's language.
    #[arg(long, group = "form")]
    dot: bool,
    /// The facts as JSON.
    #[arg(long, group = "form")]
    json: bool,
}

impl Inspect {
    /// Prints what was asked for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut source = onnx::read(&self.model)?;
        super::print(&match () {
            () if self.text => text::print(&onnx::emit(&source.model, External::Keep)?, text::Detail::Digest),
            () if self.dot => {
                passes::infer(&mut source.model.graph);
                dot(&source.model.graph)
            }
            () if self.json => {
                serde_json::to_string_pretty(&Inspection::of(&source)).context("writing JSON")? + "\n"
            }
            () => Inspection::of(&source).text(),
        });
        Ok(ExitCode::SUCCESS)
    }
}
