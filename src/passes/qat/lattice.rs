//! Weights that are real in the file but lie on a grid: exporters that fold constants (tf2onnx) round a weight and forget
//! its scale. Between quantized activations such a weight becomes the integers that it was.

use super::{Rewrite, node, reals};
use crate::interpret::node_label;
use crate::ir::{Array, DType, Edit, Graph, NodeId, Refusal, Tensor, attribute};
use crate::ops::gemm::Gemm;
use crate::ops::quantize::Dequantize;
use crate::ops::slots::around;

/// See the module.
pub struct LatticeWeight;

/// How far from a whole number of steps, in steps, an element may be.
const TOLERANCE: f32 = 2e-3;
/// With fewer elements any numbers lie on some grid.
const ENOUGH: usize = 3;

/// Whole numbers and the step between them.
struct Lattice {
    steps: Vec<i32>,
    scale: f32,
}

impl Lattice {
    /// The coarsest grid through 0 of at most so many steps to either side on which all of these lie.
    fn of(values: &[f32], most: i32) -> Option<Self> {
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        if values.len() < ENOUGH || largest == 0.0 || !largest.is_finite() {
            return None;
        }
        let lies = |count: i32| {
            let inverse = count as f32 / largest;
            values.iter().all(|v| (v * inverse - (v * inverse).round_ties_even()).abs() <= TOLERANCE)
        };
        let count = (1..=most).find(|&count| lies(count))?;
        let inverse = count as f32 / largest;
        let steps: Vec<i32> = values.iter().map(|v| (v * inverse).round_ties_even() as i32).collect();
        // The scale that gives back most of the elements bit for bit.
        let exact = |scale: f32| values.iter().zip(&steps).filter(|(v, q)| **q as f32 * scale == **v).count();
        let quotient = largest / count as f32;
        let near = (-2i32..=2).map(|by| f32::from_bits(quotient.to_bits().wrapping_add_signed(by)));
        let scale = near.fold(quotient, |best, next| if exact(next) > exact(best) { next } else { best });
        Some(Self { steps, scale })
    }
}

/// Integers of a weight, their scales, their zero point and the axis that several scales run along.
struct Stored {
    integers: Array,
    scales: Array,
    zero: Array,
    axis: Option<usize>,
}

impl Stored {
    /// On one grid, or on one for each channel of an axis.
    fn of(shape: &[usize], values: &[f32], axis: usize) -> Option<Self> {
        Self::whole(shape, values).or_else(|| Self::channels(shape, values, axis))
    }

    fn whole(shape: &[usize], values: &[f32]) -> Option<Self> {
        let Lattice { steps, scale } = Lattice::of(values, 255)?;
        let (low, high) = (*steps.iter().min()?, *steps.iter().max()?);
        let (integers, zero) = if low >= -128 && high <= 127 {
            (Array::new(shape, steps.into_iter().map(|q| q as i8).collect()), Array::scalar(0i8))
        } else if low <= 0 && high >= 0 && high - low <= 255 {
            let stored = steps.into_iter().map(|q| (q - low) as u8).collect();
            (Array::new(shape, stored), Array::scalar(low.unsigned_abs() as u8))
        } else {
            return None;
        };
        Some(Self { integers: integers.ok()?, scales: Array::scalar(scale), zero, axis: None })
    }

    fn channels(shape: &[usize], values: &[f32], axis: usize) -> Option<Self> {
        let (outer, channels, inner) = around(shape, axis);
        let mut integers = vec![0i8; values.len()];
        let mut scales = Vec::with_capacity(channels);
        let rows = |c: usize| (0..outer).map(move |o| (o * channels + c) * inner);
        for c in 0..channels {
            let channel: Vec<f32> = rows(c).flat_map(|at| values[at..at + inner].iter().copied()).collect();
            let lattice = Lattice::of(&channel, 127)?;
            for (at, steps) in rows(c).zip(lattice.steps.chunks_exact(inner.max(1))) {
                integers[at..at + inner].iter_mut().zip(steps).for_each(|(q, &s)| *q = s as i8);
            }
            scales.push(lattice.scale);
        }
        let zero = Array::vector(vec![0i8; channels]);
        Some(Self {
            integers: Array::new(shape, integers).ok()?,
            scales: Array::vector(scales),
            zero,
            axis: Some(axis),
        })
    }
}

