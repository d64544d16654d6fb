//! `qonnx diff`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::onnx;
use crate::report::diff;

/// Tell what changed between two models, for a reviewer. Exits with 0 if nothing did, 1 if something did, 2 if a model
/// cannot be read.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx diff old.onnx new.onnx || echo they differ")]
pub struct Diff {
    /// The model before.
    a: PathBuf,
    /// The model after.
    b: PathBuf,
    /// The changes as JSON.
    #[arg(long)]
    json: bool,
    /// Print nothing; the exit code tells.
    #[arg(short, long)]
    quiet: bool,
}

impl Diff {
    /// Prints the changes. Trouble has the exit code that diff(1) gives it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.changes() {
            Ok(changes) => Ok(ExitCode::from(u8::from(changes))),
            Err(error) => {
                super::console::error(&error);
                Ok(ExitCode::from(2))
            }
        }
    }

    fn changes(self) -> anyhow::Result<bool> {
        let changes = diff::diff(&onnx::read(&self.a)?.model, &onnx::read(&self.b)?.model);
        if !self.quiet {
            super::print(&match self.json {
                true => serde_json::to_string_pretty(&changes).context("writing JSON")? + "\n",
                false => diff::text(&changes),
            });
        }
        Ok(!changes.is_empty())
    }
}
