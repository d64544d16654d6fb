//! From plans to a quantized graph: weights are fitted to every plan that is worth it, and what costs least then is taken.
//! Where weights of four bits, or activations of eight, break the bound that the result must keep, as few of them as it
//! takes get more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::job::{Job, Prepared};
use super::refine::{self, Refine};
use crate::budget;
use crate::calibrate::run::calibrate;
use crate::calibrate::threshold::{Calibrator, Grid};
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Graph, NodeId, Rule, Tensor, ValueId};
use crate::options::Tuning;
use crate::quantize::candidate::Candidate;
use crate::quantize::placement::Noise;
use crate::quantize::plan::Activation;
use crate::quantize::{Plan, insert};
use crate::report::Quantized;
use crate::tune::goal::Exam;
use crate::tune::tradeoff::price;
use crate::tune::{Judge, Step};

/// The plans worth fitting weights for.
pub struct Plans {
    /// The best one first, and how each was arrived at.
    pub plans: Vec<(Plan, Option<Step>)>,
    /// What each value and each weight does to the outputs, as far as it is known: noise over signal.
    pub noise: Noise,
}

/// Gives more bits to the first so many things of a plan.
type Widen<'a> = &'a dyn Fn(&mut Plan, usize);

/// What weights are fitted with.
pub struct Fitting<'a> {
    /// The mode that it is part of.
    pub job: &'a Job<'a>,
    /// The float graph.
    pub reference: &'a Graph,
    /// What is known of it.
    pub ready: &'a Prepared,
    /// The steps of tuning that are taken.
    pub steps: &'a BTreeSet<Tuning>,
    /// What was done before there was a plan.
    pub before: Option<Step>,
    /// Judges what is integer.
    pub trades: Option<&'a Judge<'a>>,
    /// Fits layer by layer.
    pub refine: Option<&'a Refine<'a>>,
    /// The bound that the result must keep.
    pub exam: Option<&'a Exam<'a>>,
}

/// A plan that was carried out.
pub struct Fitted {
    /// The plan.
    pub plan: Plan,
    /// The quantized graph.
    pub graph: Graph,
    /// What was done.
    pub quantized: Quantized,
    /// The steps that led to the plan.
    steps: Vec<Step>,
}

impl Fitting<'_> {
    /// The plan that costs least when weights are fitted to it.
    pub fn best(&self, found: Plans) -> Result<Fitted, Error> {
        let several = found.plans.len() > 1;
        let mut best: Option<(f64, Fitted)> = None;
        for (plan, step) in found.plans {
            if best.is_some() && budget::is_ending() {
                break;
            }
            let fitted = self.fit(plan, self.before.iter().cloned().chain(step).collect())?;
            let judge = self.refine.filter(|_| several).map(|refine| refine.judge);
            let noise = judge.map(|judge| judge.noise(&fitted.graph)).transpose()?;
            let cost = price(self.job.target, &fitted.plan.placement, noise.unwrap_or_default());
            if best.as_ref().is_none_or(|best| cost < best.0) {
                best = Some((cost, fitted));
            }
        }
        let best = best.ok_or_else(|| Fault::new("there is no plan").at("quantization"))?.1;
        let (mut best, storage) = (best, self.job.target.storage);
        if let Some(refine) = self.refine.filter(|refine| {
            // With 16 bits nothing is chosen: ranges are all that was seen.
            let chooses = self.steps.contains(&Tuning::TradeOff) && !storage.is_wide();
            refine.budget.again && chooses && !budget::is_ending()
        }) {
            best = self.again(best, refine)?;
        }
        let Some(exam) = self.exam else { return Ok(best) };
        if storage.has_four_bits() && !exam.mark(&best.graph)?.met {
            let order = by_noise_for_size(self.reference, &best.plan, &found.noise.weights);
            let widen = |plan: &mut Plan, count: usize| plan.wide_weights.extend(&order[..count]);
            best = self.fewest("wider weights", best, exam, (order.len(), &widen))?;
        }
        if storage.wider.is_some() && !exam.mark(&best.graph)?.met {
            let order = by_noise_for_time(&best.plan, &found.noise.values);
            let time = self.job.target.wider.as_ref().map_or(1.0, |wider| wider.time);
            let widen =
                |plan: &mut Plan, count: usize| plan.widen(order[..count].iter().flatten().copied(), time);
            best = self.fewest("wider activations", best, exam, (order.len(), &widen))?;
        }
        Ok(best)
    }

    /// Ranges of activations once more, from what they hold with everything before them quantized; weights are fitted to
    /// them, and what is better is kept.
    fn again(&self, first: Fitted, refine: &Refine) -> Result<Fitted, Error> {
        let (started, target) = (Instant::now(), self.job.target);
        let integer = &first.plan.placement.integer;
        // What is only moved holds a part of what it is moved from.
        let moved = |value| {
            let producer = self.reference.producer(value).and_then(|(id, _)| integer.get(&id));
            producer.is_some_and(|c| matches!(c.rule, Rule::SameScale | Rule::Rescale { .. }))
        };
        let sources: Vec<(ValueId, &Activation)> = (first.plan.activations.iter())
            .filter(|(value, activation)| activation.is_by_samples() && !moved(**value))
            .map(|(&value, activation)| (front(&first.graph, value), activation))
            .collect();
        let watched: Vec<ValueId> = sources.iter().map(|source| source.0).collect();
        let program = Program::new(&first.graph)?;
        let seen = calibrate(&program, &watched, refine.samples, &|| ())?.seen;
        let choice = |(front, activation): &(ValueId, &Activation)| {
            let method: Calibrator = activation.why.parse().ok()?;
            let histogram = &seen.get(*front)?.histogram;
            histogram.extremes()?;
            Some((activation.group, method.choose(histogram, Grid::asymmetric(256))))
        };
        let ranges = sources.iter().filter_map(choice).collect();
        let plan = first.plan.with_ranges(self.reference, &ranges, (target, &self.ready.weights));
        let second = self.fit(plan.map_err(|f| f.at("second round"))?, first.steps.clone())?;
        let noise = (refine.judge.noise(&first.graph)?, refine.judge.noise(&second.graph)?);
        let breaks =
            |exam: &Exam| Ok::<_, Error>(!exam.mark(&second.graph)?.met && exam.mark(&first.graph)?.met);
        let kept = noise.1 < noise.0 && !self.exam.map(breaks).transpose()?.unwrap_or(false);
        let mut best = if kept { second } else { first };
        let noise = (noise.0, if kept { noise.1 } else { noise.0 });
        best.quantized.steps.push(Step::new("ranges once more", noise, kept, started));
        Ok(best)
    }

    /// Carries a plan out, after these steps.
    fn fit(&self, plan: Plan, steps: Vec<Step>) -> Result<Fitted, Error> {
        let calibration = &self.ready.calibration;
        let problem = calibration.problem.as_ref();
        let mut quantized = Quantized::plan(self.reference, &plan, &calibration.seen, problem);
        quantized.steps.clone_from(&steps);
        let mut graph = self.reference.clone();
        insert::insert(&mut graph, &plan);
        let before = self.exam.map(|_| graph.clone());
        let stored = self.job.store_beside(&mut graph, &plan.placement.recurrent, self.trades)?;
        if !refine::taken_back(self.exam, &mut graph, before)? {
            quantized.store(stored);
        }
        if let Some(refine) = self.refine.filter(|_| !quantized.nodes.is_empty()) {
            refine.fit(self.steps, &plan, &mut graph, &mut quantized)?;
        }
        Ok(Fitted { plan, graph, quantized, steps })
    }

    /// Gives more bits to as few things as keep the bound: half as many are tried until that is known to one. If all of
    /// them do not keep it, all have them.
    fn fewest(
        &self,
        name: &'static str,
        narrow: Fitted,
        exam: &Exam,
        (all, widen): (usize, Widen),
    ) -> Result<Fitted, Error> {
        let started = Instant::now();
        if all == 0 {
            return Ok(narrow);
        }
        let first = |count: usize| {
            let mut plan = narrow.plan.clone();
            widen(&mut plan, count);
            self.job.solve_constants(self.reference, &mut plan, self.ready)?;
            self.fit(plan, narrow.steps.clone())
        };
        let (mut few, mut enough) = (0, all);
        let mut kept = first(enough)?;
        if exam.mark(&kept.graph)?.met {
            while enough - few > 1 && !budget::is_ending() {
                let between = usize::midpoint(few, enough);
                let tried = first(between)?;
                match exam.mark(&tried.graph)?.met {
                    true => (kept, enough) = (tried, between),
                    false => few = between,
                }
            }
        }
        if let Some(refine) = self.refine {
            let noise = (refine.judge.noise(&narrow.graph)?, refine.judge.noise(&kept.graph)?);
            kept.quantized.steps.push(Step::new(name, noise, true, started));
        }
        Ok(kept)
    }
}

