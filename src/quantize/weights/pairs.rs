//! Weights for processors that add pairs of `uint8 · int8` products in 16 bits.
//!
//! `vpmaddubsw` computes `x₀·w₀ + x₁·w₁` and saturates at ±32767. With `x` up to 255 the sum is safe if neighbouring
//! weights of one sign add up to at most 128. Each channel gets the scale, between the usual one and twice that, at
//! which rounding and cutting the remaining offenders cost the least squared error.

use rayon::prelude::*;

use super::FULL;
use crate::kernels::simd::{self, Task};

/// The largest sum of two neighbours of one sign: `255 · 128 ≤ 32767`.
pub const LIMIT: i32 = 128;

/// Scales tried for a channel with offenders, as multiples of the usual one, in sixteenths.
const SIXTEENTHS: std::ops::RangeInclusive<u16> = 16..=32;

/// Quantizes a weight of at least two axes whose output channels lie along the first axis, or along the last; raises
/// `scales`, one for each or one for all, where that lessens the error.
pub fn quantize(shape: &[usize], by_row: bool, real: &[f32], scales: &mut [f32], out: &mut [i8]) {
    let columns = shape[shape.len() - 1];
    let by_column = !by_row;
    // One row for each output channel, its products in the order of summation.
    let (rows, depth) = if by_column {
        (columns, real.len() / columns.max(1))
    } else {
        (shape[0], real.len() / shape[0].max(1))
    };
    let window: usize = if by_column { 1 } else { shape[2..].iter().product::<usize>().max(1) };
    let neighbours = Neighbours::new(depth, window);
    let turned;
    let real = if by_column {
        turned = turn(real, columns);
        &turned
    } else {
        real
    };
    let row = |r: usize| &real[r * depth..][..depth];
    // One scale is not shared if there is but one channel.
    let shared = scales.len() == 1 && rows > 1;
    if shared {
        scales[0] = neighbours.common(&(0..rows).map(row).collect::<Vec<_>>(), scales[0]);
    }
    let solve = |r: usize| match shared {
        true => (rounded(row(r), scales[0], neighbours.cuttable()).0, scales[0]),
        false => neighbours.solve(row(r), scales[r]),
    };
    let solved: Vec<(Vec<i8>, f32)> = (0..rows).into_par_iter().map(solve).collect();
    for (r, (quantized, scale)) in solved.into_iter().enumerate() {
        scales[if shared { 0 } else { r }] = scale;
        for (k, q) in quantized.into_iter().enumerate() {
            out[if by_column { k * columns + r } else { r * depth + k }] = q;
        }
    }
}

/// The columns of a matrix one after the other.
fn turn(matrix: &[f32], columns: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let rows = matrix.len() / columns.max(1);
    let mut turned = vec![0.0; matrix.len()];
    for r in (0..rows).step_by(BLOCK) {
        for c in (0..columns).step_by(BLOCK) {
            for c in c..columns.min(c + BLOCK) {
                for r in r..rows.min(r + BLOCK) {
                    turned[c * rows + r] = matrix[r * columns + c];
                }
            }
        }
    }
    turned
}

/// How many output channels of a quantized weight have pairs that can saturate, and of how many. Channels lie along the
/// first axis if `by_row`, else along the last.
pub fn saturating_channels(shape: &[usize], by_row: bool, quantized: &[i8]) -> (usize, usize) {
    let (Some(&first), Some(&last)) = (shape.first(), shape.last()) else { return (0, 0) };
    let channels = if by_row { first } else { last };
    if channels == 0 || quantized.is_empty() {
        return (0, channels);
    }
    let depth = quantized.len() / channels;
    let window = if by_row { shape.iter().skip(2).product::<usize>().max(1) } else { 1 };
    let neighbours = Neighbours::new(depth, window);
    if neighbours.harmless {
        return (0, channels);
    }
    let channel = |c: usize| -> Vec<i8> {
        match by_row {
            true => quantized.iter().skip(c * depth).take(depth).copied().collect(),
            false => quantized.iter().skip(c).step_by(channels).copied().collect(),
        }
    };
    ((0..channels).filter(|&c| neighbours.offends(&channel(c))).count(), channels)
}

