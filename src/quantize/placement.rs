//! Which nodes become integer: the cheapest choice, found by a minimum cut.
//!
//! Every candidate is either integer or float, at the estimated cost of its kernel. Where an integer node reads a float
//! value, the value must be quantized, once for all its integer readers; where a float node reads an integer value, it
//! must be dequantized, once for all. The total cost of a labelling is the capacity of a cut in a network with one
//! vertex per node and two per value, so the least cut is the least cost (Greig, Porteous and Seheult 1989). Islands of
//! integer operators that would not pay for their boundaries stay float by themselves.
//!
//! Accuracy is a cost too: a value that is quantized adds noise, in proportion to the signal `10^(-SQNR/10)`, and so does
//! a weight. It is charged in the currency of the network, as a multiple of that share of the whole model's float time.
//! An operator whose output is hard to represent in 8 bits must therefore save much time to become integer.

use std::collections::{BTreeMap, BTreeSet};

use super::candidate::{Candidate, Candidates, elements};
use super::network::Network;
use super::recurrent;
use super::target::Target;
use crate::calibrate::observer::Observers;
use crate::ir::{DType, Graph, NodeId, Port, Rule, Tensor, ValueId};
use crate::ops::conv::Conv;

/// The outcome for every node.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Integer nodes.
    pub integer: BTreeMap<NodeId, Candidate>,
    /// Float nodes that hold arithmetic, with the reason.
    pub float: BTreeMap<NodeId, String>,
    /// Estimated time as a share of what the same nodes take in float, boundaries included.
    pub time: f64,
    /// What the same nodes take in float, in the unit of the target's costs.
    pub whole: f64,
    /// Elements of the weights of float nodes, as a share of all weights.
    pub float_weights: f64,
    /// Recurrent layers whose weights are better stored in integers, and what is gained by each, in float times of the
    /// model.
    pub recurrent: BTreeMap<NodeId, f64>,
}

/// What quantization is known to do to the outputs: noise over signal, `10^(-SQNR/10)`.
#[derive(Debug, Clone, Default)]
pub struct Noise {
    /// If this value alone is quantized.
    pub values: BTreeMap<ValueId, f64>,
    /// If the weight of this node alone is quantized.
    pub weights: BTreeMap<NodeId, f64>,
}

/// How much of all weights each candidate holds that would be float with it. The weight of a MatMul is stored in integers
/// either way.
fn weight_shares(graph: &Graph, candidates: &BTreeMap<NodeId, Candidate>) -> BTreeMap<NodeId, f64> {
    let all: usize = graph.constants.iter().filter_map(|&c| graph.constant(c)).map(Tensor::len).sum();
    let share = |(&id, c): (&NodeId, &Candidate)| {
        let Rule::Contraction { weight, .. } = c.rule else { return None };
        let own = graph.constant_input(id, weight).filter(|_| !graph.node(id).is("MatMul"))?;
        Some((id, own.len() as f64 / all.max(1) as f64))
    };
    candidates.iter().filter_map(share).collect()
}

/// Labels every node of the main graph. Noise costs `noise_weight` in place of what the target says.
pub fn place(
    graph: &Graph,
    target: &Target,
    noise_weight: f64,
    candidates: Candidates,
    seen: &Observers<ValueId>,
    noise: &Noise,
) -> Placement {
    let Candidates { integer: mut candidates, float } = candidates;
    let shares = weight_shares(graph, &candidates);
    let recurrent = recurrent::worthwhile(graph, target, whole(&candidates), seen);
    let mut placement = Placement { float, recurrent, ..Placement::default() };
    loop {
        let (integer, time) = cheapest(graph, target, noise_weight, &candidates, seen, noise, &shares);
        // Which clamp stands behind which operator depends on the labels; one that lost its operator is float.
        let lost: Vec<NodeId> = candidates
            .values()
            .filter(|c| matches!(c.rule, Rule::Clamp { .. }) && clamped(graph, c, &candidates).is_none())
            .map(|c| c.id)
            .collect();
        if lost.is_empty() {
            (placement.time, placement.whole) = (time, whole(&candidates));
            let float = shares.iter().filter(|(id, _)| !integer.contains(id));
            placement.float_weights = float.map(|(_, share)| share).sum();
            for (id, found) in candidates {
                match integer.contains(&id) {
                    true => placement.integer.insert(id, found).is_none(),
                    false => placement.float.insert(id, "integer would not be faster here".into()).is_none(),
                };
            }
            return placement;
        }
        for id in lost {
            candidates.remove(&id);
            placement.float.insert(id, "it does not follow an integer operator alone".into());
        }
    }
}

