//! The calibration job: from a model and samples to a table of what its values hold, on one machine or on many.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sha2::{Digest, Sha256};

use super::{Watch, open_samples};
use crate::calibrate::exchange::Ranges;
use crate::calibrate::observer::Observers;
use crate::calibrate::run::calibrate_on;
use crate::calibrate::table::Table;
use crate::calibrate::threshold::{Calibrator, Grid};
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, Graph, Tensor, ValueId};
use crate::options::{Mode, Options};
use crate::quantize::Target;
use crate::quantize::candidate::watched;
use crate::tune::distance::judged;
use crate::{onnx, passes};

/// What is known of values without running the model.
#[derive(Debug, Clone)]
pub enum Known {
    /// A table of this or another machine.
    Table(Table),
    /// Ranges of another tool.
    Ranges(Ranges),
}

impl Known {
    /// Reads a table, a calibration cache or encodings, whichever it is.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Fault::new(format!("cannot be read: {e}")).at(path.display()))?;
        let own = text.trim_start().starts_with('{') && text.contains("\"qonnx calibration");
        let known = match own {
            true => Table::parse(&text).map(Self::Table),
            false => Ranges::parse(&text).map(Self::Ranges),
        };
        known.map_err(|f| f.at(path.display()))
    }

    /// Refuses a table of another model.
    pub fn check(&self, model: &str) -> Result<(), Fault> {
        match self {
            Self::Table(table) if table.model != model => {
                let message = format!("the table is of model {}, this is {model}", table.model);
                Err(Fault::new(message).hint("calibrate again: `qonnx calibrate`"))
            }
            _ => Ok(()),
        }
    }

    /// What was seen of these values.
    pub fn observers(&self, graph: &Graph, values: &[ValueId]) -> Result<Observers<ValueId>, Fault> {
        match self {
            Self::Table(table) => table.observers(graph, values),
            Self::Ranges(ranges) => Ok(ranges.observers(graph, values)),
        }
    }
}

/// One of several machines that share the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 0.
    pub index: usize,
    /// Of how many.
    pub count: usize,
}

/// The values of a graph whose distribution compile may ask for.
pub fn interesting(graph: &Graph) -> Vec<ValueId> {
    let mut values = watched(graph);
    values.extend(judged(graph).into_iter().map(|part| part.value));
    values
}

/// Runs a model on samples, or on one shard of them; what its values hold, and the ranges that the calibrator chooses.
///
/// Tables of several shards, merged, are the table of all samples:
///
/// ```
/// use std::path::Path;
///
/// use qonnx::compile::table::{Shard, calibrate};
/// use qonnx::{Mode, Options};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Path::new("tests/data/digits.onnx");
/// let options = Options { calib: Some("tests/data/digits/calib".into()), samples: Some(6), ..Options::default() };
/// let shard = |index| calibrate(model, &options, Some(Shard { index, count: 2 }), &|_, _, _| {});
/// let (mut table, _) = shard(0)?;
/// table.merge(&shard(1)?.0)?;
/// let (whole, ranges) = calibrate(model, &options, None, &|_, _, _| {})?;
/// assert_eq!(table.text()?, whole.text()?);
/// assert!(ranges.0.values().all(|range| range.lo <= 0.0 && range.hi >= 0.0));
///
/// // What a table knows takes the place of the samples.
/// # let path = std::env::temp_dir().join(format!("qonnx-doc-{}.json", std::process::id()));
/// # let out = path.with_extension("onnx");
/// std::fs::write(&path, table.text()?)?;
/// let options = Options { mode: Mode::Static, table: Some(path.clone()), ..Options::default() };
/// let report = qonnx::compile(model, &out, &options, &|_, _, _| {})?;
/// assert!(report.quantized.activations.iter().all(|a| a.scale > 0.0));
/// # std::fs::remove_file(&path).ok();
/// # std::fs::remove_file(&out).ok();
/// # Ok(())
/// # }
/// ```
pub fn calibrate(
    input: &Path,
    options: &Options,
    shard: Option<Shard>,
    watch: Watch,
) -> Result<(Table, Ranges), Error> {
    let source = onnx::read_inlined(input)?;
    let Some(samples) = open_samples(&source.model.graph, options, Mode::Static)? else {
        return Err(Fault::new("there are no samples").at("--calib"));
    };
    let mut model = source.model;
    let target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    passes::upgrade(&mut model, target.opset)?;
    passes::run(&mut model, None)?;
    passes::check(&model, "the passes")?;
    let Shard { index, count } = shard.unwrap_or(Shard { index: 0, count: 1 });
    let indices: Vec<usize> = (0..samples.len()).filter(|i| i % count == index).collect();
    let steps = AtomicUsize::new(0);
    let progress = || watch("calibrating", 1 + steps.fetch_add(1, Relaxed), indices.len());
    let graph = &model.graph;
    let program = Program::new(graph)?;
    let found = calibrate_on(&program, &interesting(graph), &samples, &indices, &progress)?;
    if let Some(problem) = found.problem {
        return Err(problem);
    }
    let digests = indices.iter().map(|&i| Ok((i, digest(&samples.load(i)?))));
    let digests = digests.collect::<Result<BTreeMap<_, _>, Error>>()?;
    let range = |id: ValueId| {
        let histogram = &found.seen.get(id)?.histogram;
        let usable = histogram.nan() + histogram.huge() + histogram.infinite() == 0;
        histogram.extremes().filter(|_| usable)?;
        let range = options.calibrator.choose(histogram, Grid::asymmetric(256)).range;
        Some((graph.name(id).to_string(), range))
    };
    let ranges = found.seen.iter().filter_map(|(id, _)| range(id)).collect();
    Ok((Table::new(source.digest.get(), digests, graph, &found.seen), Ranges(ranges)))
}

/// The calibrator that takes what is known as it is.
pub fn calibrator(known: Option<&Known>, wanted: Calibrator) -> Calibrator {
    if matches!(known, Some(Known::Ranges(_))) { Calibrator::MinMax } else { wanted }
}

/// The first digits of a SHA-256 of tensors: types, shapes, elements.
fn digest(arrays: &[Array]) -> String {
    let mut hash = Sha256::new();
    for array in arrays {
        hash.update(format!("{} {:?}", array.dtype(), array.shape()));
        hash.update(Tensor::from_array(array).raw().unwrap_or_default());
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}
