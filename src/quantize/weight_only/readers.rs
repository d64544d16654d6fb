//! Who reads a constant, and as what.

use crate::interpret::node_label;
use crate::ir::{Graph, NodeId, Port, ValueId};
use crate::ops::conv::ConvTranspose;
use crate::ops::gemm::Gemm;
use crate::quantize::candidate::Filter;

/// What a constant is to the operator that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A factor in sums of products. The axis counts output channels; `None`: one scale serves all.
    Weight(Option<usize>),
    /// The data of a Gather along the first axis, in the same graph.
    Table,
    /// Anything else.
    Other,
}

/// A node that reads a constant.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The node's name for the report.
    pub label: String,
    /// What the constant is to it.
    pub role: Role,
    /// Why the user wants it left alone.
    pub refused: Option<String>,
    /// The node and the slot that the constant fills, if the node is in the same graph.
    pub place: Option<(NodeId, usize)>,
}

impl Reader {
    /// Is it a weight by which features are multiplied that come as they are from outside the model? Nothing has brought
    /// them to one scale; a convolution slides over one kind of thing.
    pub fn weighs_raw_features(&self, graph: &Graph) -> bool {
        let Some((id, 1)) = self.place else { return false };
        let node = graph.node(id);
        if !["Gemm", "MatMul", "LSTM", "GRU", "RNN"].iter().any(|op| node.is(op)) {
            return false;
        }
        let mut input = graph.input(id, 0);
        while let Some(value) = input {
            let Some((producer, _)) = graph.producer(value) else { return graph.constant(value).is_none() };
            let moves = MOVEMENTS.contains(&graph.node(producer).op_type.as_str());
            input = graph.input(producer, 0).filter(|_| moves && !graph.node(producer).is("Concat"));
        }
        false
    }
}

/// Everyone who reads a constant, in its graph and in the bodies there.
pub fn readers(graph: &Graph, value: ValueId, filter: &Filter) -> Vec<Reader> {
    let mut found = Vec::new();
    collect(graph, value, filter, true, &mut found);
    found
}

fn collect(graph: &Graph, value: ValueId, filter: &Filter, own: bool, found: &mut Vec<Reader>) {
    let rank = graph.ty(value).and_then(|t| t.rank());
    for usage in graph.uses(value) {
        let node = graph.node(usage.node);
        match usage.port {
            Port::Input(slot) => {
                let role = rank.map_or(Role::Other, |rank| role(graph, usage.node, slot, rank));
                found.push(Reader {
                    label: format!("{} `{}`", node.op_type, node_label(graph, usage.node)),
                    role: if role == Role::Table && !own { Role::Other } else { role },
                    refused: filter.refuses(graph, usage.node).filter(|_| role != Role::Other),
                    place: own.then_some((usage.node, slot)),
                });
            }
            Port::Capture => {
                for body in &node.bodies {
                    if let Some(inner) = body.graph.find(graph.name(value)) {
                        collect(&body.graph, inner, filter, false, found);
                    }
                }
            }
            Port::Output(_) => {}
        }
    }
}

/// Operators that move elements: behind them a weight is still one.
const MOVEMENTS: &[&str] =
    &["Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"];

/// So many movements are looked through.
const DEPTH: usize = 5;

/// Does what a movement returns become a factor in sums of products?
fn ends_as_weight(graph: &Graph, id: NodeId, depth: usize) -> bool {
    graph.outputs_of(id).into_iter().flatten().any(|value| {
        let rank = graph.ty(value).and_then(|t| t.rank());
        graph.uses(value).into_iter().any(|usage| {
            let Port::Input(slot) = usage.port else { return false };
            match MOVEMENTS.contains(&graph.node(usage.node).op_type.as_str()) {
                true => depth > 0 && ends_as_weight(graph, usage.node, depth - 1),
                // A rank that is not known is taken for one that fits.
                false => matches!(role(graph, usage.node, slot, rank.unwrap_or(2)), Role::Weight(_)),
            }
        })
    })
}

/// Has ONNX Runtime one kernel for the product and the dequantization of its weight?
pub fn is_fused(reader: &Reader, graph: &Graph, rank: usize) -> bool {
    let product = |(id, slot): (NodeId, usize)| {
        rank == 2 && slot == 1 && (graph.node(id).is("MatMul") || graph.node(id).is("Gemm"))
    };
    reader.place.is_some_and(product)
}

/// What the constant of this rank in a slot is to the node.
fn role(graph: &Graph, id: NodeId, slot: usize, rank: usize) -> Role {
    let node = graph.node(id);
    if node.unknown.is_some() || !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Role::Other;
    }
    let axis = |axis: usize| Role::Weight(Some(axis).filter(|&a| a < rank && rank > 1));
    match (node.op_type.as_str(), slot) {
        (movement, _) if MOVEMENTS.contains(&movement) => match ends_as_weight(graph, id, DEPTH) {
            true => axis(0),
            false => Role::Other,
        },
        ("Conv", 1) => axis(0),
        // With groups, axis 1 mixes channels of all of them; axis 0 belongs to one group each.
        ("ConvTranspose", 1) => axis(usize::from(node.op_as::<ConvTranspose>().is_none_or(|c| c.group == 1))),
        ("Gemm", 0) => axis(usize::from(node.op_as::<Gemm>().is_some_and(|g| g.trans_a))),
        ("Gemm", 1) => axis(usize::from(node.op_as::<Gemm>().is_none_or(|g| !g.trans_b))),
        ("MatMul", 0) => rank.checked_sub(2).map_or(Role::Weight(None), axis),
        ("MatMul", 1) => rank.checked_sub(1).map_or(Role::Weight(None), axis),
        ("LSTM" | "GRU" | "RNN", 1 | 2) => axis(1),
        ("Einsum", _) => Role::Weight(einsum_axis(graph, id, slot).filter(|&a| a < rank && rank > 1)),
        ("Gather", 0) => {
            let along = node.attributes.iter().find(|a| a.name.as_deref() == Some("axis")).and_then(|a| a.i);
            if along.unwrap_or(0) == 0 { Role::Table } else { Role::Other }
        }
        _ => Role::Other,
    }
}

/// The last axis of an operand of Einsum that is also one of the result: no sum runs along it.
fn einsum_axis(graph: &Graph, id: NodeId, slot: usize) -> Option<usize> {
    let equation = graph.node(id).attributes.iter().find(|a| a.name.as_deref() == Some("equation"))?;
    let equation: String = std::str::from_utf8(equation.s.as_deref()?).ok()?.split_whitespace().collect();
    let (operands, result) = equation.split_once("->")?;
    let operand: Vec<char> = operands.split(',').nth(slot)?.chars().collect();
    if operand.contains(&'.') {
        return None;
    }
    operand.iter().rposition(|label| result.contains(*label))
}
