//! The gradients of QuantizeLinear and DequantizeLinear: rounding is taken for the identity (the straight-through
//! estimate), clipping is what it is.
//!
//! With `v = x/s + z` before rounding and `q` after it, `∂q/∂x = 1/s` and `∂q/∂s = -x/s²` where `v` is not clipped;
//! `y = (q - z)·s` has `∂y/∂q = s`, `∂y/∂s = q - z` and `∂y/∂z = -s`. Chained, the pair has the gradients of a learned
//! step size: `∂y/∂s = round(x/s) - x/s` inside and `q - z` outside.

use super::{Dequantize, Layout, Quantize};
use crate::kernels::math::round;
use crate::error::Fault;
use crate::ir::affine::limits;
use crate::ir::{Array, Gradient, Run};
use crate::ops::gradient::Gradients;
use crate::ops::operand::elements;

/// Real zero points, one for each scale.
fn zeros(run: &Run, count: usize) -> Result<Vec<f32>, Fault> {
    match run.inputs.get(2) {
        Some(Some(zero)) => Ok(elements(&zero.to_f32()?)?.to_vec()),
        _ => Ok(vec![0.0; count]),
    }
}

impl Gradient for Quantize {
    fn backward(&self, run: &Run) -> Gradients {
        let (x, scale, q, dy) = (run.input(0)?, run.input(1)?, run.output(0)?, run.upstream(0)?);
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block_size)?;
        let (xs, scales, dys) = (x.to_f32()?, scale.to_f32()?, dy.to_f32()?);
        let (xs, scales, dys) = (elements(&xs)?, elements(&scales)?, elements(&dys)?);
        let zeros = zeros(run, scales.len())?;
        let (low, high) = limits(q.dtype()).ok_or("the quantized type has no limits")?;
        let mut dx = vec![0f32; xs.len()];
        let (mut ds, mut dz) = (vec![0f32; scales.len()], vec![0f32; scales.len()]);
        layout.runs(|span, p| {
            let (s, z) = (scales[p], zeros[p]);
            let (mut by_scale, mut by_zero) = (0f64, 0f64);
            for i in span {
                let v = round(xs[i] / s) + z;
                if v >= low as f32 && v <= high as f32 {
                    dx[i] = dys[i] / s;
                    by_scale -= f64::from(dys[i] * xs[i]) / f64::from(s * s);
                    by_zero += f64::from(dys[i]);
                }
            }
            ds[p] += by_scale as f32;
            dz[p] += by_zero as f32;
        });
        let like = |v: Vec<f32>| Array::new(scale.shape(), v).map(Some);
        Ok(vec![Some(Array::new(x.shape(), dx)?), like(ds)?, like(dz)?])
    }
}

impl Gradient for Dequantize {
    fn backward(&self, run: &Run) -> Gradients {
        let (q, scale, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let layout = Layout::of(q.shape(), scale.shape(), self.axis, self.block_size)?;
        let (qs, scales, dys) = (q.to_f32()?, scale.to_f32()?, dy.to_f32()?);
        let (qs, scales, dys) = (elements(&qs)?, elements(&scales)?, elements(&dys)?);
        let zeros = zeros(run, scales.len())?;
        let mut dq = vec![0f32; qs.len()];
        let (mut ds, mut dz) = (vec![0f32; scales.len()], vec![0f32; scales.len()]);
        layout.runs(|span, p| {
            let (mut by_scale, mut by_zero) = (0f64, 0f64);
            for i in span {
                dq[i] = dys[i] * scales[p];
                by_scale += f64::from(dys[i] * (qs[i] - zeros[p]));
                by_zero -= f64::from(dq[i]);
            }
            ds[p] += by_scale as f32;
            dz[p] += by_zero as f32;
        });
        let like = |v: Vec<f32>| Array::new(scale.shape(), v).map(Some);
        Ok(vec![Some(Array::new(q.shape(), dq)?), like(ds)?, like(dz)?])
    }
}
