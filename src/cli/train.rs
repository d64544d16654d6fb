//! `qonnx train`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::console;
use super::progress::Progress;
use crate::calibrate::threshold::Calibrator;
use crate::compile::{TrainOptions, train};
use crate::options::{Effort, Mode, Options};
use crate::quantize::candidate::Filter;
use crate::train::loss::Loss;
use crate::train::optimizer::{Method, Rates, Schedule};
use crate::train::{Epoch, Reach, Settings};

/// Quantize a model and train it to live with the rounding, from labels or from the float model itself.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx train in.onnx out.onnx --data samples/ --bits 4 --lr 3e-4\n  \
    qonnx train in.onnx out.onnx --data samples/ --labels labels.txt --checkpoint state --json report.json")]
pub struct Train {
    /// The fp32 model.
    input: PathBuf,
    /// Where to write the result. Replaced whole, or left alone if anything fails.
    output: PathBuf,
    /// Samples to learn from: a directory of npz, npy, pb or pictures.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data: PathBuf,
    /// Class numbers of the samples in order, as .npy or as text with one a line.
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    labels: Option<PathBuf>,
    /// distill (from the float model), cross-entropy (needs --labels), mse, or both (labels and float model); both with
    /// labels, else distill.
    #[arg(long, help_heading = "Training")]
    loss: Option<Loss>,
    /// Times over the samples.
    #[arg(long, default_value_t = 4, value_name = "N", help_heading = "Training")]
    epochs: u32,
    /// Samples a step.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Training")]
    batch: u32,
    /// Learning rate of weights and biases; with adam as a share of the root mean square of each tensor.
    #[arg(long, default_value_t = 3e-4, value_parser = rate, help_heading = "Training")]
    lr: f64,
    /// Learning rate of scales and zero points, as a share of each.
    #[arg(long, default_value_t = 1e-3, value_parser = rate, help_heading = "Training")]
    scale_lr: f64,
    /// How much values inside the network count beside its outputs where the float model teaches; 0: not at all.
    #[arg(long, default_value_t = 16.0, value_parser = rate, help_heading = "Training")]
    feature_weight: f64,
    /// How far gradients go back: end-to-end, or block (each block between values that all others pass through learns to
    /// end with the float model's value).
    #[arg(long, default_value = "end-to-end", help_heading = "Training")]
    mode: Reach,
    /// Compute values again on the way back instead of keeping them: less memory, about a third more time, the same result.
    #[arg(long, help_heading = "Training")]
    recompute: bool,
    /// adam or sgd (with momentum), for weights and biases.
    #[arg(long, default_value = "adam", help_heading = "Training")]
    optimizer: Method,
    /// cosine or constant.
    #[arg(long, default_value = "cosine", help_heading = "Training")]
    schedule: Schedule,
    /// Bits of weights, 2 to 8.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8), help_heading = "What to do")]
    bits: u32,
    /// Bits of activations, 2 to 8.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=8), help_heading = "What to do")]
    activation_bits: u32,
    /// One scale for each weight instead of one for each of its channels.
    #[arg(long, help_heading = "What to do")]
    per_tensor: bool,
    /// Scales and zero points stay as they are after N steps.
    #[arg(long, value_name = "N", help_heading = "Training")]
    freeze_after: Option<u64>,
    /// Stop after N epochs without a better one.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Training")]
    patience: u32,
    /// Samples to judge by; without them, every fifth of --data is held out.
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    validation: Option<PathBuf>,
    /// Class numbers of the samples of --validation.
    #[arg(long, value_name = "FILE", requires = "validation", help_heading = "Data")]
    validation_labels: Option<PathBuf>,
    /// Keep the state between epochs in FILE, and go on from it if it is there.
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    checkpoint: Option<PathBuf>,
    /// Decides the order of samples.
    #[arg(long, default_value_t = 0, help_heading = "Training")]
    seed: u64,
    /// Time to spend on the starting point: fast, balanced or best.
    #[arg(long, default_value = "balanced", help_heading = "What to do")]
    effort: Effort,
    /// Runtime and processor to compile for, as in compile.
    #[arg(long, default_value = "ort-cpu", help_heading = "What to do")]
    target: String,
    /// Nodes to keep in float: a name, or a pattern with * and ?. May be repeated.
    #[arg(long, value_name = "NAME_OR_GLOB", help_heading = "What to do")]
    exclude: Vec<String>,
    /// Threads; as many as there are processors by default. The result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Running")]
    threads: Option<u16>,
    /// Settings too long for a command line: the preprocessing of pictures.
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    config: Option<PathBuf>,
    /// Write what was done as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Messages")]
    json: Option<PathBuf>,
    /// Write what was done as an HTML page.
    #[arg(long, value_name = "FILE", help_heading = "Messages")]
    report: Option<PathBuf>,
    /// Say nothing unless it fails.
    #[arg(short, long, help_heading = "Messages")]
    quiet: bool,
}

