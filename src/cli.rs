//! The command line: arguments to library calls, one file a subcommand.

mod compile;
mod ops;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// List the operators that qonnx knows.
    Ops,
}

/// Runs the command line. 0: done; 1: the model or the data is at fault; 2: the arguments are.
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
        Command::Ops => ops::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
