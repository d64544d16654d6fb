//! The arithmetic: large tensors of real numbers to bytes, part by part, so that neither the one nor the other is held as
//! a whole where that can be helped.

use std::ops::Range;

use rayon::prelude::*;

use super::store::Packed;
use crate::error::Fault;
use crate::ir::{Array, DType, Deferred, Floats, QuantParams, Tensor};
use crate::kernels::requantize::quantize_slice;

/// Elements that one thread takes at a time.
const SHARE: usize = 1 << 16;

/// Adding and taking away 1.5·2²³ rounds to the nearest integer, halves to even.
const ROUND: f32 = 12_582_912.0;

/// Scales along an axis other than that of output channels must lower the error this many times, for sums by channel
/// are not kept there.
const SUMS: f64 = 2.0;

/// Are all elements finite?
pub fn all_finite(real: &Floats) -> bool {
    real.each(SHARE, |_, part| part.iter().fold(0.0f32, |sum, v| sum + v * 0.0)).iter().all(|&sum| sum == 0.0)
}

/// Does `float16` hold all elements, the small ones to 16 bits of the largest?
pub fn fits_half(real: &Floats) -> bool {
    const LEAST: f32 = 1.0 / 512.0;
    let parts = real.each(SHARE, |_, part| part.iter().fold(0f32, |m, v| m.max(v.abs())));
    (LEAST..=half::f16::MAX.to_f32()).contains(&parts.into_iter().fold(0.0, f32::max))
}

/// Where the elements of each channel lie.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: usize,
    /// Elements of a channel between one of the next and another of it.
    inner: usize,
}

impl Layout {
    fn new(len: usize, shape: &[usize], axis: Option<usize>) -> Self {
        let inner = |a: usize| shape[a + 1..].iter().product::<usize>();
        Self { channels: axis.map_or(1, |a| shape[a]).max(1), inner: axis.map_or(len, inner).max(1) }
    }

    /// Elements in a part: whole rows of one channel, or of one element of each.
    fn share(self) -> usize {
        let unit = match (self.channels, self.inner) {
            (1, _) => 1,
            (channels, 1) => channels,
            (_, inner) => inner,
        };
        (SHARE / unit).max(1) * unit
    }

    /// The rows of a part, with the channel of their first element; a row of one element of each channel starts at 0.
    fn rows(self, index: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (first, row) = match (self.channels, self.inner) {
            (1, _) => (0, len.max(1)),
            (channels, 1) => (0, channels),
            (_, inner) => (index * (self.share() / inner), inner),
        };
        (0..len).step_by(row).enumerate().map(move |(i, start)| {
            let channel = if self.inner == 1 || self.channels == 1 { 0 } else { (first + i) % self.channels };
            (channel, start..(start + row).min(len))
        })
    }

    /// Do rows hold one element of each channel?
    fn is_interleaved(self) -> bool {
        self.inner == 1 && self.channels > 1
    }

    /// `join`s the elements of each channel, beginning with `start`.
    fn fold<T: Copy + Send + Sync>(
        self,
        real: &Floats,
        start: T,
        add: impl Fn(T, f32) -> T + Sync,
        join: impl Fn(T, T) -> T + Sync,
    ) -> Vec<T> {
        let parts = real.each(self.share(), |index, part| {
            let mut found = vec![start; if self.is_interleaved() { self.channels } else { 0 }];
            let mut rows = Vec::new();
            for (channel, row) in self.rows(index, part.len()) {
                match self.is_interleaved() {
                    true => found.iter_mut().zip(&part[row]).for_each(|(f, &v)| *f = add(*f, v)),
                    false => rows.push((channel, fold_row(&part[row], start, &add, &join))),
                }
            }
            rows.extend(found.into_iter().enumerate());
            rows
        });
        let mut all = vec![start; self.channels];
        parts.into_iter().flatten().for_each(|(channel, found)| all[channel] = join(all[channel], found));
        all
    }
}

/// The elements of a row, several side by side so that vectors can hold them.
fn fold_row<T: Copy>(row: &[f32], start: T, add: &impl Fn(T, f32) -> T, join: &impl Fn(T, T) -> T) -> T {
    let (blocks, rest) = row.as_chunks::<16>();
    let mut lanes = [start; 16];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &v)| *lane = add(*lane, v));
    }
    let rest = rest.iter().fold(start, |f, &v| add(f, v));
    lanes.into_iter().fold(rest, join)
}

