//! Which operators stay in float32 although the model becomes half precision, and why.

use std::collections::{BTreeMap, BTreeSet};

use super::{Half, Ranges, slots};
use crate::interpret::node_label;
use crate::ir::{DType, Graph, NodeId, ValueId, schedule};
use crate::quantize::network::Network;

/// An operator that squares its input sums at least one square: beyond the root of the largest float16 it overflows.
const LARGEST_SQUARED: f32 = 255.0;

/// Constants at least this large count as weights, which shall be small in the file.
const WEIGHT_ELEMENTS: usize = 64;

/// The operators that stay in float32.
#[derive(Debug, Default)]
pub struct Decision {
    /// With a reason that the user is told.
    pub kept: BTreeMap<NodeId, String>,
    /// Because what they exchange with those above, or with integers, is float32 anyway.
    pub followers: BTreeSet<NodeId>,
}

impl Decision {
    /// Does the node stay in float32?
    pub fn is_float(&self, id: NodeId) -> bool {
        self.kept.contains_key(&id) || self.followers.contains(&id)
    }
}

/// Is the value a float32 tensor?
pub fn is_float(graph: &Graph, value: ValueId) -> bool {
    graph.ty(value).is_some_and(|t| t.dtype == DType::F32)
}

/// Decides for every node of a graph. `float_edge`: are the graph's own inputs and outputs float32?
pub fn decide(graph: &Graph, half: &Half, version: i64, ranges: &Ranges, float_edge: bool) -> Decision {
    let mut decision = Decision::default();
    let mut tiny = BTreeSet::new();
    for id in schedule(graph).unwrap_or_default() {
        let floats = touched(graph, id).any(|v| is_float(graph, v));
        let unclear = graph
            .inputs_of(id)
            .into_iter()
            .flatten()
            .find(|&v| graph.ty(v).is_none() && graph.constant(v).is_none());
        if !floats && unclear.is_none() {
            continue;
        }
        if in_integers(graph, id) {
            decision.followers.insert(id);
            continue;
        }
        let reason = own_reason(graph, id, half, version)
            .or_else(|| {
                let value = unclear.filter(|_| graph.node(id).bodies.is_empty())?;
                Some(format!("the type of `{}` is not known", graph.name(value)))
            })
            .or_else(|| (half.dtype == DType::F16).then(|| overflow(graph, id, ranges)).flatten())
            .or_else(|| (half.dtype == DType::F16).then(|| underflow(graph, id, &mut tiny)).flatten());
        if let Some(reason) = reason {
            decision.kept.insert(id, reason);
        }
    }
    quantized_edges(graph, half, version, &mut decision);
    followers(graph, float_edge, &mut decision);
    decision
}

fn touched(graph: &Graph, id: NodeId) -> impl Iterator<Item = ValueId> {
    graph.inputs_of(id).into_iter().chain(graph.outputs_of(id)).flatten()
}

fn own_reason(graph: &Graph, id: NodeId, half: &Half, version: i64) -> Option<String> {
    let node = graph.node(id);
    let label = node_label(graph, id);
    let asked = |pattern: &&String| {
        wildmatch::WildMatch::new(pattern).matches(&label)
            || wildmatch::WildMatch::new(pattern).matches(&node.op_type)
    };
    if let Some(pattern) = half.keep.iter().find(asked) {
        return Some(format!("kept by `{pattern}`"));
    }
    if let Some(unknown) = &node.unknown {
        return Some(unknown.clone());
    }
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Some(format!("operators of {} are kept as they are", node.domain));
    }
    let missing = !slots::exists(node, half.dtype, version);
    missing.then(|| format!("ONNX has no {} form of {}", half.dtype, node.op_type))
}

