//! `qonnx explain`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::onnx;
use crate::quantize::Target;
use crate::report::explain::explain;

/// Tell why a quantized model is not faster, smaller or more exact: float islands, Q/DQ that no kernel takes, scales
/// that do not fit. For models from any tool.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx explain out.onnx --deny warnings")]
pub struct Explain {
    /// The quantized model.
    model: PathBuf,
    /// Runtime and processor that it is for: ort-cpu, or ort-cpu-vnni, where nothing can saturate.
    #[arg(long, default_value = "ort-cpu")]
    target: String,
    /// Exit with 1 if there are any.
    #[arg(long, value_enum, value_name = "LEVEL")]
    deny: Option<Deny>,
    /// The findings as JSON.
    #[arg(long)]
    json: bool,
}

/// What may not be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Deny {
    /// Warnings.
    Warnings,
}

impl Explain {
    /// Prints the findings.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let target = Target::named(&self.target).map_err(|f| f.at("--target"))?;
        let found = explain(&onnx::read_valid(&self.model)?.model, &target)?;
        super::print(&match self.json {
            true => serde_json::to_string_pretty(&found).context("writing JSON")? + "\n",
            false => found.text(),
        });
        match (self.deny, found.warnings()) {
            (Some(Deny::Warnings), n) if n > 0 => bail!("{n} warnings, and --deny warnings allows none"),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}
