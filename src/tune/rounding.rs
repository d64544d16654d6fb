//! Rounding weights for what they compute, not for what they are.
//!
//! With inputs `x` as the quantized graph delivers them and outputs `y` as they should be, the integers of an output
//! channel should make `Σ (y - ŵ·x)²` small, which is `ŵ·Hŵ - 2 b·ŵ` with `H = Σ x xᵀ` and `b = Σ y x`. Starting from
//! the nearest integers, each weight in turn moves to the best integer while the others stay, until none moves:
//! coordinate descent, as in Behdin et al. 2023, QuantEase (<https://arxiv.org/abs/2309.01885>). It never gets worse,
//! needs no inverse of `H`, and corrects for noise in the inputs as well. A bias is one more input that is always 1
//! and whose weight is not rounded.

use rayon::prelude::*;

use crate::kernels::gemm::{Mat, MatMut, Size, gemm};
use crate::kernels::simd::{self, Task};

/// Sweeps over the weights of a channel.
const SWEEPS: usize = 8;
/// Channels that one thread takes together.
const BLOCK: usize = 16;

/// The sums over all rows that the error depends on, for some output channels with the same inputs.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Inputs of a row; the last one is 1 if there is a bias.
    pub width: usize,
    /// `H`, `width × width`.
    pub inputs: Vec<f32>,
    /// `b` for each output channel.
    pub cross: Vec<f32>,
}

/// The grid of an output channel, and what may lie on it.
#[derive(Debug, Clone, Copy)]
pub struct Grid<'a> {
    /// Step.
    pub scale: f32,
    /// Largest magnitude of an integer.
    pub limit: i32,
    /// For each weight, those that may not exceed `pair_limit` together with it; empty: no such limit.
    pub partners: &'a [Vec<u32>],
    /// The largest magnitude of the sum of two partners.
    pub pair_limit: i32,
}

impl Moments {
    /// Keeps the solution near the weights it started from, as much as if the inputs had more power each: this share of
    /// their mean. Returns what that adds to `b`.
    pub fn anchor(&mut self, weights: &[f32], depth: usize, share: f32) -> Vec<f32> {
        let power = self.inputs.iter().step_by(self.width + 1).take(depth);
        let ridge = share * power.sum::<f32>() / depth.max(1) as f32;
        self.inputs.iter_mut().step_by(self.width + 1).take(depth).for_each(|power| *power += ridge);
        let with_bias = self.width > depth;
        let rows = weights.chunks(depth.max(1));
        rows.flat_map(|row| row.iter().map(|w| ridge * w).chain(with_bias.then_some(0.0))).collect()
    }

    /// The integers of each output channel, from those given, and the biases that go with them; or the biases alone.
    pub fn descend(&self, integers: &mut [i32], bias: &mut [f32], grids: &[Grid], weights_too: bool) {
        let (width, depth) = (self.width, integers.len() / grids.len().max(1));
        if width == 0 || depth == 0 {
            return;
        }
        let with_bias = width > depth;
        // Channels that share a thread share the rows of `H`, which need not come from far for each.
        let block = grids.len().div_ceil(rayon::current_num_threads()).clamp(1, BLOCK);
        let channels = integers.par_chunks_mut(block * depth).zip(bias.par_chunks_mut(block));
        let channels = channels.zip(grids.par_chunks(block)).zip(self.cross.par_chunks(block * width));
        channels.for_each(|(((q, bias), grids), cross)| {
            let rows = q.chunks(depth).zip(grids).zip(&*bias);
            let real = |((q, grid), bias): ((&'_ [i32], &Grid), &f32)| {
                let weights: Vec<f32> = q.iter().map(|&q| q as f32 * grid.scale).collect();
                weights.into_iter().chain(with_bias.then_some(*bias))
            };
            let mut weights: Vec<f32> = rows.flat_map(real).collect();
            // The gradient: Hŵ - b.
            let mut gradient: Vec<f32> = cross.iter().map(|b| -b).collect();
            let size = Size { m: grids.len(), n: width, k: width };
            let (a, h) = (Mat::rows(&weights, width), Mat::rows(&self.inputs, width));
            gemm(size, 1.0, a, h, 1.0, MatMut::rows(&mut gradient, width));
            let inputs = &self.inputs;
            simd::run(Descent { inputs, width, weights: &mut weights, gradient, q, grids, weights_too });
            if with_bias {
                bias.iter_mut().zip(weights.chunks(width)).for_each(|(bias, w)| *bias = w[depth]);
            }
        });
    }
}

/// The way down of some output channels, each for itself.
struct Descent<'a> {
    inputs: &'a [f32],
    width: usize,
    weights: &'a mut [f32],
    gradient: Vec<f32>,
    q: &'a mut [i32],
    grids: &'a [Grid<'a>],
    weights_too: bool,
}

