//! The main job, from file to file: the picture in the crate's documentation as one function.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use crate::calibrate::read::{self, Samples};
use crate::calibrate::run::calibrate;
use crate::compare::Pair;
use crate::compare::closeness::{self, Closeness};
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Graph, Model};
use crate::onnx;
use crate::options::{Effort, Mode, Options};
use crate::passes;
use crate::quantize::candidate::{Candidates, Filter, watched};
use crate::quantize::weight_only::blocked::Algorithm;
use crate::quantize::weight_only::{Storage, gptq};
use crate::quantize::{Half, Plan, Target, dynamic, half, insert, placement, plan, weight_only};
use crate::report::provenance::Provenance;
use crate::report::{Quantized, Report};
use crate::tune::reconstruct::reconstruct;
use crate::tune::smooth::smooth;
use crate::tune::{self, sensitivity};

/// Told what is going on: a phase, and how many of how many steps are done. Called from several threads.
pub type Watch<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// Samples used to compare the result with the original.
const COMPARED: usize = 16;

/// Compiles the model in `input` and writes the result to `output`, which is replaced whole or left as it was.
pub fn compile(input: &Path, output: &Path, options: &Options, watch: Watch) -> Result<Report, Error> {
    let started = Instant::now();
    let mode = match (options.mode, &options.calib) {
        (Mode::Auto, Some(_)) => Mode::Static,
        (Mode::Auto, None) => Mode::WeightOnly,
        (mode, _) => mode,
    };
    let source = if mode == Mode::None { onnx::read_valid(input)? } else { onnx::read_inlined(input)? };
    let mut report = Report::new(input, &source, options, mode);
    let samples = match mode {
        Mode::None => None,
        _ => open_samples(&source.model.graph, options, mode)?,
    };
    let provenance = Provenance::of(input, &source, samples.as_ref(), options, report.mode)?;
    report.files.clone_from(&provenance.files);
    // Without a mode the output is the input, byte for byte.
    let copied = || mode == Mode::None && onnx::read(output).is_ok_and(|o| o.digest == source.digest);
    if options.if_changed && (provenance.made(output) || copied()) {
        report.unchanged = true;
        return Ok(report);
    }
    let mut model = source.model;
    if mode != Mode::None {
        let original = model.graph.clone();
        let target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
        let half = options.half(mode);
        let opset = match (&half, options.blocked) {
            (Some(half), _) => half::opset(&model, half),
            (None, Some(_)) => 21,
            (None, None) => 0,
        };
        passes::upgrade(&mut model, target.opset.max(opset))?;
        let log = passes::run(&mut model, options.stop_after)?;
        passes::check(&model, "the passes")?;
        report.passes(log);
        let quantized = match (mode, &samples, &half) {
            (_, _, Some(half)) => halve(&mut model, samples.as_ref(), half, watch)?,
            (Mode::Static, Some(samples), _) => {
                quantize_static(&mut model, samples, &target, options, watch)?
            }
            (Mode::Dynamic, samples, _) => {
                quantize_dynamic(&mut model, samples.as_ref(), &target, &options.filter, watch)?
            }
            _ => store_weights(&mut model, samples.as_ref(), options, watch)?,
        };
        if let Some(samples) = &samples {
            report.samples(samples);
            let compared = distances(&original, &model.graph, samples, watch)?;
            report.samples_warnings(samples);
            report.outputs(compared)?;
        }
        report.quantized(quantized);
        passes::infer(&mut model.graph);
        passes::check(&model, "quantization")?;
        report.sign(&mut model, &provenance);
    }
    report.size_after = onnx::write(output, &model)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The samples, if there are any; modes that cannot do without them say so.
fn open_samples(graph: &Graph, options: &Options, mode: Mode) -> Result<Option<Samples>, Error> {
    let Some(path) = &options.calib else {
        if mode != Mode::Static {
            return Ok(None);
        }
        let fault = Fault::new("static quantization needs samples").hint("give a directory with --calib");
        return Err(fault.at("--mode static"));
    };
    let inputs = read::open_inputs(graph).map_err(|f| f.at("--calib"))?;
    let mut samples = read::open(path, &inputs, options.recipe.as_ref())?;
    if let Some(limit) = options.samples {
        samples.truncate(limit);
    }
    Ok(Some(samples))
}

/// Integer weights in front of float arithmetic; with samples, GPTQ learns how their inputs hang together.
fn store_weights(
    model: &mut Model,
    samples: Option<&Samples>,
    options: &Options,
    watch: Watch,
) -> Result<Quantized, Error> {
    let (blocked, filter) = (options.blocked, &options.filter);
    let grams = match (blocked.map(|b| b.algorithm), samples) {
        (Some(Algorithm::Gptq), Some(samples)) => {
            let progress = |done, total| watch("calibrating", done, total);
            gptq::grams(&model.graph, filter, samples, &progress)?
        }
        _ => Vec::new(),
    };
    let storage = Storage { blocked, grams: grams.into_iter().collect() };
    let done = weight_only::quantize(&mut model.graph, filter, storage);
    Ok(Quantized::weights(done.map_err(|f| f.at("weight quantization"))?))
}

/// Activations quantized as the model runs; with samples, those that 8 bits represent badly stay float, and LSTMs do if
/// what they do to their own state would spoil the result.
fn quantize_dynamic(
    model: &mut Model,
    samples: Option<&Samples>,
    target: &Target,
    filter: &Filter,
    watch: Watch,
) -> Result<Quantized, Error> {
    let at = |f: Fault| f.at("dynamic quantization");
    let noisy = samples.map(|s| dynamic::noisy(&model.graph, s)).transpose()?.unwrap_or_default();
    let float = model.clone();
    let mut done = dynamic::quantize(model, filter, target, &noisy, true).map_err(at)?;
    if let Some(samples) = samples.filter(|_| dynamic::has_lstm(&model.graph)) {
        let found = distances(&float.graph, &model.graph, samples, watch)?;
        if found.iter().filter_map(|c| c.sqnr_db).any(|db| db < dynamic::LEAST_DB) {
            *model = float;
            done = dynamic::quantize(model, filter, target, &noisy, false).map_err(at)?;
        }
    }
    Ok(Quantized::weights(done))
}

/// Half precision; with samples, what would leave its range stays float32.
fn halve(
    model: &mut Model,
    samples: Option<&Samples>,
    half: &Half,
    watch: Watch,
) -> Result<Quantized, Error> {
    let ranges = match samples {
        None => half::Ranges::new(),
        Some(samples) => {
            let steps = AtomicUsize::new(0);
            let step = || watch("calibrating", 1 + steps.fetch_add(1, Relaxed), samples.len());
            half::ranges(&model.graph, samples, &step)?
        }
    };
    let done = half::convert(model, half, &ranges).map_err(|f| f.at("half precision"))?;
    Ok(Quantized::half(done))
}

fn quantize_static(
    model: &mut Model,
    samples: &Samples,
    target: &Target,
    options: &Options,
    watch: Watch,
) -> Result<Quantized, Error> {
    let graph = &mut model.graph;
    let smoothed = if options.effort == Effort::Fast { Vec::new() } else { smooth(graph, samples)? };
    let program = Program::new(graph)?;
    let steps = AtomicUsize::new(0);
    let progress = || watch("calibrating", 1 + steps.fetch_add(1, Relaxed), samples.len());
    let calibration = calibrate(&program, &watched(graph), samples, &progress)?;
    drop(program);
    let seen = &calibration.seen;
    let mut choices = plan::choices(seen, options.calibrator);
    let candidates = Candidates::of(graph, target, &options.filter, seen);
    let noise = match options.effort {
        Effort::Fast => plan::noise(seen, &choices),
        Effort::Balanced | Effort::Best => {
            let (candidates, calibrator) = (&candidates.integer, options.calibrator);
            let subject = sensitivity::Subject { graph, candidates, seen, calibrator, target };
            subject.measure(&mut choices, samples, &|done, total| watch("measuring", done, total))?
        }
    };
    let placement = placement::place(graph, target, candidates, seen, &noise);
    let plan = Plan::solve(graph, placement, seen, &choices, options.calibrator, target)
        .map_err(|f| f.at("solving scales and zero points"))?;
    let mut quantized = Quantized::plan(graph, &plan, calibration.problem.as_ref());
    quantized.smoothed = smoothed;
    let reference = graph.clone();
    insert::insert(graph, &plan);
    quantized.store(weight_only::quantize_beside(graph, &options.filter).map_err(|f| f.at("weights"))?);
    if options.effort != Effort::Fast {
        let step = tune::attempt("rounding", &reference, graph, samples, |graph| {
            let progress = |done, total| watch("rounding", done, total);
            quantized.layers = reconstruct(&reference, graph, samples, target.saturating_pairs, &progress)?;
            Ok(())
        })?;
        quantized.steps.push(step);
    }
    Ok(quantized)
}

/// How close the outputs of the quantized graph are to those of the graph as it was read.
fn distances(
    original: &Graph,
    quantized: &Graph,
    samples: &Samples,
    watch: Watch,
) -> Result<Vec<Closeness>, Error> {
    let (a, b) = (Program::new(original)?, Program::new(quantized)?);
    let count = samples.len().min(COMPARED);
    let indices: Vec<usize> = (0..count).map(|i| i * samples.len() / count).collect();
    let steps = AtomicUsize::new(0);
    let progress = || watch("comparing", 1 + steps.fetch_add(1, Relaxed), count);
    let pair = Pair::new((&a, original), (&b, quantized))?;
    let rows = pair.run(samples, &indices, &progress, |outputs| Ok(closeness::of_sample(outputs)))?;
    Ok(closeness::total(&pair.names, &rows).into_iter().filter(|c| c.float).collect())
}
