//! What each quantized value and each weight alone does to the outputs, with each range that it could have.
//!
//! The noise that arrives at the outputs is what the placement weighs against time, so that an operator whose output is
//! hard to represent *and* matters stays float. Small changes of all values together are followed by gradients
//! (`probes`), over many samples. What changes more than that is tried: a few samples are run, all values kept, then the
//! value is rounded to 8 bits and what depends on it is computed again, half of the graph on average.

mod probes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use self::probes::{Estimate, Probes};
use super::Judge;
use super::distance::{Distance, judged, mean_ratio};
use crate::budget;
use crate::calibrate::observer::Observers;
use crate::calibrate::threshold::{Calibrator, Choice, Grid};
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::interpret::trace::Trace;
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Rule, ValueId, limits};
use crate::kernels::requantize::fake_quantize_slice;
use crate::quantize::candidate::Candidate;
use crate::quantize::placement::Noise;
use crate::quantize::{Target, plan, types, weights};

/// At least and at most this many samples are run for trials.
const LEAST: usize = 2;
const MOST: usize = 4;
/// Runs of the graph that trials may take for each calibration sample.
const RUNS_A_SAMPLE: f64 = 0.5;
/// A change by more than this share of a value's mean deviation is not small: gradients do not tell what it does.
const SMALL: f64 = 0.3;
/// Nor is one that brings more than this noise over signal to the outputs.
const LOUD: f64 = 0.01;
/// What brings more than so many times the noise of another is worse, however roughly gradients tell.
const CLEARLY: f64 = 4.0;
/// At most so many bytes of values of several samples are kept at a time.
const KEPT: u64 = 512 << 20;
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
    /// What the outputs should be, and the samples.
    pub judge: &'a Judge<'a>,
    /// Weights as far as they are quantized.
    pub weights: &'a weights::Memo,
    /// Over at most so many samples gradients are followed.
    pub followed: usize,
    /// Try everything, whatever gradients say.
    pub exact: bool,
}

/// What is left of a weight's noise when it is rounded for what it computes (see [`super::rounding`]).
const WEIGHT_AFTER_ROUNDING: f64 = 0.25;

/// One thing to try.
enum Trial {
    /// The value, rounded.
    Value(ValueId, QuantParams, Option<Choice>),
    /// The weight of the node, which is this constant, rounded.
    Weight(NodeId, ValueId, Array),
}

impl Trial {
    /// What trials that are to be compared have in common: the value, or the node and its weight.
    fn unit(&self) -> (ValueId, Option<NodeId>) {
        match self {
            Self::Value(id, ..) => (*id, None),
            Self::Weight(node, value, _) => (*value, Some(*node)),
        }
    }
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
        let weights = self.weights().map(|(id, ratio)| (id, ratio * WEIGHT_AFTER_ROUNDING)).collect();
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
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Measured, Error> {
        let mut trials = self.values(choices);
        trials.extend(self.weights(choices));
        let ratios = self.ratios(&trials, progress)?;
        let mut measured = Measured::default();
        for (trial, ratio) in trials.iter().zip(ratios) {
            match trial {
                Trial::Weight(node, ..) => drop(measured.weights.insert(*node, ratio)),
                Trial::Value(id, _, choice) => measured.values.entry(*id).or_default().push((*choice, ratio)),
            }
        }
        Ok(measured)
    }

