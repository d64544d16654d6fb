//! ONNX Runtime's `com.microsoft.DynamicQuantizeLSTM`: an LSTM with `int8` weights that quantizes its input as it runs.
//!
//! The interpreter computes it on real numbers: the input is rounded to `uint8` over its range and back, the weights are
//! dequantized. ONNX Runtime also rounds the state at each step; that is left out here.
//! See <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::sync::Arc;

use super::Recurrent;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Fact, Op, TensorType};
use crate::ops::Attrs;
use crate::ops::slots::{optional, required};

/// The operator; its weights have the gates along the last axis.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantizeLstm(Recurrent);

impl DynamicQuantizeLstm {
    /// Reads the attributes, which are those of LSTM before it had a layout.
    pub fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mut plain = Attrs::new(attrs.attributes, 13, attrs.inputs, attrs.outputs);
        let op = Recurrent::lstm(&mut plain)?;
        attrs.read.extend(plain.read);
        let Some(layer) = op.as_a::<Recurrent>() else { fail!("LSTM is no recurrent layer") };
        Ok(Arc::new(Self(layer.clone())))
    }
}

impl Op for DynamicQuantizeLstm {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        self.0.infer(inputs.get(..1).unwrap_or(inputs))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let mut plain: Vec<Option<Array>> = inputs.iter().take(8).cloned().collect();
        plain.resize(8, None);
        plain[0] = Some(rounded(required(inputs, 0)?)?);
        for (slot, scale) in [(1, 8), (2, 10)] {
            let zero = optional(inputs, scale + 1);
            plain[slot] = Some(dequantized(required(inputs, slot)?, required(inputs, scale)?, zero)?);
        }
        self.0.float(&plain)
    }
}

/// The values after a round trip through `uint8`.
fn rounded(x: &Array) -> Result<Array, Fault> {
    let values = x.slice::<f32>()?;
    let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
    let zero = (-low / scale).clamp(0.0, 255.0).round_ties_even();
    let back = |&v: &f32| ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0);
    Array::new(x.shape(), values.iter().map(|v| (back(v) - zero) * scale).collect::<Vec<f32>>())
}

/// Directions × gates × inputs of real numbers from directions × inputs × gates of integers.
fn dequantized(weight: &Array, scale: &Array, zero: Option<&Array>) -> Result<Array, Fault> {
    let &[ways, inputs, gates] = weight.shape() else { fail!("weights have {} axes", weight.rank()) };
    let integers = weight.to_f32()?;
    let per_way = |a: &Array| -> Result<Vec<f32>, Fault> {
        let values: Vec<f32> = a.to_f32()?.iter().copied().collect();
        match values.len() {
            n if n == ways => Ok(values.iter().flat_map(|&v| std::iter::repeat_n(v, gates)).collect()),
            n if n == ways * gates => Ok(values),
            n => Err(format!("{n} scales for {ways} directions of {gates} gates").into()),
        }
    };
    let (scales, zeros) = (per_way(scale)?, zero.map(per_way).transpose()?);
    let values = integers.iter().enumerate().map(|(i, &q)| {
        let at = i / (inputs * gates).max(1) * gates + i % gates.max(1);
        (q - zeros.as_ref().map_or(0.0, |z| z[at])) * scales[at]
    });
    Array::new(&[ways, inputs, gates], values.collect::<Vec<f32>>())?.transposed(&[0, 2, 1])
}