/// Would a value that the node reads or writes, or a sum inside it, leave the range of float16?
fn overflow(graph: &Graph, id: NodeId, ranges: &Ranges) -> Option<String> {
    if ranges.is_empty() {
        return None;
    }
    let limit = half::f16::MAX.to_f32();
    let node = graph.node(id);
    for (slot, value) in graph.inputs_of(id).into_iter().enumerate() {
        let Some(value) = value else { continue };
        let bound = node.is("Clip") && slot > 0; // may saturate: what it bounds fits
        let free = slots::input(node, slot) != slots::Slot::Follows;
        if let Some(tensor) = graph.constant(value).filter(|t| t.dtype() == DType::F32 && !bound && !free) {
            let array = tensor.array().ok()?;
            if let Some(v) = array.slice::<f32>().ok()?.iter().find(|v| v.is_finite() && v.abs() > limit) {
                return Some(format!("its constant `{}` holds {v:e}", graph.name(value)));
            }
        }
    }
    let reach = |v: ValueId| ranges.get(&v).map_or(0.0, |r| r.largest);
    for value in touched(graph, id).filter(|&v| is_float(graph, v)) {
        if reach(value) > limit {
            return Some(format!("`{}` reaches {:.1e}", graph.name(value), reach(value)));
        }
    }
    let (input, output) = (graph.input(id, 0)?, graph.output(id, 0)?);
    let seen = |v: ValueId| ranges.get(&v).copied().unwrap_or_default();
    match node.op_type.as_str() {
        "LayerNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "LpNormalization"
        | "RMSNormalization"
        | "ReduceL2"
        | "ReduceSumSquare"
            if reach(input) > LARGEST_SQUARED =>
        {
            Some(format!("the squares of `{}` reach {:.1e}", graph.name(input), reach(input).powi(2)))
        }
        "ReduceMean" | "GlobalAveragePool" => {
            let count = seen(input).elements as f32 / seen(output).elements.max(1) as f32;
            let sum = reach(output) * count;
            (sum > limit).then(|| format!("the sum that it divides reaches {sum:.1e}"))
        }
        _ => None,
    }
}

/// Would a scalar such as an epsilon vanish? What divides by it, or takes its root or logarithm, stays float32 too.
fn underflow(graph: &Graph, id: NodeId, tiny: &mut BTreeSet<ValueId>) -> Option<String> {
    let node = graph.node(id);
    let vanishes = |v: ValueId| {
        let tensor = graph.constant(v).filter(|t| t.len() == 1 && t.dtype() == DType::F32)?;
        let scalar = tensor.array().ok()?.item::<f32>().ok()?;
        (scalar != 0.0 && half::f16::from_f32(scalar) == half::f16::ZERO).then_some((v, scalar))
    };
    let inputs: Vec<ValueId> = graph.inputs_of(id).into_iter().flatten().collect();
    let reason = match node.op_type.as_str() {
        "Sqrt" | "Reciprocal" | "Log" | "Pow" | "Div" | "Neg" | "Unsqueeze" | "Reshape" | "Expand" => {
            let read = inputs.iter().find(|v| tiny.contains(v));
            read.map(|&v| format!("`{}` may be as small as the epsilon in it", graph.name(v)))
        }
        _ => None,
    };
    let reason = reason.or_else(|| {
        let (value, scalar) = inputs.iter().find_map(|&v| vanishes(v))?;
        Some(format!("its constant `{}` is {scalar:e}", graph.name(value)))
    })?;
    if matches!(
        node.op_type.as_str(),
        "Add" | "Max" | "Clip" | "Sqrt" | "Pow" | "Unsqueeze" | "Reshape" | "Expand"
    ) {
        tiny.extend(graph.output(id, 0));
    }
    Some(reason)
}

/// Does a runtime compute the node in integers: real numbers come from DequantizeLinear and go to QuantizeLinear only?
fn in_integers(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    if is_boundary(graph, id) || !node.bodies.is_empty() {
        return false;
    }
    let open = |v: &ValueId| is_float(graph, *v) && graph.constant(*v).is_none();
    let inputs: Vec<ValueId> = graph.inputs_of(id).into_iter().flatten().filter(open).collect();
    let comes = |v: ValueId| {
        graph.producer(v).is_some_and(|(p, _)| {
            graph.node(p).is("DequantizeLinear")
                || (matches!(node.op_type.as_str(), "Relu" | "Clip")
                    && matches!(graph.node(p).op_type.as_str(), "Conv" | "Gemm" | "MatMul" | "Add")
                    && in_integers(graph, p))
        })
    };
    // MatMul and Gemm of two dequantized operands are integer even where their result is not quantized again.
    let dequantized = |slot| {
        graph
            .input(id, slot)
            .and_then(|v| graph.producer(v))
            .is_some_and(|(p, _)| graph.node(p).is("DequantizeLinear"))
    };
    let ends = matches!(node.op_type.as_str(), "MatMul" | "Gemm") && dequantized(0) && dequantized(1);
    !inputs.is_empty()
        && inputs.iter().all(|&v| comes(v))
        && (ends || graph.outputs_of(id).into_iter().flatten().all(|v| leaves(graph, v, true)))
}

