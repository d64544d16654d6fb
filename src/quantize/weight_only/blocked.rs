//! Weights in 4 bits: signed integers in [-8, 7], a scale for each block along the axis that is summed over. Stored as
//! `int4` behind a blocked DequantizeLinear (opset 21), which ONNX Runtime makes one operator of with the MatMul behind
//! it. A table for Gather is stored two elements to a byte, and unpacked after the rows were picked.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::gptq::{self, Gram};
use super::store::{self, Packed};
use crate::error::Fault;
use crate::ir::{Array, DType, Tensor, ValueId};
use crate::kernels::math::round;

/// How 4-bit integers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Algorithm {
    /// The nearest integer, at the scale that holds the whole block.
    Rtn,
    /// The nearest integer, at the scale of least squared error.
    #[default]
    Mse,
    /// Each weight makes up for the rounding of those before it, as far as the samples correlate them.
    Gptq,
}

/// How weights are stored in 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    /// Elements that share a scale: 32, 64 or 128.
    pub size: usize,
    /// How the integers are chosen.
    pub algorithm: Algorithm,
}

impl Default for Blocked {
    fn default() -> Self {
        Self { size: 64, algorithm: Algorithm::Mse }
    }
}

/// Sums of products of the inputs of each weight that has a Gram matrix.
pub type Grams = BTreeMap<ValueId, Gram>;

/// A weight whose signal is less than this many dB above the error of 4 bits is stored in 8.
const LEAST_DB: f64 = 14.0;

/// Scales tried by the search for the least squared error, as parts of the one that holds the whole block.
const STEPS: usize = 20;

/// Each step takes this share away.
const STEP: f32 = 0.02;

/// The scale that holds a block in [-8, 7].
pub fn holding(block: impl Iterator<Item = f32>) -> f32 {
    let (low, high) = block.fold((0f32, 0f32), |(l, h), v| (l.min(v), h.max(v)));
    let scale = (-low / 8.0).max(high / 7.0);
    if scale.is_normal() { scale } else { 1.0 }
}

/// The nearest 4-bit integer.
pub fn nearest(value: f32, scale: f32) -> i8 {
    round(value / scale).clamp(-8.0, 7.0) as i8
}

/// The scale of a block by this algorithm.
pub fn scale_of(block: &[f32], algorithm: Algorithm) -> f32 {
    let whole = holding(block.iter().copied());
    if algorithm == Algorithm::Rtn {
        return whole;
    }
    let error = |scale: f32| -> f32 {
        block.iter().map(|&v| v - f32::from(nearest(v, scale)) * scale).map(|e| e * e).sum()
    };
    let tried = (0..=STEPS).map(|i| whole * (1.0 - STEP * i as f32));
    let best = tried.map(|s| (error(s), s)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(whole, |(_, scale)| scale)
}

/// Integers by input and output, and scales by block and output.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Inputs × outputs.
    pub integers: Vec<i8>,
    /// Blocks × outputs.
    pub scales: Vec<f32>,
}

impl Chosen {
    /// The real number at an input and output.
    pub fn value(&self, index: usize, outputs: usize, size: usize) -> f32 {
        let (input, output) = (index / outputs, index % outputs);
        f32::from(self.integers[index]) * self.scales[input / size * outputs + output]
    }
}

/// A weight of inputs × outputs in 4 bits, or nothing if that costs too much.
pub fn matrix(
    real: &[f32],
    [inputs, outputs]: [usize; 2],
    blocked: Blocked,
    gram: Option<&Gram>,
) -> Result<Option<Packed>, Fault> {
    let size = blocked.size;
    let mut chosen = rounded(real, outputs, size, blocked.algorithm);
    let loss = |chosen: &Chosen| gptq::loss(real, chosen, [inputs, outputs], size, gram);
    let mut least = loss(&chosen);
    if blocked.algorithm == Algorithm::Gptq
        && let Some(gram) = gram
        && let Some(better) = gptq::solve(real, [inputs, outputs], size, gram)
    {
        let lost = loss(&better);
        if lost < least {
            (chosen, least) = (better, lost);
        }
    }
    if least > libm::pow(10.0, -LEAST_DB / 10.0) {
        return Ok(None);
    }
    let blocks = inputs.div_ceil(size);
    Ok(Some(Packed {
        elements: store::raw(DType::I4, &[inputs, outputs], nibbles(&chosen.integers))?,
        scale: Array::new(&[blocks, outputs], chosen.scales)?,
        zero: None,
        axis: Some(0),
        block: size,
    }))
}

