//! ONNX Runtime's `com.microsoft.DynamicQuantizeLSTM`: an LSTM with `int8` weights that quantizes its input as it runs.
//!
//! The interpreter computes it on real numbers: the input, and at each step the state, are rounded to `uint8` over their
//! range and back, and the weights are dequantized. Sequences of several lengths run without the rounding of the state.
//! See <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::sync::Arc;

use super::{Direction, Recurrent};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Fact, Op, TensorType};
use crate::kernels::strided::take_array;
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
        match optional(inputs, 4) {
            Some(_) => self.0.float(&plain),
            None => self.step_by_step(&plain),
        }
    }
}

impl DynamicQuantizeLstm {
    /// Each direction by itself, a step at a time: what goes into the next is the rounded state.
    fn step_by_step(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (&[time, batch, _], &[ways, _, hidden]) = (x.shape(), required(inputs, 2)?.shape()) else {
            fail!("input and recurrent weights do not have three dimensions");
        };
        let (mut steps, mut states, mut cells) = (vec![Vec::new(); time], Vec::new(), Vec::new());
        for way in 0..ways {
            let reverse = self.0.direction == Direction::Reverse || way == 1;
            let count = self.0.cell.activations();
            let activations = self.0.activations.get(way * count..(way + 1) * count).unwrap_or_default().to_vec();
            let layer = Recurrent { direction: Direction::Forward, activations, ..self.0.clone() };
            let mut own: Vec<Option<Array>> = inputs.to_vec();
            for slot in [1, 2, 3, 5, 6, 7] {
                if let Some(array) = optional(inputs, slot) {
                    own[slot] = Some(take_array(array, 0, &[way])?);
                }
            }
            for step in 0..time {
                let t = if reverse { time - 1 - step } else { step };
                own[0] = Some(take_array(x, 0, &[t])?);
                own[5] = own[5].as_ref().map(rounded).transpose()?;
                let outputs = layer.float(&own)?;
                steps[t].extend_from_slice(required(&to_options(&outputs), 1)?.slice::<f32>()?);
                (own[5], own[6]) = (outputs.get(1).cloned(), outputs.get(2).cloned());
            }
            let zeros = || Array::zeros(crate::ir::DType::F32, &[1, batch, hidden]);
            let last = |slot: usize| own[slot].clone().map_or_else(zeros, Ok);
            states.extend_from_slice(last(5)?.slice::<f32>()?);
            cells.extend_from_slice(last(6)?.slice::<f32>()?);
        }
        let last = [ways, batch, hidden];
        let y = Array::new(&[time, ways, batch, hidden], steps.concat())?;
        Ok(vec![y, Array::new(&last, states)?, Array::new(&last, cells)?])
    }
}

fn to_options(arrays: &[Array]) -> Vec<Option<Array>> {
    arrays.iter().cloned().map(Some).collect()
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