/// Symmetric `int8` in [-127, 127]; one scale for each index along `axis`, or one for all.
pub fn symmetric(real: &Floats, shape: &[usize], axis: Option<usize>) -> Result<Packed, Fault> {
    let layout = Layout::new(real.len(), shape, axis);
    let largest = layout.fold(real, 0f32, |m, v| m.max(v.abs()), f32::max);
    let scales: Vec<f32> = largest.iter().map(|&m| scale_for(m)).collect();
    let (scale, zero) = match axis {
        Some(_) => (Array::vector(scales.clone()), Array::vector(vec![0i8; layout.channels])),
        None => (Array::scalar(scales[0]), Array::scalar(0i8)),
    };
    let elements = computed(real, DType::I8, shape, layout.share(), move |index, part| {
        let mut bytes = vec![0i8; part.len()];
        for (channel, row) in layout.rows(index, part.len()) {
            let (from, to) = (&part[row.clone()], &mut bytes[row]);
            match layout.is_interleaved() {
                true => quantize_each(from, &scales, to),
                false => quantize_slice(from, scales[channel], 0, to),
            }
        }
        bytes.into_iter().map(|q| q as u8).collect()
    });
    Ok(Packed::new(elements, scale, zero, axis.map(|a| a as i64)))
}

/// The same numbers in `float16`.
pub fn halves(real: &Floats, shape: &[usize]) -> Tensor {
    computed(real, DType::F16, shape, SHARE, |_, part| {
        part.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
    })
}

/// Narrower numbers in place of real ones, computed when they are wanted.
fn computed(
    real: &Floats,
    dtype: DType,
    shape: &[usize],
    share: usize,
    quantize: impl Fn(usize, &[f32]) -> Vec<u8> + Send + Sync + 'static,
) -> Tensor {
    let from = real.clone();
    let part = move |index| from.part(index, share, |part| quantize(index, part));
    let length = real.len() * dtype.bits() / 8;
    Tensor::deferred(dtype, shape, Deferred::new(length, real.parts(share), part))
}