/// Every block by itself.
pub fn rounded(real: &[f32], outputs: usize, size: usize, algorithm: Algorithm) -> Chosen {
    let rows = |part: &[f32]| {
        let mut block = Vec::new();
        let scales: Vec<f32> = (0..outputs)
            .map(|o| {
                block.clear();
                block.extend(part.iter().skip(o).step_by(outputs));
                scale_of(&block, algorithm)
            })
            .collect();
        let integers = part.iter().enumerate().map(|(i, &v)| nearest(v, scales[i % outputs])).collect();
        (integers, scales)
    };
    let parts: Vec<(Vec<i8>, Vec<f32>)> = real.par_chunks((outputs * size).max(1)).map(rows).collect();
    let mut chosen = Chosen { integers: Vec::with_capacity(real.len()), scales: Vec::new() };
    for (integers, scales) in parts {
        chosen.integers.extend(integers);
        chosen.scales.extend(scales);
    }
    chosen
}

/// Two to a byte, the first in the low bits.
fn nibbles(integers: &[i8]) -> Vec<u8> {
    integers.chunks(2).map(|pair| (pair[0] as u8 & 15) | (pair.get(1).map_or(0, |&q| q as u8) << 4)).collect()
}

/// A table in 4 bits: bytes whose low half is an element of the first half of a row, the high half one of the second,
/// both raised by 8; and scales by row and block of either half.
#[derive(Debug)]
pub struct Table {
    /// Rows × half the columns.
    pub bytes: Tensor,
    /// Rows × blocks, of the first and the second half of the columns.
    pub scales: [Tensor; 2],
    /// Elements that share a scale.
    pub size: usize,
}

/// A table of rows × columns; nothing if its rows do not divide into blocks, or 4 bits cost too much.
pub fn table(real: &[f32], shape: &[usize], blocked: Blocked) -> Result<Option<Table>, Fault> {
    let (&[rows, columns], size) = (shape, blocked.size) else { return Ok(None) };
    if columns % (2 * size) != 0 || columns == 0 {
        return Ok(None);
    }
    let algorithm = if blocked.algorithm == Algorithm::Rtn { Algorithm::Rtn } else { Algorithm::Mse };
    let row = |row: &[f32]| {
        let scales: Vec<f32> = row.chunks(size).map(|block| scale_of(block, algorithm)).collect();
        let integers: Vec<i8> = row.iter().enumerate().map(|(i, &v)| nearest(v, scales[i / size])).collect();
        let (low, high) = integers.split_at(columns / 2);
        let bytes: Vec<u8> =
            low.iter().zip(high).map(|(l, h)| (l + 8) as u8 | (((h + 8) as u8) << 4)).collect();
        let error = |(i, v): (usize, &f32)| f64::from(v - f32::from(integers[i]) * scales[i / size]);
        let noise: f64 = row.iter().enumerate().map(error).map(|e| e * e).sum();
        let signal: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        (bytes, scales, signal, noise)
    };
    let parts: Vec<_> = real.par_chunks(columns).map(row).collect();
    let (signal, noise) = parts.iter().fold((0.0, 0.0), |(s, n), p| (s + p.2, n + p.3));
    if noise > signal * libm::pow(10.0, -LEAST_DB / 10.0) {
        return Ok(None);
    }
    let bytes = parts.iter().flat_map(|p| p.0.iter().copied()).collect();
    let blocks = columns / size / 2;
    let scales = |half: usize| -> Result<Tensor, Fault> {
        let of = |scales: &[f32]| scales[half * blocks..][..blocks].to_vec();
        let scales: Vec<f32> = parts.iter().flat_map(|p| of(&p.1)).collect();
        Ok(Tensor::from_array(&Array::new(&[rows, blocks], scales)?))
    };
    Ok(Some(Table {
        bytes: store::raw(DType::U8, &[rows, columns / 2], bytes)?,
        scales: [scales(0)?, scales(1)?],
        size,
    }))
}
