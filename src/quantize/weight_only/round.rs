//! The arithmetic: large arrays of real numbers to bytes, in two passes over memory, several rows at a time.

use rayon::prelude::*;

use super::store::Packed;
use crate::error::Fault;
use crate::ir::{Array, DType, QuantParams};
use crate::kernels::requantize::quantize_slice;

/// Elements that one thread takes at a time.
const SHARE: usize = 1 << 16;

/// Scales along an axis other than that of output channels must lower the error this many times, for sums by channel
/// are not kept there.
const SUMS: f64 = 2.0;

/// Are all elements finite?
pub fn all_finite(real: &[f32]) -> bool {
    real.par_chunks(SHARE).all(|part| part.iter().fold(0.0f32, |sum, v| sum + v * 0.0) == 0.0)
}

/// Does `float16` hold all elements, the small ones to 16 bits of the largest?
pub fn fits_half(real: &[f32]) -> bool {
    const LEAST: f32 = 1.0 / 512.0;
    let parts = real.par_chunks(SHARE).map(|part| part.iter().fold(0f32, |m, v| m.max(v.abs())));
    (LEAST..=half::f16::MAX.to_f32()).contains(&parts.reduce(|| 0.0, f32::max))
}

/// Symmetric `int8` in [-127, 127]; one scale for each index along `axis`, or one for all.
pub fn symmetric(real: &[f32], shape: &[usize], axis: Option<usize>) -> Result<Packed, Fault> {
    let extent = |range: &[usize]| range.iter().product::<usize>().max(1);
    let channels = axis.map_or(1, |a| shape[a]).max(1);
    let inner = axis.map_or(real.len().max(1), |a| extent(&shape[a + 1..]));
    let block = channels * inner;
    let share = share(block);
    let largest = real
        .par_chunks(share)
        .map(|part| largest(part, channels, inner))
        .reduce(|| vec![0.0; channels], |a, b| a.iter().zip(&b).map(|(x, y)| x.max(*y)).collect());
    let scales: Vec<f32> = largest.iter().map(|&m| scale_for(m)).collect();
    let mut bytes = vec![0i8; real.len()];
    bytes.par_chunks_mut(share).zip(real.par_chunks(share)).for_each(|(to, from)| {
        for (to, from) in to.chunks_mut(block).zip(from.chunks(block)) {
            quantize(from, &scales, inner, to);
        }
    });
    let scale = match axis {
        Some(_) => Array::vector(scales),
        None => Array::scalar(scales[0]),
    };
    let zero = match axis {
        Some(_) => Array::vector(vec![0i8; channels]),
        None => Array::scalar(0i8),
    };
    let elements = bytes.into_iter().map(|q| q as u8).collect();
    Packed::bytes(DType::I8, shape, elements, scale, zero, axis.map(|a| a as i64))
}

fn largest(part: &[f32], channels: usize, inner: usize) -> Vec<f32> {
    let mut largest = vec![0f32; channels];
    for block in part.chunks(channels * inner) {
        if inner == 1 {
            largest.iter_mut().zip(block).for_each(|(m, v)| *m = m.max(v.abs()));
        } else {
            for (m, row) in largest.iter_mut().zip(block.chunks(inner)) {
                *m = row.iter().fold(*m, |m, v| m.max(v.abs()));
            }
        }
    }
    largest
}

/// One block of rows, each with its scale.
fn quantize(from: &[f32], scales: &[f32], inner: usize, to: &mut [i8]) {
    if inner > 1 {
        let rows = from.chunks(inner).zip(to.chunks_mut(inner));
        rows.zip(scales).for_each(|((from, to), &scale)| quantize_slice(from, scale, 0, to));
        return;
    }
    // Adding and taking away 1.5·2^23 rounds to the nearest integer, halves to even.
    const ROUND: f32 = 12_582_912.0;
    for ((to, from), scale) in to.iter_mut().zip(from).zip(scales) {
        *to = ((from / scale + ROUND) - ROUND) as i8;
    }
}

/// The scale of a channel whose largest magnitude is `largest`.
fn scale_for(largest: f32) -> f32 {
    let scale = largest / 127.0;
    if scale.is_normal() { scale } else { 1.0 }
}

/// `uint8` with a zero point, with scales along whichever of these axes gives the least error. The first counts output
/// channels: along it, each channel keeps its sum.
pub fn closest(real: &[f32], shape: &[usize], axes: &[Option<usize>]) -> Result<Packed, Fault> {
    let mut best: Option<(f64, Channels, Option<usize>)> = None;
    let by_output = |axis| axes.first() == Some(&axis);
    for &axis in axes {
        let channels = Channels::of(real, shape, axis);
        let error = channels.error(real) * if by_output(axis) { 1.0 } else { SUMS };
        if best.as_ref().is_none_or(|(least, _, _)| error < *least) {
            best = Some((error, channels, axis));
        }
    }
    let Some((_, channels, axis)) = best else { crate::fail!("no axis to quantize along") };
    let mut bytes = channels.quantize(real);
    if by_output(axis) {
        channels.keep_sums(real, &mut bytes);
    }
    channels.pack(bytes, shape, axis.map(|a| a as i64))
}

/// A table for Gather: `uint8`, with a scale and zero point for each index along the last axis, which rows share.
pub fn table(real: &[f32], shape: &[usize]) -> Result<Packed, Fault> {
    let axis = (shape.len() > 1).then(|| shape.len() - 1);
    let channels = Channels::of(real, shape, axis);
    channels.pack(channels.quantize(real), shape, axis.map(|_| -1))
}

