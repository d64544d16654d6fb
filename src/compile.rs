//! The main job, from file to file: the picture in the crate's documentation as one function.

use std::path::Path;
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
use crate::quantize::candidate::{Candidates, watched};
use crate::quantize::{Plan, Target, insert, placement, plan, weight_only};
use crate::report::{Quantized, Report};
use crate::tune::reconstruct::reconstruct;
use crate::tune::{self, sensitivity};

/// Told what is going on: a phase, and how many of how many steps are done. Called from several threads.
pub type Watch<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// Samples used to compare the result with the original.
const COMPARED: usize = 16;

/// Compiles the model in `input` and writes the result to `output`, which is replaced whole or left as it was.
pub fn compile(input: &Path, output: &Path, options: &Options, watch: Watch) -> Result<Report, Error> {
    let started = Instant::now();
    let source = onnx::read_valid(input)?;
    let mode = match (options.mode, &options.calib) {
        (Mode::Auto, Some(_)) => Mode::Static,
        (Mode::Auto, None) => Mode::WeightOnly,
        (mode, _) => mode,
    };
    let mut report = Report::new(input, &source, options, mode);
    let mut model = source.model;
    if mode != Mode::None {
        let original = model.graph.clone();
        let target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
        passes::upgrade(&mut model, target.opset)?;
        let log = passes::run(&mut model, options.stop_after)?;
        passes::check(&model, "the passes")?;
        report.passes(log);
        let quantized = match mode {
            Mode::Static => {
                let samples = open_samples(&original, options)?;
                report.samples(&samples);
                let quantized = quantize_static(&mut model, &samples, &target, options, watch)?;
                let compared = distances(&original, &model.graph, &samples, watch)?;
                report.samples_warnings(&samples);
                report.outputs(compared)?;
                quantized
            }
            _ => {
                let (done, float) = weight_only::quantize(&mut model.graph, &options.filter)
                    .map_err(|f| f.at("weight quantization"))?;
                Quantized::weights(&model.graph, &done, &float)
            }
        };
        report.quantized(quantized);
        passes::infer(&mut model.graph);
        passes::check(&model, "quantization")?;
        report.sign(&mut model);
    }
    let bytes = onnx::encode(&model)?;
    report.size_after = bytes.len();
    report.seconds = started.elapsed().as_secs_f64();
    onnx::write_atomically(output, &bytes)?;
    Ok(report)
}

fn open_samples(graph: &Graph, options: &Options) -> Result<Samples, Error> {
    let Some(path) = &options.calib else {
        let fault = Fault::new("static quantization needs samples").hint("give a directory with --calib");
        return Err(fault.at("--mode static"));
    };
    let inputs = read::open_inputs(graph).map_err(|f| f.at("--calib"))?;
    let mut samples = read::open(path, &inputs, options.recipe.as_ref())?;
    if let Some(limit) = options.samples {
        samples.truncate(limit);
    }
    Ok(samples)
}

fn quantize_static(
    model: &mut Model,
    samples: &Samples,
    target: &Target,
    options: &Options,
    watch: Watch,
) -> Result<Quantized, Error> {
    let graph = &mut model.graph;
    let program = Program::new(graph)?;
    let steps = std::sync::atomic::AtomicUsize::new(0);
    let progress =
        || watch("calibrating", 1 + steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed), samples.len());
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
    let reference = graph.clone();
    insert::insert(graph, &plan);
    if options.effort != Effort::Fast {
        quantized.steps.push(tune::attempt("rounding", &reference, graph, samples, |graph| {
            let progress = |done, total| watch("rounding", done, total);
            reconstruct(&reference, graph, samples, target.saturating_pairs, &progress).map(drop)
        })?);
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
    let steps = std::sync::atomic::AtomicUsize::new(0);
    let progress = || watch("comparing", 1 + steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed), count);
    let pair = Pair::new((&a, original), (&b, quantized))?;
    let rows = pair.run(samples, &indices, &progress, |outputs| Ok(closeness::of_sample(outputs)))?;
    Ok(closeness::total(&pair.names, &rows).into_iter().filter(|c| c.float).collect())
}
