//! `qonnx ops`: the table of operators.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::report::operators::{markdown, operators, text};

/// List the operators that qonnx knows. Float: the interpreter runs it. Integer: the default target has an integer
/// kernel. Gradient: training can go through it. Rule: how it relates the quantization of its inputs and outputs.
#[derive(Args)]
pub struct Ops {
    /// As a table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// As JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
}

impl Ops {
    /// Prints the table.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let table = operators();
        super::print(&match (self.markdown, self.json) {
            (true, _) => markdown(&table),
            (_, true) => serde_json::to_string_pretty(&table).context("writing JSON")? + "\n",
            _ => text(&table),
        });
        Ok(ExitCode::SUCCESS)
    }
}