/// Numbers that have a scale each.
fn quantize_each(from: &[f32], scales: &[f32], to: &mut [i8]) {
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
pub fn closest(real: &Floats, shape: &[usize], axes: &[Option<usize>]) -> Result<Packed, Fault> {
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
    let elements = match by_output(axis) {
        true => super::store::raw(DType::U8, shape, channels.with_sums(real))?,
        false => channels.elements(real, shape),
    };
    Ok(channels.pack(elements, axis.map(|a| a as i64)))
}

/// A table for Gather: `uint8`, with a scale and zero point for each index along the last axis, which rows share.
pub fn table(real: &Floats, shape: &[usize]) -> Packed {
    let axis = (shape.len() > 1).then(|| shape.len() - 1);
    let channels = Channels::of(real, shape, axis);
    channels.pack(channels.elements(real, shape), axis.map(|_| -1))
}

/// Scales and zero points for each index along an axis, or for all elements.
#[derive(Clone)]
struct Channels {
    params: Vec<QuantParams>,
    layout: Layout,
}

impl Channels {
    fn of(real: &Floats, shape: &[usize], axis: Option<usize>) -> Self {
        let layout = Layout::new(real.len(), shape, axis);
        let wider = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
        let bounds = layout.fold(real, (0f32, 0f32), |b, v| (b.0.min(v), b.1.max(v)), wider);
        let params = bounds.iter().map(|b| QuantParams::asymmetric(b.0, b.1, DType::U8)).collect();
        Self { params, layout }
    }

    /// The sum of squares of what is lost. Parts are summed in order, whoever computed them.
    fn error(&self, real: &Floats) -> f64 {
        let stride = usize::from(self.layout.is_interleaved());
        let parts = real.each(self.layout.share(), |index, part| {
            let (bytes, mut sum) = (self.quantize(index, part), 0.0);
            for (channel, row) in self.layout.rows(index, part.len()) {
                for (i, (&q, v)) in bytes[row.clone()].iter().zip(&part[row]).enumerate() {
                    let p = &self.params[channel + stride * i];
                    let lost = f64::from(v - (i32::from(q) - p.zero_point) as f32 * p.scale);
                    sum += lost * lost;
                }
            }
            sum
        });
        parts.iter().sum()
    }

    /// The nearest integers of a part.
    fn quantize(&self, index: usize, part: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0u8; part.len()];
        for (channel, row) in self.layout.rows(index, part.len()) {
            let (from, to) = (&part[row.clone()], &mut bytes[row]);
            if self.layout.is_interleaved() {
                let steps = to.iter_mut().zip(from).zip(&self.params);
                steps.for_each(|((q, v), p)| {
                    *q = ((v / p.scale + ROUND) - ROUND + p.zero_point as f32).clamp(0.0, 255.0) as u8;
                });
            } else {
                let p = &self.params[channel];
                quantize_slice(from, p.scale, p.zero_point as u8, to);
            }
        }
        bytes
    }

    fn elements(&self, real: &Floats, shape: &[usize]) -> Tensor {
        let own = self.clone();
        computed(real, DType::U8, shape, self.layout.share(), move |index, part| own.quantize(index, part))
    }

    /// Rounds some elements of each channel the other way, those where it costs least, until the errors add up to less
    /// than a step. Inputs behind an activation have a mean, and what the sum of a channel is off by is added to its
    /// output so many times (Guo et al. 2022, SQuant, <https://arxiv.org/abs/2202.07471>).
    fn with_sums(&self, real: &Floats) -> Vec<u8> {
        let mut bytes = real.each(self.layout.share(), |index, part| self.quantize(index, part)).concat();
        let flips = real.part(0, real.len(), |real| self.flips(real, &bytes));
        flips.into_iter().for_each(|(place, q)| bytes[place] = q);
        bytes
    }

    fn flips(&self, real: &[f32], bytes: &[u8]) -> Vec<(usize, u8)> {
        let Layout { channels, inner } = self.layout;
        let flips = |(channel, p): (usize, &QuantParams)| -> Vec<(usize, u8)> {
            let block = channels * inner;
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
        flips.concat()
    }

    fn pack(&self, elements: Tensor, axis: Option<i64>) -> Packed {
        let scales: Vec<f32> = self.params.iter().map(|p| p.scale).collect();
        let zeros: Vec<u8> = self.params.iter().map(|p| p.zero_point as u8).collect();
        let (scale, zero) = match (axis, scales.first(), zeros.first()) {
            (None, Some(&s), Some(&z)) => (Array::scalar(s), Array::scalar(z)),
            _ => (Array::vector(scales), Array::vector(zeros)),
        };
        Packed::new(elements, scale, zero, axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_those_of_each_number() {
        let real: Vec<f32> = (0..2 * SHARE + 77).map(|i| libm::sinf(i as f32) * 3.0).collect();
        let halves = super::halves(&Floats::from(real.as_slice()), &[real.len()]).array().unwrap();
        let wanted: Vec<half::f16> = real.iter().map(|&v| half::f16::from_f32(v)).collect();
        assert_eq!(halves.slice::<half::f16>().unwrap(), wanted);
    }

    /// Every element in the channel that its index along the axis says, whatever the order of parts and rows.
    #[test]
    fn elements_are_rounded_by_their_channel() {
        let shapes: [(&[usize], Option<usize>); 8] = [
            (&[300, 500], Some(0)),
            (&[300, 500], Some(1)),
            (&[3, 70_000], Some(0)),
            (&[3, 70_000], Some(1)),
            (&[40, 50, 60], Some(1)),
            (&[40, 50, 60], None),
            (&[150_000], Some(0)),
            (&[2, 1, 70_000], Some(1)),
        ];
        for (shape, axis) in shapes {
            let len = shape.iter().product::<usize>();
            let real: Vec<f32> =
                (0..len).map(|i| libm::sinf((i + 1) as f32 * 0.37) * (1 + i % 13) as f32).collect();
            let inner = axis.map_or(len, |a| shape[a + 1..].iter().product());
            let channels = axis.map_or(1, |a| shape[a]);
            let floats = Floats::from(real.as_slice());
            for packed in [
                symmetric(&floats, shape, axis).unwrap(),
                closest(&floats, shape, &[None, axis]).unwrap(),
                closest(&floats, shape, &[axis]).unwrap(),
            ] {
                let (scale, elements) =
                    (packed.scale.slice::<f32>().unwrap(), packed.elements.array().unwrap());
                let zero = packed.zero.as_ref().unwrap().array().unwrap().to_f32().unwrap();
                let (zero, elements) = (zero.as_slice().unwrap(), elements.to_f32().unwrap());
                let mut least = vec![f32::INFINITY; channels];
                let mut most = vec![f32::NEG_INFINITY; channels];
                for (i, q) in elements.iter().enumerate() {
                    let channel = i / inner % channels;
                    let own = if scale.len() == 1 { 0 } else { channel };
                    let lost = (q - zero[own]) * scale[own] - real[i];
                    assert!(lost.abs() <= scale[own] * 1.01, "{shape:?} {axis:?} {i}: {lost}");
                    (least[channel], most[channel]) = (least[channel].min(*q), most[channel].max(*q));
                }
                if scale.len() == channels {
                    let (low, high) =
                        if packed.elements.dtype() == DType::U8 { (1.0, 254.0) } else { (-127.0, 127.0) };
                    let full = least.iter().zip(&most).all(|(l, m)| *l <= low || *m >= high);
                    assert!(full, "{shape:?} {axis:?}: a channel does not use its range");
                }
            }
        }
    }
}
