//! `qonnx compare`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::console;
use super::progress::Progress;
use super::run::Numerics;
use crate::calibrate::read::{self, Samples};
use crate::compare::accuracy::{self, Accuracy, Best};
use crate::compare::closeness::{self, Closeness};
use crate::compare::layers::{self, Layer, Layers};
use crate::compare::{Outputs, Pair};
use crate::error::{Error, Fault, one_line};
use crate::report::page::{self, Cell, card, list, strip, table};
use crate::{onnx, passes};

/// Values further apart than this are said to drift, in dB.
const DRIFT: f64 = 20.0;

/// Run two models on the same samples and tell how close they are. Exits with 1 if a gate fails.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx compare in.onnx out.onnx --data samples/ --layers\n  \
    qonnx compare in.onnx out.onnx --data eval/ --labels labels.txt --min-sqnr 20 --max-drop 0.5")]
pub struct Compare {
    /// The model to hold against: the original.
    a: PathBuf,
    /// The model to judge: the compiled one.
    b: PathBuf,
    /// Samples, in the layouts of compile --calib.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Class numbers of the samples, in their order: .npy, or text with one a line. Adds top-1 and top-5 of both
    /// models, and a 95 % interval of their difference (Newcombe's for paired proportions).
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Gate: fail if the SQNR of a float output is less.
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    min_sqnr: Option<f64>,
    /// Gate: fail if top-1 falls by more points. Needs --labels.
    #[arg(long, value_name = "POINTS", value_parser = super::points, requires = "labels",
          allow_negative_numbers = true)]
    max_drop: Option<f64>,
    /// Compare every value that both models have, to find the layer at fault.
    #[arg(long)]
    layers: bool,
    /// Use the first N samples.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// How Q/DQ graphs are computed.
    #[arg(long, value_enum, default_value_t)]
    numerics: Numerics,
    /// Threads; the result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The preprocessing of pictures.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the comparison as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the comparison as an HTML page.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Everything that was found.
#[derive(Serialize)]
struct Comparison {
    version: &'static str,
    samples: usize,
    outputs: Vec<Closeness>,
    accuracy: Option<Accuracy>,
    layers: Option<Vec<Layer>>,
    /// The gates that failed, in words.
    failed: Vec<String>,
}

