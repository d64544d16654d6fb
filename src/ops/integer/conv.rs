//! Conv on bytes.

use super::{constant, flip, from_raw, range, raw, sign_flip, signed_zero, unsigned_zero};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Operand, Scales, Unit, is_byte};
use crate::ir::{Array, QuantParams, element_count};
use crate::kernels::integer::Level;
use crate::kernels::integer::conv::{Input, Weights, conv};
use crate::kernels::integer::depthwise::Depthwise;
use crate::kernels::integer::windows::kernels;
use crate::ops::conv::Conv;
use crate::ops::slots::required;

/// How far a bias' scale may lie from the product of the other two.
const BIAS_TOLERANCE: f32 = 0.0175;

#[derive(Debug)]
struct Packed {
    conv: Conv,
    x: QuantParams,
    y: QuantParams,
    shape: Vec<usize>,
    weights: Weights,
}

/// The kernel for a constant weight with scales for each output channel or for all, and one zero point.
pub fn prepare(conv: &Conv, unit: &Unit) -> Option<Box<dyn Kernel>> {
    let (x, y) = unit.pair()?;
    let (ws, w) = unit.integer(1)?;
    let w = w.filter(|w| w.dtype() == ws.dtype && is_byte(ws.dtype))?;
    let (&channels, kernel) = w.shape().split_first()?;
    let depth: usize = kernel.iter().product();
    let (channel_depth, taps) = kernel.split_first()?;
    let row = *taps.last()?;
    if depth == 0 || channels == 0 || channels % conv.group != 0 {
        return None;
    }
    let scales = spread(ws.along(0, w.rank())?, channels)?;
    let bytes = raw(w).ok()?;
    let rows = kernels(bytes, conv.group, *channel_depth, taps, sign_flip(ws.dtype));
    let (zx, zw) = (unsigned_zero(&x), signed_zero(ws.dtype, ws.zero_point()?));
    let bias = bias(unit.inputs.get(2), x.scale, &scales)?;
    // Σ (x - zx)(w - zw) = Σ xw - zx·Σw - zw·Σx + depth·zx·zw; padding reads as zx.
    let constant = (depth as i32).wrapping_mul(zx.wrapping_mul(zw));
    let offset = |(sum, bias): (&i32, i32)| bias.wrapping_sub(zx.wrapping_mul(*sum)).wrapping_add(constant);
    let offsets = rows.sums.iter().zip(bias).map(offset).collect();
    let depthwise = (*channel_depth == 1 && zw == 0 && conv.group > 1)
        .then(|| Depthwise::new(bytes, row, sign_flip(ws.dtype), channels / conv.group));
    let weights = Weights {
        rows,
        depthwise,
        zero_points: if zw == 0 { Vec::new() } else { vec![zw; channels] },
        offsets,
        scales: scales.iter().map(|s| x.scale * s / y.scale).collect(),
        range: range(&y),
    };
    Some(Box::new(Packed { conv: conv.clone(), x, y, shape: w.shape().to_vec(), weights }))
}

/// One value for each of `count` channels.
pub(super) fn spread(scales: &[f32], count: usize) -> Option<Vec<f32>> {
    match scales {
        [one] => Some(vec![*one; count]),
        all if all.len() == count => Some(all.to_vec()),
        _ => None,
    }
}

/// The bias as 32-bit integers whose scale is the product of those of input and weight. A real one is rounded to that.
fn bias(operand: Option<&Option<Operand>>, x: f32, w: &[f32]) -> Option<Vec<i32>> {
    match operand.and_then(Option::as_ref) {
        None => Some(vec![0; w.len()]),
        Some(Operand::Integer(scales, array)) => {
            let values = constant::<i32>(array.as_ref()).filter(|b| b.len() == w.len())?;
            fits(scales, x, w).then(|| values.to_vec())
        }
        Some(Operand::Plain(array)) => {
            let values = constant::<f32>(array.as_ref()).filter(|b| b.len() == w.len())?;
            Some(values.iter().zip(w).map(|(b, w)| (b / (x * w)).round_ties_even() as i32).collect())
        }
    }
}

fn fits(bias: &Scales, x: f32, w: &[f32]) -> bool {
    let near = |(b, w): (&f32, &f32)| (b - x * w).abs() <= BIAS_TOLERANCE * (x * w);
    let scales = if bias.scales.len() == 1 { vec![bias.scales[0]; w.len()] } else { bias.scales.clone() };
    bias.zero_points.iter().all(|&z| z == 0) && scales.len() == w.len() && scales.iter().zip(w).all(near)
}

impl Kernel for Packed {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (channels, axes, shape) = self.conv.place(x.shape(), &self.shape)?;
        let mut y = vec![0; element_count(&shape)?];
        let input = Input { planes: raw(x)?, flip: flip(self.x.dtype), pad: self.x.zero_point as u8 };
        conv(Level::detect(), channels, &axes, input, &self.weights, &mut y)?;
        Ok(vec![from_raw(self.y.dtype, &shape, y)?])
    }

    fn packed(&self) -> &[usize] {
        &[1, 2]
    }
}
