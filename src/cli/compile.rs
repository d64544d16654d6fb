//! `qonnx compile`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use super::console;
use super::dtypes::{half_type, integer, short};
use super::help::nearest;
use super::progress::Progress;
use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::calibrate::threshold::Calibrator;
use crate::compile::compile;
use crate::error::one_line;
use crate::ir::DType;
use crate::options::{Bound, Effort, Mode, Options, Pins, Tuning};
use crate::quantize::candidate::Filter;
use crate::quantize::weight_only::blocked::{Algorithm, Blocked};
use crate::quantize::{Half, Types};
use crate::report::Report;
use crate::report::operators::operators;
use crate::report::provenance::rule;

/// Quantize a model. Without --calib only the weights are quantized; with it, activations too.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx compile in.onnx out.onnx --calib samples/\n  \
    qonnx compile in.onnx out.onnx --calib samples/ --exclude '/head/*' --json report.json\n  \
    qonnx compile in.onnx out.onnx --calib samples/ --if-changed --depfile out.d")]
pub struct Compile {
    /// The fp32 model.
    input: PathBuf,
    /// Where to write the result. Replaced whole, or left alone if anything fails.
    output: PathBuf,
    /// Calibration samples: a directory of npz, npy, pb or pictures.
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    calib: Option<PathBuf>,
    /// What values hold, instead of running the model: a table of `qonnx calibrate`, a calibration cache of TensorRT, or
    /// encodings of AIMET. With --calib as well, the samples serve the tuning.
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    table: Option<PathBuf>,
    /// auto (static with --calib, else weight-only), none, weight-only, static, dynamic, fp16 or
    /// bf16.
    #[arg(long, default_value = "auto", value_parser = Mode::from_str, help_heading = "What to do")]
    mode: Mode,
    /// How activation ranges are chosen: minmax, percentile[=99.99], entropy, mse, octav, or auto, which takes for each
    /// tensor the one with the least error.
    #[arg(long, default_value = "auto", help_heading = "Calibration")]
    calibrator: Calibrator,
    /// How much time to spend on accuracy: fast (calibrated ranges only), balanced or best.
    #[arg(long, value_enum, default_value = "balanced", help_heading = "What to do")]
    effort: Effort,
    /// The steps of tuning to take instead of those of --effort, separated by commas; `none`: none.
    #[arg(long, value_name = "STEPS", value_delimiter = ',', value_parser = step, overrides_with = "effort",
          help_heading = "What to do")]
    steps: Option<Vec<Option<Tuning>>>,
    /// Keep as much in float as it takes for every float output to have this SQNR on samples held out of calibration.
    #[arg(long, value_name = "DB", conflicts_with = "max_drop", help_heading = "Accuracy")]
    min_sqnr: Option<f64>,
    /// The same for top-1, which may fall by this many points; without --labels, the best class of the first output may
    /// change in this share of the rows.
    #[arg(long, value_name = "POINTS", value_parser = super::points, help_heading = "Accuracy")]
    max_drop: Option<f64>,
    /// Class numbers of the samples, in their order: .npy, or text with one a line.
    #[arg(long, value_name = "FILE", requires = "max_drop", help_heading = "Accuracy")]
    labels: Option<PathBuf>,
    /// Use the first N samples; 100 are enough.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Calibration")]
    samples: Option<u32>,
    /// Runtime and processor to compile for: ort-cpu, ort-cpu-vnni, ort-arm, openvino, tensorrt, qnn-htp, integer-only, a
    /// backend of PyTorch (fbgemm, x86, qnnpack), or a table of your own, FILE.toml.
    #[arg(long, default_value = "ort-cpu", help_heading = "What to do")]
    target: String,
    /// Nodes to keep in float: a name, or a pattern with * and ?. May be repeated.
    #[arg(long, value_name = "NAME_OR_GLOB", help_heading = "What to do")]
    exclude: Vec<String>,
    /// The only operators to quantize, separated by commas.
    #[arg(long, value_name = "OPS", value_delimiter = ',', value_parser = operator, help_heading = "What to do")]
    only_ops: Vec<String>,
    /// With static: type of activations, u8, s8, u16 or s16, as far as the target has them; its usual one by default.
    #[arg(long, value_name = "TYPE", value_parser = integer, help_heading = "What to do")]
    activation: Option<DType>,
    /// With static: type of weights, s8, u8 or s4, as far as the target has them; its usual one by default.
    #[arg(long, value_name = "TYPE", value_parser = integer, help_heading = "What to do")]
    weight: Option<DType>,
    /// With static: one scale for each weight instead of one for each of its channels.
    #[arg(long, help_heading = "What to do")]
    per_tensor: bool,
    /// With static: fp16 or bf16 for what is not quantized.
    #[arg(long, value_name = "TYPE", value_parser = half_type, help_heading = "What to do")]
    float: Option<DType>,
    /// With weight-only: bits of a weight.
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = ["4", "8"], help_heading = "What to do")]
    bits: String,
    /// With --bits 4: elements that share a scale.
    #[arg(long, value_name = "N", value_parser = ["32", "64", "128"], help_heading = "What to do")]
    block: Option<String>,
    /// With --bits 4: the nearest integer (rtn), that at the scale of least error (mse, the default), or with what others
    /// lost made up for (gptq, which needs --calib).
    #[arg(long, value_enum, help_heading = "What to do")]
    algorithm: Option<Algorithm>,
    /// With fp16 and bf16: inputs and outputs of the model stay float32; `--keep-io=false` makes them half as well.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "What to do")]
    keep_io: bool,
    /// With fp16 and bf16: operators or nodes to keep in float32, as names or patterns. May be repeated.
    #[arg(long, value_name = "OP_OR_NODE", help_heading = "What to do")]
    keep_float: Vec<String>,
    /// Threads; as many as there are processors by default. The result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Running")]
    threads: Option<u16>,
    /// Settings too long for a command line (qonnx.toml): preprocessing of pictures, options, decisions for single nodes
    /// and values. `qonnx init` writes one.
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    config: Option<PathBuf>,
    /// Write what was done as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Messages")]
    json: Option<PathBuf>,
    /// Write what was done as an HTML page.
    #[arg(long, value_name = "FILE", help_heading = "Messages")]
    report: Option<PathBuf>,
    /// Write which files the output depends on, as a rule for Make or Ninja.
    #[arg(long, value_name = "FILE", help_heading = "Build systems")]
    depfile: Option<PathBuf>,
    /// Leave an output alone that was made from the same model, data, options and version.
    #[arg(long, help_heading = "Build systems")]
    if_changed: bool,
    /// Keep large weights in a file beside the output, OUTPUT.data; models of 2 GB and more do so anyway.
    #[arg(long, help_heading = "What to do")]
    external_data: bool,
    /// Stop the passes after N edits, to find one at fault.
    #[arg(long, value_name = "N", help_heading = "Running")]
    stop_after: Option<usize>,
    /// Say nothing unless it fails.
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Messages")]
    quiet: bool,
    /// Say what each pass did and why operators stayed float.
    #[arg(short, long, help_heading = "Messages")]
    verbose: bool,
}

