//! Differences and quotients by constants become sums and products: `x - c = x + (-c)`, `x / c = x · (1/c)`.
//!
//! Integer kernels exist for Add and Mul only, and one pattern then finds every affine map.

use super::{Rewrite, node};
use crate::interpret::node_label;
use crate::ir::{Array, DType, Edit, Graph, NodeId, Refusal, Tensor};

/// `x - c`.
pub struct SubtractConstant;

impl Rewrite for SubtractConstant {
    fn name(&self) -> &'static str {
        "subtract-constant"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        replace(graph, id, "Sub", "Add", |c| -c)
    }
}

/// `x / c`.
pub struct DivideByConstant;

impl Rewrite for DivideByConstant {
    fn name(&self) -> &'static str {
        "divide-by-constant"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        replace(graph, id, "Div", "Mul", |c| 1.0 / c)
    }
}

fn replace(
    graph: &Graph,
    id: NodeId,
    from: &str,
    to: &str,
    map: impl Fn(f32) -> f32,
) -> Result<Option<Edit>, Refusal> {
    let old = graph.node(id);
    if !old.is(from) || old.unknown.is_some() {
        return Ok(None);
    }
    let (Some(x), Some(c), Some(y)) = (graph.input(id, 0), graph.input(id, 1), graph.output(id, 0)) else {
        return Ok(None);
    };
    let Some(constant) = graph.constant(c).filter(|t| t.dtype() == DType::F32) else { return Ok(None) };
    if graph.constant(x).is_some() {
        return Ok(None);
    }
    let Ok(values) = constant.array().and_then(|a| a.to_f32()) else { return Ok(None) };
    let mapped = values.map(|&v| map(v));
    if mapped.iter().any(|v| !v.is_finite()) {
        return Err("the constant has no finite inverse".into());
    }
    let mut edit = Edit::dropping(&[id]);
    let new = edit.constant(graph.name(c), Tensor::from_array(&Array::from(mapped.into_shared())));
    edit.apply(node(to, node_label(graph, id), vec![], 2), &[x.into(), new], y);
    Ok(Some(edit))
}