/// What the quantizer of this value reads.
fn front(graph: &Graph, value: ValueId) -> ValueId {
    let behind = |value, op: &str| {
        let (producer, _) = graph.producer(value).filter(|(id, _)| graph.node(*id).is(op))?;
        graph.input(producer, 0)
    };
    let stored = behind(value, "DequantizeLinear");
    stored.and_then(|stored| behind(stored, "QuantizeLinear")).unwrap_or(value)
}

/// The nodes with weights of four bits, those first whose weight brings most noise for its size.
fn by_noise_for_size(graph: &Graph, plan: &Plan, noise: &BTreeMap<NodeId, f64>) -> Vec<NodeId> {
    let loudness = |(&id, c): (&NodeId, &Candidate)| {
        let Rule::Contraction { weight, .. } = c.rule else { return None };
        let size = graph.constant_input(id, weight).map(Tensor::len)?;
        Some((noise.get(&id).copied().unwrap_or_default() / size.max(1) as f64, id))
    };
    let nodes = plan.placement.integer.iter().filter(|(id, _)| !plan.wide_weights.contains(id));
    let mut order: Vec<(f64, NodeId)> = nodes.filter_map(loudness).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, id)| id).collect()
}

/// For each group of activations the nodes that read or write it, those first that bring most noise for their time.
fn by_noise_for_time(plan: &Plan, noise: &BTreeMap<ValueId, f64>) -> Vec<BTreeSet<NodeId>> {
    let mut groups: BTreeMap<ValueId, (f64, BTreeSet<NodeId>)> = BTreeMap::new();
    for (value, activation) in &plan.activations {
        groups.entry(activation.group).or_default().0 += noise.get(value).copied().unwrap_or_default();
    }
    for (&id, c) in &plan.placement.integer {
        for activation in c.activations.iter().chain(&c.outputs).filter_map(|v| plan.activations.get(v)) {
            groups.entry(activation.group).or_default().1.insert(id);
        }
    }
    let time = |nodes: &BTreeSet<NodeId>| {
        let costs = nodes.iter().filter_map(|id| plan.placement.integer.get(id)).map(|c| c.integer_cost);
        costs.sum::<f64>().max(f64::MIN_POSITIVE)
    };
    let mut order: Vec<(f64, BTreeSet<NodeId>)> =
        groups.into_values().map(|(noise, nodes)| (noise / time(&nodes), nodes)).collect();
    order.retain(|(_, nodes)| !nodes.iter().all(|id| plan.wide_activations.contains(id)));
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    order.into_iter().map(|(_, nodes)| nodes).collect()
}