impl Compare {
    /// Compares, prints, and judges.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let (mut a, mut b) =
            (onnx::read_inlined(&self.a)?.model.graph, onnx::read_inlined(&self.b)?.model.graph);
        passes::infer(&mut a);
        passes::infer(&mut b);
        let samples = self.open(&a)?;
        let (x, y) = (self.numerics.program(&a)?, self.numerics.program(&b)?);
        let pair = Pair::new((&x, &a), (&y, &b))?;
        let progress = Progress::new(false);
        let steps = AtomicUsize::new(0);
        let indices: Vec<usize> = (0..samples.len()).collect();
        let total = indices.len() * (1 + usize::from(self.layers));
        let step = || progress.show("comparing", 1 + steps.fetch_add(1, Ordering::Relaxed), total);
        let rows = pair.run(&samples, &indices, &step, |outputs| self.look(outputs))?;
        let (sums, bests): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let layers = match self.layers {
            true => Some(Layers::new(&a, &b, self.numerics.into())?.run(&pair, &samples, &indices, &step)?),
            false => None,
        };
        progress.finish();
        samples.warnings().iter().for_each(|w| console::warning(w));
        let outputs = closeness::total(&pair.names, &sums);
        let accuracy = self.accuracy(&pair, &bests)?;
        let failed = self.gates(&outputs, accuracy.as_ref());
        let found = Comparison {
            version: env!("CARGO_PKG_VERSION"),
            samples: samples.len(),
            outputs,
            accuracy,
            layers,
            failed,
        };
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&found).context("writing JSON")?;
            onnx::write_atomically(path, text.as_bytes())?;
        }
        if let Some(path) = &self.report {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let title = format!("{} · {}", name(&self.a), name(&self.b));
            onnx::write_atomically(path, found.html(&title).as_bytes())?;
        }
        super::print(&found.text());
        match found.failed.as_slice() {
            [] => Ok(ExitCode::SUCCESS),
            failed => bail!("{}", failed.join("; ")),
        }
    }

    fn open(&self, graph: &crate::ir::Graph) -> anyhow::Result<Samples> {
        let recipe = super::config(self.config.as_deref())?.preprocess;
        let inputs = read::open_inputs(graph).map_err(|f| f.at(self.data.display()))?;
        let mut samples = read::open(&self.data, &inputs, recipe.as_ref())?;
        if let Some(limit) = self.samples {
            samples.truncate(limit as usize);
        }
        Ok(samples)
    }

    /// What is kept of one sample's outputs: sums of errors, and the best classes if there are labels.
    fn look(&self, outputs: Outputs) -> Result<Looked, Error> {
        let scores = |side: &[Option<crate::ir::Array>]| match (&self.labels, side.first()) {
            (Some(_), Some(Some(array))) => accuracy::best(array).map_err(|f| f.at("--labels")),
            (Some(_), _) => Err(Fault::new("the first output was not computed").at("--labels")),
            (None, _) => Ok(Best::new()),
        };
        Ok((closeness::of_sample(outputs), [scores(outputs.0)?, scores(outputs.1)?]))
    }

    fn accuracy(&self, pair: &Pair, bests: &[[Best; 2]]) -> anyhow::Result<Option<Accuracy>> {
        let Some(path) = &self.labels else { return Ok(None) };
        let mut labels = accuracy::read_labels(path)?;
        let joined =
            |side: usize| -> Best { bests.iter().filter_map(|b| b.get(side)).flatten().cloned().collect() };
        let (a, b) = (joined(0), joined(1));
        if self.samples.is_some() {
            labels.truncate(a.len());
        }
        let name = pair.names.first().map_or("", String::as_str);
        Ok(Some(Accuracy::of(name, [&a, &b], &labels).map_err(|f| f.at(path.display()))?))
    }

    fn gates(&self, outputs: &[Closeness], accuracy: Option<&Accuracy>) -> Vec<String> {
        let mut failed = Vec::new();
        for output in outputs {
            if output.bad_samples > 0 {
                let name = &output.output;
                failed.push(format!(
                    "output `{name}` has another shape or type, or is not finite, in {} samples",
                    output.bad_samples
                ));
            } else if let (Some(least), Some(db)) = (self.min_sqnr, output.sqnr_db.filter(|_| output.float))
                && db < least
            {
                failed
                    .push(format!("output `{}` has {db:.2} dB, --min-sqnr asks for {least}", output.output));
            }
        }
        if let (Some(most), Some(accuracy)) = (self.max_drop, accuracy)
            && accuracy.drop > most
        {
            let drop = accuracy.drop;
            failed.push(format!("top-1 falls by {drop:.2} points, --max-drop allows {most}"));
        }
        failed
    }
}

type Looked = (Vec<Option<closeness::Sums>>, [Best; 2]);

/// Decibels in a column; equal values have no noise.
fn decibels(db: Option<f64>) -> String {
    db.map_or_else(|| "equal".into(), |db| format!("{db:.2}"))
}