/// The float time of all candidates.
fn whole(candidates: &BTreeMap<NodeId, Candidate>) -> f64 {
    candidates.values().map(|c| c.float_cost).filter(|c| c.is_finite()).sum()
}

/// The operator whose output a clamp limits, if nobody else reads that output and its kernel can saturate there.
pub fn clamped(graph: &Graph, clamp: &Candidate, candidates: &BTreeMap<NodeId, Candidate>) -> Option<NodeId> {
    let input = *clamp.activations.first()?;
    let (producer, _) = graph.producer(input)?;
    graph.only_use(input)?;
    let rule = &candidates.get(&producer)?.rule;
    matches!(rule, Rule::Contraction { .. } | Rule::Arithmetic(_)).then_some(producer)
}

/// Does the node stand between integer nodes so that ONNX Runtime quantizes its float weight (`WeightBiasQuantization`)?
pub fn is_sandwiched(graph: &Graph, id: NodeId, integer: &dyn Fn(NodeId) -> bool) -> bool {
    if !["Conv", "ConvTranspose", "Gemm"].iter().any(|op| graph.node(id).is(op)) {
        return false;
    }
    let made = graph.input(id, 0).and_then(|x| graph.producer(x)).is_some_and(|(p, _)| integer(p));
    let weight = graph.constant_input(id, 1).is_some_and(|w| w.dtype() == DType::F32);
    let Some(mut output) = graph.output(id, 0).filter(|_| made && weight) else { return false };
    if let Some(usage) = graph.only_use(output)
        && ["Relu", "Clip"].iter().any(|op| graph.node(usage.node).is(op))
        && !integer(usage.node)
        && let Some(clamped) = graph.output(usage.node, 0)
    {
        output = clamped;
    }
    let uses = graph.uses(output);
    !uses.is_empty() && !graph.is_output(output) && uses.iter().all(|u| integer(u.node))
}

/// The value whose elements this one holds: what candidates move only, followed to where it was computed.
fn origin(graph: &Graph, mut value: ValueId, candidates: &BTreeMap<NodeId, Candidate>) -> ValueId {
    let source = |v| {
        let moves = candidates.get(&graph.producer(v)?.0)?;
        matches!(moves.rule, Rule::SameScale | Rule::Rescale { .. })
            .then(|| moves.activations.first().copied())?
    };
    while let Some(earlier) = source(value) {
        value = earlier;
    }
    value
}

/// What it costs to leave a node in float that was to become integer, in float times of the model.
const FORCED: f64 = 1e6;

