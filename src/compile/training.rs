//! The training job, from file to file: post-training quantization, then training, then the same ending as compile.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::job::Job;
use super::{Watch, distances, labels, open_samples};
use crate::calibrate::read::{self, Samples};
use crate::calibrate::run::calibrate;
use crate::compare::accuracy::read_labels;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Graph, Model};
use crate::options::{Mode, Options};
use crate::quantize::Target;
use crate::quantize::candidate::watched;
use crate::report::Report;
use crate::report::provenance::Provenance;
use crate::train::{Epoch, Outcome, Session, Settings, Share, Student, Training, Watcher};
use crate::{onnx, passes};

/// One sample in so many is held out if there are no others to judge by.
const HELD_OUT: usize = 5;

/// What the user chooses for training; samples and target are in [`Options`].
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// The numbers of the session.
    pub settings: Settings,
    /// Labels of the samples.
    pub labels: Option<PathBuf>,
    /// Samples to judge by.
    pub validation: Option<PathBuf>,
    /// Labels of those.
    pub validation_labels: Option<PathBuf>,
    /// Bits of weights, 2 to 8.
    pub weight_bits: u32,
    /// Bits of activations, 2 to 8.
    pub activation_bits: u32,
    /// One scale for each weight, not one for each of its channels.
    pub per_tensor: bool,
}

