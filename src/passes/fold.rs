//! Constant folding: a node whose inputs are all constants is replaced by what it computes.
//!
//! Weights reach their operators through Constant nodes, Identity, Cast, Transpose and Reshape; afterwards they are
//! initializers. The shape of a value whose type is wholly known is a constant too. Quantized constants keep their
//! DequantizeLinear: expanding them would undo the work of whoever quantized the model.

use super::Rewrite;
use crate::budget;
use crate::interpret::room;
use crate::ir::{Array, Edit, Graph, NodeId, Refusal, Tensor};

/// A folded result may be this much larger than what it was made from.
const MAX_GROWTH: usize = 1 << 16;

/// Integers of 8 bits, this many or more, are taken for a quantized weight.
const WEIGHT: usize = 256;

/// See the module.
pub struct Constants;

impl Rewrite for Constants {
    fn name(&self) -> &'static str {
        "constant-folding"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let node = graph.node(id);
        let Some(op) = node.op.as_ref().filter(|_| node.unknown.is_none()) else { return Ok(None) };
        if !op.is_pure()
            || op.control().is_some()
            || node.op_type.ends_with("QuantizeLinear")
            || node.op_type.ends_with("DequantizeLinear")
        {
            return Ok(None);
        }
        if node.is("Cast")
            && graph.constant_input(id, 0).is_some_and(|t| t.dtype().bits() <= 8 && t.len() >= WEIGHT)
        {
            return Ok(None); // an integer weight in front of a Mul by its scale
        }
        let outputs = graph.outputs_of(id);
        if outputs.iter().flatten().any(|&v| graph.is_output(v)) {
            return Ok(None); // an output keeps a node that defines it
        }
        let Some((arrays, size)) = evaluate(graph, id) else { return Ok(None) };
        let mut edit = Edit::dropping(&[id]);
        let mut total = 0;
        for (value, array) in outputs.into_iter().zip(arrays) {
            let tensor = Tensor::from_array(&array);
            total += tensor.byte_len();
            if let Some(value) = value {
                edit.define(value, tensor);
            }
        }
        if total > size + MAX_GROWTH {
            return Err(format!("it would grow from {size} to {total} bytes").into());
        }
        Ok(Some(edit))
    }
}

/// The outputs of a node whose inputs are constants, and the size of those in bytes.
fn evaluate(graph: &Graph, id: NodeId) -> Option<(Vec<Array>, usize)> {
    let node = graph.node(id);
    if node.is("Shape") && node.attributes.is_empty() {
        let value = graph.input(id, 0)?;
        let shape = graph.ty(value)?.shape()?;
        return Some((vec![Array::vector(shape.into_iter().map(|d| d as i64).collect())], 0));
    }
    let mut size = 0usize;
    for value in graph.inputs_of(id).into_iter().flatten() {
        size = size.checked_add(graph.constant(value)?.byte_len())?;
    }
    if size as u64 > budget::memory() / 4 {
        return None;
    }
    let mut inputs = Vec::new();
    for value in graph.inputs_of(id) {
        inputs.push(match value {
            None => None,
            Some(value) => Some(graph.constant(value)?.array().ok()?),
        });
    }
    if node.is("Constant") {
        size = usize::MAX - MAX_GROWTH;
    }
    let (op, given) = (node.op.as_ref()?, inputs.iter().map(Option::as_ref).collect::<Vec<_>>());
    if room::needed(&**op, &given) > ((size + MAX_GROWTH) as u64).min(budget::memory() / 4) {
        return None;
    }
    Some((op.float(&inputs).ok()?, size))
}
