//! The `qonnx` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    qonnx::cli::run()
}