/// What each pass and each tuning step did, and why operators stayed float.
fn details(report: &Report) -> String {
    let applied = report.applied.iter().map(|(pass, node)| format!("pass      {pass}: {node}"));
    let refused = report.refused.iter().map(|(pass, node, why)| format!("refused   {pass}: {node}: {why}"));
    let steps = report.quantized.steps.iter().map(|s| {
        let (kept, t) = (if s.kept { "kept" } else { "taken back" }, s.seconds);
        format!("step      {}: {:.1} dB -> {:.1} dB, {kept}, {t:.1} s", s.name, s.before_db, s.after_db)
    });
    let corrected = report.quantized.corrected.iter().map(|node| format!("bias      {node}: corrected"));
    let float = report.quantized.float.iter().map(|(node, why)| format!("float     {node}: {why}"));
    applied
        .chain(refused)
        .chain(steps)
        .chain(corrected)
        .chain(float)
        .map(|line| one_line(&line) + "\n")
        .collect()
}

/// The name of an operator, as `--only-ops` takes it.
fn operator(name: &str) -> Result<String, String> {
    let known = || operators().into_iter().map(|o| o.name);
    if known().any(|k| k == name) {
        return Ok(name.into());
    }
    Err(match nearest(name, known()) {
        Some(near) => format!("no operator has this name; did you mean `{near}`?"),
        None => "no operator has this name; `qonnx ops` lists them".into(),
    })
}

