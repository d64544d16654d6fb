//! What was done, for people (a few lines) and for programs (JSON of the same facts).

mod activation;
pub mod diff;
pub mod dot;
pub mod explain;
pub mod inspect;
mod macs;
pub mod map;
pub mod operators;
pub mod page;
pub mod provenance;
pub mod qdq;
pub mod weights;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::activation::Activation;
use self::provenance::Provenance;

use crate::calibrate::observer::Observers;
use crate::calibrate::read::Samples;
use crate::compare::closeness::Closeness;
use crate::error::{Error, Fault};
use crate::interpret::node_label;
use crate::ir::{Graph, Model, NodeId, Rule, ValueId};
use crate::onnx::{FileDigest, Source};
use crate::options::{Mode, Options};
use crate::passes::Log;
use crate::proto::StringStringEntryProto;
use crate::quantize::Plan;
use crate::quantize::candidate::ALREADY;
use crate::quantize::half::Halved;
use crate::quantize::weight_only::Stored;

/// Outputs worse than this are called out: the result is hardly the same model.
const POOR_SQNR: f64 = 10.0;

/// The facts of one compilation: as fields, as a few lines, as JSON and as a page.
///
/// ```
/// # use std::path::Path;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let out = std::env::temp_dir().join(format!("qonnx-report-{}.onnx", std::process::id()));
/// # let options = qonnx::Options::default();
/// let report = qonnx::compile(Path::new("tests/data/digits.onnx"), &out, &options, &|_, _, _| {})?;
/// assert_eq!((report.mode, report.target.as_str()), ("weight-only", "ort-cpu"));
/// assert!(!report.quantized.nodes.is_empty() && report.quantized.activations.is_empty());
/// for (operator, why) in &report.quantized.float {
///     println!("{operator} stays float: {why}");
/// }
/// let page = qonnx::report::page::html(&report);
/// assert!(page.contains("digits.onnx") && !page.contains("http://"));
/// # std::fs::remove_file(&out).ok();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of qonnx.
    pub version: &'static str,
    /// The mode, resolved: never `auto`.
    pub mode: &'static str,
    /// Name of the target.
    pub target: String,
    /// The command line.
    pub command: String,
    /// File name of the input.
    pub model: String,
    /// First 16 digits of the input's SHA-256.
    pub model_digest: FileDigest,
    /// First 16 digits of the SHA-256 over the samples.
    pub data_digest: Option<String>,
    /// Number of calibration samples.
    pub samples: usize,
    /// Bytes of the input, with the files beside it.
    pub size_before: usize,
    /// Bytes of the output, with a file beside it.
    pub size_after: usize,
    /// Wall-clock time in seconds.
    #[serde(skip)]
    pub seconds: f64,
    /// Rewrites that were applied: pass and node.
    pub applied: Vec<(&'static str, String)>,
    /// Rewrites that were refused: pass, node and reason.
    pub refused: Vec<(&'static str, String, String)>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// What was quantized and what was not.
    pub quantized: Quantized,
    /// What the result was made from.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
    /// The output was made from the same before, and left alone.
    #[serde(skip)]
    pub unchanged: bool,
    /// Closeness of each output to the original's on calibration samples.
    pub outputs: Vec<Closeness>,
    /// What training did, if there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<crate::train::Training>,
}

/// What was quantized and what was not.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Quantized {
    /// Nodes in integers (static) or with integer weights (weight-only).
    pub nodes: Vec<String>,
    /// Those of them that read and write activations of 16 bits beside others of 8.
    pub wide: Vec<String>,
    /// Beside those, nodes that compute in float with integer weights (dynamic).
    pub stored: Vec<String>,
    /// Nodes with arithmetic that stayed float, and why.
    pub float: Vec<(String, String)>,
    /// Estimated time of a run as a share of the float model's: arithmetic alone, as the target's table has its costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<f64>,
    /// Quantized activations.
    pub activations: Vec<Activation>,
    /// Noise over signal of each layer's output before and after its weights were rounded anew.
    pub layers: Vec<crate::tune::reconstruct::Gain>,
    /// Values whose loud channels were moved into the weights that read them.
    pub smoothed: Vec<String>,
    /// Nodes whose bias was corrected by what rounding the weight adds to the mean of each channel.
    pub corrected: Vec<String>,
    /// What tuning did, in order.
    pub steps: Vec<crate::tune::Step>,
    /// Did an interrupt end tuning before its time?
    pub ended_early: bool,
    /// How the result did on the bound that it was to keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<crate::tune::goal::Mark>,
    /// Integer weights of the written model.
    pub weights: Vec<weights::Weight>,
    /// Its operators as a picture.
    #[serde(skip)]
    pub map: Vec<map::Place>,
    /// Why a part of the graph could not be calibrated.
    pub problem: Option<String>,
    /// What the user should know of it.
    pub warnings: Vec<String>,
}