/// A learning rate.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate >= 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a learning rate is a number that is not negative".into()),
    }
}

impl Train {
    /// Trains, with a line for each epoch on stderr.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let (options, training) = self.options()?;
        let progress = Progress::new(self.quiet);
        let watch = |phase: &str, done: usize, total: usize| progress.show(phase, done, total);
        let told = |number: usize, epoch: &Epoch, best: bool| {
            if !self.quiet {
                progress.finish();
                console::note(&line(number, epoch, best));
            }
        };
        let report = train(&self.input, &self.output, &options, &training, &watch, &told);
        progress.finish();
        let report = report?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
            crate::onnx::write_atomically(path, text.as_bytes())?;
        }
        if let Some(path) = &self.report {
            crate::onnx::write_atomically(path, crate::report::page::html(&report).as_bytes())?;
        }
        if !self.quiet {
            for warning in &report.warnings {
                console::warning(warning);
            }
            console::note(&report.summary());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> anyhow::Result<(Options, TrainOptions)> {
        let recipe = super::config(self.config.as_deref())?.preprocess;
        let loss = self.loss.unwrap_or(if self.labels.is_some() { Loss::Both } else { Loss::Distill });
        if matches!(loss, Loss::CrossEntropy | Loss::Both) && self.labels.is_none() {
            anyhow::bail!("--loss cross-entropy and both need --labels");
        }
        let rates = Rates {
            method: self.optimizer,
            schedule: self.schedule,
            weights: self.lr,
            scales: self.scale_lr,
        };
        let settings = Settings {
            loss,
            features: self.feature_weight,
            reach: self.mode,
            recompute: self.recompute,
            epochs: self.epochs as usize,
            batch: self.batch as usize,
            rates,
            freeze_after: self.freeze_after,
            patience: self.patience as usize,
            seed: self.seed,
            checkpoint: self.checkpoint.clone(),
        };
        let options = Options {
            mode: Mode::Static,
            calib: Some(self.data.clone()),
            recipe,
            calibrator: Calibrator::Auto,
            steps: self.effort.steps(),
            budget: self.effort.budget(),
            target: self.target.clone(),
            filter: Filter { exclude: self.exclude.clone(), ..Filter::default() },
            command: self.command(loss),
            ..Options::default()
        };
        let training = TrainOptions {
            settings,
            labels: self.labels.clone(),
            validation: self.validation.clone(),
            validation_labels: self.validation_labels.clone(),
            weight_bits: self.bits,
            activation_bits: self.activation_bits,
            per_tensor: self.per_tensor,
        };
        Ok((options, training))
    }

    /// The options that decide the result, without paths.
    fn command(&self, loss: Loss) -> String {
        let lower = |name: String| name.to_lowercase();
        let mut words = vec![
            format!("--loss {}", lower(format!("{loss:?}"))),
            format!(
                "--epochs {} --batch {} --lr {} --scale-lr {} --feature-weight {}",
                self.epochs, self.batch, self.lr, self.scale_lr, self.feature_weight
            ),
            lower(format!("--optimizer {:?} --schedule {:?}", self.optimizer, self.schedule)),
            format!("--bits {} --activation-bits {}", self.bits, self.activation_bits),
            lower(format!("--patience {} --seed {} --effort {:?}", self.patience, self.seed, self.effort)),
        ];
        words.extend((self.mode == Reach::Block).then(|| "--mode block".into()));
        words.extend(self.per_tensor.then(|| "--per-tensor".into()));
        words.extend(self.freeze_after.map(|n| format!("--freeze-after {n}")));
        words.extend(self.exclude.iter().map(|e| format!("--exclude {e}")));
        words.join(" ")
    }
}

/// One epoch for the terminal.
fn line(number: usize, epoch: &Epoch, best: bool) -> String {
    let mark = if best { " *" } else { "" };
    let metric = format!("metric {:.4}", epoch.metric);
    match number {
        0 => format!("start      held-out {:.6}, {metric}", epoch.held_out),
        _ => format!(
            "epoch {number:3}  loss {:.6}, held-out {:.6}, {metric}{mark}",
            epoch.loss, epoch.held_out
        ),
    }
}
