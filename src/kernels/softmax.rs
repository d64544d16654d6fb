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
