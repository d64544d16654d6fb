//! Tuning of what was inserted: biases, weights, and scales as well. Each step ends with a judgement on samples that took
//! no part in it, and is taken back if it did not help there.

use std::time::Instant;

use super::Watch;
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::ir::Graph;
use crate::quantize::Target;
use crate::report::Quantized;
use crate::train::features::features;
use crate::train::loss::Loss;
use crate::train::optimizer::{Method, Rates, Schedule};
use crate::train::student::Kind;
use crate::train::{Reach, Session, Settings, Share, Student, Watcher};
use crate::tune::goal::Exam;
use crate::tune::reconstruct::{Fit, held_out, reconstruct};
use crate::tune::{Judge, Step};

/// Learning rate of weights of one step, as a share of their root mean square: with more steps they move less.
const RATE: f64 = 2e-3;
/// Learning rate of scales.
const SCALE_RATE: f64 = 2e-4;
/// Times over the samples, and how many of them in a row may fail.
const EPOCHS: usize = 8;
const PATIENCE: usize = 2;
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
    /// What the result is for.
    pub target: &'a Target,
    /// A bound that must not break.
    pub exam: Option<&'a Exam<'a>>,
    /// Told how far it is.
    pub watch: Watch<'a>,
}

impl Refine<'_> {
    /// Biases alone, or weights and biases, layer by layer.
    pub fn layers(&self, fit: Fit, graph: &mut Graph, done: &mut Quantized) -> Result<(), Error> {
        let started = Instant::now();
        let (name, phase) = match fit {
            Fit::Biases => ("bias correction", "correcting"),
            Fit::Weights => ("rounding", "rounding"),
        };
        let progress = |step, steps| (self.watch)(phase, step, steps);
        let form = self.target.form();
        let (mut layers, changes) = reconstruct(self.reference, graph, self.samples, (form, fit), &progress)?;
        let before = self.exam.map(|_| graph.clone());
        let judge = Judge::on(self.reference, self.samples, &held_out(self.samples.len()))?;
        let (mut step, mut kept) = judge.advance(name, graph, &changes, started)?;
        if self.taken_back(graph, before)? {
            (step.kept, kept) = (false, 0);
        }
        layers.truncate(kept);
        if fit == Fit::Weights {
            done.layers = layers;
        }
        done.steps.push(step);
        Ok(())
    }

    /// Training by the float graph, each block for itself if there are places that everything passes through.
    pub fn train(&self, graph: &mut Graph, done: &mut Quantized) -> Result<(), Error> {
        let started = Instant::now();
        let student = self.student(graph)?;
        let judging = held_out(self.samples.len());
        let share = |indices: Vec<usize>| Share { samples: self.samples, indices, labels: None };
        let learning: Vec<usize> = (0..self.samples.len()).filter(|i| !judging.contains(i)).collect();
        let rates = Rates {
            weights: RATE / f64::from(self.target.weight_limit.max(1)),
            scales: SCALE_RATE,
            method: Method::Adam,
            schedule: Schedule::Cosine,
        };
        let blocks = !features(self.reference, &student.graph)?.is_empty();
        let settings = Settings {
            loss: Loss::Distill,
            features: FEATURES,
            reach: if blocks { Reach::Block } else { Reach::EndToEnd },
            recompute: false,
            epochs: EPOCHS,
            batch: BATCH,
            rates,
            freeze_after: None,
            patience: PATIENCE,
            seed: 0,
            checkpoint: None,
        };
        let can_learn = !learning.is_empty();
        let session = Session {
            student: &student,
            teacher: self.reference,
            training: share(learning),
            held_out: share(judging.clone()),
            settings: &settings,
            fingerprint: String::new(),
        };
        if !can_learn || !session.can_learn()? {
            return Ok(());
        }
        let watcher = Watcher { batch: &|step, of| (self.watch)("training", step, of), epoch: &|_, _, _| {} };
        let trained = student.export(&session.run(&watcher)?.state.kept)?;
        let judge = Judge::on(self.reference, self.samples, &judging)?;
        let noise = (judge.noise(graph)?, judge.noise(&trained)?);
        let mut kept = noise.1 < noise.0;
        if kept {
            let before = std::mem::replace(graph, trained);
            kept = !self.taken_back(graph, self.exam.map(|_| before))?;
        }
        let reached = if kept { noise } else { (noise.0, noise.0) };
        done.steps.push(Step::new("block training", reached, kept, started));
        Ok(())
    }

    /// The student that keeps to the form of the target's weights.
    fn student(&self, graph: &Graph) -> Result<Student, Error> {
        let mut student = Student::new(graph, self.reference)?;
        let form = self.target.form();
        for index in 0..student.quantizers.len() {
            let signed = student.quantizers[index].fake.low < 0;
            if !signed || !matches!(student.quantizers[index].kind, Kind::Weight { .. }) {
                continue;
            }
            student.limit(index, -form.limit, form.limit);
            if form.pairs && 2 * form.limit > crate::quantize::weights::pairs::LIMIT {
                student.keep_pairs(index);
            }
        }
        Ok(student)
    }

    /// Takes a change back if it broke the bound, and tells whether it did.
    fn taken_back(&self, graph: &mut Graph, before: Option<Graph>) -> Result<bool, Error> {
        match (self.exam, before) {
            (Some(exam), Some(before)) => exam.restore(graph, before),
            _ => Ok(false),
        }
    }
}
