//! `tanh` and the sigmoid as fractions of polynomials, as ONNX Runtime computes them (`tanh.cpp`, `logistic.cpp`).
//!
//! The coefficients are those of Eigen's rational approximations: `tanh x ≈ x·p(x²) / q(x²)` on `[-9, 9]`, and
//! `1 / (1 + e^-x) ≈ 1/2 + x·p(x²) / q(x²)` on `[-18, 18]`. The former is within 4 units in the last place; the latter
//! is a difference that loses all digits of small results. Those of [`math`](super::math) are closer.

use super::math::Real as _;
use super::simd::{self, Task};

/// `x·p(x²) / q(x²)` for `|x|` up to a bound; the coefficients of the highest powers first.
#[inline(always)]
fn fraction<const P: usize, const Q: usize>(x: f32, bound: f32, p: [f32; P], q: [f32; Q]) -> f32 {
    let x = x.at_least(-bound).at_most(bound);
    let square = x * x;
    let at = |sum: f32, c: f32| sum.mul_add(square, c);
    let p = p.into_iter().reduce(at).unwrap_or(0.0) * x;
    p / q.into_iter().reduce(at).unwrap_or(1.0)
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.760_768_4e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297_3e-8,
        1.485_722_35e-5,
        6.372_619_5e-4,
        4.893_524_6e-3,
    ];
    const Q: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_7e-3, 4.893_525e-3];
    fraction(x, 9.0, P, Q)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    const P: [f32; 5] = [4.370_31e-11, 1.156_273_2e-7, 6.085_749e-5, 8.513_771e-3, 2.482_879_5e-1];
    const Q: [f32; 6] =
        [6.102_473_7e-13, 5.761_021_4e-9, 6.291_068e-6, 1.701_988_2e-3, 1.168_176_5e-1, 9.931_519e-1];
    (fraction(x, 18.0, P, Q) + 0.5).at_least(0.0)
}

/// Replaces every element by [`tanh`] of it.
pub fn tanh_slice(x: &mut [f32]) {
    simd::run(Tanh(x));
}

/// Replaces every element by [`sigmoid`] of it.
pub fn sigmoid_slice(x: &mut [f32]) {
    simd::run(Sigmoid(x));
}

struct Tanh<'a>(&'a mut [f32]);

impl Task for Tanh<'_> {
    #[inline(always)]
    fn run(self) {
        self.0.iter_mut().for_each(|v| *v = tanh(*v));
    }
}

struct Sigmoid<'a>(&'a mut [f32]);

impl Task for Sigmoid<'_> {
    #[inline(always)]
    fn run(self) {
        self.0.iter_mut().for_each(|v| *v = sigmoid(*v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few hundred numbers of either sign and all sizes that matter.
    fn numbers() -> impl Iterator<Item = f32> {
        (-400..=400).map(|i| i as f32 / 17.0).chain([0.0, 1e-20, -1e-20, 1e30, -1e30])
    }

    #[test]
    fn they_are_close() {
        for x in numbers() {
            let exact = f64::from(x);
            assert!((f64::from(tanh(x)) - libm::tanh(exact)).abs() < 3e-7, "{x}");
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + libm::exp(-exact))).abs() < 2e-7, "{x}");
        }
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn slices_have_the_same_bits() {
        let x: Vec<f32> = numbers().collect();
        let (mut t, mut s) = (x.clone(), x.clone());
        tanh_slice(&mut t);
        sigmoid_slice(&mut s);
        assert!(x.iter().zip(&t).all(|(&x, t)| tanh(x).to_bits() == t.to_bits()));
        assert!(x.iter().zip(&s).all(|(&x, s)| sigmoid(x).to_bits() == s.to_bits()));
    }
}