/// Cuts the pairs that can saturate, and nothing else; the scales stay.
pub fn settle(shape: &[usize], axis: Option<usize>, quantized: &mut [i8]) {
    let (Some(&first), Some(&last)) = (shape.first(), shape.last()) else { return };
    // With one scale for all, windows tell a convolution, whose channels come first.
    let by_row = axis == Some(0) || (axis.is_none() && shape.len() > 2);
    let channels = if by_row { first } else { last };
    if channels == 0 || quantized.is_empty() {
        return;
    }
    let depth = quantized.len() / channels;
    let window = if by_row { shape.iter().skip(2).product::<usize>().max(1) } else { 1 };
    let neighbours = Neighbours::new(depth, window);
    if neighbours.harmless {
        return;
    }
    let (start, step) = if by_row { (depth, 1) } else { (1, channels) };
    for channel in 0..channels {
        let at = |k: usize| channel * start + k * step;
        let mut q: Vec<i8> = (0..depth).map(|k| quantized[at(k)]).collect();
        neighbours.settle(&mut q);
        q.into_iter().enumerate().for_each(|(k, q)| quantized[at(k)] = q);
    }
}

/// For each weight of an output channel, those whose sum with it some kernel forms; nothing where none does.
pub fn partners(shape: &[usize], axis: Option<usize>) -> Vec<Vec<u32>> {
    let count: usize = shape.iter().product();
    let (depth, window) = match axis {
        Some(0) => (count / shape[0].max(1), shape[2..].iter().product::<usize>().max(1)),
        _ => (count / shape.last().copied().unwrap_or(1).max(1), 1),
    };
    let neighbours = Neighbours::new(depth, window);
    if neighbours.harmless {
        return Vec::new();
    }
    let mut partners = vec![Vec::new(); depth];
    let mut join = |a: usize, b: usize| {
        let list: &mut Vec<u32> = &mut partners[a];
        if !list.contains(&(b as u32)) {
            list.push(b as u32);
        }
    };
    for &(a, b) in &neighbours.pairs {
        join(a, b);
        join(b, a);
    }
    partners
}

/// The orders in which kernels pair the weights of a channel: as stored, or with the input channel innermost, paired
/// through or anew for each position of the window.
struct Neighbours {
    pairs: Vec<(usize, usize)>,
    /// Is the input channel alone (depthwise)? Those kernels add in 32 bits.
    harmless: bool,
}

impl Neighbours {
    /// Those of `depth` weights of a channel, `window` of them for each input channel.
    fn new(depth: usize, window: usize) -> Self {
        let mut pairs: Vec<_> = (0..depth / 2).map(|i| (2 * i, 2 * i + 1)).collect();
        if window > 1 {
            let inputs = depth / window;
            let at = |k: usize| k % inputs * window + k / inputs;
            pairs.extend((0..depth / 2).map(|i| (at(2 * i), at(2 * i + 1))));
            for tap in (0..window).filter(|_| inputs % 2 == 1) {
                let own = |i: usize| (at(tap * inputs + 2 * i), at(tap * inputs + 2 * i + 1));
                pairs.extend((0..inputs / 2).map(own));
            }
        }
        Self { pairs, harmless: window > 1 && depth == window }
    }

    /// The pairs that may not offend.
    fn cuttable(&self) -> &[(usize, usize)] {
        if self.harmless { &[] } else { &self.pairs }
    }

    fn offends(&self, q: &[i8]) -> bool {
        self.pairs.iter().any(|&(a, b)| exceeds(q, a, b))
    }

    /// Cuts every pair that offends.
    fn settle(&self, q: &mut [i8]) {
        // Cutting brings other pairs nearer to zero as well: one pass is enough.
        self.pairs.iter().for_each(|&(a, b)| cut(q, a, b));
    }

    /// Does a channel have pairs that offend at this scale?
    fn offends_at(&self, real: &[f32], scale: f32) -> bool {
        let mut q = vec![0; real.len()];
        simd::run(Round { real, scale, out: &mut q });
        !self.harmless && self.offends(&q)
    }

