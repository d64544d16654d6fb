//! What each quantized value and each weight alone does to the outputs, and which range of a value does least.
//!
//! A few samples are run once, all values kept. Then each value in turn is rounded to 8 bits and what depends on it is
//! computed again: half of the graph on average. The noise that arrives at the outputs is what the placement weighs
//! against time, so that an operator whose output is hard to represent *and* matters stays float.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::distance::{Distance, judged, mean_ratio};
use crate::calibrate::observer::Observers;
use crate::calibrate::read::Samples;
use crate::calibrate::threshold::{Calibrator, Choice, Grid};
use crate::error::Error;
use crate::interpret::Program;
use crate::interpret::trace::Trace;
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Rule, ValueId, limits};
use crate::kernels::requantize::fake_quantize_slice;
use crate::quantize::candidate::Candidate;
use crate::quantize::placement::Noise;
use crate::quantize::{Target, plan, weights};

/// At most this many samples are run.
const MOST: usize = 4;
/// Runs of the graph that may be spent for each calibration sample.
const RUNS_A_SAMPLE: f64 = 1.5;
/// Ranges that differ by less than this share are not worth telling apart.
const ALIKE: f32 = 0.02;
/// Another range must lower the noise to below this share.
const WORTHWHILE: f64 = 0.9;

/// The graph, what was seen of its values, and what may become integer.
pub struct Subject<'a> {
    /// The graph to be quantized.
    pub graph: &'a Graph,
    /// What could become integer.
    pub candidates: &'a BTreeMap<NodeId, Candidate>,
    /// Distributions of the values.
    pub seen: &'a Observers<ValueId>,
    /// How ranges are chosen; with `Auto`, several are tried.
    pub calibrator: Calibrator,
    /// The target.
    pub target: &'a Target,
}

/// What is left of a weight's noise when it is rounded for what it computes (see [`super::rounding`]).
const AFTER_ROUNDING: f64 = 0.25;

/// One thing to try.
enum Trial {
    /// The value, rounded.
    Value(ValueId, QuantParams, Option<Choice>),
    /// The weight of the node, which is this constant, rounded.
    Weight(NodeId, ValueId, Array),
}

