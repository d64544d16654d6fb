//! Elements that are only moved after DequantizeLinear (a Transpose between layouts, a Reshape) are moved as integers, so
//! that what reads them finds its DequantizeLinear in front of it.

use super::Rewrite;
use crate::ir::{Edit, Graph, NodeId, Refusal};
use crate::ops::quantize::{Dequantize, Quantize};

/// Operators that move elements of any type.
const MOVING: [&str; 5] = ["Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// See the module.
pub struct MoveIntegers;

impl Rewrite for MoveIntegers {
    fn name(&self) -> &'static str {
        "move-integers"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let moving = graph.node(id);
        if !moving.domain.is_empty() || !MOVING.contains(&moving.op_type.as_str()) {
            return Ok(None);
        }
        let (Some(real), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let Some((dequantize, _)) = graph.producer(real) else { return Ok(None) };
        let one_scale = graph.constant_input(dequantize, 1).is_some_and(|s| s.len() == 1);
        if graph.node(dequantize).op_as::<Dequantize>().is_none() || !one_scale {
            return Ok(None);
        }
        // In front of a QuantizeLinear the three are a unit that runtimes know; at an output there is nobody to help.
        let rounded = |u: &crate::ir::Use| graph.node(u.node).op_as::<Quantize>().is_some();
        if graph.uses(output).iter().any(rounded) || graph.is_pinned(output) || graph.only_use(real).is_none()
        {
            return Ok(None);
        }
        let Some(integers) = graph.input(dequantize, 0) else { return Ok(None) };
        if graph.constant(integers).is_some() {
            return Ok(None);
        }
        let mut edit = Edit::dropping(&[dequantize, id]);
        let ty = graph.ty(output).cloned().zip(graph.ty(integers)).map(|(mut ty, stored)| {
            ty.dtype = stored.dtype;
            ty
        });
        let moved = edit.value(&format!("{}_quantized", graph.name(output)), ty);
        let rest = |node: NodeId| graph.inputs_of(node).into_iter().skip(1).map(|v| v.map(Into::into));
        let given = std::iter::once(Some(integers.into())).chain(rest(id)).collect();
        edit.node(moving.clone(), given, vec![Some(moved)]);
        let given = std::iter::once(Some(moved)).chain(rest(dequantize)).collect();
        edit.node(graph.node(dequantize).clone(), given, vec![Some(output.into())]);
        Ok(Some(edit))
    }
}
