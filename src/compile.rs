//! The main job, from file to file: the picture in the crate's documentation as one function.

mod fitting;
mod job;
mod modes;
mod refine;
mod sensitivity;
pub mod table;
mod training;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use self::job::Job;
use self::table::Known;
use crate::calibrate::read::{self, Samples};
use crate::compare::Pair;
use crate::compare::accuracy::read_labels;
use crate::compare::closeness::{self, Closeness};
use crate::error::{Error, Fault};
use crate::fail;
use crate::interpret::{Numerics, Program};
use crate::ir::{Graph, Model};
use crate::onnx;
use crate::options::{Bound, Mode, Options, Tuning};
use crate::passes;
use crate::quantize::{Target, half};
use crate::report::Report;
use crate::report::provenance::{self, Provenance};
use crate::tune::goal::Goal;

pub use self::sensitivity::{Layer, Sensitivity, sensitivity};
pub use self::training::{TrainOptions, train};

/// Told what is going on: a phase, and how many of how many steps are done. Called from several threads.
pub type Watch<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// One sample in so many is held out of calibration where a bound is to be kept.
const HELD_OUT: usize = 4;
/// Samples used to compare the result with the original.
const COMPARED: usize = 16;

/// Compiles the model in `input` and writes the result to `output`, which is replaced whole or left as it was.
pub fn compile(input: &Path, output: &Path, options: &Options, watch: Watch) -> Result<Report, Error> {
    let started = Instant::now();
    let mode = match (options.mode, &options.calib) {
        (Mode::Auto, Some(_)) => Mode::Static,
        (Mode::Auto, None) if options.table.is_some() => Mode::Static,
        (Mode::Auto, None) => Mode::WeightOnly,
        (mode, _) => mode,
    };
    let mut target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    options.types.settle(&mut target).map_err(|f| f.at("--mode static"))?;
    target.noise_weight *= options.budget.dearer;
    check_bound(options, mode)?;
    let source = if mode == Mode::None { onnx::read_valid(input)? } else { onnx::read_inlined(input)? };
    let mut report = Report::new(input, &source, options, mode);
    let known = options.table.as_deref().map(Known::read).transpose()?;
    if let (Some(known), Some(path)) = (&known, &options.table) {
        known.check(source.digest.get()).map_err(|f| f.at(path.display()))?;
    }
    let mut samples = match mode {
        Mode::None => None,
        _ => open_samples(&source.model.graph, options, mode)?,
    };
    let mut provenance = Provenance::of(input, &source, samples.as_ref(), options, report.mode)?;
    report.files.clone_from(&provenance.files);
    // Without a mode the output is the input, byte for byte.
    let copied =
        || mode == Mode::None && onnx::read(output).is_ok_and(|o| o.digest.get() == source.digest.get());
    if options.if_changed && (provenance.made(output) || copied()) {
        report.unchanged = true;
        return Ok(report);
    }
    if mode != Mode::None && provenance::is_own(&source.model, report.mode, options) {
        return as_it_was(input, output, report, "it was compiled with these options before");
    }
    let mut model = source.model;
    if mode != Mode::None {
        let original = model.graph.clone();
        let opset = opset(&model, mode, options, &target);
        passes::upgrade(&mut model, target.opset.max(opset))?;
        let log = passes::run(&mut model, options.stop_after)?;
        passes::check(&model, "the passes")?;
        let lowered = log.lowered();
        report.passes(log);
        let held_out =
            options.bound.zip(samples.as_mut()).map(|(b, s)| hold_out(b, s, options)).transpose()?;
        let known = known.as_ref();
        let samples = samples.as_ref();
        let job = Job::new(samples, &target, options, watch);
        let job = Job { known, held_out, may_end_early: true, ..job };
        let quantized = job.run(&original, &mut model, mode)?;
        if quantized.is_nothing() && !lowered {
            return as_it_was(input, output, report, "nothing is left to quantize");
        }
        if let Some(samples) = samples {
            report.samples(samples);
            let compared = distances(&original, &model.graph, samples, watch)?;
            report.samples_warnings(samples);
            report.outputs(compared)?;
        }
        if quantized.ended_early {
            // What it was made from does not tell what came of it.
            provenance.add("ended early");
        }
        report.quantized(quantized);
        report.draw(&model.graph);
        passes::finish(&mut model, "quantization")?;
        report.sign(&mut model, &provenance);
    }
    report.size_after = match mode {
        Mode::None if !options.external_data => onnx::copy(input, output, &model)?,
        _ => onnx::write(output, &model, options.payloads())?,
    };
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Writes the input as the output, byte for byte.
fn as_it_was(input: &Path, output: &Path, mut report: Report, why: &str) -> Result<Report, Error> {
    report.size_after = onnx::copy(input, output, &onnx::read_valid(input)?.model)?;
    report.warnings.push(format!("{why}: the model is written as it was"));
    Ok(report)
}

/// Refuses a bound that nothing would judge.
fn check_bound(options: &Options, mode: Mode) -> Result<(), Error> {
    let judged = mode == Mode::Static && options.steps.contains(&Tuning::TradeOff) && options.float.is_none();
    if options.bound.is_none() || judged && options.calib.is_some() {
        return Ok(());
    }
    let fault = Fault::new(
        "a bound needs samples and --mode static, with the step trade-off (not --effort fast) and without --float",
    );
    Err(fault.at("--min-sqnr, --max-drop"))
}

/// Takes samples out of calibration to see on them that the bound is kept.
fn hold_out(bound: Bound, samples: &mut Samples, options: &Options) -> Result<(Goal, Samples), Error> {
    let labels = options.labels.as_ref().map(|path| labels(path, samples)).transpose()?;
    if samples.len() < 2 {
        let fault = Fault::new("of one sample none can be held out to judge by").hint("give more samples");
        return Err(fault.at("--calib"));
    }
    let (held, indices) = samples.hold_out(HELD_OUT.min(samples.len()));
    let goal = match (bound, labels) {
        (Bound::Sqnr(db), _) => Goal::Sqnr(db),
        (Bound::Drop(points), None) => Goal::Changed(points),
        (Bound::Drop(points), Some(mut all)) => {
            Goal::Drop(points, indices.iter().filter_map(|&i| all.get_mut(i).map(std::mem::take)).collect())
        }
    };
    Ok((goal, held))
}

/// The labels of each sample: one, or one for each row of its first input.
fn labels(path: &Path, samples: &Samples) -> Result<Vec<Vec<usize>>, Error> {
    let all = read_labels(path)?;
    if all.len() == samples.len() {
        return Ok(all.into_iter().map(|l| vec![l]).collect());
    }
    let rows = (0..samples.len())
        .map(|i| Ok(samples.load(i)?.first().and_then(|a| a.shape().first().copied()).unwrap_or(1)))
        .collect::<Result<Vec<usize>, Error>>()?;
    let wanted: usize = rows.iter().sum();
    if wanted != all.len() {
        let message =
            format!("there are {} labels for {wanted} rows in {} samples", all.len(), samples.len());
        return Err(Fault::new(message).at(path.display()));
    }
    let mut rest = all.as_slice();
    let share = |rows: usize| {
        let Some((own, left)) = rest.split_at_checked(rows) else { fail!("labels end early") };
        rest = left;
        Ok(own.to_vec())
    };
    rows.into_iter().map(share).collect::<Result<_, Fault>>().map_err(|f| f.at(path.display()))
}

/// The least opset that the mode needs of this model.
fn opset(model: &Model, mode: Mode, options: &Options, target: &Target) -> i64 {
    let half = options.half(mode).map_or(0, |half| half::opset(model, &half));
    let may_widen = options.bound.is_some() || options.pins.nodes.iter().any(|pin| pin.activation.is_some());
    match mode {
        Mode::WeightOnly if options.blocked.is_some() => 21,
        // The pairs around integers have scales of their own, which half precision has from 19 on.
        Mode::Static => target.storage.opset(may_widen).max(if half > 0 { half.max(19) } else { 0 }),
        _ => half,
    }
}

/// The samples, if there are any; modes that cannot do without them say so.
fn open_samples(graph: &Graph, options: &Options, mode: Mode) -> Result<Option<Samples>, Error> {
    let Some(path) = &options.calib else {
        if mode != Mode::Static || options.table.is_some() {
            return Ok(None);
        }
        let fault = Fault::new("static quantization needs samples")
            .hint("give a directory with --calib, or a --table");
        return Err(fault.at("--mode static"));
    };
    let inputs = read::open_inputs(graph).map_err(|f| f.at("--calib"))?;
    let mut samples = read::open(path, &inputs, options.recipe.as_ref())?;
    if let Some(limit) = options.samples {
        samples.truncate(limit);
    }
    Ok(Some(samples))
}

/// How close the outputs of the quantized graph are to those of the graph as it was read.
fn distances(
    original: &Graph,
    quantized: &Graph,
    samples: &Samples,
    watch: Watch,
) -> Result<Vec<Closeness>, Error> {
    // On integers, as a runtime computes it.
    let (a, b) = (Program::new(original)?, Program::with_numerics(quantized, Numerics::Ort)?);
    let count = samples.len().min(COMPARED);
    let indices: Vec<usize> = (0..count).map(|i| i * samples.len() / count).collect();
    let steps = AtomicUsize::new(0);
    let progress = || watch("comparing", 1 + steps.fetch_add(1, Relaxed), count);
    let pair = Pair::new((&a, original), (&b, quantized))?;
    let rows = pair.run(samples, &indices, &progress, |outputs| Ok(closeness::of_sample(outputs)))?;
    Ok(closeness::total(&pair.names, &rows).into_iter().filter(|c| c.float).collect())
}