impl Subject<'_> {
    /// Measures every candidate on a few samples. Where another range of a value serves the outputs better than the one
    /// in `choices`, it takes its place there.
    pub fn measure(
        &self,
        choices: &mut BTreeMap<ValueId, Choice>,
        samples: &Samples,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Noise, Error> {
        let mut trials = self.values(choices);
        trials.extend(self.weights(choices));
        let allowed = RUNS_A_SAMPLE * samples.len() as f64 / (trials.len() as f64 / 2.0).max(1.0);
        let count = (allowed as usize).clamp(1, MOST).min(samples.len());
        let noises = run(self.graph, &trials, samples, count, progress)?;
        let mut noise = Noise::default();
        for (trial, ratio) in trials.iter().zip(noises) {
            match trial {
                Trial::Weight(node, ..) => drop(noise.weights.insert(*node, ratio * AFTER_ROUNDING)),
                Trial::Value(id, _, choice) => {
                    let known = noise.values.get(id).copied();
                    if known.is_none_or(|known| ratio < known * WORTHWHILE) {
                        noise.values.insert(*id, ratio);
                        choices.extend(choice.map(|c| (*id, c)));
                    }
                }
            }
        }
        Ok(noise)
    }

    /// Every value that may get parameters of its own, with the ranges to try; the present one first.
    fn values(&self, choices: &BTreeMap<ValueId, Choice>) -> Vec<Trial> {
        let (mut values, mut moved, mut clamped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for c in self.candidates.values() {
            match c.rule {
                Rule::Clamp { .. } => clamped.extend(c.activations.iter().copied()),
                Rule::SameScale => moved.extend(c.outputs.iter().copied()),
                _ => values.extend(c.activations.iter().copied()),
            }
            values.extend(c.outputs.iter().copied());
        }
        let hidden = |v: &ValueId| clamped.contains(v) && self.graph.only_use(*v).is_some();
        let mut trials = Vec::new();
        for id in values.into_iter().filter(|v| !moved.contains(v) && !hidden(v)) {
            if let Some(params) = plan::fixed_range(self.graph, self.candidates, id) {
                trials.push(Trial::Value(id, params, None));
                continue;
            }
            let Some(&first) = choices.get(&id) else { continue };
            for choice in self.ranges(id, first) {
                let params = QuantParams::asymmetric(choice.range.lo, choice.range.hi, DType::U8);
                trials.push(Trial::Value(id, params, Some(choice)));
            }
        }
        trials
    }

    /// Ranges of a value that differ enough to be told apart, beginning with `first`.
    fn ranges(&self, id: ValueId, first: Choice) -> Vec<Choice> {
        let mut ranges = vec![first];
        if let (Calibrator::Auto, Some(observer)) = (self.calibrator, self.seen.get(id)) {
            for method in [Calibrator::MinMax, Calibrator::Percentile(99.999), Calibrator::Percentile(99.99)]
            {
                let other = method.choose(&observer.histogram, Grid::asymmetric(256));
                if !ranges.iter().any(|r| alike(r, &other)) {
                    ranges.push(other);
                }
            }
        }
        ranges
    }

    /// Every constant weight as the numbers that its integers stand for.
    fn weights(&self, choices: &BTreeMap<ValueId, Choice>) -> Vec<Trial> {
        let trial = |(&id, c): (&NodeId, &Candidate)| {
            let Rule::Contraction { weight, channel_axis, .. } = c.rule else { return None };
            let value = self.graph.input(id, weight)?;
            let array = self.graph.constant(value)?.array().ok()?;
            let range = choices.get(c.activations.first()?)?.range;
            let scale = QuantParams::asymmetric(range.lo, range.hi, DType::U8).scale;
            let axis = weights::scale_axis(&array, channel_axis);
            let constant = weights::weight_of(&array, axis, scale, &[], self.target.saturating_pairs).ok()?;
            Some(Trial::Weight(id, value, constant.dequantized().ok()?))
        };
        self.candidates.iter().filter_map(trial).collect()
    }
}

fn alike(a: &Choice, b: &Choice) -> bool {
    let width = (a.range.hi - a.range.lo).max(b.range.hi - b.range.lo);
    (a.range.hi - b.range.hi).abs() <= ALIKE * width && (a.range.lo - b.range.lo).abs() <= ALIKE * width
}

/// The noise over signal that each trial brings to the outputs, over `count` of the samples.
fn run(
    graph: &Graph,
    trials: &[Trial],
    samples: &Samples,
    count: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<f64>, Error> {
    let (program, judged) = (Program::new(graph)?, judged(graph));
    let mut totals = vec![vec![Distance::default(); judged.len()]; trials.len()];
    let done = AtomicUsize::new(0);
    for index in 0..count {
        let trace = program.trace(&samples.load(index * samples.len() / count)?)?;
        totals.par_iter_mut().zip(trials).try_for_each(|(total, trial)| {
            // A sample may not reach a value: then it says nothing about it.
            if let Some(change) = change(&program, &trace, trial) {
                let found = program.replay(&trace, &[change], &judged)?;
                for ((distance, &part), found) in total.iter_mut().zip(&judged).zip(&found) {
                    let wanted = program.traced(&trace, part);
                    wanted.iter().for_each(|w| distance.add(w, found.as_ref()));
                }
            }
            progress(1 + done.fetch_add(1, Ordering::Relaxed), trials.len() * count);
            Ok::<_, Error>(())
        })?;
    }
    Ok(totals.iter().map(|parts| mean_ratio(parts)).collect())
}

/// What the trial changes in this run.
fn change(program: &Program, trace: &Trace, trial: &Trial) -> Option<(ValueId, Array)> {
    let (id, params) = match trial {
        Trial::Weight(_, value, array) => return Some((*value, array.clone())),
        Trial::Value(id, params, _) => (*id, params),
    };
    let Array::F32(array) = program.traced(trace, id)? else { return None };
    let mut values = array.as_slice()?.to_vec();
    let (low, high) = limits(params.dtype)?;
    fake_quantize_slice(&mut values, params.scale, params.zero_point, low, high);
    Some((id, Array::new(array.shape(), values).ok()?))
}