impl Task for Descent<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { inputs, width, weights, mut gradient, q, grids, weights_too } = self;
        let depth = q.len() / grids.len();
        let mut open: Vec<usize> = (0..grids.len()).collect();
        for _ in 0..SWEEPS {
            let mut changed = vec![false; grids.len()];
            for k in 0..if weights_too { depth } else { 0 } {
                let row = &inputs[k * width..][..width];
                let curvature = row[k];
                if curvature <= 0.0 {
                    continue;
                }
                for &c in &open {
                    let (gradient, grid) = (&mut gradient[c * width..][..width], &grids[c]);
                    let (weight, q) = (&mut weights[c * width + k], &mut q[c * depth..][..depth]);
                    let best = (*weight - gradient[k] / curvature) / grid.scale;
                    let best = best.round_ties_even() as i32;
                    if best == q[k] {
                        continue;
                    }
                    let (low, high) = grid.interval(k, q);
                    let best = best.clamp(low, high);
                    if best != q[k] {
                        let real = best as f32 * grid.scale;
                        add(gradient, real - *weight, row);
                        (q[k], *weight, changed[c]) = (best, real, true);
                    }
                }
            }
            if width > depth && inputs[depth * width + depth] > 0.0 {
                let row = &inputs[depth * width..][..width];
                for &c in &open {
                    let gradient = &mut gradient[c * width..][..width];
                    let step = -gradient[depth] / row[depth];
                    add(gradient, step, row);
                    weights[c * width + depth] += step;
                }
            }
            open.retain(|&c| changed[c]);
            if open.is_empty() {
                break;
            }
        }
    }
}

/// Adds a multiple of a row.
#[inline(always)]
fn add(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}

impl Grid<'_> {
    /// The integers that weight `k` may take while the others are these.
    fn interval(&self, k: usize, q: &[i32]) -> (i32, i32) {
        let (mut low, mut high) = (-self.limit, self.limit);
        for &partner in self.partners.get(k).into_iter().flatten() {
            let other = q[partner as usize];
            low = low.max(-self.pair_limit - other);
            high = high.min(self.pair_limit - other);
        }
        (low.min(q[k]), high.max(q[k]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of correlated inputs; outputs of one channel with these weights and bias.
    fn problem(weights: &[f32], bias: f32) -> (Moments, Vec<Vec<f32>>, Vec<f32>) {
        let width = weights.len() + 1;
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut rows = Vec::new();
        for _ in 0..400 {
            let common = random();
            let mut row: Vec<f32> = weights.iter().map(|_| common + 0.3 * random() + 0.4).collect();
            row.push(1.0);
            rows.push(row);
        }
        let outputs: Vec<f32> =
            rows.iter().map(|r| bias + r.iter().zip(weights).map(|(x, w)| x * w).sum::<f32>()).collect();
        let mut moments = Moments { width, inputs: vec![0.0; width * width], cross: vec![0.0; width] };
        for (row, y) in rows.iter().zip(&outputs) {
            for i in 0..width {
                (0..width).for_each(|j| moments.inputs[i * width + j] += row[i] * row[j]);
                moments.cross[i] += row[i] * y;
            }
        }
        (moments, rows, outputs)
    }

    #[test]
    fn descent_beats_the_nearest_integers_and_ends_where_no_single_step_helps() {
        let weights = [0.37, -0.61, 0.22];
        let (moments, rows, outputs) = problem(&weights, -0.2);
        let grid = Grid { scale: 0.25, limit: 7, partners: &[], pair_limit: 0 };
        let nearest: Vec<i32> = weights.iter().map(|w| (w / 0.25f32).round() as i32).collect();
        let (mut q, mut bias) = (nearest.clone(), [-0.2f32]);
        moments.descend(&mut q, &mut bias, &[grid], true);
        let error = |q: &[i32], bias: f32| {
            let mut w: Vec<f32> = q.iter().map(|&q| q as f32 * 0.25).collect();
            w.push(bias);
            let found = |row: &[f32]| row.iter().zip(&w).map(|(x, w)| x * w).sum::<f32>();
            rows.iter().zip(&outputs).map(|(row, y)| (y - found(row)).powi(2)).sum::<f32>()
        };
        let found = error(&q, bias[0]);
        assert!(found < error(&nearest, -0.2));
        for (k, step) in (0..3).flat_map(|k| [(k, -1), (k, 1)]) {
            let mut other = q.clone();
            other[k] += step;
            assert!(error(&other, bias[0]) >= found, "{q:?} could move to {other:?}");
        }
        assert!(error(&q, bias[0] + 0.01).min(error(&q, bias[0] - 0.01)) >= found);
    }

    #[test]
    fn partners_never_exceed_their_limit() {
        let (moments, ..) = problem(&[1.2, 1.1, -0.9, -1.3], 0.0);
        let partners: Vec<Vec<u32>> = vec![vec![1], vec![0], vec![3], vec![2]];
        let grid = Grid { scale: 0.01, limit: 127, partners: &partners, pair_limit: 128 };
        let (mut q, mut bias) = (vec![64, 64, -64, -64], [0.0f32]);
        moments.descend(&mut q, &mut bias, &[grid], true);
        assert!((q[0] + q[1]).abs() <= 128 && (q[2] + q[3]).abs() <= 128, "{q:?}");
    }
}
