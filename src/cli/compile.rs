//! `qonnx compile`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use super::progress::Progress;
use anyhow::Context;
use clap::Args;

use crate::calibrate::config::Config;
use crate::calibrate::threshold::Calibrator;
use crate::compile::compile;
use crate::options::{Effort, Mode, Options};
use crate::quantize::Half;
use crate::quantize::candidate::Filter;

/// Quantize a model. Without --calib only the weights are quantized; with it, activations too.
#[derive(Args)]
pub struct Compile {
    /// The fp32 model.
    input: PathBuf,
    /// Where to write the result. Replaced whole, or left alone if anything fails.
    output: PathBuf,
    /// Calibration samples: a directory of npz, npy, pb or pictures.
    #[arg(long, value_name = "DIR")]
    calib: Option<PathBuf>,
    /// auto (static with --calib, else weight-only), none, weight-only, static, dynamic, fp16 or
    /// bf16.
    #[arg(long, default_value = "auto", value_parser = Mode::from_str)]
    mode: Mode,
    /// How activation ranges are chosen: minmax, percentile[=99.99], entropy, mse, or auto, which takes for each
    /// tensor the one with the least error.
    #[arg(long, default_value = "auto")]
    calibrator: Calibrator,
    /// How much time to spend on accuracy: fast (calibrated ranges only), balanced or best.
    #[arg(long, value_enum, default_value = "balanced")]
    effort: Effort,
    /// Use the first N samples; 100 are enough.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Runtime and processor to compile for: ort-cpu, ort-cpu-vnni.
    #[arg(long, default_value = "ort-cpu")]
    target: String,
    /// Nodes to keep in float: a name, or a pattern with * and ?. May be repeated.
    #[arg(long, value_name = "NAME_OR_GLOB")]
    exclude: Vec<String>,
    /// The only operators to quantize, separated by commas.
    #[arg(long, value_name = "OPS", value_delimiter = ',')]
    only_ops: Vec<String>,
    /// With fp16 and bf16: inputs and outputs of the model stay float32; `--keep-io=false` makes them half as well.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    keep_io: bool,
    /// With fp16 and bf16: operators or nodes to keep in float32, as names or patterns. May be repeated.
    #[arg(long, value_name = "OP_OR_NODE")]
    keep_float: Vec<String>,
    /// Threads; as many as there are processors by default. The result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Settings too long for a command line: the preprocessing of pictures.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write what was done as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Stop the passes after N edits, to find one at fault.
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    /// Say nothing unless it fails.
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Say what each pass did and why operators stayed float.
    #[arg(short, long)]
    verbose: bool,
}

impl Compile {
    /// Compiles, then tells on stderr what was done.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::start_threads(self.threads)?;
        let options = self.options()?;
        let progress = Progress::new(self.quiet);
        let report = compile(&self.input, &self.output, &options, &|phase, done, total| {
            progress.show(phase, done, total);
        });
        progress.finish();
        let report = report?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
            crate::onnx::write_atomically(path, text.as_bytes())?;
        }
        if self.quiet {
            return Ok(ExitCode::SUCCESS);
        }
        for warning in &report.warnings {
            eprintln!("warning: {}", crate::error::one_line(warning));
        }
        if self.verbose {
            report.applied.iter().for_each(|(pass, node)| eprintln!("pass      {pass}: {node}"));
            report.refused.iter().for_each(|(pass, node, why)| eprintln!("refused   {pass}: {node}: {why}"));
            for s in &report.quantized.steps {
                let (kept, t) = (if s.kept { "kept" } else { "taken back" }, s.seconds);
                eprintln!(
                    "step      {}: {:.1} dB -> {:.1} dB, {kept}, {t:.1} s",
                    s.name, s.before_db, s.after_db
                );
            }
            report.quantized.float.iter().for_each(|(node, why)| eprintln!("float     {node}: {why}"));
        }
        eprint!("{}", report.summary());
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> anyhow::Result<Options> {
        let recipe = match &self.config {
            Some(path) => Config::read(path)?.preprocess,
            None => None,
        };
        Ok(Options {
            mode: self.mode,
            calib: self.calib.clone(),
            recipe,
            calibrator: self.calibrator,
            effort: self.effort,
            samples: self.samples.map(|n| n as usize),
            target: self.target.clone(),
            filter: Filter { exclude: self.exclude.clone(), only_ops: self.only_ops.clone() },
            half: Half { keep_io: self.keep_io, keep: self.keep_float.clone(), ..Half::default() },
            stop_after: self.stop_after,
            command: self.command(),
        })
    }

    /// The options that decide the result, without paths.
    fn command(&self) -> String {
        let mut words = vec![format!("--calibrator {}", self.calibrator)];
        words.extend(
            (self.effort != Effort::default()).then(|| format!("--effort {:?}", self.effort).to_lowercase()),
        );
        words.extend(self.samples.map(|n| format!("--samples {n}")));
        words.extend(self.exclude.iter().map(|e| format!("--exclude {e}")));
        if !self.only_ops.is_empty() {
            words.push(format!("--only-ops {}", self.only_ops.join(",")));
        }
        if !self.keep_io {
            words.push("--keep-io=false".into());
        }
        words.extend(self.keep_float.iter().map(|k| format!("--keep-float {k}")));
        words.extend(self.stop_after.map(|n| format!("--stop-after {n}")));
        words.join(" ")
    }
}