/// The set of integer nodes of least total cost, and the time it takes as a share of the float time.
fn cheapest(
    graph: &Graph,
    target: &Target,
    noise_weight: f64,
    candidates: &BTreeMap<NodeId, Candidate>,
    seen: &Observers<ValueId>,
    noise: &Noise,
    shares: &BTreeMap<NodeId, f64>,
) -> (BTreeSet<NodeId>, f64) {
    const INTEGER: usize = 0; // source side
    const FLOAT: usize = 1; // sink side
    let mut network = Network::with_vertices(2);
    let vertex: BTreeMap<NodeId, usize> = candidates.keys().map(|&id| (id, network.vertex())).collect();
    let values: BTreeSet<ValueId> =
        candidates.values().flat_map(|c| c.activations.iter().chain(&c.outputs)).copied().collect();
    let whole = whole(candidates);
    for (id, c) in candidates {
        // Ties go to integer: less memory traffic, and one more operator that is counted as quantized.
        network.edge(INTEGER, vertex[id], c.float_cost * 1.0001);
        let share = shares.get(id).copied().unwrap_or(0.0);
        network.penalty(INTEGER, vertex[id], whole * target.size_weight * share);
        if c.forced {
            network.penalty(INTEGER, vertex[id], whole * FORCED);
        }
        network.edge(vertex[id], FLOAT, c.integer_cost);
        network.penalty(
            vertex[id],
            FLOAT,
            whole * noise_weight * noise.weights.get(id).copied().unwrap_or(0.0),
        );
        if matches!(c.rule, Rule::Clamp { .. })
            && let Some(producer) = clamped(graph, c, candidates)
        {
            network.edge(vertex[id], vertex[&producer], f64::INFINITY);
            // Without its clamp the operator would have to represent what the clamp cuts off.
            if !candidates[&producer].float_output {
                network.edge(vertex[&producer], vertex[id], f64::INFINITY);
            }
        }
    }
    for &value in &values {
        let producer = graph.producer(value).and_then(|(p, _)| vertex.get(&p)).copied().unwrap_or(FLOAT);
        let size = elements(graph, value, seen);
        let convolves = |id: NodeId| graph.node(id).op_as::<Conv>().is_some();
        let layout = graph.producer(value).is_some_and(|(p, _)| convolves(p))
            || graph.uses(value).iter().any(|u| convolves(u.node));
        let layout = if layout { size * target.boundary.layout } else { 0.0 };
        let quantize = size * target.boundary.quantize + target.boundary.node + layout;
        let free_exit =
            graph.producer(value).and_then(|(p, _)| candidates.get(&p)).is_some_and(|c| c.float_output);
        let dequantize =
            if free_exit { 0.0 } else { size * target.boundary.dequantize + target.boundary.node + layout };
        let (entry, exit) = (network.vertex(), network.vertex());
        // Is the value quantized at all? Values that only move carry the noise of where they come from.
        let made_by = graph.producer(value).and_then(|(p, _)| candidates.get(&p));
        let before_clamp = candidates
            .values()
            .any(|c| matches!(c.rule, Rule::Clamp { .. }) && c.activations.first() == Some(&value));
        if !made_by.is_some_and(|c| matches!(c.rule, Rule::SameScale | Rule::Rescale { .. })) && !before_clamp
        {
            let quantized = network.vertex();
            let ratio = noise.values.get(&value).copied().unwrap_or(0.0);
            network.penalty(quantized, FLOAT, whole * noise_weight * ratio);
            network.edge(entry, quantized, f64::INFINITY);
            if !free_exit {
                network.edge(producer, quantized, f64::INFINITY);
            }
        }
        network.edge(entry, producer, quantize);
        // Quantized behind a float operator that moves elements, the value has the noise of what was moved.
        let moved = origin(graph, value, candidates);
        if moved != value {
            let ratio = noise.values.get(&moved).copied().unwrap_or(0.0);
            network.penalty(entry, producer, whole * noise_weight * ratio);
        }
        network.edge(producer, exit, dequantize);
        for usage in graph.uses(value) {
            let reader = vertex.get(&usage.node).copied();
            let wants_integer = candidates
                .get(&usage.node)
                .is_some_and(|c| c.activations.contains(&value) && usage.port != Port::Capture);
            match reader.filter(|_| wants_integer) {
                Some(reader) => {
                    network.edge(reader, entry, f64::INFINITY);
                    network.edge(exit, reader, f64::INFINITY);
                }
                None => network.edge(exit, FLOAT, f64::INFINITY),
            }
        }
        if graph.is_output(value) {
            network.edge(exit, FLOAT, f64::INFINITY);
        }
    }
    let side = network.source_side(INTEGER, FLOAT);
    let time = if whole > 0.0 { network.time(&side) / whole } else { 1.0 };
    (vertex.into_iter().filter(|(_, v)| side[*v]).map(|(id, _)| id).collect(), time)
}
