//! `qonnx calibrate` and `qonnx merge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::console;
use super::progress::Progress;
use crate::calibrate::exchange::Exchange;
use crate::calibrate::table::Table;
use crate::calibrate::threshold::Calibrator;
use crate::compile::table::{Shard, calibrate};
use crate::onnx::write_atomically;
use crate::options::Options;

/// Run a model on samples and write what its values hold, for `qonnx compile --table`. With --shard, several machines share
/// the samples; `qonnx merge` makes one table of theirs, the same bytes as one machine would have written.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx calibrate in.onnx --calib samples/ -o table.json\n  \
    qonnx calibrate in.onnx --calib samples/ --shard 2/3 -o part2.json\n  \
    qonnx calibrate in.onnx --calib samples/ --format tensorrt -o in.cache")]
pub struct Calibrate {
    /// The fp32 model.
    input: PathBuf,
    /// Where to write the table.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Calibration samples: a directory of npz, npy, pb or pictures.
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    calib: PathBuf,
    /// Use the first N samples.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Calibration")]
    samples: Option<u32>,
    /// The I-th of N shares of the samples: every N-th sample, beginning with the I-th.
    #[arg(long, value_name = "I/N", value_parser = shard, help_heading = "Calibration")]
    shard: Option<Shard>,
    /// Ranges alone, in the format of another tool.
    #[arg(long, value_enum, conflicts_with = "shard", help_heading = "Calibration")]
    format: Option<Exchange>,
    /// With --format: how ranges are chosen, as in compile.
    #[arg(long, default_value = "auto", help_heading = "Calibration")]
    calibrator: Calibrator,
    /// Runtime and processor, as in compile.
    #[arg(long, default_value = "ort-cpu", help_heading = "What to do")]
    target: String,
    /// Settings too long for a command line: the preprocessing of pictures.
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    config: Option<PathBuf>,
    /// Threads; as many as there are processors by default. The result does not depend on them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Running")]
    threads: Option<u16>,
    /// Say nothing unless it fails.
    #[arg(short, long, help_heading = "Messages")]
    quiet: bool,
}

/// `2/3`: the second of three.
fn shard(text: &str) -> Result<Shard, String> {
    let parsed =
        text.split_once('/').and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)));
    match parsed {
        Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index: index - 1, count }),
        _ => Err("not a share such as 2/3".into()),
    }
}

impl Calibrate {
    /// Calibrates.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        super::guard::start_threads(self.threads)?;
        let options = Options {
            calib: Some(self.calib.clone()),
            recipe: super::config(self.config.as_deref())?.preprocess,
            samples: self.samples.map(|n| n as usize),
            calibrator: self.calibrator,
            target: self.target.clone(),
            ..Options::default()
        };
        let progress = Progress::new(self.quiet);
        let found = calibrate(&self.input, &options, self.shard, &|phase, done, total| {
            progress.show(phase, done, total);
        });
        progress.finish();
        let (table, ranges) = found?;
        let text = match self.format {
            None => table.text().map_err(|f| f.at("the table"))?,
            Some(format) => ranges.text(format),
        };
        write_atomically(&self.output, text.as_bytes())?;
        if !self.quiet {
            console::note(&format!("{} samples, {} values\n", table.samples.len(), table.len()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Make one calibration table of those of several shares.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx merge part1.json part2.json part3.json -o table.json")]
pub struct Merge {
    /// The tables.
    #[arg(required = true)]
    tables: Vec<PathBuf>,
    /// Where to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl Merge {
    /// Merges.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (first, others) = self.tables.split_first().context("there are no tables")?;
        let mut whole = Table::read(first)?;
        for path in others {
            whole.merge(&Table::read(path)?).map_err(|f| f.at(path.display()))?;
        }
        write_atomically(&self.output, whole.text().map_err(|f| f.at("the table"))?.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
