//! What each quantized value and each weight alone does to the outputs, with each range that it could have.
//!
//! A few samples are run once, all values kept. Then each value in turn is rounded to 8 bits and what depends on it is
//! computed again: half of the graph on average. The noise that arrives at the outputs is what the placement weighs
//! against time, so that an operator whose output is hard to represent *and* matters stays float.
//!
//! Most of the noise comes from few values, and small changes of all the others can be followed together by gradients
//! (`probes`). So where there is much to try, gradients tell first what is loud, and only that is computed again.

mod probes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use self::probes::{Estimate, Probes};
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

/// At least and at most this many samples are run.
const LEAST: usize = 2;
const MOST: usize = 4;
/// Runs of the graph that may be spent for each calibration sample.
const RUNS_A_SAMPLE: f64 = 1.5;
/// With more trials than this, gradients say first which are worth a run.
const FEW: usize = 300;
/// The share of the trials that are run then, the loudest.
const LOUD: f64 = 0.25;
/// What costs less than this, as a share of the float time, is not worth a run.
const CHEAP: f64 = 1e-3;
/// A change by more than this share of a value's mean deviation is not small: gradients do not tell what it does.
const SMALL: f64 = 0.1;
/// Ranges that differ by less than this share are not worth telling apart.
const ALIKE: f32 = 0.02;

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
    /// Try everything, however quiet gradients say that it is.
    pub exact: bool,
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

/// The noise that each trial brings to the outputs, over signal.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Of each value, with each range that was tried; the widest first.
    values: BTreeMap<ValueId, Vec<(Option<Choice>, f64)>>,
    /// Of the weight of each node, rounded to the nearest integers.
    weights: BTreeMap<NodeId, f64>,
}

impl Measured {
    /// The noise of each value with its widest range.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, f64)> {
        self.values.iter().filter_map(|(&id, tried)| Some((id, tried.first()?.1)))
    }

    /// The noise of the weight of each node.
    pub fn weights(&self) -> impl Iterator<Item = (NodeId, f64)> {
        self.weights.iter().map(|(&id, &ratio)| (id, ratio))
    }

    /// The range of each value and its noise: the widest, unless another has less noise than this share of it. With 0 no
    /// value is clipped.
    pub fn pick(&self, share: f64) -> (BTreeMap<ValueId, Choice>, Noise) {
        let mut choices = BTreeMap::new();
        let weights = self.weights().map(|(id, ratio)| (id, ratio * AFTER_ROUNDING)).collect();
        let mut noise = Noise { weights, ..Noise::default() };
        for (&id, tried) in &self.values {
            let better =
                |a: (Option<Choice>, f64), b: (Option<Choice>, f64)| if b.1 < a.1 * share { b } else { a };
            if let Some((choice, ratio)) = tried.iter().copied().reduce(better) {
                noise.values.insert(id, ratio);
                choices.extend(choice.map(|c| (id, c)));
            }
        }
        (choices, noise)
    }
}

