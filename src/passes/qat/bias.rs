//! A real bias between a quantized input and a quantized weight: kernels want it in 32 bits, at the product of the scales.

use super::{Quantized, Rewrite, node, reals};
use crate::interpret::node_label;
use crate::ir::{Array, Edit, Graph, NodeId, Refusal, Tensor, attribute};
use crate::ops::quantize::Dequantize;

/// See the module.
pub struct IntegerBias;

impl Rewrite for IntegerBias {
    fn name(&self) -> &'static str {
        "integer-bias"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let operator = graph.node(id);
        if !operator.is("Conv") && !operator.is("Gemm") {
            return Ok(None);
        }
        let inputs = graph.inputs_of(id);
        let [Some(x), Some(w), Some(b)] = inputs[..] else { return Ok(None) };
        let Some(bias) = graph.constant(b).and_then(reals) else { return Ok(None) };
        let Some(weight) = Quantized::of(graph, w) else { return Ok(None) };
        let scale = graph.producer(x).and_then(|(p, _)| {
            graph.node(p).op_as::<Dequantize>()?;
            match *reals(graph.constant_input(p, 1)?)? {
                [scale] => Some(scale),
                _ => None,
            }
        });
        let Some(scale) = scale else { return Ok(None) };
        if operator.op_as::<crate::ops::gemm::Gemm>().is_some_and(|g| g.alpha != 1.0 || g.beta != 1.0) {
            return Err("alpha or beta is not 1".into());
        }
        let shape = graph.constant(b).map(|t| t.shape().to_vec()).unwrap_or_default();
        if shape.len() != 1 || (weight.scales.len() != 1 && weight.scales.len() != bias.len()) {
            return Err("the bias is not one number a channel".into());
        }
        let scales: Vec<f32> = weight.scales.iter().map(|s| s * scale).collect();
        let own = |c: usize| f64::from(scales[if scales.len() == 1 { 0 } else { c }]);
        let integers: Vec<f64> =
            bias.iter().enumerate().map(|(c, &b)| (f64::from(b) / own(c)).round_ties_even()).collect();
        if integers.iter().any(|q| !q.is_finite() || q.abs() > f64::from(i32::MAX)) {
            return Err("it does not fit 32 bits".into());
        }
        let integers: Vec<i32> = integers.into_iter().map(|q| q as i32).collect();
        let mut edit = Edit::dropping(&[id]);
        let name = graph.name(b).to_string();
        let stored =
            edit.constant(&format!("{name}_quantized"), Tensor::from_array(&Array::vector(integers)));
        let vector = scales.len() > 1;
        let scales = if vector { Array::vector(scales) } else { Array::scalar(scales[0]) };
        let scale = edit.constant(&format!("{name}_scale"), Tensor::from_array(&scales));
        let real = edit.value(&format!("{name}_dequantized"), graph.ty(b).cloned());
        let axis = vector.then(|| attribute::int("axis", 0));
        let label = format!("{}_bias_DequantizeLinear", node_label(graph, id));
        let mut dequantize = node("DequantizeLinear", label, axis.into_iter().collect(), 2);
        dequantize.rank = operator.rank;
        edit.apply(dequantize, &[stored, scale], real);
        let Some(output) = graph.output(id, 0) else { return Ok(None) };
        edit.apply(operator.clone(), &[x.into(), w.into(), real], output);
        Ok(Some(edit))
    }
}
