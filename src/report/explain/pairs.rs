//! QuantizeLinear and DequantizeLinear themselves: pairs behind each other, scales that make no sense.

use super::kernels::is_integer;
use super::{Context, Finding, Level};
use crate::ir::{DType, NodeId};
use crate::report::qdq;

/// Checks one QuantizeLinear or DequantizeLinear node.
pub fn check(context: &Context, id: NodeId, findings: &mut Vec<Finding>) {
    let graph = context.graph;
    let mut find = |level, kind, message: String| findings.push(context.finding(level, kind, id, message));
    let Some(params) = qdq::params(graph, id) else { return };
    if let Some(bad) = params.scales.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        find(Level::Warning, "bad-scale", format!("a scale is {bad}"));
    }
    if !qdq::is_quantize(graph.node(id)) {
        return;
    }
    if params.dtype == DType::I8 && context.target.storage.activation == DType::U8 {
        let message = "activations are int8: x86 kernels take uint8, and the runtime converts only values with one reader";
        find(Level::Warning, "int8-activation", message.into());
    }
    let Some(value) = graph.input(id, 0) else { return };
    if qdq::is_constant(graph, value) {
        let message = "a constant is quantized at run time; store the integers";
        find(Level::Warning, "constant-quantized", message.into());
    }
    if let Some(before) = qdq::dequantizer(graph, value)
        && let Some(other) = qdq::params(graph, before)
    {
        match other.same(&params) {
            true => find(Level::Warning, "double-qdq", "undoes the DequantizeLinear before it".into()),
            false => {
                let message = format!("requantizes: {} to {}", other.shown(), params.shown());
                find(Level::Warning, "double-qdq", message);
            }
        }
    }
    if qdq::dequantized(graph, id).is_empty() {
        return;
    }
    // A pair that no integer kernel touches on either side.
    let from_integers = graph.producer(value).is_some_and(|(p, _)| is_integer(context, p));
    let mut readers = qdq::dequantized(graph, id).into_iter().flat_map(|v| graph.uses(v));
    if !from_integers && !readers.any(|u| is_integer(context, u.node)) {
        let message = format!(
            "no integer kernel on either side of `{}`: the pair costs time and accuracy for nothing",
            graph.name(value)
        );
        find(Level::Warning, "useless-qdq", message);
    }
}
