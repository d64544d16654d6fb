//! Shifting and scaling of runs by their own statistics or by given ones.

pub mod gradient;

use super::gemm::Number;
use super::real::Real;
use super::reduce::{sum, sum_squares};
use super::simd::{self, Task};

/// Mean and variance (of the run itself, not an estimate) of a run.
pub fn moments<T: Real>(x: &[T]) -> (T, T) {
    let n = T::of(x.len() as f64);
    let mean = sum(x) / n;
    (mean, sum_squares(x, mean) / n)
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias` for every element of a run, with its own statistics: replaces
/// the elements, and gives the mean and the reciprocal of the root.
///
/// For `f32`, both and the elements have the bits of ONNX Runtime's on x86-64 with AVX2
/// (`layernorm_kernel_avx2.cpp`): the mean is summed in four lanes of `f64`, squares in eight lanes; short runs
/// update both element by element.
pub fn layer<T: Real + Number>(x: &mut [T], scale: &[T], bias: Option<&[T]>, epsilon: T) -> (T, T) {
    let mut found = (T::ZERO, T::ZERO);
    simd::run(Layer { x, scale, bias, epsilon, found: &mut found });
    found
}

struct Layer<'a, T> {
    x: &'a mut [T],
    scale: &'a [T],
    bias: Option<&'a [T]>,
    epsilon: T,
    found: &'a mut (T, T),
}

/// Runs from this length on are summed in lanes.
const LONG: usize = 8;

impl<T: Real + Number> Task for Layer<'_, T> {
    #[inline(always)]
    fn run(self) {
        let Self { x, scale, bias, epsilon, found } = self;
        let n = T::of(x.len() as f64);
        if x.len() < LONG {
            let (mut mean, mut squares) = (T::ZERO, T::ZERO);
            for (i, &v) in x.iter().enumerate() {
                let apart = v - mean;
                mean += apart / T::of((i + 1) as f64);
                squares += apart * (v - mean);
            }
            let root = (squares / n + epsilon).sqrt();
            for (i, (v, &s)) in x.iter_mut().zip(scale).enumerate() {
                *v = (*v - mean) / root * s + bias.map_or(T::ZERO, |bias| bias[i]);
            }
            *found = (mean, T::of(1.0) / root);
            return;
        }
        let (fours, rest) = x.as_chunks::<4>();
        let mut sums = [0.0f64; 4];
        for four in fours {
            sums.iter_mut().zip(four).for_each(|(sum, &v)| *sum += v.into());
        }
        let sum = rest.iter().fold((sums[0] + sums[2]) + (sums[1] + sums[3]), |sum, &v| sum + v.into());
        let mean = T::of(sum / x.len() as f64);
        let (eights, rest) = x.as_chunks::<8>();
        let mut l = [T::ZERO; 8];
        for eight in eights {
            for (sum, &v) in l.iter_mut().zip(eight) {
                *sum = sum.plus_product(v - mean, v - mean);
            }
        }
        let squares = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
        let squares = rest.iter().fold(squares, |sum, &v| sum.plus_product(v - mean, v - mean));
        let inverse = T::of(1.0) / (squares / n + epsilon).sqrt();
        match bias {
            None => x.iter_mut().zip(scale).for_each(|(v, &s)| *v = (*v - mean) * inverse * s),
            Some(bias) => {
                let parameters = scale.iter().zip(bias);
                x.iter_mut()
                    .zip(parameters)
                    .for_each(|(v, (&s, &b))| *v = b.plus_product((*v - mean) * inverse, s));
            }
        }
        *found = (mean, inverse);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(len: usize, seed: u32) -> Vec<f64> {
        (0..len as u32)
            .map(|i| f64::from(i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20) / 1000.0 - 2.0)
            .collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-11 * (1.0 + b.abs())
    }

    proptest! {
        #[test]
        fn moments_are_their_definition(n in 1usize..3000, seed: u32) {
            let x = numbers(n, seed);
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
            let found = moments(&x);
            prop_assert!(close(found.0, mean) && close(found.1, variance));
        }

        #[test]
        fn a_layer_has_zero_mean_and_unit_deviation(n in 1usize..70, biased: bool, seed: u32) {
            let (x, scale, bias) = (numbers(n, seed), numbers(n, seed ^ 1), numbers(n, seed ^ 2));
            let (mean, variance) = moments(&x);
            let mut y = x.clone();
            let found = layer(&mut y, &scale, biased.then_some(&bias[..]), 0.01);
            let inverse = 1.0 / (variance + 0.01).sqrt();
            prop_assert!(close(found.0, mean) && close(found.1, inverse));
            for (i, &y) in y.iter().enumerate() {
                let shift = if biased { bias[i] } else { 0.0 };
                prop_assert!(close(y, (x[i] - mean) * inverse * scale[i] + shift));
            }
        }

        #[test]
        fn every_channel_has_its_parameters(samples in 0usize..3, channels in 1usize..6, inner in 1usize..9, seed: u32) {
            let x = numbers(samples * channels * inner, seed);
            let [mean, factor, shift] = [1, 2, 3].map(|i| numbers(channels, seed.wrapping_add(i)));
            let mut y = x.clone();
            affine_channels(&mut y, inner, &mean, &factor, &shift);
            for (i, (y, x)) in y.iter().zip(&x).enumerate() {
                let c = i / inner % channels;
                prop_assert_eq!(*y, (x - mean[c]) * factor[c] + shift[c]);
            }
        }

        #[test]
        fn a_response_is_divided_by_its_neighbours(
            samples in 1usize..3, channels in 1usize..7, inner in 1usize..5, before in 0usize..4, after in 0usize..4, seed: u32,
            beta in prop_oneof![Just(0.75), Just(0.5), Just(1.3)],
        ) {
            let x = numbers(samples * channels * inner, seed);
            let y = local_response(&x, (channels, inner), (before, after), (1.5, 0.3, beta));
            for (i, y) in y.iter().enumerate() {
                let (sample, c, position) = (i / (channels * inner), i / inner % channels, i % inner);
                let window = c.saturating_sub(before)..(c + after + 1).min(channels);
                let squares: f64 = window.map(|c| x[(sample * channels + c) * inner + position]).map(|v| v * v).sum();
                prop_assert!(close(*y, x[i] / libm::pow(1.5 + 0.3 * squares, beta)));
            }
        }
    }
}