impl Subject<'_> {
    /// Measures every candidate on a few samples. `choices` are the ranges that suit each value by itself.
    pub fn measure(
        &self,
        choices: &BTreeMap<ValueId, Choice>,
        samples: &Samples,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Measured, Error> {
        let mut trials = self.values(choices);
        trials.extend(self.weights(choices));
        let allowed = RUNS_A_SAMPLE * samples.len() as f64 / (trials.len() as f64 / 2.0).max(1.0);
        let picked = self.picked((allowed as usize).clamp(LEAST, MOST), samples.len());
        let ratios = self.ratios(&trials, samples, &picked, progress)?;
        let mut measured = Measured::default();
        for (trial, ratio) in trials.iter().zip(ratios) {
            match trial {
                Trial::Weight(node, ..) => drop(measured.weights.insert(*node, ratio)),
                Trial::Value(id, _, choice) => measured.values.entry(*id).or_default().push((*choice, ratio)),
            }
        }
        Ok(measured)
    }

    /// The noise over signal that each trial brings to the outputs, over the samples of these indices.
    fn ratios(
        &self,
        trials: &[Trial],
        samples: &Samples,
        picked: &[usize],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<f64>, Error> {
        let (program, judged) = (Program::new(self.graph)?, judged(self.graph));
        let values: Vec<ValueId> = judged.iter().map(|part| part.value).collect();
        let all = trials.len() * picked.len();
        progress(0, all);
        let mut estimates = Vec::new();
        let mut run = vec![true; trials.len()];
        if !self.exact && trials.len() > FEW {
            let probes = Probes { graph: self.graph, program: &program, judged: &judged, trials };
            // An operator may know no gradient for these types: then every trial is run.
            if let Ok(found) = probes.estimate(samples, picked) {
                run = loud(trials, &found, self.target.noise_weight);
                estimates = found;
            }
        }
        let mut totals = vec![vec![Distance::default(); judged.len()]; trials.len()];
        let done = AtomicUsize::new(run.iter().filter(|run| !**run).count() * picked.len());
        for &index in picked {
            let trace = program.trace(&samples.load(index)?)?;
            let tried = totals.par_iter_mut().zip(trials).zip(&run).filter(|(_, run)| **run);
            tried.try_for_each(|((total, trial), _)| {
                // A sample may not reach a value: then it says nothing about it.
                if let Some(change) = change(&program, &trace, trial) {
                    let found = program.replay(&trace, &[change], &values)?;
                    for ((distance, part), found) in total.iter_mut().zip(&judged).zip(&found) {
                        let wanted = program.traced(&trace, part.value);
                        wanted.iter().for_each(|w| distance.add(part, w, found.as_ref()));
                    }
                }
                progress(1 + done.fetch_add(1, Ordering::Relaxed), all);
                Ok::<_, Error>(())
            })?;
        }
        let told = |index: usize| estimates.get(index)?.as_ref().filter(|_| !run[index]).map(|e| e.ratio);
        let ratio = |(index, parts): (usize, &Vec<_>)| told(index).unwrap_or_else(|| mean_ratio(parts));
        Ok(totals.iter().enumerate().map(ratio).collect())
    }

    /// Which samples to run: half of them those in which the outputs are highest, for there the detector detects and the
    /// classifier is sure, and clipping would show; the others evenly over all.
    fn picked(&self, count: usize, samples: usize) -> Vec<usize> {
        let highest = judged(self.graph).into_iter().rev();
        let highest = highest.filter_map(|part| self.seen.get(part.value)?.highest).map(|(_, index)| index);
        let mut picked: Vec<usize> = Vec::new();
        let mut take = |index: usize, most: usize| {
            if picked.len() < most && index < samples && !picked.contains(&index) {
                picked.push(index);
            }
        };
        highest.for_each(|index| take(index, count / 2));
        (0..count).for_each(|i| take(i * samples / count, count));
        picked
    }

    /// Every value that may get parameters of its own, with the ranges to try.
    fn values(&self, choices: &BTreeMap<ValueId, Choice>) -> Vec<Trial> {
        let (mut values, mut moved, mut clamped) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for c in self.candidates.values() {
            match c.rule {
                Rule::Clamp { .. } => clamped.extend(c.activations.iter().copied()),
                Rule::SameScale | Rule::Rescale { .. } => moved.extend(c.outputs.iter().copied()),
                _ => {}
            }
            values.extend(c.activations.iter().copied());
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

    /// Ranges of a value that differ enough to be told apart, the widest first; `own` suits the value by itself.
    fn ranges(&self, id: ValueId, own: Choice) -> Vec<Choice> {
        let (Calibrator::Auto, Some(observer)) = (self.calibrator, self.seen.get(id)) else {
            return vec![own];
        };
        let methods = [Calibrator::MinMax, Calibrator::Percentile(99.999), Calibrator::Percentile(99.99)];
        let choose = |m: Calibrator| m.choose(&observer.histogram, Grid::asymmetric(256));
        let mut ranges: Vec<Choice> = Vec::new();
        for choice in methods.into_iter().map(choose).chain([own]) {
            if !ranges.iter().any(|r| alike(r, &choice)) {
                ranges.push(choice);
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
            let constant = weights::weight_of(&array, channel_axis, scale, &[], self.target.form()).ok()?;
            Some(Trial::Weight(id, value, constant.dequantized().ok()?))
        };
        self.candidates.iter().filter_map(trial).collect()
    }
}

/// Which trials must be run: those of the loudest values and weights, and those of which gradients do not tell enough. All
/// of a value's are, if one of them is.
fn loud(trials: &[Trial], estimates: &[Option<Estimate>], noise_weight: f64) -> Vec<bool> {
    let mut units: BTreeMap<_, (f64, Vec<usize>)> = BTreeMap::new();
    for (index, (trial, estimate)) in trials.iter().zip(estimates).enumerate() {
        let unit = match trial {
            Trial::Value(id, ..) => (*id, None),
            Trial::Weight(node, value, _) => (*value, Some(*node)),
        };
        let told = estimate.as_ref().filter(|e| e.own <= SMALL && e.ratio.is_finite());
        let (loudness, members) = units.entry(unit).or_default();
        *loudness = loudness.max(told.map_or(f64::INFINITY, |e| e.ratio));
        members.push(index);
    }
    let mut units: Vec<_> = units.into_values().collect();
    units.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut run, mut count) = (vec![false; trials.len()], 0.0);
    for (loudness, members) in units {
        let matters = noise_weight * loudness > CHEAP && count < LOUD * trials.len() as f64;
        if loudness.is_infinite() || matters {
            count += members.len() as f64;
            members.into_iter().for_each(|index| run[index] = true);
        }
    }
    run
}

fn alike(a: &Choice, b: &Choice) -> bool {
    let width = (a.range.hi - a.range.lo).max(b.range.hi - b.range.lo);
    (a.range.hi - b.range.hi).abs() <= ALIKE * width && (a.range.lo - b.range.lo).abs() <= ALIKE * width
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    #[test]
    fn the_loudest_quarter_is_run_and_what_gradients_do_not_tell() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[3] a, float[3] b, float[3] c, float[3] d) => (float[3] y) { y = Sum (a, b, c, d) }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let params = QuantParams::asymmetric(-1.0, 1.0, DType::U8);
        // Two trials of each value: it is run with both ranges or with none.
        let trials: Vec<Trial> =
            graph.inputs.iter().flat_map(|&v| [(); 2].map(|()| Trial::Value(v, params, None))).collect();
        let told = |ratio, own| Some(Estimate { ratio, own });
        let quiet = told(1e-9, 0.01);
        let run = |estimates: [Option<Estimate>; 8]| loud(&trials, &estimates, 20.0);
        let both = |of: [bool; 4]| of.into_iter().flat_map(|x| [x, x]).collect::<Vec<bool>>();
        let loudest =
            [told(1e-3, 0.01), told(1e-3, 0.01), quiet, told(1e-2, 0.01), quiet, quiet, quiet, quiet];
        assert_eq!(run(loudest), both([false, true, false, false]));
        assert_eq!(run([quiet; 8]), [false; 8]);
        let untold = [quiet, quiet, None, quiet, told(1e-9, 0.2), quiet, told(f64::NAN, 0.0), quiet];
        assert_eq!(run(untold), both([false, true, true, true]));
    }
}
