//! Dynamic-range quantization: weights in `int8`, arithmetic in float, no data needed.
//!
//! Each weight is stored as symmetric `int8` by output channel behind a DequantizeLinear that defines it under its old
//! name: whoever read the weight, in this graph or in a body of If, Loop or Scan, reads it still, and a weight with many
//! readers is stored once. Tables of Gather are stored as `uint8` and gathered before they are dequantized, so that
//! only the rows that are wanted become real numbers.

mod readers;
mod round;
mod store;

use std::collections::BTreeSet;

pub use readers::{Reader, Role, readers};
pub use store::{Packed, define, gather};

use super::candidate::Filter;
use crate::error::Fault;
use crate::ir::{DType, Graph, Tensor, ValueId};

/// Smaller constants are not worth a scale and a node.
const MIN_ELEMENTS: usize = 256;

/// What was done to the weights.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Nodes that were quantized, as labels.
    pub nodes: BTreeSet<String>,
    /// Beside them, those whose weights are stored in integers while they compute in float.
    pub stored: BTreeSet<String>,
    /// Nodes that keep float weights, and why.
    pub float: Vec<(String, String)>,
}

/// Quantizes the weights of a graph and of the bodies in it.
pub fn quantize(graph: &mut Graph, filter: &Filter) -> Result<Stored, Fault> {
    let mut done = Stored::default();
    each_graph(graph, &mut |graph| {
        for value in graph.constants.clone() {
            weight(graph, value, filter, &mut done)?;
        }
        Ok(())
    })?;
    Ok(done)
}

/// Beside operators in integers: stores what the float ones read in 8 bits where that costs no time. Those are tables, of
/// which only gathered rows become real numbers, and matrices that float activations are multiplied by, for which ONNX
/// Runtime has a kernel of its own.
pub fn quantize_beside(graph: &mut Graph, filter: &Filter) -> Result<Stored, Fault> {
    let mut done = Stored::default();
    for value in graph.constants.clone() {
        let matrix = graph.constant(value).is_some_and(|t| t.shape().len() == 2);
        let cheap = |r: &Reader| match (r.role, r.place) {
            (Role::Table, _) => true,
            (Role::Weight(_), Some((node, 1))) => matrix && graph.node(node).is("MatMul"),
            _ => false,
        };
        let readers = readers(graph, value, filter);
        if !readers.is_empty() && readers.iter().all(cheap) {
            weight(graph, value, filter, &mut done)?;
        }
    }
    Ok(done)
}

/// Visits a graph, then the bodies of its nodes. Names made in the graph are kept from its bodies and the other way
/// round.
pub fn each_graph(
    graph: &mut Graph,
    visit: &mut dyn FnMut(&mut Graph) -> Result<(), Fault>,
) -> Result<(), Fault> {
    visit(graph)?;
    let owners: Vec<_> = graph.nodes().filter(|&n| !graph.node(n).bodies.is_empty()).collect();
    for id in owners {
        let names = graph.all_names();
        let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
        for body in &mut bodies {
            let hidden: Vec<_> = names.iter().filter(|n| body.graph.find(n).is_none()).cloned().collect();
            body.graph.reserve(hidden);
            each_graph(&mut body.graph, visit)?;
            graph.reserve(body.graph.all_names());
        }
        graph.node_mut(id).bodies = bodies;
    }
    Ok(())
}

/// Is it a constant worth quantizing?
pub fn is_large(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    let tensor = graph.constant(value)?;
    (tensor.dtype() == DType::F32 && tensor.len() >= MIN_ELEMENTS && !graph.is_output(value))
        .then_some(tensor)
}

/// Quantizes one constant if it is a weight.
pub fn weight(graph: &mut Graph, value: ValueId, filter: &Filter, done: &mut Stored) -> Result<(), Fault> {
    let Some(tensor) = is_large(graph, value) else { return Ok(()) };
    let readers = readers(graph, value, filter);
    if readers.iter().all(|r| matches!(r.role, Role::Other)) {
        return Ok(());
    }
    let array = tensor.array()?;
    let real = array.slice::<f32>()?;
    let refusal = readers.iter().find_map(|r| r.refused.clone());
    let refusal =
        refusal.or_else(|| (!round::all_finite(real)).then(|| "its weight is not finite".to_string()));
    if let Some(reason) = refusal {
        done.float.extend(readers.into_iter().map(|r| (r.label, reason.clone())));
        return Ok(());
    }
    let axis = readers.iter().find_map(|r| match r.role {
        Role::Weight(axis) => Some(axis),
        _ => None,
    });
    match axis {
        Some(axis) => define(graph, value, round::symmetric(real, array.shape(), axis)?),
        None => gather(graph, value, round::table(real, array.shape())?),
    }
    done.nodes.extend(readers.into_iter().filter(|r| !matches!(r.role, Role::Other)).map(|r| r.label));
    Ok(())
}

#[cfg(test)]
mod tests;
