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

/// Subtracts the maximum of each column.
fn center<T: Real>(block: &mut [T], n: usize, inner: usize) {
    let maxima = fold_axis(block, (1, n, inner), -T::INFINITY, T::maximum, T::maximum);
    per_column(block, &maxima, |x, max| x - max);
}
