//! The plan: scale and zero point of every quantized value, with the reason, and the integer form of every constant.
//!
//! Values that must agree form a group: the data input and the outputs of an operator that only moves values. A group
//! takes its range from the values that enter it; the others hold subsets of the same numbers. Weights and biases are
//! solved in [`weights`].

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::candidate::Candidate;
use super::placement::{Noise, Placement, clamped};
use super::target::Target;
use super::weights::{self, Constant, FULL, Form, Memo};
use crate::calibrate::histogram::Histogram;
use crate::calibrate::observer::{Observer, Observers};
use crate::calibrate::threshold::{Calibrator, Choice, Grid, sqnr_db};
use crate::error::Fault;
use crate::ir::{DType, Graph, NodeId, QuantParams, Rule, ValueId, schedule};

/// The reason for a range that the integer kernel of the producer dictates.
pub const FIXED: &str = "fixed by the kernel";

/// The parameters of an activation and where they come from.
#[derive(Debug, Clone)]
pub struct Activation {
    /// Scale, zero point and type.
    pub params: QuantParams,
    /// The same for operators that compute on more bits, where the target has such.
    pub wide: Option<QuantParams>,
    /// The method that chose the range (`minmax`, `fixed by the kernel`, …).
    pub why: String,
    /// Signal-to-noise ratio of rounding and clipping to expect on the calibration data, in dB.
    pub sqnr: f64,
    /// Least and greatest value seen.
    pub seen: (f32, f32),
    /// The first value of the group that shares these parameters.
    pub group: ValueId,
}

impl Activation {
    /// Does the range follow from what samples showed? If not, the kernel or the user has decided it.
    pub fn is_by_samples(&self) -> bool {
        self.why != FIXED && self.why != Calibrator::Given.to_string()
    }

    /// The method that chose the range of these parameters, which are the usual ones or the wide ones.
    pub fn method(&self, params: QuantParams) -> String {
        let wide = matches!(params.dtype, DType::U16 | DType::I16) && self.is_by_samples();
        if wide { Calibrator::MinMax.to_string() } else { self.why.clone() }
    }
}

/// The range that suits each value by itself, and how much of the signal is lost to rounding and clipping.
pub fn choices(seen: &Observers<ValueId>, calibrator: Calibrator) -> BTreeMap<ValueId, Choice> {
    let observers: Vec<_> = seen.iter().collect();
    let choose =
        |(id, o): &(ValueId, &Observer)| (*id, calibrator.choose(&o.histogram, Grid::asymmetric(256)));
    observers.par_iter().map(choose).collect::<Vec<_>>().into_iter().collect()
}

/// Noise over signal of each value by itself, `10^(-SQNR/10)`: a guess at what it does to the outputs.
pub fn noise(seen: &Observers<ValueId>, choices: &BTreeMap<ValueId, Choice>) -> Noise {
    let ratio = |(id, c): (&ValueId, &Choice)| {
        let db = seen.get(*id).map_or(f64::INFINITY, |o| sqnr_db(&o.histogram, c.mse));
        (*id, libm::pow(10.0, -db / 10.0))
    };
    Noise { values: choices.iter().map(ratio).collect(), ..Noise::default() }
}

/// Everything that `insert` writes into the graph.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Which nodes are integer.
    pub placement: Placement,
    /// Quantized activations.
    pub activations: BTreeMap<ValueId, Activation>,
    /// Quantized weights and biases by node and input slot.
    pub constants: BTreeMap<(NodeId, usize), Constant>,
    /// Integer operators and the clamp that their saturation replaces, or that is computed with them.
    pub absorbed: BTreeMap<NodeId, NodeId>,
    /// The clamps stay in the graph, in front of the QuantizeLinear.
    pub keeps_clamps: bool,
    /// Products with a number, each after those that it depends on.
    pub rescaled: Vec<Rescaled>,
    /// Nodes whose weights have eight bits where the target's have fewer.
    pub wide_weights: BTreeSet<NodeId>,
    /// Nodes that read and write activations of more bits than the others.
    pub wide_activations: BTreeSet<NodeId>,
}