/// The name of a step of tuning; `none` is no step.
fn step(name: &str) -> Result<Option<Tuning>, String> {
    if name == "none" {
        return Ok(None);
    }
    Tuning::from_str(name, false).map(Some).map_err(|_| {
        let names: Vec<String> = Tuning::value_variants().iter().map(|t| t.name()).collect();
        format!("there are {} and none", names.join(", "))
    })
}

impl Compile {
    /// Compiles, then tells on stderr what was done.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let options = self.options()?;
        let progress = Progress::new(self.quiet);
        let report = compile(&self.input, &self.output, &options, &|phase, done, total| {
            progress.show(phase, done, total);
        });
        progress.finish();
        let report = report?;
        if let Some(path) = &self.depfile {
            let files = report.files.iter().cloned().chain(self.calib.clone()).chain(self.config.clone());
            let files: Vec<PathBuf> = files.collect();
            crate::onnx::write_atomically(path, rule(&self.output, &files).as_bytes())?;
        }
        if let Some(path) = self.json.as_ref().filter(|_| !report.unchanged) {
            let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
            crate::onnx::write_atomically(path, text.as_bytes())?;
        }
        if let Some(path) = self.report.as_ref().filter(|_| !report.unchanged) {
            crate::onnx::write_atomically(path, crate::report::page::html(&report).as_bytes())?;
        }
        if self.quiet {
            return Ok(ExitCode::SUCCESS);
        }
        for warning in &report.warnings {
            console::warning(warning);
        }
        if self.verbose {
            console::note(&details(&report));
        }
        console::note(&report.summary());
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> anyhow::Result<Options> {
        anyhow::ensure!(
            self.table.is_none() || self.is_mode(Mode::Static),
            "--table goes with --mode static: other modes have no ranges"
        );
        let config = super::config(self.config.as_deref())?;
        let recipe = config.preprocess;
        let pins = Pins { nodes: config.node, values: config.value };
        Ok(Options {
            mode: self.mode,
            calib: self.calib.clone(),
            table: self.table.clone(),
            recipe,
            calibrator: self.calibrator,
            steps: self.steps(),
            budget: self.effort.budget(),
            bound: self.min_sqnr.map(Bound::Sqnr).or(self.max_drop.map(Bound::Drop)),
            labels: self.labels.clone(),
            samples: self.samples.map(|n| n as usize),
            target: self.target.clone(),
            filter: pins.filter(Filter {
                exclude: self.exclude.clone(),
                only_ops: self.only_ops.clone(),
                ..Filter::default()
            }),
            types: self.types()?,
            float: self.float,
            blocked: self.blocked()?,
            half: Half { keep_io: self.keep_io, keep: self.keep_float.clone(), ..Half::default() },
            stop_after: self.stop_after,
            // What is asked for besides the output must be there too.
            external_data: self.external_data,
            if_changed: self.if_changed && self.json.as_ref().is_none_or(|path| path.exists()),
            command: [vec![self.command()], pins.words()].concat().join(" "),
            pins,
        })
    }

    fn steps(&self) -> BTreeSet<Tuning> {
        match &self.steps {
            Some(steps) => steps.iter().copied().flatten().collect(),
            None => self.effort.steps(),
        }
    }

