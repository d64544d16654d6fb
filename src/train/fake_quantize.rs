//! Quantization while training: a tensor is rounded to its grid and stays real.
//!
//! `FakeQuantize(x, scale, zero)` computes what QuantizeLinear and DequantizeLinear with these parameters do, by the same
//! code, within the integers `low..=high`. The zero point is a real number that is rounded where it is used. Gradients are
//! those of a learned step size (Esser et al. 2020, <https://arxiv.org/abs/1902.08153>): the straight-through estimate
//! inside the range; by the scale, the error of rounding inside and the limit outside.

use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Gradient, Op, Run};
use crate::kernels::math::round;
use crate::kernels::requantize::{fake_quantize_gradient, fake_quantize_slice};
use crate::ops::slots::{around, required};
use crate::quantize::weights::pairs;

/// Rounds a tensor to a grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeQuantize {
    /// Lowest integer.
    pub low: i32,
    /// Highest integer.
    pub high: i32,
    /// The axis that scales run along; `None`: one scale.
    pub axis: Option<usize>,
    /// A weight for processors that add pairs of products in 16 bits: pairs that could saturate are cut.
    pub pairs: bool,
}

impl FakeQuantize {
    /// The integer that stands for zero.
    pub fn zero_point(&self, zero: f32) -> i32 {
        (zero.round_ties_even() as i32).clamp(self.low, self.high)
    }

    /// Calls `f` with every run of elements that share a scale: where it starts, its length and the scale's number.
    fn runs(
        &self,
        shape: &[usize],
        scales: usize,
        mut f: impl FnMut(usize, usize, usize),
    ) -> Result<(), Fault> {
        match self.axis {
            None if scales == 1 => f(0, shape.iter().product(), 0),
            Some(axis) if shape.get(axis) == Some(&scales) => {
                let (outer, rows, inner) = around(shape, axis);
                (0..outer * rows).for_each(|row| f(row * inner, inner, row % rows));
            }
            _ => fail!("{scales} scales for a tensor of shape {shape:?}"),
        }
        Ok(())
    }

    /// The integers of a tensor.
    pub fn integers(&self, x: &Array, scales: &[f32], zero: f32) -> Result<Vec<i32>, Fault> {
        let zero = self.zero_point(zero);
        let values = x.slice::<f32>()?;
        let mut out = vec![0; values.len()];
        let (low, high) = ((self.low - zero) as f32, (self.high - zero) as f32);
        self.runs(x.shape(), scales.len(), |start, len, p| {
            for (q, &v) in out[start..start + len].iter_mut().zip(&values[start..start + len]) {
                *q = round((v / scales[p]).clamp(low, high)) as i32 + zero;
            }
        })?;
        if self.pairs && x.rank() >= 2 {
            let mut narrow: Vec<i8> = out.iter().map(|&q| q as i8).collect();
            pairs::settle(x.shape(), self.axis, &mut narrow);
            out.iter_mut().zip(narrow).for_each(|(q, n)| *q = n.into());
        }
        Ok(out)
    }
}

impl Op for FakeQuantize {
    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, scale) = (required(inputs, 0)?, required(inputs, 1)?.slice::<f32>()?);
        let zero = required(inputs, 2)?.item::<f32>()?;
        let zero_point = self.zero_point(zero);
        let mut y = x.slice::<f32>()?.to_vec();
        if self.pairs {
            let integers = self.integers(x, scale, zero)?;
            self.runs(x.shape(), scale.len(), |start, len, p| {
                let pairs = y[start..start + len].iter_mut().zip(&integers[start..start + len]);
                pairs.for_each(|(y, &q)| *y = (q - zero_point) as f32 * scale[p]);
            })?;
        } else {
            self.runs(x.shape(), scale.len(), |start, len, p| {
                fake_quantize_slice(&mut y[start..start + len], scale[p], zero_point, self.low, self.high);
            })?;
        }
        Ok(vec![Array::new(x.shape(), y)?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for FakeQuantize {
    fn backward(&self, run: &Run) -> Result<Vec<Option<Array>>, Fault> {
        let (x, scale, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let zero_point = self.zero_point(run.input(2)?.item::<f32>()?);
        let (xs, dys, scales) = (x.slice::<f32>()?, dy.slice::<f32>()?, scale.slice::<f32>()?);
        let mut dx = vec![0f32; xs.len()];
        let (mut by_scale, mut by_zero) = (vec![0f32; scales.len()], 0f32);
        self.runs(x.shape(), scales.len(), |start, len, p| {
            let span = start..start + len;
            let (s, z) = fake_quantize_gradient(
                (&xs[span.clone()], &dys[span.clone()]),
                scales[p],
                zero_point,
                (self.low, self.high),
                &mut dx[span],
            );
            by_scale[p] += s;
            by_zero += z;
        })?;
        let zero = Array::new(run.input(2)?.shape(), vec![by_zero])?;
        Ok(vec![Some(Array::new(x.shape(), dx)?), Some(Array::new(scale.shape(), by_scale)?), Some(zero)])
    }
}

/// Rounds a bias to the 32-bit integers that the product of two scales stands for: `FakeBias(b, x_scale, w_scale)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeBias;

impl FakeBias {
    /// The integers of a bias and their scales, one or one for each channel.
    pub fn integers(bias: &[f32], x_scale: f32, w_scales: &[f32]) -> (Vec<i32>, Vec<f32>) {
        let scales: Vec<f32> = w_scales.iter().map(|w| x_scale * w).collect();
        let scale =
            |c: usize| f64::from(scales.get(if scales.len() == 1 { 0 } else { c }).copied().unwrap_or(1.0));
        let quantize = |(c, &b): (usize, &f32)| {
            (f64::from(b) / scale(c)).round_ties_even().clamp(i32::MIN.into(), i32::MAX.into()) as i32
        };
        (bias.iter().enumerate().map(quantize).collect(), scales)
    }
}

impl Op for FakeBias {
    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let bias = required(inputs, 0)?;
        let (x, w) = (required(inputs, 1)?.item::<f32>()?, required(inputs, 2)?.slice::<f32>()?);
        let (integers, scales) = Self::integers(bias.slice()?, x, w);
        let scale = |c: usize| scales.get(if scales.len() == 1 { 0 } else { c }).copied().unwrap_or(1.0);
        let y = integers.into_iter().enumerate().map(|(c, q)| q as f32 * scale(c)).collect();
        Ok(vec![Array::new(bias.shape(), y)?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for FakeBias {
    fn backward(&self, run: &Run) -> Result<Vec<Option<Array>>, Fault> {
        Ok(vec![Some(run.upstream(0)?.clone())])
    }
}
