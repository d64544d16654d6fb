//! Quantization-aware training: the weights of a quantized model learn to live with the rounding.
//!
//! The graph is the tape. A [`student::Student`] is the quantized graph with real numbers behind fake quantization; it
//! starts from post-training quantization and learns from labels, or from the float graph (its teacher). Gradients live
//! beside the operators ([`crate::ir::Gradient`]); fake quantization rounds and clips by the code of the integer kernels;
//! after each epoch the *integer* model is judged on samples that took no part, and the best one is kept, be it the
//! starting point.

pub mod checkpoint;
mod export;
pub mod fake_quantize;
pub mod features;
pub mod loss;
mod metric;
mod narrow;
pub mod optimizer;
pub mod session;
pub mod student;
pub mod tape;

use serde::Serialize;

pub use session::{Epoch, Outcome, Reach, Session, Settings, Share, State, Watcher};
pub use student::Student;

/// What training did.
#[derive(Debug, Clone, Serialize)]
pub struct Training {
    /// The starting point, then every epoch.
    pub epochs: Vec<Epoch>,
    /// The epoch that was written; 0 is the starting point: no epoch was better.
    pub written: usize,
    /// Samples to learn from, and to judge by.
    pub samples: (usize, usize),
    /// Samples a second while learning.
    pub speed: f64,
}

impl Training {
    /// One line for the terminal.
    pub fn summary(&self) -> String {
        let (Some(start), Some(best)) = (self.epochs.first(), self.epochs.get(self.written)) else {
            return String::new();
        };
        format!(
            "training  epoch {} of {}, held-out loss {:.6} -> {:.6}, metric {:.4} -> {:.4}, {:.0} samples/s\n",
            self.written,
            self.epochs.len() - 1,
            start.held_out,
            best.held_out,
            start.metric,
            best.metric,
            self.speed
        )
    }
}