    fn storage(&self) -> Types {
        Types { activation: self.activation, weight: self.weight, per_tensor: self.per_tensor }
    }

    /// Is the mode this one, spelt or implied?
    fn is_mode(&self, wanted: Mode) -> bool {
        match (self.mode, self.calib.as_ref().or(self.table.as_ref())) {
            (Mode::Auto, Some(_)) => wanted == Mode::Static,
            (Mode::Auto, None) => wanted == Mode::WeightOnly,
            (mode, _) => wanted == mode,
        }
    }

    /// Storage types of a static plan; what does not go together is refused.
    fn types(&self) -> anyhow::Result<Types> {
        let types = self.storage();
        let plain = types == Types::default() && self.float.is_none();
        anyhow::ensure!(
            plain || self.is_mode(Mode::Static),
            "--activation, --weight, --per-tensor and --float go with --mode static"
        );
        Ok(types)
    }

    /// Weights in 4 bits, if they are asked for; what does not go together is refused.
    fn blocked(&self) -> anyhow::Result<Option<Blocked>> {
        let weight_only = self.is_mode(Mode::WeightOnly);
        let four = self.bits == "4";
        anyhow::ensure!(
            !four || weight_only,
            "--bits 4 goes with --mode weight-only; static, dynamic: 8 bits"
        );
        anyhow::ensure!(
            four || self.block.is_none(),
            "--block goes with --bits 4; 8 bits have a scale by channel"
        );
        anyhow::ensure!(four || self.algorithm.is_none(), "--algorithm goes with --bits 4");
        let gptq = self.algorithm == Some(Algorithm::Gptq);
        anyhow::ensure!(
            !gptq || self.calib.is_some(),
            "--algorithm gptq needs --calib; without data: rtn, mse"
        );
        let default = Blocked::default();
        let size = self.block.as_ref().map_or(Ok(default.size), |b| b.parse())?;
        Ok(four.then_some(Blocked { size, algorithm: self.algorithm.unwrap_or(default.algorithm) }))
    }

    /// The options that decide the result, without paths.
    fn command(&self) -> String {
        let mut words = vec![format!("--calibrator {}", self.calibrator)];
        words.extend(
            (self.effort != Effort::default()).then(|| format!("--effort {:?}", self.effort).to_lowercase()),
        );
        if self.steps.is_some() {
            let names: Vec<String> = self.steps().into_iter().map(Tuning::name).collect();
            words.push(format!("--steps {}", if names.is_empty() { "none".into() } else { names.join(",") }));
        }
        words.extend(
            self.table
                .as_deref()
                .and_then(Path::file_name)
                .map(|name| format!("--table {}", name.to_string_lossy())),
        );
        words.extend(self.per_tensor.then(|| "--per-tensor".into()));
        words.extend(self.min_sqnr.map(|db| format!("--min-sqnr {db}")));
        words.extend(self.max_drop.map(|points| format!("--max-drop {points}")));
        words.extend(self.samples.map(|n| format!("--samples {n}")));
        words.extend(self.external_data.then(|| "--external-data".into()));
        words.extend(self.exclude.iter().map(|e| format!("--exclude {e}")));
        if !self.only_ops.is_empty() {
            words.push(format!("--only-ops {}", self.only_ops.join(",")));
        }
        let types = self.storage();
        words.extend(types.activation.map(|t| format!("--activation {}", short(t))));
        words.extend(types.weight.map(|t| format!("--weight {}", short(t))));
        words.extend(self.float.map(|f| format!("--float {}", short(f))));
        if let Ok(Some(Blocked { size, algorithm })) = self.blocked() {
            words.push(format!("--bits 4 --block {size} --algorithm {algorithm:?}").to_lowercase());
        }
        if !self.keep_io {
            words.push("--keep-io=false".into());
        }
        words.extend(self.keep_float.iter().map(|k| format!("--keep-float {k}")));
        words.extend(self.stop_after.map(|n| format!("--stop-after {n}")));
        words.join(" ")
    }
}