/// A product with a number: its output has the integers of its input, at another scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescaled {
    /// The node, which disappears.
    pub node: NodeId,
    /// What it reads.
    pub input: ValueId,
    /// What it writes.
    pub output: ValueId,
    /// The number.
    pub factor: f32,
}

impl Plan {
    /// The form of a node's weight.
    pub fn form(&self, target: &Target, id: NodeId) -> Form {
        let form = target.form();
        if self.wide_weights.contains(&id) { Form { limit: FULL, ..form } } else { form }
    }

    /// The parameters that a value has for a node that reads or writes it.
    pub fn params(&self, id: NodeId, value: ValueId) -> Option<QuantParams> {
        let activation = self.activations.get(&value)?;
        let wide = activation.wide.filter(|_| self.wide_activations.contains(&id));
        Some(wide.unwrap_or(activation.params))
    }

    /// The same nodes with these ranges of groups.
    pub fn with_ranges(
        &self,
        graph: &Graph,
        ranges: &BTreeMap<ValueId, Choice>,
        (target, memo): (&Target, &Memo),
    ) -> Result<Self, Fault> {
        let mut plan = self.clone();
        for activation in plan.activations.values_mut() {
            if let Some(Choice { range, method, .. }) = ranges.get(&activation.group) {
                activation.params = QuantParams::asymmetric(range.lo, range.hi, DType::U8);
                activation.why = method.to_string();
            }
        }
        target.storage.types(graph, &mut plan, target, &|a| ranges.contains_key(&a.group));
        plan.rescaled = rescaled(graph, &plan.placement, &mut plan.activations)?;
        target.storage.constants(graph, &mut plan, (target, memo))?;
        Ok(plan)
    }

    /// The parameters that a value is first written with.
    pub fn written(&self, graph: &Graph, value: ValueId) -> Option<QuantParams> {
        let integer = |id: &NodeId| self.placement.integer.contains_key(id);
        if let Some(producer) = graph.producer(value).map(|(id, _)| id).filter(integer) {
            return self.params(producer, value);
        }
        let mut readers = graph.uses(value).into_iter().map(|u| u.node).filter(integer);
        match readers.all(|id| self.wide_activations.contains(&id)) {
            true => self.params(graph.uses(value).iter().map(|u| u.node).find(integer)?, value),
            false => Some(self.activations.get(&value)?.params),
        }
    }

    /// Lets nodes compute on activations of more bits, and with each the clamp that it absorbs or that absorbed it. Takes
    /// what that costs: `time` times what they took.
    pub fn widen(&mut self, nodes: impl IntoIterator<Item = NodeId>, time: f64) {
        let mut nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        for (&operator, &clamp) in &self.absorbed {
            if nodes.contains(&operator) || nodes.contains(&clamp) {
                nodes.extend([operator, clamp]);
            }
        }
        for id in nodes {
            let Some(candidate) = self.placement.integer.get(&id) else { continue };
            if self.wide_activations.insert(id) && self.placement.whole > 0.0 {
                self.placement.time += (time - 1.0) * candidate.integer_cost / self.placement.whole;
            }
        }
    }

    /// Are the same nodes integer, with the same parameters of their activations?
    pub fn is_like(&self, other: &Self) -> bool {
        let params = |plan: &Self| plan.activations.iter().map(|(&id, a)| (id, a.params)).collect::<Vec<_>>();
        self.placement.integer.keys().eq(other.placement.integer.keys()) && params(self) == params(other)
    }

    /// Solves the parameters of all integer nodes.
    pub fn solve(
        graph: &Graph,
        placement: Placement,
        seen: &Observers<ValueId>,
        choices: &BTreeMap<ValueId, Choice>,
        calibrator: Calibrator,
        (target, memo): (&Target, &Memo),
    ) -> Result<Self, Fault> {
        let mut placement = placement;
        let absorbed = absorbed(graph, &mut placement);
        let quantized = quantized_values(graph, &placement, &absorbed);
        let groups = Groups::of(graph, &placement, &quantized);
        let mut activations = solve_groups(graph, &placement, &groups, seen, choices, calibrator);
        let rescaled = rescaled(graph, &placement, &mut activations)?;
        if target.fused_add {
            fuse_adds(graph, &placement, &mut activations);
        }
        let keeps_clamps = !target.absorbs_clamps;
        let constants = BTreeMap::new();
        let mut plan = Self {
            placement,
            activations,
            constants,
            absorbed,
            keeps_clamps,
            rescaled,
            wide_weights: BTreeSet::new(),
            wide_activations: BTreeSet::new(),
        };
        plan.constants = weights::solve(graph, &plan, target, memo)?;
        Ok(plan)
    }
}