    /// The noise over signal that each trial brings to the outputs.
    fn ratios(&self, trials: &[Trial], progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Vec<f64>, Error> {
        let (program, judged) = (Program::new(self.graph)?, judged(self.graph));
        let values: Vec<ValueId> = judged.iter().map(|part| part.value).collect();
        progress(0, trials.len());
        let mut told = Vec::new();
        let samples = self.judge.samples;
        let abreast = self.abreast(&program)?;
        if !self.exact {
            let probes = Probes { graph: self.graph, program: &program, judged: &judged, trials, abreast };
            let picked = self.picked(self.followed, samples.len());
            // An operator may know no gradient for these types: then every trial is run.
            told = probes.estimate((samples, &picked), &self.judge.powers()).unwrap_or_default();
        }
        let run = untold(trials, &told);
        let loud: Vec<usize> = (0..trials.len()).filter(|&index| run[index]).collect();
        let allowed = RUNS_A_SAMPLE * samples.len() as f64 / (loud.len() as f64 / 2.0).max(1.0);
        let picked = self.picked((allowed as usize).clamp(LEAST, MOST), samples.len());
        let all = trials.len() * picked.len();
        let mut totals = vec![vec![Distance::default(); judged.len()]; trials.len()];
        let done = AtomicUsize::new((trials.len() - loud.len()) * picked.len());
        for some in picked.chunks(abreast).filter(|_| !loud.is_empty()) {
            let traces = some.par_iter().map(|&index| program.trace(&samples.load(index)?));
            let traces = traces.collect::<Result<Vec<_>, Error>>()?;
            let tasks: Vec<_> =
                traces.iter().flat_map(|trace| loud.iter().map(move |&i| (trace, i))).collect();
            let replay = |&(trace, index): &(_, usize)| {
                go_on()?;
                let mut distances = vec![Distance::default(); judged.len()];
                // A sample may not reach a value: then it says nothing about it.
                if let Some(change) = change(&program, trace, &trials[index]) {
                    let found = program.replay(trace, &[change], &values)?;
                    for ((distance, part), found) in distances.iter_mut().zip(&judged).zip(&found) {
                        let wanted = program.traced(trace, part.value);
                        wanted.iter().for_each(|w| distance.add(part, w, found.as_ref()));
                    }
                }
                progress(1 + done.fetch_add(1, Ordering::Relaxed), all);
                Ok((index, distances))
            };
            // Early values take many times as long as late ones.
            let found = tasks.par_iter().with_max_len(1).map(replay).collect::<Result<Vec<_>, Error>>()?;
            for (index, distances) in found {
                totals[index].iter_mut().zip(&distances).for_each(|(total, d)| total.merge(d));
            }
        }
        go_on()?;
        let told = |index: usize| told.get(index)?.as_ref().filter(|_| !run[index]).map(|e| e.ratio);
        let ratio = |(index, parts): (usize, &Vec<_>)| told(index).unwrap_or_else(|| mean_ratio(parts));
        Ok(totals.iter().enumerate().map(ratio).collect())
    }

    /// How many samples may be followed side by side, all their values kept: if several for each thread, as many for each.
    fn abreast(&self, program: &Program) -> Result<usize, Error> {
        let samples = self.judge.samples;
        let bytes = if samples.is_empty() { 0 } else { program.trace(&samples.load(0)?)?.bytes() };
        let fit = usize::try_from(KEPT / bytes.max(1)).unwrap_or(usize::MAX).max(1);
        let threads = rayon::current_num_threads();
        Ok(if fit > threads { fit - fit % threads } else { fit })
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
        let steps = if self.target.storage.is_wide() { DType::U16 } else { DType::U8 };
        let mut trials = Vec::new();
        for id in values.into_iter().filter(|v| !moved.contains(v) && !hidden(v)) {
            if let Some(mut params) = plan::fixed_range(self.graph, self.candidates, id) {
                if steps == DType::U16 {
                    let (low, high) = types::whole(params);
                    params = QuantParams::asymmetric(low, high, steps);
                }
                trials.push(Trial::Value(id, params, None));
                continue;
            }
            let Some(&first) = choices.get(&id) else { continue };
            for choice in self.ranges(id, first) {
                let params = QuantParams::asymmetric(choice.range.lo, choice.range.hi, steps);
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
        let choose = |m: Calibrator| m.choose(&observer.histogram, Grid::asymmetric(256));
        if self.target.storage.is_wide() {
            // With so many steps nothing is gained by clipping.
            return vec![if own.method == Calibrator::Given { own } else { choose(Calibrator::MinMax) }];
        }
        let methods = [Calibrator::MinMax, Calibrator::Percentile(99.999), Calibrator::Percentile(99.99)];
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
            choices.get(c.activations.first()?)?;
            let form = self.target.form();
            let make = || weights::weight_of(&array, channel_axis, 1.0, &[], form);
            let constant = self.weights.get(id, form, make).ok()?;
            Some(Trial::Weight(id, value, constant.dequantized().ok()?))
        };
        self.candidates.par_iter().filter_map(trial).collect()
    }
}

/// Which trials must be run: those of which gradients do not tell enough. All of a value's are, if one of them is, for
/// what they bring is to be compared; but not what is clearly worse than the best of them by all that gradients tell.
fn untold(trials: &[Trial], told: &[Option<Estimate>]) -> Vec<bool> {
    let ratio = |index: usize| told.get(index)?.as_ref().map(|e| e.ratio).filter(|ratio| ratio.is_finite());
    let mut least: BTreeMap<_, Option<f64>> = BTreeMap::new();
    for (index, trial) in trials.iter().enumerate() {
        let least = least.entry(trial.unit()).or_insert(Some(f64::INFINITY));
        *least = least.zip(ratio(index)).map(|(a, b)| a.min(b));
    }
    let may_be_best = |(index, trial): (usize, &Trial)| {
        let least = least.get(&trial.unit()).copied().flatten();
        least.zip(ratio(index)).is_none_or(|(least, ratio)| ratio <= CLEARLY * least)
    };
    let tells = |index: usize| {
        let told = told.get(index).and_then(Option::as_ref);
        told.is_some_and(|e| e.own <= SMALL && e.ratio <= LOUD)
    };
    let open =
        trials.iter().enumerate().filter(|&(index, trial)| !tells(index) && may_be_best((index, trial)));
    let open: BTreeSet<_> = open.map(|(_, trial)| trial.unit()).collect();
    trials.iter().enumerate().map(|both| open.contains(&both.1.unit()) && may_be_best(both)).collect()
}

/// Half of what values do is of no use: if work is to end early, this is a fault.
fn go_on() -> Result<(), Error> {
    if budget::is_ending() { Err(Fault::new("ended early").at("measuring")) } else { Ok(()) }
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
    fn what_gradients_do_not_tell_is_run() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[3] a, float[3] b, float[3] c, float[3] d) => (float[3] y) { y = Sum (a, b, c, d) }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let params = QuantParams::asymmetric(-1.0, 1.0, DType::U8);
        // Two trials of each value: it is run with both ranges or with none.
        let trials: Vec<Trial> =
            graph.inputs.iter().flat_map(|&v| [(); 2].map(|()| Trial::Value(v, params, None))).collect();
        let told = |ratio, own| Some(Estimate { ratio, own });
        let quiet = told(1e-9, 0.01);
        let both = |of: [bool; 4]| of.into_iter().flat_map(|x| [x, x]).collect::<Vec<bool>>();
        let loud = told(9e-3, 0.01);
        assert_eq!(untold(&trials, &[loud, quiet, quiet, loud, quiet, quiet, loud, loud]), both([false; 4]));
        let some = [quiet, quiet, None, quiet, told(1e-9, 0.4), quiet, told(f64::NAN, 0.0), quiet];
        assert_eq!(untold(&trials, &some), both([false, true, true, true]));
        assert_eq!(untold(&trials, &[]), both([true; 4]));
        // What is clearly worse than what is told, or than what is run, is not run.
        let (bad, worse) = (told(0.02, 0.8), told(0.2, 0.8));
        let found = untold(&trials, &[quiet, bad, bad, worse, worse, bad, bad, bad]);
        assert_eq!(found, [false, false, true, false, false, true, true, true]);
    }
}
