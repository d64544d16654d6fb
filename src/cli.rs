//! The command line: arguments to library calls, one file a subcommand.

mod compare;
mod compile;
mod diff;
mod explain;
mod inspect;
mod ops;
mod progress;
mod run;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::error::Error;

/// Quantize ONNX models: fp32 in, INT8 out.
#[derive(Parser)]
#[command(name = "qonnx", version, about, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Quantize a model.
    Compile(Box<compile::Compile>),
    /// Run a model on one set of inputs.
    Run(run::Run),
    /// Compare two models on the same samples.
    Compare(Box<compare::Compare>),
    /// Tell what is in a model.
    Inspect(inspect::Inspect),
    /// Tell what changed between two models.
    Diff(diff::Diff),
    /// Tell why a quantized model is not faster, smaller or more exact.
    Explain(explain::Explain),
    /// List the operators that qonnx knows.
    Ops(ops::Ops),
}

/// Runs the command line. 0: done; 1: the model, the data or a gate failed; 2: the arguments are wrong; 3: an operator
/// is not implemented.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = match arguments.command {
        Command::Compile(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Ops(command) => command.run(),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// Tells the error on one line.
fn fail(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<Error>() {
        Some(error) if error.fault().is_unimplemented() => {
            eprintln!("error: {} at {}", error.fault(), crate::error::one_line(error.place()));
            ExitCode::from(3)
        }
        _ => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Sets the number of threads of the process.
fn start_threads(threads: Option<u16>) -> anyhow::Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
    pool.build_global().context("starting threads")
}

/// Writes to standard output. Nobody need read to the end: a closed pipe is no error.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