    /// The integers of a channel and their scale.
    fn solve(&self, real: &[f32], scale: f32) -> (Vec<i8>, f32) {
        let mut first = vec![0; real.len()];
        simd::run(Round { real, scale, out: &mut first });
        if self.harmless || !self.offends(&first) {
            return (first, scale);
        }
        // With a larger scale all integers are nearer to zero, so no other pair comes to offend.
        let offenders =
            self.pairs.iter().copied().filter(|&(a, b)| exceeds(&first, a, b)).collect::<Vec<_>>();
        let mut best = (f64::INFINITY, first, scale);
        for scale in raised(scale) {
            let (q, error) = rounded(real, scale, &offenders);
            if error < best.0 {
                best = (error, q, scale);
            }
        }
        (best.1, best.2)
    }

    /// The scale that serves all channels together best.
    fn common(&self, channels: &[&[f32]], scale: f32) -> f32 {
        if !channels.par_iter().any(|real| self.offends_at(real, scale)) {
            return scale;
        }
        let error = |scale: f32| -> f64 {
            let errors: Vec<f64> =
                channels.par_iter().map(|real| rounded(real, scale, &self.pairs).1).collect();
            errors.iter().sum()
        };
        let tried = raised(scale).map(|scale| (error(scale), scale));
        tried.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(scale, |(_, scale)| scale)
    }
}

/// The integers of a channel at this scale, those of these pairs cut that offend, and the squared error of that.
fn rounded(real: &[f32], scale: f32, pairs: &[(usize, usize)]) -> (Vec<i8>, f64) {
    let (mut q, mut error) = (vec![0; real.len()], 0.0);
    simd::run(Round { real, scale, out: &mut q });
    pairs.iter().for_each(|&(a, b)| cut(&mut q, a, b));
    simd::run(Distance { real, scale, q: &q, error: &mut error });
    (q, error)
}

/// Scales to be tried where pairs offend, the usual one first.
fn raised(scale: f32) -> impl Iterator<Item = f32> {
    SIXTEENTHS.map(move |sixteenths| scale * f32::from(sixteenths) / 16.0)
}

/// The integers nearest to multiples of the scale.
struct Round<'a> {
    real: &'a [f32],
    scale: f32,
    out: &'a mut [i8],
}

impl Task for Round<'_> {
    #[inline(always)]
    fn run(self) {
        /// From here up, f32 has no fraction: adding it rounds, and leaves the integer in the last bits.
        const WHOLE: f32 = 1.5 * (1u32 << (f32::MANTISSA_DIGITS - 1)) as f32;
        for (out, &w) in self.out.iter_mut().zip(self.real) {
            *out = ((w / self.scale).clamp(-FULL as f32, FULL as f32) + WHOLE).to_bits() as i8;
        }
    }
}

/// The sum of the squares of what rounding loses.
struct Distance<'a> {
    real: &'a [f32],
    scale: f32,
    q: &'a [i8],
    error: &'a mut f64,
}

impl Task for Distance<'_> {
    #[inline(always)]
    fn run(self) {
        const LANES: usize = 8;
        let mut sums = [0.0; LANES];
        let of = |w: f32, q: i8| {
            let lost = f64::from(w - f32::from(q) * self.scale);
            lost * lost
        };
        let ((real, real_rest), (q, q_rest)) = (self.real.as_chunks::<LANES>(), self.q.as_chunks::<LANES>());
        for (real, q) in real.iter().zip(q) {
            for lane in 0..LANES {
                sums[lane] += of(real[lane], q[lane]);
            }
        }
        let rest: f64 = real_rest.iter().zip(q_rest).map(|(&w, &q)| of(w, q)).sum();
        *self.error = sums.iter().sum::<f64>() + rest;
    }
}

fn exceeds(q: &[i8], a: usize, b: usize) -> bool {
    (i32::from(q[a]) + i32::from(q[b])).abs() > LIMIT
}

