//! Tuning of what was inserted: integer weights by rounding, what is no integer weight by training as well. Each step ends
//! with a judgement on samples that took no part in it, and is taken back if it did not help there.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Watch;
use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::ir::{Graph, NodeId};
use crate::options::Tuning;
use crate::quantize::{Plan, Target};
use crate::report::Quantized;
use crate::train::features::features;
use crate::train::loss::Loss;
use crate::train::optimizer::{Method, Rates, Schedule};
use crate::train::{Reach, Session, Settings, Share, Student, Watcher};
use crate::tune::goal::Exam;
use crate::tune::reconstruct::{Fit, Reconstruction, reconstruct};
use crate::tune::shares::{Budget, Shares};
use crate::tune::{Judge, Step};

/// Learning rate of biases for weights of one step, as a share of their root mean square: with more steps they move less.
const RATE: f64 = 7e-3;
/// Learning rate of scales of activations.
const SCALE_RATE: f64 = 2e-4;
/// Times over the samples, and how many of them in a row may fail.
const EPOCHS: usize = 8;
const PATIENCE: usize = 3;
/// Samples a step.
const BATCH: usize = 16;
/// How much values inside the network count.
const FEATURES: f64 = 16.0;

/// What tuning works with.
pub struct Refine<'a> {
    /// The float graph that was quantized.
    pub reference: &'a Graph,
    /// Calibration samples.
    pub samples: &'a Samples,
    /// What they are for.
    pub shares: &'a Shares,
    /// How many of them.
    pub budget: Budget,
    /// Judges what was learned, on samples that were not.
    pub judge: &'a Judge<'a>,
    /// What the result is for.
    pub target: &'a Target,
    /// A bound that must not break.
    pub exam: Option<&'a Exam<'a>>,
    /// Told how far it is.
    pub watch: Watch<'a>,
}

impl Refine<'_> {
    /// The steps that fit layers one by one.
    pub fn fit(
        &self,
        steps: &BTreeSet<Tuning>,
        plan: &Plan,
        graph: &mut Graph,
        done: &mut Quantized,
    ) -> Result<(), Error> {
        for (step, fit) in [(Tuning::BiasCorrection, Fit::Biases), (Tuning::Rounding, Fit::Weights)] {
            if steps.contains(&step) {
                self.layers(fit, plan, graph, done)?;
            }
        }
        Ok(())
    }

    /// Biases alone, or weights and biases, layer by layer.
    fn layers(&self, fit: Fit, plan: &Plan, graph: &mut Graph, done: &mut Quantized) -> Result<(), Error> {
        let started = Instant::now();
        let (name, phase) = match fit {
            Fit::Biases => ("bias correction", "correcting"),
            Fit::Weights => ("rounding", "rounding"),
        };
        let progress = |step, steps| (self.watch)(phase, step, steps);
        let form = |id: NodeId| plan.form(self.target, id);
        let samples = (self.samples, self.shares, self.budget);
        let Reconstruction { gains: mut layers, changes } =
            reconstruct(self.reference, graph, samples, (&form, fit), &progress)?;
        let before = self.exam.map(|_| graph.clone());
        let (mut step, mut kept) = self.judge.advance(name, graph, &changes, started)?;
        if taken_back(self.exam, graph, before)? {
            (step.kept, kept) = (false, 0);
        }
        layers.truncate(kept);
        if fit == Fit::Weights {
            done.layers = layers;
        }
        done.steps.push(step);
        Ok(())
    }

    /// Training by the float graph, each block for itself if there are places that everything passes through. What stands
    /// in its way is told; the model is then as before.
    pub fn train(&self, graph: &mut Graph, done: &mut Quantized) -> Result<(), Error> {
        let started = Instant::now();
        let trained = match self.trained(graph) {
            Ok(trained) => trained,
            Err(error) => {
                done.warnings.push(format!("block training was left out: {error}"));
                return Ok(());
            }
        };
        let noise = (self.judge.noise(graph)?, self.judge.noise(&trained)?);
        let mut kept = noise.1 < noise.0;
        if kept {
            let before = std::mem::replace(graph, trained);
            kept = !taken_back(self.exam, graph, self.exam.map(|_| before))?;
        }
        let reached = if kept { noise } else { (noise.0, noise.0) };
        done.steps.push(Step::new("block training", reached, kept, started));
        Ok(())
    }

    /// The graph of the best epoch.
    fn trained(&self, graph: &Graph) -> Result<Graph, Error> {
        let Shares { learning, judging } = self.shares;
        if learning.is_empty() {
            let fault =
                Fault::new(format!("{} samples are too few to learn from and to judge by", judging.len()));
            return Err(fault.at("--calib"));
        }
        let mut student = Student::new(graph, self.reference)?;
        // Rounding has chosen weights for what they compute; steps of so few samples would only spoil that.
        student.keep_weights();
        let blocks = !features(self.reference, &student.graph)?.is_empty();
        let share = |indices: Vec<usize>| Share { samples: self.samples, indices, labels: None };
        let settings = Settings {
            loss: Loss::Mse,
            features: FEATURES,
            reach: if blocks { Reach::Block } else { Reach::EndToEnd },
            recompute: false,
            epochs: EPOCHS,
            batch: BATCH,
            rates: Rates {
                weights: RATE / f64::from(self.target.weight_limit),
                scales: SCALE_RATE,
                method: Method::Adam,
                schedule: Schedule::Cosine,
            },
            freeze_after: None,
            patience: PATIENCE,
            seed: 0,
            checkpoint: None,
        };
        let session = Session {
            student: &student,
            teacher: self.reference,
            training: share(learning.clone()),
            held_out: share(judging.clone()),
            settings: &settings,
            fingerprint: String::new(),
        };
        let watcher = Watcher { batch: &|step, of| (self.watch)("training", step, of), epoch: &|_, _, _| {} };
        student.export(&session.run(&watcher)?.state.kept)
    }
}

/// Takes a change back if it broke the bound, and tells whether it did.
pub fn taken_back(exam: Option<&Exam>, graph: &mut Graph, before: Option<Graph>) -> Result<bool, Error> {
    match (exam, before) {
        (Some(exam), Some(before)) => exam.restore(graph, before),
        _ => Ok(false),
    }
}
