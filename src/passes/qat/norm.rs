//! BatchNormalization after a convolution whose weight is quantized: `γ/σ·(Q·s)` is `(±Q)·(s·|γ|/σ)`.

use super::{Quantized, Rewrite, node, reals};
use crate::interpret::node_label;
use crate::ir::{Array, DType, Edit, Graph, NodeId, Refusal, Tensor, attribute};
use crate::ops::normalize::BatchNormalization;

/// See the module.
pub struct FoldIntoQuantized;

impl Rewrite for FoldIntoQuantized {
    fn name(&self) -> &'static str {
        "fold-into-quantized-weight"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some(norm) = graph.node(id).op_as::<BatchNormalization>() else { return Ok(None) };
        let (Some(input), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let Some((conv, _)) = graph.producer(input).filter(|(p, _)| graph.node(*p).is("Conv")) else {
            return Ok(None);
        };
        let Some(real) = graph.input(conv, 1) else { return Ok(None) };
        let Some(weight) = Quantized::of(graph, real).filter(|w| w.symmetric) else { return Ok(None) };
        for value in [input, real, weight.integers] {
            if graph.only_use(value).is_none() {
                return Err(format!("`{}` is used elsewhere", graph.name(value)).into());
            }
        }
        let parameter = |slot: usize| graph.constant_input(id, slot).and_then(reals);
        let (Some(gamma), Some(beta), Some(mean), Some(variance)) =
            (parameter(1), parameter(2), parameter(3), parameter(4))
        else {
            return Err("its parameters are computed".into());
        };
        let factor: Vec<f64> = gamma
            .iter()
            .zip(&variance)
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + f64::from(norm.epsilon)).sqrt())
            .collect();
        let Some(tensor) = graph.constant(weight.integers).filter(|t| t.dtype() == DType::I8) else {
            return Err("the weight is not int8".into());
        };
        let channels = tensor.shape().first().copied().unwrap_or(0);
        if factor.len() != channels
            || weight.axis.is_some_and(|a| a != 0)
            || factor.iter().any(|f| !f.is_finite())
        {
            return Err("its channels are not those of the scales".into());
        }
        let bias = match graph.input(conv, 2) {
            None => vec![0.0; channels],
            Some(value) => real_bias(graph, value).ok_or("the bias is computed")?,
        };
        let inner = tensor.len() / channels.max(1);
        let integers = tensor.array().map_err(|f| f.to_string())?;
        let integers = integers.slice::<i8>().map_err(|f| f.to_string())?;
        let turned =
            |(i, &q): (usize, &i8)| if factor[i / inner.max(1)] < 0.0 { q.saturating_neg() } else { q };
        let integers: Vec<i8> = integers.iter().enumerate().map(turned).collect();
        let scale = |(c, f): (usize, &f64)| {
            let own = weight.scales[if weight.scales.len() == 1 { 0 } else { c }];
            (f64::from(own) * f.abs()).max(f64::from(f32::MIN_POSITIVE)) as f32
        };
        let scales: Vec<f32> = factor.iter().enumerate().map(scale).collect();
        let shift = |(c, b): (usize, &f32)| {
            ((f64::from(*b) - f64::from(mean[c])) * factor[c] + f64::from(beta[c])) as f32
        };
        let bias: Vec<f32> = bias.iter().enumerate().map(shift).collect();

        let mut edit = Edit::dropping(&[id, conv, weight.dequantize]);
        let name = graph.name(weight.integers).to_string();
        let array = |a: Result<Array, crate::error::Fault>| {
            a.map(|a| Tensor::from_array(&a)).map_err(|f| f.to_string())
        };
        let stored = edit.constant(&name, array(Array::new(tensor.shape(), integers))?);
        let scale = edit.constant(&format!("{name}_scale"), array(Ok(Array::vector(scales)))?);
        let zero =
            edit.constant(&format!("{name}_zero_point"), array(Ok(Array::vector(vec![0i8; channels])))?);
        let bias = edit.constant(&format!("{}_bias", graph.name(output)), array(Ok(Array::vector(bias)))?);
        let dequantized = edit.value(graph.name(real), graph.ty(real).cloned());
        let label = node_label(graph, weight.dequantize);
        let mut dequantize = node("DequantizeLinear", label, vec![attribute::int("axis", 0)], 3);
        dequantize.rank = graph.node(conv).rank;
        edit.apply(dequantize, &[stored, scale, zero], dequantized);
        let Some(x) = graph.input(conv, 0) else { return Ok(None) };
        edit.apply(graph.node(conv).clone(), &[x.into(), dequantized, bias], output);
        Ok(Some(edit))
    }
}

/// A bias, constant or dequantized.
fn real_bias(graph: &Graph, value: crate::ir::ValueId) -> Option<Vec<f32>> {
    if let Some(tensor) = graph.constant(value) {
        return reals(tensor);
    }
    let quantized = Quantized::of(graph, value).filter(|q| q.symmetric)?;
    let integers = graph.constant(quantized.integers)?.array().ok()?;
    let scale = |c: usize| quantized.scales[if quantized.scales.len() == 1 { 0 } else { c }];
    Some(integers.to_f32().ok()?.iter().enumerate().map(|(c, &q)| q * scale(c)).collect())
}
