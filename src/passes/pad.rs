//! Zero padding before a convolution becomes the convolution's own.

use super::{Rewrite, node};
use crate::interpret::node_label;
use crate::ir::attribute;
use crate::ir::{Edit, Graph, NodeId, Refusal};
use crate::ops::conv::Conv;
use crate::ops::window::AutoPad;

/// `Conv(Pad(x))` with constant zero padding of the spatial axes.
pub struct PadIntoConvolution;

impl Rewrite for PadIntoConvolution {
    fn name(&self) -> &'static str {
        "pad-into-convolution"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let old = graph.node(id);
        let Some(conv) = old.op_as::<Conv>() else { return Ok(None) };
        let Some((pad, _)) = graph.input(id, 0).and_then(|v| graph.producer(v)) else { return Ok(None) };
        if !graph.node(pad).is("Pad") || graph.node(pad).unknown.is_some() {
            return Ok(None);
        }
        let Some(extra) = zero_padding(graph, pad) else {
            return Err("its padding is no constant of zeros".into());
        };
        let Some(weight) = graph.input(id, 1).and_then(|w| graph.ty(w)?.rank()) else { return Ok(None) };
        let spatial = weight.saturating_sub(2);
        if extra.len() != 2 * weight || extra.iter().any(|&p| p < 0) {
            return Err("it crops, or pads another rank".into());
        }
        let (before, after) = extra.split_at(weight);
        if before[..2].iter().chain(&after[..2]).any(|&p| p != 0) {
            return Err("it pads batch or channels".into());
        }
        let Some(own) = explicit_pads(conv, spatial) else {
            return Err("auto_pad depends on the input".into());
        };
        let sum = |side: &[i64], own: &[i64]| -> Vec<i64> {
            side[2..].iter().zip(own).map(|(a, b)| a + b).collect()
        };
        let mut pads = sum(before, &own[..spatial]);
        pads.extend(sum(after, &own[spatial..]));
        let kept = |a: &&crate::ir::Attribute| !matches!(a.name.as_deref(), Some("pads" | "auto_pad"));
        let mut attributes: Vec<_> = old.attributes.iter().filter(kept).cloned().collect();
        attributes.push(attribute::ints("pads", pads));
        let (Some(x), Some(y)) = (graph.input(pad, 0), graph.output(id, 0)) else { return Ok(None) };
        let mut inputs: Vec<_> = graph.inputs_of(id).into_iter().map(|v| v.map(Into::into)).collect();
        inputs[0] = Some(x.into());
        let mut edit = Edit::dropping(&[pad, id]);
        edit.node(
            node("Conv", node_label(graph, id), attributes, inputs.len()),
            inputs,
            vec![Some(y.into())],
        );
        Ok(Some(edit))
    }
}

fn explicit_pads(conv: &Conv, spatial: usize) -> Option<Vec<i64>> {
    let zeros = vec![0; 2 * spatial];
    match (conv.window.auto_pad, &conv.window.pads) {
        (AutoPad::Valid, _) | (AutoPad::NotSet, None) => Some(zeros),
        (AutoPad::NotSet, Some(pads)) if pads.len() == zeros.len() => {
            Some(pads.iter().map(|&p| p as i64).collect())
        }
        _ => None,
    }
}

/// The pads of a Pad node (all axes, begins then ends) if it fills with zeros.
fn zero_padding(graph: &Graph, pad: NodeId) -> Option<Vec<i64>> {
    let mode = graph.node(pad).attributes.iter().find(|a| a.name.as_deref() == Some("mode"));
    if mode.is_some_and(|m| m.s.as_deref() != Some(b"constant")) || graph.input(pad, 3).is_some() {
        return None;
    }
    if let Some(value) = graph.input(pad, 2) {
        let filled = graph.constant(value)?.array().ok()?.to_f32().ok()?;
        if filled.iter().any(|&v| v != 0.0) {
            return None;
        }
    }
    graph.constant_input(pad, 1)?.array().ok()?.to_i64().ok()
}