impl Quantized {
    /// Adds operators that compute in float and read weights in integers.
    pub fn store(&mut self, done: Stored) {
        self.stored.extend(done.nodes);
        self.float.retain(|(node, _)| !self.stored.contains(node));
    }

    /// The facts of a static plan.
    pub fn plan(graph: &Graph, plan: &Plan, seen: &Observers<ValueId>, problem: Option<&Error>) -> Self {
        let name = |id: &NodeId| format!("{} `{}`", graph.node(*id).op_type, node_label(graph, *id));
        let counts = |id: &&NodeId| !matches!(plan.placement.integer[*id].rule, Rule::Clamp { .. });
        Self {
            stored: Vec::new(),
            nodes: plan.placement.integer.keys().filter(counts).map(name).collect(),
            float: plan.placement.float.iter().map(|(id, why)| (name(id), why.clone())).collect(),
            time: Some(plan.placement.time).filter(|time| time.is_finite()),
            activations: plan
                .activations
                .iter()
                .map(|(&v, a)| {
                    let names = (graph.name(v), graph.name(a.group));
                    Activation::new(names, a, plan.written(graph, v).unwrap_or(a.params), seen.get(v))
                })
                .collect(),
            wide: plan.wide_activations.iter().filter(counts).map(name).collect(),
            layers: Vec::new(),
            smoothed: Vec::new(),
            corrected: Vec::new(),
            steps: Vec::new(),
            ended_early: false,
            mark: None,
            weights: Vec::new(),
            map: Vec::new(),
            problem: problem.map(ToString::to_string),
            warnings: Vec::new(),
        }
    }

    /// Was there nothing to do: nothing quantized, and nothing left alone but what is quantized already?
    pub fn is_nothing(&self) -> bool {
        self.nodes.is_empty() && self.stored.is_empty() && self.float.iter().all(|(_, why)| why == ALREADY)
    }

    /// The facts of half precision.
    pub fn half(done: Halved) -> Self {
        Self { nodes: done.nodes, float: done.float, warnings: done.warnings, ..Self::default() }
    }

    /// The facts of weight-only quantization.
    pub fn weights(done: Stored) -> Self {
        let nodes = done.nodes.into_iter().collect();
        Self { nodes, stored: done.stored.into_iter().collect(), float: done.float, ..Self::default() }
    }
}

impl Report {
    /// Takes down what the written graph looks like.
    pub fn draw(&mut self, graph: &Graph) {
        self.quantized.weights = weights::weights(graph);
        self.quantized.map = map::map(graph, &self.quantized.activations);
    }

    /// The facts known before anything is done.
    pub fn new(input: &Path, source: &Source, options: &Options, mode: Mode) -> Self {
        let mut warnings = Vec::new();
        if source.lost_bytes > 0 {
            warnings.push(format!(
                "{} bytes of the file are unknown to ONNX and will be lost",
                source.lost_bytes
            ));
        }
        if source.escaped {
            warnings.push("some names are not UTF-8: such bytes are written as \\xNN".into());
        }
        if options.mode == Mode::Auto && mode == Mode::WeightOnly {
            warnings.push(
                "no calibration data: only weights are quantized (use --calib for full integer)".into(),
            );
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            mode: if mode == Mode::Auto { Mode::WeightOnly.name() } else { mode.name() },
            target: provenance::target(options),
            command: options.command.clone(),
            model: input.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            model_digest: source.digest.clone(),
            data_digest: None,
            samples: 0,
            size_before: source.whole_size(),
            size_after: 0,
            seconds: 0.0,
            applied: Vec::new(),
            refused: Vec::new(),
            warnings,
            quantized: Quantized::default(),
            files: Vec::new(),
            unchanged: false,
            outputs: Vec::new(),
            training: None,
        }
    }

    /// Notes what the passes did.
    pub fn passes(&mut self, log: Log) {
        self.applied = log.applied;
        self.refused = log.refused;
        self.warnings.extend(log.warnings);
    }

    /// Notes which samples were used.
    pub fn samples(&mut self, samples: &Samples) {
        self.samples = samples.len();
        self.data_digest = samples.digest().ok();
    }

    /// Notes what reading the samples showed.
    pub fn samples_warnings(&mut self, samples: &Samples) {
        self.warnings.extend(samples.warnings());
    }