impl Rewrite for LatticeWeight {
    fn name(&self) -> &'static str {
        "weight-on-a-grid"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let operator = graph.node(id);
        let axis = match operator.op_type.as_str() {
            "Conv" => 0,
            "Gemm" if operator.op_as::<Gemm>().is_some_and(|g| g.trans_b) => 0,
            "Gemm" | "MatMul" => 1,
            _ => return Ok(None),
        };
        let inputs = graph.inputs_of(id);
        let (Some(Some(x)), Some(Some(w)), Some(output)) =
            (inputs.first(), inputs.get(1), graph.output(id, 0))
        else {
            return Ok(None);
        };
        let rounded = graph.producer(*x).is_some_and(|(p, _)| graph.node(p).op_as::<Dequantize>().is_some());
        let Some(tensor) = graph.constant(*w).filter(|t| rounded && t.dtype() == DType::F32) else {
            return Ok(None);
        };
        if tensor.shape().len() <= axis || graph.only_use(*w).is_none() {
            return Ok(None);
        }
        let Some(stored) = reals(tensor).and_then(|values| Stored::of(tensor.shape(), &values, axis)) else {
            return Ok(None);
        };
        let mut edit = Edit::dropping(&[id]);
        let name = graph.name(*w).to_string();
        let [integers, scales, zero] =
            [(stored.integers, "quantized"), (stored.scales, "scale"), (stored.zero, "zero_point")].map(
                |(array, suffix)| edit.constant(&format!("{name}_{suffix}"), Tensor::from_array(&array)),
            );
        let real = edit.value(&format!("{name}_dequantized"), graph.ty(*w).cloned());
        let along = stored.axis.map(|axis| attribute::int("axis", axis as i64));
        let label = format!("{}_weight_DequantizeLinear", node_label(graph, id));
        edit.apply(
            node("DequantizeLinear", label, along.into_iter().collect(), 3),
            &[integers, scales, zero],
            real,
        );
        let given = inputs.iter().enumerate();
        let given = given.map(|(slot, v)| if slot == 1 { Some(real) } else { v.map(Into::into) }).collect();
        edit.node(operator.clone(), given, vec![Some(output.into())]);
        Ok(Some(edit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_found_with_its_step() {
        let scale = 0.0371_f32;
        let values: Vec<f32> = [-88, 3, 0, 127, 41, -5].iter().map(|&q| q as f32 * scale).collect();
        let found = Lattice::of(&values, 255).unwrap();
        assert_eq!((found.steps, found.scale), (vec![-88, 3, 0, 127, 41, -5], scale));
        let wide: Vec<f32> = [-88, 3, 0, 133, 41, -5].iter().map(|&q| q as f32 * scale).collect();
        let stored = Stored::of(&[6], &wide, 0).unwrap();
        assert_eq!(stored.integers.slice::<u8>().unwrap(), [0, 91, 88, 221, 129, 83]);
        assert_eq!(stored.zero.item::<u8>().unwrap(), 88);
    }

    #[test]
    fn each_channel_has_a_grid_of_its_own() {
        let values: Vec<f32> = [1, -127, 64]
            .iter()
            .map(|&q| q as f32 * 0.01)
            .chain([127, 3, 100].map(|q| q as f32 * 0.0123))
            .collect();
        let stored = Stored::of(&[2, 3], &values, 0).unwrap();
        assert_eq!(stored.integers.slice::<i8>().unwrap(), [1, -127, 64, 127, 3, 100]);
        assert_eq!(stored.scales.slice::<f32>().unwrap(), [0.01, 0.0123]);
        let turned: Vec<f32> = (0..6).map(|i| values[(i % 2) * 3 + i / 2]).collect();
        let stored = Stored::of(&[3, 2], &turned, 1).unwrap();
        assert_eq!(stored.integers.slice::<i8>().unwrap(), [1, 127, -127, 3, 64, 100]);
    }

    #[test]
    fn numbers_of_no_grid_stay_real() {
        let values: Vec<f32> =
            (1..40).map(|i| ((i * i * 37) % 101) as f32 * 0.013 + (1.0 / i as f32)).collect();
        assert!(Stored::of(&[39], &values, 0).is_none());
        assert!(Lattice::of(&[0.0; 8], 255).is_none());
        assert!(Lattice::of(&[f32::NAN, 1.0, 2.0], 255).is_none());
    }
}