/// Which clamp each integer operator absorbs. A clamp needs a quantized output to hide in: where the operator returns
/// floats because only float nodes read the clamp, both stay as they are, and the clamp is a float node.
fn absorbed(graph: &Graph, placement: &mut Placement) -> BTreeMap<NodeId, NodeId> {
    let clamps = placement.integer.values().filter(|c| matches!(c.rule, Rule::Clamp { .. }));
    let pairs: Vec<(NodeId, NodeId)> =
        clamps.filter_map(|c| Some((clamped(graph, c, &placement.integer)?, c.id))).collect();
    let mut absorbed = BTreeMap::new();
    for (operator, clamp) in pairs {
        let returns_float = placement.integer[&operator].float_output
            && !placement.integer[&clamp].outputs.iter().any(|&v| read_as_integer(graph, placement, v));
        if returns_float {
            placement.integer.remove(&clamp);
            placement.float.insert(clamp, "the operator before it returns floats".into());
        } else {
            absorbed.insert(operator, clamp);
        }
    }
    absorbed
}

/// An Add reads the result of one product before it in float, so that both can be computed at once.
fn fuse_adds(graph: &Graph, placement: &Placement, activations: &mut BTreeMap<ValueId, Activation>) {
    let product = |value: ValueId| {
        let producer = graph.producer(value).and_then(|(p, _)| placement.integer.get(&p));
        producer.is_some_and(|c| matches!(c.rule, Rule::Contraction { .. }))
            && graph.only_use(value).is_some()
    };
    for add in placement.integer.values().filter(|c| graph.node(c.id).is("Add")) {
        if let ([_, _], Some(&value)) =
            (add.activations.as_slice(), add.activations.iter().find(|&&v| product(v)))
        {
            activations.remove(&value);
        }
    }
}

/// Does an integer node read this value?
fn read_as_integer(graph: &Graph, placement: &Placement, value: ValueId) -> bool {
    let reads = |n: NodeId| placement.integer.get(&n).is_some_and(|c| c.activations.contains(&value));
    graph.uses(value).iter().any(|u| reads(u.node))
}

/// The values that get scale and zero point: what integer nodes read and write, except between an operator and its
/// clamp, and except outputs that only float nodes read where the kernel can return floats.
fn quantized_values(
    graph: &Graph,
    placement: &Placement,
    absorbed: &BTreeMap<NodeId, NodeId>,
) -> BTreeSet<ValueId> {
    let mut values = BTreeSet::new();
    for (id, c) in &placement.integer {
        if !matches!(c.rule, Rule::Clamp { .. }) {
            values.extend(c.activations.iter().copied());
        }
        if absorbed.contains_key(id) {
            continue;
        }
        let written = c.outputs.iter().copied();
        values.extend(written.filter(|&v| !c.float_output || read_as_integer(graph, placement, v)));
    }
    values
}

/// Values that share parameters, as a union-find forest.
struct Groups {
    parent: BTreeMap<ValueId, ValueId>,
    /// Values that take their numbers from another of the group.
    derived: BTreeSet<ValueId>,
}

impl Groups {
    fn of(graph: &Graph, placement: &Placement, quantized: &BTreeSet<ValueId>) -> Self {
        let mut groups =
            Self { parent: quantized.iter().map(|&v| (v, v)).collect(), derived: BTreeSet::new() };
        let _ = graph;
        for c in placement.integer.values().filter(|c| c.rule == Rule::SameScale) {
            for &output in &c.outputs {
                if quantized.contains(&output) {
                    groups.join(c.activations[0], output);
                    groups.derived.insert(output);
                }
            }
        }
        groups
    }