impl Comparison {
    fn text(&self) -> String {
        let mut lines = vec![format!(
            "{:28} {:>9} {:>10} {:>12} {:>8}   ({} samples)",
            "output", "SQNR dB", "cosine", "max error", "argmax", self.samples
        )];
        for o in &self.outputs {
            let cosine = o.cosine.map_or_else(|| "-".into(), |c| format!("{c:.6}"));
            lines.push(format!(
                "{:28} {:>9} {cosine:>10} {:>12.6} {:>7.1}%",
                one_line(&o.output),
                decibels(o.sqnr_db),
                o.max_error,
                100.0 * o.argmax_agreement
            ));
        }
        if let Some(a) = &self.accuracy {
            let percent =
                |shares: [f64; 2]| format!("{:.2} % -> {:.2} %", 100.0 * shares[0], 100.0 * shares[1]);
            lines.push(String::new());
            lines.push(format!("top-1     {} of {} labels", percent(a.top1), a.labels));
            lines.push(format!("top-5     {}", percent(a.top5)));
            lines.push(format!(
                "drop      {:.2} points at top-1, 95 % interval {:.2} to {:.2} (Newcombe, paired)",
                a.drop, a.interval.0, a.interval.1
            ));
        }
        if let Some(layers) = &self.layers {
            lines.push(String::new());
            lines.push(format!("{:>9} {:>10}  {:40} {}", "local dB", "cumulative", "value", "operator"));
            lines.extend(layers.iter().map(|l| {
                let mark = if l.bad_samples { " (not comparable)" } else { "" };
                format!(
                    "{:>9} {:>10}  {:40} {}{mark}",
                    decibels(l.local_db),
                    decibels(l.cumulative_db),
                    one_line(&l.value),
                    one_line(&l.operator)
                )
            }));
            let (first, worst) = layers::suspects(layers, DRIFT);
            if let Some(l) = first {
                let db = decibels(l.cumulative_db);
                lines.push(format!("first below {DRIFT} dB: {}, value `{}`, {db} dB", l.operator, l.value));
            }
            if let Some(l) = worst {
                let db = decibels(l.local_db);
                lines.push(format!("most error of its own: {}, value `{}`, {db} dB", l.operator, l.value));
            }
        }
        lines.join("\n") + "\n"
    }
}

impl Comparison {
    /// The same as a page.
    fn html(&self, title: &str) -> String {
        let mut page =
            page::start(title, &format!("the second beside the first on {} samples", self.samples));
        let exact = |db: Option<f64>| Cell::Quality(db.unwrap_or(200.0));
        if let Some(db) = self.outputs.iter().filter_map(|o| o.sqnr_db).min_by(f64::total_cmp) {
            card(&mut page, "worst output", &page::decibel(db), "signal to noise");
        }
        if let Some(a) = &self.accuracy {
            let interval = format!("95 % interval {:.2} to {:.2}", a.interval.0, a.interval.1);
            card(&mut page, "top-1 falls by", &format!("{:.2} points", a.drop), &interval);
        }
        list(&mut page, "Failed", self.failed.iter().map(|f| page::escaped(f)));
        let row = |o: &Closeness| {
            let cosine = o.cosine.map_or_else(|| page::text("–"), |c| Cell::Number(c, format!("{c:.6}")));
            let same = Cell::Number(o.argmax_agreement, format!("{:.1} %", 100.0 * o.argmax_agreement));
            vec![page::text(&o.output), exact(o.sqnr_db), cosine, page::number(o.max_error), same]
        };
        let rows: Vec<_> = self.outputs.iter().map(row).collect();
        let head = ["output", "SQNR", "cosine", "greatest error", "same largest"];
        table(&mut page, "Outputs", "Over all samples.", &head, &rows);
        if let Some(layers) = &self.layers {
            let blocks: Vec<_> = layers
                .iter()
                .map(|l| (format!("{} {}", l.operator, l.value), l.cumulative_db.unwrap_or(200.0)))
                .collect();
            let about =
                "Every value that both models have, in the order of the model, red where they are far apart.";
            strip(&mut page, "Map", about, &blocks);
            let row = |l: &Layer| {
                let quantized = page::text(if l.quantized { "yes" } else { "" });
                vec![
                    page::text(&l.value),
                    page::text(&l.operator),
                    exact(l.local_db),
                    exact(l.cumulative_db),
                    quantized,
                ]
            };
            let rows: Vec<_> = layers.iter().map(row).collect();
            let about = "Local: what the layer adds by itself. Cumulative: everything up to there.";
            table(
                &mut page,
                "Layers",
                about,
                &["value", "operator", "local", "cumulative", "quantized"],
                &rows,
            );
        }
        page::end(page)
    }
}