/// Scales and zero points for each index along an axis, or for all elements.
struct Channels {
    params: Vec<QuantParams>,
    /// Elements between one index and the next.
    inner: usize,
}

impl Channels {
    fn of(real: &[f32], shape: &[usize], axis: Option<usize>) -> Self {
        let count = axis.map_or(1, |a| shape[a]).max(1);
        let inner = axis.map_or(real.len(), |a| shape[a + 1..].iter().product()).max(1);
        let bounds = |part: &[f32]| {
            let mut bounds = vec![(0f32, 0f32); count];
            for block in part.chunks(count * inner) {
                for (b, row) in bounds.iter_mut().zip(block.chunks(inner)) {
                    *b = row.iter().fold(*b, |b, &v| (b.0.min(v), b.1.max(v)));
                }
            }
            bounds
        };
        let wider = |a: Vec<(f32, f32)>, b: Vec<(f32, f32)>| {
            a.iter().zip(&b).map(|(x, y)| (x.0.min(y.0), x.1.max(y.1))).collect()
        };
        let share = share(count * inner);
        let bounds: Vec<(f32, f32)> =
            real.par_chunks(share).map(bounds).reduce(|| vec![(0.0, 0.0); count], wider);
        let params = bounds.iter().map(|b| QuantParams::asymmetric(b.0, b.1, DType::U8)).collect();
        Self { params, inner }
    }

    /// The sum of squares of what is lost. Parts are summed in order, whoever computed them.
    fn error(&self, real: &[f32]) -> f64 {
        let block = self.params.len() * self.inner;
        let of = |part: &[f32]| -> f64 {
            let rows = part.chunks(block).flat_map(|b| b.chunks(self.inner).zip(&self.params));
            rows.map(|(row, p)| {
                let lost = |v: &f32| f64::from(v - (p.quantize(*v) - p.zero_point) as f32 * p.scale);
                row.iter().map(lost).map(|e| e * e).sum::<f64>()
            })
            .sum()
        };
        let parts: Vec<f64> = real.par_chunks(share(block)).map(of).collect();
        parts.iter().sum()
    }

    /// The nearest integers.
    fn quantize(&self, real: &[f32]) -> Vec<u8> {
        let block = self.params.len() * self.inner;
        let mut bytes = vec![0u8; real.len()];
        bytes.par_chunks_mut(share(block)).zip(real.par_chunks(share(block))).for_each(|(to, from)| {
            for (to, from) in to.chunks_mut(block).zip(from.chunks(block)) {
                let rows = to.chunks_mut(self.inner).zip(from.chunks(self.inner)).zip(&self.params);
                for ((to, from), p) in rows {
                    to.iter_mut().zip(from).for_each(|(q, v)| *q = p.quantize(*v) as u8);
                }
            }
        });
        bytes
    }

    /// Rounds some elements of each channel the other way, those where it costs least, until the errors add up to less
    /// than a step. Inputs behind an activation have a mean, and what the sum of a channel is off by is added to its
    /// output so many times (Guo et al. 2022, SQuant, <https://arxiv.org/abs/2202.07471>).
    fn keep_sums(&self, real: &[f32], bytes: &mut [u8]) {
        let (inner, block) = (self.inner, self.params.len() * self.inner);
        let flips = |(channel, p): (usize, &QuantParams)| -> Vec<(usize, u8)> {
            let places =
                (0..real.len()).step_by(block).flat_map(|b| (0..inner).map(move |i| b + channel * inner + i));
            let error = |i: usize| (i32::from(bytes[i]) - p.zero_point) as f32 - real[i] / p.scale;
            let off = places.clone().map(|i| f64::from(error(i))).sum::<f64>().round();
            let (sign, count) = (off.signum() as f32, off.abs() as usize);
            if count == 0 {
                return Vec::new();
            }
            let turned = |i: usize| u8::try_from(i32::from(bytes[i]) - sign as i32).ok();
            let open = |&(e, i): &(f32, usize)| e > 0.0 && turned(i).is_some();
            let mut errors: Vec<(f32, usize)> = places.map(|i| (error(i) * sign, i)).filter(open).collect();
            errors.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            errors.iter().take(count).filter_map(|&(_, i)| Some((i, turned(i)?))).collect()
        };
        let flips: Vec<_> = self.params.par_iter().enumerate().map(flips).collect();
        flips.into_iter().flatten().for_each(|(place, q)| bytes[place] = q);
    }

    fn pack(&self, bytes: Vec<u8>, shape: &[usize], axis: Option<i64>) -> Result<Packed, Fault> {
        let scales: Vec<f32> = self.params.iter().map(|p| p.scale).collect();
        let zeros: Vec<u8> = self.params.iter().map(|p| p.zero_point as u8).collect();
        let (scale, zero) = match (axis, scales.first(), zeros.first()) {
            (None, Some(&s), Some(&z)) => (Array::scalar(s), Array::scalar(z)),
            _ => (Array::vector(scales), Array::vector(zeros)),
        };
        Packed::bytes(DType::U8, shape, bytes, scale, zero, axis)
    }
}

/// Whole blocks of this size that one thread takes at a time.
fn share(block: usize) -> usize {
    (SHARE / block.max(1)).max(1) * block.max(1)
}