    /// Notes how close the outputs are; a result that is not finite or has another shape is an error.
    pub fn outputs(&mut self, outputs: Vec<Closeness>) -> Result<(), Error> {
        for output in &outputs {
            if output.bad_samples > 0 {
                let message = format!("output `{}` has another shape or is not finite", output.output);
                return Err(Fault::new(message).at("the quantized model is broken"));
            }
            if let Some(db) = output.sqnr_db.filter(|&db| db < POOR_SQNR) {
                self.warnings
                    .push(format!("output `{}` is far from the original: {db:.1} dB", output.output));
            }
        }
        self.outputs = outputs;
        Ok(())
    }

    /// Notes what was quantized.
    pub fn quantized(&mut self, quantized: Quantized) {
        if let Some(problem) = &quantized.problem {
            self.warnings
                .push(format!("a part of the graph stays float, for it could not be run: {problem}"));
        }
        self.warnings.extend(quantized.warnings.iter().cloned());
        if quantized.ended_early {
            self.warnings.push("tuning was ended early: this is the best so far".into());
        }
        if let Some(mark) = quantized.mark.as_ref().filter(|mark| !mark.met) {
            self.warnings.push(mark.summary());
        }
        self.quantized = quantized;
    }

    /// Writes producer and provenance into the model.
    pub fn sign(&self, model: &mut Model, provenance: &Provenance) {
        let mut set = |key: &str, value: &str| {
            let entries = &mut model.rest.metadata_props;
            entries.retain(|e| e.key.as_deref() != Some(key));
            entries.push(StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) });
        };
        set("qonnx.version", self.version);
        set("qonnx.mode", self.mode);
        set("qonnx.target", &self.target);
        set("qonnx.options", &self.command);
        set("qonnx.model_sha256", self.model_digest.get());
        if let Some(digest) = &self.data_digest {
            set("qonnx.data_sha256", digest);
        }
        set(provenance::KEY, &provenance.digest());
        model.rest.producer_name = Some("qonnx".into());
        model.rest.producer_version = Some(self.version.into());
    }

    /// Three or four lines for the terminal.
    pub fn summary(&self) -> String {
        if self.unchanged {
            return "unchanged: the output was made from the same model, data and options\n".into();
        }
        let mut text = String::new();
        let ratio = self.size_after as f64 / self.size_before.max(1) as f64;
        let mb = |bytes: usize| bytes as f64 / 1e6;
        let _ = writeln!(
            text,
            "size      {:.2} MB -> {:.2} MB ({:.0} %), {} in {:.1} s",
            mb(self.size_before),
            mb(self.size_after),
            100.0 * ratio,
            self.mode,
            self.seconds
        );
        if self.mode == "none" {
            return text;
        }
        let _ = writeln!(text, "operators {}", self.operators());
        if let Some(worst) = self.worst_activation() {
            let _ = writeln!(
                text,
                "worst     `{}` alone: {:.1} dB, range {}",
                worst.value, worst.sqnr_db, worst.method
            );
        }
        text.extend(self.training.iter().map(crate::train::Training::summary));
        let outputs: Vec<String> = self.outputs.iter().take(4).map(shown).collect();
        if !outputs.is_empty() {
            let more = self.outputs.len().saturating_sub(4);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let _ = writeln!(text, "accuracy  {}{more}", outputs.join(", "));
        }
        if let Some(mark) = &self.quantized.mark {
            let _ = writeln!(text, "{}", mark.summary());
        }
        text
    }

    fn operators(&self) -> String {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, why) in &self.quantized.float {
            *reasons.entry(why).or_default() += 1;
        }
        let already = reasons.remove(ALREADY).unwrap_or(0);
        let kept = if already > 0 { format!(", {already} quantized before") } else { String::new() };
        let main = reasons.iter().max_by_key(|(_, n)| **n).map(|(why, n)| format!(" ({n}: {why})"));
        let kind = match self.mode {
            "static" | "dynamic" => "in integers",
            "fp16" | "bf16" => "in half precision",
            _ => "with integer weights",
        };
        let kind = match self.quantized.wide.len() {
            0 => kind.to_string(),
            n => format!("{kind}, {n} of them on 16 bits"),
        };
        let kind = match self.quantized.stored.len() {
            0 => kind,
            n if self.mode == "weight-only" => format!("with 4-bit weights, {n} with 8-bit weights"),
            n => format!("{kind}, {n} with integer weights"),
        };
        let float = self.quantized.float.len() - already;
        format!("{} {kind}{kept}, {float} float{}", self.quantized.nodes.len(), main.unwrap_or_default())
    }

    fn worst_activation(&self) -> Option<&Activation> {
        self.quantized.activations.iter().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db))
    }
}

fn shown(output: &Closeness) -> String {
    let agreement = 100.0 * output.argmax_agreement;
    match output.sqnr_db {
        Some(db) => format!("`{}` {db:.1} dB, argmax {agreement:.0} %", output.output),
        None => format!("`{}` equal", output.output),
    }
}
