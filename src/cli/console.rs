//! What is said on standard error: for people in lines, for programs as one JSON object a line.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use serde_json::json;

use crate::error::{Error, one_line};

/// The form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Lines for people, in colour on a terminal unless NO_COLOR is set.
    #[default]
    Human,
    /// One JSON object a line: `level` (error, warning, note), `message`, and for errors `code`.
    Json,
}

/// Chosen once for the process.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// Sets the form of all messages.
pub fn start(format: Format) {
    let _ = FORMAT.set(format); // the first choice holds
}

fn is_json() -> bool {
    FORMAT.get().copied().unwrap_or_default() == Format::Json
}

/// Are colours welcome? See <https://no-color.org>.
fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}

fn painted(word: &str, code: u8) -> String {
    if colours() { format!("\x1b[1;{code}m{word}\x1b[0m") } else { word.into() }
}

/// Writes a line. If nobody listens any more, that is no reason to end otherwise.
fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Something that the user should know.
pub fn warning(message: &str) {
    match is_json() {
        true => say(json!({ "level": "warning", "message": message })),
        false => say(format_args!("{}: {}", painted("warning", 33), one_line(message))),
    }
}

/// Lines about what was done.
pub fn note(lines: &str) {
    for line in lines.lines() {
        match is_json() {
            true => say(json!({ "level": "note", "message": line })),
            false => say(line),
        }
    }
}

/// Tells an error on one line; returns the exit code for it.
pub fn error(error: &anyhow::Error) -> u8 {
    let (message, code) = match error.downcast_ref::<Error>() {
        Some(e) if e.fault().is_unimplemented() => (format!("{} at {}", e.fault(), one_line(e.place())), 3),
        _ => (format!("{error:#}"), 1),
    };
    match is_json() {
        true => say(json!({ "level": "error", "code": code, "message": message })),
        false => say(format_args!("{}: {message}", painted("error", 31))),
    }
    code
}