/// Is every reader a QuantizeLinear, possibly behind a Relu or Clip?
fn leaves(graph: &Graph, value: ValueId, deeper: bool) -> bool {
    let uses = graph.uses(value);
    let reader = |id: NodeId| {
        graph.node(id).is("QuantizeLinear")
            || (deeper
                && matches!(graph.node(id).op_type.as_str(), "Relu" | "Clip")
                && graph.output(id, 0).is_some_and(|v| leaves(graph, v, false)))
    };
    !uses.is_empty() && !graph.is_output(value) && uses.iter().all(|u| reader(u.node))
}

fn is_boundary(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).is("QuantizeLinear") || graph.node(id).is("DequantizeLinear")
}

/// QuantizeLinear and DequantizeLinear stay float32 next to integers, and where half precision is too coarse for their
/// scale.
fn quantized_edges(graph: &Graph, half: &Half, version: i64, decision: &mut Decision) {
    for id in graph.nodes().filter(|&id| is_boundary(graph, id)).collect::<Vec<_>>() {
        let near = |v: Option<ValueId>| v.into_iter().flat_map(|v| graph.uses(v)).map(|u| u.node);
        let beside = near(graph.output(id, 0))
            .chain(graph.input(id, 0).and_then(|v| graph.producer(v)).map(|p| p.0))
            .any(|n| !is_boundary(graph, n) && decision.followers.contains(&n));
        let fits = half.dtype == DType::F16
            && version >= 19
            && graph.input(id, 1).is_some_and(|v| scale_fits(graph, v));
        let integers = graph.input(id, 0).and_then(|v| graph.ty(v)).is_some_and(|t| t.dtype == DType::I32);
        if beside || !fits || integers {
            decision.kept.remove(&id);
            decision.followers.insert(id);
        }
    }
}

fn scale_fits(graph: &Graph, scale: ValueId) -> bool {
    let normal = |v: &f32| half::f16::from_f32(*v).is_normal();
    let array = graph.constant(scale).and_then(|t| t.array().ok());
    array.is_some_and(|a| a.slice::<f32>().is_ok_and(|s| s.iter().all(normal)))
}

/// Operators that hold no weights join a neighbour in float32 where that saves Casts: the least cut of a network in
/// which the source side is float32 and each value that is wanted in two types costs one (see
/// [`placement`](crate::quantize::placement)).
fn followers(graph: &Graph, float_edge: bool, decision: &mut Decision) {
    const FLOAT: usize = 0;
    const HALF: usize = 1;
    if decision.kept.is_empty() && decision.followers.is_empty() {
        return;
    }
    let mut network = Network::with_vertices(2);
    let mut vertex = BTreeMap::new();
    for id in graph.nodes().filter(|&id| touched(graph, id).any(|v| is_float(graph, v))) {
        let own = network.vertex();
        vertex.insert(id, own);
        let weight = |v: &ValueId| graph.constant(*v).is_some_and(|t| t.len() >= WEIGHT_ELEMENTS);
        let node = graph.node(id);
        let fixed = !node.bodies.is_empty() || graph.inputs_of(id).iter().flatten().any(weight);
        match decision.is_float(id) {
            true => network.edge(FLOAT, own, f64::INFINITY),
            false => network.edge(own, HALF, if fixed { f64::INFINITY } else { 0.01 }),
        }
    }
    for value in graph.values().filter(|&v| is_float(graph, v) && graph.constant(v).is_none()) {
        let edge = if float_edge { FLOAT } else { HALF };
        let producer = match graph.producer(value) {
            Some((p, slot)) if slots::float_output(graph.node(p), slot) => FLOAT,
            Some((p, _)) => vertex.get(&p).copied().unwrap_or(FLOAT),
            None => edge,
        };
        let (wanted_float, wanted_half) = (network.vertex(), network.vertex());
        network.edge(wanted_float, producer, 1.0);
        network.edge(producer, wanted_half, 1.0);
        let mut reader = |v: usize| {
            network.edge(v, wanted_float, f64::INFINITY);
            network.edge(wanted_half, v, f64::INFINITY);
        };
        for usage in graph.uses(value) {
            let crate::ir::Port::Input(slot) = usage.port else { continue };
            match (slots::input(graph.node(usage.node), slot), vertex.get(&usage.node)) {
                (slots::Slot::Follows, Some(&v)) => reader(v),
                (slots::Slot::Float, _) => reader(FLOAT),
                _ => {}
            }
        }
        if graph.is_output(value) {
            reader(edge);
        }
    }
    let side = network.source_side(FLOAT, HALF);
    let joined = vertex.into_iter().filter(|(id, v)| side[*v] && !decision.kept.contains_key(id));
    decision.followers.extend(joined.map(|(id, _)| id));
}