/// Trains a quantized form of the model in `input` and writes it to `output`, which is replaced whole or left as it was.
/// `told` hears of every epoch, first of the starting point as epoch 0.
pub fn train(
    input: &Path,
    output: &Path,
    options: &Options,
    training: &TrainOptions,
    watch: Watch,
    told: &dyn Fn(usize, &Epoch, bool),
) -> Result<Report, Error> {
    let started = Instant::now();
    let start = post_training(input, options, watch)?;
    let Start { mut report, mut provenance, original, reference, mut model, samples } = start;
    let student = student(&model.graph, &reference, &samples, options, training)?;
    let validation = match &training.validation {
        None => None,
        Some(path) => {
            let inputs = read::open_inputs(&original).map_err(|f| f.at("--validation"))?;
            Some(read::open(path, &inputs, options.recipe.as_ref())?)
        }
    };
    let (learning, held_out) = shares(&samples, validation.as_ref(), training)?;
    provenance.add(&decisive(validation.as_ref(), training)?);
    let counts = (learning.indices.len(), held_out.indices.len());
    let session = Session {
        student: &student,
        teacher: &reference,
        training: learning,
        held_out,
        settings: &training.settings,
        fingerprint: provenance.digest(),
    };
    let watcher = Watcher { batch: &|done, total| watch("training", done, total), epoch: told };
    let Outcome { state, speed, stopped } = session.run(&watcher)?;
    report.warnings.extend(stopped.iter().map(|place| format!("no gradient goes through {place}")));
    let written = state.best.unwrap_or(0);
    model.graph = student.export(&state.kept)?;
    if written == 0 {
        let text = "no epoch was better on the held-out samples: the starting point was written";
        report.warnings.push(text.into());
    }
    report.training = Some(Training { epochs: state.epochs, written, samples: counts, speed });
    report.draw(&model.graph);
    let compared = distances(&original, &model.graph, &samples, watch)?;
    report.samples_warnings(&samples);
    report.outputs(compared)?;
    passes::finish(&mut model, "training")?;
    report.sign(&mut model, &provenance);
    report.size_after = onnx::write(output, &model, options.payloads())?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Post-training quantization alone: reads a model, runs the passes, and returns it as it was read, before and after
/// quantization.
fn post_training(input: &Path, options: &Options, watch: Watch) -> Result<Start, Error> {
    let source = onnx::read_inlined(input)?;
    let mut report = Report::new(input, &source, options, Mode::Static);
    let Some(samples) = open_samples(&source.model.graph, options, Mode::Static)? else {
        return Err(Fault::new("there are no samples").at("--data"));
    };
    let provenance = Provenance::of(input, &source, Some(&samples), options, report.mode)?;
    report.files.clone_from(&provenance.files);
    let mut model = source.model;
    let original = model.graph.clone();
    let mut target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    // What is trained is the scale of a QuantizeLinear and its DequantizeLinear at once.
    target.rescaling = false;
    target.noise_weight *= options.budget.dearer;
    passes::upgrade(&mut model, target.opset)?;
    report.passes(passes::run(&mut model, options.stop_after)?);
    passes::check(&model, "the passes")?;
    report.samples(&samples);
    let job = Job::new(Some(&samples), &target, options, watch);
    let (quantized, reference) = job.integers(&mut model.graph)?;
    report.quantized(quantized);
    Ok(Start { report, provenance, original, reference, model, samples })
}

/// A quantized model and what it was made from.
struct Start {
    report: Report,
    provenance: Provenance,
    /// The graph as it was read.
    original: Graph,
    /// The float graph whose weights became integers.
    reference: Graph,
    /// The model with the quantized graph.
    model: Model,
    samples: Samples,
}

/// The student that training starts from.
fn student(
    quantized: &Graph,
    reference: &Graph,
    samples: &Samples,
    options: &Options,
    training: &TrainOptions,
) -> Result<Student, Error> {
    let mut student = Student::new(quantized, reference)?;
    let target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    if training.per_tensor {
        student.join_channels();
    }
    if training.weight_bits < 8 || training.per_tensor {
        student.narrow_weights(training.weight_bits).map_err(|f| f.at("--bits"))?;
    }
    if training.weight_bits == 8 {
        student.keep_to(target.form()).map_err(|f| f.at("--target"))?;
    }
    if training.activation_bits < 8 {
        let calibration = calibrate(&Program::new(reference)?, &watched(reference), samples, &|| {})?;
        let narrowed = student.narrow_activations_to(training.activation_bits, reference, &calibration.seen);
        narrowed.map_err(|f| f.at("--activation-bits"))?;
    }
    Ok(student)
}

/// Which samples are learned from, and which judge.
fn shares<'a>(
    samples: &'a Samples,
    validation: Option<&'a Samples>,
    training: &TrainOptions,
) -> Result<(Share<'a>, Share<'a>), Error> {
    let own = training.labels.as_ref().map(|path| labels(path, samples)).transpose()?;
    let theirs = match (&training.validation_labels, validation) {
        (Some(path), Some(samples)) => Some(labels(path, samples)?),
        _ => None,
    };
    let share = |samples: &'a Samples, indices: Vec<usize>, labels: &Option<Vec<Vec<usize>>>| Share {
        samples,
        labels: labels.as_ref().map(|all| indices.iter().map(|&i| all[i].clone()).collect()),
        indices,
    };
    if let Some(validation) = validation {
        let judging = share(validation, (0..validation.len()).collect(), &theirs);
        return Ok((share(samples, (0..samples.len()).collect(), &own), judging));
    }
    if samples.len() < 2 {
        let fault = Fault::new("one sample is not enough to learn from and to judge by");
        return Err(fault.hint("give more samples, or some with --validation").at("--data"));
    }
    let every = HELD_OUT.min(samples.len());
    let (judging, learning) = (0..samples.len()).partition(|i| i % every == every - 1);
    Ok((share(samples, learning, &own), share(samples, judging, &own)))
}

/// What decides the result besides that of quantization after training, so that a checkpoint of another run is not taken
/// for one of this.
fn decisive(validation: Option<&Samples>, training: &TrainOptions) -> Result<String, Error> {
    let classes = |path: &Option<PathBuf>| path.as_ref().map(|path| read_labels(path)).transpose();
    let labels = [classes(&training.labels)?, classes(&training.validation_labels)?];
    let validation = validation.map(Samples::digest).transpose()?;
    let settings = Settings { checkpoint: None, recompute: false, ..training.settings.clone() };
    let bits = (training.weight_bits, training.activation_bits, training.per_tensor);
    Ok(format!("{settings:?} {bits:?} {labels:?} {validation:?}"))
}
