//! Softmax along the middle extent of an `outer` × `n` × `inner` array.
//!
//! `softmax(x) = e^(x - m) / Σ e^(x - m)` with `m = max x`, which changes nothing but keeps the powers finite.
//!
//! For `f32`, results have the bits of ONNX Runtime's on processors with AVX-512 (`MlasComputeSoftmax`): each of
//! sixteen lanes sums every sixteenth power, and powers are multiplied with the reciprocal of the sum.

use super::real::Real;
use super::reduce::{fold_axis, per_column};
use super::simd::{self, Task};

/// Lanes of a sum.
const LANES: usize = 16;

/// Replaces the elements by their softmax.
pub fn softmax<T: Real>(x: &mut [T], (_, n, inner): (usize, usize, usize)) {
    if n == 0 || inner == 0 {
        return;
    }
    for block in x.chunks_exact_mut(n * inner) {
        center(block, n, inner);
        T::exp_slice(block);
        let mut sums = lane_sums(block, inner);
        sums.iter_mut().for_each(|sum| *sum = T::ONE / *sum);
        per_column(block, &sums, |power, share| power * share);
    }
}

/// Replaces the elements by the logarithm of their softmax, `x - m - ln Σ e^(x - m)`.
pub fn log_softmax<T: Real>(x: &mut [T], (_, n, inner): (usize, usize, usize)) {
    if n == 0 || inner == 0 {
        return;
    }
    let mut powers = vec![T::ZERO; n * inner];
    for block in x.chunks_exact_mut(n * inner) {
        center(block, n, inner);
        powers.copy_from_slice(block);
        T::exp_slice(&mut powers);
        let logs: Vec<T> = lane_sums(&powers, inner).iter().map(|s| s.ln()).collect();
        per_column(block, &logs, |x, log| x - log);
    }
}

/// The sum of each column of a block.
fn lane_sums<T: Real>(block: &[T], inner: usize) -> Vec<T> {
    let mut lanes = vec![T::ZERO; LANES * inner];
    simd::run(Lanes { block, inner, lanes: &mut lanes });
    lanes.truncate(inner);
    lanes
}

/// Sums the columns of a block in [`LANES`], and the lanes into the first of them.
struct Lanes<'a, T> {
    block: &'a [T],
    inner: usize,
    lanes: &'a mut [T],
}

impl<T: Real> Task for Lanes<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { block, inner, lanes } = self;
        // As many rows as there are lanes lie as the lanes do.
        for rows in block.chunks(LANES * inner) {
            lanes.iter_mut().zip(rows).for_each(|(lane, &v)| *lane += v);
        }
        // The halves, then neighbours, then the halves of what is left.
        for (lane, other) in [(0, 8), (1, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14), (7, 15)]
            .into_iter()
            .chain([(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (4, 6), (0, 4)])
        {
            for i in 0..inner {
                let more = lanes[other * inner + i];
                lanes[lane * inner + i] += more;
            }
        }
    }
}

/// The way back through [`softmax`]: `y·(∂y - Σ ∂y·y)`.
pub fn softmax_gradient<T: Real>(y: &[T], dy: &[T], extents: (usize, usize, usize)) -> Vec<T> {
    let mut dx: Vec<T> = y.iter().zip(dy).map(|(&y, &dy)| y * dy).collect();
    subtract(&mut dx, y, extents);
    dx
}

/// The way back through [`log_softmax`]: `∂y - e^y·Σ ∂y`.
pub fn log_softmax_gradient<T: Real>(y: &[T], dy: &[T], extents: (usize, usize, usize)) -> Vec<T> {
    let mut dx = dy.to_vec();
    let mut powers = y.to_vec();
    T::exp_slice(&mut powers);
    subtract(&mut dx, &powers, extents);
    dx
}

/// Subtracts from each column its sum times the factors.
fn subtract<T: Real>(dx: &mut [T], factors: &[T], (_, n, inner): (usize, usize, usize)) {
    if n == 0 || inner == 0 {
        return;
    }
    for (block, factors) in dx.chunks_exact_mut(n * inner).zip(factors.chunks_exact(n * inner)) {
        let sums = fold_axis(block, (1, n, inner), T::ZERO, |a, v| a + v, |a, b| a + b);
        for (row, factors) in block.chunks_exact_mut(inner).zip(factors.chunks_exact(inner)) {
            let columns = row.iter_mut().zip(factors).zip(&sums);
            columns.for_each(|((x, &factor), &sum)| *x = *x - factor * sum);
        }
    }
}

/// Subtracts the maximum of each column.
fn center<T: Real>(block: &mut [T], n: usize, inner: usize) {
    let maxima = fold_axis(block, (1, n, inner), -T::INFINITY, T::maximum, T::maximum);
    per_column(block, &maxima, |x, max| x - max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_made_in_lanes(n in 1usize..100, inner in 1usize..4, seed in 0usize..9) {
            let block: Vec<f32> = (0..n * inner).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 999.0).collect();
            let found = lane_sums(&block, inner);
            for (i, found) in found.iter().enumerate() {
                let mut l = [0f32; LANES];
                (0..n).for_each(|k| l[k % LANES] += block[k * inner + i]);
                let h: Vec<f32> = (0..8).map(|j| l[j] + l[j + 8]).collect();
                let want = ((h[0] + h[1]) + (h[2] + h[3])) + ((h[4] + h[5]) + (h[6] + h[7]));
                prop_assert_eq!(*found, want);
            }
        }

        #[test]
        fn columns_share_one(outer in 0usize..4, n in 1usize..40, inner in 1usize..5, seed in 0u32..1000, spread in 0.1f32..60.0) {
            let next = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let x: Vec<f32> = (0..(outer * n * inner) as u32).map(|i| next(i) * spread).collect();
            let (mut shares, mut logs) = (x.clone(), x.clone());
            softmax(&mut shares, (outer, n, inner));
            log_softmax(&mut logs, (outer, n, inner));
            for start in (0..outer).flat_map(|o| (0..inner).map(move |i| o * n * inner + i)) {
                let column = || (0..n).map(|k| start + k * inner);
                let greatest = column().map(|at| f64::from(x[at])).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = column().map(|at| libm::exp(f64::from(x[at]) - greatest)).sum();
                for at in column() {
                    let log = f64::from(x[at]) - greatest - libm::log(sum);
                    let share = libm::exp(log);
                    // The difference to the maximum is rounded, which its exponential multiplies.
                    let allowed = 1e-6 + 2e-7 * (f64::from(x[at]) - greatest).abs();
                    prop_assert!((f64::from(shares[at]) - share).abs() <= allowed * share + 1e-37);
                    prop_assert!((f64::from(logs[at]) - log).abs() <= 1e-6 * (1.0 + log.abs()));
                }
            }
        }
    }
}
