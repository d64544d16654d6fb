//! Softmax along the middle extent of an `outer` × `n` × `inner` array.
//!
//! `softmax(x) = e^(x - m) / Σ e^(x - m)` with `m = max x`, which changes nothing but keeps the powers finite.

use super::real::Real;
use super::reduce::{fold_axis, per_column};

/// Replaces the elements by their softmax.
pub fn softmax<T: Real>(x: &mut [T], (_, n, inner): (usize, usize, usize)) {
    if n == 0 || inner == 0 {
        return;
    }
    for block in x.chunks_exact_mut(n * inner) {
        center(block, n, inner);
        T::exp_slice(block);
        let sums = fold_axis(block, (1, n, inner), T::ZERO, |a, v| a + v, |a, b| a + b);
        per_column(block, &sums, |power, sum| power / sum);
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
        let sums = fold_axis(&powers, (1, n, inner), T::ZERO, |a, v| a + v, |a, b| a + b);
        let logs: Vec<T> = sums.iter().map(|s| s.ln()).collect();
        per_column(block, &logs, |x, log| x - log);
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