/// Takes half of the excess of two neighbours from each.
fn cut(q: &mut [i8], a: usize, b: usize) {
    let (x, y) = (i32::from(q[a]), i32::from(q[b]));
    let excess = (x + y).abs() - LIMIT;
    if excess > 0 {
        let sign = (x + y).signum();
        q[a] = (x - sign * (excess + 1) / 2) as i8;
        q[b] = (y - sign * excess / 2) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pair_leaves_sixteen_bits_in_any_order() {
        let shape = [4, 3, 3, 3];
        let real: Vec<f32> = (0..108).map(|i| ((i * 37 % 101) as f32 - 30.0) / 71.0).collect();
        let mut scales = vec![71.0 / 71.0 / 127.0; 4];
        let mut out = vec![0; 108];
        quantize(&shape, true, &real, &mut scales, &mut out);
        let neighbours = Neighbours::new(27, 9);
        for (row, scale) in out.chunks(27).zip(&scales) {
            assert!(!neighbours.offends(row));
            assert!(*scale >= 1.0 / 127.0 && *scale <= 2.0 / 127.0);
        }
    }

    #[test]
    fn a_single_channel_and_a_scale_for_all_are_raised_too() {
        let error = |real: &[f32], q: &[i8], scale: f32| -> f32 {
            real.iter().zip(q).map(|(w, &q)| (w - f32::from(q) * scale).powi(2)).sum()
        };
        let real: Vec<f32> = (0..64).map(|i| 1.0 - (i % 7) as f32 * 0.05).collect();
        for (shape, by_row) in [([64, 1], false), ([1, 64], true), ([16, 4], false), ([4, 16], true)] {
            let (mut scales, mut out) = (vec![1.0 / 127.0], vec![0; 64]);
            quantize(&shape, by_row, &real, &mut scales, &mut out);
            assert!(scales[0] > 1.8 / 127.0, "{shape:?} {by_row}: {scales:?}");
            assert!(error(&real, &out, scales[0]) < 64.0 * (scales[0] / 2.0).powi(2), "{shape:?} {by_row}");
            let (_, channels) = saturating_channels(&shape, by_row, &out);
            assert_eq!(saturating_channels(&shape, by_row, &out), (0, channels));
        }
    }

    #[test]
    fn with_one_scale_too_pairs_lie_along_channels() {
        let form = super::super::Form { limit: FULL, by_channel: false, pairs: true };
        // Across channels neighbours have other signs, along them the same.
        for (shape, axis, run) in [(vec![4, 3, 3, 3], 0, 3), (vec![4, 27], 0, 27), (vec![27, 4], 1, 1)] {
            let real = (0..108).map(|i| if i / run % 2 == 0 { 1.0 } else { -1.0 }).collect::<Vec<f32>>();
            let array = crate::ir::Array::new(&shape, real).unwrap();
            let found = super::super::weight_of(&array, Some(axis), 1.0, &[], form).unwrap();
            let q = found.elements.slice::<i8>().unwrap();
            assert_eq!(found.scales.len(), 1);
            assert_eq!(saturating_channels(&shape, axis == 0, q), (0, 4), "{shape:?}");
        }
    }

    #[test]
    fn a_scale_for_all_stays_where_no_pair_offends() {
        let real: Vec<f32> = (0..36).map(|i| if i % 2 == 0 { 1.0 } else { -0.33 }).collect();
        let (mut scales, mut out) = (vec![1.0 / 127.0], vec![0; 36]);
        quantize(&[4, 9], false, &real, &mut scales, &mut out);
        let nearest: Vec<i8> = real.iter().map(|w| (w * 127.0).round_ties_even() as i8).collect();
        assert_eq!((scales, out), (vec![1.0 / 127.0], nearest));
    }

    #[test]
    fn harmless_channels_keep_their_scale() {
        let mut out = vec![0; 4];
        let mut scales = vec![0.01, 0.01];
        quantize(&[2, 2], false, &[1.27, -0.3, -1.27, 0.2], &mut scales, &mut out);
        assert_eq!((out, scales), (vec![127, -30, -127, 20], vec![0.01, 0.01]));
    }
}