    fn root(&self, mut value: ValueId) -> ValueId {
        while let Some(&parent) = self.parent.get(&value).filter(|&&p| p != value) {
            value = parent;
        }
        value
    }

    fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent.insert(a.max(b), a.min(b));
    }

    fn members(&self) -> BTreeMap<ValueId, Vec<ValueId>> {
        let mut members: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
        for &value in self.parent.keys() {
            members.entry(self.root(value)).or_default().push(value);
        }
        members
    }
}

fn solve_groups(
    graph: &Graph,
    placement: &Placement,
    groups: &Groups,
    seen: &Observers<ValueId>,
    choices: &BTreeMap<ValueId, Choice>,
    calibrator: Calibrator,
) -> BTreeMap<ValueId, Activation> {
    let mut solved = BTreeMap::new();
    for (group, members) in groups.members() {
        let sources: Vec<ValueId> = members.iter().copied().filter(|v| !groups.derived.contains(v)).collect();
        let mut histogram = Histogram::new();
        for observer in sources.iter().filter_map(|&v| seen.get(v)) {
            histogram.merge(&observer.histogram);
        }
        let fixed = sources.iter().find_map(|&v| fixed_range(graph, &placement.integer, v));
        let seen = histogram.extremes().unwrap_or((0.0, 0.0));
        let (params, why, sqnr) = match fixed {
            Some(params) => {
                let (low, high) = params.range();
                let error = crate::calibrate::threshold::expected_error(&histogram, low, high, 256);
                (params, FIXED.into(), sqnr_db(&histogram, error))
            }
            None => {
                let mut own = sources.iter().filter_map(|v| choices.get(v));
                let given = own.find(|c| c.method == Calibrator::Given).copied();
                let known =
                    given.or(if let [only] = sources[..] { choices.get(&only).copied() } else { None });
                let choice = known.unwrap_or_else(|| calibrator.choose(&histogram, Grid::asymmetric(256)));
                let params = QuantParams::asymmetric(choice.range.lo, choice.range.hi, DType::U8);
                (params, choice.method.to_string(), sqnr_db(&histogram, choice.mse))
            }
        };
        for value in members {
            solved.insert(value, Activation { params, wide: None, why: why.clone(), sqnr, seen, group });
        }
    }
    solved
}

/// Finds the products with a number, and gives their outputs, and what shares parameters with them, the input's
/// parameters at another scale.
fn rescaled(
    graph: &Graph,
    placement: &Placement,
    activations: &mut BTreeMap<ValueId, Activation>,
) -> Result<Vec<Rescaled>, Fault> {
    let mut found = Vec::new();
    for node in schedule(graph)? {
        let Some(Candidate { rule: Rule::Rescale { factor, .. }, activations: inputs, .. }) =
            placement.integer.get(&node)
        else {
            continue;
        };
        let (Some(&input), Some(output)) = (inputs.first(), graph.output(node, 0)) else { continue };
        let Some(from) = activations.get(&input).cloned() else { continue };
        let Some(group) = activations.get(&output).map(|a| a.group) else { continue };
        for to in activations.values_mut().filter(|a| a.group == group) {
            to.params = QuantParams { scale: from.params.scale * factor, ..from.params };
            (to.why, to.sqnr) = (format!("follows `{}`", graph.name(input)), from.sqnr);
        }
        found.push(Rescaled { node, input, output, factor: *factor });
    }
    Ok(found)
}

/// The parameters that the integer kernel of the value's producer dictates.
pub fn fixed_range(
    graph: &Graph,
    integer: &BTreeMap<NodeId, Candidate>,
    value: ValueId,
) -> Option<QuantParams> {
    let (producer, _) = graph.producer(value)?;
    match integer.get(&producer)?.rule {
        Rule::FixedRange { low, scale } => {
            let zero_point = (-low / scale).round_ties_even() as i32;
            Some(QuantParams { scale, zero_point, dtype: DType::U8 })
        }
        _ => None,
    }
}
