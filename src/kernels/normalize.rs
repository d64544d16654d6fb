//! Shifting and scaling of runs by their own statistics or by given ones.

pub mod gradient;

use super::real::Real;
use super::reduce::{sum, sum_squares};

/// Mean and variance (of the run itself, not an estimate) of a run.
pub fn moments<T: Real>(x: &[T]) -> (T, T) {
    let n = T::of(x.len() as f64);
    let mean = sum(x) / n;
    (mean, sum_squares(x, mean) / n)
}

/// `(x - mean) * factor + shift` for every element.
#[inline]
pub fn affine<T: Real>(x: &mut [T], mean: T, factor: T, shift: T) {
    x.iter_mut().for_each(|v| *v = (*v - mean) * factor + shift);
}

/// `(x - mean) * factor + shift` for every element of runs of `inner` elements, one run per channel in turn. The
/// parameters are as many as there are channels.
pub fn affine_channels<T: Real>(x: &mut [T], inner: usize, mean: &[T], factor: &[T], shift: &[T]) {
    if inner == 0 || mean.is_empty() {
        return;
    }
    for sample in x.chunks_exact_mut(mean.len() * inner) {
        let parameters = mean.iter().zip(factor).zip(shift);
        if inner == 1 {
            for (v, ((&mean, &factor), &shift)) in sample.iter_mut().zip(parameters) {
                *v = (*v - mean) * factor + shift;
            }
        } else {
            for (run, ((&mean, &factor), &shift)) in sample.chunks_exact_mut(inner).zip(parameters) {
                affine(run, mean, factor, shift);
            }
        }
    }
}

/// Local response normalization over a window of `before` + 1 + `after` channels of a samples × channels × `inner`
/// array: `x / (bias + alpha · Σ x²)^beta`.
pub fn local_response<T: Real>(
    x: &[T],
    (channels, inner): (usize, usize),
    (before, after): (usize, usize),
    (bias, alpha, beta): (T, T, T),
) -> Vec<T> {
    let mut y = vec![T::ZERO; x.len()];
    if x.is_empty() {
        return y;
    }
    for (x, y) in x.chunks_exact(channels * inner).zip(y.chunks_exact_mut(channels * inner)) {
        for (c, (row, out)) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)).enumerate() {
            let last = c.saturating_add(after).min(channels - 1);
            let window = &x[c.saturating_sub(before) * inner..(last + 1) * inner];
            for other in window.chunks_exact(inner) {
                out.iter_mut().zip(other).for_each(|(sum, &v)| *sum += v * v);
            }
            for (out, &v) in out.iter_mut().zip(row) {
                let base = bias + alpha * *out;
                *out =
                    v / if beta == T::of(0.75) { base.sqrt() * base.sqrt().sqrt() } else { base.pow(beta) };
            }
        }
    }
    y
}
