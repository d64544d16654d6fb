//! Pooling and softmax on bytes.

use super::{flip, from_raw, raw, unsigned_zero};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, QuantParams};
use crate::kernels::integer::finish::ByteRange;
use crate::kernels::integer::pool::{plane_means, quantize_shifted};
use crate::kernels::integer::softmax;
use crate::kernels::requantize::dequantize_slice;
use crate::ops::pool::AveragePool;
use crate::ops::slots::required;
use crate::ops::softmax::Softmax;

/// Parameters of input and output.
type Pair = (QuantParams, QuantParams);

/// The bytes of an input made unsigned, as real numbers.
fn reals(x: &Array, params: &QuantParams) -> Result<Array, Fault> {
    let mut out = vec![0.0; x.len()];
    match x {
        Array::U8(_) => dequantize_slice(x.slice::<u8>()?, params.scale, params.zero_point as u8, &mut out),
        _ => dequantize_slice(x.slice::<i8>()?, params.scale, params.zero_point as i8, &mut out),
    }
    Array::new(x.shape(), out)
}

/// The mean of each window, computed in real numbers.
struct Average(AveragePool, Pair);

/// The kernel of AveragePool without dilation.
pub fn average(op: &AveragePool, unit: &Unit) -> Option<Box<dyn Kernel>> {
    let dilated = op.window.dilations.as_ref().is_some_and(|d| d.iter().any(|&d| d != 1));
    let pair = unit.pair().filter(|_| !dilated)?;
    Some(Box::new(Average(op.clone(), pair)))
}

impl Kernel for Average {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, y) = &self.1;
        let means = self.0.whole_means(&reals(required(inputs, 0)?, x)?)?;
        let means = required(&[means.into_iter().next()], 0)?.clone();
        let flip = flip(y.dtype);
        let mut bytes = quantize_shifted(means.slice::<f32>()?, y.scale, unsigned_zero(y));
        bytes.iter_mut().for_each(|b| *b ^= flip);
        Ok(vec![from_raw(y.dtype, means.shape(), bytes)?])
    }
}

/// The mean of each plane.
struct GlobalAverage(Pair);

/// The kernel of GlobalAveragePool.
pub fn global_average(unit: &Unit) -> Option<Box<dyn Kernel>> {
    Some(Box::new(GlobalAverage(unit.pair()?)))
}

impl Kernel for GlobalAverage {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, y) = &self.0;
        let array = required(inputs, 0)?;
        let [n, c, spatial @ ..] = array.shape() else {
            fail!("an input of shape {:?} has no channels", array.shape())
        };
        let plane: usize = spatial.iter().product();
        if plane == 0 {
            fail!("there is nothing to pool in {:?}", array.shape());
        }
        let scale = x.scale / (y.scale * plane as f32);
        let flip_y = flip(y.dtype);
        let range = ByteRange::new(0, 255, unsigned_zero(y));
        let mut means = plane_means(raw(array)?, plane, flip(x.dtype), unsigned_zero(x), scale, range);
        means.iter_mut().for_each(|b| *b ^= flip_y);
        let shape: Vec<usize> = [*n, *c].into_iter().chain(spatial.iter().map(|_| 1)).collect();
        Ok(vec![from_raw(y.dtype, &shape, means)?])
    }
}

/// Shares of powers.
struct Shares(Softmax, Pair);

/// The kernel of Softmax.
pub fn shares(op: &Softmax, unit: &Unit) -> Option<Box<dyn Kernel>> {
    Some(Box::new(Shares(op.clone(), unit.pair()?)))
}

impl Kernel for Shares {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (px, py) = &self.1;
        let x = required(inputs, 0)?;
        let (_, n, inner) = self.0.extents(x.shape())?;
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        // The distribution as the last axis.
        let turned = |array: &Array| {
            array.reshaped(&[x.len() / (n * inner), n, inner]).and_then(|a| a.transposed(&[0, 2, 1]))
        };
        let rows = if inner == 1 { x.clone() } else { turned(x)? };
        let powers = softmax::powers(px.scale, n);
        let levels = libm::floorf(1.0 / py.scale);
        let y = softmax::rows(raw(&rows)?, n, flip(px.dtype), &powers, levels, unsigned_zero(py));
        if inner == 1 {
            return Ok(vec![from_raw(py.dtype, x.shape(), y)?]);
        }
        let y = from_raw(py.dtype, &[x.len() / (n * inner), inner, n], y)?;
        Ok(vec![y.transposed(&[0, 2, 1])?.reshaped(x.shape())?])
    }
}
