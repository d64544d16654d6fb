//! The edges of a run: its limits, and that it ends well however it ends.

use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::console;
use crate::error::one_line;
use crate::{budget, onnx};

/// Deep graphs are walked by functions that call themselves.
const STACK: usize = 256 << 20;
const WORKER_STACK: usize = 16 << 20;

/// Exit code after an interrupt, as shells have it.
const INTERRUPTED: i32 = 130;

/// What the last panic said.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs the command. A panic, which would be a bug of ours, becomes one line and exit code 1; an interrupt or the end of
/// the time leaves no temporary file behind. The first interrupt of work that has something worth keeping makes it keep
/// that.
pub fn guarded(work: impl FnOnce() -> ExitCode + Send + 'static) -> ExitCode {
    panic::set_hook(Box::new(remember));
    let interrupt = || match budget::end_early() {
        true => console::note("tuning ends with the best so far; another interrupt ends all of it"),
        false => end("interrupted", INTERRUPTED),
    };
    let _ = ctrlc::set_handler(interrupt); // without it an interrupt ends the process at once
    let main = thread::Builder::new().name("main".into()).stack_size(STACK).spawn(work);
    let Ok(main) = main else {
        console::error(&anyhow::anyhow!("a thread cannot be started"));
        return ExitCode::FAILURE;
    };
    main.join().unwrap_or_else(|_| {
        onnx::abandon();
        let what = PANIC.lock().map(|p| p.clone()).unwrap_or_default();
        let message = format!("a bug in qonnx: {}; nothing was left half written", one_line(&what));
        ExitCode::from(console::error(&anyhow::anyhow!(message)))
    })
}

fn remember(info: &PanicHookInfo) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let message = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("panic");
    if let Ok(mut last) = PANIC.lock() {
        *last = format!("{message} ({place})");
    }
}

fn end(why: &str, code: i32) -> ! {
    onnx::abandon();
    console::error(&anyhow::anyhow!("{why}; nothing was left half written"));
    std::process::exit(code)
}

/// Ends the process after so many seconds.
pub fn limit_time(seconds: f64) {
    let watch = move || {
        thread::sleep(Duration::from_secs_f64(seconds));
        end(&format!("the time limit of {seconds} s is over"), 1)
    };
    if thread::Builder::new().spawn(watch).is_err() {
        end("a thread that watches the time cannot be started", 1);
    }
}

/// Sets the number of threads of the process.
pub fn start_threads(threads: Option<u16>) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().stack_size(WORKER_STACK);
    pool.num_threads(threads.unwrap_or(0).into()).build_global().context("starting threads")
}

/// A number of bytes with k, M, G or T behind it, each 1024 times the one before.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory, such as 800M or 4G");
    let text = text.trim().trim_end_matches(['b', 'B']).trim_end_matches('i');
    let shift = match text.chars().last().map(|c| c.to_ascii_lowercase()) {
        Some('k') => 10,
        Some('m') => 20,
        Some('g') => 30,
        Some('t') => 40,
        _ => 0,
    };
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes.is_finite() && bytes >= 1.0 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A positive number of seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('s').unwrap_or(text).trim().parse::<f64>().ok();
    let fits = |s: &f64| *s > 0.0 && Duration::try_from_secs_f64(*s).is_ok();
    number.filter(fits).ok_or_else(|| format!("`{text}` is no number of seconds"))
}

/// Applies the limits that were asked for.
pub fn apply(memory: Option<u64>, time: Option<f64>) {
    memory.into_iter().for_each(budget::limit_memory);
    time.into_iter().for_each(limit_time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("2 MiB"), Ok(2 << 20));
        for wrong in ["", "G", "-1k", "many", "0"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(seconds("2.5s"), Ok(2.5));
        assert!(seconds("0").is_err() && seconds("inf").is_err());
    }
}
