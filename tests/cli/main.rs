//! The command line, through the binary: every command on small models, and what happens to bad input.

mod accuracy;
mod bad_input;
mod compare;
mod compile;
mod diff;
mod explain;
mod inspect;
mod run;
mod settings;
mod shell;
mod tables;
mod train;

use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use tempfile::TempDir;

/// How one invocation ended.
struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Outcome {
    /// It must have ended with this code.
    #[track_caller]
    fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Standard error must hold each of these.
    #[track_caller]
    fn says(self, parts: &[&str]) -> Self {
        parts.iter().for_each(|p| assert!(self.err.contains(p), "no `{p}` in stderr:\n{}", self.err));
        self
    }

    /// Standard output must hold each of these.
    #[track_caller]
    fn prints(self, parts: &[&str]) -> Self {
        parts.iter().for_each(|p| assert!(self.out.contains(p), "no `{p}` in stdout:\n{}", self.out));
        self
    }

    /// The last of standard error must be one line that tells an error.
    #[track_caller]
    fn one_error(self) -> Self {
        let errors: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && self.err.lines().last() == Some(errors[0]), "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }
}

/// Runs the command with arguments separated by blanks in each of `parts`; paths come as parts of their own.
fn qonnx(parts: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    qonnx_with(&[], parts)
}

/// The same with variables of the environment.
fn qonnx_with(variables: &[(&str, &str)], parts: &[&dyn AsRef<std::ffi::OsStr>]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qonnx"));
    let output = command.envs(variables.iter().copied()).args(parts).output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Arguments of different types as one list.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$(&$arg as &dyn AsRef<std::ffi::OsStr>),*] };
}
use args;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn digits() -> PathBuf {
    repository("tests/data/digits.onnx")
}

fn samples() -> PathBuf {
    repository("tests/data/digits/calib")
}

/// A model from text, as a file.
fn model(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let proto = qonnx::onnx::text::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let path = dir.path().join(name);
    std::fs::write(&path, proto.encode_to_vec()).unwrap();
    path
}

/// One of the golden models, as a file.
fn golden(dir: &TempDir, name: &str) -> PathBuf {
    let text = std::fs::read_to_string(repository("tests/golden").join(format!("{name}.onnxtxt"))).unwrap();
    model(dir, &format!("{name}.onnx"), &text)
}

/// The digit classifier, compiled.
fn compiled(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("digits.int8.onnx");
    qonnx(args!["compile", digits(), path, "--calib", samples(), "--samples", "8", "-q"]).code(0);
    path
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}
