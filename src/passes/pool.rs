//! ReduceMean over all spatial axes is GlobalAveragePool, which has an integer kernel.

use super::{Rewrite, node};
use crate::interpret::node_label;
use crate::ir::{Array, Dim, Edit, Graph, NodeId, Refusal, Tensor, TensorType};

/// ReduceMean over axes 2 … rank-1 of a value of rank 3 or more.
pub struct SpatialMean;

impl Rewrite for SpatialMean {
    fn name(&self) -> &'static str {
        "spatial-mean"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let old = graph.node(id);
        if !old.is("ReduceMean") || old.unknown.is_some() {
            return Ok(None);
        }
        let (Some(x), Some(y)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let Some(rank) = graph.ty(x).and_then(TensorType::rank).filter(|&r| r > 2) else { return Ok(None) };
        let given = old.attributes.iter().find(|a| a.name.as_deref() == Some("axes")).map(|a| a.ints.clone());
        let given = given.or_else(|| graph.constant_input(id, 1)?.array().ok()?.to_i64().ok());
        let Some(mut axes) = given else { return Ok(None) };
        axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += rank as i64);
        axes.sort_unstable();
        if axes != (2..rank as i64).collect::<Vec<_>>() {
            return Ok(None);
        }
        let keep = old
            .attributes
            .iter()
            .find(|a| a.name.as_deref() == Some("keepdims"))
            .is_none_or(|a| a.i != Some(0));
        let mut edit = Edit::dropping(&[id]);
        let pool = node("GlobalAveragePool", node_label(graph, id), vec![], 1);
        if keep {
            edit.apply(pool, &[x.into()], y);
            return Ok(Some(edit));
        }
        let pooled_type = graph.ty(x).and_then(|t| {
            let kept = t.dims.as_ref()?.iter().take(2).cloned();
            Some(TensorType::new(t.dtype, kept.chain(vec![Dim::Known(1); rank - 2]).collect()))
        });
        let pooled = edit.value(&format!("{}_pooled", graph.name(y)), pooled_type);
        edit.apply(pool, &[x.into()], pooled);
        let shape = edit.constant("shape", Tensor::from_array(&Array::vector(vec![0i64, -1])));
        let reshape = node("Reshape", format!("{}_flat", node_label(graph, id)), vec![], 2);
        edit.apply(reshape, &[pooled, shape], y);
        Ok(Some(edit))
    }
}
