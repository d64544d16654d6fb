//! A progress bar on standard error.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar with an estimate of the time left, on a terminal only.
pub struct Progress(Mutex<Option<ProgressBar>>, bool);

impl Progress {
    /// No bar if `quiet` or if standard error is no terminal.
    pub fn new(quiet: bool) -> Self {
        Self(Mutex::new(None), !quiet && std::io::stderr().is_terminal())
    }

    /// `done` of `total` steps of a phase are done.
    pub fn show(&self, phase: &str, done: usize, total: usize) {
        if !self.1 {
            return;
        }
        let Ok(mut bar) = self.0.lock() else { return };
        let bar = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg:12} [{bar:30}] {pos}/{len}, {eta} left");
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        if bar.message() != phase {
            bar.reset();
            bar.set_message(phase.to_string());
            bar.set_length(total as u64);
        }
        bar.set_position(bar.position().max(done as u64));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Ok(Some(bar)) = self.0.lock().as_deref() {
            bar.finish_and_clear();
        }
    }
}
