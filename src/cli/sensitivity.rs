//! `qonnx sensitivity`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::progress::Progress;
use crate::calibrate::threshold::Calibrator;
use crate::compile::{Layer, Sensitivity, sensitivity};
use crate::error::one_line;
use crate::onnx;
use crate::options::Options;
use crate::quantize::candidate::Filter;
use crate::report::page::{self, Cell, card, curve, strip, table};

/// Tell which layers the outputs feel most when they alone are quantized, and what sparing them would cost.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx sensitivity in.onnx --calib samples/\n  \
    qonnx sensitivity in.onnx --calib samples/ --top 0 --json s.json")]
pub struct Sense {
    /// The fp32 model.
    model: PathBuf,
    /// Calibration samples, in the layouts of compile --calib.
    #[arg(long, value_name = "DIR")]
    calib: PathBuf,
    /// Use the first N samples.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Print the N most sensitive layers; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// How activation ranges are chosen, as in compile.
    #[arg(long, default_value = "auto")]
    calibrator: Calibrator,
    /// Runtime and processor to compile for, as in compile.
    #[arg(long, default_value = "ort-cpu")]
    target: String,
    /// Nodes to keep in float: a name, or a pattern with * and ?. May be repeated.
    #[arg(long, value_name = "NAME_OR_GLOB")]
    exclude: Vec<String>,
    /// Threads; the result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The preprocessing of pictures.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write everything as an HTML page.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Sense {
    /// Measures and prints.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let recipe = super::config(self.config.as_deref())?.preprocess;
        let options = Options {
            calib: Some(self.calib.clone()),
            recipe,
            calibrator: self.calibrator,
            samples: self.samples.map(|n| n as usize),
            target: self.target.clone(),
            filter: Filter { exclude: self.exclude.clone(), ..Filter::default() },
            ..Options::default()
        };
        let progress = Progress::new(false);
        let found =
            sensitivity(&self.model, &options, &|phase, done, total| progress.show(phase, done, total));
        progress.finish();
        let found = found?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&found).context("writing JSON")?;
            onnx::write_atomically(path, text.as_bytes())?;
        }
        if let Some(path) = &self.report {
            onnx::write_atomically(path, html(&found).as_bytes())?;
        }
        super::print(&text(&found, if self.top == 0 { usize::MAX } else { self.top }));
        Ok(ExitCode::SUCCESS)
    }
}

fn text(found: &Sensitivity, top: usize) -> String {
    let db = |db: Option<f64>| db.map_or_else(|| "-".into(), |db| format!("{db:.1}"));
    let mut text = String::new();
    let _ = writeln!(text, "SQNR of the outputs with this alone in 8 bits");
    let _ = writeln!(text, "{:>9} {:>9} {:>10}  layer", "output dB", "weight dB", "time saved");
    for layer in found.layers.iter().take(top) {
        let (output, weight) = (db(layer.output_db), db(layer.weight_db));
        let saved = format!("{:.1} %", 100.0 * layer.saves);
        let name = one_line(&layer.node);
        let _ = writeln!(text, "{output:>9} {weight:>9} {saved:>10}  {} `{name}`", layer.op);
    }
    if let Some(more) = found.layers.len().checked_sub(top).filter(|&n| n > 0) {
        let _ = writeln!(text, "{more} more layers: --top 0");
    }
    let _ = writeln!(text, "\nWhat there is to choose from");
    let _ = writeln!(text, "{:>9} {:>9} {:>10}", "SQNR dB", "integer", "time/fp32");
    for choice in &found.choices {
        let mark = if choice.dearer == 1.0 { "  the default" } else { "" };
        let (sqnr, integer) = (db(choice.sqnr_db), choice.integer);
        let _ = writeln!(text, "{sqnr:>9} {integer:>9} {:>10.2}{mark}", choice.time);
    }
    text
}

/// The same as a page.
fn html(found: &Sensitivity) -> String {
    let title = format!("{} · sensitivity", found.model);
    let mut page = page::start(&title, "SQNR of the outputs with one layer alone in 8 bits");
    let worst = |layer: &Layer| {
        let both = [layer.output_db, layer.weight_db].into_iter().flatten();
        both.fold(200.0, f64::min)
    };
    card(&mut page, "layers", &found.layers.len().to_string(), "that could become integer");
    if let Some(layer) = found.layers.first() {
        card(&mut page, "most sensitive", &page::decibel(worst(layer)), &page::escaped(&layer.node));
    }
    card(&mut page, "samples", &found.samples.to_string(), "in calibration");
    let points = found.choices.iter().filter_map(|c| {
        let db = c.sqnr_db?;
        Some((c.time, db, format!("{} integer, {db:.1} dB, {:.2} of the float time", c.integer, c.time)))
    });
    let mut points: Vec<_> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve(&mut page, "What there is to choose from", ["estimated time / fp32", "SQNR, dB"], &points);
    let blocks: Vec<_> = found.layers.iter().map(|l| (format!("{} {}", l.op, l.node), worst(l))).collect();
    strip(
        &mut page,
        "Layers",
        "The most sensitive first; red where quantizing it alone loses most.",
        &blocks,
    );
    let quality = |db: Option<f64>| db.map_or_else(|| page::text("–"), Cell::Quality);
    let row = |l: &Layer| {
        let saves = Cell::Number(l.saves, format!("{:.2} %", 100.0 * l.saves));
        vec![page::text(&l.node), page::text(&l.op), quality(l.output_db), quality(l.weight_db), saves]
    };
    let rows: Vec<_> = found.layers.iter().map(row).collect();
    let about = "Its outputs alone, and its weight alone, in 8 bits; the time that integers would save.";
    table(&mut page, "Each alone", about, &["layer", "operator", "outputs", "weight", "saves"], &rows);
    page::end(page)
}
