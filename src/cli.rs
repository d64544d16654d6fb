//! The command line: arguments to library calls, one file a subcommand.

mod calibrate;
mod compare;
mod compile;
mod console;
mod diff;
mod dtypes;
mod explain;
mod guard;
mod help;
mod init;
mod inspect;
mod ops;
mod progress;
mod run;
mod sensitivity;
mod settings;
mod shell;
mod train;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::calibrate::config::Config;
use crate::error::Error;
use crate::kernels::simd;

/// Version and facts of the build.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ntarget   ",
    env!("QONNX_TARGET"),
    "\nprofile  ",
    env!("QONNX_PROFILE"),
    "\ncompiler ",
    env!("QONNX_RUSTC"),
);

/// Quantize ONNX models: fp32 in, INT8 out.
#[derive(Parser)]
#[command(name = "qonnx", version, long_version = LONG_VERSION, about, max_term_width = 110)]
struct Arguments {
    /// The form of messages on standard error.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        global = true,
        help_heading = "Messages"
    )]
    message_format: console::Format,
    /// Memory for the values of a run, such as 800M or 4G; three quarters of the machine's by default.
    #[arg(long, value_name = "SIZE", value_parser = guard::bytes, global = true, help_heading = "Running")]
    memory_limit: Option<u64>,
    /// End with an error after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = guard::seconds, global = true, help_heading = "Running")]
    time_limit: Option<f64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Quantize a model.
    Compile(Box<compile::Compile>),
    /// Quantize a model and train it.
    Train(Box<train::Train>),
    /// Write what the values of a model hold, for compile.
    Calibrate(Box<calibrate::Calibrate>),
    /// Make one calibration table of several.
    Merge(calibrate::Merge),
    /// Run a model on one set of inputs.
    Run(run::Run),
    /// Compare two models on the same samples.
    Compare(Box<compare::Compare>),
    /// Tell which layers quantization hurts most.
    Sensitivity(Box<sensitivity::Sense>),
    /// Tell what is in a model.
    Inspect(inspect::Inspect),
    /// Tell what changed between two models.
    Diff(diff::Diff),
    /// Tell why a quantized model is not faster, smaller or more exact.
    Explain(explain::Explain),
    /// Write a file of settings for a model.
    Init(init::Init),
    /// List the operators that qonnx knows.
    Ops(ops::Ops),
    /// Print completions for a shell.
    Completions(shell::Completions),
    /// Print a manual page.
    Man(shell::Man),
}

/// Runs the command line. 0: done; 1: the model, the data or a gate failed; 2: the arguments are wrong; 3: an operator
/// is not implemented.
pub fn run() -> ExitCode {
    // Of an option that is given twice the last counts: what is typed stands behind what a file says.
    let command = help::grouped(Arguments::command()).mut_subcommands(|c| c.args_override_self(true));
    let words = match settings::with_file(&command, std::env::args_os().collect()) {
        Ok(words) => words,
        Err((format, error)) => {
            console::start(format);
            return ExitCode::from(console::error(&error.into()));
        }
    };
    let parsed = command.clone().try_get_matches_from(words).and_then(|m| Arguments::from_arg_matches(&m));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    console::start(arguments.message_format);
    if let Some(problem) = simd::refused() {
        return ExitCode::from(console::error(&anyhow::anyhow!(problem)));
    }
    guard::apply(arguments.memory_limit, arguments.time_limit);
    keep_memory();
    guard::guarded(move || dispatch(arguments.command, command))
}

fn dispatch(chosen: Command, command: clap::Command) -> ExitCode {
    let result = match chosen {
        Command::Compile(compile) => compile.run(),
        Command::Train(train) => train.run(),
        Command::Calibrate(calibrate) => calibrate.run(),
        Command::Merge(merge) => merge.run(),
        Command::Run(run) => run.run(),
        Command::Compare(compare) => compare.run(),
        Command::Sensitivity(sense) => sense.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Diff(diff) => diff.run(),
        Command::Explain(explain) => explain.run(),
        Command::Init(init) => init.run(&command),
        Command::Ops(ops) => ops.run(),
        Command::Completions(completions) => completions.run(command),
        Command::Man(man) => man.run(command),
    };
    result.unwrap_or_else(|error| ExitCode::from(console::error(&error)))
}

/// Asks the allocator to keep what is freed. Arrays come and go by the thousand while a model runs; returning their pages
/// to the system each time, and having them cleared anew, takes up to a fifth of an interpretation.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: this sets two parameters of the allocator and touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20); // more is refused by older versions
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}

/// Points of 100, with or without a percent sign.
fn points(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    number.ok().filter(|p| p.is_finite()).ok_or_else(|| "not a number of points, such as 0.5 or 0.5%".into())
}

/// The file of settings, if there is one.
fn config(path: Option<&Path>) -> Result<Config, Error> {
    Ok(path.map(Config::read).transpose()?.unwrap_or_default())
}

/// Writes to standard output. Nobody need read to the end: a closed pipe is no error.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
